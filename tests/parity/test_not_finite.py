"""NaN and infinity among a model's numbers: the requests that meet them end, all others go on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Checkpoint, Cluster, cluster_of
from model_families import ENCODER_DECODERS, ENCODERS
from references import PROMPTS, Reference, save_random_encoder, save_random_model
from seq2seq import make_translator
from test_engine_parity import InProcess
from test_parity import KINDS

from skynet.engine.engine import Engine, EngineOptions
from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence as Generated
from skynet.errors import NotFinite, SkynetError
from skynet.request.record import Options, Record
from skynet.tokenizer.text import Text
from skynet.wire.step import Step

BAD = 50  # the token whose row of the embedding is broken
NEW = 12
POISONED = [[12, 99, 31, BAD, 2, 2, 18, 120, 45, 6, 71, 33, 90, 14, 27, 55, 3, 101], [7, BAD]]


class Recorder(InProcess):
    """Keeps errors, texts' answers and all steps; a failed step goes back to the engine."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.errors: dict[str, SkynetError] = {}
        self.results: dict[str, Any] = {}
        self.steps: list[Step] = []

    def send(self, step: Step) -> None:
        super().send(step)
        self.steps.append(step)

    def give_up(self, step: Step) -> None:
        """Its shards have failed."""

    def finished(self, sequence: Generated) -> None:
        super().finished(sequence)
        self.results[sequence.id] = sequence.output.answer
        self.answers.setdefault(sequence.id, []).extend(t.id for t in sequence.output.pending)

    def failed(self, sequence: Generated, error: SkynetError) -> None:
        self.errors[sequence.id] = error

    def deliver(self, engine: Engine) -> None:
        step = self.sent[0]
        try:
            super().deliver(engine)
        except NotFinite as error:
            engine.fail_step(step.epoch, step.number, error)


def run(
    cluster: Cluster, prompts: Sequence[Sequence[int]], options: Options, budget: int = 7
) -> Recorder:
    """Requests that join one after the other, named by their numbers."""
    carrier = Recorder(cluster)
    engine = Engine(cluster.plan, carrier, carrier, EngineOptions(max_batch_tokens=budget))
    engine.ready = True
    for number, prompt in enumerate(prompts):
        record = Record(str(number), tuple(prompt), options, 0.0, 1e12)
        model = ModelInfo(cluster.arch, Text({}), frozenset(), 128)
        engine.accept(Generated.of(record, model))
        if carrier.sent:
            carrier.deliver(engine)
    while engine.in_flight:
        carrier.deliver(engine)
    return carrier


def with_numbers(checkpoint: Checkpoint, name: str, index: Any, value: float) -> Checkpoint:
    """The checkpoint with `value` at an index of a tensor."""
    changed = copy.copy(checkpoint)
    tensor = checkpoint.tensors[name].clone()
    tensor[index] = value
    changed.tensors = {**checkpoint.tensors, name: tensor}
    return changed


def with_bad_token(checkpoint: Checkpoint, value: float = math.nan) -> Checkpoint:
    """The checkpoint with a broken row in the embedding of the first stack."""
    stack = checkpoint.arch.encoder or checkpoint.arch
    embed = stack.weight("embed")
    assert embed is not None
    return with_numbers(checkpoint, embed.tensor(), (BAD, 3), value)


def check_that_only_poisoned_requests_end(
    checkpoint: Checkpoint,
    prompts: Sequence[Sequence[int]],
    options: Options,
    shape: tuple[int, int] = (2, 2),
    span: str = "stage",
) -> None:
    """Healthy requests answer as without the others, in slots that the others have left."""
    # Given requests of which every second meets the broken token
    mixed = [prompt for pair in zip(prompts, POISONED * 2, strict=False) for prompt in pair]
    poisoned = {str(number) for number, prompt in enumerate(mixed) if BAD in prompt}
    slots = max(3, 2 * options.num_beams)
    if options.read is None:  # no healthy request may choose it
        options = replace(options, suppress_tokens=(BAD,))
    cluster = cluster_of(checkpoint, *shape, chord_span=span, num_slots=slots)
    broken = cluster_of(with_bad_token(checkpoint), *shape, chord_span=span, num_slots=slots)
    try:
        undisturbed = run(cluster, [p for p in mixed if BAD not in p], options)
        # When they share steps
        carrier = run(broken, mixed, options)
    finally:
        cluster.close()
        broken.close()
    # Then those end, and name the place
    parts = broken.plan.stages[0].shards
    owner = next(shard for shard, part in enumerate(parts) if BAD in part.vocab)
    assert set(carrier.errors) == poisoned
    for error in carrier.errors.values():
        assert isinstance(error, NotFinite)
        assert f"first at token {BAD}" in str(error)
        assert "of the token embeddings" in str(error)
        assert str(error).startswith(f"stage0.shard{owner}: ")
    # And the others are answered
    healthy = [str(number) for number, prompt in enumerate(mixed) if BAD not in prompt]
    for number, name in enumerate(healthy):
        assert carrier.answers.get(name) == undisturbed.answers.get(str(number))
        compare(carrier.results[name], undisturbed.results[str(number)])


def compare(result: Any, expected: Any) -> None:
    """Answers of texts may differ by rounding: their batches do."""
    if isinstance(result, float):
        assert math.isclose(result, expected, rel_tol=1e-4, abs_tol=1e-5)
    elif isinstance(result, dict | list):
        keys = result if isinstance(result, dict) else range(len(result))
        assert len(result) == len(expected)
        for key in keys:
            compare(result[key], expected[key])
    else:
        assert result == expected


@pytest.mark.parametrize(
    ("stages", "shards", "span"),
    [(1, 1, "layer"), (1, 3, "stage"), (2, 2, "layer"), (2, 2, "stage")],
)
@pytest.mark.parametrize(
    "options",
    [
        Options(max_tokens=NEW, logprobs=3),
        Options(max_tokens=NEW, num_beams=3),
        Options(max_tokens=NEW, temperature=0.9, top_p=0.9, seed=3),
    ],
    ids=["logprobs", "beams", "sampled"],
)
def test_a_broken_token_ends_its_requests_alone(
    reference: Callable[..., Reference], stages: int, shards: int, span: str, options: Options
) -> None:
    checkpoint = reference("llama").checkpoint
    check_that_only_poisoned_requests_end(checkpoint, PROMPTS, options, (stages, shards), span)


# The numbers are found, and forgotten, by a family's kinds of layers and of state.
@pytest.mark.parametrize("family", sorted({*KINDS, "gpt2", "bloom"} - {"llama"}))
def test_a_broken_token_ends_its_requests_in_every_kind(family: str, tmp_path: Path) -> None:
    untied = {"tie_word_embeddings": False} if family == "gpt2" else {}
    _, checkpoint = save_random_model(family, untied, tmp_path)
    check_that_only_poisoned_requests_end(checkpoint, PROMPTS, Options(max_tokens=NEW))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_broken_token_ends_its_requests_on_the_transformers_backend(
    family: str, tmp_path: Path
) -> None:
    save_random_model(family, {}, tmp_path)
    checkpoint = Checkpoint(tmp_path, transformers_backend=True)
    check_that_only_poisoned_requests_end(checkpoint, PROMPTS, Options(max_tokens=NEW))


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_broken_token_ends_its_requests_in_every_encoder_decoder(
    family: str, tmp_path: Path
) -> None:
    translator = make_translator(family, {}, tmp_path)
    options = Options(max_tokens=NEW, decoder_start_token_id=translator.start)
    check_that_only_poisoned_requests_end(translator.checkpoint, PROMPTS, options)


@pytest.mark.parametrize(
    ("family", "head", "task"),
    [
        *((family, "Model", "embed") for family in ENCODERS),
        ("bert", "ForMaskedLM", "fill-mask"),
        ("modernbert", "ForSequenceClassification", "classify"),
    ],
)
def test_a_broken_token_ends_its_text_alone(
    family: str, head: str, task: str, tmp_path: Path
) -> None:
    untied = {} if head == "Model" else {"tie_word_embeddings": False}
    encoder = save_random_encoder(family, head, untied, tmp_path)
    options = Options(read={"task": task, "positions": [1]})
    check_that_only_poisoned_requests_end(encoder.checkpoint, PROMPTS, options)


@pytest.mark.parametrize("span", ["layer", "stage"])
@pytest.mark.parametrize(
    ("tensor", "index", "place"),
    [
        ("model.layers.2.mlp.down_proj.weight", (3, 70), "stage1.shard1: .* layer 2, "),
        ("model.layers.1.self_attn.v_proj.weight", (0, 5), "stage0.shard0: .* layer 1, "),
        ("model.layers.3.input_layernorm.weight", 7, r"stage1.shard[01]: .* layer 3, "),
        ("lm_head.weight", (130, 2), "stage1.shard1: .* of the logits, "),
        ("model.norm.weight", 2, "stage1.shard[01]: .* of the logits, "),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_weight_ends_requests_with_its_layer_and_shard(
    reference: Callable[..., Reference],
    tensor: str,
    index: Any,
    place: str,
    value: float,
    span: str,
) -> None:
    # Given a weight that every request meets
    checkpoint = with_numbers(reference("llama").checkpoint, tensor, index, value)
    cluster = cluster_of(checkpoint, 2, 2, chord_span=span, num_slots=4)
    # When
    carrier = run(cluster, PROMPTS, Options(max_tokens=NEW), budget=64)
    cluster.close()
    # Then each ends after one confirmation, and the error names layer, stage and shard
    assert set(carrier.errors) == {"0", "1", "2"}
    for error in carrier.errors.values():
        assert isinstance(error, NotFinite)
        with pytest.raises(NotFinite, match=place):
            raise error
    assert len(carrier.steps) <= 2 * len(PROMPTS)


def test_a_broken_classifier_is_named(tmp_path: Path) -> None:
    # Given
    checkpoint = save_random_encoder("bert", "ForSequenceClassification", {}, tmp_path).checkpoint
    checkpoint = with_numbers(checkpoint, "classifier.weight", (0, 0), math.nan)
    cluster = cluster_of(checkpoint, 1, 2)
    # When
    carrier = run(cluster, [PROMPTS[0]], Options(read={"task": "classify", "positions": []}))
    cluster.close()
    # Then
    assert "stage0.shard0: 1 NaN" in str(carrier.errors["0"])
    assert "of the result of task classify" in str(carrier.errors["0"])


def test_tokens_that_the_model_suppresses_are_no_error(tmp_path: Path) -> None:
    # Given a head whose bias is -inf for some tokens, in one shard
    translator = make_translator("bart", {}, tmp_path)
    checkpoint = with_numbers(translator.checkpoint, "final_logits_bias", (0, 60), -math.inf)
    start = translator.start
    plain, suppressed = Options(max_tokens=NEW, decoder_start_token_id=start), {}
    for logprobs in (None, 2):
        options = Options(**{**plain.__dict__, "logprobs": logprobs})
        cluster = cluster_of(checkpoint, 1, 2)
        # When / Then
        carrier = run(cluster, [PROMPTS[0]], options)
        cluster.close()
        assert carrier.errors == {}
        suppressed[logprobs] = carrier.answers["0"]
    assert suppressed[None] == suppressed[2]
    assert np.isin(suppressed[None], [60]).sum() == 0


def test_a_slot_keeps_no_nan_for_its_next_request(reference: Callable[..., Reference]) -> None:
    # Given a shard with a slot that a poisoned request has used
    checkpoint = reference("llama").checkpoint
    cluster = cluster_of(with_bad_token(checkpoint), 1, 1, num_slots=2)
    # When
    run(cluster, [POISONED[0]], Options(max_tokens=NEW), budget=64)
    # Then all of its keys and values are numbers
    caches = [layer.states[0].values for layer in cluster.models[0][0]._stack._layers]
    cluster.close()
    assert all(bool(torch.isfinite(cache).all()) for cache in caches)
    assert any(bool(cache.any()) for cache in caches) is False
