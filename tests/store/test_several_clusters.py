"""Two clusters in one process: a client each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis
from chord_cases import queued
from orchestrator_cases import ask, stage_model

from skynet.client.client import Client
from skynet.errors import RequestLost
from skynet.local.server import EmbeddedServer, local_server
from skynet.request.record import End, Token
from skynet.wire import keys


@pytest.fixture
def users(server: EmbeddedServer, client: redis.Redis) -> Iterator[list[Client]]:
    """A client of each of two clusters, whose models have slots of 64 and of 32 tokens."""
    with local_server() as (other, _):
        users = [Client(server.url), Client(other.url)]
        for user, slot_tokens in zip(users, (64, 32), strict=True):
            stage_model(user.redis)
            ask(user.redis, slot_tokens=slot_tokens)
        yield users
        for user in users:
            user.close()


def answer(user: Client, request_id: str, text: str) -> None:
    user.requests.writer.append([(request_id, Token(0, 7, text))])
    user.requests.writer.finish(request_id, End(finish_reason="stop"))


def test_each_client_talks_to_its_cluster(users: list[Client]) -> None:
    # Given a request to each of two clusters
    asked = [user.submit_prompt([1, 2, 3]) for user in users]
    # When each answers
    for user, generation, text in zip(users, asked, ("first", "second"), strict=True):
        # Then the record and the message are in its Redis only
        assert user.requests.open_ids() == [generation.id]
        (message,) = queued(user.redis, keys.ORCHESTRATOR_QUEUE)
        assert message["headers"]["id"] == generation.id
        record = user.requests.read(generation.id)
        assert record is not None
        assert record.options.max_tokens == {"first": 61, "second": 29}[text]
        answer(user, generation.id, text)
    # And so is the answer
    assert [generation.get(timeout=30).text for generation in asked] == ["first", "second"]
    assert asked[1].cancel() is False


def test_a_request_is_opened_by_the_client_of_its_cluster(users: list[Client]) -> None:
    # Given an answer of the second cluster
    first, second = users
    request_id = second.submit_prompt([1, 2, 3]).id
    answer(second, request_id, "second")
    # When both clients open it / Then only the second has it
    assert second.generation(request_id).get(timeout=30).text == "second"
    with pytest.raises(RequestLost):
        first.generation(request_id).get(timeout=0.1)


def test_streams_of_both_clusters_run_in_one_event_loop(users: list[Client]) -> None:
    # Given a stream from each cluster
    asked = [user.submit_prompt([1, 2, 3]) for user in users]

    async def read(index: int) -> list[str]:
        return [piece async for piece in asked[index].stream(timeout=30)]

    async def main() -> None:
        streams = [asyncio.create_task(read(index)) for index in (0, 1)]
        for index, text in ((1, "second"), (0, "first")):
            answer(users[index], asked[index].id, text)
        # Then each has its answer
        assert await asyncio.gather(*streams) == [["first"], ["second"]]

    asyncio.run(main())
