"""Tasks of a shard worker. With SKYNET_TRACE=1 Flower shows each of them."""

from typing import Any

from skynet.celery import app
from skynet.errors import StepFailed
from skynet.settings import settings
from skynet.wire import keys
from skynet.wire.step import Part, SpanMessage


@app.task(
    name=keys.RUN_SPAN_TASK,
    bind=True,
    ignore_result=True,
    throws=(StepFailed,),
    send_events=settings().trace,
)
def run_span(
    self: Any,
    epoch: int,
    step: int,
    start: int,
    stop: int,
    rows: bytes | None = None,
    hidden: bytes | None = None,
) -> Part:
    """Compute this shard's part of layers [start, stop) of a step: a chord's header task."""
    span = SpanMessage(epoch, step, start, stop, rows, hidden)
    return app.runtime.spans.run(self.request, span)


@app.task(
    name=keys.ADVANCE_TASK, ignore_result=True, throws=(StepFailed,), send_events=settings().trace
)
def advance(parts: list[bytes], epoch: int, step: int, layer: int, spent_s: float = 0.0) -> None:
    """Sum the parts and send the chord of the span that starts at `layer`: a chord's body."""
    app.runtime.spans.advance(parts, epoch, step, layer, spent_s)
