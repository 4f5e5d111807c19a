"""The difference between two results, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Relative to the row's largest number. float32 sums in another order differ by 1e-6 to 1e-5 of it.
# bfloat16 has 8 bits, and the two sides round to it at different points between a layer's products:
# tiny random models reach 8e-2. int8 rounds the activations of SkyNet's products alone.
LIMITS = {"float32": 1e-4, "bfloat16": 1e-1, "int8": 1e-1}
# A row much smaller than the others is measured by this share of the largest row: what remains of
# large numbers that cancel is rounding.
FLOOR = 1e-3
DRIFT = 10  # the limit for all layers together, in limits of one layer


@dataclass(frozen=True)
class Difference:
    """The largest difference between two results of shape (tokens, width)."""

    absolute: float
    relative: float  # to the largest number of the token's row
    token: int  # position in the prompt
    index: int  # in the row

    def to_json(self) -> dict[str, float | int | None]:
        """JSON has no infinity: None."""
        numbers = {"absolute": self.absolute, "relative": self.relative}
        finite = {name: value if value < float("inf") else None for name, value in numbers.items()}
        return {**finite, "token": self.token, "index": self.index}


def row_scale(*reference: torch.Tensor) -> torch.Tensor:
    """(tokens,) the scale of relative differences between tensors like these (tokens, width)."""
    scale = torch.stack([part.float().abs().amax(-1) for part in reference if part.shape[-1]]).amax(
        0
    )
    return scale.clamp(min=float(scale.max()) * FLOOR).clamp(min=torch.finfo(torch.float32).tiny)


def difference(
    skynet: torch.Tensor, reference: torch.Tensor, scale: torch.Tensor | None = None
) -> Difference:
    """The largest difference of two (tokens, width), relative to `scale` (tokens,)."""
    if reference.shape[-1] == 0:
        return Difference(0.0, 0.0, 0, 0)
    apart = (skynet.float() - reference.float()).abs().nan_to_num(float("inf"), float("inf"))
    scale = row_scale(reference) if scale is None else scale
    rows, columns = apart.max(-1)
    relative = (rows / scale).nan_to_num(float("inf"), float("inf"))
    token = int(relative.argmax())
    return Difference(float(rows[token]), float(relative[token]), token, int(columns[token]))
