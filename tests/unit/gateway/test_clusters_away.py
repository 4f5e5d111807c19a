"""A cluster that does not answer leaves the others, and the gateway, as they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from gateway_fakes import FakeClient, call, decoder, fake_app, post

from skynet.errors import ClusterUnreachable
from skynet.gateway.clusters import THREADS, Cluster
from skynet.gateway.routes import health
from skynet.store.targets import Target

HI = {"model": "made", "messages": [{"role": "user", "content": "Hi"}]}


class Away(FakeClient):
    """A cluster whose Redis does not answer: each call waits for `released`."""

    def __init__(self) -> None:
        super().__init__(decoder())
        self.released, self.calls = threading.Event(), 0

    def target(self) -> Target:
        self.calls += 1
        self.released.wait(60)
        raise ClusterUnreachable("Redis does not answer")


@pytest.fixture
def away() -> Iterator[Away]:
    client = Away()
    yield client
    client.released.set()


def with_away(client: FakeClient, away: Away) -> FastAPI:
    """A gateway over a cluster that is away, and one that is not."""
    app = fake_app(client)
    app.state.gateway.clusters.all.insert(0, Cluster("gone", away))
    return app


def test_a_gateway_is_ready_though_a_cluster_is_silent(
    away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LOOK_S", 0.1)
    app = with_away(FakeClient(decoder()), away)
    ready = call(app, "GET", "/ready")
    assert ready.status_code == 200
    assert ready.json()["reasons"] == ["gone: Redis does not answer within 0.1 s"]


def test_threads_of_a_silent_cluster_are_its_own(away: Away) -> None:
    app = with_away(FakeClient(decoder()), away)
    gone, here = app.state.gateway.clusters.all

    async def run() -> str:
        blocked = [asyncio.create_task(gone.call(away.target)) for _ in range(2 * THREADS)]
        served = await asyncio.wait_for(here.served(), 30)
        away.released.set()
        await asyncio.gather(*blocked, return_exceptions=True)
        return str(served.name)

    assert asyncio.run(run()) == "made"


def test_an_answer_of_a_cluster_that_is_away_for_a_moment_is_not_lost(away: Away) -> None:
    # Given an answer, and another gateway that has not looked at the cluster yet
    client = FakeClient(decoder())
    whole = post(fake_app(client), "/v1/completions", {"prompt": "Hi", "temperature": 0}).json()
    away.records = client.records
    away.released.set()
    # When / Then the client is told to come again
    for options in ("", "?stream=true"):
        path = f"/v1/completions/{whole['id']}{options}"
        refused = call(fake_app(away), "GET", path)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"]["code"] == "cluster_unavailable"
    assert call(fake_app(client), "GET", path).status_code == 200


def test_who_waits_for_a_cluster_that_is_away_waits_once(away: Away) -> None:
    gone = Cluster("gone", away)
    away.released.set()

    async def run() -> list[object]:
        return await asyncio.gather(*(gone.served() for _ in range(20)), return_exceptions=True)

    assert [type(each) for each in asyncio.run(run())] == [ClusterUnreachable] * 20
    assert away.calls == 1


def test_an_answer_is_found_though_another_cluster_is_away(
    away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an answer of the second cluster, and a first one whose Redis is gone
    def unreachable(_id: str) -> None:
        raise ClusterUnreachable("Redis does not answer")

    away.released.set()
    monkeypatch.setattr(away.requests, "read", unreachable)
    app = with_away(FakeClient(decoder()), away)
    answer = post(app, "/v1/chat/completions", HI).json()
    # When it is asked for again
    again = call(app, "GET", f"/v1/chat/completions/{answer['id']}")
    # Then it is there; one that no cluster has may be in the one that is away
    assert again.json()["choices"] == answer["choices"]
    other = call(app, "GET", "/v1/chat/completions/chatcmpl-00000000-0000-0000-0000-000000000000")
    assert (other.status_code, other.json()["error"]["code"]) == (503, "cluster_unavailable")
