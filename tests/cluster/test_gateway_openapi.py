"""The OpenAPI document is true of a gateway over a real cluster, whatever is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from gateways import ADMIN, gateway
from openapi_cases import send_cases, with_messages
from schemathesis import Case

from skynet.local.cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
KEY = {"authorization": f"Bearer {ADMIN}"}
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def short(case: Case) -> None:
    """The request, with an answer of few tokens."""
    if isinstance(case.body, dict):
        short_answers: dict[str, Any] = dict.fromkeys(LIMITS, 2)
        case.body = {**case.body, **short_answers, "n": 1, "timeout": 20}


def test_any_request_is_answered_as_described(cluster: LocalCluster, tmp_path: Path) -> None:
    with gateway(cluster.url, tmp_path) as served:
        # Given all paths but those of the page, whose stream does not end
        document = f"{served.url}/openapi.json"
        schema = schemathesis.openapi.from_url(document, headers=KEY)
        # When / Then
        assert send_cases(schema.exclude(path_regex="^/cluster/"), KEY, 2, short) > 20
        chats = schema.include(path="/v1/chat/completions", method="POST")
        assert send_cases(chats, KEY, 10, with_messages) == 1
        with served.http() as http:
            assert http.get("/ready").json()["status"] == "ready"
