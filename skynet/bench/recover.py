"""recover: seconds without a token when a worker is killed, leaves or joins during a request."""

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
KILLED_S, RELOADED_S, LEFT_S, JOINED_S = 5.0, 2.0, 2.0, 2.0  # targets


def recover(rounds: int) -> Result:
    """Kill a worker at 1x2 with a spare and at 2x2 without; let one leave, and one join."""
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
    """Time from SIGKILL to the next token, and its part after the loss was detected."""
    before = Events(cluster.client.redis).latest(1)[-1].at
    killed = [0.0]

    def kill() -> None:
        killed[0] = time.monotonic()
        os.kill(_last_shard(cluster).pid, signal.SIGKILL)

    times = _disturbed(cluster, kill, lambda: killed[0])
    first = next(at for at in times if at > killed[0] + 0.2)  # not a token already on its way
    _add(result, f"{what}: kill to next token", first - killed[0], KILLED_S)
    events = [event for event in Events(cluster.client.redis).latest(50) if event.at > before]
    reloaded = _at(events, "replay") - _at(events, "lost")
    _add(result, f"{what}: of which loading and replay", reloaded, RELOADED_S)


def _leave(cluster: LocalCluster, result: Result) -> None:
    """SIGTERM to a worker with a place, which the spare takes; then another spare joins."""
    name = next(w.address for w in cluster.workers if w.pid == _last_shard(cluster).pid)
    times = _disturbed(cluster, lambda: cluster.processes.remove(name))
    _add(result, "leave: longest pause", _longest(times), LEFT_S)
    cluster.processes.add(name)
    _wait_complete(cluster)


def _restart(cluster: LocalCluster, result: Result | None = None) -> None:
    """Restart the killed worker; with `result`, during a request that measures the join."""

    def join() -> None:
        for name in cluster.processes.failed():
            cluster.processes.restart(name)
        _wait_complete(cluster)

    if result is None:
        join()
        return
    _add(result, "join: longest pause", _longest(_disturbed(cluster, join)), JOINED_S)


def _disturbed(
    cluster: LocalCluster,
    disturb: Callable[[], object],
    since: Callable[[], float] = lambda: 0.0,
) -> list[float]:
    """Arrival times of a request's tokens, while `disturb` runs and until they are even again."""
    generation = cluster.submit_prompt(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True)
    times: list[float] = []
    thread = threading.Thread(target=disturb, daemon=True)
    started = time.monotonic()
    try:
        for token in generation.tokens(timeout=MAX_S):
            times.append(time.monotonic())
            if token.index == WARM_TOKENS:
                thread.start()
            done = token.index > WARM_TOKENS and not thread.is_alive()
            if done and times[-1] > max(since() + 1.0, started) and _calm(times):
                break
            if times[-1] - started > MAX_S:
                raise SkynetError(f"still disturbed after {MAX_S:g} s")
    finally:
        generation.cancel()
    thread.join()
    return times


def _calm(times: list[float]) -> bool:
    """Did the last tokens come without a long pause?"""
    return len(times) > WARM_TOKENS and times[-1] - times[-WARM_TOKENS] < 2.0


def _longest(times: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(times))


def _last_shard(cluster: LocalCluster) -> Member:
    """The worker in the plan's last place."""
    placed = [m for m in _members(cluster) if m.address.startswith("stage") and m.state == "ready"]
    return placed[-1]


def _wait_complete(cluster: LocalCluster) -> None:
    """Until every worker is a member and the plan has the requested shape."""
    shape = cluster.plan.shape if cluster.plan else (1, 1)
    deadline = time.monotonic() + MAX_S
    while time.monotonic() < deadline:
        members, plan = _members(cluster), Plans(cluster.client.redis).current()
        up = {member.pid for member in members if member.speed or member.address == "orchestrator"}
        ready = sum(1 for m in members if plan and m.state == "ready" and m.epoch == plan.epoch)
        if up == {worker.pid for worker in cluster.workers} and ready == shape[0] * shape[1]:
            return
        time.sleep(0.05)
    raise SkynetError(f"the cluster is not complete after {MAX_S:g} s")


def _members(cluster: LocalCluster) -> list[Member]:
    return Members(cluster.client.redis, 3).all()


def _at(events: list[Event], kind: str) -> float:
    at = next((event.at for event in events if event.kind == kind), 0.0)
    if not at:
        raise SkynetError(f"no event of kind {kind!r} among {[event.kind for event in events]}")
    return at


def _add(result: Result, name: str, seconds: float, target: float) -> None:
    result.samples.setdefault(name, []).append(seconds)
    result.targets[name] = target
