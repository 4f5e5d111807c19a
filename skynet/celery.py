"""Composition root of `celery -A skynet worker`: the Celery app, its runtime, its signals."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from celery import signals

from skynet.chords.app import SkynetCelery, configure_logging
from skynet.chords.worker_check import check_worker
from skynet.errors import SkynetError
from skynet.settings import settings
from skynet.settings_sources import CONFIG_VARIABLE, FILE_NAME
from skynet.store.access import check_access
from skynet.store.connection import connect
from skynet.store.transient import PROPAGATED, keeps_transient
from skynet.wire.keys import ORCHESTRATOR_QUEUE

logger = logging.getLogger(__name__)

ACCESS_S = 5.0  # for Redis to tell which commands it refuses
LEFT_S = 0.05  # between checks whether the runtime has handed over


def _setup_logging(loglevel: Any = None, **_: Any) -> None:
    asked = loglevel if isinstance(loglevel, int) else logging.WARNING
    configured = logging.getLevelNamesMapping()[settings().log_level]
    configure_logging(min(asked, configured))
    if CONFIG_VARIABLE not in os.environ and Path(FILE_NAME).is_file():
        logger.warning(
            "%s of this directory is not read: set %s=%s, or start the worker with `skynet worker`",
            FILE_NAME,
            CONFIG_VARIABLE,
            FILE_NAME,
        )


def _start(sender: str, instance: Any, **_: Any) -> None:
    """Start the runtime that belongs to the worker's queue."""
    try:
        check_worker(instance)
        _check_access()
        if instance.place == ORCHESTRATOR_QUEUE:
            from skynet.orchestrator.runtime import OrchestratorRuntime

            app.runtime = OrchestratorRuntime(app, sender)
        else:
            from skynet.worker.machine_check import check_machine
            from skynet.worker.runtime import ShardRuntime

            check_machine(settings())
            app.runtime = ShardRuntime(app, instance.place, sender)
        app.runtime.start()
    except SkynetError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _check_access() -> None:
    """Refuse to start if Redis refuses a command: the worker would take a place and drop steps."""
    with suppress(redis.ConnectionError, redis.TimeoutError), connect(timeout_s=ACCESS_S) as client:
        check_access(client)
        if not keeps_transient(client):
            logger.warning("not available: %s", PROPAGATED)


def _ready(sender: Any, **_: Any) -> None:
    app.runtime.ready(sender)
    for number in (signal.SIGTERM, signal.SIGINT):
        _leave_politely(sender, number)


def _leave_politely(consumer: Any, number: signal.Signals) -> None:
    """Hand the place over before Celery's warm shutdown; a second signal skips the handover."""
    shut_down: Any = signal.getsignal(number)
    asked = ended = False

    def leave(*args: Any) -> None:
        nonlocal asked
        # Without a connection to Redis Celery's timers do not run, and no handover is possible.
        if asked or consumer.connection is None:
            shut_down(*args)
            return
        asked = True
        app.runtime.leave()
        consumer.timer.call_repeatedly(LEFT_S, end_when_left)

    def end_when_left() -> None:
        nonlocal ended
        if app.runtime.left and not ended:
            ended = True
            shut_down(number, None)

    signal.signal(number, leave)


def _stop(**_: Any) -> None:
    if app.runtime is not None:
        app.runtime.stop()


def _connect_signals() -> None:
    """Signals are global to a process: an application that only imports this has none of them."""
    signals.setup_logging.connect(_setup_logging)
    signals.celeryd_after_setup.connect(_start)
    signals.worker_ready.connect(_ready)
    signals.worker_shutdown.connect(_stop)


app = SkynetCelery("skynet")
app.worker_starting = _connect_signals
