"""`skynet check` of encoders, with any head and any published names of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import letters, save_tokenizer
from model_families import ENCODER_HEADS, ENCODERS
from references import Encoder, save_random_encoder
from safetensors.torch import load_file, save_file

from skynet.check import check_model
from skynet.check.report import Answer
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.reference.difference import Difference
from skynet.reference.weights import ReferenceWeights

MASKED, CLASSIFIER = "ForMaskedLM", "ForSequenceClassification"
MASK = 4
ENDS = {"Model": "last hidden states", MASKED: "head", CLASSIFIER: "head"}
ANSWERS = {"Model": "embedding (mean)", MASKED: "token for the last place", CLASSIFIER: "label"}


def save(family: str, head: str, directory: Path, **fields: Any) -> Encoder:
    return save_random_encoder(family, head, {"num_labels": 3} | fields, directory)


@pytest.mark.parametrize("head", ENCODER_HEADS)
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_equal(
    family: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a record of the reference's modules with weights, at every fill
    held: list[str] = []
    fill = ReferenceWeights.fill

    def spied(self: ReferenceWeights, module: torch.nn.Module, path: str) -> None:
        parameters = self._model.named_parameters()
        held.extend(name for name, value in parameters if not value.is_meta)
        fill(self, module, path)

    monkeypatch.setattr(ReferenceWeights, "fill", spied)
    save(family, head, tmp_path)
    # When
    report = check_model(str(tmp_path), 2, 2)
    # Then all is equal, and no two layers had weights at the same time, but for a table of all
    assert report.equal, "\n".join(report.lines())
    layers = [f"layer {layer}" for layer in range(4)]
    assert [place.name for place in report.places] == ["embedding", *layers, ENDS[head]]
    assert report.answer
    assert report.answer.what == ANSWERS[head]
    assert report.answer.same == (head != "Model")
    assert report.answer.drift.relative < report.limit
    assert [name for name in held if not name.endswith("rel_embeddings.weight")] == []


@pytest.mark.parametrize("prompt", [None, letters([5, 9, MASK, 7, MASK, 8])])
def test_the_token_for_a_mask_is_compared(tmp_path: Path, prompt: str | None) -> None:
    # Given a tokenizer with a mask, and a prompt with masks or none
    model = save("modernbert", MASKED, tmp_path)
    save_tokenizer(tmp_path, mask_token=letters([MASK]))
    # When
    report = check_model(str(tmp_path), 2, 3, prompt=prompt)
    # Then it is Transformers' token for the first mask
    unknown = "Paris is the ? of France, and Rome that of Italy."
    ids = [5, 9, MASK, 7, MASK, 8] if prompt else [MASK if c == "?" else 0 for c in unknown][:48]
    best = int(model.outputs(ids).logits[0, ids.index(MASK)].argmax())
    assert report.answer
    assert (report.answer.what, report.answer.skynet) == ("token for the mask", best)
    assert report.answer.text == letters([best])
    assert any("token for the mask" in line and "on both" in line for line in report.lines())


def test_the_label_is_named(tmp_path: Path) -> None:
    # Given
    save_random_encoder("roberta", CLASSIFIER, {"id2label": {0: "bad", 1: "good"}}, tmp_path)
    # When
    report = check_model(str(tmp_path))
    # Then
    assert report.answer
    assert report.answer.text in ("bad", "good")


def test_a_score_is_compared_as_a_number(tmp_path: Path) -> None:
    # Given a model with one output
    save("distilbert", CLASSIFIER, tmp_path, num_labels=1, problem_type="regression")
    # When
    report = check_model(str(tmp_path))
    # Then
    assert report.equal
    assert report.answer
    assert (report.answer.what, report.answer.skynet) == ("score", None)


def test_drift_over_all_layers_is_a_difference(tmp_path: Path) -> None:
    # Given a report without a place that differs
    save("bert", "Model", tmp_path)
    report = check_model(str(tmp_path))
    assert report.equal
    # When the answer is far off
    report.answer = Answer("embedding (mean)", Difference(0.1, 0.1, 0, 0))
    # Then
    assert not report.equal
    assert "embedding (mean): DIFFERS: 1.0e-01" in "\n".join(report.lines())


def rename(directory: Path, *replacements: tuple[str, str]) -> None:
    """Rename the checkpoint's tensors."""
    tensors = load_file(directory / "model.safetensors")
    for old, new in replacements:
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("head", ENCODER_HEADS)
def test_old_names_of_weights_are_supported(tmp_path: Path, head: str) -> None:
    # Given a file without the base model's prefix, its norms named as in 2018
    save("bert", head, tmp_path)
    rename(
        tmp_path,
        ("bert.", ""),
        ("LayerNorm.weight", "LayerNorm.gamma"),
        ("LayerNorm.bias", "LayerNorm.beta"),
    )
    # When / Then
    report = check_model(str(tmp_path))
    assert report.equal, "\n".join(report.lines())


@pytest.mark.parametrize(
    ("kind", "end"), [("ForPreTraining", "head"), ("ForTokenClassification", "last hidden states")]
)
def test_weights_that_skynet_does_not_use_are_ignored(tmp_path: Path, kind: str, end: str) -> None:
    # Given a file with other heads, under the prefix of models with a head
    name, config_class, sizes = ENCODERS["bert"]
    torch.manual_seed(0)
    getattr(transformers, name + kind)(config_class(**sizes)).save_pretrained(tmp_path)
    # When
    report = check_model(str(tmp_path))
    # Then
    assert report.equal, "\n".join(report.lines())
    assert report.places[-1].name == end


@pytest.mark.parametrize(("tokens", "reached"), [(28, True), (30, False)])
def test_a_window_longer_than_the_prompt_is_noted(
    tmp_path: Path, tokens: int, reached: bool
) -> None:
    # Given windows of this size, and a prompt of 16 tokens
    save("modernbert", "Model", tmp_path, local_attention=tokens)
    # When
    report = check_model(str(tmp_path), 1, 1)
    # Then
    assert report.num_tokens == 16
    assert any("windows" in note for note in report.notes) != reached


def test_bfloat16_has_a_wider_limit(tmp_path: Path) -> None:
    # Given
    save("electra", MASKED, tmp_path)
    # When
    report = check_model(str(tmp_path), 1, 2, dtype="bfloat16")
    # Then
    assert report.equal, "\n".join(report.lines())


def test_minilm_is_equal(minilm_checkpoint: Checkpoint) -> None:
    # When
    report = check_model("minilm", 2, 2)
    # Then
    assert report.equal, "\n".join(report.lines())
    assert len(report.places) == 8
    assert report.answer
    assert report.answer.what == "embedding (mean)"
    assert report.answer.drift.relative < report.limit
