"""Tasks of a shard worker. With SKYNET_TRACE=1 Flower shows each of them."""

from typing import Any

from skynet.celery import app
from skynet.chords.strategy import DIRECT
from skynet.errors import StepFailed, WireError
from skynet.settings import settings
from skynet.wire import keys
from skynet.wire.step import Part, SpanMessage


@app.task(
    name=keys.RUN_SPAN_TASK,
    bind=True,
    ignore_result=True,
    throws=(StepFailed, WireError),
    send_events=settings().trace,
    Strategy=DIRECT,
)
def run_span(self: Any, *span: Any) -> Part:
    """Compute this shard's part of a `SpanMessage`: a chord's header task."""
    return app.runtime.spans.run(self.request, SpanMessage(*span))


@app.task(
    name=keys.ADVANCE_TASK,
    ignore_result=True,
    throws=(StepFailed, WireError),
    send_events=settings().trace,
)
def advance(
    parts: list[bytes], epoch: int, step: int, layer: int, spent_s: float = 0.0, plan_id: str = ""
) -> None:
    """Sum the parts and send the chord of the span that starts at `layer`: a chord's body."""
    span = SpanMessage(epoch, step, layer, layer, plan_id=plan_id)
    app.runtime.spans.advance(parts, span, spent_s)
