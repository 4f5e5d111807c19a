"""The partials of a layer's all-reduces: each shard's, beside its part of the uncut product."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skynet.architecture.architecture import Architecture
from skynet.check.report import Finding
from skynet.layers.lockstep import ShardOutputs, sum_partials
from skynet.planning.plan import ShardPlan
from skynet.reference.difference import difference, row_scale
from skynet.reference.layer import PRODUCTS, Cuts, DenseLayer

Expected = tuple[str, list[torch.Tensor]]  # name of a sum in reports, each shard's partial


def cuts_of(arch: Architecture, parts: Sequence[ShardPlan]) -> Cuts:
    """The inputs of each product of a layer that each shard has."""
    size = arch.head_dim
    heads = [slice(part.heads.start * size, part.heads.stop * size) for part in parts]
    columns = [slice(part.columns.start, part.columns.stop) for part in parts]
    return {"o": heads, "cross_o": heads, "down": columns}


def compare_partials(
    arch: Architecture, parts: Sequence[ShardPlan], run: ShardOutputs, dense: DenseLayer
) -> list[Finding]:
    """A finding for each sum of a layer, in order, and each shard."""
    findings = []
    for (what, expected), partials in zip(_sums(arch, parts, dense), run.partials, strict=True):
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
    if arch.parallel:
        both = [a + b for a, b in zip(*dense.partials.values(), strict=True)]
        return [*sums, ("attention and MLP", both)]
    return [*sums, *((PRODUCTS[role], partials) for role, partials in dense.partials.items())]


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
