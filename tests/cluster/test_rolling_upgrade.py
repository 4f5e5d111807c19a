"""Old and new processes in one cluster: kept apart, and requests go on when the old ones end."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from checkpoints import Tiny
from processes import command, wait_for

from skynet.client.client import Client
from skynet.client.status import cluster_status
from skynet.local.server import EmbeddedServer
from skynet.staging.split import skysplit
from skynet.store.events import Events
from skynet.store.members import Member, Members
from skynet.wire import keys
from skynet.wire.protocol import PROTOCOL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
NEW = PROTOCOL + 1
LONG = 120


def start(stack: ExitStack, server: EmbeddedServer, directory: Path, protocol: int) -> None:
    """Two workers and an orchestrator of this protocol."""
    for name, place in (("a", ()), ("b", ()), ("orchestrator", ("-Q", "orchestrator"))):
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        stack.enter_context(
            command(
                *("versioned", str(protocol), "-A", "skynet", "worker", *place),
                environment={"SKYNET_REDIS_URL": server.url, "PYTHONPATH": path},
                log=directory / f"{name}{protocol}.log",
                cwd=directory,
            )
        )


def states(client: redis.Redis, protocol: int) -> list[str]:
    """Of the members of this protocol that have started."""
    members: list[Member] = Members(client, 3).all()
    return sorted(
        member.state
        for member in members
        if member.protocol == protocol
        and (member.speed or member.address == keys.ORCHESTRATOR_QUEUE)
    )


def test_a_rolling_upgrade_loses_no_request(
    server: EmbeddedServer, client: redis.Redis, tiny: Tiny, tmp_path: Path
) -> None:
    user = Client(server.url)

    def shown(name: str) -> Any:
        """A part of `skynet status`, of the old version's command."""
        return cluster_status(client, server.url)[name]

    with ExitStack() as new:
        with ExitStack() as old:
            # Given a cluster, and a long answer of it
            start(old, server, tmp_path, PROTOCOL)
            skysplit(str(tiny.path), 1, 2, dtype="float32", url=server.url)
            expected = user.submit_prompt(tiny.prompts[0], max_tokens=LONG).get(timeout=120)
            # When processes of another version are started beside it
            start(new, server, tmp_path, NEW)
            wait_for(
                "the new ones stand by",
                lambda: states(client, NEW) == ["spare", "spare", "standby"],
            )
            wait_for("both are told", lambda: len(shown("incompatible")) == 2)
            # Then the old ones go on, and the new ones say why they wait
            assert states(client, PROTOCOL) == ["leading", "ready", "ready"]
            log = tmp_path / f"a{NEW}.log"
            said = f"the plan in force is of protocol {PROTOCOL}, this worker speaks {NEW}"
            wait_for("the reason in the log", lambda: said in log.read_text())
            # And when the old ones are told to end, while a request runs
            running = user.submit_prompt(tiny.prompts[0], max_tokens=LONG)
            next(running.tokens(timeout=60))
        # Then the new ones finish it, token by token as the old ones would have
        assert running.get(timeout=120).token_ids == expected.token_ids
        wait_for(
            "the new ones to run", lambda: states(client, NEW) == ["leading", "ready", "ready"]
        )
        events = [event.kind for event in Events(client).latest(100)]
        events = events[len(events) - events[::-1].index("leader") :]
        assert "replay" in events
        # And they answer a client of the old version, whose status names the difference
        answer = user.submit_prompt(tiny.prompts[1], max_tokens=24).get(timeout=60)
        assert answer.token_ids == tiny.tokens[1]
        assert f"of protocol {NEW}, this command" in shown("plan_problem")
    user.close()
