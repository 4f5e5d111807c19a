"""Small weights that stay in float32: norms, biases added after a sum, routers."""

from __future__ import annotations

import torch

from skynet.architecture.architecture import Weight
from skynet.layers.regions import ShardRegions
from skynet.layers.reuse import SliceWeights
from skynet.planning.ranges import Range
from skynet.planning.units import adds_biases


class FloatLoader:
    """Loads float32 vectors and matrices of one shard."""

    def __init__(self, regions: ShardRegions, weights: SliceWeights, device: torch.device) -> None:
        self._regions, self._weights, self._device = regions, weights, device
        self._arch = regions.arch

    def matrix(self, role: str, layer: int | None = None) -> torch.Tensor:
        """A replicated matrix (out, in)."""
        weight = self._regions.weight(role)
        return self._load(weight, layer, "weight", self._regions.matrix_shape(weight))

    def vector(self, role: str, kind: str = "weight", layer: int | None = None) -> torch.Tensor:
        """A whole vector: of a norm, or the bias of a row-parallel product."""
        weight = self._regions.weight(role)
        size = self._arch.size(weight.unit) if kind == "weight" else self._arch.bias_size(weight)
        return self._load(weight, layer, kind, (size,))

    def cut(self, role: str, layer: int, kind: str = "weight") -> torch.Tensor:
        """(units of this shard, *inner): a small weight that is cut along its first dimension."""
        weight = self._regions.weight(role)
        units = self._regions.units(weight)
        shape = self._arch.shape(weight)[1:] if kind == "weight" else ()
        return self._load(weight, layer, kind, (units.size, *shape), units)

    def vocab_vector(self, role: str) -> torch.Tensor:
        """(vocabulary of this shard,)."""
        weight = self._regions.weight(role)
        units = self._regions.units(weight)
        return self._load(weight, None, "bias", (units.size,), units)

    def head_vectors(self, role: str, kind: str, layer: int) -> torch.Tensor:
        """(heads of this shard, head_dim): the norm of each of its query or KV heads."""
        weight, head_dim = self._regions.weight(role), self._arch.head_dim
        part = self._regions.part
        heads = part.heads if role == "q_norm" else part.kv_heads
        if weight.unit == "head_dim":  # one for all heads
            return self.vector(role, kind, layer).expand(heads.size, -1)
        region, pieces = self._regions.units(weight), None
        if weight.in_pieces:
            pieces, region = heads, Range(0, head_dim)
        elif weight.by_head:
            region = heads
        made = self._load(weight, layer, kind, (heads.size * head_dim,), region, pieces)
        return made.view(-1, head_dim)

    def piece_biases(self, role: str, layer: int) -> torch.Tensor | None:
        """(pieces, hidden): the biases of each piece of a row-parallel product.

        They are added once over the shards: None on all but the first, or without any.
        """
        weight = self._regions.weight(role)
        count = self._arch.pieces(weight)
        if not weight.bias or not adds_biases(self._arch, self._regions.part, weight):
            return None
        size = self._arch.hidden_size
        made = self._load(weight, layer, "bias", (count * size,), Range(0, size), Range(0, count))
        return made.view(count, size)

    def row_bias(self, *roles: str, layer: int) -> torch.Tensor | None:
        """The sum of the biases of row-parallel products, which is added once; None without any.

        Each is multiplied by its weight's scale.
        """
        weights = [self._arch.weight(role) for role in roles]
        biased = [w for w in weights if w is not None and w.bias and not w.in_pieces]
        if not biased:
            return None
        if len(biased) == 1 and biased[0].scale == 1:
            return self.vector(biased[0].role, "bias", layer)
        names = [weight.tensor(layer, "bias") for weight in biased]
        key = ("sum", *names, self._regions.layer_number(layer))
        total = self._weights.get(key, ())
        if not isinstance(total, torch.Tensor):
            total = torch.zeros(self._arch.hidden_size, dtype=torch.float32, device=self._device)
            for name, weight in zip(names, biased, strict=True):
                bias = self._regions.fetch(name, Range(0, total.numel())).to(total)
                total.add_(bias, alpha=weight.scale)
            self._weights.fetched_bytes += total.nbytes
        self._weights.add(key, total, ())
        return total

    def _load(
        self,
        weight: Weight,
        layer: int | None,
        kind: str,
        shape: tuple[int, ...],
        region: Range | None = None,
        pieces: Range | None = None,
    ) -> torch.Tensor:
        """A tensor of the checkpoint, or several pieces of it end to end, in float32.

        region: the units to read of each tensor, all of them by default.
        pieces: the numbers of the pieces, where each is a tensor.
        """
        regions = self._regions
        numbers = [None] if pieces is None else range(pieces.start, pieces.stop)
        names = [weight.tensor(layer, kind, piece) for piece in numbers]
        key = ("float", weight.name, weight.role, kind, regions.layer_number(layer))
        units = tuple(each for each in (region, pieces) if each is not None)
        made = self._weights.get(key, units)
        if not isinstance(made, torch.Tensor):
            made = torch.empty(shape, dtype=torch.float32, device=self._device)
            every = Range(0, shape[0])
            raw = [regions.read(weight, name, region or every, layer) for name in names]
            regions.forget()
            whole = raw[0] if len(raw) == 1 else torch.cat(raw)
            regions.copy(weight, whole.reshape(shape), made, layer)
            self._weights.fetched_bytes += made.nbytes
        self._weights.add(key, made, units)
        return made
