"""The Celery app of SkyNet: its queues are addresses, each of its workers has one place.

`-Q stage0.shard1` starts a shard worker for this place only, `-Q orchestrator` an orchestrator;
without `-Q` a shard worker takes any place. Other queue names are refused. A worker consumes no
queue until it has its place: by the plan, or as the leader.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP, Queues
from celery.apps.worker import Worker
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from kombu import Exchange, Queue

from skynet.chords.broker import CheckedConnection
from skynet.chords.messenger import Messenger
from skynet.errors import ConfigurationError
from skynet.settings import settings
from skynet.store.resp import RespConnection
from skynet.wire.keys import ORCHESTRATOR_QUEUE, Address

logger = logging.getLogger(__name__)

CONFIG = "skynet.chords.config"
RETRY_S, MAX_RETRY_S = 0.2, 1.0
LOG_FORMAT = "%(asctime)s %(levelname)-7s %(place)s %(message)s"


class AddressQueues(Queues):
    """Declares queues whose names are addresses; any other name is an error."""

    def __missing__(self, name: str) -> Queue:
        if name != ORCHESTRATOR_QUEUE:
            Address.parse(name)
        return self.add(Queue(name, Exchange(""), routing_key=name))


class AddressAMQP(AMQP):
    """Celery's AMQP helpers with AddressQueues and CheckedConnection."""

    Connection = CheckedConnection

    def Queues(self, queues: Any, *args: Any, **kwargs: Any) -> AddressQueues:
        return AddressQueues(queues)


class PatientConsumer(Consumer):
    """Celery's consumer; waits for Redis for as long as it takes and reconnects soon."""

    def ensure_connected(self, conn: Any) -> Any:
        def warn(error: Exception, interval: float) -> None:
            logger.warning("no connection to Redis: %s", error)

        connected = conn.ensure_connection(
            warn, None, RETRY_S, RETRY_S, MAX_RETRY_S, callback=maybe_shutdown
        )
        self.first_connection_attempt = False
        return connected


class PlacedWorker(Worker):
    """A Celery worker for one place, named after it, without gossip."""

    def __init__(self, app: Celery | None = None, hostname: str | None = None, **kwargs: Any):
        (app or self.app).worker_starting()
        try:
            place = place_of(kwargs.get("queues"))
        except ConfigurationError as error:
            sys.exit(f"ConfigurationError: {error}")
        default_name = f"celery@{socket.gethostname()}"
        if hostname is None or hostname == default_name:
            hostname = f"{place or f'worker-{os.getpid()}'}@{socket.gethostname()}"
        kwargs.update(without_gossip=True, without_mingle=True)
        self.place = place
        _log_filter.place = str(place or f"worker-{os.getpid()}")
        super().__init__(app, hostname=hostname, **kwargs)

    def setup_queues(self, include: Any, exclude: Any = None) -> None:
        """Declare the place's queue, but do not consume it yet."""
        queues = self.app.amqp.queues
        queues.select([str(self.place or ORCHESTRATOR_QUEUE)])
        queues.deselect(list(queues))


class SkynetCelery(Celery):
    """The app. Never the current or the default app of a process that is not a SkyNet worker.

    runtime: this process's ShardRuntime or OrchestratorRuntime, once started.
    worker_starting: called before a worker of this app is made.
    """

    runtime: Any = None
    worker_starting: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, name: str, **options: Any) -> None:
        options = {"amqp": AddressAMQP, "config_source": CONFIG, **options}
        super().__init__(name, set_as_current=False, **options)

    @cached_property
    def Worker(self) -> type[PlacedWorker]:
        return self.subclass_with_self(PlacedWorker)

    @cached_property
    def messenger(self) -> Messenger:
        current = settings()
        spin_s = current.exchange_spin_us * 1e-6
        connection = RespConnection(current.redis_url, timeout_s=30, spin_s=spin_s)
        return Messenger(self, connection, current.step_timeout_s)


def place_of(queues: Any) -> Address | str | None:
    """The place named by `-Q`: an address or the orchestrator; None: any address.

    Raises:
        ConfigurationError: several queues, or a queue that is not SkyNet's.
    """
    chosen = queues.split(",") if isinstance(queues, str) else list(queues or [])
    if not chosen:
        return None
    if len(chosen) != 1:
        raise ConfigurationError(
            f"a SkyNet worker has one place, got {', '.join(chosen)}: use -Q stage0.shard1 (any "
            f"numbers), -Q {ORCHESTRATOR_QUEUE}, or no -Q for any place that needs a worker"
        )
    name = chosen[0].strip()
    return name if name == ORCHESTRATOR_QUEUE else Address.parse(name)


class _PlaceFilter(logging.Filter):
    place = "-"

    def filter(self, record: logging.LogRecord) -> bool:
        record.place = self.place
        return True


_log_filter = _PlaceFilter()


def configure_logging(level: int | str) -> None:
    """Log to stderr, one line for each message, with the process's place."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    handler.addFilter(_log_filter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("skynet").setLevel(level)
    logging.captureWarnings(True)
    # Celery warns at every lost connection about a setting that config.py sets on purpose.
    warnings.filterwarnings("ignore", "\nIn Celery 5.1", CPendingDeprecationWarning)
