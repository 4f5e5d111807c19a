"""Connections and stores that all parts of an orchestrator process share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from skynet.orchestrator.answers import Answers
from skynet.orchestrator.metrics import ClusterMetrics
from skynet.orchestrator.request_spans import RequestSpans
from skynet.settings import settings
from skynet.store.connection import connect
from skynet.store.events import Events
from skynet.store.plans import Plans
from skynet.store.requests import Requests
from skynet.store.targets import Targets
from skynet.tracing import tracer_provider

if TYPE_CHECKING:
    from skynet.chords.app import SkynetCelery

logger = logging.getLogger(__name__)


class Context:
    """Stores on one Redis connection.

    fence: of the leadership that the main thread works under; "" on standby.
    redis_away: a command failed since Redis last answered a ping.
    """

    def __init__(self, app: SkynetCelery) -> None:
        self.app = app
        self.fence = ""
        self.redis_away = False
        self.client = connect()
        self.plans = Plans(self.client)
        self.targets = Targets(self.client)
        self.events = Events(self.client)
        self.requests = Requests(self.client, settings().result_expires_s, lambda: self.fence)
        self.metrics = ClusterMetrics(self.client)
        self.spans = RequestSpans(tracer_provider("skynet-orchestrator"))
        self.answers = Answers(app, self.requests, self.metrics, self.spans)

    def tell(self, kind: str, text: str, seconds: float = 0.0) -> None:
        """Log an event, here and in Redis for `skynet status`."""
        level = logging.WARNING if kind in ("lost", "redis") else logging.INFO
        logger.log(level, "%s: %s%s", kind, text, f" ({seconds:.2f} s)" if seconds else "")
        self.events.add(kind, text, seconds)
