"""What of the page and its data the gateway gives to whom."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from skynet.gateway.app import create_app
from skynet.gateway.clusters import Clusters
from skynet.gateway.config import GatewayConfig
from skynet.gateway.keys import Keys
from skynet.local.server import EmbeddedServer

USER, ADMIN = "user-key-0001", "admin-key-0001"


def statuses(server: EmbeddedServer, key: str, *requests: tuple[str, str]) -> list[int]:
    async def ask() -> list[int]:
        clusters = Clusters({"": server.url})
        app = create_app(clusters, GatewayConfig(keys=Keys({USER: "user"}, {ADMIN: "admin"})))
        transport = httpx2.ASGITransport(app)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            asked = [await http.request(*each, headers=headers) for each in requests]
        clusters.close()
        return [response.status_code for response in asked]

    return asyncio.run(asyncio.wait_for(ask(), 60))


PAGE = ("GET", "/"), ("GET", "/static/app.js")
DATA = (("GET", "/cluster/state"),)
ACTIONS = (
    ("POST", "/cluster/requests/x/cancel"),
    ("POST", "/cluster/rebalance"),
    ("POST", "/cluster/models/ff/verify"),
    ("DELETE", "/cluster/models/ff"),
)


@pytest.mark.parametrize(
    ("key", "page", "data", "actions"),
    [
        ("", 200, 401, [401] * 4),
        ("wrong-key-0001", 200, 401, [401] * 4),
        (USER, 200, 200, [403] * 4),
        (ADMIN, 200, 200, [200, 503, 404, 404]),  # no request, no model
    ],
)
def test_without_a_key_no_data_and_without_an_admin_key_no_action(
    server: EmbeddedServer, client: object, key: str, page: int, data: int, actions: list[int]
) -> None:
    given = statuses(server, key, *PAGE, *DATA, *ACTIONS)
    assert given[:2] == [page] * 2
    assert given[2] == data
    assert given[3:] == actions
