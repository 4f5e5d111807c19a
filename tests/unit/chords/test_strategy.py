"""Messages of steps are run directly; whatever needs Celery's own way gets it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from celery import Celery, signals
from celery.exceptions import Ignore
from celery.worker import state, strategy

from skynet.chords.strategy import DIRECT, direct
from skynet.errors import PeerLost

HEADERS = {"task": "span", "id": "an id", "group": "5.7.0", "group_index": 1, "ignore_result": True}
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": {"task": "body"}}
ARGS = [5, 7]

Change = Callable[["Worker"], object]


class Worker:
    """A worker's handler of one task, and what it did: "ack", "run", part-returns, Celery's way."""

    def __init__(self, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[Any] = []
        self.result: Any = "a part"
        worker = self

        @app.task(name="span", bind=True, ignore_result=True, shared=False, Strategy=DIRECT)
        def span(self: Any, *args: Any) -> Any:
            request = self.request
            worker.done.append(("run", args, request.group, request.group_index))
            assert request.delivery_info["routing_key"] == "stage0.shard1"
            if isinstance(worker.result, BaseException):
                raise worker.result
            return worker.result

        def part_return(request: Any, state: str, result: Any, **_: Any) -> None:
            self.done.append((state, result, request.chord))

        self.task = span
        monkeypatch.setattr(type(span.backend), "on_chord_part_return", staticmethod(part_return))
        monkeypatch.setattr(strategy, "default", lambda *_: self.celerys_way)
        self.consumer = MagicMock(hostname="a worker", disable_rate_limits=False)
        self.consumer.event_dispatcher.enabled = True
        self.consumer.task_buckets = {"span": None}
        self.headers = dict(HEADERS)
        self.payload: Any = [list(ARGS), {}, dict(EMBED)]
        self.body: Any = None
        self.callbacks: list[Any] = []
        span.send_events = False

    def celerys_way(self, *_: Any) -> None:
        self.done.append("celery")

    def receive(self) -> list[Any]:
        """Handle a message; what was done."""
        message = SimpleNamespace(
            headers=self.headers,
            payload=self.payload,
            delivery_info={"exchange": "", "routing_key": "stage0.shard1"},
        )
        handler = self.task.start_strategy(self.task.app, self.consumer)
        handler(message, self.body, lambda *_: self.done.append("ack"), None, self.callbacks)
        done, self.done = self.done, []
        return done


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    app = Celery("tests", backend="cache+memory://", set_as_current=False)
    for name in ("celery.worker.strategy", "celery.app.trace"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.WARNING)
        logging.getLogger(name)._cache.clear()  # type: ignore[attr-defined]
    yield Worker(app, monkeypatch)
    app.close()


RUN = ("run", tuple(ARGS), "5.7.0", 1)


def test_a_part_is_acknowledged_run_and_returned(worker: Worker) -> None:
    # Given the counters that `celery inspect stats` shows
    before, total = state.total_count["span"], state.all_total_count[0]
    # When a message comes
    done = worker.receive()
    # Then its part is returned to its chord, and it is counted
    assert done == ["ack", RUN, ("SUCCESS", "a part", EMBED["chord"])]
    assert (state.total_count["span"], state.all_total_count[0]) == (before + 1, total + 1)
    assert worker.task.request_stack.top is None


def test_a_failure_is_returned_and_logged(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    # Given a shard that fails / When a message comes
    worker.result = PeerLost("stage0.shard0 is gone")
    done = worker.receive()
    # Then its chord is told
    assert done == ["ack", RUN, ("FAILURE", worker.result, EMBED["chord"])]
    assert "stage0.shard0 is gone" in caplog.text
    # And the next message is handled as any other
    worker.result = "a part"
    assert worker.receive()[2][0] == "SUCCESS"


def test_a_stale_message_returns_no_part(worker: Worker) -> None:
    worker.result = Ignore("stale")
    assert worker.receive() == ["ack", RUN]


def test_a_backend_that_fails_ends_no_worker(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a backend that can report neither success nor failure
    def broken(*_: Any, **__: Any) -> None:
        raise LookupError("no backend")

    monkeypatch.setattr(type(worker.task.backend), "on_chord_part_return", broken)
    # When a part comes / Then an error is logged
    assert worker.receive() == ["ack", RUN]
    assert "could not be reported: no backend" in caplog.text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError])
def test_the_end_of_the_worker_is_no_failed_part(
    worker: Worker, error: type[BaseException]
) -> None:
    worker.result = error()
    with pytest.raises(error):
        worker.receive()
    assert worker.done == ["ack", RUN]
    assert worker.task.request_stack.top is None


def _with_events(worker: Worker) -> None:
    worker.task.send_events = True


CELERYS: dict[str, Change] = {
    "events": _with_events,
    "eta": lambda worker: worker.headers.update(eta="2030-01-01T00:00:00"),
    "expires": lambda worker: worker.headers.update(expires="2030-01-01T00:00:00"),
    "revoked": lambda worker: worker.headers.update(id="a revoked id"),
    "callbacks": lambda worker: worker.payload[2].update(callbacks=[{"task": "x"}]),
    "a result to keep": lambda worker: worker.headers.update(ignore_result=False),
    "protocol 1": lambda worker: setattr(worker, "body", {"args": []}),
    "another payload": lambda worker: setattr(worker, "payload", {"args": []}),
    "arguments of another type": lambda worker: worker.payload.__setitem__(0, 5),
    "Celery's callbacks": lambda worker: worker.callbacks.append(print),
    "a rate limit": lambda worker: worker.consumer.task_buckets.update(span=object()),
}


@pytest.mark.parametrize("name", CELERYS)
def test_what_needs_celerys_own_way_gets_it(
    worker: Worker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker or a message with something special
    monkeypatch.setattr(state, "revoked", {"a revoked id"})
    CELERYS[name](worker)
    # When the message comes / Then it is handled by Celery's strategy, and by it alone
    assert worker.receive() == ["celery"]


def test_no_events_are_sent_while_nobody_listens(worker: Worker) -> None:
    # Given a traced task
    worker.task.send_events = True
    # When events are off in this worker / Then messages are run directly
    worker.consumer.event_dispatcher.enabled = False
    assert worker.receive()[1] == RUN
    # When Flower switches them on / Then Celery's way sends them
    worker.consumer.event_dispatcher.enabled = True
    assert worker.receive() == ["celery"]


@pytest.mark.parametrize("signal", ["task_received", "task_prerun", "task_postrun", "task_success"])
def test_receivers_of_signals_get_them(worker: Worker, signal: str) -> None:
    def receiver(**_: Any) -> None: ...

    getattr(signals, signal).connect(receiver)
    try:
        assert worker.receive() == ["celery"]
    finally:
        getattr(signals, signal).disconnect(receiver)
    assert worker.receive()[1] == RUN


@pytest.mark.parametrize("name", ["celery.worker.strategy", "celery.app.trace"])
def test_a_log_of_every_task_is_celerys(worker: Worker, name: str) -> None:
    log = logging.getLogger(name)
    log.setLevel(logging.INFO)
    assert worker.receive() == ["celery"]
    log.setLevel(logging.WARNING)
    assert worker.receive()[1] == RUN


def test_tasks_of_steps_are_run_directly() -> None:
    from skynet.tasks import orchestrator, shard

    for task in (shard.run_span, orchestrator.finish_step, orchestrator.fail_step):
        assert task.Strategy == DIRECT
    for task in (orchestrator.generate, orchestrator.cancel):
        assert task.Strategy != DIRECT
    assert direct.__module__ + ":" + direct.__name__ == DIRECT
