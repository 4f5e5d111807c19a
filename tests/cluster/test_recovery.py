"""Processes die, join, leave or stop: every answer is that of an undisturbed run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest
from checkpoints import Tiny
from disturbed import (
    Undisturbed,
    engine_state,
    events_since,
    heal,
    kill,
    leader_pid,
    members,
    name_of,
    num_events,
    stopped,
    whole,
    worker_with_a_place,
)
from processes import is_gone, wait_for

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.errors import QueueFull, RequestCancelled, RequestLost, RequestTimeout, SkynetError
from skynet.local.cluster import LocalCluster
from skynet.store.leader import leader_of
from skynet.store.plans import Plans
from skynet.store.targets import Targets
from skynet.wire import keys

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def spared(tiny: Tiny) -> Iterator[LocalCluster]:
    """1 stage x 2 shards that take any place, a spare, two orchestrators, Redis with a file."""
    with LocalCluster(
        tiny.path,
        1,
        2,
        "float32",
        num_slots=4,
        elastic=True,
        spares=1,
        orchestrators=2,
        persistent=True,
    ) as running:
        whole(running)
        yield running


@pytest.fixture(scope="module")
def bound(tiny: Tiny) -> Iterator[LocalCluster]:
    """2 stages x 2 shards, each bound to its place, no spare, one chord a layer."""
    with LocalCluster(tiny.path, 2, 2, "float32", "layer", num_slots=4) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed_bound(bound: LocalCluster, tiny: Tiny) -> Undisturbed:
    return Undisturbed(bound, tiny.prompts)


@pytest.fixture(scope="module")
def undisturbed(spared: LocalCluster, tiny: Tiny) -> Undisturbed:
    return Undisturbed(spared, tiny.prompts)


def test_a_spare_takes_over_a_killed_shard(spared: LocalCluster, undisturbed: Undisturbed) -> None:
    # Given answers under way, and more that wait
    before = num_events(spared)
    answers = undisturbed.ask(2)
    # When a shard's worker is killed
    kill(spared, worker_with_a_place(spared))
    # Then all answers are those of the undisturbed run, and the events tell it
    answers.check()
    kinds = [event.kind for event in events_since(spared, before)]
    assert {"lost", "plan", "ready", "replay"} <= set(kinds)
    heal(spared)


def test_the_next_turn_of_a_replayed_chat_computes_its_new_tokens_only(
    spared: LocalCluster, tiny: Tiny
) -> None:
    # Given a turn of a chat, and the next one, which continues after it
    count, new = 400, [3, 1, 4]
    first = spared.submit_prompt(tiny.prompts[2], max_tokens=count).get(timeout=60)
    prompt = [*tiny.prompts[2], *first.token_ids, *new]
    undisturbed = spared.submit_prompt(prompt, max_tokens=count).get(timeout=60)
    assert undisturbed.cached_tokens == len(prompt) - len(new) - 1
    # And another prompt's log-probabilities, with an answer whose tokens are counted
    options = {"max_tokens": count, "frequency_penalty": 0.2, "prompt_logprobs": 1}
    alone = spared.submit_prompt(tiny.prompts[2], **options).get(timeout=60)
    # When both are asked for again, and a worker is killed meanwhile
    before = num_events(spared)
    scored = spared.submit_prompt(tiny.prompts[2], **options)
    generation = spared.submit_prompt(prompt, max_tokens=count)
    next(scored.tokens(timeout=60))
    next(generation.tokens(timeout=60))
    kill(spared, worker_with_a_place(spared))
    again = generation.get(timeout=90)
    # Then its answer is the same, and the turn after it takes all that was replayed
    assert again.token_ids == undisturbed.token_ids
    scored_again = scored.get(timeout=90)
    assert scored_again.token_ids == alone.token_ids
    assert scored_again.prompt_logprobs == alone.prompt_logprobs
    assert len(alone.prompt_logprobs) == len(tiny.prompts[2])
    assert "replay" in {event.kind for event in events_since(spared, before)}
    prompt = [*prompt, *again.token_ids, *new]
    third = spared.submit_prompt(prompt, max_tokens=1).get(timeout=60)
    assert third.cached_tokens == len(prompt) - len(new) - 1
    # And `skynet status` counts them
    expected = sum(each.cached_tokens for each in (undisturbed, again, third))
    wait_for("the count", lambda: int(str(engine_state(spared)["cached_tokens"])) >= expected)
    heal(spared)


def test_several_killed_at_once_are_survived_by_one(
    spared: LocalCluster, undisturbed: Undisturbed
) -> None:
    # Given answers under way on two workers, and a spare
    answers = undisturbed.ask()
    # When two of the three are killed
    for name in [w.address for w in spared.workers if not w.address.startswith("orch")][:2]:
        kill(spared, name)
    # Then the third goes on alone, in a smaller shape
    answers.check()
    plan = Plans(spared.client.redis).current()
    assert plan is not None
    heal(spared)
    # And the shape asked for is back when they are
    back = Plans(spared.client.redis).current()
    assert back is not None
    assert back.shape == (1, 2)
    assert back.epoch > plan.epoch or plan.shape == (1, 2)


def test_a_standby_takes_over_from_a_killed_orchestrator(
    spared: LocalCluster, undisturbed: Undisturbed, tiny: Tiny
) -> None:
    # Given answers under way, some of which wait for a slot
    answers = undisturbed.ask(2)
    leader = leader_pid(spared)
    # When the leader is killed, and a request comes meanwhile
    kill(spared, name_of(spared, leader))
    late = spared.submit_prompt(tiny.prompts[0], max_tokens=24)
    # Then the other one leads, and loses nothing
    answers.check()
    assert late.get(timeout=60).token_ids == tiny.tokens[0]
    assert leader_pid(spared) != leader
    heal(spared)


def test_an_orchestrator_that_wakes_up_late_writes_nothing(
    spared: LocalCluster, undisturbed: Undisturbed
) -> None:
    # Given answers under way
    answers = undisturbed.ask(2)
    leader = leader_pid(spared)
    first = leader_of(spared.client.redis)
    # When the leader stands still until another leads, and then goes on
    with stopped(leader):
        wait_for("another leader", lambda: leader_of(spared.client.redis) not in ("", first))
    # Then the answers are right, each token is there once, and it stands by from then on
    answers.check()
    wait_for(
        "the old leader to stand by",
        lambda: any(m.pid == leader and m.state == "standby" for m in members(spared)),
    )
    heal(spared)


@pytest.mark.parametrize("seconds", [1.0, 5.0])
def test_a_worker_that_stands_still_for_a_while_does_no_harm(
    spared: LocalCluster, undisturbed: Undisturbed, seconds: float
) -> None:
    # Given answers under way
    answers = undisturbed.ask(2)
    name = worker_with_a_place(spared)
    # When a shard's worker stands still, for less or for longer than its lease, and goes on
    pid, over = spared.processes.pid_of(name), threading.Event()
    with stopped(pid):
        over.wait(seconds)
    # Then the answers are right
    answers.check()
    assert not is_gone(pid)
    heal(spared)


def test_a_worker_that_is_told_to_end_hands_over(
    spared: LocalCluster, undisturbed: Undisturbed
) -> None:
    # Given answers under way, and a spare
    before = num_events(spared)
    answers = undisturbed.ask(2)
    name = worker_with_a_place(spared)
    # When a shard's worker gets SIGTERM
    code = spared.processes.remove(name)
    # Then it ends well, the answers are right, and nothing was lost on the way
    assert code == 0
    answers.check()
    events = events_since(spared, before)
    assert "left" in [event.kind for event in events]
    assert not [event.text for event in events if event.kind == "lost" or "failed" in event.text]
    spared.processes.add(name)
    whole(spared)


def test_an_orchestrator_that_is_told_to_end_hands_over(
    spared: LocalCluster, undisturbed: Undisturbed
) -> None:
    # Given answers under way
    answers = undisturbed.ask(2)
    leader = name_of(spared, leader_pid(spared))
    # When the leader gets SIGTERM
    code = spared.processes.remove(leader)
    # Then it ends well, and the other one goes on
    assert code == 0
    answers.check()
    spared.processes.add(leader)
    whole(spared)


def test_a_redis_that_restarts_with_its_file_loses_nothing(
    spared: LocalCluster, undisturbed: Undisturbed
) -> None:
    # Given answers under way, and their readers
    answers = undisturbed.ask(2)
    pids = {worker.pid for worker in spared.workers}
    # When Redis is restarted
    spared.restart_server()
    # Then all go on by themselves
    answers.check()
    assert {worker.pid for worker in spared.workers} == pids
    assert spared.processes.failed() == []
    heal(spared)


def test_every_connection_is_cut(spared: LocalCluster, undisturbed: Undisturbed) -> None:
    # Given answers under way
    answers = undisturbed.ask(2)
    # When Redis closes every connection but the one that asks, three times
    for _ in range(3):
        spared.client.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        more = spared.submit_prompt([5, 6, 7], max_tokens=8)
        assert len(more.get(timeout=60).token_ids) == 8
    # Then no worker is taken for dead for long, and the answers are right
    answers.check()
    heal(spared)


def test_all_processes_are_killed_at_once(spared: LocalCluster, undisturbed: Undisturbed) -> None:
    # Given answers under way, and more that wait
    answers = undisturbed.ask(2)
    # When everything but Redis is killed and started again
    for worker in spared.workers:
        kill(spared, worker.address)
    heal(spared)
    # Then every answer is there
    answers.check()


def test_a_client_that_dies_loses_nothing(spared: LocalCluster, undisturbed: Undisturbed) -> None:
    # Given a request of a client that is gone
    prompt, options = undisturbed.requests[0]
    gone = Client(spared.url)
    asked = gone.submit_prompt(prompt, max_tokens=len(undisturbed.answers[0]), **options)
    next(asked.tokens(timeout=60))
    gone.close()
    # When another takes hold of it, from the beginning and from an index
    again = Generation(asked.id, spared.client)
    whole_answer = [(token.index, token.id) for token in again.tokens(timeout=60)]
    rest = [token.index for token in again.tokens(start=100, timeout=60)]
    # Then it has every token
    assert whole_answer == list(enumerate(undisturbed.answers[0]))
    assert rest == list(range(100, len(undisturbed.answers[0])))


def test_priorities_limits_deadlines_and_cancels_hold(
    spared: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given every slot in use
    running = [spared.submit_prompt([1, 2], max_tokens=1500) for _ in range(4)]
    for generation in running:
        next(generation.tokens(timeout=60))
    # When others wait, one of them with priority, one with a short deadline
    low = spared.submit_prompt([3], max_tokens=4)
    high = spared.submit_prompt([4], max_tokens=4, priority=9)
    late = spared.submit_prompt([5], max_tokens=4, timeout=0.5)
    # Then the deadline holds while it waits, with an error that says so
    with pytest.raises(RequestTimeout, match="waiting"):
        late.get(timeout=60)
    # And a slot that is cancelled free, from another process, goes to the priority
    Generation(running[0].id, Client(spared.url)).cancel()
    with pytest.raises(RequestCancelled):
        running[0].get(timeout=60)
    high.get(timeout=60)
    order = {name: _ended(spared, g) for name, g in (("high", high), ("low", low)) if g.ready()}
    assert "low" not in order or order["high"] < order["low"]
    for generation in running[1:]:
        generation.cancel()
    low.get(timeout=60)
    # And a queue that is full refuses, with the number and the setting
    target = Targets(spared.client.redis).require()
    monkeypatch.setenv("SKYNET_MAX_WAITING", "1")
    from skynet.settings import settings

    settings.cache_clear()
    more = [spared.submit_prompt([1], max_tokens=1500) for _ in range(target.num_slots + 1)]
    with pytest.raises(QueueFull, match="SKYNET_MAX_WAITING"):
        spared.submit_prompt([1], max_tokens=4)
    settings.cache_clear()
    for generation in more:
        generation.cancel()
    for generation in more:
        with pytest.raises(RequestCancelled):
            generation.get(timeout=60)


def _ended(cluster: LocalCluster, generation: Generation) -> bytes:
    entries = cluster.client.redis.xrange(keys.tokens_key(generation.id))
    return bytes(entries[-1][0])  # type: ignore[index]


def test_a_killed_shard_without_a_spare_and_its_return(
    bound: LocalCluster, undisturbed_bound: Undisturbed
) -> None:
    # Given answers under way on 2 x 2 workers that are bound to their places
    answers = undisturbed_bound.ask()
    # When one is killed
    kill(bound, "stage1.shard1")
    # Then the others go on in a shape that their places allow
    answers.check()
    assert engine_state(bound)["state"] != "waiting"
    # And when it is back, so is the shape asked for
    heal(bound)
    plan = Plans(bound.client.redis).current()
    assert plan is not None
    assert plan.shape == (2, 2)
    again = undisturbed_bound.ask()
    again.check()


def test_a_second_worker_for_a_taken_place_stands_by_for_it(
    bound: LocalCluster, undisturbed_bound: Undisturbed
) -> None:
    # Given a second worker bound to a place that is taken
    first = {m.pid for m in members(bound) if m.address == "stage0.shard1"}
    by_name = bound.processes.by_name
    by_name["twin"] = by_name.pop("stage0.shard1")  # so that the name is free
    bound.processes.add("stage0.shard1")
    whole(bound)
    assert {m.pid for m in members(bound) if m.address == "stage0.shard1"} == first
    # When the first is killed in mid-answer
    answers = undisturbed_bound.ask()
    kill(bound, "twin")
    # Then the second has its place
    answers.check()
    del by_name["twin"]
    whole(bound)


def test_a_living_worker_is_not_replaced(bound: LocalCluster) -> None:
    # Given a worker that runs / When another is started in its place / Then it is refused
    with pytest.raises(SkynetError, match="still running"):
        bound.processes.restart("stage0.shard0")
    assert not any(is_gone(worker.pid) for worker in bound.workers)


def test_an_empty_redis_ends_running_requests_and_serves_new_ones(
    bound: LocalCluster, tiny: Tiny
) -> None:
    # Given a cluster whose Redis keeps nothing, and a request under way
    pids = {worker.pid for worker in bound.workers}
    running = bound.submit_prompt(tiny.prompts[0], max_tokens=1900)
    next(running.tokens(timeout=60))
    # When it restarts
    bound.restart_server()
    # Then the request ends with an error that says why
    with pytest.raises(RequestLost, match="Redis"):
        running.get(timeout=60)

    # And weights are staged again, and requests answered, by the same processes
    def answered() -> bool:
        try:
            generation = bound.submit_prompt(tiny.prompts[0], max_tokens=24)
            return generation.get(timeout=60).token_ids == tiny.tokens[0]
        except SkynetError:
            return False

    wait_for("an answer", answered)
    assert {worker.pid for worker in bound.workers} == pids
    assert bound.processes.failed() == []


def test_sigterm_to_all_at_once_ends_all_soon(bound: LocalCluster) -> None:
    """The last test with this cluster."""
    # Given an idle cluster
    processes = dict(bound.processes.by_name)
    # When every process gets SIGTERM at the same moment
    started = time.monotonic()
    for process in processes.values():
        process.send_signal(signal.SIGTERM)
    # Then all end with code 0, and none waits for a successor until its patience is over
    codes = {name: process.wait(timeout=60) for name, process in processes.items()}
    assert set(codes.values()) == {0}, codes
    assert time.monotonic() - started < 60


def test_an_open_shape_follows_the_number_of_workers(tiny: Tiny) -> None:
    # Given two workers in a shape that is left open
    with LocalCluster(tiny.path, 1, 2, "float32", num_slots=4, elastic=True) as cluster:
        undisturbed = Undisturbed(cluster, tiny.prompts)
        plans = Plans(cluster.client.redis)
        targets = Targets(cluster.client.redis)
        target = targets.require()
        targets.ask(type(target)(**{**target.__dict__, "stages": None, "shards": None}))
        wait_for(
            "the shape to be chosen",
            lambda: (plan := plans.current()) and plan.revision == target.revision + 1,
        )
        wait_for("the plan", lambda: engine_state(cluster).get("state") == "ready")
        answers = undisturbed.ask()
        # When one joins in mid-answer
        cluster.processes.add()
        wait_for("its lease", lambda: sum(bool(m.speed) for m in members(cluster)) == 3)
        # Then status says why the shape changes or does not, and answers are right
        reason = wait_for("a reason", lambda: reason_of(cluster))
        assert "better" in reason or "ms a token" in reason, reason
        answers.check()


def reason_of(cluster: LocalCluster) -> str:
    """Why the shape is as it is, when that has been weighed."""
    reason = str(engine_state(cluster).get("reason"))
    return reason if "spare" in reason else ""
