"""The routes of `/cluster/` over a Redis of which only the leases of a cluster are there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import uvicorn
from checkpoints import save_tokenizer
from fastapi import FastAPI, Header, HTTPException, Request, Response
from orchestrator_cases import CONFIG, submit
from redis_servers import free_port

from skynet.checkpoint.transformers_tokenizer import tokenizer_files
from skynet.client.client import Client
from skynet.client.status import cluster_status
from skynet.errors import SkynetError
from skynet.gateway.cluster.feeds import Feeds
from skynet.gateway.cluster.json_patch import apply
from skynet.gateway.cluster.routes import cluster_router
from skynet.gateway.errors import ApiError, api_error
from skynet.local.server import EmbeddedServer
from skynet.store.bad_tiles import push_bad_tile
from skynet.store.connection import connect
from skynet.store.events import Events
from skynet.store.leader import Leadership
from skynet.store.manifest import TileName
from skynet.store.members import Member, Members
from skynet.store.metrics import Metrics, MetricsStore, Sample, ShardTime, StageTime
from skynet.store.plans import Plans
from skynet.store.requests import Requests
from skynet.store.staging import StagingJob
from skynet.store.targets import Target, Targets
from skynet.store.weights import WeightStore
from skynet.wire import keys

TARGET = Target("d1", "tiny", "float32", "auto", num_slots=2, slot_tokens=64, stages=1, shards=2)
ADMIN = {"Authorization": "Bearer admin"}
LIMIT_S = 60.0


@pytest.fixture
def staged(client: redis.Redis, tmp_path: Path) -> None:
    """Two models without weights; the first is asked for."""
    save_tokenizer(tmp_path)
    files = tokenizer_files(tmp_path)
    for digest, name in (("d1", "tiny"), ("d2", "other")):
        WeightStore(client).stage(StagingJob(digest, name, CONFIG, {}, files, None, 4096))  # type: ignore[arg-type]
    Targets(client).ask(TARGET)


@pytest.fixture
def members(server: EmbeddedServer, staged: None) -> Iterator[Members]:
    """A leading orchestrator, a worker with a place and one without."""
    connection = connect(server.url, single_connection=True)
    leases = Members(connection, 60)
    leases.renew(Member("o", "orchestrator@here", "orchestrator", "here", 7, "leading"))
    leases.renew(Member("w", "stage0.shard0@here", "stage0.shard0", "here", 8, "ready"))
    pinned = {"pinned": "stage0.shard0", "speed": 5e9, "cores": 4}
    leases.renew(Member("s", "worker-9@here", "", "here", 9, "spare", **pinned))  # type: ignore[arg-type]
    yield leases
    connection.close()


def admin_only(authorization: str = Header("")) -> None:
    if authorization != ADMIN["Authorization"]:
        raise HTTPException(403, "an admin key is needed")


def make_app(feeds: Feeds) -> FastAPI:
    app = FastAPI()
    app.include_router(cluster_router(feeds, admin_only))

    @app.exception_handler(SkynetError)
    async def refuse(request: Request, error: SkynetError) -> Response:
        return api_error(error).response(request.url.path)

    @app.exception_handler(ApiError)
    async def answer(request: Request, error: ApiError) -> Response:
        return error.response(request.url.path)

    return app


@asynccontextmanager
async def gateway(*urls: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A server of these clusters, and a client of it."""
    clients = {f"c{number}": Client(url) for number, url in enumerate(urls)}
    feeds = Feeds(clients)
    port = free_port()
    options = {"host": "127.0.0.1", "port": port, "log_level": "error", "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(make_app(feeds), **options))  # type: ignore[arg-type]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            yield http
    finally:
        feeds.close()
        server.should_exit = True
        await task
        for client in clients.values():
            client.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), LIMIT_S)

    asyncio.run(limited())


async def follow(
    http: httpx2.AsyncClient,
    enough: Callable[[Any, list[str]], bool],
    document: Any = None,
    **headers: str,
) -> tuple[Any, list[str], str]:
    """Read the stream until `enough(document, kinds)`: the document, kinds of events, last id."""
    kinds: list[str] = []
    fields: dict[str, str] = {}
    async with http.stream("GET", "/cluster/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            fields[name] = value
            if line == "" and "data" in fields:
                data = json.loads(fields["data"])
                kinds.append(fields["event"])
                document = data if kinds[-1] == "snapshot" else apply(document, data)
                last_id = fields["id"]
                fields = {}
                if enough(document, kinds):
                    return document, kinds, last_id
    raise AssertionError(f"the stream ended: {kinds}")


def test_the_snapshot_agrees_with_the_status(
    server: EmbeddedServer, client: redis.Redis, members: Members
) -> None:
    # Given a request that waits
    request_id = "r-1"
    submit(client, request_id, "d1", prompt=tuple(range(5)))
    status = cluster_status(client, server.url)

    async def test() -> None:
        async with gateway(server.url) as http:
            # When
            shown = (await http.get("/cluster/state")).json()
        # Then the grid has the places of the status, with their members
        assert shown["clusters"] == ["c0"]
        cells = {cell["address"]: cell for stage in shown["stages"] for cell in stage["cells"]}
        assert list(cells) == ["stage0.shard0", "stage0.shard1"]
        by_place = {member["address"]: member for member in status["members"]}
        for name in ("host", "pid", "state", "weight_bytes", "resident_bytes", "cores"):
            assert cells["stage0.shard0"][name] == by_place["stage0.shard0"][name]
        assert cells["stage0.shard1"]["state"] == "empty"
        assert [each["state"] for each in shown["orchestrators"]] == ["leading"]
        assert [(each["id"], each["why"]) for each in shown["others"]] == [
            ("s", "takes stage0.shard0 only, which another worker has")
        ]
        # and the sentence says what is missing, as the status does
        assert status["waiting_for"] == ["stage0.shard1 has no worker"]
        assert shown["health"]["sentence"] == ("Starting: tiny waits, stage0.shard1 has no worker.")
        # and the request has sizes, but no prompt
        listed = shown["requests"]["listed"][request_id]
        assert (listed["state"], listed["prompt_tokens"]) == ("waiting", 5)
        assert "prompt" not in listed
        assert shown["redis"]["policy"] == "noeviction"
        assert {model["name"]: model["state"] for model in shown["models"].values()} == {
            "tiny": "complete",
            "other": "complete",
        }
        assert shown["shapes"]["shapes"][0]["shape"] == "1x1"

    run(test)


def test_changes_come_as_patches_and_a_lost_connection_goes_on(
    server: EmbeddedServer, client: redis.Redis, members: Members
) -> None:
    async def test() -> None:
        async with gateway(server.url) as http:
            # Given a page that has the state
            seen, kinds, last_id = await follow(http, lambda document, kinds: len(kinds) == 2)
            assert kinds == ["snapshot", "patch"]
            # When something happens while it is away
            await asyncio.to_thread(Events(client).add, "lost", "stage0.shard0 (w)")
            await follow(
                http, lambda document, _: any(e["kind"] == "lost" for e in document["events"])
            )
            # Then it gets patches only
            again, kinds, _ = await follow(
                http,
                lambda document, _: any(e["kind"] == "lost" for e in document["events"]),
                seen,
                **{"Last-Event-ID": last_id},
            )
            assert set(kinds) == {"patch"}
            assert again["now"] > seen["now"]

    run(test)


def test_a_cluster_that_does_not_answer_says_so_and_others_go_on(
    server: EmbeddedServer, members: Members
) -> None:
    async def test() -> None:
        async with gateway(server.url, f"redis://:secret@127.0.0.1:{free_port()}/0") as http:
            away = (await http.get("/cluster/state", params={"cluster": "c1"})).json()
            assert away["health"]["level"] == "bad"
            assert "no answer from redis" in away["health"]["sentence"].lower()
            assert "secret" not in json.dumps(away)
            here = (await http.get("/cluster/state")).json()
            assert here["clusters"] == ["c0", "c1"]
            assert here["stages"]
            assert (await http.get("/cluster/state?cluster=c2")).status_code == 404
            assert (await http.get("/cluster/events?cluster=c2")).status_code == 404

    run(test)


def test_actions_need_the_admin_key(server: EmbeddedServer, members: Members) -> None:
    async def test() -> None:
        async with gateway(server.url) as http:
            for method, path in (
                ("POST", "/cluster/requests/x/cancel"),
                ("POST", "/cluster/rebalance"),
                ("POST", "/cluster/models/d2/verify"),
                ("DELETE", "/cluster/models/d2"),
            ):
                assert (await http.request(method, path)).status_code == 403

    run(test)
    assert not Plans(Client(server.url).redis).take_rebalance()


def test_each_action_acts_and_is_an_event(
    server: EmbeddedServer, client: redis.Redis, members: Members
) -> None:
    request_id = "r-1"
    submit(client, request_id, "d1")
    requests = Requests(client, 60)

    async def test() -> None:
        async with gateway(server.url) as http:
            cancelled = await http.post(f"/cluster/requests/{request_id}/cancel", headers=ADMIN)
            assert cancelled.json() == {"id": request_id, "cancelled": True}
            assert (await http.post("/cluster/rebalance", headers=ADMIN)).json() == {"asked": True}
            freed = await http.delete("/cluster/models/d2", headers=ADMIN)
            assert freed.json()["digest"] == "d2"
            # The model in force stays, and an unknown one is unknown
            refused = await http.delete("/cluster/models/d1", headers=ADMIN)
            assert (refused.status_code, "in force" in refused.text) == (400, True)
            unknown = await http.post("/cluster/models/ffff/verify", headers=ADMIN)
            assert unknown.status_code == 404
            started = await http.post("/cluster/models/d1/verify", headers=ADMIN)
            assert (started.status_code, started.json()["state"]) == (202, "running")
            shown, _, _ = await follow(
                http,
                lambda document, _: (
                    (document["models"]["d1"]["check"] or {}).get("state") == "good"
                    and "d2" not in document["models"]
                ),
            )
            said = [event["text"] for event in shown["events"] if event["kind"] == "admin"]
            assert len(said) == 4

    run(test)
    record = requests.read(request_id)
    assert record is not None
    assert record.cancelled
    assert Plans(client).take_rebalance()


def test_broken_and_half_staged_models_show(
    server: EmbeddedServer, client: redis.Redis, members: Members
) -> None:
    # Given a reported tile of the one model, and the other without a file
    push_bad_tile(client, "d1", TileName("lm_head.weight", 0))
    client.delete(next(iter(client.scan_iter(keys.file_key("d2", "*")))))

    async def test() -> None:
        async with gateway(server.url) as http:
            models = (await http.get("/cluster/state")).json()["models"]
            assert {model["name"]: model["state"] for model in models.values()} == {
                "tiny": "broken",
                "other": "half",
            }

    run(test)


def test_the_orchestrators_numbers_are_shown(
    server: EmbeddedServer, client: redis.Redis, members: Members
) -> None:
    # Given what a leader has counted
    shards = (ShardTime(0, 0.4, 0.3), ShardTime(1, 0.5, 0.2))
    samples = tuple(Sample(100.0 + 5 * number, running=number) for number in range(3))
    counted = Metrics(stages=(StageTime(0, 0.5, 0.2, 0.1, 0.2, 1, shards),), samples=samples)
    leadership = Leadership(client, "o", 60)
    assert leadership.acquire()
    MetricsStore(client).write(counted, leadership.fence)

    async def test() -> None:
        async with gateway(server.url) as http:
            shown = (await http.get("/cluster/state")).json()
        assert shown["timings"][0]["slowest"] == 1
        assert list(shown["history"]["points"]) == ["100", "105", "110"]

    run(test)


def test_one_set_of_reads_serves_many_pages(
    server: EmbeddedServer, client: redis.Redis, members: Members
) -> None:
    async def test() -> None:
        async with gateway(server.url) as http:
            # Given 20 pages that each read five events
            await http.get("/cluster/state")
            before = client.info("commandstats")
            pages = (follow(http, lambda _, kinds: len(kinds) == 5) for _ in range(20))
            documents = [document for document, _, _ in await asyncio.gather(*pages)]
            after = client.info("commandstats")
        # Then Redis was asked for the plan as often as one page asks
        assert {document["cluster"] for document in documents} == {"c0"}
        reads = after["cmdstat_time"]["calls"] - before["cmdstat_time"]["calls"]  # type: ignore[index]
        assert 4 <= reads < 40  # some for each second, not for each page

    run(test)
