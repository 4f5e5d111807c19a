"""Composition root of `celery -A skynet worker`: the Celery app, its runtime, its signals."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Any

from celery import signals

from skynet.chords.app import SkynetCelery, configure_logging
from skynet.chords.worker_check import check_worker
from skynet.errors import SkynetError
from skynet.settings import settings
from skynet.wire.keys import ORCHESTRATOR_QUEUE

LEFT_S = 0.05  # between checks whether the runtime has handed over


def _setup_logging(loglevel: Any = None, **_: Any) -> None:
    asked = loglevel if isinstance(loglevel, int) else logging.WARNING
    configured = logging.getLevelNamesMapping()[settings().log_level]
    configure_logging(min(asked, configured))


def _start(sender: str, instance: Any, **_: Any) -> None:
    """Start the runtime that belongs to the worker's queue."""
    try:
        check_worker(instance)
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
