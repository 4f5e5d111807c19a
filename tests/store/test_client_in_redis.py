"""The client: requests, refusals, and lost messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import redis
from chord_cases import queued

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.errors import BadRequest, ClusterUnreachable, NoModel, QueueFull
from skynet.local.server import EmbeddedServer
from skynet.request.record import End, Logprobs, Token
from skynet.settings import settings
from skynet.store.staging import StagingJob
from skynet.store.targets import Target, Targets
from skynet.store.weights import WeightStore
from skynet.wire import keys

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "vocab_size": 100,
}


@pytest.fixture
def user(server: EmbeddedServer, client: redis.Redis) -> Iterator[Client]:
    """A client of a cluster that is asked for a model without weights, on 2 slots."""
    WeightStore(client).stage(StagingJob("d", "tiny", CONFIG, {}, {}, None, 4096))  # type: ignore[arg-type]
    Targets(client).ask(Target("d", "tiny", "float32", "auto", num_slots=2, slot_tokens=64))
    connected = Client(server.url)
    yield connected
    connected.close()


@pytest.fixture
def max_waiting(monkeypatch: pytest.MonkeyPatch) -> int:
    """SKYNET_MAX_WAITING."""
    monkeypatch.setenv("SKYNET_MAX_WAITING", "3")
    settings.cache_clear()
    return 3


def test_a_request_is_written_and_its_task_sent(user: Client, client: redis.Redis) -> None:
    client.config_resetstat()
    # When something is asked for
    before = user.requests.now()
    generation = user.submit_prompt([1, 2, 3], priority=4, timeout=50, max_tokens=5)
    # Then its record says so, by the clock of Redis
    record = user.requests.read(generation.id)
    assert record is not None
    assert (record.prompt, record.priority, record.model) == ((1, 2, 3), 4, "d")
    assert record.options.max_tokens == 5
    assert record.deadline - record.created == pytest.approx(50)
    assert abs(record.created - before) < 30
    # And its task waits for an orchestrator
    (message,) = queued(client, keys.ORCHESTRATOR_QUEUE)
    assert (message["headers"]["task"], message["headers"]["id"]) == (
        keys.GENERATE_TASK,
        generation.id,
    )
    # And it has subscribed to no result, which would end only once Redis answers
    assert "cmdstat_subscribe" not in client.info("commandstats")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": 10}, "priority 10"),
        ({"priority": -1}, "priority -1"),
        ({"priority": None}, "priority None"),
        ({"timeout": 0}, "timeout 0"),
        ({"timeout": float("nan")}, "timeout nan"),
        ({"max_tokens": 62}, "max_tokens 62"),
        ({"best_of": 2}, "best_of"),
        ({"n": 0}, "n 0"),
        ({"n": 17}, "n 17"),
        ({"n": 3, "priority": 10}, "priority 10"),
        ({"source_language": 5}, "source_language 5: a text"),
        ({"target_language": b"en"}, "target_language b'en': a text"),
        ({"task": "embed", "n": 2}, "n 2: task embed has one answer"),
        ({"suppress_tokens": [100]}, "suppress_tokens 100: a whole number from 0 to 99"),
    ],
)
def test_an_invalid_request_is_refused_and_nothing_written(
    user: Client, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        user.submit_prompt([1, 2, 3], **options)
    assert user.requests.open_ids() == []


def test_the_queue_limit_counts_requests_beyond_the_slots(user: Client, max_waiting: int) -> None:
    # Given 2 slots, and as many requests as may run and wait
    submitted = [user.submit_prompt([1]) for _ in range(2 + max_waiting)]
    # When another one comes / Then it is refused
    with pytest.raises(QueueFull, match="5 requests are unfinished"):
        user.submit_prompt([1])
    # And when one has ended it is taken
    user.requests.writer.finish(submitted[0].id, End(finish_reason="stop"))
    assert user.submit_prompt([1]).id in user.requests.open_ids()


def test_a_cluster_without_a_model_says_so(server: EmbeddedServer, client: redis.Redis) -> None:
    with pytest.raises(NoModel, match="skynet split"):
        Client(server.url).submit_prompt([1])


def test_a_request_whose_message_is_lost_is_not_lost(
    user: Client, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a queue that takes nothing
    def refuse(*_: Any, **__: Any) -> None:
        raise ClusterUnreachable("no answer")

    monkeypatch.setattr(user, "send", refuse)
    # When something is asked for / Then it is written, for a sweep to find
    generation = user.submit_prompt([1, 2, 3])
    assert user.requests.open_ids() == [generation.id]
    assert queued(client, keys.ORCHESTRATOR_QUEUE) == []


def test_celerys_own_questions_are_answered(user: Client) -> None:
    # Given a request
    generation = user.submit_prompt([1, 2, 3])
    assert (generation.ready(), generation.state) == (False, "PENDING")
    # When it ends, with its Celery result
    user.requests.writer.append([(generation.id, Token(0, 7, "hi"))])
    backend = user.app.backend
    completion = {"text": "hi", "token_ids": [7], "prompt_tokens": 3, "finish_reason": "stop"}
    completion |= {"cached_tokens": 2, "a field of a later version": 1}
    meta = backend._get_result_meta(completion, "SUCCESS", None, None)
    payload = backend.encode({**meta, "task_id": generation.id})
    key = backend.get_key_for_task(generation.id)
    end = End(finish_reason="stop", cached_tokens=2)
    user.requests.writer.finish(generation.id, end, (key, payload))
    # Then AsyncResult's methods know it, and it is the same answer
    assert (generation.ready(), generation.successful(), generation.state) == (
        True,
        True,
        "SUCCESS",
    )
    assert generation.completion == generation.get(timeout=30)
    assert generation.get().cached_tokens == 2


def test_a_reader_that_comes_back_reads_on_from_any_token(user: Client) -> None:
    # Given a request whose client has died
    name = user.submit_prompt([1, 2, 3]).id
    for index in range(4):
        user.requests.writer.append([(name, Token(index, index, f"{index} "))])
    user.requests.writer.finish(name, End(text="!", finish_reason="stop"))
    # When another takes hold of it / Then it reads from where it likes
    assert list(Generation(name, user).stream(start=2)) == ["2 ", "3 ", "!"]
    assert [token.index for token in Generation(name, user).tokens()] == [0, 1, 2, 3, -1]


def test_a_request_is_cancelled_from_anywhere(user: Client, client: redis.Redis) -> None:
    # Given a request
    name = user.submit_prompt([1]).id
    queued(client, keys.ORCHESTRATOR_QUEUE)
    # When another process cancels it
    assert Generation(name, user).cancel()
    # Then the note is there, and the orchestrator is told
    record = user.requests.read(name)
    assert record is not None
    assert record.cancelled
    (message,) = queued(client, keys.ORCHESTRATOR_QUEUE)
    assert message["headers"]["task"] == keys.CANCEL_TASK
    # And one that is unknown leaves nothing behind
    assert not Generation("unknown", user).cancel()
    assert user.requests.read("unknown") is None
    assert client.exists(keys.request_key("unknown")) == 0


def test_samples_are_requests_of_one_sample_group(user: Client, client: redis.Redis) -> None:
    # When three samples are asked for
    generations = user.submit_prompt([1, 2, 3], n=3, temperature=0.5, seed=2**64 - 2)
    # Then each has its record and its task, another seed, and the first one's id as sample group
    records = [user.requests.read(generation.id) for generation in generations]
    assert [record.options.seed for record in records if record] == [2**64 - 2, 2**64 - 1, 0]
    assert {record.sample_group for record in records if record} == {generations[0].id}
    assert user.requests.open_ids() == [generation.id for generation in generations]
    assert len(queued(client, keys.ORCHESTRATOR_QUEUE)) == 3


def test_one_sample_is_a_list_of_one_plain_request(user: Client) -> None:
    (generation,) = user.submit_prompt([1, 2, 3], n=1)
    record = user.requests.read(generation.id)
    assert record is not None
    assert record.sample_group == ""


def test_samples_are_of_one_prompt(user: Client) -> None:
    with pytest.raises(BadRequest, match="n 2: call submit_prompt for each prompt"):
        user.submit_prompts([[1], [2]], n=2)
    assert user.requests.open_ids() == []


def test_many_prompts_are_submitted_together_or_not_at_all(
    user: Client, max_waiting: int, client: redis.Redis
) -> None:
    # Given prompts of which one cannot work, and more than the cluster takes / Then none is written
    with pytest.raises(BadRequest, match=r"prompts\[1\]: prompt: token 100 at position 0"):
        user.submit_prompts([[1], [100], [2]])
    with pytest.raises(QueueFull, match="6 prompts at once, the limit is 5"):
        user.submit_prompts([[1]] * 6)
    user.submit_prompt([1])
    with pytest.raises(QueueFull, match="1 requests are unfinished, the limit is 5"):
        user.submit_prompts([[1]] * 5)
    assert user.requests.num_open() == 1
    assert len(queued(client, keys.ORCHESTRATOR_QUEUE)) == 1
    # And those that fit are in order, from any iterable
    submitted = user.submit_prompts(([token] for token in range(4)), max_tokens=3)
    assert [generation.id for generation in submitted] == user.requests.open_ids()[1:]
    assert user.submit_prompts([]) == []


def test_token_ids_of_numpy_are_token_ids(user: Client) -> None:
    generation = user.submit_prompt([np.int64(1), np.uint8(2)])
    record = user.requests.read(generation.id)
    assert record is not None
    assert record.prompt == (1, 2)
    with pytest.raises(BadRequest, match="token 100 at position 1 is not in the vocabulary"):
        user.submit_prompt([np.int64(1), np.int64(100)])


def test_log_probabilities_are_in_the_completion(user: Client) -> None:
    # Given an answer with them
    generation = user.submit_prompt([1, 2, 3], logprobs=1)
    user.requests.writer.append([(generation.id, Token(0, 5, "a", Logprobs(-0.5, ((7, -0.25),))))])
    user.requests.writer.finish(generation.id, End(finish_reason="stop"))
    # Then the completion has one entry a token, as JSON has it
    completion = generation.get(timeout=10)
    assert completion.logprobs == [{"logprob": -0.5, "top": [[7, -0.25]]}]
