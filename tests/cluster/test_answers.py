"""A cluster of real processes answers as Transformers does, however it is asked."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from checkpoints import Tiny, letters
from processes import wait_for
from transformers import AutoModelForCausalLM

from skynet.client.generation import Generation
from skynet.client.status import cluster_status
from skynet.errors import BadRequest, RequestCancelled, RequestTimeout
from skynet.local.cluster import LocalCluster
from skynet.request.completion import Completion
from skynet.store.connection import connect

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
NEW = 24


def test_tokens_are_those_of_transformers(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given prompts of different lengths / When one after the other is asked
    for prompt, expected in zip(tiny.prompts, tiny.tokens, strict=True):
        completion = cluster.submit_prompt(prompt, max_tokens=NEW).get(timeout=60)
        # Then tokens and text are right, and the record is complete
        assert completion.token_ids == expected
        assert completion.text == letters(expected)
        assert completion.prompt_tokens == len(prompt)
        assert completion.finish_reason == "length"
        timings = completion.timings
        assert 0 < timings["first_token_s"] <= timings["total_s"]
        assert timings["decode_tokens_per_s"] > 0


def test_many_requests_at_once_share_steps(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given 24 requests, three times as many as there are slots
    before = cluster_status(cluster.client.redis, cluster.url)["engine"]["steps"]
    prompts = tiny.prompts * 8
    # When all are asked at once
    generations = cluster.submit_prompts(prompts, max_tokens=NEW)
    answers = [generation.get(timeout=120).token_ids for generation in generations]
    # Then each has its answer
    assert answers == tiny.tokens * 8

    # And the steps were fewer than if each had run alone
    def steps() -> int:
        engine = cluster_status(cluster.client.redis, cluster.url)["engine"]
        return int(engine["steps"]) - before if engine["running"] == 0 else 0

    assert wait_for("the engine tells of its steps", steps) < len(prompts) * NEW / 2


def test_text_chat_and_ids_are_the_same_prompt(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given one prompt in four forms
    text = letters(tiny.prompts[0])
    half = len(text) // 2
    chat = [{"role": "user", "content": text[:half]}, {"role": "user", "content": text[half:]}]
    # When each is asked
    generations = [
        cluster.submit_prompt(text, max_tokens=NEW),
        cluster.submit_prompt(text, raw=False, max_tokens=NEW),
        cluster.submit_prompt(chat, max_tokens=NEW),
        cluster.submit_prompt(tuple(tiny.prompts[0]), max_tokens=NEW),
    ]
    # Then the answers are the same
    assert [g.get(timeout=60).token_ids for g in generations] == [tiny.tokens[0]] * 4


def test_streamed_pieces_are_the_text(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given a request that is read as it is made
    generation = cluster.submit_prompt(tiny.prompts[2], max_tokens=NEW)
    pieces = list(generation.stream(timeout=60))
    # Then its pieces are the text, one a token; read again, from the start or from the middle
    expected = letters(tiny.tokens[2])
    assert "".join(pieces) == expected
    assert len(pieces) == NEW
    assert "".join(generation.stream()) == expected
    assert "".join(generation.stream(start=10)) == expected[10:]
    assert [(t.index, t.id) for t in generation.tokens()] == list(enumerate(tiny.tokens[2]))


def test_a_stop_text_ends_the_answer_before_it(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given the text that will come
    text = letters(tiny.tokens[0])
    # When its ninth and tenth letters are a stop text
    generation = cluster.submit_prompt(tiny.prompts[0], max_tokens=NEW, stop=[text[8:10]])
    completion = generation.get(timeout=60)
    # Then it ends before them
    assert completion.text == "".join(generation.stream()) == text[: text.find(text[8:10])]
    assert completion.finish_reason == "stop"


def test_a_seed_fixes_the_answer(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given options that sample
    options: dict[str, Any] = {"max_tokens": NEW, "temperature": 1.2, "top_k": 30, "top_p": 0.95}
    # When seeds are asked for twice, side by side
    generations = [
        cluster.submit_prompt(tiny.prompts[0], seed=seed, **options) for seed in (1, 2, 1, 2)
    ]
    tokens = [generation.get(timeout=60).token_ids for generation in generations]
    # Then the same seed gives the same tokens, another one others
    assert tokens[:2] == tokens[2:]
    assert tokens[0] != tokens[1]


def test_many_can_be_awaited_at_once(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given generations in an event loop
    async def ask() -> list[Completion]:
        generations = [cluster.submit_prompt(p, max_tokens=NEW) for p in tiny.prompts * 4]

        async def wait(generation: Generation) -> Completion:
            return await generation

        return await asyncio.gather(*map(wait, generations))

    # When all are awaited together
    completions = asyncio.run(asyncio.wait_for(ask(), 90))
    # Then each has its answer
    assert [completion.token_ids for completion in completions] == tiny.tokens * 4


def test_another_process_attaches_to_a_request_by_its_id(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given a request of this process
    generation = cluster.submit_prompt(tiny.prompts[1], max_tokens=NEW)
    # When another process has its id only
    script = (
        "import sys; from skynet import Generation; g = Generation(sys.argv[1]);"
        "print(g.get(timeout=60).token_ids == [t.id for t in g.tokens()], g.status,"
        " g.completion.token_ids)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, generation.id],
        env={**os.environ, "SKYNET_REDIS_URL": cluster.url},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    # Then it reads the answer, in both ways
    assert result.stdout.strip() == f"True SUCCESS {tiny.tokens[1]}", result.stderr


def test_a_cancelled_request_ends_and_leaves_the_others_alone(
    cluster: LocalCluster, tiny: Tiny
) -> None:
    # Given a long answer and a short one
    long = cluster.submit_prompt(tiny.prompts[0], max_tokens=2000)
    short = cluster.submit_prompt(tiny.prompts[1], max_tokens=NEW)
    tokens = long.tokens(timeout=60)
    first = next(tokens)
    # When the long one is cancelled while it is read
    assert long.cancel()
    # Then its reader and its waiter get the reason
    with pytest.raises(RequestCancelled, match=long.id):
        list(tokens)
    with pytest.raises(RequestCancelled, match=long.id):
        long.get(timeout=60)
    assert first.id == tiny.tokens[0][0]
    assert long.status == "REVOKED"
    assert long.completion is None
    # And the other is answered; what has ended cannot be cancelled
    assert short.get(timeout=60).token_ids == tiny.tokens[1]
    assert not long.cancel()
    assert not short.cancel()


def test_a_request_whose_time_is_over_ends_with_an_error(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given less time than the answer takes
    generation = cluster.submit_prompt(tiny.prompts[0], max_tokens=2000, timeout=0.3)
    # When it is waited for / Then it says so
    with pytest.raises(RequestTimeout, match=r"was not answered within its 0\.3 s"):
        generation.get()
    with pytest.raises(RequestTimeout):
        list(generation.stream())


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt: empty"),
        ([], {}, "prompt: empty"),
        ([1] * 2048, {}, "has 2048 tokens, the cluster holds 2048"),
        ([1] * 2000, {"max_tokens": 49}, "leave room for 48"),
        ([1, 131], {}, "token 131 at position 1 is not in the vocabulary"),
        ([-1], {}, "token -1 at position 0"),
        ([1.5], {}, r"token 1.5 at position 0"),
        ([True], {}, "token True at position 0"),
        (["one"], {}, "token 'one' at position 0"),
        (None, {}, "got NoneType"),
        (b"text", {}, "got bytes"),
        ([{"role": "user"}], {}, "content"),
        ([1], {"temperature": -1}, "temperature -1"),
        ([1], {"temperature": float("nan")}, "temperature nan"),
        ([1], {"max_new_tokens": 5}, "unknown option max_new_tokens"),
        ([1], {"timeout": 0}, "timeout 0"),
        ([1], {"timeout": float("nan")}, "timeout nan"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_input_is_refused_at_submit(
    cluster: LocalCluster, prompt: Any, options: dict[str, Any], message: str
) -> None:
    # Given what can never be answered
    before = cluster.client.requests.num_open()
    # When it is submitted / Then the error names it, and nothing was written
    with pytest.raises(BadRequest) as raised:
        cluster.submit_prompt(prompt, **options)
    assert message in str(raised.value)
    assert cluster.client.requests.num_open() == before


def test_status_tells_plan_members_and_queues(cluster: LocalCluster) -> None:
    # Given a cluster that has answered
    def settled() -> dict[str, Any] | None:
        status = cluster_status(connect(cluster.url), cluster.url)
        idle = status["engine"] and not status["engine"]["running"]
        return status if idle and not any(status["queues"].values()) else None

    # When its status is read
    status = wait_for("an idle cluster", settled)
    # Then every worker has its slice, and nothing is left over
    addresses = {worker.address for worker in cluster.workers}
    assert {member["address"] for member in status["members"]} == addresses
    assert len({member["node"] for member in status["members"]}) == 7
    assert set(status["queues"]) == addresses
    assert (status["missing"], status["requests"]["open"]) == ([], 0)
    assert {member["state"] for member in status["members"]} == {"ready", "leading"}
    shards = [shard for stage in status["plan"]["stages"] for shard in stage["shards"]]
    assert [shard["heads"] for shard in shards[:3]] == [[0, 2], [2, 4], [4, 6]]


def test_steps_leave_nothing_in_redis(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given a cluster that has just answered
    cluster.submit_prompt(tiny.prompts[0], max_tokens=NEW).get(timeout=60)
    # Then each key of its steps has a time to live
    redis = cluster.client.redis
    for pattern in ("skynet:step:*", "skynet:hidden:*", "skynet:chord:*", "skynet:x:*"):
        for key in redis.scan_iter(pattern, count=1000):
            assert redis.ttl(key) != -1, key


def test_options_log_probabilities_and_samples(cluster: LocalCluster, tiny: Tiny) -> None:
    # Given a penalty, and what it does in Transformers
    prompt = tiny.prompts[0]
    model = AutoModelForCausalLM.from_pretrained(tiny.path, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            repetition_penalty=1.8,
            output_logits=True,
            return_dict_in_generate=True,
        )
    expected = torch.cat(output.logits).double().log_softmax(dim=-1)
    # When it is asked for with log-probabilities
    options: dict[str, Any] = {"max_tokens": NEW, "repetition_penalty": 1.8}
    asked: dict[str, Any] = {"logprobs": 3, "prompt_logprobs": 2}
    generation = cluster.submit_prompt(prompt, **asked, **options)
    completion = generation.get(timeout=60)
    # Then tokens and log-probabilities are the same
    assert completion.token_ids == output.sequences[0, len(prompt) :].tolist()
    for number, entry in enumerate(completion.logprobs):
        token = completion.token_ids[number]
        assert entry["logprob"] == pytest.approx(float(expected[number, token]), abs=1e-4)
        top = expected[number].topk(3)
        assert [other for other, _ in entry["top"]] == top.indices.tolist()
        assert [value for _, value in entry["top"]] == pytest.approx(top.values.tolist(), abs=1e-4)
    # And so are those of the prompt, wherever they are read
    with torch.no_grad():
        whole = model(ids).logits[0].double().log_softmax(dim=-1)
    first, *others = completion.prompt_logprobs
    assert first is None
    assert len(others) == len(prompt) - 1
    for number, entry in enumerate(others):
        assert entry is not None
        known = float(whole[number, prompt[number + 1]])
        assert entry["logprob"] == pytest.approx(known, abs=1e-4)
        assert [other for other, _ in entry["top"]] == whole[number].topk(2).indices.tolist()
    stored = generation.completion
    assert stored is not None
    assert stored.prompt_logprobs == completion.prompt_logprobs
    scored = cluster.submit_prompt(prompt, max_tokens=0, prompt_logprobs=2).get(timeout=60)
    assert (scored.token_ids, scored.finish_reason) == ([], "length")
    assert scored.prompt_logprobs == completion.prompt_logprobs
    # And an answer may go to the end of the slot
    longest = cluster.submit_prompt(prompt, max_tokens=-1, ignore_eos=True).get(timeout=90)
    plan = cluster.plan
    assert plan is not None
    assert len(prompt) + len(longest.token_ids) == plan.slot_tokens
    assert longest.finish_reason == "length"
    # And samples that share their prompt are those of each seed alone
    sampled: dict[str, Any] = {**options, "temperature": 1.3}
    together = cluster.client.submit_prompt(prompt, n=5, seed=7, **sampled)
    alone = [cluster.submit_prompt(prompt, seed=7 + number, **sampled) for number in range(5)]
    samples = [generation.get(timeout=60).token_ids for generation in together]
    assert samples == [generation.get(timeout=60).token_ids for generation in alone]
    assert len({tuple(tokens) for tokens in samples}) == 5
