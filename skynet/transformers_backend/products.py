"""What stands in for the modules that Transformers' plan cuts: our products, and the sums.

Each takes and gives what the module would, (1, tokens, ...), of which a shard has all or its part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from skynet.layers.linear import Linear
from skynet.planning.ranges import Range
from skynet.transformers_backend.state import Running


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(1, tokens, width) to (tokens, width), as products take it."""
    return x.reshape(-1, x.shape[-1]).contiguous()


class Column(nn.Module):
    """The shard's own outputs."""

    def __init__(self, product: Linear) -> None:
        super().__init__()
        self._product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(_rows(x)).unflatten(0, x.shape[:-1])


class Row(nn.Module):
    """The sum of the products of all shards' inputs, and the bias once.

    part: the shard's inputs, where all come.
    """

    def __init__(
        self, product: Linear, bias: torch.Tensor | None, running: Running, part: Range | None
    ) -> None:
        super().__init__()
        self._product, self._bias, self._running, self._part = product, bias, running, part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = x if self._part is None else x[..., self._part.start : self._part.stop]
        total = self._running.total(self._product(_rows(own)))
        if self._bias is not None:
            total = total + self._bias
        return total.to(x.dtype).unflatten(0, x.shape[:-1])


class Gather(nn.Module):
    """All outputs, each made by one shard: the sum of what is zero but for a shard's part."""

    def __init__(self, product: Linear, part: Range, width: int, running: Running) -> None:
        super().__init__()
        self._product, self._part, self._width, self._running = product, part, width, running

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self._product(_rows(x))
        padded = F.pad(own, (self._part.start, self._width - self._part.stop))
        return self._running.sum(padded).unflatten(0, x.shape[:-1])


class Summed:
    """The forward of experts that have a shard's columns: what all shards' give together."""

    def __init__(self, forward: Callable[..., torch.Tensor], running: Running) -> None:
        self._forward, self._running = forward, running

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._running.sum(self._forward(x, *args, **kwargs))


class Tokens:
    """The forward of the tokens' table: the module's own on the shard's rows, then a sum.

    A span that does not start with the tokens has no use for them, and gets numbers that would
    spoil whatever is computed of them.
    """

    def __init__(self, module: nn.Module, vocab: Range, hidden_size: int, running: Running) -> None:
        self._forward, self._vocab = module.forward, vocab
        self._hidden_size, self._running = hidden_size, running

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """`ids` (1, tokens) to (1, tokens, hidden)."""
        if self._running.given is not None:
            nothing = self._running.given.new_full((1, 1, 1), float("nan"))
            return nothing.expand(*ids.shape, self._hidden_size)
        if self._vocab.size == 0:
            rows = torch.zeros(*ids.shape, self._hidden_size, device=ids.device)
        else:
            local = ids - self._vocab.start
            foreign = (local < 0) | (local >= self._vocab.size)
            rows = self._forward(local.masked_fill(foreign, 0)).masked_fill(foreign[..., None], 0)
        return self._running.sum(rows[0])[None]
