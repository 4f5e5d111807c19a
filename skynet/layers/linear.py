"""A product `y = x W^T + b`, with the weight in the fastest layout of the device.

Activations may be wider than weights: 16-bit weights stay so in memory, and their products with
float32 activations are those of the float32 weights, exact to float32's rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from skynet.kernels.library import kernels
from skynet.kernels.products import PackedWeight
from skynet.kernels.quantised import IntegerBlocks, PackedBlocks
from skynet.kernels.steps import Columns, Places, Program
from skynet.layers.int8_activations import rounded
from skynet.layers.rows import dequantised
from skynet.wire.blocks import BlockFormat

# Outputs of which PyTorch's operators have a float32 copy at a time. A GPU takes longer to start a
# product than to make one of few outputs.
TILE_ROWS, GPU_TILE_ROWS = 256, 16384


class Linear(ABC):
    """The product with a weight (out, in) and a bias (out,)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (tokens, in), contiguous, to (tokens, out) in the same dtype."""

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """The weight in the plain layout, (out, in); a copy if it is packed."""

    def emit(self, program: Program, places: Places, columns: Columns | None = None) -> bool:
        """Add the product to a program; False: not supported.

        columns: of the target's that it fills; all by default.
        """
        return False


def make_linear(
    weight: torch.Tensor, bias: torch.Tensor | None = None, dtype: torch.dtype | None = None
) -> Linear:
    """The fastest product of activations of `dtype` with `weight`; `bias` is of that dtype too.

    dtype: the weight's by default, and never narrower.
    """
    dtype = weight.dtype if dtype is None else dtype
    on_cpu = weight.device.type == "cpu" and weight.numel() > 0
    chosen = kernels() if on_cpu else None
    # Without instructions for bfloat16, PyTorch's product takes some times as long.
    is_slow = dtype == weight.dtype == torch.bfloat16 and not can_pack(weight)
    if chosen is not None and (dtype == torch.float32 or is_slow):
        return KernelLinear(PackedWeight(chosen, weight, bias), weight, bias)
    if dtype != weight.dtype:
        return WideningLinear(weight, bias)
    return (OneDnnLinear if can_pack(weight) else PlainLinear)(weight, bias)


def make_quantised_linear(
    blocks: torch.Tensor,
    form: BlockFormat,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    int8: bool = False,
) -> Linear:
    """The product of activations of `dtype` with a quantised weight, blocks (out, groups, block).

    It is computed in float32, whatever the dtype.

    int8: activations are rounded to int8, in the weight's groups of inputs.
    """
    chosen = kernels() if blocks.device.type == "cpu" and blocks.numel() else None
    if chosen is None:
        return (RoundingLinear if int8 else DequantisingLinear)(blocks, form, bias)
    kind = IntegerBlocks if int8 else PackedBlocks
    return QuantisedKernelLinear(kind(chosen, blocks, form, bias), blocks, bias)


class PlainLinear(Linear):
    """PyTorch's product."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)

    def dense(self) -> torch.Tensor:
        return self._weight


class OneDnnLinear(Linear):
    """The weight is packed once for oneDNN, which halves the time of products of up to some tens
    of rows; the plain layout is then freed.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._weight, self._bias = _OPS["reorder"](weight, None), bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _OPS["product"](x, self._weight, self._bias, "none", [], "")
        return y

    def dense(self) -> torch.Tensor:
        return self._weight.to_dense()


class KernelLinear(Linear):
    """SkyNet's kernels: float32 activations; weights of float32, bfloat16 or float16. bfloat16
    activations become float32 before, and their results bfloat16.
    """

    def __init__(
        self, packed: PackedWeight, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        super().__init__(weight, bias)
        self._packed = packed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._packed(x.float()).to(x.dtype)

    def dense(self) -> torch.Tensor:
        return self._packed.dense()

    def emit(self, program: Program, places: Places, columns: Columns | None = None) -> bool:
        return self._packed.emit(program, places, columns)


class QuantisedKernelLinear(Linear):
    """SkyNet's kernels: quantised weights, activations in float32 or rounded to int8.

    `dense()` gives the blocks.
    """

    def __init__(
        self, packed: PackedBlocks, blocks: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        super().__init__(blocks, bias)
        self._packed = packed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._packed(x.float()).to(x.dtype)

    def dense(self) -> torch.Tensor:
        return self._packed.unpacked()

    def emit(self, program: Program, places: Places, columns: Columns | None = None) -> bool:
        return self._packed.emit(program, places, columns)


class DequantisingLinear(Linear):
    """PyTorch's operators on the weight in float32, tile by tile. `dense()` gives the blocks."""

    def __init__(self, blocks: torch.Tensor, form: BlockFormat, bias: torch.Tensor | None) -> None:
        super().__init__(blocks, bias)
        self._blocks, self._form = blocks, form
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        tiles = [F.linear(wide, dequantised(tile, self._form)) for tile in self._tiles()]
        y = tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=-1)
        return (y if self._bias is None else y.add_(self._bias)).to(x.dtype)

    def dense(self) -> torch.Tensor:
        return self._blocks

    def _tiles(self) -> Sequence[torch.Tensor]:
        return self._blocks.split(TILE_ROWS)


class RoundingLinear(DequantisingLinear):
    """The same with activations that are rounded to int8."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(rounded(x.float(), self._form.group)).to(x.dtype)


class JoinedLinear(Linear):
    """Products of one input end to end, whose weights are in different forms."""

    def __init__(self, products: Sequence[Linear], sizes: Sequence[int]) -> None:
        """sizes: outputs of each product."""
        self.nbytes = sum(product.nbytes for product in products)
        self._products, self._sizes = products, sizes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([product(x) for product in self._products], dim=-1)

    def dense(self) -> torch.Tensor:
        raise NotImplementedError("the weights of a joined product are reused one by one")

    def emit(self, program: Program, places: Places, columns: Columns | None = None) -> bool:
        first, width = columns or (0, sum(self._sizes))
        for product, size in zip(self._products, self._sizes, strict=True):
            if not product.emit(program, places, (first, width)):
                return False
            first += size
        return True


class ScaledLinear(Linear):
    """A product whose outputs are multiplied by factors: `scales` of `sizes` outputs each."""

    def __init__(self, product: Linear, sizes: Sequence[int], scales: Sequence[float]) -> None:
        self.nbytes = product.nbytes
        self._product, self._sizes, self._scales = product, list(sizes), scales

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self._product(x)
        for part, scale in zip(y.split(self._sizes, dim=-1), self._scales, strict=True):
            part.mul_(scale)
        return y

    def dense(self) -> torch.Tensor:
        raise NotImplementedError("the weights are reused without their factors")

    def emit(self, program: Program, places: Places, columns: Columns | None = None) -> bool:
        first, width = columns or (0, sum(self._sizes))
        if not self._product.emit(program, places, columns):
            return False
        for size, scale in zip(self._sizes, self._scales, strict=True):
            if scale != 1:
                program.scale(scale, size, places[1], (first, width))
            first += size
        return True


class WideningLinear(PlainLinear):
    """PyTorch's operators on a copy of the weight in the dtype of the activations, tile by tile."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = TILE_ROWS if x.is_cpu else GPU_TILE_ROWS
        tiles = [F.linear(x, tile.to(x.dtype)) for tile in self._weight.split(rows)]
        y = tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=-1)
        return y if self._bias is None else y.add_(self._bias)


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
