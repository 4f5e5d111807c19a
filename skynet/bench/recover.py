"""recover: seconds without a token when a worker is killed, leaves or joins in mid-answer."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable

from skynet.bench.report import Result
from skynet.errors import SkynetError
from skynet.local.cluster import LocalCluster
from skynet.store.events import Event, Events
from skynet.store.members import Member, Members
from skynet.store.plans import Plans

MODEL, DTYPE = "smollm2", "float32"
PROMPT = [100 + 37 * position for position in range(16)]
NUM_TOKENS = 3000
WARM_TOKENS = 16
MAX_S = 120.0
KILLED, RELOADED, LEFT, JOINED = 5.0, 2.0, 2.0, 2.0


def recover(rounds: int) -> Result:
    """A killed worker at 1x2 with a spare and at 2x2 without, a polite leave, a join."""
    result = Result("recover", f"SmolLM2-135M {DTYPE}, {os.cpu_count()} cores, 1 request", "s")
    with LocalCluster(MODEL, 1, 2, DTYPE, elastic=True, spares=1, slot_tokens=4096) as cluster:
        for _ in range(rounds):
            _kill(cluster, result, "1x2, a spare")
            _restart(cluster)
        for _ in range(rounds):
            _leave(cluster, result)
    with LocalCluster(MODEL, 2, 2, DTYPE, elastic=True, slot_tokens=4096) as cluster:
        for _ in range(rounds):
            _kill(cluster, result, "2x2, no spare")
            _restart(cluster, result)
    return result


def _kill(cluster: LocalCluster, result: Result, what: str) -> None:
    """From SIGKILL to the next token; and the part of it after the loss was noticed."""
    before = Events(cluster.client.redis).latest(1)[-1].at
    killed = [0.0]

    def kill() -> None:
        killed[0] = time.monotonic()
        os.kill(_somebody(cluster).pid, signal.SIGKILL)

    times = _disturbed(cluster, kill, lambda: killed[0])
    first = next(at for at in times if at > killed[0] + 0.2)  # what was on its way still comes
    _add(result, f"{what}: kill to next token", first - killed[0], KILLED)
    told = [event for event in Events(cluster.client.redis).latest(50) if event.at > before]
    spent = _at(told, "replay") - _at(told, "lost")
    _add(result, f"{what}: of which loading and replay", spent, RELOADED)


def _leave(cluster: LocalCluster, result: Result) -> None:
    """A worker with a place gets SIGTERM; the spare has it afterwards, and another one joins."""
    name = next(w.address for w in cluster.workers if w.pid == _somebody(cluster).pid)
    times = _disturbed(cluster, lambda: cluster.remove_worker(name))
    _add(result, "polite leave: longest pause", _longest(times), LEFT)
    cluster.add_worker(name)
    _wait_whole(cluster)


def _restart(cluster: LocalCluster, result: Result | None = None) -> None:
    """Start what was killed; at a shape that lacks it, this is a join in mid-answer."""

    def join() -> None:
        for name in cluster.failed_workers():
            cluster.restart_worker(name)
        _wait_whole(cluster)

    if result is None:
        join()
        return
    _add(result, "join: longest pause", _longest(_disturbed(cluster, join)), JOINED)


def _disturbed(
    cluster: LocalCluster,
    disturb: Callable[[], object],
    since: Callable[[], float] = lambda: 0.0,
) -> list[float]:
    """When each token of one request came, while and a little after something happens to it."""
    generation = cluster.submit_prompt(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True)
    times: list[float] = []
    thread = threading.Thread(target=disturb, daemon=True)
    started = time.monotonic()
    try:
        for token in generation.tokens(timeout=MAX_S):
            times.append(time.monotonic())
            if token.index == WARM_TOKENS:
                thread.start()
            over = token.index > WARM_TOKENS and not thread.is_alive()
            if over and times[-1] > max(since() + 1.0, started) and _calm(times):
                break
            if times[-1] - started > MAX_S:
                raise SkynetError(f"still disturbed after {MAX_S:g} s")
    finally:
        generation.cancel()
    thread.join()
    return times


def _calm(times: list[float]) -> bool:
    """Are the last tokens evenly spaced?"""
    return len(times) > WARM_TOKENS and times[-1] - times[-WARM_TOKENS] < 2.0


def _longest(times: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(times))


def _somebody(cluster: LocalCluster) -> Member:
    """The worker of the last place of the plan."""
    placed = [m for m in _members(cluster) if m.address.startswith("stage") and m.state == "ready"]
    return placed[-1]


def _wait_whole(cluster: LocalCluster) -> None:
    """Until every worker is up and the plan in force has the shape asked for."""
    shape = cluster.plan.shape if cluster.plan else (1, 1)
    deadline = time.monotonic() + MAX_S
    while time.monotonic() < deadline:
        found, plan = _members(cluster), Plans(cluster.client.redis).current()
        up = {member.pid for member in found if member.speed or member.address == "orchestrator"}
        ready = sum(1 for m in found if plan and m.state == "ready" and m.epoch == plan.epoch)
        if up == {worker.pid for worker in cluster.workers} and ready == shape[0] * shape[1]:
            return
        time.sleep(0.05)
    raise SkynetError(f"the cluster is not whole after {MAX_S:g} s")


def _members(cluster: LocalCluster) -> list[Member]:
    return Members(cluster.client.redis, 3).all()


def _at(events: list[Event], kind: str) -> float:
    found = next((event.at for event in events if event.kind == kind), 0.0)
    if not found:
        raise SkynetError(f"nothing told of {kind!r}: {[event.kind for event in events]}")
    return found


def _add(result: Result, name: str, seconds: float, bar: float) -> None:
    result.samples.setdefault(name, []).append(seconds)
    result.bars[name] = bar
