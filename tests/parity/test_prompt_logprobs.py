"""Log-probabilities of a prompt's tokens are those of Transformers' full forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Checkpoint, Cluster, cluster_of
from references import OUTGROWN, PROMPTS, Reference
from test_beams import run_disturbed
from test_engine_parity import InProcess
from test_generation_options import model_at

from skynet.engine.engine import Engine, EngineOptions
from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence as Generated
from skynet.layers import scores
from skynet.request.record import Options, Record
from skynet.tokenizer.text import Text

SHAPES = [(1, 1), (1, 2), (2, 2), (2, 3)]
TOP = 5
NEW = 6


class Scored(InProcess):
    """Keeps the prompt's log-probabilities, and counts computed tokens."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.scores: dict[str, list[Any]] = {}
        self.sequences: dict[str, Generated] = {}
        self.num_computed = 0

    def finished(self, sequence: Generated) -> None:
        super().finished(sequence)
        self.scores[sequence.id] = sequence.end().answer["prompt_logprobs"]
        self.sequences[sequence.id] = sequence

    def deliver(self, engine: Engine) -> None:
        self.num_computed += self.sent[0].num_tokens
        super().deliver(engine)


def record_of(name: str, prompt: Sequence[int], group: str = "", **options: Any) -> Record:
    chosen = Options(**{"max_tokens": NEW, "prompt_logprobs": TOP, **options})
    return Record(name, tuple(prompt), chosen, 0.0, 1e12, sample_group=group)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head runs over few positions at a time."""
    monkeypatch.setattr(scores, "BLOCK_NUMBERS", 300)


def run(
    checkpoint: Checkpoint,
    shape: tuple[int, int],
    records: Sequence[Record],
    budget: int = 9,
    disturb_at: int = -1,
    span: str = "auto",
    written: Sequence[int] = (),
) -> Scored:
    """All records at once; before step `disturb_at` the shards forget everything.

    written: tokens of each answer that an earlier orchestrator has written.
    """
    cluster = cluster_of(checkpoint, *shape, num_slots=4, chord_span=span)
    carrier = Scored(cluster)
    engine = Engine(cluster.plan, carrier, carrier, EngineOptions(max_batch_tokens=budget))
    try:
        for record in records:
            model = ModelInfo(cluster.arch, Text({}), frozenset(), 128)
            sequence = Generated.of(record, model)
            sequence.output.restore(written)
            engine.accept(sequence)
        run_disturbed(engine, carrier, cluster, disturb_at)
    finally:
        cluster.close()
    assert set(carrier.ended) == {record.id for record in records}
    return carrier


def expected(path: Path, prompt: Sequence[int]) -> np.ndarray:
    """(positions, vocabulary): the log-softmax of a forward pass over the whole prompt."""
    with torch.no_grad():
        logits = model_at(path)(torch.tensor([list(prompt)])).logits[0]
    return np.asarray(logits.double().log_softmax(dim=-1))


def check(items: list[Any], path: Path, prompt: Sequence[int], top: int = TOP) -> None:
    logprobs = expected(path, prompt)
    assert len(items) == len(prompt)
    assert items[0] is None
    for at, item in enumerate(items[1:]):
        token = prompt[at + 1]
        assert item["logprob"] == pytest.approx(logprobs[at, token], abs=1e-4)
        ids = [other for other, _ in item["top"]]
        assert ids == np.argsort(-logprobs[at], kind="stable")[:top].tolist()
        assert [value for _, value in item["top"]] == pytest.approx(
            logprobs[at, ids].tolist(), abs=1e-4
        )
        # The same number, to the last bit, where the token is among the likeliest
        assert dict(map(tuple, item["top"])).get(token, item["logprob"]) == item["logprob"]


@pytest.mark.parametrize("span", ["layer", "stage"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prompt_log_probabilities_are_those_of_transformers(
    reference: Callable[..., Reference], shape: tuple[int, int], span: str
) -> None:
    # Given prompts that are computed in chunks, beside each other
    model_reference = reference("llama")
    records = [record_of(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    # When their log-probabilities are asked for
    carrier = run(model_reference.checkpoint, shape, records, span=span)
    # Then they are those of one forward pass, and the answers are as without
    for number, prompt in enumerate(PROMPTS):
        check(carrier.scores[str(number)], model_reference.path, prompt)
        assert carrier.answers[str(number)] == model_reference.tokens[number][:NEW]


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "phi3"])
def test_prompt_log_probabilities_with_other_heads(
    reference: Callable[..., Reference], family: str
) -> None:
    # Given heads with caps, tied to the embedding, with a rope that depends on the length
    model_reference = reference(family, **(OUTGROWN if family == "phi3" else {}))
    # When / Then
    records = [record_of(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    carrier = run(model_reference.checkpoint, (2, 2), records, budget=512)
    for number, prompt in enumerate(PROMPTS):
        check(carrier.scores[str(number)], model_reference.path, prompt)


def test_prompt_log_probabilities_on_the_transformers_backend(
    reference: Callable[..., Reference],
) -> None:
    # Given a family's checkpoint on Transformers' own layers
    path = reference("llama").path
    checkpoint = Checkpoint(path, transformers_backend=True)
    # When / Then
    carrier = run(checkpoint, (1, 2), [record_of("0", PROMPTS[2])])
    check(carrier.scores["0"], path, PROMPTS[2])


@pytest.mark.parametrize("disturb_at", range(7))
def test_a_recovery_leaves_no_gap_in_prompt_log_probabilities(
    reference: Callable[..., Reference], disturb_at: int
) -> None:
    # Given a prompt of three chunks, with an answer
    model_reference, prompt = reference("llama"), PROMPTS[2]
    # When shards lose everything before one of its steps
    carrier = run(
        model_reference.checkpoint, (1, 2), [record_of("0", prompt)], disturb_at=disturb_at
    )
    # Then nothing is missing
    check(carrier.scores["0"], model_reference.path, prompt)
    assert carrier.answers["0"] == model_reference.tokens[2][:NEW]


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("count", [2, 5, NEW])
def test_another_orchestrator_computes_prompt_log_probabilities_again(
    reference: Callable[..., Reference], family: str, count: int
) -> None:
    # Given a request with tokens written, the last one included, whose end is not; phi3's outgrow
    # the positions after which its rope is another
    model_reference = reference(family, **(OUTGROWN if family == "phi3" else {}))
    number, prompt = 0, PROMPTS[0]
    written = model_reference.tokens[number][:count]
    # When another orchestrator takes it over
    carrier = run(
        model_reference.checkpoint, (1, 2), [record_of("0", prompt)], budget=5, written=written
    )
    # Then it ends with all of them, and with the rest of the same answer
    check(carrier.scores["0"], model_reference.path, prompt)
    assert [*written, *carrier.answers.get("0", [])] == model_reference.tokens[number][:NEW]


def test_a_prompt_is_scored_without_an_answer(reference: Callable[..., Reference]) -> None:
    # Given prompts for no token, one of them a single token, another as long as a slot
    model_reference = reference("llama")
    prompts = [PROMPTS[1], [5], (PROMPTS[2] * 6)[:128]]
    records = [record_of(str(n), p, max_tokens=0) for n, p in enumerate(prompts)]
    # When
    carrier = run(model_reference.checkpoint, (1, 2), records)
    # Then no step comes after the prompts, and each has its numbers
    assert carrier.num_computed == sum(map(len, prompts))
    assert carrier.answers == {}
    assert set(carrier.ended.values()) == {"length"}
    for number, prompt in enumerate(prompts):
        check(carrier.scores[str(number)], model_reference.path, prompt)


def test_a_scored_prompt_is_computed_though_it_is_cached(
    reference: Callable[..., Reference],
) -> None:
    # Given the same prompt twice, one after the other
    model_reference, prompt = reference("llama"), PROMPTS[2]
    cluster = cluster_of(model_reference.checkpoint, 1, 2, num_slots=4)
    carrier = Scored(cluster)
    engine = Engine(cluster.plan, carrier, carrier)
    engine.ready = True
    try:
        for name in ("first", "second"):
            model = ModelInfo(cluster.arch, Text({}), frozenset(), 128)
            engine.accept(Generated.of(record_of(name, prompt), model))
            while engine.in_flight:
                carrier.deliver(engine)
    finally:
        cluster.close()
    # Then both are computed and have the same numbers
    assert carrier.sequences["second"].cached_tokens == 0
    assert carrier.num_computed == 2 * (len(prompt) + NEW - 1)
    assert carrier.scores["first"] == carrier.scores["second"]
    check(carrier.scores["second"], model_reference.path, prompt)


def test_samples_of_a_prompt_share_its_scores(reference: Callable[..., Reference]) -> None:
    # Given three samples
    model_reference, prompt = reference("llama"), PROMPTS[2]
    records = [
        record_of(str(seed), prompt, group="0", temperature=1.0, seed=seed) for seed in range(3)
    ]
    # When
    carrier = run(model_reference.checkpoint, (1, 2), records)
    # Then each has the numbers, and the prompt was computed once, its last token by each
    assert carrier.num_computed == len(prompt) + 2 + 3 * (NEW - 1)
    for number in range(3):
        check(carrier.scores[str(number)], model_reference.path, prompt)


def test_no_likeliest_tokens_are_returned_where_none_are_asked_for(
    reference: Callable[..., Reference],
) -> None:
    # Given / When
    model_reference, prompt = reference("llama"), PROMPTS[0]
    carrier = run(model_reference.checkpoint, (2, 3), [record_of("0", prompt, prompt_logprobs=0)])
    # Then
    check(carrier.scores["0"], model_reference.path, prompt, top=0)
