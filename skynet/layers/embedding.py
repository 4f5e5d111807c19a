"""The embedding of one shard, cut over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from skynet.layers.linear import Linear
from skynet.layers.norm import AllReduce, Norm, load_norm
from skynet.layers.rows import Rows
from skynet.layers.sinusoids import sinusoid_table
from skynet.layers.weights import Loader
from skynet.planning.ranges import Range


@dataclass(frozen=True)
class TokenTable:
    """Rows of the tokens in `vocab`; the sum over the shards is the embedding of any token."""

    table: Rows
    vocab: Range
    whole: bool  # `vocab` is all of the vocabulary
    scale: float
    nbytes: int  # 0 where another embedding counts the table

    def partial(self, ids: torch.Tensor) -> torch.Tensor:
        """`ids` (tokens,) to (tokens, embedding): zeros for tokens of other shards."""
        if self.whole:
            return self.table(ids)
        if self.vocab.size == 0:
            shape = (len(ids), self.table.width)
            return torch.zeros(shape, dtype=self.table.dtype, device=ids.device)
        local = ids - self.vocab.start
        foreign = (local < 0) | (local >= self.vocab.size)
        rows = self.table(local.masked_fill(foreign, 0))
        return rows.masked_fill_(foreign[:, None], 0)


class PositionTable:
    """Rows of the positions. Token `unplaced`, if any, takes row 0, and position p row p + 1."""

    def __init__(self, table: torch.Tensor, unplaced: int | None, whole_texts: bool) -> None:
        """unplaced: see `Architecture.unplaced_token`; whole_texts: all of a text is in a step."""
        self.nbytes = table.nbytes
        self._table, self._unplaced, self._whole_texts = table, unplaced, whole_texts

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """`ids` and `positions` (tokens,) to (tokens, width)."""
        return F.embedding(self._rows(ids, positions), self._table)

    def _rows(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if self._unplaced is None:
            return positions
        if self._whole_texts:
            return _counted(ids, positions, self._unplaced)
        return (positions + 1).masked_fill(ids == self._unplaced, 0)


@dataclass(frozen=True)
class Projection:
    """The product from the embedding's width to the hidden size."""

    product: Linear
    after_norm: bool  # else before positions are added
    dtype: torch.dtype  # what is computed in

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x.to(self.dtype)).float()


class Embedding:
    """Token embeddings, and the operations on them before the first layer."""

    def __init__(
        self,
        tokens: TokenTable,
        positions: PositionTable | None,
        types: torch.Tensor | None,
        norm: Norm | None,
        projection: Projection | None,
    ) -> None:
        """types: the token type table."""
        self._tokens, self._positions, self._types = tokens, positions, types
        self._norm, self._projection = norm, projection
        product = None if projection is None else projection.product
        parts = (tokens, positions, types, norm, product)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def __call__(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        all_reduce: AllReduce,
        types: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`ids` and `positions` (tokens,) to (tokens, hidden) float32.

        types: (tokens,) rows of the token type table; None: the first row for all tokens.
        """
        return self.complete(all_reduce(self.partial(ids)), ids, positions, types)

    def partial(self, ids: torch.Tensor) -> torch.Tensor:
        """See `TokenTable.partial`."""
        return self._tokens.partial(ids)

    def complete(
        self,
        x: torch.Tensor,
        ids: torch.Tensor,
        positions: torch.Tensor,
        types: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The part done once, after the sum: `x` (tokens, embedding) to (tokens, hidden)."""
        projection = self._projection
        if self._tokens.scale != 1:
            x = x * self._tokens.scale
        if projection is not None and not projection.after_norm:
            x = projection(x)
        if self._positions is not None:
            x = x + self._positions(ids, positions)
        if self._types is not None:
            x = x + (self._types[0] if types is None else F.embedding(types, self._types))
        if self._norm is not None:
            x = self._norm(x)
        if projection is not None and projection.after_norm:
            x = projection(x)
        return x


def _counted(ids: torch.Tensor, positions: torch.Tensor, unplaced: int) -> torch.Tensor:
    """The number of each token in its whole text, from 1, without `unplaced`, which gets 0."""
    placed = (ids != unplaced).long()
    count = placed.cumsum(0)
    starts = torch.arange(len(ids), device=ids.device) - positions  # of each token's text
    return (count - (count - placed)[starts]) * placed


def load_embedding(load: Loader, shared: bool = False) -> Embedding:
    """The embedding of a stack; shared: another embedding has the same table and counts it."""
    arch, vocab = load.arch, load.part.vocab
    projected = load.has("project_in")
    table = load.rows("embed")
    return Embedding(
        TokenTable(
            table,
            vocab,
            whole=vocab.size == arch.vocab_size,
            # Transformers rounds Gemma's scale to what it computes in.
            scale=float(torch.tensor(arch.embed_scale, dtype=load.dtype)),
            nbytes=0 if shared else table.nbytes,
        ),
        positions=_load_positions(load),
        types=load.matrix("token_types") if load.has("token_types") else None,
        norm=load_norm(load, "embed_norm", dtype=torch.float32) if load.has("embed_norm") else None,
        projection=Projection(load.linear("project_in"), arch.project_after_norm, load.dtype)
        if projected
        else None,
    )


def _load_positions(load: Loader) -> PositionTable | None:
    """The file's table, else the computed one; None where the model adds no positions."""
    arch = load.arch
    if load.has("positions"):
        table = load.matrix("positions")
    elif arch.sinusoids is None:
        return None
    else:
        count, width = arch.max_positions, arch.hidden_size
        table = sinusoid_table(arch.sinusoids, arch.position_offset, count, width)
        if arch.unplaced_token is not None:
            table = torch.cat([torch.zeros(1, width), table])
        table = table.to(load.device, load.dtype)
    return PositionTable(table, arch.unplaced_token, whole_texts=arch.bidirectional)
