"""Waits until a local cluster takes requests."""

from __future__ import annotations

import time

import redis

from skynet.errors import SkynetError
from skynet.local.processes import WorkerProcesses
from skynet.planning.plan import Plan
from skynet.settings import settings
from skynet.staging.stager import Progress
from skynet.store.engine_state import read_engine_state
from skynet.store.members import FAILED, READY, Member, Members
from skynet.store.plans import Plans

NO_LEADER = "waiting for an orchestrator"
POLL_S = 0.05


def wait_until_ready(
    client: redis.Redis, processes: WorkerProcesses, progress: Progress, timeout_s: float
) -> Plan:
    """The plan in force, once all its shards are loaded and every process is a member.

    Raises:
        SkynetError: a worker ended or could not load, or time is up.
    """
    members, plans = Members(client, settings().lease_s), Plans(client)
    deadline = time.monotonic() + timeout_s
    while True:
        processes.check()
        present = members.all()
        for member in present:
            if member.state == FAILED:
                raise SkynetError(f"{member.address} could not load: {member.problem}")
        _report_loading([member for member in present if member.weight_bytes], progress)
        engine = read_engine_state(client)
        state = engine.get("state") if engine else NO_LEADER
        plan = plans.current()
        complete = len({member.pid for member in present}) == len(processes.by_name)
        if state == "ready" and plan is not None and complete:
            return plan
        if time.monotonic() > deadline:
            raise SkynetError(f"not ready after {timeout_s:g} s: {state}")
        time.sleep(POLL_S)


def _report_loading(shards: list[Member], progress: Progress) -> None:
    total = sum(member.weight_bytes for member in shards)
    if total:
        done = sum(m.weight_bytes if m.state == READY else m.loaded_bytes for m in shards)
        progress("loading", min(done, total), total)
