"""Programs of the kernels compute what PyTorch's modules do, in each family's decoding steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from model_families import FAMILIES, tiny_config
from plans import plan_for
from random_weights import random_weights

from skynet.architecture.architecture import Architecture
from skynet.architecture.mixers import SELF_ATTENTION, GatedDelta, Latent, Mamba2, ShortConvolution
from skynet.architecture.tensors import staged_tensors
from skynet.architecture.weight import MLP_OUTPUTS
from skynet.kernels.library import Library, available
from skynet.layers.alone import Alone
from skynet.layers.block import CompiledBlock
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.dtypes import DTYPES, Dtypes
from skynet.layers.shard_model import ShardModel
from skynet.layers.stack import Stack
from skynet.layers.weights import Loader
from skynet.models.registry import load_architecture
from skynet.planning.ranges import Range
from skynet.wire.step import LogitsRequest, Row, Step

LIBRARIES = available()
CPU, TOKENS, LENGTHS = torch.device("cpu"), 96, (1, 37, 64, 90)
# Families whose attention only PyTorch computes.
NO_ATTENTION = {
    "gemma4_text",
    "gemma4_unified_text",
}
OTHER_MIXERS = (GatedDelta, Latent, Mamba2, ShortConvolution)  # that kernels compute
NORMED_EXPERTS = {"router_norm", "experts_norm"}  # those beside an MLP


@pytest.fixture(params=LIBRARIES or [pytest.param("none", marks=pytest.mark.skip("none built"))])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = LIBRARIES[request.param]
    for module in ("stack", "linear"):
        monkeypatch.setattr(f"skynet.layers.{module}.kernels", lambda: library)
    return library


def stack_of(family: str, kv_dtype: str | None = None, weight_dtype: str = "bfloat16") -> Stack:
    """The layers of a random model, with tokens in its slots."""
    torch.manual_seed(0)
    arch = load_architecture(tiny_config(family).to_dict())
    stack = loaded(arch, kv_dtype, weight_dtype)
    rows = [Row(slot, 0, (1,) * length, length) for slot, length in enumerate(LENGTHS)]
    x = torch.randn(sum(LENGTHS), arch.hidden_size)
    run(stack, stack.prepare(Step(1, 1, tuple(rows), 1)), x)
    return stack


def loaded(arch: Architecture, kv_dtype: str | None, weight_dtype: str = "bfloat16") -> Stack:
    """The layers of an architecture with random weights."""
    fetch = random_weights(arch, DTYPES[weight_dtype])
    plan = plan_for(
        arch,
        weight_dtype=weight_dtype,
        num_slots=len(LENGTHS),
        slot_tokens=TOKENS,
        kv_dtype=kv_dtype,
    )
    load = Loader(arch, plan.stages[0].shards[0], fetch, Dtypes.of(plan), CPU)
    return Stack(load, KVLayout.of(plan), plan.stages[0].layers)


def run(stack: Stack, context: StepContext, x: torch.Tensor) -> torch.Tensor:
    context = replace(context, embeddings=x)
    return stack.forward(x, stack.run, context, Alone())


def decoding(stack: Stack, slots: tuple[int, ...], hidden: int) -> tuple[StepContext, torch.Tensor]:
    """The next token of these slots, and its hidden states, which depend on the slot alone."""
    rows = [Row(slot, LENGTHS[slot], (2,), LENGTHS[slot], LogitsRequest()) for slot in slots]
    x = [torch.randn(hidden, generator=torch.Generator().manual_seed(slot)) for slot in slots]
    return stack.prepare(Step(1, 2, tuple(rows), 1)), torch.stack(x)


def hidden_size(family: str) -> int:
    return load_architecture(tiny_config(family).to_dict()).hidden_size


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("family", "kv_dtype"),
    [
        *((family, None) for family in FAMILIES),
        *product(("llama", "qwen3", "gemma2", "deepseek_v3"), ("bfloat16", "q8")),
    ],
)
def test_decoding_steps_are_those_of_the_modules(family: str, kv_dtype: str | None) -> None:
    # Given layers with tokens in their slots, and a step of one token each
    stack = stack_of(family, kv_dtype)
    context, x = decoding(stack, (0, 1, 2, 3), hidden_size(family))
    assert context.decoding is not None
    # When it runs as PyTorch's modules, and as programs
    expected = run(stack, replace(context, decoding=None), x)
    result = run(stack, context, x)
    # Then hidden states are the same to float32's rounding, or that of the cache
    limit = 1e-4 if kv_dtype is None else 3e-2
    torch.testing.assert_close(result, expected, rtol=limit, atol=limit * float(expected.std()))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("weight_dtype", ["float16", "float32"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_weights_of_other_numbers_have_programs(family: str, weight_dtype: str) -> None:
    # Given layers with weights that are not bfloat16
    stack = stack_of(family, weight_dtype=weight_dtype)
    context, x = decoding(stack, (0, 1, 2, 3), hidden_size(family))
    sides = [side for layer in stack.of(stack.run) for side in layer.sides]
    # When / Then each block is a program, which computes what PyTorch's modules do
    assert all(isinstance(side.block, CompiledBlock) for side in sides)
    expected = run(stack, replace(context, decoding=None), x)
    limit = 1e-4
    torch.testing.assert_close(
        run(stack, context, x), expected, rtol=limit, atol=limit * float(expected.std())
    )


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_programs_where_kernels_support_them(family: str) -> None:
    # Given the layers of a family
    arch = load_architecture(tiny_config(family).to_dict())
    layers = stack_of(family).of(Range(0, arch.num_layers))
    # When / Then each block is a program, save those that only PyTorch computes
    for number, layer in enumerate(layers):
        kind = arch.at(number)
        other_mixers = any(
            family in NO_ATTENTION
            if mixer == SELF_ATTENTION
            else not isinstance(mixer, OTHER_MIXERS)
            for mixer in kind.mixers
        )
        other_mlp = any(weight.role in NORMED_EXPERTS for weight in kind.weights)
        for side, roles in zip(layer.sides, kind.sides, strict=True):
            by_modules = [other_mlp if role in MLP_OUTPUTS else other_mixers for role in roles]
            assert isinstance(side.block, CompiledBlock) is not any(by_modules)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "bloom", "gpt_oss", "deepseek_v3"])
def test_a_row_does_not_depend_on_threads_or_on_other_rows(family: str) -> None:
    # Given a step of all slots
    stack = stack_of(family)
    size = hidden_size(family)
    before = torch.get_num_threads()
    results = []
    # When it runs on any number of threads, and when each row has a step to itself
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(stack, *decoding(stack, (0, 1, 2, 3), size)))
    finally:
        torch.set_num_threads(before)
    results.append(torch.cat([run(stack, *decoding(stack, (slot,), size)) for slot in range(4)]))
    # Then the bits are the same
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.usefixtures("compiled")
def test_steps_of_prompts_and_of_many_rows_run_as_modules() -> None:
    # Given a stack
    stack = stack_of("llama")
    # When / Then a step that has a row of two tokens has no program; nor has one of an unknown slot
    rows = (Row(0, 1, (2,), 1), Row(1, 37, (2, 3), 39))
    assert stack.prepare(Step(1, 2, rows, 1)).decoding is None
    assert stack.prepare(Step(1, 2, rows[:1], 1)).decoding is not None


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kv_dtype", [None, "bfloat16", "q8"])
def test_nan_in_a_slot_reaches_the_hidden_states(kv_dtype: str | None) -> None:
    # Given a slot with a key of NaN
    stack = stack_of("llama", kv_dtype)
    cache = stack.of(stack.run)[0].states[0]
    key = torch.full((6, cache.values.shape[-1]), torch.nan)
    cache[1, :, 3] = key
    # When a token attends to it, by modules or by programs
    context, x = decoding(stack, (0, 1), 48)
    for each in (context, replace(context, decoding=None)):
        result = run(stack, each, x)
        # Then its row is NaN, and no other
        assert result[1].isnan().all()
        assert result[0].isfinite().all()


@pytest.mark.usefixtures("compiled")
def test_a_nan_that_a_program_stores_is_read_as_nan() -> None:
    # Given 8 bit slots, and hidden states of NaN
    stack = stack_of("llama", "q8")
    context, x = decoding(stack, (1,), 48)
    # When a program stores what it makes of them
    run(stack, context, x * torch.nan)
    # Then the keys and values are NaN
    cache = stack.of(stack.run)[0].states[0]
    keys, values = cache.read(Range(1, 2), Range(37, 38))
    assert keys.isnan().all()
    assert values.isnan().all()


def test_modules_run_where_a_checkpoint_or_a_setting_has_no_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given SKYNET_KERNELS=torch
    for module in ("stack", "linear"):
        monkeypatch.setattr(f"skynet.layers.{module}.kernels", lambda: None)
    # When / Then no step has a program
    stack = stack_of("llama")
    assert decoding(stack, (0, 1), 48)[0].decoding is None


@pytest.mark.usefixtures("compiled")
def test_a_model_of_bfloat16_activations_runs_as_modules() -> None:
    # Given a plan that computes in bfloat16
    arch = load_architecture(tiny_config("llama").to_dict())
    shapes = {tensor.name: tensor for tensor in staged_tensors(arch)}

    def fetch(name: str, region: Range) -> torch.Tensor:
        zeros = torch.zeros(shapes[name].shape)
        return zeros.narrow(shapes[name].axis, region.start, region.size)

    model = ShardModel(arch, plan_for(arch, dtype="bfloat16"), (0, 0), fetch)
    # When / Then its steps have no program
    assert model._stack is not None
    assert model._stack.prepare(Step(1, 1, (Row(0, 0, (1,), 1),), 1)).decoding is None


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_decoders_attend_to_encoder_kv_as_the_modules(family: str) -> None:
    # Given the decoder of an encoder-decoder, with encoder KV, and tokens in its slots
    torch.manual_seed(0)
    arch = load_architecture(tiny_config(family).to_dict())
    stack, numbers = loaded(arch, None), range(len(LENGTHS))
    texts = stack.prepare(Step(1, 1, tuple(Row(slot, 0, (1,) * 40, 40) for slot in numbers), 1))
    for layer in stack.of(stack.run):
        layer.store_encoder_kv(torch.randn(40 * len(LENGTHS), arch.hidden_size), texts)
        assert all(isinstance(side.block, CompiledBlock) for side in layer.sides)
    kept = [((slot + 1) % len(LENGTHS), 5 + 7 * slot) for slot in numbers]
    prompts = [
        Row(slot, 0, (1,) * LENGTHS[slot], LENGTHS[slot], encoder_kv=kept[slot]) for slot in numbers
    ]
    x = torch.randn(sum(LENGTHS), arch.hidden_size)
    run(stack, stack.prepare(Step(1, 1, tuple(prompts), 1)), x)
    # When the next tokens attend to those before them, and to texts in other slots
    rows = [
        replace(row, start=row.stop, tokens=(2,), logits_request=LogitsRequest()) for row in prompts
    ]
    context, x = stack.prepare(Step(1, 2, tuple(rows), 1)), torch.randn(4, arch.hidden_size)
    assert context.decoding is not None
    expected = run(stack, replace(context, decoding=None), x)
    result = run(stack, context, x)
    # Then programs do so as the modules do
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    # And a step without encoder KV has no program
    bare = tuple(replace(row, encoder_kv=None) for row in rows)
    assert stack.prepare(Step(1, 3, bare, 1)).decoding is None
