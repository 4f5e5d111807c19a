"""What a starting worker verifies: its tasks, pool and settings are SkyNet's.

A worker with others would take a place and drop every step.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from skynet.chords import config
from skynet.errors import ClusterUnreachable, ConfigurationError
from skynet.redis_url import hide_password
from skynet.store.connection import ping
from skynet.wire import keys


def check_worker(worker: Any) -> None:
    """`worker`: Celery's, set up and not started.

    Raises:
        ConfigurationError: names the task, pool or setting, and what it is instead.
    """
    _check_tasks(worker.app)
    _check_pool(worker.pool_cls)
    _check_settings(worker.app.conf)
    check_server()


def check_server() -> None:
    """A server that answers must have the database; for one that is away a worker waits.

    Raises:
        ConfigurationError: names the database.
    """
    with suppress(ClusterUnreachable):
        ping()


def _check_tasks(app: Any) -> None:
    for name in keys.TASKS:
        task = app.tasks.get(name)
        module = "nothing" if task is None else task.run.__module__
        if not module.startswith("skynet.tasks."):
            raise ConfigurationError(
                f"task {name} is registered by {module}, not by skynet.tasks: another package "
                "stands in for SkyNet's; look at PYTHONPATH and at the directory the worker was "
                "started in"
            )


def _check_pool(pool: Any) -> None:
    name = f"{pool.__module__}.{pool.__qualname__}"
    if not pool.__module__.startswith("celery.concurrency.solo"):
        raise ConfigurationError(
            f"pool {name}: a SkyNet worker computes in its main process, which holds the weights; "
            "start it without --pool, and start more workers instead"
        )


def _check_settings(conf: Any) -> None:
    for name, value in _settings().items():
        actual = getattr(conf, name)  # environment variables of Celery's included
        if actual != value:
            raise ConfigurationError(
                f"Celery setting {name} is {_shown(actual)}, SkyNet's is {_shown(value)}: it was "
                "changed by a command-line option or an environment variable of Celery's; "
                "SKYNET_REDIS_URL names the Redis server, `skynet worker --help` the rest"
            )


def _settings() -> dict[str, Any]:
    """Those of SkyNet, by name."""
    public = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    return {name: value for name, value in public.items() if name.islower() and not callable(value)}


def _shown(value: Any) -> str:
    return hide_password(value) if isinstance(value, str) else repr(value)
