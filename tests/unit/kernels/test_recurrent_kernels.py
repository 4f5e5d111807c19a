"""Recurrent mixers as programs: states go from step to step as PyTorch's modules make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from model_families import tiny_config
from plans import plan_for
from random_weights import random_weights

from skynet.errors import StepFailed
from skynet.kernels.library import Library, available
from skynet.layers.block import CompiledBlock
from skynet.layers.cache import KVLayout
from skynet.layers.dtypes import Dtypes
from skynet.layers.recurrent import RecurrentState
from skynet.layers.stack import Stack
from skynet.layers.weights import Loader
from skynet.models.registry import load_architecture
from skynet.wire.step import Row, Step

LIBRARIES = available()
FAMILIES = ("qwen3_next", "qwen3_5_text", "lfm2", "bamba", "nemotron_h", "falcon_h1")
SLOTS, TOKENS = 3, 48


@pytest.fixture(params=LIBRARIES or [pytest.param("none", marks=pytest.mark.skip("none built"))])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = LIBRARIES[request.param]
    for module in ("stack", "linear"):
        monkeypatch.setattr(f"skynet.layers.{module}.kernels", lambda: library)
    return library


def stacks_of(family: str, shards: int = 1) -> tuple[list[Stack], int]:
    """The stack of each shard of a random model, with bfloat16 weights; and the hidden size."""
    torch.manual_seed(0)
    arch = load_architecture(tiny_config(family).to_dict())
    fetch = random_weights(arch)
    plan = plan_for(arch, 1, shards, weight_dtype="bfloat16", num_slots=SLOTS, slot_tokens=TOKENS)
    stage = plan.stages[0]
    loads = [
        Loader(arch, part, fetch, Dtypes.of(plan), torch.device("cpu")) for part in stage.shards
    ]
    return [Stack(load, KVLayout.of(plan), stage.layers) for load in loads], arch.hidden_size


def run(stack: Stack, rows: Sequence[Row], by_program: bool, size: int) -> torch.Tensor:
    """The sums of what the recurrent blocks make of hidden states that depend on the rows."""
    context = stack.prepare(Step(1, 1, tuple(rows), 1))
    assert context.decoding is not None
    context = context if by_program else replace(context, decoding=None)
    generator = torch.Generator().manual_seed(sum(row.start * 7 + row.slot for row in rows))
    x, results = torch.randn(len(rows), size, generator=generator), []
    for layer in stack.of(stack.run):
        if any(isinstance(state, RecurrentState) for state in layer.states):
            block = layer.sides[0].block
            assert isinstance(block, CompiledBlock)
            results.append(block(x, context, lambda partial: partial))
    assert results
    return torch.stack(results)


def row(slot: int, start: int) -> Row:
    return Row(slot, start, (1,), 1)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_follow_each_other_as_those_of_the_modules(family: str, shards: int) -> None:
    # Given the same shards twice
    (programs, size), (modules, _) = stacks_of(family, shards), stacks_of(family, shards)
    for program, module in zip(programs, modules, strict=True):
        # When sequences begin, go on beside others, repeat a step that failed, and begin anew
        steps = [
            [row(0, 0)],
            [row(0, 1), row(2, 0)],
            [row(2, 1), row(0, 2), row(1, 0)],
            [row(2, 1), row(0, 2), row(1, 0)],
            [row(1, 0), row(0, 3)],
            [row(0, 4)],
        ]
        for rows in steps:
            # Then results are the same to float32's rounding
            expected = run(module, rows, False, size)
            result = run(program, rows, True, size)
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        # And modules go on from the states that programs have left, as in a later prompt
        expected = run(module, [row(0, 5), row(1, 1)], False, size)
        result = run(program, [row(0, 5), row(1, 1)], False, size)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("family", ["bamba", "olmo2"])
def test_sums_within_a_block_are_those_of_the_module(family: str) -> None:
    # Given a block with a norm over all shards
    (stack,), size = stacks_of(family)
    block = next(
        layer.sides[0].block
        for layer in stack.of(stack.run)
        if family == "olmo2" or isinstance(layer.states[0], RecurrentState)
    )
    context = stack.prepare(Step(1, 1, (row(0, 0), row(1, 0)), 1))
    x, sums = torch.randn(2, size), []

    def all_reduce(partial: torch.Tensor) -> torch.Tensor:
        sums.append(partial.clone())
        return partial * 3

    # When it runs as a program and as modules, and the other shards' parts are twice this one's
    result = block(x, context, all_reduce)
    expected = block(x, replace(context, decoding=None), all_reduce)
    # Then both ask for the same sums, and use what they are given
    of_program, of_module = sums
    torch.testing.assert_close(of_program, of_module, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("library")
def test_a_program_continues_no_state_that_a_slot_lacks() -> None:
    # Given a sequence of two tokens
    (stack,), size = stacks_of("qwen3_next")
    for start in (0, 1):
        run(stack, [row(0, start)], True, size)
    # When / Then it cannot go on from another token
    with pytest.raises(StepFailed, match="after 5"):
        run(stack, [row(0, 5)], True, size)


@pytest.mark.usefixtures("library")
def test_a_state_of_nan_reaches_the_rows_that_continue_it_alone() -> None:
    # Given two sequences, of which one has a state of NaN
    (stack,), size = stacks_of("qwen3_next")
    run(stack, [row(0, 0), row(1, 0)], True, size)
    for layer in stack.of(stack.run):
        for state in layer.states:
            if isinstance(state, RecurrentState):
                for values in state._values:
                    values[:, 1] = torch.nan
    # When / Then
    result = run(stack, [row(0, 1), row(1, 1)], True, size)
    assert result[:, 0].isfinite().all()
    assert result[:, 1].isnan().all()
