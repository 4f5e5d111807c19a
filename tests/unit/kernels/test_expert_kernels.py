"""Mixtures of experts as programs: the choice and the sums are those of PyTorch's modules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_families import tiny_config
from plans import plan_for
from random_weights import random_weights

from skynet.architecture.router import Router
from skynet.kernels.library import Library, available
from skynet.kernels.steps import INPUT, ROUTED, StepKernels
from skynet.layers.block import Block, Branch, compiled
from skynet.layers.dtypes import Dtypes
from skynet.layers.experts import Experts
from skynet.layers.layer import load_mlp
from skynet.layers.norm import NoNorm
from skynet.layers.router import TopRouter
from skynet.layers.weights import Loader
from skynet.models.registry import load_architecture

LIBRARIES = available()
HIDDEN = 37
ROUTERS = {
    "softmax": Router(),
    "softmax of all": Router(sum_to_one=False, scale=2.5),
    "sigmoid": Router(score="sigmoid", epsilon=1e-20, scale=0.7),
    "sigmoid of inputs": Router(score="sigmoid", sum_to_one=False, of_inputs=True),
    "chosen": Router(score="chosen", scale=1.5),
    "preference": Router(score="sigmoid", biased=True, scale=2.5),
    "groups": Router(groups=4, groups_per_token=2, sum_to_one=False, scale=16.0),
    "two of a group": Router(
        score="sigmoid",
        biased=True,
        groups=4,
        groups_per_token=2,
        group_score="top2",
        epsilon=1e-20,
        scale=2.5,
    ),
}


@pytest.fixture(params=LIBRARIES or [pytest.param("none", marks=pytest.mark.skip("none built"))])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = LIBRARIES[request.param]
    monkeypatch.setattr("skynet.layers.linear.kernels", lambda: library)
    return library


def router_of(router: Router, experts: int, chosen: int, bias: bool = False) -> TopRouter:
    """A router with random weights."""
    torch.manual_seed(experts)
    tensors = {
        ("router", "weight"): torch.randn(experts, HIDDEN) * 0.3,
        ("router", "bias"): torch.randn(experts),
        ("router_bias", "weight"): torch.randn(experts) * 0.2,
    }
    load: Any = SimpleNamespace(
        arch=SimpleNamespace(router=router, experts_per_token=chosen, hidden_size=HIDDEN),
        has_bias=lambda role: bias,
        has=lambda role, layer=None: False,
        float32=SimpleNamespace(
            matrix=lambda role, layer: tensors[role, "weight"],
            vector=lambda role, kind="weight", layer=None: tensors[role, kind],
        ),
    )
    return TopRouter(load, 0)


def routed(library: Library, router: TopRouter, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(rows, experts) each: the weights of the chosen experts, and which these are."""
    kernels = StepKernels(library)
    program = kernels.program()
    assert router.emit(program, INPUT)
    kernels.need(INPUT, x.shape[1])
    rows = torch.arange(len(x))
    program(x, kernels.step(rows, rows, ()), lambda partial: partial)
    buffer = kernels._buffers[ROUTED]
    assert buffer is not None
    weights, chosen, _ = buffer.unflatten(1, (3, -1)).unbind(1)
    return torch.where(chosen > 0, weights, 0), chosen


def expected(router: TopRouter, x: torch.Tensor, experts: int) -> tuple[torch.Tensor, ...]:
    weights, chosen = router(x)
    zeros = torch.zeros(len(x), experts)
    return zeros.scatter(1, chosen, weights), zeros.scatter(1, chosen, 1.0)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize(("experts", "chosen", "rows"), [(8, 2, 1), (68, 6, 5), (512, 22, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_experts_and_their_weights_are_those_of_the_module(
    library: Library, name: str, experts: int, chosen: int, rows: int, bias: bool
) -> None:
    # Given a router
    router = router_of(ROUTERS[name], experts, chosen, bias)
    x = torch.randn(rows, HIDDEN)
    # When
    weights, marks = routed(library, router, x)
    # Then
    expected_weights, expected_marks = expected(router, x, experts)
    assert torch.equal(marks, expected_marks)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ROUTERS)
def test_equal_experts_are_chosen_by_their_numbers(library: Library, name: str) -> None:
    # Given hidden states that all experts, or all but for their preferences, are equal for
    router = router_of(ROUTERS[name], 16, 4)
    x = torch.zeros(2, HIDDEN)
    # When
    weights, marks = routed(library, router, x)
    # Then there are as many as the module chooses, with the same weights
    expected_weights, _ = expected(router, x, 16)
    assert marks.sum(1).tolist() == [4, 4]
    torch.testing.assert_close(weights.sort(1).values, expected_weights.sort(1).values)
    if not ROUTERS[name].biased:
        assert marks[:, :4].all()


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_has_weights_of_nan_or_those_of_the_module(
    library: Library, name: str, value: float
) -> None:
    # Given a row with NaN or infinity beside another
    router = router_of(ROUTERS[name], 16, 4)
    x = torch.randn(2, HIDDEN)
    alone = routed(library, router, x[1:])
    x[0, 3] = value
    # When
    weights, marks = routed(library, router, x)
    # Then it has as many experts as any, with weights that are finite where the module's are
    expected_weights, _ = expected(router, x, 16)
    assert marks.sum(1).tolist() == [4, 4]
    assert weights[0].isnan().sum() == expected_weights[0].isnan().sum()
    # And the other row is as it is alone
    assert torch.equal(weights[1:], alone[0])


def test_an_expert_with_a_score_of_nan_is_chosen(library: Library) -> None:
    # Given a router with NaN in the weight of one expert
    router = router_of(ROUTERS["sigmoid"], 16, 4)
    router._weight[9, 2] = torch.nan
    # When / Then it comes first, as in the module
    x = torch.randn(3, HIDDEN)
    weights, marks = routed(library, router, x)
    assert torch.equal(marks, expected(router, x, 16)[1])
    assert marks[:, 9].all()
    assert weights[:, 9].isnan().all()


def blocks_of(
    library: Library, family: str, shards: int, cut: str, **fields: Any
) -> tuple[list[Any], list[Block], int]:
    """Of each shard the mixture of a random model's last layer, as a program and as modules."""
    torch.manual_seed(0)
    arch = load_architecture(tiny_config(family, **fields).to_dict())
    fetch = random_weights(arch)
    plan = plan_for(arch, 1, shards, weight_dtype="bfloat16", experts=cut)
    layer = next(n for n in reversed(range(arch.num_layers)) if arch.at(n).num_experts)
    programs, blocks = [], []
    for part in plan.stages[0].shards:
        load = Loader(arch, part, fetch, Dtypes.of(plan), torch.device("cpu")).at(layer)
        modules = load_mlp(load, layer)
        assert isinstance(modules[0], Experts)
        branches = [
            Branch(None if number else NoNorm(torch.float32), module)
            for number, module in enumerate(modules)
        ]
        block, kernels = Block(branches, arch.hidden_size), StepKernels(library)
        blocks.append(block)
        programs.append((compiled(block, kernels), kernels))
    return programs, blocks, arch.hidden_size


def context_of(kernels: StepKernels, rows: torch.Tensor) -> Any:
    """What a block needs of a decoding step with these rows."""
    return SimpleNamespace(decoding=kernels.step(rows, rows, ()), step=SimpleNamespace(rows=()))


FAMILIES_OF_EXPERTS = (
    "mixtral",
    "qwen3_moe",
    "qwen3_next",
    "deepseek_v3",
    "gpt_oss",
    "llama4_text",
    "granitemoeshared",
    "nemotron_h",
)


@pytest.mark.parametrize("cut", ["columns", "whole"])
@pytest.mark.parametrize("family", FAMILIES_OF_EXPERTS)
def test_shards_add_up_to_what_the_modules_do(library: Library, family: str, cut: str) -> None:
    # Given the shards of a mixture, as programs and as modules
    programs, blocks, size = blocks_of(library, family, 2, cut)
    x = torch.randn(5, size)
    rows = torch.arange(5)
    context: Any = SimpleNamespace(decoding=None)
    for (program, kernels), block in zip(programs, blocks, strict=True):
        # When
        whole = program(x, context_of(kernels, rows), None)
        # Then each partial is the module's
        result = block(x, context, lambda partial: partial)
        torch.testing.assert_close(whole, result, rtol=1e-4, atol=1e-4 * float(result.std()) + 1e-9)
        # And its rows have the bits that they have alone
        for row in rows:
            alone = program(x[row][None], context_of(kernels, row[None]), None)
            assert torch.equal(alone[0], whole[row])


@pytest.mark.parametrize("cut", ["columns", "whole"])
def test_a_row_of_nan_stays_alone(library: Library, cut: str) -> None:
    # Given a row of NaN among others
    programs, _, size = blocks_of(library, "qwen3_moe", 2, cut)
    x = torch.randn(3, size)
    rows, partials, healthy = torch.arange(3), [], []
    for program, kernels in programs:
        step = context_of(kernels, rows)
        healthy.append(program(x, step, None))
        bad = x.index_fill(0, torch.tensor([1]), torch.nan)
        # When
        partials.append(program(bad, step, None))
    # Then the sum over the shards is NaN in that row, and the others are as they were
    assert sum(partials)[1].isnan().all()
    for partial, before in zip(partials, healthy, strict=True):
        assert torch.equal(partial[[0, 2]], before[[0, 2]])
