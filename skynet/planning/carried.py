"""What the hidden states carry from span to span, in columns after their own. Pure.

Layers may take more than the hidden states before them: the embeddings of the step's tokens, and
keys and values of an earlier layer. A stage that has computed or received keys and values keeps
them in its slots, so these only pass from stage to stage; the embeddings pass every span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skynet.architecture.architecture import Architecture
from skynet.architecture.mixers import SharedAttention
from skynet.planning.ranges import Range


@dataclass(frozen=True)
class Carried:
    """What follows the hidden states before a layer, in this order.

    embedding: columns of the embeddings of the step's tokens.
    sources: layers, and the columns of the keys and values of each.
    """

    embedding: int = 0
    sources: tuple[tuple[int, int], ...] = ()

    @property
    def width(self) -> int:
        return self.embedding + sum(columns for _, columns in self.sources)


def carried(arch: Architecture, stages: Sequence[Range], layer: int) -> Carried:
    """What follows the hidden states before `layer`; stages: the layers of each."""
    if not arch.kinds or not 0 < layer < arch.total_layers:
        return Carried()
    here = next(stage for stage in stages if layer in stage)
    later = [stage for stage in stages if stage.start >= layer]
    sources = []
    for source in sorted(sources_of(arch, Range(layer, arch.total_layers))):
        is_kept = layer > here.start and (source in here or source in sources_of(arch, here))
        if source < layer and not is_kept and any(source in copies(arch, each) for each in later):
            kind = arch.at(source)
            sources.append((source, 2 * kind.num_kv_heads * kind.head_dim))
    return Carried(arch.hidden_size if arch.has_inputs else 0, tuple(sources))


def sources_of(arch: Architecture, layers: Range) -> set[int]:
    """The layers whose keys and values these layers share."""
    return {
        mixer.source
        for layer in range(layers.start, layers.stop)
        for mixer in arch.at(layer).mixers
        if isinstance(mixer, SharedAttention)
    }


def copies(arch: Architecture, stage: Range) -> set[int]:
    """The layers of earlier stages whose keys and values a stage keeps for its own layers."""
    return {source for source in sources_of(arch, stage) if source not in stage}
