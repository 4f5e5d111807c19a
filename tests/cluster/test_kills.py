"""Processes are killed while requests run: nothing hangs, and what comes after works."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from checkpoints import Tiny
from processes import is_gone, wait_for

from skynet.client import Generation
from skynet.errors import RequestCancelled, SkynetError, StepFailed
from skynet.local import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
LONG = 500


@pytest.fixture(scope="module")
def fragile(tiny: Tiny) -> Iterator[LocalCluster]:
    """2 stages x 2 shards with short leases."""
    environment = {"SKYNET_LEASE_S": "2", "SKYNET_EXCHANGE_TIMEOUT_S": "8"}
    with LocalCluster(
        tiny.path, 2, 2, "float32", "auto", num_slots=4, environment=environment
    ) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(fragile: LocalCluster, tiny: Tiny) -> list[list[int]]:
    """Long answers to the prompts, as they are when nobody dies."""
    generations = fragile.submit_prompts(tiny.prompts, max_tokens=LONG)
    return [generation.get(timeout=60).token_ids for generation in generations]


def kill(cluster: LocalCluster, address: str) -> None:
    """SIGKILL, and wait until the process is gone."""
    pid = next(worker.pid for worker in cluster.workers if worker.address == address)
    os.kill(pid, signal.SIGKILL)
    wait_for(f"{address} to die", lambda: address in cluster.failed_workers())


def end_of(generation: Generation) -> SkynetError:
    """The error it ended with."""
    with pytest.raises(SkynetError) as raised:
        generation.get(timeout=60)
    return raised.value


@pytest.mark.parametrize("address", ["stage0.shard1", "stage1.shard0"])
def test_a_killed_shard_ends_its_requests_and_its_successor_serves_the_others(
    fragile: LocalCluster, tiny: Tiny, address: str
) -> None:
    # Given long answers under way in every slot, and requests that wait for one
    running = fragile.submit_prompts([*tiny.prompts, [1]], max_tokens=1900)
    for generation in running:
        next(generation.tokens(timeout=60))
    waiting = fragile.submit_prompts(tiny.prompts, max_tokens=24)
    # When a shard's worker is killed
    kill(fragile, address)
    # Then an answer ends with an error within the lease, before there is a successor
    wait_for("an end", lambda: any(g.ready() for g in running), 30)
    fragile.restart_worker(address)
    # And the error names the shard; who was in no step goes on until it is cancelled
    for generation in running:
        generation.cancel()
    ends = [end_of(generation) for generation in running]
    failed = [str(end) for end in ends if isinstance(end, StepFailed)]
    assert failed
    assert all(address in message for message in failed), failed
    assert len(failed) + sum(isinstance(end, RequestCancelled) for end in ends) == 4
    # And those who waited are answered, and new ones too
    assert [g.get(timeout=60).token_ids for g in waiting] == tiny.tokens
    found = fragile.submit_prompts(tiny.prompts, max_tokens=24)
    assert [g.get(timeout=60).token_ids for g in found] == tiny.tokens


def test_a_killed_orchestrator_loses_nothing(
    fragile: LocalCluster, tiny: Tiny, undisturbed: list[list[int]]
) -> None:
    # Given requests in mid-answer, and readers of their streams
    generations = fragile.submit_prompts(tiny.prompts * 2, max_tokens=LONG)
    streamed: dict[str, list[tuple[int, int]]] = {}

    def read(generation: Generation) -> None:
        streamed[generation.id] = [(t.index, t.id) for t in generation.tokens(timeout=90)]

    readers = [threading.Thread(target=read, args=(g,), daemon=True) for g in generations]
    for reader in readers:
        reader.start()
    for generation in generations[:4]:
        next(generation.tokens(timeout=60))
    # When the orchestrator is killed, a request comes meanwhile, and another one starts
    kill(fragile, "orchestrator")
    late = fragile.submit_prompt(tiny.prompts[0], max_tokens=24)
    fragile.restart_worker("orchestrator")
    # Then all answers are those of the undisturbed run
    found = [generation.get(timeout=90).token_ids for generation in generations]
    assert found == undisturbed * 2
    assert late.get(timeout=60).token_ids == tiny.tokens[0]
    # And readers saw each token once, in order
    for reader in readers:
        reader.join(60)
    for generation, tokens in zip(generations, found, strict=True):
        assert streamed[generation.id] == list(enumerate(tokens))


def test_a_living_worker_is_not_replaced(fragile: LocalCluster) -> None:
    # Given a worker that runs / When another is started in its place / Then it is refused
    with pytest.raises(SkynetError, match="still running"):
        fragile.restart_worker("stage0.shard0")
    assert not any(is_gone(worker.pid) for worker in fragile.workers)
