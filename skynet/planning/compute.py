"""Predicted seconds that one shard computes in a step: products, attention, logits. Pure.

Each is bound by memory, which a weight or a key passes once a step, or by arithmetic, whichever
takes longer. What small operators cost is in timing.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import NamedTuple

from skynet.architecture.architecture import Architecture
from skynet.planning.cost import Candidate
from skynet.planning.expert_cut import EXPERT_S, busiest
from skynet.planning.memory import (
    count_items,
    head_bytes,
    layer_bytes,
    layers_of_kinds,
    state_bytes,
)
from skynet.planning.plan import INT8, Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.planning.split import DTYPE_BYTES, WEIGHT_BITS
from skynet.planning.units import part_of_kind

# Quantised weights that become float32 in a second, relative to multiply-adds with few rows: as
# measured with AVX2. It limits products of one row, which read few bytes for each weight.
CODE_SPEED = 0.5
FEW_ROWS = 32  # from here on products run at the speed of many rows
# Attention's multiply-adds in a second, relative to those of products of as many rows.
ATTENTION_SPEED = 0.4
# Over the hidden states and MLP columns of a token, in each layer: norms, activation, copies.
ACTIVATION_PASSES = 24
LOGIT_PASSES = 8  # over the logits of a row, to choose candidates


@dataclass(frozen=True)
class Work:
    """A step's new tokens, in so many rows (sequences), each after `context` tokens in its slot.

    encoder: the tokens are texts for the encoder of an encoder-decoder.
    """

    tokens: int = 1
    rows: int = 1
    context: int = 0
    encoder: bool = False


def shard_compute_s(
    arch: Architecture,
    plan: Plan,
    address: tuple[int, int],
    layers: Range,
    member: tuple[Candidate, float],
    work: Work,
) -> tuple[float, float, float]:
    """(attention, MLP, logits): seconds of one shard in some layers and, after the last, its head.

    member: the worker, and the cores of its host that it computes on.
    """
    worker, cores = member
    read = worker.speed * cores
    multiply = (worker.few_rows if work.tokens < FEW_ROWS else worker.many_rows) * cores
    # Of mixed layouts, as in Q4_K_M, the larger.
    bytes_of_weight = WEIGHT_BITS[arch.quantisation.split("+")[-1] or plan.weight_dtype] / 8

    convert = CODE_SPEED * worker.few_rows * cores

    def products_s(read_bytes: float, used_bytes: float, rows: int) -> float:
        longest = max(read_bytes / read, used_bytes * rows / bytes_of_weight / multiply)
        if not arch.quantisation or plan.dtype == INT8:
            return longest
        return max(longest, read_bytes / bytes_of_weight / convert)

    sizes = layer_bytes(arch, plan, address, layers)
    part = plan.stages[address[0]].shards[address[1]]
    attention_s = products_s(sizes.attention, sizes.attention, work.tokens)
    attention_s += _mixing_s(arch, plan, part, layers, work, (read, multiply))
    experts = _experts(arch, plan, part, work)
    read_experts, used_experts = sizes.experts * experts.read, sizes.experts * experts.used
    mlp_s = products_s(sizes.mlp + read_experts, sizes.mlp + used_experts, work.tokens)
    mlp_s += layers.size * experts.products * EXPERT_S
    activations = work.tokens * (arch.hidden_size + part.columns.size) * DTYPE_BYTES["float32"]
    mlp_s += layers.size * ACTIVATION_PASSES * activations / read
    if address[0] < len(plan.stages) - 1 or work.encoder:
        return attention_s, mlp_s, 0.0
    head = head_bytes(arch, plan, address[1])
    logits = part.vocab.size * work.rows * DTYPE_BYTES["float32"] if head else 0
    head_s = products_s(head, head, work.rows) + LOGIT_PASSES * logits / read
    return attention_s, mlp_s, head_s


class _Experts(NamedTuple):
    """Shares of a shard's experts: of those that a step reads, and that one token uses; and the
    experts that the shard multiplies by in a layer."""

    read: float = 1.0
    used: float = 1.0
    products: float = 0.0


def _experts(arch: Architecture, plan: Plan, part: ShardPlan, work: Work) -> _Experts:
    """Of the slowest shard of a stage."""
    if not arch.num_experts:
        return _Experts()
    chosen = arch.experts_per_token / arch.num_experts
    own, uneven = arch.num_experts, 1.0
    if part.experts is not None:
        own, shards = part.experts.size, plan.num_shards
        of_token = busiest(arch.num_experts, shards, arch.experts_per_token)
        # The more tokens, the more evenly their experts are divided.
        uneven += (of_token * shards / arch.experts_per_token - 1) / sqrt(work.tokens)
    read = min(1.0, uneven * (1 - (1 - chosen) ** work.tokens))
    return _Experts(read, min(1.0, chosen * uneven), own * read)


def _mixing_s(
    arch: Architecture,
    plan: Plan,
    part: ShardPlan,
    layers: Range,
    work: Work,
    rates: tuple[float, float],
) -> float:
    """Seconds of all layers' scores, mixes and states."""
    stack, own = (arch.encoder, part.encoder) if work.encoder else (arch, part)
    if stack is None or own is None:
        return 0.0
    total = 0.0
    for kind, numbers in layers_of_kinds(stack, layers):
        kind_part = part_of_kind(stack, kind, own)
        for mixer in kind.mixers:
            items = partial(count_items, kind, kind_part)
            kept = mixer.kept(items, kind.head_dim)
            if mixer.is_recurrent:  # read and written by each row; by a chunk about once a token
                passes = max(work.rows, work.tokens)
                total += len(numbers) * passes * state_bytes(kept) / rates[0]
            else:
                sizes = kept.vectors * kept.size, mixer.multiplied(items, kind.head_dim)
                total += len(numbers) * _attention_s(kind, plan, sizes, work, rates)
    return total


def _attention_s(
    stack: Architecture, plan: Plan, sizes: tuple[int, int], work: Work, rates: tuple[float, float]
) -> float:
    """Seconds of one layer's scores and mixes: (bytes read, multiply-adds) per second.

    sizes: (numbers kept, multiply-adds) of each token that is seen.
    """
    new = work.tokens / work.rows
    cached = work.rows * (work.context + new) * sizes[0]
    seen = work.context + (new if stack.bidirectional else (new + 1) / 2)
    multiplied = work.tokens * seen * sizes[1]
    return max(
        cached * DTYPE_BYTES[plan.number_dtype] / rates[0], multiplied / rates[1] / ATTENTION_SPEED
    )
