"""Answers in an event loop: `async for`, `await`, without a thread or a connection each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from celery.exceptions import TimeoutError as CeleryTimeoutError
from redis.asyncio.client import Pipeline
from waiting import wait_for

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.errors import BadRequest, PeerLost, RequestLost, RequestTimeout, SkynetError
from skynet.local.server import EmbeddedServer
from skynet.request.record import End, Logprobs, Options, Record, Token
from skynet.store.async_connection import close_async, connect_async
from skynet.store.async_queries import AsyncQueries
from skynet.store.requests import Requests
from skynet.wire import keys

WAIT_S = 30
TOKENS = [Token(index, 10 + index, f"{index} ") for index in range(4)]
TEXT = ["0 ", "1 ", "2 ", "3 ", "!"]


@pytest.fixture
def user(server: EmbeddedServer, client: redis.Redis) -> Iterator[Client]:
    user = Client(server.url)
    yield user
    user.close()


@pytest.fixture
def requests(client: redis.Redis) -> Requests:
    """The engine's side: it writes answers."""
    return Requests(client, 1000)


def new(requests: Requests, name: str = "r1", timeout_s: float = 600) -> str:
    now = requests.now()
    requests.create(Record(name, (1, 2, 3), Options(max_tokens=9), now, now + timeout_s))
    return name


def write(requests: Requests, name: str, *tokens: Token, end: bool = True) -> None:
    for token in tokens:
        assert requests.writer.append([(name, token)]) == [1]
    if end:
        assert requests.writer.finish(name, End("!", "stop", timings={"total_s": 1.5}))


async def until_blocked(requests: Requests, count: int = 1) -> None:
    """Wait until this many XREADs wait in Redis."""
    async with asyncio.timeout(WAIT_S):
        while len(blocked(requests.client)) < count:
            await asyncio.sleep(0.005)


def blocked(client: redis.Redis) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = client.client_list()
    return [each for each in listed if each["cmd"] == "xread" and "b" in each["flags"]]


def test_async_for_reads_what_for_reads(user: Client, requests: Requests) -> None:
    # Given an answer
    generation = Generation(new(requests), user)
    write(requests, "r1", *TOKENS)

    async def read() -> None:
        # When it is read in an event loop / Then it is the same
        assert [piece async for piece in generation.stream()] == TEXT
        assert [piece async for piece in generation.stream(start=3)] == TEXT[3:]
        tokens = [token async for token in generation.atokens(start=1, timeout=5)]
        assert tokens == list(generation.tokens(start=1))
        assert [token async for token in generation.tokens()] == list(generation.atokens())

    asyncio.run(read())
    assert list(generation.stream()) == TEXT


def test_await_gives_what_get_gives(user: Client, requests: Requests) -> None:
    # Given a request, which an event loop waits for
    generation = Generation(new(requests), user)
    logged = Token(0, 10, "0 ", Logprobs(-0.5, ((7, -0.25),)))

    async def wait() -> None:
        asked = [asyncio.ensure_future(generation), asyncio.create_task(generation.aget(WAIT_S))]
        await until_blocked(requests)
        # When it ends
        write(requests, "r1", logged, *TOKENS[1:])
        first, second = await asyncio.gather(*asked)
        # Then it is Celery's and `get`'s answer
        assert first == second == await generation.aget(timeout=0) == generation.get()

    asyncio.run(wait())


def test_streams_share_two_connections_and_no_threads(user: Client, requests: Requests) -> None:
    # Given 500 streams in one event loop
    names = [new(requests, f"r{number}") for number in range(500)]
    before = len(requests.client.client_list())
    seen: list[list[str]] = [[] for _ in names]

    async def read(number: int) -> None:
        async for piece in Generation(names[number], user).stream(timeout=WAIT_S):
            seen[number].append(piece)

    async def main() -> None:
        threads = threading.active_count()
        tasks = [asyncio.create_task(read(number)) for number in range(len(names))]
        await until_blocked(requests)
        for token in TOKENS:  # When tokens come, of all requests at once, as in steps
            requests.writer.append([(name, token) for name in names])
            async with asyncio.timeout(WAIT_S):
                while not all(len(pieces) > token.index for pieces in seen):
                    await asyncio.sleep(0.005)
            # Then there is no thread for them, and no connection each
            assert threading.active_count() == threads
            assert len(requests.client.client_list()) <= before + 3  # one is the client's own
        for name in names:
            requests.writer.finish(name, End("!", "stop"))
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert seen == [TEXT] * len(names)


def test_awaiting_many_requests_needs_no_threads(user: Client, requests: Requests) -> None:
    # Given 200 requests that are waited for
    names = [new(requests, f"r{number}") for number in range(200)]

    async def main() -> None:
        threads = threading.active_count()
        tasks = [asyncio.ensure_future(Generation(name, user)) for name in names]
        await until_blocked(requests)
        for name in names:
            write(requests, name, *TOKENS)
        completions = await asyncio.gather(*tasks)
        assert threading.active_count() == threads
        assert {tuple(each.token_ids) for each in completions} == {(10, 11, 12, 13)}

    asyncio.run(main())


def test_commands_of_many_coroutines_share_a_pipeline(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given a value for each of many coroutines
    client.mset({f"key{number}": number for number in range(200)})

    async def main() -> None:
        connection = connect_async(server.url)
        made: list[Pipeline] = []
        make = connection.pipeline
        connection.pipeline = lambda **options: made.append(make(**options)) or made[-1]  # type: ignore
        queries = AsyncQueries(connection)

        def ask(number: int) -> Coroutine[Any, Any, bytes]:
            return queries.ask(lambda pipe: pipe.get(f"key{number}"), WAIT_S)

        # When all ask at once, and the one that sends is cancelled
        tasks = [asyncio.create_task(ask(number)) for number in range(200)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        replies = await asyncio.gather(*tasks[1:])
        # Then each has its own reply, by few round trips
        assert replies == [b"%d" % number for number in range(1, 200)]
        assert len(made) <= 3
        # And an error reply is that of its command only
        both = asyncio.gather(
            queries.ask(lambda pipe: pipe.lpop("key0"), WAIT_S), ask(5), return_exceptions=True
        )
        wrong, right = await both
        assert isinstance(wrong, redis.ResponseError)
        assert right == b"5"
        await close_async(connection)

    asyncio.run(main())


def test_more_than_100_threads_share_a_client(user: Client, requests: Requests) -> None:
    # Given 120 threads that wait for answers
    names = [new(requests, f"r{number}") for number in range(120)]
    with ThreadPoolExecutor(len(names)) as pool:
        waiting = [pool.submit(Generation(name, user).get, timeout=WAIT_S) for name in names]
        wait_for("all threads to wait in Redis", lambda: len(blocked(requests.client)) == 120)
        # When the requests end / Then each thread has its answer
        for name in names:
            write(requests, name, *TOKENS)
        assert {each.result(WAIT_S).text for each in waiting} == {"".join(TEXT)}


def test_a_stream_joins_others_that_are_silent(user: Client, requests: Requests) -> None:
    # Given a stream whose request makes no token
    silent, talking = new(requests, "silent"), new(requests, "talking")

    async def main() -> None:
        first = asyncio.create_task(anext(Generation(silent, user).stream()))
        await until_blocked(requests)
        # When a stream of another request begins / Then it gets its tokens
        write(requests, talking, *TOKENS)
        assert [piece async for piece in Generation(talking, user).stream()] == TEXT
        # And the silent one continues
        await until_blocked(requests)
        write(requests, silent, TOKENS[0], end=False)
        assert await first == "0 "

    asyncio.run(main())


def test_one_answer_is_read_from_several_places(user: Client, requests: Requests) -> None:
    # Given three readers of one answer, of which one comes late
    generation = Generation(new(requests), user)

    async def read(start: int) -> list[str]:
        return [piece async for piece in generation.stream(start)]

    async def main() -> None:
        early = [asyncio.create_task(read(0)), asyncio.create_task(read(2))]
        await until_blocked(requests)
        write(requests, "r1", *TOKENS[:3], end=False)
        late = asyncio.create_task(read(0))
        write(requests, "r1", TOKENS[3])
        # Then each has all from its place
        assert await asyncio.gather(*early, late) == [TEXT, TEXT[2:], TEXT]

    asyncio.run(main())


def test_event_loops_of_several_threads_share_a_client(user: Client, requests: Requests) -> None:
    # Given event loops in threads, one after the other and at the same time
    names = [new(requests, f"r{number}") for number in range(6)]
    for name in names:
        write(requests, name, *TOKENS)

    async def read(name: str) -> list[str]:
        return [piece async for piece in Generation(name, user).stream()]

    # When each reads / Then each has its answer, and nothing is left of the loops
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda name: asyncio.run(read(name)), names)) == [TEXT] * 6
    assert not user._async_answers


def test_errors_are_those_of_get(user: Client, requests: Requests) -> None:
    # Given requests that failed, are over, are silent or unknown
    for name in ("failed", "late", "silent", "damaged"):
        new(requests, name)
    write(requests, "damaged", *TOKENS)
    requests.client.delete(keys.tokens_key("damaged"))
    requests.writer.finish("failed", End(error="PeerLost", message="stage0.shard1"))
    requests.writer.finish("late", End(error="RequestTimeout", message="within its 3 s"))

    async def expect(error: type[Exception], name: str, match: str, **wait: float) -> None:
        generation = Generation(name, user)
        with pytest.raises(error, match=match):
            await anext(generation.stream(**wait))
        with pytest.raises(CeleryTimeoutError if error is TimeoutError else error):
            await generation.aget(**wait)

    async def main() -> None:
        await expect(PeerLost, "failed", "stage0.shard1")
        await expect(RequestTimeout, "late", "within its 3 s")
        await expect(TimeoutError, "silent", "no token and no end for 0.1 s", timeout=0.1)
        await expect(TimeoutError, "silent", "no token and no end for 0 s", timeout=0)
        await expect(SkynetError, "damaged", "token 0 is missing in Redis")
        await expect(RequestLost, "unknown", "submit it again", timeout=0.1)
        await expect(RequestLost, "unknown", "submit it again")
        with pytest.raises(BadRequest, match="timeout '30'"):
            await Generation("silent", user).aget(timeout="30")  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_request_that_nobody_ends_times_out(
    user: Client, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a request whose deadline has passed, without an orchestrator
    monkeypatch.setattr("skynet.client.generation.GRACE_S", 0.1)
    generation = Generation(new(requests, timeout_s=0.01), user)

    async def main() -> None:
        with pytest.raises(RequestTimeout, match="is an orchestrator running"):
            await generation
        with pytest.raises(RequestTimeout, match="is an orchestrator running"):
            await anext(generation.stream())

    asyncio.run(main())


def test_a_stream_that_is_left_early_leaves_no_connection(user: Client, requests: Requests) -> None:
    # Given an answer that goes on
    generation = Generation(new(requests), user)
    write(requests, "r1", *TOKENS, end=False)
    before = len(requests.client.client_list())

    async def main() -> None:
        # When its reader stops after a piece
        async for _ in generation.stream():
            break
        stream = generation.stream()
        assert await anext(stream) == "0 "
        await stream.aclose()

    asyncio.run(main())
    # Then the loop's connections are closed; the client's own one may be there
    assert len(requests.client.client_list()) <= before + 1
    assert not user._async_answers
