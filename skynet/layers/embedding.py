"""The embedding of one shard, cut over the vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from skynet.architecture.architecture import Architecture
from skynet.layers.linear import Linear
from skynet.layers.norm import Norm, load_norm
from skynet.layers.sinusoids import sinusoid_table
from skynet.layers.weights import Loader
from skynet.planning.ranges import Range


class Embedding:
    """Rows of the tokens in `vocab`; the sum over the shards is the embedding of any token."""

    def __init__(
        self,
        table: torch.Tensor,
        vocab: Range,
        *,
        whole: bool,
        scale: float = 1.0,
        projection: Linear | None = None,
        positions: torch.Tensor | None = None,
        norm: Norm | None = None,
        types: torch.Tensor | None = None,
        project_last: bool = False,
        shared: bool = False,
        unplaced: int | None = None,
        whole_texts: bool = False,
    ) -> None:
        """types: of which the first row is added to every token's.

        shared: the table is another's, who counts it.
        unplaced: see `Architecture.unplaced_token`.
        """
        self._table, self._vocab, self._whole, self._scale = table, vocab, whole, scale
        self._projection, self._positions, self._norm = projection, positions, norm
        self._types, self._project_last = types, project_last
        self._unplaced, self._whole_texts = unplaced, whole_texts
        parts = (None if shared else table, projection, positions, norm, types)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def partial(self, ids: torch.Tensor) -> torch.Tensor:
        """`ids` (tokens,) to (tokens, embedding): zeros for tokens of other shards."""
        if self._whole:
            return F.embedding(ids, self._table)
        if self._vocab.size == 0:
            return self._table.new_zeros(len(ids), self._table.shape[1])
        local = ids - self._vocab.start
        foreign = (local < 0) | (local >= self._vocab.size)
        rows = F.embedding(local.masked_fill(foreign, 0), self._table)
        return rows.masked_fill_(foreign[:, None], 0)

    def complete(self, x: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What is done once, after the sum: `x` (tokens, embedding) to (tokens, hidden)."""
        if self._scale != 1:
            x = x * self._scale
        if not self._project_last:
            x = self._project(x)
        if self._positions is not None:
            x = x + F.embedding(self._places(ids, positions), self._positions)
        if self._types is not None:
            x = x + self._types[0]
        x = x if self._norm is None else self._norm(x)
        return self._project(x) if self._project_last else x

    def _places(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the position table; with an `unplaced` token 0 is its own."""
        if self._unplaced is None:
            return positions
        if self._whole_texts:
            return _counted(ids, positions, self._unplaced)
        return (positions + 1).masked_fill(ids == self._unplaced, 0)

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        if self._projection is None:
            return x
        return self._projection(x.to(self._table.dtype)).float()


def _counted(ids: torch.Tensor, positions: torch.Tensor, unplaced: int) -> torch.Tensor:
    """The numbers of tokens in whole texts: from 1 on, without `unplaced`, which has 0."""
    placed = (ids != unplaced).long()
    count = placed.cumsum(0)
    starts = torch.arange(len(ids), device=ids.device) - positions  # of each token's text
    return (count - (count - placed)[starts]) * placed


def load_embedding(
    arch: Architecture, load: Loader, vocab: Range, shared: bool = False
) -> Embedding:
    """What the first layer of a stack starts from, of one shard; see `Embedding` for `shared`."""
    projected = load.has("project_in")
    table = load.matrix("embed")
    return Embedding(
        table,
        vocab,
        whole=vocab.size == arch.vocab_size,
        # Gemma was trained with a scale that is rounded as its weights are.
        scale=float(torch.tensor(arch.embed_scale, dtype=table.dtype)),
        projection=load.linear("project_in") if projected else None,
        positions=_load_positions(arch, load, table),
        norm=load_norm(arch, load, "embed_norm", None, torch.float32)
        if load.has("embed_norm")
        else None,
        types=load.matrix("token_types") if load.has("token_types") else None,
        project_last=arch.project_after_norm,
        shared=shared,
        unplaced=arch.unplaced_token,
        whole_texts=arch.bidirectional,
    )


def _load_positions(arch: Architecture, load: Loader, like: torch.Tensor) -> torch.Tensor | None:
    """The file's table, or else the one that is computed; None where there are no positions."""
    if load.has("positions"):
        return load.matrix("positions")
    if arch.sinusoids is None:
        return None
    count, width = arch.max_positions, arch.hidden_size
    table = sinusoid_table(arch.sinusoids, arch.position_offset, count, width)
    if arch.unplaced_token is not None:
        table = torch.cat([torch.zeros(1, width), table])
    return table.to(like)
