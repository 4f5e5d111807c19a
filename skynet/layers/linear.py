"""A product `y = x W^T + b`, with the weight in the fastest layout of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


class Linear:
    """The product with `weight` (out, in) and `bias` (out,), both of one dtype.

    On a CPU the weight is packed once for oneDNN, which halves the time of products of up to some
    tens of rows; the plain layout is then freed.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self.packed = can_pack(weight)
        self._weight = _OPS["reorder"](weight, None) if self.packed else weight
        self._bias = bias
        self._product: Callable[..., torch.Tensor] = _OPS["product"] if self.packed else F.linear
        self._extra: tuple[Any, ...] = ("none", [], "") if self.packed else ()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (tokens, in), contiguous, to (tokens, out) in the same dtype."""
        return self._product(x, self._weight, self._bias, *self._extra)

    def dense(self) -> torch.Tensor:
        """The weight in the plain layout, (out, in); a copy if it is packed."""
        return self._weight.to_dense() if self.packed else self._weight


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN is available and supports this weight."""
    if not _OPS or weight.device.type != "cpu" or weight.numel() == 0:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _find_packing_ops() -> dict[str, Any]:
    # Private operators of PyTorch's compiler: a later version may not have them.
    if not torch.backends.mkldnn.is_available():
        return {}
    try:
        return {
            "reorder": torch.ops.mkldnn._reorder_linear_weight.default,
            "product": torch.ops.mkldnn._linear_pointwise.default,
        }
    except (AttributeError, RuntimeError):
        return {}


_OPS = _find_packing_ops()
