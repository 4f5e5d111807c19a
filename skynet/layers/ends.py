"""Both ends of the model, cut over the vocabulary: the embedding and the head."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from skynet.layers.linear import Linear
from skynet.layers.norm import Norm
from skynet.planning.ranges import Range


class Embedding:
    """Rows of the tokens in `vocab`; the sum over the shards is the embedding of any token."""

    def __init__(
        self, table: torch.Tensor, positions: torch.Tensor | None, vocab: Range, whole: bool
    ) -> None:
        self.nbytes = table.nbytes + (0 if positions is None else positions.nbytes)
        self._table, self._positions, self._vocab, self._whole = table, positions, vocab, whole

    def partial(self, ids: torch.Tensor) -> torch.Tensor:
        """`ids` (tokens,) to (tokens, hidden): zeros for tokens of other shards."""
        if self._whole:
            return F.embedding(ids, self._table)
        if self._vocab.size == 0:
            return self._table.new_zeros(len(ids), self._table.shape[1])
        local = ids - self._vocab.start
        foreign = (local < 0) | (local >= self._vocab.size)
        rows = F.embedding(local.masked_fill(foreign, 0), self._table)
        return rows.masked_fill_(foreign[:, None], 0)

    def add_positions(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What is added once, after the sum."""
        if self._positions is None:
            return x
        return x + F.embedding(positions, self._positions)


class Head:
    """The last norm and the product with this shard's part of the vocabulary."""

    def __init__(self, norm: Norm, product: Linear) -> None:
        self.nbytes = norm.nbytes + product.nbytes
        self._norm, self._product = norm, product

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, hidden) float32 to logits (rows, vocabulary of this shard) float32."""
        return self._product(self._norm(x)).float()
