"""Text tasks: options, limits, pooling files, answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_families import encoder_config, tiny_config

from skynet.checkpoint.pooling_config import embedding_json
from skynet.engine.text_answers import TextAnswer, predictions
from skynet.errors import BadRequest, CheckpointError, WireError
from skynet.models.registry import load_architecture
from skynet.request.prompts import EncodedText
from skynet.request.record import End, Options
from skynet.request.text_tasks import TextTasks
from skynet.wire.step import Candidates, Part, Row, Step, TextTask

MASK = 4
BERT = load_architecture(encoder_config("bert", "ForMaskedLM"))
LLAMA = load_architecture(tiny_config("llama").to_dict())


def text_of(ids: list[int]) -> EncodedText:
    return EncodedText(tuple(ids))


def of_bert(**embedding: Any) -> TextTasks:
    return TextTasks(BERT, embedding or None, MASK)


def test_an_embedding_is_pooled_as_the_model_says() -> None:
    # When / Then: by its files, by the request, or by the mean
    def asked(model: TextTasks, **options: Any) -> TextTask:
        return TextTask.of(model.check("embed", options, text_of([5, 6]), 8).read or {})

    assert asked(of_bert(pooling="cls", normalize=True)) == TextTask("embed", "cls", True)
    chosen = asked(of_bert(pooling="cls", normalize=True), pooling="max", normalize=False)
    assert chosen == TextTask("embed", "max", False)
    assert asked(of_bert()) == TextTask("embed", "mean", False)


def test_positions_of_masks_are_recorded() -> None:
    # When
    options = of_bert().check("fill-mask", {"top_k": 2}, text_of([5, MASK, 6, MASK]), 4)
    # Then they survive the record
    fields = Options.from_json(options.to_json()).read
    assert TextTask.of(fields or {}) == TextTask("fill-mask", positions=(1, 3), top=2)


@pytest.mark.parametrize(
    ("model", "task", "options", "message"),
    [
        (of_bert(), "generate", {}, "it is an encoder.*embed, fill-mask"),
        (of_bert(), "classify", {}, "no sequence-classification head"),
        (of_bert(), "translate", {}, "task 'translate': one of generate, embed"),
        (TextTasks(LLAMA), "embed", {}, "no modules.json"),
        (TextTasks(LLAMA), "fill-mask", {}, "not supported by this llama model"),
        (of_bert(), "embed", {"max_tokens": 3}, "unknown option max_tokens of task embed"),
        (of_bert(), "embed", {"pooling": "sum"}, "pooling 'sum'"),
        (of_bert(), "embed", {"normalize": 1}, "normalize 1"),
        (of_bert(refused="Dense"), "embed", {}, "asks for Dense"),
        (of_bert(), "fill-mask", {}, "no mask token"),
        (of_bert(), "fill-mask", {"top_k": 0}, "no mask token|top_k 0"),
        (TextTasks(BERT), "fill-mask", {}, "tokenizer has no mask token"),
    ],
)
def test_unsupported_tasks_and_options_are_refused(
    model: TextTasks, task: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        model.check(task, options, text_of([5, 6]), 8)


def test_a_text_may_fill_the_positions_and_no_more() -> None:
    # When / Then
    assert of_bert().check("embed", {}, text_of([5] * 8), 8).read is not None
    with pytest.raises(BadRequest, match="9 tokens, the cluster takes 8, of the model's 48"):
        of_bert().check("embed", {}, text_of([5] * 9), 8)


def test_a_decoder_with_the_files_embeds() -> None:
    # Given
    decoder = TextTasks(LLAMA, {"pooling": "last", "normalize": True})
    # When / Then
    assert decoder.tasks() == ("generate", "embed")
    assert TextTask.of(decoder.check("embed", {}, text_of([1]), 8).read or {}).pooling == "last"


@pytest.mark.parametrize(
    ("pooling", "kinds", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, ["Normalize"], {"pooling": "mean", "normalize": True}),
        ({"pooling_mode_lasttoken": True}, [], {"pooling": "last", "normalize": False}),
        ({"pooling_mode": "cls"}, [], {"pooling": "cls", "normalize": False}),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            [],
            {"pooling": "cls+mean", "normalize": False},
        ),
        (
            {"pooling_mode_mean_tokens": True},
            ["Asym"],
            {"pooling": "mean", "refused": "Asym", "normalize": False},
        ),
        (
            {"pooling_mode_mean_tokens": True},
            ["Normalize", "Pooling"],
            {
                "pooling": "mean",
                "refused": "modules in the order Transformer, Pooling, Normalize, Pooling",
                "normalize": True,
            },
        ),
    ],
)
def test_pooling_is_read_from_the_files_of_sentence_transformers(
    tmp_path: Path, pooling: dict[str, Any], kinds: list[str], expected: dict[str, Any]
) -> None:
    # Given a directory as sentence-transformers saves it
    steps = [
        ("Transformer", ""),
        ("Pooling", "1_Pooling"),
        *((kind, "1_Pooling") for kind in kinds),
    ]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": at} for kind, at in steps]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": 48, "include_prompt": True, **pooling}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    # When / Then
    assert json.loads(embedding_json(tmp_path) or b"") == expected


@pytest.mark.parametrize(
    ("files", "model_max_length", "expected"),
    [
        ({"sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False}}, 512, 256),
        ({"sentence_bert_config.json": {"max_seq_length": None}}, 512, 512),
        ({"config.json": {"max_position_embeddings": 48}}, 512, 48),
        ({"sentence_roberta_config.json": {"max_seq_length": 700}}, 512, 700),
        ({}, 512, 512),
        ({}, None, None),
    ],
)
def test_texts_to_embed_are_cut_where_sentence_transformers_cuts(
    tmp_path: Path, files: dict[str, Any], model_max_length: int | None, expected: int | None
) -> None:
    # Given
    write_modules(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    # When / Then
    settings = json.loads(embedding_json(tmp_path, model_max_length) or b"")
    assert settings.get("max_tokens") == expected
    assert "do_lower_case" not in settings


def test_texts_to_embed_are_lower_cased_if_the_model_says_so(tmp_path: Path) -> None:
    write_modules(tmp_path, folder="0_Transformer")
    (tmp_path / "0_Transformer").mkdir()
    file = tmp_path / "0_Transformer" / "sentence_bert_config.json"
    file.write_text('{"do_lower_case": true, "max_seq_length": 9}')
    settings = json.loads(embedding_json(tmp_path) or b"")
    assert settings["do_lower_case"] is True
    assert settings["max_tokens"] == 9
    file.write_text('{"max_seq_length": "9"}')
    with pytest.raises(CheckpointError, match="max_seq_length '9'"):
        embedding_json(tmp_path)


def write_modules(path: Path, folder: str = "") -> None:
    (path / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": folder}]))


def test_a_directory_without_them_sets_no_pooling(tmp_path: Path) -> None:
    assert embedding_json(tmp_path) is None
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        embedding_json(tmp_path)


def test_predictions_are_shares_of_the_whole_softmax() -> None:
    # Given the logits of one mask, cut over two shards
    logits = np.array([0.5, 3.0, -1.0, 2.0, 2.5, 0.0], np.float32)
    candidates = []
    for start, stop in ((0, 2), (2, 6)):
        shard_logits = logits[start:stop]
        ids, peak = np.arange(start, stop, dtype=np.int32), float(shard_logits.max())
        total = float(np.exp(shard_logits - peak).sum())
        candidates.append(Candidates(ids, shard_logits, peak, total))
    # When
    likeliest = predictions(candidates, 3)
    # Then
    whole = np.exp(logits) / np.exp(logits).sum()
    assert [token for token, _ in likeliest] == [1, 4, 3]
    np.testing.assert_allclose([score for _, score in likeliest], whole[[1, 4, 3]], rtol=1e-6)


def test_an_embedding_loses_nothing_in_json() -> None:
    # Given
    vector = np.random.default_rng(1).normal(size=48).astype(np.float32)
    # When it is an answer that is recorded
    answer = TextAnswer(TextTask("embed"), BERT, str).answer(vector)
    again = End.from_json(End(answer=answer).to_json()).answer["embedding"]
    # Then
    assert np.array_equal(np.array(again, np.float32), vector)


def test_steps_and_parts_keep_text_tasks() -> None:
    # Given
    text_task = TextTask("fill-mask", "mean", True, (1, 3), 7)
    step = Step(1, 2, (Row(0, 0, (5, 4, 6, 4), 4, text_task=text_task), Row(1, 0, (5,), 1)), 3)
    part = Part(vectors=[np.array([1.0, 2.0], np.float32)])
    # When / Then
    assert Step.decode(step.encode()) == step
    assert np.array_equal(Part.decode(part.encode()).vectors[0], part.vectors[0])


@pytest.mark.parametrize(
    "text_task",
    [TextTask("rerank", types=(0, 1)), TextTask("embed", skip=3)],
    ids=["types", "skip"],
)
def test_a_text_task_fits_its_row(text_task: TextTask) -> None:
    # Given a row of three tokens
    step = Step(1, 2, (Row(0, 0, (5, 4, 6), 3, text_task=text_task),), 3)
    # When / Then
    with pytest.raises(WireError, match="a row of 3 tokens with"):
        Step.decode(step.encode())
