"""Requests with a grammar in the orchestrator: compiled, replayed, refused."""

from __future__ import annotations

import threading

import pytest
import redis
from made_tokenizers import byte_level
from orchestrator_cases import (
    CONFIG,
    Shards,
    ask,
    bring_up,
    parts,
    sent_steps,
    submit,
    watch,
)
from tokenizers import Tokenizer
from waiting import wait_for

from skynet.engine.grammar import Grammars
from skynet.orchestrator.runtime import OrchestratorRuntime
from skynet.request.structured import structured_text
from skynet.store.requests import Requests
from skynet.store.staging import StagingJob
from skynet.store.weights import WeightStore
from skynet.tokenizer.staged_tokenizer import FILE, StagedTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

BACKEND = byte_level("<s>", "</s>")
IDS = Tokenizer.from_str(BACKEND).encode


@pytest.fixture
def with_tokenizer(client: redis.Redis) -> None:
    """The target is a model with a tokenizer."""
    files = {FILE: StagedTokenizer(backend=BACKEND).to_json()}
    config = {**CONFIG, "vocab_size": 410, "eos_token_id": 1}
    WeightStore(client).stage(StagingJob("s", "tiny", config, {}, files, None, 4096))  # type: ignore[arg-type]
    ask(client, model="s")


def is_running(runtime: OrchestratorRuntime) -> bool:
    watch(runtime)
    return bool(runtime.status()["running"])


def open_ids(runtime: OrchestratorRuntime, client: redis.Redis) -> list[str]:
    watch(runtime)
    return Requests(client, 1000).open_ids()


def row_in_flight(runtime: OrchestratorRuntime, step: int) -> tuple[int, tuple[int, ...]]:
    assert runtime.leader.service is not None
    (row,) = runtime.leader.service.engine.in_flight[step].step.rows
    assert row.logits_request is not None
    return row.start, row.tokens


def test_an_answer_by_a_grammar_is_replayed_from_its_tokens(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis, with_tokenizer: None
) -> None:
    # Given a request whose first token leaves no choice for the next ones
    bring_up(runtime, shards)
    option = structured_text(
        {
            "json": {
                "properties": {"age": {"enum": [7, 8]}},
                "required": ["age"],
                "additionalProperties": False,
            }
        }
    )
    submit(client, "r1", max_tokens=50, structured_outputs=option)
    wait_for("the grammar to be compiled", lambda: is_running(runtime))
    ((epoch, step),) = sent_steps(client)
    wanted = IDS('{"age":7}').ids
    # When the first token comes
    runtime.messages.finish_step(parts(wanted[0]), epoch, step, 0.0)
    # Then those without an alternative are written with it, and computed in the next step
    written = [token.id for token in Requests(client, 1000).emitted("r1")]
    assert written == wanted[: len(written)]
    assert len(written) == len(wanted) - 2
    ((epoch, step),) = sent_steps(client)
    assert row_in_flight(runtime, step) == (3, tuple(written))
    # When the step is lost
    runtime.messages.fail_step(epoch, step, "PeerLost", "stage0.shard1 was too late")
    bring_up(runtime, shards)
    # Then the answer continues in the same place of the grammar
    ((epoch, step),) = sent_steps(client)
    assert row_in_flight(runtime, step) == (0, (1, 5, 7, *written))
    runtime.messages.finish_step(parts(wanted[-2]), epoch, step, 0.0)
    result = runtime.context.app.AsyncResult("r1").result
    assert (result["token_ids"], result["finish_reason"]) == (wanted, "stop")
    assert result["text"] == '{"age":7}'


def test_another_orchestrator_continues_in_the_middle_of_a_grammar(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis, with_tokenizer: None
) -> None:
    # Given an answer with some tokens, and an orchestrator that has forgotten it
    bring_up(runtime, shards)
    option = structured_text({"regex": "(yes|no), it (is|was) so"})
    submit(client, "r1", max_tokens=50, structured_outputs=option)
    wait_for("the grammar to be compiled", lambda: is_running(runtime))
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(IDS("no, it").ids[0]), epoch, step, 0.0)
    service = runtime.leader.service
    assert service is not None
    service.engine.requests.drop(service.engine.sequences["r1"])
    # When it takes the record
    sent_steps(client)
    watch(runtime)
    # Then the answer so far is computed again, and continues in the same place
    written = [token.id for token in Requests(client, 1000).emitted("r1")]
    ((epoch, step),) = sent_steps(client)
    assert row_in_flight(runtime, step) == (0, (1, 5, 7, *written))
    end = IDS(" was so").ids
    runtime.messages.finish_step(parts(end[0]), epoch, step, 0.0)
    assert runtime.context.app.AsyncResult("r1").result["text"].startswith("no, it w")


@pytest.mark.parametrize(
    "option",
    [
        '{"regex": "(a"}',
        '{"regex": 5}',
        '{"json": {"uniqueItems": true}}',
        '{"grammar": "start: <|nonsense|>"}',
        '{"json": {"$ref": "#"}}',
        "[]",
    ],
)
def test_a_grammar_that_cannot_be_used_ends_its_request(
    runtime: OrchestratorRuntime,
    shards: Shards,
    client: redis.Redis,
    with_tokenizer: None,
    option: str,
) -> None:
    # Given a record that another client wrote
    bring_up(runtime, shards)
    submit(client, "r1", structured_outputs=option)
    # When / Then
    wait_for("its end", lambda: open_ids(runtime, client) == [])
    result = runtime.context.app.AsyncResult("r1").result
    assert "structured_outputs" in str(result)
    assert type(result).__name__ == "BadRequest"


def test_others_run_while_a_grammar_is_compiled(
    runtime: OrchestratorRuntime,
    shards: Shards,
    client: redis.Redis,
    with_tokenizer: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a grammar that takes until we say
    go_on, compiled = threading.Event(), Grammars._compile

    def slowly(self: Grammars, option: str) -> object:
        go_on.wait(60)
        return compiled(self, option)

    monkeypatch.setattr(Grammars, "_compile", slowly)
    bring_up(runtime, shards)
    submit(client, "slow", structured_outputs=structured_text({"regex": "a+"}), max_tokens=1)
    submit(client, "cancelled", structured_outputs=structured_text({"regex": "b+"}))
    submit(client, "plain", max_tokens=1)
    watch(runtime)
    # When / Then
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(9), epoch, step, 0.0)
    assert runtime.context.app.AsyncResult("plain").state == "SUCCESS"
    # And when it is compiled, its request runs, and one that was cancelled meanwhile ends
    Requests(client, 1000).ask_cancel("cancelled")
    go_on.set()
    letters = {"slow": IDS("a").ids[0], "cancelled": IDS("b").ids[0]}

    def have_ended() -> bool:
        for epoch, step in sent_steps(client):
            assert runtime.leader.service is not None
            (sequence,) = runtime.leader.service.engine.in_flight[step].sequences
            runtime.messages.finish_step(parts(letters[sequence.id]), epoch, step, 0.0)
        return not open_ids(runtime, client)

    wait_for("the ends of both", have_ended)
    assert runtime.context.app.AsyncResult("slow").result["text"] == "a"
    assert runtime.context.app.AsyncResult("cancelled").state == "REVOKED"
