"""Replacements of the modules that Transformers' plan cuts: SkyNet's products, and the all-reduces.

Each has the inputs and outputs of its module, (1, tokens, ...), whole or this shard's part.
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
    """(1, tokens, width) to contiguous (tokens, width), as products need it."""
    return x.reshape(-1, x.shape[-1]).contiguous()


class Column(nn.Module):
    """The outputs of this shard."""

    def __init__(self, product: Linear) -> None:
        super().__init__()
        self._product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(_rows(x)).unflatten(0, x.shape[:-1])


class Row(nn.Module):
    """The sum of all shards' products, plus the bias once.

    part: of the inputs, where the module is given all of them.
    """

    def __init__(
        self, product: Linear, bias: torch.Tensor | None, running: Running, part: Range | None
    ) -> None:
        super().__init__()
        self._product, self._bias, self._running, self._part = product, bias, running, part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inputs = x if self._part is None else x[..., self._part.start : self._part.stop]
        total = self._running.total(self._product(_rows(inputs)))
        if self._bias is not None:
            total = total + self._bias
        return total.to(x.dtype).unflatten(0, x.shape[:-1])


class Gather(nn.Module):
    """All outputs, each computed by one shard: a sum of vectors that are zero outside its part."""

    def __init__(self, product: Linear, part: Range, width: int, running: Running) -> None:
        super().__init__()
        self._product, self._part, self._width, self._running = product, part, width, running

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self._product(_rows(x))
        padded = F.pad(outputs, (self._part.start, self._width - self._part.stop))
        return self._running.sum(padded).unflatten(0, x.shape[:-1])


class Summed:
    """The forward of experts with a shard's columns: the sum over all shards."""

    def __init__(self, forward: Callable[..., torch.Tensor], running: Running) -> None:
        self._forward, self._running = forward, running

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._running.sum(self._forward(x, *args, **kwargs))


class Tokens:
    """The forward of the token embedding: the module's forward on the shard's rows, then a sum.

    A span that does not start at the tokens does not use it, and gets NaN.
    """

    def __init__(self, module: nn.Module, vocab: Range, hidden_size: int, running: Running) -> None:
        self._forward, self._vocab = module.forward, vocab
        self._hidden_size, self._running = hidden_size, running

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """`ids` (1, tokens) to (1, tokens, hidden)."""
        if self._running.given is not None:
            nan = self._running.given.new_full((1, 1, 1), float("nan"))
            return nan.expand(*ids.shape, self._hidden_size)
        if self._vocab.size == 0:
            rows = torch.zeros(*ids.shape, self._hidden_size, device=ids.device)
        else:
            local = ids - self._vocab.start
            foreign = (local < 0) | (local >= self._vocab.size)
            rows = self._forward(local.masked_fill(foreign, 0)).masked_fill(foreign[..., None], 0)
        return self._running.sum(rows[0])[None]
