"""The gateway's HTTP spans, and the way of `traceparent` to the request's record."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_fakes import FakeClient, call, decoder, encoder, fake_app, vector_of

from skynet.gateway import app as app_module

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
MESSAGES = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "n": 2},
    "/v1/completions": {"prompt": ["Hi", "You"]},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"max_tokens": 9, "messages": MESSAGES},
    "/v1/embeddings": {"input": ["a", "b"]},
}


def fake_client(path: str) -> FakeClient:
    return FakeClient(encoder(), vector_of) if "embed" in path else FakeClient(decoder())


def traces(client: FakeClient) -> set[str]:
    return {record.traceparent for record in client.records.values()}


@pytest.mark.parametrize("path", BODIES)
def test_the_header_is_in_the_record(path: str) -> None:
    # When a client sends its span, nothing, or something else
    for sent, kept in ((TRACEPARENT, TRACEPARENT), ("", ""), (TRACEPARENT + "0", "")):
        client = fake_client(path)
        headers = {"traceparent": sent} if sent else {}
        answer = call(fake_app(client), "POST", path, BODIES[path], **headers)
        # Then
        assert answer.status_code == 200, answer.text
        assert traces(client) == {kept}


@pytest.mark.parametrize("path", BODIES)
def test_the_span_of_the_http_request_is_between_client_and_answer(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a gateway whose environment configures an exporter
    sdk = pytest.importorskip(
        "opentelemetry.sdk.trace", reason="needs opentelemetry-sdk, of skynet-celery[otel]"
    )
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(app_module, "tracer_provider", lambda _service: provider)
    client = fake_client(path)
    app = fake_app(client)
    # When
    body = BODIES[path] | ({} if "embed" in path else {"stream": True})
    assert call(app, "POST", path, body, traceparent=TRACEPARENT).status_code == 200
    assert call(app, "GET", "/health").status_code == 200
    # Then one span, of the request and not of the probe
    (span,) = exporter.get_finished_spans()
    assert span.name == f"POST {path}"
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    # And the record belongs to it
    assert traces(client) == {f"00-{TRACE}-{span.context.span_id:016x}-01"}


def test_without_an_exporter_nothing_goes_to_another_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a process with a provider of its own, and no exporter in the environment
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    sdk = pytest.importorskip(
        "opentelemetry.sdk.trace", reason="needs opentelemetry-sdk, of skynet-celery[otel]"
    )
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    # When
    path = "/v1/chat/completions"
    assert call(fake_app(fake_client(path)), "POST", path, BODIES[path]).status_code == 200
    # Then
    assert exporter.get_finished_spans() == ()
