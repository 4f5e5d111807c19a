"""Runs of sides: shards whose decoding steps are one call each, with their sums over links."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from model_families import tiny_config
from plans import plan_for
from random_weights import random_weights

from skynet.exchange import fast_sum
from skynet.exchange.exchange import Exchange
from skynet.exchange.group import Group
from skynet.exchange.link import Link
from skynet.kernels.sides import SideRun
from skynet.layers.lockstep import run_in_lockstep
from skynet.layers.norm import AllReduce as AnyAllReduce
from skynet.layers.shard_model import ShardModel
from skynet.models.registry import load_architecture
from skynet.planning.ranges import Range
from skynet.wire.step import LogitsRequest, Row, Step
from skynet.worker.all_reduce import AllReduce

WAIT_S = 30
PROMPT = (5, 6, 7, 8, 9)
# A bias after the sum, norms of the sum, norms of sum and hidden states, a factor of the sum.
FAMILIES = ("llama", "gpt2", "gemma2", "granite")


@pytest.fixture(autouse=True)
def needs_kernels() -> None:
    if fast_sum._function() is None:
        pytest.skip("no kernels are built for this machine")


class Shards:
    """All shards of one stage, linked, each with a prompt in its slot."""

    def __init__(self, family: str, count: int) -> None:
        torch.manual_seed(5)
        arch = load_architecture(tiny_config(family).to_dict())
        fetch = random_weights(arch)
        plan = plan_for(arch, 1, count, weight_dtype="bfloat16", num_slots=4, slot_tokens=32)
        self.layers = Range(0, arch.num_layers)
        self.models = [ShardModel(arch, plan, (0, shard), fetch) for shard in range(count)]
        self.lockstep(Step(1, 1, (Row(0, 0, PROMPT, len(PROMPT)), Row(2, 0, PROMPT[:2], 2)), 99))
        links: list[dict[int, Link]] = [{} for _ in range(count)]
        for low, high in itertools.combinations(range(count), 2):
            ends = socket.socketpair()
            links[low][high], links[high][low] = Link(ends[0], "unix"), Link(ends[1], "unix")
        self.exchanges = [Exchange(Group(1, 0, n, count), "unix:///nowhere") for n in range(count)]
        for exchange in self.exchanges:
            exchange.open(links[exchange.shard])
            exchange.timeout_s = 10

    def close(self) -> None:
        for exchange in self.exchanges:
            exchange.close()

    def lockstep(self, step: Step) -> list[float]:
        """Run a step side by side; the logits of the first row's best candidates, of all shards."""

        def run(model: ShardModel, all_reduce: AnyAllReduce) -> torch.Tensor:
            return best_logits(model, step, self.layers, all_reduce)

        runs = [lambda all_reduce, model=model: run(model, all_reduce) for model in self.models]
        return [float(each[0]) for each in run_in_lockstep(runs).outputs]

    def by_links(self, step: Step) -> list[float]:
        """The same, each shard by itself."""

        def run(shard: int) -> float:
            all_reduce = AllReduce(self.exchanges[shard], step.epoch, step.number, 0)
            return float(best_logits(self.models[shard], step, self.layers, all_reduce)[0])

        with ThreadPoolExecutor(len(self.models)) as pool:
            running = [pool.submit(run, shard) for shard in range(len(self.models))]
        return [each.result(WAIT_S) for each in running]


def best_logits(
    model: ShardModel, step: Step, layers: Range, all_reduce: AnyAllReduce
) -> torch.Tensor:
    _, candidates, _ = model.run(step, layers, None, all_reduce)
    return torch.tensor([each.logits[0] for each in candidates] or [0.0])


def decoding(number: int) -> Step:
    """The next token of two slots."""
    first = Row(0, len(PROMPT), (10,), len(PROMPT), LogitsRequest(top=4))
    return Step(1, number, (first, Row(2, 2, (11,), 2, LogitsRequest(top=4))), 99)


@pytest.fixture
def make_shards() -> Iterator[Callable[[str, int], Shards]]:
    made: list[Shards] = []

    def make(family: str, count: int) -> Shards:
        made.append(Shards(family, count))
        return made[-1]

    yield make
    for shards in made:
        shards.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(sides asked for, sides done) of each call in C."""
    made: list[tuple[int, int]] = []
    real = SideRun.__call__

    def counted(run: SideRun, x: torch.Tensor, sides: range, *rest: object) -> object:
        done, partial = real(run, x, sides, *rest)  # type: ignore[arg-type]
        made.append((len(sides), done))
        return done, partial

    monkeypatch.setattr(SideRun, "__call__", counted)
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [2, 3])
def test_steps_in_c_are_those_side_by_side(
    family: str,
    count: int,
    calls: list[tuple[int, int]],
    make_shards: Callable[[str, int], Shards],
) -> None:
    # Given shards with a prompt
    shards = make_shards(family, count)
    expected = shards.lockstep(decoding(2))
    assert not calls  # lockstep's sums are not made in C
    # When each shard runs the step by itself, and waits for its peers as long as it takes
    for exchange in shards.exchanges:
        exchange._spin_s = WAIT_S
    result = shards.by_links(decoding(3))
    # Then it is one call for all sides, and the logits are the same to float32's rounding
    sides = 2 * shards.layers.size
    assert calls == [(sides, sides)] * count
    assert result == pytest.approx(expected, rel=1e-4)


def test_sums_that_do_not_come_at_once_are_finished_in_python(
    calls: list[tuple[int, int]], make_shards: Callable[[str, int], Shards]
) -> None:
    # Given shards that do not spin, of which one is always late
    shards = make_shards("llama", 2)
    expected = shards.lockstep(decoding(2))
    for exchange in shards.exchanges:
        exchange.spins = False
    # When they run a step
    result = shards.by_links(decoding(3))
    # Then some call has ended before its last side, and the result is the same
    assert any(done < sides for sides, done in calls)
    assert result == pytest.approx(expected, rel=1e-4)
    # And every sum is counted
    numbers = [exchange.waited_s > 0 for exchange in shards.exchanges]
    assert all(numbers)
