"""Puts what hidden states carry from span to span after their columns, and takes it from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from skynet.architecture.architecture import Architecture
from skynet.layers.context import StepContext
from skynet.layers.finite import no_part
from skynet.layers.shared_kv import SharedKV
from skynet.planning.carried import carried
from skynet.planning.ranges import Range


class Carrier:
    """Of one shard; see `skynet/planning/carried.py`."""

    def __init__(self, arch: Architecture, stages: Sequence[Range], layers: Range) -> None:
        """stages: the layers of each; layers: of this shard's."""
        self._arch = arch
        borders = range(layers.start, layers.stop + 1)
        self._embeds = arch.has_inputs
        self._carried = {layer: carried(arch, stages, layer) for layer in borders}

    def width(self, layer: int) -> int:
        """The columns of the hidden states before a layer, and of what follows them."""
        return self._arch.hidden_size + self._carried[layer].width

    def take(
        self, hidden: torch.Tensor, layer: int, context: StepContext, shared: SharedKV
    ) -> tuple[torch.Tensor, StepContext]:
        """The hidden states before a layer alone, and the context with what followed them.

        Keys and values that this stage keeps are written to their slots.
        """
        what = self._carried[layer]
        if layer == 0 and self._embeds:  # they are the embeddings
            context = replace(context, embeddings=hidden)
        if not what.width:
            return hidden, context
        sizes = [self._arch.hidden_size, what.embedding, *(size for _, size in what.sources)]
        x, embeddings, *parts = hidden.split(sizes, dim=1)
        passing: dict[int, torch.Tensor] = {}
        for (source, _), part in zip(what.sources, parts, strict=True):
            if source in shared:
                shared.store(source, part, context)
            else:
                passing[source] = part
        context = replace(context, embeddings=embeddings.contiguous(), passing=passing)
        return x.contiguous(), context

    def give(
        self, part: torch.Tensor, layer: int, context: StepContext, shared: SharedKV, first: bool
    ) -> torch.Tensor:
        """A shard's part of the hidden states before a layer and of what follows them.

        first: of the shard whose part has all that must be in the sum once.
        """
        what = self._carried[layer]
        if not what.width:
            return part
        columns = [part]
        if what.embedding and context.embeddings is not None:
            columns.append(context.embeddings if first else no_part(context.embeddings))
        for source, _ in what.sources:
            if source in shared:
                columns.append(shared.columns(source, context))
            else:
                passing = context.passing[source]
                columns.append(passing if first else no_part(passing))
        return torch.cat(columns, dim=1)
