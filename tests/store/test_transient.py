"""What a step writes stays out of the append-only file and off the replicas."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from chord_cases import make_app, tiny_plan
from redis_servers import ConfiguredServer, answers_at, free_port

from skynet.bench.append_only import AppendOnlyFile
from skynet.chords.app import SkynetCelery
from skynet.chords.messenger import INLINE_BYTES, Messenger, body_signature
from skynet.client.status import cluster_status
from skynet.errors import PeerLost
from skynet.local.server import EmbeddedServer, server_binary
from skynet.planning.ranges import Range
from skynet.store import transient
from skynet.wire import keys
from skynet.wire.step import Part, SpanMessage

WAIT_S = 20.0
STEP = b"a step's"


class Server(ConfiguredServer):
    """A server with an append-only file, on a loopback port."""

    def __init__(self, binary: str, directory: Path, *config: str) -> None:
        self.port, self.binary = free_port(), binary
        lines = [f"port {self.port}", "bind 127.0.0.1", 'save ""', "appendonly yes", *config]
        super().__init__(directory, lines, answers_at(self.port), binary=binary)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)


def binaries() -> list[str]:
    """The embedded server's, and the system's if there is one."""
    return list(dict.fromkeys(filter(None, [server_binary(), shutil.which("redis-server")])))


@pytest.fixture(params=binaries(), ids=lambda path: Path(path).name)
def master(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(request.param, tmp_path / "master")
    yield server
    server.stop()


@pytest.fixture
def app(master: Server) -> Iterator[SkynetCelery]:
    app = make_app(master.url)
    yield app
    app.messenger.connection.close()
    app.close()


def wait_until(what: str, condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {WAIT_S} s"
        time.sleep(0.02)


def run_steps(app: SkynetCelery, client: redis.Redis) -> None:
    """Every kind of write of a step: chords, hidden states, parts, bodies, failures."""
    plan, large = tiny_plan(1, 2), STEP * INLINE_BYTES
    messenger: Messenger = app.messenger
    messenger.emit_chord(plan, SpanMessage(5, 1, 0, 2, large))
    messenger.emit_chord(plan, SpanMessage(5, 1, 2, 4, STEP, large))
    for step, span, result in (
        (1, Range(0, 2), Part(vectors=[])),
        (1, Range(2, 4), Part()),
        (2, Range(0, 2), PeerLost("a step's shard")),
    ):
        for shard in range(2):
            return_part(app, step, span, shard, result)
    messenger.give_back(keys.FAIL_STEP_TASK, [5, 3, "PeerLost", "a step's"], "stage0.shard0")
    for queue in ("stage0.shard0", "stage0.shard1", keys.ORCHESTRATOR_QUEUE):
        assert client.llen(keys.queue_key(queue)) > 0
        while client.brpop([keys.queue_key(queue)], timeout=0.05):
            pass


def return_part(app: SkynetCelery, step: int, span: Range, shard: int, result: Any) -> None:
    body = body_signature(tiny_plan(1, 2), step, span, 2, 0.25)
    body["options"] = {"queue": keys.ORCHESTRATOR_QUEUE}  # no body runs here
    group = keys.chord_id(5, step, span.start)
    request = SimpleNamespace(chord=body, group=group, group_index=shard)
    app.backend.on_chord_part_return(request, "SUCCESS", result)


def test_only_pops_of_a_step_are_in_the_append_only_file(master: Server, app: SkynetCelery) -> None:
    # Given a server with a request, whose message waits
    client = master.client()
    client.hset(keys.request_key("r"), "state", "waiting")
    file = AppendOnlyFile(client)
    file.mark()
    # When steps run
    run_steps(app, client)
    client.hset(keys.request_key("r"), "state", "done")
    # Then the file has what lasts, and of steps no more than pops of queues
    written = file.since_mark()
    assert written.pop("HSET request:r") > 0
    assert set(written) <= {"RPOP stage0.shard0", "RPOP stage0.shard1", "RPOP orchestrator"}
    # And a server that starts from it has the request alone
    assert client.exists(keys.chord_key(5, 1))
    master.stop()
    master.start()
    assert client.keys("*") == [keys.request_key("r").encode()]
    assert client.hget(keys.request_key("r"), "state") == b"done"
    client.close()


def test_a_replica_has_no_key_of_a_step(master: Server, app: SkynetCelery, tmp_path: Path) -> None:
    # Given a replica
    replica = Server(master.binary, tmp_path / "replica", f"replicaof 127.0.0.1 {master.port}")
    client, copy = master.client(), replica.client()
    wait_until("replica", lambda: copy.info("replication")["master_link_status"] == "up")
    # When a step is sent, then others run, then a request ends
    app.messenger.emit_chord(tiny_plan(1, 2), SpanMessage(5, 1, 0, 2, STEP * INLINE_BYTES))
    run_steps(app, client)
    app.messenger.emit_chord(tiny_plan(1, 2), SpanMessage(5, 4, 0, 2, STEP * INLINE_BYTES))
    client.set(keys.request_key("r"), "done")
    # Then the replica has the request alone, and the master the step too
    wait_until("request", lambda: copy.exists(keys.request_key("r")))
    assert copy.keys("*") == [keys.request_key("r").encode()]
    assert client.exists(keys.step_key(5, 4), keys.queue_key("stage0.shard0")) == 2
    for each in (client, copy):
        each.close()
    replica.stop()


def test_without_it_scripts_write_as_usual_and_status_tells(
    client: redis.Redis, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server whose scripts may keep writes out of its file
    reason = transient.PROPAGATED
    assert reason not in cluster_status(client, server.url)["unavailable"]
    # When it has no such function
    without = transient.TRANSIENT.replace("set_repl", "no_such_function")
    assert without != transient.TRANSIENT
    monkeypatch.setattr(transient, "TRANSIENT", without)
    # Then the status tells, and scripts write
    assert reason in cluster_status(client, server.url)["unavailable"]
    client.eval(f"{without} redis.call('SET', KEYS[1], 1)", 1, "a key")
    assert client.get("a key") == b"1"
