"""Makes a plan: layers to stages by cost; heads, columns and vocabulary to shards. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from skynet.architecture.architecture import Architecture
from skynet.architecture.quantisable import COLUMN_UNIT
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.errors import PlanError
from skynet.planning.expert_cut import AUTO, is_whole
from skynet.planning.plan import INT8, Plan, ShardPlan, StagePlan, number_dtype
from skynet.planning.ranges import (
    Range,
    check_tiling,
    split_at_least,
    split_by_cost,
    split_by_weight,
    split_evenly,
)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
COMPUTE_DTYPES = (*DTYPE_BYTES, INT8)
KV_DTYPES = (*DTYPE_BYTES, "q8")
NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of weights that are numbers
# Bits of a weight in memory. q8 and q4: codes in groups of 32 inputs, with a scale of 16 bits and,
# in q4, a minimum of 16 bits.
WEIGHT_BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "q8": 8.5, "q4": 5.0}
CHORD_SPANS = ("layer", "stage", "auto")
DEFAULT_SLOT_TOKENS = 4096
# Products are fastest on widths that fill vector registers; narrow parts are cut evenly instead.
VOCAB_UNIT, WIDE = 16, 256


@dataclass(frozen=True)
class PlanOptions:
    """The fields of a plan that do not follow from its shape; see `Plan`.

    weight_dtype, kv_dtype: by default `number_dtype(dtype)`.
    experts: how a mixture's experts are cut: "columns", "whole", or "auto"; see expert_cut.py.
    slot_tokens: by default the model's positions, at most `DEFAULT_SLOT_TOKENS`.
    """

    model: str
    name: str
    dtype: str = "float32"
    weight_dtype: str | None = None
    chord_span: str = "auto"
    num_slots: int = 16
    slot_tokens: int | None = None
    kv_dtype: str | None = None
    experts: str = AUTO


def make_plan(
    arch: Architecture,
    options: PlanOptions,
    *,
    stages: int,
    shards: int,
    epoch: int = 1,
    weights: Sequence[Sequence[float]] | None = None,
    by_memory: bool = False,
) -> Plan:
    """Cut a model into `stages` x `shards`.

    weights: for each stage, the relative capacity of its shards; equal by default.
    by_memory: they are memory, not speed; see `shard_plans`.

    Raises:
        PlanError: the model cannot be cut into this shape; the message has the numbers.
    """
    _check_shape(arch, stages, shards)
    _check_options(options)
    if options.dtype == INT8 and not arch.quantisation:
        raise PlanError(
            f"dtype {INT8!r}: {options.name or arch.model_type} has no quantised weights, and only "
            "products with these round activations; give weights 'q8' or 'q4', or dtype 'float32'"
        )
    weights = weights or [[1.0] * shards] * stages
    layers = split_by_cost(_layer_costs(arch), [sum(stage) for stage in weights])
    check_tiling(layers, arch.total_layers, "layers")
    return Plan(
        epoch=epoch,
        model=options.model,
        name=options.name,
        dtype=options.dtype,
        weight_dtype=options.weight_dtype or number_dtype(options.dtype),
        chord_span=options.chord_span,
        num_slots=options.num_slots,
        slot_tokens=_slot_tokens(arch, options.slot_tokens),
        stages=tuple(
            StagePlan(run, shard_plans(arch, shards, stage_weights, options.experts, by_memory))
            for run, stage_weights in zip(layers, weights, strict=True)
        ),
        encoder_layers=arch.encoder_layers,
        quantisation=arch.quantisation,
        kv_dtype=options.kv_dtype,
    )


def _layer_costs(arch: Architecture) -> list[float]:
    """The parameters of each layer, with embeddings in the first and the head in the last."""
    costs = []
    for stack in arch.stacks:
        of_stack = [float(layer_params(stack, layer)) for layer in range(stack.num_layers)]
        of_stack[0] += stack.vocab_size * (stack.embed_size or stack.hidden_size)
        if stack.learned_positions:
            of_stack[0] += stack.max_positions * stack.hidden_size
        costs += of_stack
    costs[-1] += arch.vocab_size * (arch.embed_size or arch.hidden_size)
    return costs


def _check_shape(arch: Architecture, stages: int, shards: int) -> None:
    if not 1 <= stages <= arch.total_layers:
        raise PlanError(f"{stages} stages for {arch.total_layers} layers: need 1 to that many")
    if not 1 <= shards <= arch.max_shards:
        raise PlanError(f"{shards} shards for {arch.max_shards} query heads: need 1 to that many")
    if arch.vocab_size < shards:
        raise PlanError(f"{shards} shards for a vocabulary of {arch.vocab_size}")


def _check_options(options: PlanOptions) -> None:
    numbers = number_dtype(options.dtype)
    weight_dtype = options.weight_dtype or numbers
    for name, dtype, known in (
        ("dtype", options.dtype, COMPUTE_DTYPES),
        ("weight_dtype", weight_dtype, tuple(NUMBER_BYTES)),
    ):
        if dtype not in known:
            raise PlanError(f"{name} {dtype!r} is not supported; known: {list(known)}")
    if DTYPE_BYTES[numbers] < DTYPE_BYTES["float32"] and weight_dtype != numbers:
        raise PlanError(
            f"weight_dtype {weight_dtype!r} with dtype {options.dtype!r}: weights are kept in what "
            "is computed in, or in a smaller dtype if that is float32"
        )
    kv_dtype = options.kv_dtype or numbers
    if kv_dtype not in KV_DTYPES:
        raise PlanError(f"kv_dtype {kv_dtype!r} is not supported; known: {list(KV_DTYPES)}")
    if DTYPE_BYTES.get(kv_dtype, 1) > DTYPE_BYTES[numbers]:
        raise PlanError(
            f"kv_dtype {kv_dtype!r} is wider than dtype {options.dtype!r}: keys and values are "
            "kept in what is computed in, or smaller"
        )
    if options.chord_span not in CHORD_SPANS:
        raise PlanError(
            f"chord_span {options.chord_span!r} is not supported; known: {list(CHORD_SPANS)}"
        )
    if options.num_slots < 1:
        raise PlanError(f"num_slots={options.num_slots}: a shard needs 1 or more")


def _slot_tokens(arch: Architecture, slot_tokens: int | None) -> int:
    if slot_tokens is None:
        return min(arch.max_positions, DEFAULT_SLOT_TOKENS)
    if not 1 <= slot_tokens <= arch.max_positions:
        raise PlanError(
            f"slot_tokens={slot_tokens}: {arch.model_type} has {arch.max_positions} positions, so "
            "need 1 to that many"
        )
    return slot_tokens


def shard_plans(
    arch: Architecture,
    shards: int,
    weights: Sequence[float] | None = None,
    experts: str = AUTO,
    by_memory: bool = False,
) -> tuple[ShardPlan, ...]:
    """The slices of the shards of a stage: heads, columns and vocabulary divided by `weights`.

    Heads cannot always be divided so. Attention and MLP end with a sum each, which waits for the
    slowest shard: columns that made up for the heads would make both slower. They do so where one
    sum ends both, and where `weights` are memory.

    experts: see `PlanOptions`.
    """
    weights = weights or [1.0] * shards
    heads = _split_heads(arch, shards, weights)
    check_tiling([query for query, _ in heads], arch.num_heads, "heads")
    attention = [0] * shards
    if (by_memory or arch.parallel) and not arch.kinds:
        attention = [_attention_params(arch, *part) for part in heads]
    columns = _split_columns(arch, attention, weights)
    check_tiling(columns, arch.intermediate_size, "columns")
    unit = VOCAB_UNIT if arch.vocab_size >= shards * WIDE else 1
    vocab = (
        split_by_weight(arch.vocab_size, weights, unit)
        if unit > 1
        else split_evenly(arch.vocab_size, shards)
    )
    check_tiling(vocab, arch.vocab_size, "vocabulary")
    encoders: Sequence[ShardPlan | None] = [None] * shards
    if arch.encoder is not None:
        encoders = shard_plans(arch.encoder, shards, weights)
    whole: Sequence[Range | None] = [None] * shards
    widest = max(part.size for part in columns) / arch.intermediate_size
    if is_whole(arch, shards, experts, widest):
        whole = split_by_weight(arch.num_experts, weights)
    return tuple(
        ShardPlan(query, kv, mlp, tokens, encoder, of_shard)
        for (query, kv), mlp, tokens, encoder, of_shard in zip(
            heads, columns, vocab, encoders, whole, strict=True
        )
    )


def _split_heads(
    arch: Architecture, shards: int, weights: Sequence[float]
) -> list[tuple[Range, Range]]:
    """(query heads, KV heads) of each shard: whole groups, or a part of one group.

    Where shards share groups, `weights` are ignored. Where kinds of layers have smaller groups,
    parts of a group are cut at borders of these first.
    """
    group, kv_heads = arch.group, arch.num_kv_heads
    if shards <= kv_heads:
        even = len(set(weights)) == 1
        groups = _larger_first(kv_heads, shards) if even else split_at_least(kv_heads, weights)
        return [(Range(part.start * group, part.stop * group), part) for part in groups]
    smaller = sorted({kind.group for kind in arch.kinds if kind.group < group}, reverse=True)
    parts = []
    for kv, sharers in enumerate(_larger_first(shards, kv_heads)):
        for part in _parts_of_group(group, sharers.size, smaller):
            query = Range(kv * group + part.start, kv * group + part.stop)
            parts.append((query, Range(kv, kv + 1)))
    return parts


def _parts_of_group(heads: int, shards: int, smaller: Sequence[int]) -> list[Range]:
    """The query heads of a group that shards share; smaller: sizes of groups of other kinds."""
    size = next((size for size in smaller if heads % size == 0), None)
    if size is None:
        return _larger_first(heads, shards)
    if shards <= heads // size:
        runs = _larger_first(heads // size, shards)
        return [Range(run.start * size, run.stop * size) for run in runs]
    finer, parts = [each for each in smaller if each < size], list[Range]()
    for number, sharers in enumerate(_larger_first(shards, heads // size)):
        for part in _parts_of_group(size, sharers.size, finer):
            parts.append(Range(number * size + part.start, number * size + part.stop))
    return parts


def _larger_first(total: int, parts: int) -> list[Range]:
    ranges = split_evenly(total, parts)
    return [Range(total - part.stop, total - part.start) for part in reversed(ranges)]


def _split_columns(
    arch: Architecture, attention: list[int], weights: Sequence[float]
) -> list[Range]:
    """MLP columns that make attention and MLP of each shard together proportional to `weights`.

    Of layers of several kinds, most dimensions are cut in the proportion of the columns.
    """
    shards, per_column = len(attention), _column_params(arch)
    room = [0.0] * shards
    # A shard whose heads alone exceed its share gets no columns; the others divide them.
    sharing = sorted(range(shards), key=lambda shard: attention[shard] / weights[shard])
    while sharing:
        spread = per_column * arch.intermediate_size + sum(attention[shard] for shard in sharing)
        level = spread / sum(weights[shard] for shard in sharing)
        if attention[sharing[-1]] <= level * weights[sharing[-1]]:
            break
        sharing.pop()
    for shard in sharing:
        room[shard] = level * weights[shard] - attention[shard]
    is_wide = arch.intermediate_size >= shards * WIDE
    unit = COLUMN_UNIT if is_wide or arch.formats else 1  # quantised columns are cut in groups
    return split_by_weight(arch.intermediate_size, room, unit)


def _attention_params(arch: Architecture, heads: Range, kv_heads: Range) -> int:
    """Parameters of self-attention and, in an encoder-decoder, cross-attention."""
    params = 2 * (heads.size + kv_heads.size) * arch.head_dim * arch.hidden_size
    return params if arch.encoder is None else 2 * params


def _column_params(arch: Architecture) -> int:
    """Parameters of one column of the MLP, or of the same column of every expert."""
    return (3 if arch.gated else 2) * arch.hidden_size * max(1, arch.num_experts)


def layer_params(arch: Architecture, layer: int) -> int:
    """Parameters of one layer's products: its cost in memory and time."""
    if isinstance(arch, TransformersArchitecture):  # not every layer has experts
        return sum(prod(arch.shape(w)) * arch.pieces(w) for w in arch.weights_of(layer))
    kind = arch.at(layer)
    weights = [w for w in kind.weights if w.per_layer and w.cut != "replicated"]
    return sum(prod(kind.shape(w)) * kind.pieces(w) for w in weights if len(kind.shape(w)) == 2)
