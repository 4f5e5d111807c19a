"""OpenTelemetry: the trace that a request belongs to, and the provider that exports spans.

The provider is SkyNet's own: a host application's telemetry is neither used nor replaced.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

# W3C Trace Context: version, trace id, span id, flags. Version ff and ids of zeros are invalid.
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
ON = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def valid_traceparent(value: Any) -> str:
    """A `traceparent`, or "" for a value that is none: W3C drops those."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return value if isinstance(value, str) and TRACEPARENT.fullmatch(value) else ""


def current_traceparent() -> str:
    """Of the current span, "" without one. Does not import OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    span = trace.get_current_span().get_span_context()
    return valid_traceparent(
        f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"
    )


def tracer_provider(service: str) -> TracerProvider | None:
    """A new provider as OpenTelemetry's environment variables say; None: spans are off.

    service: the `service.name`, if the environment has none.
    """
    variable = next((name for name in ON if _variable(name)), None)
    names = _variable("OTEL_TRACES_EXPORTER") or "otlp"
    if variable is None or names == "none" or _variable("OTEL_SDK_DISABLED").lower() == "true":
        return None
    try:
        return _provider(service, names)
    except ImportError as error:
        why = f"{error}: pip install 'skynet-celery[otel]'"
    except Exception as error:  # of an exporter: answers matter more than traces
        why = f"{type(error).__name__}: {error}"
    logger.warning("%s is set, but no spans are exported: %s", variable, why)
    return None


def _provider(service: str, names: str) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporters = [_exporter(name.strip()) for name in names.split(",")]
    named = _variable("OTEL_SERVICE_NAME") or "service.name=" in _variable(
        "OTEL_RESOURCE_ATTRIBUTES"
    )
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": service}))
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporter(name: str) -> Any:
    """A new exporter of this name in OTEL_TRACES_EXPORTER."""
    if name == "otlp":
        protocol = next(filter(None, map(_variable, PROTOCOLS)), "http/protobuf")
        name = OTLP.get(protocol, protocol)
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        raise ImportError(f"OpenTelemetry's exporter {name!r:.80} is not installed")
    return found[0].load()()


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()
