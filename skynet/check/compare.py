"""How far two results are apart, and how far they may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Of a row's largest number. float32 sums in another order differ by 1e-6 to 1e-5 of it. bfloat16
# has 8 bits, and what both sides round to it between the products of a layer is not the same: tiny
# random models come to 8e-2.
LIMITS = {"float32": 1e-4, "bfloat16": 1e-1}
# A row that is next to nothing beside the others is compared with this share of the largest: what
# is left of large numbers that cancel is rounding.
FLOOR = 1e-3


@dataclass(frozen=True)
class Difference:
    """The worst place of two results of shape (tokens, width)."""

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
    """(tokens,) what differences of these (tokens, width) are measured by."""
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
