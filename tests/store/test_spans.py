"""Each request that ends has one span, whoever leads. On a real Redis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis
from orchestrator_cases import (
    MakeRuntime,
    Shards,
    beat,
    bring_up,
    parts,
    sent_steps,
    watch,
)

from skynet.orchestrator.runtime import OrchestratorRuntime
from skynet.request.record import Options, Record
from skynet.store.requests import Requests
from skynet.wire import keys

sdk = pytest.importorskip(
    "opentelemetry.sdk.trace", reason="needs opentelemetry-sdk: pip install 'skynet-celery[otel]'"
)
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

# Celery's Redis backend calls what redis-py 8 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def submit_in_trace(client: redis.Redis, name: str, span: int, **fields: Any) -> None:
    """A request of three tokens that belongs to a span."""
    requests = Requests(client, 1000)
    now = requests.clock.now(exact=True)
    record = Record(name, (1, 5, 7), Options(max_tokens=3), now, now + 100)
    requests.create(replace(record, traceparent=f"00-{TRACE}-{span:016x}-01", **fields))


def observe(*runtimes: OrchestratorRuntime) -> Any:
    """Where their spans go."""
    exporter = memory.InMemorySpanExporter()
    for runtime in runtimes:
        provider = sdk.TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(export.SimpleSpanProcessor(exporter))
        runtime.context.spans.provider = provider
    return exporter


def answer(runtime: OrchestratorRuntime, client: redis.Redis, *tokens: int) -> None:
    """The shards' answers to as many steps."""
    watch(runtime)
    for token in tokens:
        ((epoch, step),) = sent_steps(client)
        runtime.messages.finish_step(parts(token), epoch, step, 0.0)
    watch(runtime)


def about(exporter: Any) -> dict[str, tuple[int, str, str]]:
    """Parent, name and error's class of each request's span, of which there is one."""
    spans = exporter.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans} <= {TRACE}
    found = {
        span.attributes["gen_ai.response.id"]: (
            span.parent.span_id,
            span.name,
            span.attributes.get("error.type", ""),
        )
        for span in spans
    }
    assert len(found) == len(spans)
    return found


def test_a_request_that_ends_has_one_span(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given
    plan, exporter = bring_up(runtime, shards), observe(runtime)
    # When one is answered
    submit_in_trace(client, "good", 1)
    answer(runtime, client, 11, 12, 13)
    # And one is refused, one cannot be read in part, and one is cancelled
    submit_in_trace(client, "bad", 2, prompt=(1000,))
    submit_in_trace(client, "broken", 3)
    client.hset(keys.request_key("broken"), "prompt", b"nonsense")
    submit_in_trace(client, "left", 4)
    Requests(client, 1000).ask_cancel("left")
    answer(runtime, client, 11)  # it ends with its step
    # Then each has one, apart from the one of which nothing is known
    assert about(exporter) == {
        "good": (1, "text_completion tiny", ""),
        "bad": (2, "text_completion tiny", "BadRequest"),
        "left": (4, "text_completion tiny", "RequestCancelled"),
    }
    good = exporter.get_finished_spans()[0]
    assert good.attributes["skynet.epoch"] == plan.epoch
    assert good.attributes["gen_ai.usage.output_tokens"] == 3
    admitted, first = good.events
    assert (admitted.name, first.name) == ("admitted", "first_token")
    assert good.start_time <= admitted.timestamp <= first.timestamp <= good.end_time


def test_a_request_that_two_leaders_answer_has_one_span(
    runtime: OrchestratorRuntime, make_runtime: MakeRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given one that is in mid-answer when its leader is replaced
    bring_up(runtime, shards)
    standby = make_runtime()
    exporter = observe(runtime, standby)
    submit_in_trace(client, "r1", 5)
    watch(runtime)
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(11), epoch, step, 0.0)
    sent_steps(client)
    beat(standby)
    runtime.leadership.resign()
    beat(standby)
    new = bring_up(standby, shards)
    # When the next one finishes it, and the one before is late
    answer(standby, client, 12, 13)
    watch(runtime)
    # Then
    assert about(exporter) == {"r1": (5, "text_completion tiny", "")}
    (span,) = exporter.get_finished_spans()
    assert span.attributes["skynet.epoch"] == new.epoch
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    assert [event.name for event in span.events] == ["admitted", "first_token"]


def test_an_exporter_that_fails_leaves_the_answer_alone(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a processor that raises, as an exporter's may
    class Broken(export.SpanProcessor):
        def on_end(self, _span: Any) -> None:
            raise RuntimeError("broken")

    bring_up(runtime, shards)
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Broken())
    runtime.context.spans.provider = provider
    # When
    submit_in_trace(client, "r1", 6)
    answer(runtime, client, 11, 12, 13)
    # Then
    assert runtime.context.app.AsyncResult("r1").result["token_ids"] == [11, 12, 13]
