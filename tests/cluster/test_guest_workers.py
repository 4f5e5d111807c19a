"""Workers in an application's directory, and workers with an application's settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from processes import command, wait_for

from skynet.local.server import EmbeddedServer
from skynet.wire import keys

FOREIGN = 'raise RuntimeError("this is the module of another application")\n'


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """The directory of an application with a `tasks` package and a `celeryconfig`."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text(FOREIGN)
    (tmp_path / "celeryconfig.py").write_text('broker_url = "amqp://nobody@127.0.0.1:1//"\n')
    return tmp_path


@pytest.mark.parametrize("queue", ["stage0.shard0", "orchestrator"])
def test_a_worker_beside_other_tasks_and_settings_runs_those_of_skynet(
    queue: str, directory: Path, server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given a worker that was started there
    log, environment = directory / "log", {"SKYNET_REDIS_URL": server.url}
    words = ("celery", "-A", "skynet", "worker", "-Q", queue)
    # When it has started / Then it is a member, and none of the application's modules is imported
    with command(*words, environment=environment, log=log, cwd=directory) as worker:
        wait_for("a member", lambda: client.zcard(keys.members_key()) or worker.poll() is not None)
        assert worker.poll() is None, log.read_text()
    assert "another application" not in log.read_text()


def test_a_worker_with_another_pool_says_so_and_ends(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    # Given
    log, environment = tmp_path / "log", {"SKYNET_REDIS_URL": server.url}
    start = ("celery", "-A", "skynet", "worker", "-Q", "stage0.shard0", "-P", "threads")
    # When
    with command(*start, environment=environment, log=log, cwd=tmp_path) as worker:
        wait_for("the end", lambda: worker.poll() is not None)
    # Then
    assert "ConfigurationError: pool celery.concurrency.thread.TaskPool" in log.read_text()


def test_a_worker_with_another_broker_says_so_without_its_password(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    # Given a broker on the command line
    log, environment = tmp_path / "log", {"SKYNET_REDIS_URL": server.url}
    start = ("celery", "-A", "skynet", "-b", "redis://:hunter2@127.0.0.1:1/0", "worker")
    # When
    with command(*start, environment=environment, log=log, cwd=tmp_path) as worker:
        wait_for("the end", lambda: worker.poll() is not None)
    # Then
    text = log.read_text()
    assert "ConfigurationError: Celery setting broker_url is redis://:***@127.0.0.1:1/0" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("name", "value"), [("SKYNET_DEVICE", "cuda:63"), ("SKYNET_THREADS", "1000000")]
)
def test_a_worker_that_this_machine_cannot_run_says_so_and_never_joins(
    name: str, value: str, tmp_path: Path, server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given
    log, environment = tmp_path / "log", {"SKYNET_REDIS_URL": server.url, name: value}
    start = ("celery", "-A", "skynet", "worker")
    # When
    with command(*start, environment=environment, log=log, cwd=tmp_path) as worker:
        wait_for("the end", lambda: worker.poll() is not None)
    # Then
    assert worker.returncode == 1
    assert f"ConfigurationError: {name}={value}: " in log.read_text()
    assert client.zcard("skynet:members") == 0
