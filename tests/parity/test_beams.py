"""Beam search by the engine over real layers: the hypotheses of Transformers, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from harness import Cluster, cluster_of
from model_families import ENCODER_DECODERS
from references import OUTGROWN, PROMPTS, Reference, eager_experts
from seq2seq import TEXTS, VARIED, Translator, make_translator
from test_engine_parity import InProcess
from test_parity import KINDS

from skynet.engine.engine import Engine, EngineOptions
from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence as Generated
from skynet.request.record import Options, Record
from skynet.tokenizer.text import Text

NEW = 14
SHAPES = [(1, 1), (1, 3), (2, 2)]
END_IDS = [17, 44, 3]
# Generation options of Transformers; SkyNet's have the same names.
CASES: dict[str, dict[str, Any]] = {
    "two": {"num_beams": 2},
    "four": {"num_beams": 4},
    "long": {"num_beams": 3, "length_penalty": 2.0},
    "short": {"num_beams": 3, "length_penalty": -1.0},
    "early": {"num_beams": 4, "early_stopping": True},
    "never": {"num_beams": 4, "early_stopping": "never", "length_penalty": 0.7},
    "penalty": {"num_beams": 3, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "renormalized": {
        "num_beams": 4,
        "renormalize_logits": True,
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "suppress_tokens": list(range(40, 60)),
        "forced_eos_token_id": [44, 61],
    },
    "least": {"num_beams": 3, "min_new_tokens": 6, "forced_eos_token_id": [44]},
}
FORCED_SEARCH: dict[str, Any] = {
    "num_beams": 3,
    "forced_bos_token_id": 9,
    "length_penalty": 1.5,
    **VARIED,
}


class Beams(InProcess):
    """Keeps the beams of each search."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.beams: dict[str, list[dict[str, Any]]] = {}
        self.copies = 0

    def finished(self, sequence: Generated) -> None:
        super().finished(sequence)
        self.answers.setdefault(sequence.id, []).extend(
            token.id for token in sequence.output.pending
        )
        self.beams[sequence.id] = sequence.output.answer.get("beams", [])

    def deliver(self, engine: Engine) -> None:
        self.copies += sum(row.source is not None for row in self.sent[0].rows)
        super().deliver(engine)


def run(
    cluster: Cluster, records: Sequence[Record], end_ids: Sequence[int] = (), disturb_at: int = -1
) -> Beams:
    """All records at once; before step `disturb_at` the shards forget everything."""
    carrier = Beams(cluster)
    engine = Engine(cluster.plan, carrier, carrier, EngineOptions(max_batch_tokens=9))
    for record in records:
        model = ModelInfo(cluster.arch, Text({}), frozenset(end_ids), 60)
        engine.accept(Generated.of(record, model))
    run_disturbed(engine, carrier, cluster, disturb_at)
    assert set(carrier.ended) == {record.id for record in records}
    return carrier


def run_disturbed(engine: Engine, carrier: Any, cluster: Cluster, disturb_at: int) -> None:
    """Run all steps; before step `disturb_at` the shards forget everything."""
    number, engine.ready = 0, True
    engine.pump()
    while engine.in_flight:
        if number == disturb_at:
            carrier.give_up = lambda step: None
            carrier.sent = type(carrier.sent)()
            engine.resume(replace(cluster.plan, epoch=cluster.plan.epoch + 1))
            cluster.plan = engine.plan
        carrier.deliver(engine)
        number += 1


def options_of(fields: dict[str, Any], **more: Any) -> Options:
    chosen = {name: value for name, value in fields.items() if name != "eos_token_id"}
    return Options(
        max_tokens=NEW,
        **{name: tuple(v) if isinstance(v, list) else v for name, v in chosen.items()},
        **more,
    )


def search(model: Any, prompt: Sequence[int], fields: dict[str, Any], skipped: int) -> Any:
    """Transformers' hypotheses, best first: (tokens, score). Padding is cut off."""
    ids = torch.tensor([list(prompt)])
    config = transformers.GenerationConfig(
        max_new_tokens=NEW,
        do_sample=False,
        num_return_sequences=fields["num_beams"],
        return_dict_in_generate=True,
        output_scores=True,
        **{"eos_token_id": END_IDS, "pad_token_id": 0, **fields},
    )
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    lengths = (out.beam_indices >= 0).sum(dim=1).tolist()
    tokens = [
        sequence[skipped : skipped + length].tolist()
        for sequence, length in zip(out.sequences, lengths, strict=True)
    ]
    return list(zip(tokens, out.sequences_scores.tolist(), strict=True))


@cache
def searched(path: Path, case: str) -> list[Any]:
    """Transformers' hypotheses for each prompt; once for all shapes."""
    model = model_at(path)
    return [search(model, prompt, CASES[case], len(prompt)) for prompt in PROMPTS]


@cache
def searched_texts(tiny_translator: Translator) -> list[Any]:
    return [search(tiny_translator.model, text, FORCED_SEARCH, 1) for text in TEXTS]


def check(beams: list[dict[str, Any]], expected: Any) -> None:
    assert [beam["token_ids"] for beam in beams] == [tokens for tokens, _ in expected]
    assert [beam["score"] for beam in beams] == pytest.approx(
        [score for _, score in expected], rel=1e-5, abs=2e-4
    )


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Translator]:
    made: dict[str, Translator] = {}

    def make(family: str) -> Translator:
        if family not in made:
            made[family] = make_translator(family, {}, tmp_path_factory.mktemp(family))
        return made[family]

    return make


def model_at(path: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(path)
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, **eager_experts(config)
    ).eval()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_hypotheses_are_those_of_transformers(
    reference: Callable[..., Reference], case: str, shape: tuple[int, int]
) -> None:
    # Given a search, and Transformers' hypotheses
    model_reference, fields = reference("llama"), CASES[case]
    expected = searched(model_reference.path, case)
    # When all prompts are searched side by side, on slots for two or three of them
    records = [
        Record(str(n), tuple(prompt), options_of(fields), 0.0, 1e12)
        for n, prompt in enumerate(PROMPTS)
    ]
    cluster = cluster_of(model_reference.checkpoint, *shape, num_slots=9)
    try:
        carrier = run(cluster, records, END_IDS)
    finally:
        cluster.close()
    # Then hypotheses, scores and the answer are the same
    for number, hypotheses in enumerate(expected):
        check(carrier.beams[str(number)], hypotheses)
        assert carrier.answers[str(number)] == hypotheses[0][0]
    assert carrier.copies > 0


@pytest.mark.parametrize("disturb_at", [-1, 9])
def test_hypotheses_may_be_longer_than_the_pretraining_context(
    reference: Callable[..., Reference], disturb_at: int
) -> None:
    # Given a prompt of 12 tokens, and a rope that turns those of more than 16 otherwise
    model_reference, fields, prompt = reference("phi3", **OUTGROWN), CASES["four"], PROMPTS[0]
    expected = search(model_at(model_reference.path), prompt, fields, len(prompt))
    cluster = cluster_of(model_reference.checkpoint, 2, 2, num_slots=4)
    # When it is searched, and shards may lose everything
    records = [Record("0", tuple(prompt), options_of(fields), 0.0, 1e12)]
    try:
        carrier = run(cluster, records, END_IDS, disturb_at)
    finally:
        cluster.close()
    # Then hypotheses and scores are those of Transformers
    check(carrier.beams["0"], expected)


# What a beam copies depends on a family's kinds of layers and of state only.
@pytest.mark.parametrize("family", KINDS)
def test_every_kind_of_causal_family_can_be_searched(
    reference: Callable[..., Reference], family: str
) -> None:
    # Given
    model_reference, fields, prompt = reference(family), CASES["four"], PROMPTS[0]
    expected = search(model_at(model_reference.path), prompt, fields, len(prompt))
    cluster = cluster_of(model_reference.checkpoint, 2, 2, num_slots=4)
    # When
    try:
        carrier = run(cluster, [Record("0", tuple(prompt), options_of(fields), 0.0, 1e12)], END_IDS)
    finally:
        cluster.close()
    # Then
    check(carrier.beams["0"], expected)


@pytest.mark.parametrize("shape", [(1, 2), (2, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_every_encoder_decoder_can_be_searched(
    translator: Callable[[str], Translator], family: str, shape: tuple[int, int]
) -> None:
    # Given texts, a search whose first token is forced, and a greedy request beside it
    tiny_translator = translator(family)
    fields, expected = FORCED_SEARCH, searched_texts(tiny_translator)
    greedy = tiny_translator.answer(TEXTS[0], max_new_tokens=NEW, **VARIED)
    options = options_of(fields, decoder_start_token_id=tiny_translator.start)
    records = [Record(str(n), tuple(t), options, 0.0, 1e12) for n, t in enumerate(TEXTS)]
    plain = options_of(VARIED, decoder_start_token_id=tiny_translator.start, ignore_eos=True)
    records.append(Record("greedy", tuple(TEXTS[0]), plain, 0.0, 1e12))
    # When they run side by side, on slots for three searches at most
    cluster = cluster_of(tiny_translator.checkpoint, *shape, num_slots=10, slot_tokens=40)
    try:
        carrier = run(cluster, records, END_IDS)
    finally:
        cluster.close()
    # Then
    for number, hypotheses in enumerate(expected):
        check(carrier.beams[str(number)], hypotheses)
    assert carrier.answers["greedy"] == greedy


@pytest.mark.parametrize("at", [1, 3, 6, 9])
def test_a_search_goes_on_after_a_replay(
    reference: Callable[..., Reference], translator: Callable[[str], Translator], at: int
) -> None:
    # Given searches of a decoder and of an encoder-decoder
    fields = CASES["four"]
    llama, bart = reference("llama"), translator("bart")
    options = options_of(fields, decoder_start_token_id=bart.start)
    asked: list[tuple[Any, Any, Record]] = [
        (
            llama.checkpoint,
            search(model_at(llama.path), PROMPTS[0], fields, len(PROMPTS[0])),
            Record("0", tuple(PROMPTS[0]), options_of(fields), 0.0, 1e12),
        ),
        (
            bart.checkpoint,
            search(bart.model, TEXTS[0], fields, 1),
            Record("0", tuple(TEXTS[0]), options, 0.0, 1e12),
        ),
    ]
    for checkpoint, expected, record in asked:
        # When the shards lose everything in the middle of it
        cluster = cluster_of(checkpoint, 2, 2, num_slots=4, slot_tokens=60)
        try:
            carrier = run(cluster, [record], END_IDS, disturb_at=at)
        finally:
            cluster.close()
        # Then the hypotheses are those of an undisturbed search
        check(carrier.beams["0"], expected)
