"""The Celery app: its queues are places, its tasks are named, and its settings make hops cheap."""

from __future__ import annotations

import ast
import inspect
import logging
from pathlib import Path

import pytest
from kombu import Queue

from skynet import tasks
from skynet.celery import app
from skynet.chords.app import AddressQueues, configure_logging, place_of
from skynet.client.client import Client
from skynet.errors import ConfigurationError
from skynet.wire import keys
from skynet.wire.keys import Address

TASKS = {
    keys.GENERATE_TASK,
    keys.CANCEL_TASK,
    keys.RUN_SPAN_TASK,
    keys.ADVANCE_TASK,
    keys.FINISH_STEP_TASK,
    keys.FAIL_STEP_TASK,
}


def test_a_place_is_one_address_or_the_orchestrator() -> None:
    # Given what -Q gives Celery, a text or a list / Then it is a place
    assert place_of("stage0.shard1") == Address(0, 1)
    assert place_of(["stage12.shard30"]) == Address(12, 30)
    assert place_of("orchestrator") == "orchestrator"


@pytest.mark.parametrize("queues", [None, []])
def test_without_a_queue_a_worker_takes_any_place(queues: list[str] | None) -> None:
    # Given no -Q / Then there is no place that the worker is bound to
    assert place_of(queues) is None


@pytest.mark.parametrize(
    "queues",
    ["", "celery", "stage0", "a,b", "stage0.shard0,orchestrator", "stage-1.shard0"],
)
def test_other_names_are_no_place(queues: str | list[str]) -> None:
    # When / Then
    with pytest.raises(ConfigurationError, match=r"-Q stage0\.shard1"):
        place_of(queues)


def test_queues_are_declared_by_the_pattern_of_addresses() -> None:
    # Given no declared queue
    queues = AddressQueues({})
    # When an address is looked up
    queue = queues["stage3.shard4"]
    # Then it is a direct queue of that name; a typo is an error
    assert isinstance(queue, Queue)
    assert (queue.name, queue.routing_key, queue.exchange.name) == (
        "stage3.shard4",
        "stage3.shard4",
        "",
    )
    assert queues["orchestrator"].name == "orchestrator"
    with pytest.raises(ConfigurationError, match=r"'stage3\.shrad4' is not a queue"):
        queues["stage3.shrad4"]


def test_nothing_is_sent_to_a_queue_that_is_no_place() -> None:
    # When a message is sent to a typo / Then it is refused before Redis is asked
    with pytest.raises(ConfigurationError, match=r"'stage0\.shrad1' is not a queue"):
        app.send_task(keys.CANCEL_TASK, ("id",), queue="stage0.shrad1")


def test_all_tasks_are_there_by_their_names() -> None:
    # Given the app with its tasks / Then they are those of names.py, and no result is stored twice
    app.loader.import_default_modules()
    skynet_tasks = {name: task for name, task in app.tasks.items() if name.startswith("skynet.")}
    assert set(skynet_tasks) == TASKS
    assert {name for name, task in skynet_tasks.items() if not task.ignore_result} == {
        keys.GENERATE_TASK
    }
    assert skynet_tasks[keys.GENERATE_TASK].send_events
    assert not skynet_tasks[keys.CANCEL_TASK].send_events


def test_a_task_is_short() -> None:
    # Given the bodies of all tasks / Then each is ten lines or fewer
    for module in (tasks.orchestrator, tasks.shard):
        for name, task in vars(module).items():
            if name.startswith("_") or not hasattr(task, "run"):
                continue
            (function,) = ast.parse(inspect.getsource(task.run)).body
            assert isinstance(function, ast.FunctionDef)
            last = function.body[-1].end_lineno or 0
            assert last - function.body[0].lineno < 10, name


def test_settings_of_the_celery_app() -> None:
    # Given the app's configuration
    conf = app.conf
    # Then hops are at most once, in one BRPOP, with a deadline, and never a pickle
    assert conf.broker_transport_options["ack_emulation"] is False
    assert conf.broker_transport_options["priority_steps"] == [0]
    assert conf.broker_transport_options["socket_timeout"] > 0
    assert (conf.worker_pool, conf.worker_concurrency) == ("solo", 1)
    assert conf.task_create_missing_queues is False
    assert set(conf.accept_content) == {"json", keys.SERIALIZER}
    assert conf.task_send_sent_event is False


def test_two_clients_talk_to_two_clusters(tmp_path: Path) -> None:
    # Given clients of two servers / When their apps are made
    first, second = Client(f"unix://{tmp_path}/a"), Client("redis://127.0.0.1:1/0")
    # Then each app differs, and the process's app stays as it was
    assert first.app.conf.broker_url == f"redis+socket://{tmp_path}/a"
    assert first.app.backend.as_uri() == f"unix://{tmp_path}/a"
    assert second.app.conf.broker_url == "redis://127.0.0.1:1/0"
    assert app.conf.broker_url not in (first.app.conf.broker_url, second.app.conf.broker_url)
    for client in (first, second):
        client.close()


def test_log_lines_have_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    # Given logging as a worker has it
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        configure_logging("INFO")
        # When something is logged
        logging.getLogger("skynet.test").info("step %d", 5)
        logging.getLogger("celery.test").info("not for people")
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level = before
    # Then it is one line, with its level and place, and other libraries' chatter is not there
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert " INFO    - step 5" in lines[0]
