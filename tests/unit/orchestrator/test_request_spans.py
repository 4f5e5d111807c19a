"""The span of a request that ends, and the provider that exports it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from skynet.engine.timings import Timings
from skynet.orchestrator.request_spans import RequestSpans
from skynet.request.record import End, Options, Record
from skynet.store.targets import Target
from skynet.tracing import ON, PROTOCOLS, tracer_provider

sdk = pytest.importorskip(
    "opentelemetry.sdk.trace", reason="needs opentelemetry-sdk: pip install 'skynet-celery[otel]'"
)
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
trace = pytest.importorskip("opentelemetry.trace")

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TARGET = Target("d", "tiny", "float32", "auto", 8, 64, 2, 2)
PROMPT = (41, 42, 43)


@pytest.fixture
def exporter() -> Any:
    return memory.InMemorySpanExporter()


@pytest.fixture
def spans(exporter: Any) -> RequestSpans:
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    spans = RequestSpans(provider)
    spans.serving = lambda: (TARGET, 7)
    return spans


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ON, *PROTOCOLS, "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


def record_of(flags: str = "01", **fields: Any) -> Record:
    options = Options(max_tokens=9, temperature=0.5)
    values = {"options": options, "traceparent": f"00-{TRACE}-{SPAN}-{flags}", "model": "d"}
    return Record("r1", PROMPT, created=100.0, deadline=200.0, **{**values, **fields})


def timings_of(now: float = 103.5) -> Timings:
    return Timings(lambda: now, 100.0, 101.0, 102.25, 103.0)


def test_a_span_has_the_names_of_the_conventions_and_the_parent_of_the_record(
    spans: RequestSpans, exporter: Any
) -> None:
    # When, while the host application has a span of its own
    other = trace.SpanContext(5, 6, False, trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(other)):
        spans.ended(record_of(), timings_of(), 3, End(finish_reason="length", cached_tokens=2))
        spans.ended(record_of(traceparent=""), timings_of(), 3, End(finish_reason="stop"))
    # Then
    span, root = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == SPAN
    assert span.name == "text_completion tiny"
    assert span.kind is trace.SpanKind.CONSUMER
    assert (span.start_time, span.end_time) == (100_000_000_000, 103_500_000_000)
    assert [(event.name, event.timestamp) for event in span.events] == [
        ("admitted", 101_000_000_000),
        ("first_token", 102_250_000_000),
    ]
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "skynet",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.id": "r1",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
        "skynet.epoch": 7,
    }
    assert span.status.status_code is trace.StatusCode.UNSET
    # And a request without a span begins a trace
    assert root.parent is None
    assert root.context.trace_id not in (5, int(TRACE, 16))


def test_an_error_is_its_class_and_nothing_that_a_user_wrote(
    spans: RequestSpans, exporter: Any
) -> None:
    # When
    end = End("secret text", error="BadRequest", message="secret message")
    record = record_of(annotations='{"request_id": "secret"}', model="another")
    spans.ended(record, timings_of(), 0, end)
    # Then
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (span.status.description, span.attributes["error.type"]) == ("BadRequest",) * 2
    assert span.attributes["gen_ai.request.model"] == "another"
    assert "secret" not in span.to_json()
    assert "41" not in json.dumps(dict(span.attributes))


def test_a_text_task_has_no_options_of_a_generation(spans: RequestSpans, exporter: Any) -> None:
    spans.ended(record_of(options=Options(read={"task": "embed"})), timings_of(), 0, End())
    (span,) = exporter.get_finished_spans()
    assert span.name == "embeddings tiny"
    assert "gen_ai.request.temperature" not in span.attributes


def test_a_trace_that_is_not_sampled_has_no_span(spans: RequestSpans, exporter: Any) -> None:
    spans.ended(record_of(flags="00"), timings_of(), 3, End(finish_reason="stop"))
    assert exporter.get_finished_spans() == ()


def test_a_fault_of_the_sdk_is_logged_and_not_raised(
    spans: RequestSpans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given
    def fail(*_arguments: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(spans.provider, "get_tracer", fail)
    # When
    spans.ended(record_of(), timings_of(), 3, End(finish_reason="stop"))
    # Then
    assert caplog.messages == ["request r1 has no span: RuntimeError: broken"]


# -- the provider ----------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The providers that a test makes; they are shut down."""
    providers: list[Any] = []
    yield providers
    for provider in providers:
        provider.shutdown()


def test_spans_are_exported_only_if_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch, made: list[Any]
) -> None:
    # Given nothing
    assert tracer_provider("skynet-test") is None
    # When an exporter is named
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    provider = tracer_provider("skynet-test")
    made.append(provider)
    assert provider is not None
    assert provider.resource.attributes["service.name"] == "skynet-test"
    # Then the global provider is as it was
    assert trace.get_tracer_provider() is not provider
    # And the environment's name goes first
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    made.append(named := tracer_provider("skynet-test"))
    assert named is not None
    assert named.resource.attributes["service.name"] == "mine"
    # When it is switched off
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracer_provider("skynet-test") is None
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert tracer_provider("skynet-test") is None


def test_what_is_missing_is_said_and_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an exporter that nobody has
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "no-such")
    with caplog.at_level(logging.WARNING):
        assert tracer_provider("skynet-test") is None
    assert "OTEL_TRACES_EXPORTER is set" in caplog.text
    assert "'no-such' is not installed: pip install 'skynet-celery[otel]'" in caplog.text
    # And no SDK
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    caplog.clear()
    assert tracer_provider("skynet-test") is None
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set" in caplog.text
    assert "skynet-celery[otel]" in caplog.text
