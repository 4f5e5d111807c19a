"""The span that a request belongs to: its form, its way through the record, what is dropped."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from skynet.client.arguments import Arguments
from skynet.request.record import Options, Record
from skynet.tracing import valid_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


def stored(record: Record) -> dict[bytes, bytes]:
    """The fields as Redis returns them."""
    values = {n: v if isinstance(v, bytes) else str(v) for n, v in record.fields().items()}
    values["arrival"] = "0"
    return {n.encode(): v if isinstance(v, bytes) else v.encode() for n, v in values.items()}


def test_a_record_keeps_the_span_and_an_old_record_has_none() -> None:
    # Given
    record = Record("r", (1, 2), Options(), 1.0, 2.0, traceparent=TRACEPARENT)
    fields = stored(record)
    # Then
    assert Record.from_fields("r", fields) == record
    # When the record is an older client's
    del fields[b"traceparent"]
    assert Record.from_fields("r", fields).traceparent == ""
    # Or holds something else
    for wrong in (b"\xff" * 55, b"x" * 10**6, TRACEPARENT.encode() + b"\n"):
        assert Record.from_fields("r", {**fields, b"traceparent": wrong}).traceparent == ""


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        7,
        "",
        TRACEPARENT.upper(),
        TRACEPARENT + "-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f" {TRACEPARENT}",
    ],
)
def test_what_is_no_span_is_dropped(wrong: Any) -> None:
    assert valid_traceparent(wrong) == ""
    assert valid_traceparent(TRACEPARENT) == TRACEPARENT


def test_a_request_belongs_to_the_span_that_is_given_or_else_to_the_current_one() -> None:
    # Given
    trace = pytest.importorskip("opentelemetry.trace", reason="opentelemetry-api is not installed")
    arguments = Arguments.checked("generate", 1, True, 5)
    context = trace.SpanContext(int(TRACE, 16), int(SPAN, 16), False, trace.TraceFlags(1))
    # Then without a span there is none
    assert arguments.in_trace(None).traceparent == ""
    # When one is current
    with trace.use_span(trace.NonRecordingSpan(context)):
        assert arguments.in_trace(None).traceparent == TRACEPARENT
        # Then a given one goes first, even if it is dropped
        other = f"00-{TRACE}-{'1' * 16}-00"
        assert arguments.in_trace(other).traceparent == other
        assert arguments.in_trace("nonsense").traceparent == ""


def test_opentelemetry_is_not_imported_without_need() -> None:
    code = (
        "import sys; from skynet.tracing import current_traceparent, tracer_provider; "
        "print(repr(current_traceparent()), tracer_provider('skynet-test'), "
        "[name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "'' None []\n"
