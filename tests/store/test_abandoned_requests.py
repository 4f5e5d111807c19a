"""Requests whose caller leaves: `with` and `async with` cancel, `asyncio.wait_for` does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import redis
from orchestrator_cases import (
    MakeRuntime,
    Shards,
    ask,
    beat,
    bring_up,
    in_queue,
    parts,
    sent_steps,
    stage_model,
    submit,
    watch,
)

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.errors import RequestCancelled
from skynet.local.server import EmbeddedServer
from skynet.request.record import End
from skynet.wire import keys

# Celery's Redis backend calls what redis-py 8 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture
def user(server: EmbeddedServer, client: redis.Redis) -> Iterator[Client]:
    """A client of a cluster with one slot."""
    stage_model(client)
    ask(client, num_slots=1)
    user = Client(server.url)
    yield user
    user.close()


def is_cancelled(user: Client, generation: Generation) -> bool:
    record = user.requests.read(generation.id)
    assert record is not None
    return record.cancelled


def test_with_cancels_a_request_that_has_not_ended(user: Client, client: redis.Redis) -> None:
    # When a block ends, in order or by an error, before its request
    with user.submit_prompt([1, 2, 3]) as first:
        assert not is_cancelled(user, first)
    with pytest.raises(KeyError), user.submit_prompt([1, 2, 3]) as second:
        raise KeyError
    # Then the request is cancelled, and the orchestrator is told
    assert is_cancelled(user, first)
    assert is_cancelled(user, second)
    sent = [arguments for task, arguments in in_queue(client) if task == keys.CANCEL_TASK]
    assert sent == [[first.id], [second.id]]


def test_async_with_cancels_a_request_that_has_not_ended(user: Client, client: redis.Redis) -> None:
    async def main() -> Generation:
        # Given a stream in a coroutine
        async with user.submit_prompt([1, 2, 3]) as generation:
            async for _ in generation.stream():
                pass
        return generation

    async def leave() -> str:
        # When the coroutine is cancelled
        task = asyncio.create_task(main())
        async with asyncio.timeout(30):
            while not (ids := user.requests.open_ids()):
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ids[0]

    request_id = asyncio.run(leave())
    # Then its request is, too
    assert is_cancelled(user, user.generation(request_id))
    assert [keys.CANCEL_TASK, [request_id]] in in_queue(client)


def test_with_leaves_an_ended_request_alone(user: Client, client: redis.Redis) -> None:
    with user.submit_prompt([1, 2, 3]) as generation:
        user.requests.writer.finish(generation.id, End("!", "stop"))
        assert generation.get(timeout=30).text == "!"
    assert not is_cancelled(user, generation)
    assert keys.CANCEL_TASK not in [task for task, _ in in_queue(client)]


def test_a_redis_that_is_away_does_not_hide_the_blocks_error(
    own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a request
    user = Client(own_server.url)
    submit(user.redis, "r1")

    def fail() -> None:
        own_server.stop()
        raise KeyError

    # When a block fails while Redis is away / Then its error counts, and the log names the request
    with pytest.raises(KeyError), user.generation("r1"):
        fail()
    assert "request r1 was not cancelled, it continues until its deadline" in caplog.text
    user.close()


def test_a_cancelled_await_leaves_nothing_but_the_request(
    user: Client, client: redis.Redis
) -> None:
    generation = user.submit_prompt([1, 2, 3])

    async def main() -> None:
        # Given a coroutine that waits as long as it wants to
        threads = threading.active_count()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(generation, 0.2)
        # Then no task and no thread of it is left
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert threading.active_count() == threads
        # And the request continues, until it is cancelled
        assert not is_cancelled(user, generation)
        assert await generation.acancel()
        assert is_cancelled(user, generation)

    asyncio.run(main())


def test_the_slot_of_an_abandoned_request_is_free(
    user: Client, make_runtime: MakeRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given one slot, a request that runs in it, and one that waits
    ask(client, num_slots=1)
    runtime = make_runtime()
    beat(runtime)
    bring_up(runtime, shards)
    with user.submit_prompt([1, 2, 3], max_tokens=50) as generation:
        watch(runtime)
        waiting = user.submit_prompt([4, 5], max_tokens=1)
        watch(runtime)
        ((epoch, step),) = sent_steps(client)
        runtime.messages.finish_step(parts(11), epoch, step, 0.0)
        assert next(generation.tokens(timeout=30)).id == 11
    # When its caller leaves it
    assert [keys.CANCEL_TASK, [generation.id]] in in_queue(client)
    runtime.messages.cancel(generation.id)
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(12), epoch, step, 0.0)
    # Then it has ended as cancelled, and the other one runs in its slot
    with pytest.raises(RequestCancelled, match=generation.id):
        generation.get(timeout=30)
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(13), epoch, step, 0.0)
    assert waiting.get(timeout=30).token_ids == [13]
