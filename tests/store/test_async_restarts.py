"""Answers in an event loop whose Redis goes away and comes back, with its data, or without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from restart_cases import END, TOKENS, append, lasting, one_waiting
from sentinels import SentinelServers
from test_async_answers import blocked, until_blocked

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.errors import ClusterUnreachable, RequestLost
from skynet.local.server import EmbeddedServer
from skynet.request.completion import Completion
from skynet.request.record import Options, Record
from skynet.store.requests import Requests

WAIT_S = 30
COMPLETION = Completion("0 1 2 3 !", [10, 11, 12, 13], 3, "stop", {"total_s": 1.5})


@pytest.fixture
def requests(own_server: EmbeddedServer) -> Iterator[Requests]:
    """One request, r1, waiting."""
    with one_waiting(own_server) as requests:
        yield requests


@pytest.fixture
def generation(own_server: EmbeddedServer) -> Iterator[Generation]:
    user = Client(own_server.url)
    yield user.generation("r1")
    user.close()


def test_a_stream_and_a_waiting_call_go_on_after_a_restart(
    own_server: EmbeddedServer, requests: Requests, generation: Generation
) -> None:
    # Given a reader with two tokens, and a coroutine that waits for the answer
    append(requests, *TOKENS[:2])

    async def main() -> None:
        stream = generation.atokens(timeout=WAIT_S)
        waiting = asyncio.ensure_future(generation)
        assert [await anext(stream), await anext(stream)] == TOKENS[:2]
        # When Redis restarts, and the rest comes
        lasting(requests)
        await off_the_loop(own_server.stop)
        third = asyncio.create_task(anext(stream))
        await off_the_loop(own_server.start)
        append(requests, *TOKENS[2:])
        requests.writer.finish("r1", END)
        # Then each token is there once
        assert await third == TOKENS[2]
        assert [token.text async for token in stream] == ["3 ", "!"]
        assert await waiting == COMPLETION

    run(main())


def test_tokens_that_redis_forgot_and_that_are_made_again_are_streamed_once(
    own_server: EmbeddedServer, requests: Requests, generation: Generation
) -> None:
    # Given a reader that has seen a token that is not saved
    append(requests, *TOKENS[:2])
    lasting(requests)
    append(requests, TOKENS[2])

    async def main() -> None:
        stream = generation.atokens(timeout=WAIT_S)
        assert [await anext(stream) for _ in range(3)] == TOKENS[:3]
        # When Redis restarts without it, and it is made again
        await off_the_loop(own_server.stop)
        await off_the_loop(own_server.start)
        append(requests, *TOKENS[2:])
        requests.writer.finish("r1", END)
        # Then the reader does not see it again
        assert [token.text async for token in stream] == ["3 ", "!"]

    run(main())


def test_killed_connections_are_opened_again(requests: Requests, generation: Generation) -> None:
    append(requests, TOKENS[0])

    async def main() -> None:
        # Given a reader
        stream = generation.atokens(timeout=WAIT_S)
        assert await anext(stream) == TOKENS[0]
        for token in TOKENS[1:]:
            # When its connections are killed between two tokens / Then it reads the next
            requests.client.client_kill_filter(_type="normal", skipme=True)
            append(requests, token)
            assert await anext(stream) == token

    run(main())


def test_a_redis_without_its_data_ends_streams(
    own_server: EmbeddedServer, requests: Requests, generation: Generation
) -> None:
    append(requests, TOKENS[0])

    async def main() -> None:
        # Given a reader
        stream = generation.atokens(timeout=WAIT_S)
        assert await anext(stream) == TOKENS[0]
        # When Redis restarts empty / Then
        await off_the_loop(own_server.stop)
        await off_the_loop(own_server.start)
        with pytest.raises(RequestLost, match="in a restart or failover; submit it again"):
            await anext(stream)
        with pytest.raises(RequestLost):
            await generation.aget(WAIT_S)

    run(main())


def test_a_redis_that_stays_away_ends_streams_when_their_time_is_over(
    own_server: EmbeddedServer, requests: Requests, generation: Generation
) -> None:
    append(requests, TOKENS[0])

    async def main() -> None:
        # Given a reader
        stream = generation.atokens(timeout=0.3)
        assert await anext(stream) == TOKENS[0]
        # When Redis goes and does not come back / Then
        await off_the_loop(own_server.stop)
        with pytest.raises(ClusterUnreachable, match=str(own_server.socket)):
            await anext(stream)
        with pytest.raises(ClusterUnreachable):
            await generation.aget(timeout=0.3)

    run(main())


@pytest.mark.timeout(300)
def test_streams_and_waiting_calls_follow_a_failover(tmp_path: Path) -> None:
    # Given a master, its replica and three Sentinels, and a stream with two tokens
    servers = SentinelServers(tmp_path)
    try:
        servers.start()
        user = Client(servers.url)
        requests = user.requests
        now = requests.now()
        requests.create(Record("r1", (1, 2, 3), Options(max_tokens=9), now, now + 600))
        append(requests, *TOKENS[:2])

        async def main() -> None:
            stream = user.generation("r1").atokens(timeout=4 * WAIT_S)
            waiting = asyncio.ensure_future(user.generation("r1"))
            assert [await anext(stream), await anext(stream)] == TOKENS[:2]
            # When the master is killed after its replica has all, and the rest comes
            assert requests.client.wait(1, 10_000) == 1
            await off_the_loop(servers.kill_master)
            await off_the_loop(lambda: append(requests, *TOKENS[2:]))
            requests.writer.finish("r1", END)
            # Then each token is there once
            assert [token.text async for token in stream] == ["2 ", "3 ", "!"]
            assert await waiting == COMPLETION

        asyncio.run(asyncio.wait_for(main(), 4 * WAIT_S))
        user.close()
    finally:
        servers.stop()


def test_a_master_that_becomes_a_replica_is_away_for_a_while(
    own_server: EmbeddedServer, requests: Requests, generation: Generation
) -> None:
    append(requests, TOKENS[0])

    async def main() -> None:
        # Given a reader that waits
        stream = generation.atokens(timeout=WAIT_S)
        assert await anext(stream) == TOKENS[0]
        following = asyncio.create_task(anext(stream))
        await until_blocked(requests)
        # When its Redis is made a replica, which ends blocked reads by an error, and a master again
        requests.client.replicaof("127.0.0.1", "1")
        async with asyncio.timeout(WAIT_S):
            while blocked(requests.client):
                await asyncio.sleep(0.005)
        requests.client.replicaof("NO", "ONE")
        append(requests, TOKENS[1])
        # Then it reads on
        assert await following == TOKENS[1]

    run(main())


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 2 * WAIT_S))


async def off_the_loop(call: Callable[[], object]) -> None:
    """The streams go on while a server stops or starts."""
    await asyncio.to_thread(call)
