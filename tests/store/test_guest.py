"""SkyNet as a guest: an application's Celery app, settings, logging and signals stay its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from test_client_in_redis import CONFIG

from skynet.local.server import EmbeddedServer
from skynet.store.staging import StagingJob
from skynet.store.targets import Target, Targets
from skynet.store.weights import WeightStore
from skynet.wire import keys

# An application with tasks of all three kinds. `check` sends one of each to the application's
# broker, and compares everything that a library must not touch.
APPLICATION = """
import logging, threading, warnings
import celery, numpy, redis  # their own changes to warnings are not SkyNet's
from celery import Celery, shared_task, signals
from celery import _state

app = Celery("application", broker="memory://", backend="cache+memory://")
app.set_default()

@app.task
def send(address): ...

@shared_task
def shared(address): ...

class Report(app.Task):
    name = "application.report"
    def run(self, address): ...
app.register_task(Report())

def state():
    names = ("setup_logging", "celeryd_after_setup", "worker_ready", "worker_shutdown")
    return (
        [len(getattr(signals, name).receivers or ()) for name in names],
        list(logging.getLogger().handlers), logging.getLogger().level,
        list(warnings.filters), warnings.showwarning, _state.default_app,
        app.conf.broker_url, app.conf.result_backend, app.conf.task_serializer,
    )
before = state()

def check():
    assert celery.current_app._get_current_object() is app, celery.current_app
    for task in (send, shared, app.tasks["application.report"]):
        assert task.app._get_current_object() is app if hasattr(task.app, "_get_current_object") \\
            else task.app is app
        task.delay("a@example.org")
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("celery")
        received = [queue.get(timeout=5).headers["task"] for _ in range(3)]
        queue.close()
    assert [name.rpartition(".")[2] for name in received] == ["send", "shared", "report"], received
    assert state() == before, (state(), before)

def check_in_thread():
    failures = []
    def run():
        try:
            check()
        except BaseException as error:
            failures.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
"""
SUBMIT = "import skynet; skynet.submit_prompt([1, 2, 3], max_tokens=5)"
PROCESSES = {
    "plain": f"check()\n{SUBMIT}\ncheck()\ncheck_in_thread()",
    "import of the app": "import skynet.celery, skynet.tasks\ncheck()\ncheck_in_thread()",
    "submitted before": f"{SUBMIT}\ncheck()\ncheck_in_thread()",
    "submitted in a thread": f"""
def submit():
    {SUBMIT}
thread = threading.Thread(target=submit)
thread.start()
thread.join()
check()
check_in_thread()
""",
    "in an event loop": """
import asyncio, skynet
async def endpoint():
    generation = await asyncio.to_thread(skynet.submit_prompt, [1, 2, 3], max_tokens=5)
    check()
    await asyncio.to_thread(check)
    return generation
asyncio.run(endpoint())
check()
""",
}


@pytest.mark.parametrize("process", PROCESSES)
def test_an_application_keeps_its_celery(
    process: str, server: EmbeddedServer, client: redis.Redis, tmp_path: Path
) -> None:
    # Given a cluster with a target, and an application with Celery tasks
    WeightStore(client).stage(StagingJob("d", "tiny", CONFIG, {}, {}, None, 4096))  # type: ignore[arg-type]
    Targets(client).ask(Target("d", "tiny", "float32", "auto", num_slots=2, slot_tokens=64))
    # When it uses SkyNet
    done = subprocess.run(
        [sys.executable, "-c", APPLICATION + PROCESSES[process]],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, "SKYNET_REDIS_URL": server.url},
    )
    # Then its tasks go to its own broker, before and after
    assert done.returncode == 0, done.stderr
    # And only SkyNet's message, if one was sent, is in SkyNet's Redis
    num_sent = 0 if process == "import of the app" else 1
    assert client.llen(keys.queue_key(keys.ORCHESTRATOR_QUEUE)) == num_sent
    assert not client.exists("celery")
