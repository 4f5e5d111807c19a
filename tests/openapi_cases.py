"""Requests made from an OpenAPI document by schemathesis, and what their answers have to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def send_cases(
    schema: Any,
    headers: Mapping[str, str],
    max_examples: int,
    change: Callable[[Case], None] = lambda case: None,
) -> int:
    """Send generated requests to each operation; how many operations there are.

    max_examples: for each operation.
    change: made to each request before it is sent.
    """
    number = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        def check(case: Case) -> None:
            change(case)
            case.call_and_validate(checks=CHECKS, headers=dict(headers))

        bounded = settings(
            max_examples=max_examples,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        bounded(given(operation.as_strategy())(check))()
        number += 1
    return number


def with_messages(case: Case) -> None:
    """A chat that can be answered: generated messages never are."""
    if isinstance(case.body, dict):
        made = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        case.body = {**case.body, **made}
