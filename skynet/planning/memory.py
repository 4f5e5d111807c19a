"""The memory of a shard: its weights, and what it keeps of sequences in full slots. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import NamedTuple

from skynet.architecture.architecture import Architecture
from skynet.architecture.mixers import STATES, Kept
from skynet.architecture.transformers_model import TransformersArchitecture, TransformersWeight
from skynet.architecture.weight import HEAD_NORMS, INPUT_TABLE, Unit, Weight
from skynet.planning.carried import copies
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.planning.split import DTYPE_BYTES, NUMBER_BYTES
from skynet.planning.transformers_model import role_bytes
from skynet.planning.units import adds_biases, items_of, part_of_kind, pieces_of, units

NORM_BYTES = 4  # norms, and biases added after a sum, stay float32
SHARED_MLP = ("shared_gate", "shared_up", "shared_down")
SCALE_BYTES = 4  # of a key or value in q8
FLOAT32_TABLES = ("router", "relative", "distances")
FIRST_ROLES = ("embed", "project_in", "positions", "token_types", "embed_norm")
HEAD_ROLES = (
    "head_dense",
    "head_dense_norm",
    "head_bias",
    "label_dense",
    "label_norm",
    "label_out",
)
LAST_ROLES = ("final_norm", "project_out", *HEAD_ROLES)


def shard_weight_bytes(
    arch: Architecture, plan: Plan, stage: int, shard: int, since: int = 0
) -> int:
    """The memory of one shard's weights, in the dtypes of the plan.

    since: the first layer to count.

    A tied embedding counts twice where a stage is both first and last: the head is stored in the
    fastest layout for products, in which rows cannot be looked up.
    """
    part, layers = plan.stages[stage].shards[shard], plan.stages[stage].layers
    layers = layers.overlap(Range(since, plan.num_layers))
    total, tables = 0.0, set()
    for stack in arch.stacks:
        stack_part = part if stack is arch else part.encoder or part
        first = stack.encoder_layers
        run = layers.overlap(Range(first, first + stack.num_layers))
        total += _layers_bytes(stack, plan, stack_part, Range(run.start - first, run.stop - first))
        if first in layers:
            table = stack.weight("embed")
            total += _first_bytes(
                stack, plan, stack_part, table is None or table.name not in tables
            )
            tables |= {table.name} if table else set()
    if arch.encoder is not None and arch.encoder_layers in layers:
        total += _roles_bytes(arch.encoder, plan, part.encoder or part, "final_norm")
    if stage == len(plan.stages) - 1:
        total += _roles_bytes(arch, plan, part, *LAST_ROLES, *arch.dense_roles)
        if arch.has_head:
            head = arch.weight("embed" if arch.tied else "head")
            total += _role_bytes(arch, plan, part, head, product=True) if head else 0
    return int(total)


class LayerBytes(NamedTuple):
    """Bytes of one shard's weights in some layers: attention, MLP, and the MLPs of all experts."""

    attention: float
    mlp: float
    experts: float


def layer_bytes(
    arch: Architecture, plan: Plan, address: tuple[int, int], layers: Range
) -> LayerBytes:
    """What a shard has of these layers, numbered as in the plan; not of other stages' layers.

    Without the tables of tokens, of which a step reads few rows.
    """
    part = plan.stages[address[0]].shards[address[1]]
    layers = layers.overlap(plan.stages[address[0]].layers)
    total = mlp = experts = 0.0
    for stack in arch.stacks:
        stack_part = part if stack is arch else part.encoder or part
        first = stack.encoder_layers
        run = layers.overlap(Range(first, first + stack.num_layers))
        run = Range(run.start - first, run.stop - first)
        total += _layers_bytes(stack, plan, stack_part, run)
        total -= _layers_bytes(stack, plan, stack_part, run, _is_table)
        mlp += _layers_bytes(stack, plan, stack_part, run, _is_mlp)
        experts += _layers_bytes(stack, plan, stack_part, run, _is_expert)
    return LayerBytes(total - mlp, mlp - experts, experts)


def head_bytes(arch: Architecture, plan: Plan, shard: int) -> float:
    """Bytes of one shard's vocabulary head; 0 without one."""
    head = arch.weight("embed" if arch.tied else "head") if arch.has_head else None
    part = plan.stages[-1].shards[shard]
    return 0.0 if head is None else _role_bytes(arch, plan, part, head, product=True)


def _is_table(weight: Weight) -> bool:
    return weight.role == INPUT_TABLE


def _is_expert(weight: Weight) -> bool:
    return weight.in_pieces and weight.role not in HEAD_NORMS


def _is_mlp(weight: Weight) -> bool:
    return weight.unit == "columns" or weight.role in SHARED_MLP or _is_expert(weight)


def _layers_bytes(
    arch: Architecture,
    plan: Plan,
    part: ShardPlan,
    layers: Range,
    counts: Callable[[Weight], bool] | None = None,
) -> float:
    """Bytes of some layers of one stack, and of the weights that all of them share.

    counts: the weights to count, of single layers only; all by default.
    """
    total = 0.0
    for kind, numbers in layers_of_kinds(arch, layers):
        kind_part = part_of_kind(arch, kind, part)
        for weight in kind.weights:
            if weight.per_layer and (counts is None or counts(weight)):
                present = [number for number in numbers if weight.is_in(number)]
                if arch.formats:  # each layer may have its own
                    total += sum(_role_bytes(kind, plan, kind_part, weight, n) for n in present)
                elif present:
                    total += len(present) * _role_bytes(kind, plan, kind_part, weight)
    if counts is not None or not layers.size:
        return total
    total += layers.size * _distances_bytes(arch, plan, part)
    return total + _roles_bytes(arch, plan, part, "relative", "distances", "distances_norm")


def _distances_bytes(arch: Architecture, plan: Plan, part: ShardPlan) -> int:
    """The queries and keys of distances in one layer."""
    kind = arch.disentangled
    if kind is None:
        return 0
    heads = part.heads.size * kind.to_queries + part.kv_heads.size * kind.to_keys
    return heads * arch.head_dim * arch.size("distances") * DTYPE_BYTES[plan.number_dtype]


def _first_bytes(arch: Architecture, plan: Plan, part: ShardPlan, new_table: bool) -> float:
    """Bytes of a stack's embedding; new_table: no other stack has loaded the same table."""
    roles = FIRST_ROLES if new_table else FIRST_ROLES[1:]
    total = _roles_bytes(arch, plan, part, *roles)
    if arch.sinusoids is not None and arch.weight("positions") is None:
        total += arch.size("positions") * arch.hidden_size * DTYPE_BYTES[plan.number_dtype]
    return total


def _roles_bytes(arch: Architecture, plan: Plan, part: ShardPlan, *roles: str) -> float:
    return sum(_role_bytes(arch, plan, part, w) for w in arch.weights if w.role in roles)


def _role_bytes(
    arch: Architecture,
    plan: Plan,
    part: ShardPlan,
    weight: Weight,
    layer: int | None = None,
    product: bool = False,
) -> float:
    """The memory of a weight, with its bias.

    layer: of a weight that may be quantised in some layers.
    product: it is multiplied, as a tied embedding is in the head.
    """
    size, bias_size = NUMBER_BYTES[plan.weight_dtype], DTYPE_BYTES[plan.number_dtype]
    if isinstance(arch, TransformersArchitecture) and isinstance(weight, TransformersWeight):
        is_table = weight.role == "embed" or weight.style in ("whole", "experts")
        return role_bytes(
            arch, part, weight, bias_size, size if product or not is_table else bias_size
        )
    if weight.role in HEAD_NORMS:  # a row for each head, even if all heads share one weight
        heads = part.heads if weight.role == "q_norm" else part.kv_heads
        return heads.size * arch.head_dim * NORM_BYTES * (2 if weight.bias else 1)
    if weight.cut == "replicated" and not weight.product:
        shape = arch.shape(weight)
        if len(shape) == 1 or stays_float32(weight):
            return (prod(shape) + (shape[0] if weight.bias else 0)) * NORM_BYTES
        return prod(shape) * size + (shape[0] * bias_size if weight.bias else 0)
    width = units(arch, part, weight).size
    if weight.bias_only or weight.as_row:
        return width * NORM_BYTES
    if weight.float32:
        biases = width if weight.bias else 0
        return (width * prod(arch.shape(weight)[1:]) + biases) * NORM_BYTES
    if weight.cut == "row":
        shape = (arch.shape(weight)[0], width)
        total = _matrix_bytes(arch, part, weight, layer, shape, size)
        return total + _row_bias_bytes(arch, part, weight)
    shape = (width, arch.inputs(weight) or 0)
    total = _matrix_bytes(arch, part, weight, layer, shape, size)
    bias_bytes = NORM_BYTES if weight.role == "head" else bias_size  # logits are float32
    return total + (width * pieces_of(arch, part, weight).size * bias_bytes if weight.bias else 0)


def stays_float32(weight: Weight) -> bool:
    """Whether a matrix is float32 in memory whatever the dtype of weights."""
    return weight.float32 or weight.role in FLOAT32_TABLES


def _matrix_bytes(
    arch: Architecture,
    part: ShardPlan,
    weight: Weight,
    layer: int | None,
    shape: tuple[int, int],
    size: int,
) -> int:
    """The shard's pieces of a weight, (out, in) each, of numbers of `size` bytes or quantised."""
    numbers, pieces = shape[0] * shape[1] * size, pieces_of(arch, part, weight)
    if not arch.formats:
        return numbers * pieces.size
    counted = arch.formats.of_pieces(weight, layer, pieces.start, pieces.stop)
    return sum(
        count * (numbers if form is None else form.num_bytes(*shape))
        for form, count in counted.items()
    )


def _row_bias_bytes(arch: Architecture, part: ShardPlan, weight: Weight) -> int:
    """One bias for each sum: that of its products together."""
    if weight.in_pieces and weight.bias:
        has_biases = adds_biases(arch, part, weight)
        return arch.pieces(weight) * arch.hidden_size * NORM_BYTES if has_biases else 0
    side = next((side for side in arch.sides if weight.role in side), (weight.role,))
    parts = [w for w in map(arch.weight, side) if w is not None and w.bias and not w.in_pieces]
    return arch.hidden_size * NORM_BYTES if parts and parts[0] == weight else 0


def slot_bytes(arch: Architecture, plan: Plan, stage: int, shard: int) -> int:
    """The memory of what one shard keeps of sequences when every slot is full; an encoder keeps
    nothing.
    """
    if arch.bidirectional:
        return 0
    part, layers = plan.stages[stage].shards[shard], plan.stages[stage].layers
    decoding = layers.overlap(Range(arch.encoder_layers, plan.num_layers))
    first = arch.encoder_layers
    run = Range(decoding.start - first, decoding.stop - first)
    # An encoder-decoder has encoder KV besides the decoder's.
    caches = 1 if arch.encoder is None else 2
    total = 0
    kept_here = layers_of_kinds(arch, run)
    kept_here += [(arch.at(source), [source]) for source in copies(arch, run)]
    for kind, numbers in kept_here:
        items = partial(count_items, kind, part_of_kind(arch, kind, part))
        for mixer in kind.mixers:
            kept = mixer.kept(items, kind.head_dim)
            per_token = caches * kept.vectors * _vector_bytes(plan, kept)
            of_slot = plan.slot_tokens * per_token + state_bytes(kept)
            total += len(numbers) * plan.num_slots * of_slot
    return total


def state_bytes(kept: Kept) -> int:
    """A recurrent state in float32, before and after the last step."""
    return STATES * NORM_BYTES * sum(prod(shape) for shape in kept.state)


def count_items(arch: Architecture, part: ShardPlan, unit: Unit) -> int:
    """How many items of a unit a shard has."""
    return items_of(arch, part, unit).size


def layers_of_kinds(arch: Architecture, layers: Range) -> list[tuple[Architecture, list[int]]]:
    """The kinds of some layers of a stack, and the layers of each."""
    numbers = range(layers.start, layers.stop)
    if not arch.kinds:
        return [(arch, list(numbers))]
    of_kind = [[n for n in numbers if arch.kind_of[n] == kind] for kind in range(len(arch.kinds))]
    return [(kind, found) for kind, found in zip(arch.kinds, of_kind, strict=True) if found]


def _vector_bytes(plan: Plan, kept: Kept) -> int:
    """Bytes of one key, or value, or latent; q8: a code for each number, and scales."""
    kv_dtype = plan.kv_dtype or plan.number_dtype
    if kv_dtype == "q8":
        return kept.size + kept.scales * SCALE_BYTES
    return kept.size * DTYPE_BYTES[kv_dtype]
