"""FastAPI's own OpenTelemetry spans, on if the environment configures an exporter."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from fastapi.telemetry import TelemetryConfig

from skynet.gateway.routes.metrics import PATHS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

PROBES = frozenset({"/health", "/v1/health", "/ready", *PATHS})  # asked for all the time


def telemetry(provider: TracerProvider | None) -> TelemetryConfig:
    """One span for each HTTP request; nothing goes to a provider other than this one."""
    return {
        "tracing": provider is not None,
        "tracer_provider": provider,
        "metrics": False,  # `skynet.gateway.metrics` has them
        "logs": False,  # they may hold what a user wrote
        "operation_spans": False,
        "auto_configure": False,
        "exclude": _is_probe,
    }


def _is_probe(scope: MutableMapping[str, Any]) -> bool:
    return scope.get("path") in PROBES
