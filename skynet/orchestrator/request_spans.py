"""One OpenTelemetry span for each request that ends. It has no prompt, answer or error message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skynet.engine.timings import Timings
from skynet.request.record import End, Record
from skynet.request.task_names import GENERATE
from skynet.store.targets import Target

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

# OpenTelemetry's names; other tasks have none.
OPERATIONS = {GENERATE: "text_completion", "embed": "embeddings"}


class RequestSpans:
    """The spans of the requests that this orchestrator ends.

    provider: None: there are none.
    serving: the target and the plan's epoch; set by the leader.
    """

    def __init__(self, provider: TracerProvider | None) -> None:
        self.provider = provider
        self.serving: Callable[[], tuple[Target | None, int]] = lambda: (None, 0)

    def ended(self, record: Record, timings: Timings, num_tokens: int, end: End) -> None:
        """Export the span of a request whose end is written. Never fails."""
        if self.provider is None:
            return
        try:
            self._export(record, timings, num_tokens, end)
        except Exception as error:  # of the SDK: the answer matters more
            logger.warning("request %s has no span: %s: %s", record.id, type(error).__name__, error)

    def _export(self, record: Record, timings: Timings, num_tokens: int, end: End) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        assert self.provider is not None
        attributes = self._attributes(record, num_tokens, end)
        # A context of its own: the host application's current span is no parent.
        parent = TraceContextTextMapPropagator().extract(
            {"traceparent": record.traceparent}, Context()
        )
        span = self.provider.get_tracer("skynet").start_span(
            f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}",
            parent,
            SpanKind.CONSUMER,
            attributes,
            start_time=_nanoseconds(record.created),
        )
        events = ("admitted", timings.started_at), ("first_token", timings.first_token_at)
        for name, at in events:
            if at:
                span.add_event(name, timestamp=_nanoseconds(at))
        if end.error:
            span.set_attribute("error.type", end.error)
            span.set_status(Status(StatusCode.ERROR, end.error))
        span.end(_nanoseconds(timings.clock()))

    def _attributes(self, record: Record, num_tokens: int, end: End) -> dict[str, Any]:
        target, epoch = self.serving()
        is_served = target is not None and record.model in ("", target.model)
        options, model = record.options, target.name if target and is_served else record.model
        task = GENERATE if options.read is None else str(options.read.get("task"))
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": OPERATIONS.get(task, task),
            "gen_ai.provider.name": "skynet",
            "gen_ai.request.model": model,
            "gen_ai.response.id": record.id,
            "gen_ai.usage.input_tokens": len(record.prompt),
            "gen_ai.usage.cache_read.input_tokens": end.cached_tokens,
            "skynet.epoch": epoch,
        }
        if task == GENERATE:
            attributes["gen_ai.request.max_tokens"] = options.max_tokens
            attributes["gen_ai.request.temperature"] = options.temperature
            attributes["gen_ai.usage.output_tokens"] = num_tokens
        if end.finish_reason:
            attributes["gen_ai.response.finish_reasons"] = [end.finish_reason]
        return attributes


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
