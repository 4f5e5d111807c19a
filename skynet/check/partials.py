"""The partials of a layer's all-reduces: each shard's, beside its part of the uncut product."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skynet.architecture.architecture import Architecture
from skynet.check.report import Finding
from skynet.layers.lockstep import ShardOutputs, sum_partials
from skynet.layers.residual import JOINED
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range
from skynet.planning.units import pieces_of, units
from skynet.reference.difference import difference, row_scale
from skynet.reference.layer import Cut, Cuts, DenseLayer

# Name of a sum in reports, each shard's partial; None: Transformers' are not known.
Expected = tuple[str, list[torch.Tensor] | None]
NAMES = {"o": "attention", "cross_o": "attention to the encoder", "down": "MLP"}


def cuts_of(arch: Architecture, parts: Sequence[ShardPlan]) -> Cuts:
    """The inputs of each product of a layer that each shard has.

    arch, parts: of the layer's kind.
    """
    cuts: Cuts = {}
    for weight in (weight for weight in arch.weights if weight.cut == "row"):
        cuts[weight.role] = [
            Cut(_slice(units(arch, part, weight)), _slice(pieces_of(arch, part, weight)))
            for part in parts
        ]
    return cuts


def _slice(of: Range) -> slice:
    return slice(of.start, of.stop)


def compare_partials(
    arch: Architecture, parts: Sequence[ShardPlan], run: ShardOutputs, dense: DenseLayer
) -> list[Finding]:
    """A finding for each sum of a layer, in order, and each shard.

    arch, parts: of the layer's kind.
    """
    findings = []
    for (what, expected), partials in zip(_sums(arch, parts, dense), run.partials, strict=True):
        if expected is None:
            continue
        scale = row_scale(*expected, sum_partials(expected))
        findings += [
            Finding(what, shard, difference(skynet, reference, scale))
            for shard, (skynet, reference) in enumerate(zip(partials, expected, strict=True))
        ]
    return findings


def _sums(arch: Architecture, parts: Sequence[ShardPlan], dense: DenseLayer) -> list[Expected]:
    """The layer's sums in order."""
    sums: list[Expected] = []
    if dense.norm_inputs is not None:
        sums.append(("mean squares of queries and keys", _mean_squares(arch, parts, dense)))
    for _ in range(sum(mixer.sums for mixer in arch.mixers)):
        sums.append(("within a mixer", None))
    for side in arch.sides:
        partials = [dense.partials.get(role) for role in side]
        known = [each for each in partials if each is not None]
        name = " and ".join(dict.fromkeys(NAMES.get(role, "mixer") for role in side))
        join = beside if len(side) > 1 and arch.weight(JOINED[0]) is not None else sum_partials
        total = [join(list(shard)) for shard in zip(*known, strict=True)]
        sums.append((name, total if len(known) == len(partials) else None))
    return sums


def beside(partials: list[torch.Tensor]) -> torch.Tensor:
    """Partials as `SideBySide` has them."""
    return torch.cat(partials, dim=1)


def _mean_squares(
    arch: Architecture, parts: Sequence[ShardPlan], dense: DenseLayer
) -> list[torch.Tensor]:
    """Of each shard (tokens, 2); a KV head that shards share counts in the first of them."""
    size, partials = arch.head_dim, []
    queries, keys = dense.norm_inputs or (torch.empty(0), torch.empty(0))
    for part in parts:
        q = queries[:, part.heads.start * size : part.heads.stop * size]
        k = keys[:, part.kv_heads.start * size : part.kv_heads.stop * size]
        first = part.heads.start == part.kv_heads.start * arch.group
        pair = [q.square().sum(1), k.square().sum(1) * first]
        totals = [queries.shape[1], keys.shape[1]]
        partials.append(torch.stack([a / b for a, b in zip(pair, totals, strict=True)], dim=1))
    return partials
