"""Predicted seconds that one shard computes in a step: products, attention, logits. Pure.

Each is bound by memory, which a weight or a key passes once a step, or by arithmetic, whichever
takes longer. What small operators cost is in timing.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from skynet.architecture.architecture import Architecture
from skynet.planning.cost import Candidate
from skynet.planning.memory import (
    count_items,
    head_bytes,
    layer_bytes,
    layers_of_kinds,
    state_bytes,
)
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.planning.split import DTYPE_BYTES, WEIGHT_BITS
from skynet.planning.units import part_of_kind

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

    def products_s(read_bytes: float, used_bytes: float, rows: int) -> float:
        return max(read_bytes / read, used_bytes * rows / bytes_of_weight / multiply)

    sizes = layer_bytes(arch, plan, address, layers)
    part = plan.stages[address[0]].shards[address[1]]
    attention_s = products_s(sizes.attention, sizes.attention, work.tokens)
    attention_s += _mixing_s(arch, plan, part, layers, work, (read, multiply))
    chosen = arch.experts_per_token / arch.num_experts if arch.num_experts else 1.0
    read_experts = sizes.experts * (1 - (1 - chosen) ** work.tokens)
    used_experts = sizes.experts * chosen
    mlp_s = products_s(sizes.mlp + read_experts, sizes.mlp + used_experts, work.tokens)
    activations = work.tokens * (arch.hidden_size + part.columns.size) * DTYPE_BYTES["float32"]
    mlp_s += layers.size * ACTIVATION_PASSES * activations / read
    if address[0] < len(plan.stages) - 1 or work.encoder:
        return attention_s, mlp_s, 0.0
    head = head_bytes(arch, plan, address[1])
    logits = part.vocab.size * work.rows * DTYPE_BYTES["float32"] if head else 0
    head_s = products_s(head, head, work.rows) + LOGIT_PASSES * logits / read
    return attention_s, mlp_s, head_s


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
    if not stack.kinds:
        return layers.size * _attention_s(stack, plan, own, work, rates)
    total = 0.0
    for kind, numbers in layers_of_kinds(stack, layers):
        kind_part = part_of_kind(stack, kind, own)
        for mixer in kind.mixers:
            state = state_bytes(mixer.kept(partial(count_items, kind, kind_part), kind.head_dim))
            if state:  # read and written by each row; a chunk passes it about once a token
                total += len(numbers) * max(work.rows, work.tokens) * state / rates[0]
            else:
                total += len(numbers) * _attention_s(kind, plan, kind_part, work, rates)
    return total


def _attention_s(
    stack: Architecture, plan: Plan, own: ShardPlan, work: Work, rates: tuple[float, float]
) -> float:
    """Seconds of one layer's scores and mixes: (bytes read, multiply-adds) per second."""
    new = work.tokens / work.rows
    cached = work.rows * (work.context + new) * 2 * own.kv_heads.size * stack.head_dim
    seen = work.context + (new if stack.bidirectional else (new + 1) / 2)
    multiplied = work.tokens * seen * 2 * own.heads.size * stack.head_dim
    return max(cached * DTYPE_BYTES[plan.dtype] / rates[0], multiplied / rates[1] / ATTENTION_SPEED)
