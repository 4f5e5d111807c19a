"""How the experts of a mixture are divided among shards: by columns, or whole. Pure.

By columns every shard computes its columns of every chosen expert, and all shards do the same work.
Whole, a shard computes those of the chosen experts that it has: fewer and wider products, but a
token waits for the shard that has most of its experts. The sum over the shards is the same, in the
all-reduce that the MLP has anyway.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

from skynet.architecture.architecture import Architecture
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.architecture.weight import Weight
from skynet.errors import PlanError

AUTO, COLUMNS, WHOLE = "auto", "columns", "whole"
EXPERT_CUTS = (AUTO, COLUMNS, WHOLE)
# What the choice goes by: an expert's products besides reading its weights, and reading them. The
# former is an estimate. Kernels instead of PyTorch's operators made it 1.4e-4 less, which was
# measured with experts of 32 columns.
EXPERT_S = 3e-5
BYTES_PER_S = 1e10
BYTES_OF_WEIGHT = 2.0


def is_whole(arch: Architecture, shards: int, asked: str, widest: float) -> bool:
    """Whether shards have whole experts.

    asked: one of `EXPERT_CUTS`; auto: what takes less time for one token.
    widest: the largest share of the columns that a shard has, if experts are cut by them.

    Raises:
        PlanError: another word, or whole experts of a model that has none, or fewer than shards.
    """
    if asked not in EXPERT_CUTS:
        raise PlanError(f"experts {asked!r} is not supported; known: {list(EXPERT_CUTS)}")
    is_possible = 0 < shards <= arch.num_experts and not isinstance(arch, TransformersArchitecture)
    if asked == WHOLE and not is_possible:
        raise PlanError(
            f"experts={WHOLE!r}: {arch.model_type} has {arch.num_experts} experts for {shards} "
            "shards, which need one each at least; on the Transformers backend experts are cut by "
            "columns"
        )
    if asked != AUTO or not is_possible or shards == 1:
        return asked == WHOLE
    read_s = expert_params(arch) * BYTES_OF_WEIGHT / BYTES_PER_S
    chosen = arch.experts_per_token
    whole_s = busiest(arch.num_experts, shards, chosen) * (EXPERT_S + read_s)
    return whole_s < chosen * (EXPERT_S + read_s * widest)


def expert_params(arch: Architecture) -> int:
    """Parameters of one expert."""
    return (3 if arch.gated else 2) * arch.hidden_size * arch.intermediate_size


@lru_cache(maxsize=1024)
def busiest(experts: int, shards: int, chosen: int) -> float:
    """The expected number of a token's `chosen` experts in the shard that has most of them.

    Each set of experts is as likely as any other.
    """
    sizes = [experts * (shard + 1) // shards - experts * shard // shards for shard in range(shards)]
    total, expected = comb(experts, chosen), 0.0
    for limit in range(chosen):
        # Ways to choose with at most `limit` in each shard, by the number chosen so far.
        ways = [1] + [0] * chosen
        for size in sizes:
            ways = [
                sum(ways[n - own] * comb(size, own) for own in range(min(limit, n) + 1))
                for n in range(chosen + 1)
            ]
        expected += 1 - ways[chosen] / total
    return expected


def is_of_expert(weight: Weight) -> bool:
    """Whether a weight is a matrix of each expert."""
    return weight.in_pieces and weight.unit in ("columns", "experts")
