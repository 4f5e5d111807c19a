"""`/metrics`: the numbers of this gateway process. Counts; does not know what is served."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skynet import __version__
from skynet.gateway.middleware.http import HttpMiddleware
from skynet.store.metric_table import BY_NAME, PREFIX

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
NO_ROUTE, OTHER_METHOD = "unmatched", "OTHER"
NO_RESPONSE = "499"  # the client left before the response began
REASONS = ("queue_full", "draining", "no_plan", "rate_limit")


class GatewayMetrics:
    """Counters in a registry of their own; `wrap` an application to count its requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._made(Counter, "http_requests")
        duration = BY_NAME["http_request_duration_seconds"]
        self._duration = self._made(Histogram, duration.name, buckets=duration.buckets)
        self._streams = self._made(Gauge, "http_streams_open")
        self._rejections = self._made(Counter, "admission_rejections")
        for reason in REASONS:
            self._rejections.labels(reason)  # 0 from the start, so that a rate sees the first one
        self._made(Gauge, "build_info").labels(__version__).set(1)

    def _made(self, kind: Any, name: str, **options: Any) -> Any:
        metric = BY_NAME[name]
        return kind(PREFIX + name, metric.help, metric.labels, registry=self.registry, **options)

    def rejected(self, reason: str) -> None:
        """A request was not admitted.

        reason: of REASONS.
        """
        if reason not in REASONS:
            raise ValueError(f"reason {reason!r}: use one of {', '.join(REASONS)}")
        self._rejections.labels(reason).inc()

    def exposition(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application, counted; for `app.add_middleware` use `CountRequests`."""
        return CountRequests(app, self)

    def ended(self, scope: Scope, status: str, seconds: float) -> None:
        """A request has ended."""
        path, method = route_of(scope), scope["method"]
        named = method if method in METHODS else OTHER_METHOD
        self._requests.labels(path, named, status).inc()
        self._duration.labels(path).observe(seconds)

    def stream_opened(self) -> None:
        self._streams.inc()

    def stream_closed(self) -> None:
        self._streams.dec()


class CountRequests(HttpMiddleware):
    """Pure ASGI middleware: responses pass unchanged, also streams, chunk by chunk."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        super().__init__(app)
        self.metrics = metrics

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status, is_stream = time.perf_counter(), NO_RESPONSE, False

        async def counted(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = str(message["status"])
                is_stream = _is_event_stream(message)
                if is_stream:
                    self.metrics.stream_opened()
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            if status == NO_RESPONSE:
                status = "500"  # the server answers so
            raise
        finally:
            if is_stream:
                self.metrics.stream_closed()
            self.metrics.ended(scope, status, time.perf_counter() - started)


def route_of(scope: Scope) -> str:
    """The route's template, such as `/v1/models/{model}`: clients choose paths, not templates."""
    template = getattr(scope.get("route"), "path", None)
    return template if isinstance(template, str) else NO_ROUTE


def _is_event_stream(message: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in message.get("headers", ())
    )
