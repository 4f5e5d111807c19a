"""`skynet check` of encoder-decoders: both stacks, the encoder output, and the head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import letters, save_tokenizer
from click.testing import CliRunner
from model_families import ENCODER_DECODERS
from safetensors.torch import load_file, save_file
from seq2seq import VARIANTS, make_translator

from skynet.check import check_model
from skynet.cli import main
from skynet.errors import PlanError
from skynet.reference.weights import ReferenceWeights

PLACES = [
    "encoder embedding",
    *(f"encoder layer {layer}" for layer in range(3)),
    "encoder output",
    "decoder embedding",
    *(f"decoder layer {layer}" for layer in range(2)),
    "head",
]
EVERY_LAYER_A_STAGE = (5, 1)


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), EVERY_LAYER_A_STAGE], ids=str)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_family_is_equal(
    family: str, shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a record of the reference's modules with weights, at every fill
    held: list[str] = []
    fill = ReferenceWeights.fill

    def spied(self: ReferenceWeights, module: torch.nn.Module, path: str) -> None:
        parameters = self._model.named_parameters()
        held.extend(name for name, value in parameters if not value.is_meta)
        fill(self, module, path)

    monkeypatch.setattr(ReferenceWeights, "fill", spied)
    make_translator(family, {}, tmp_path)
    # When
    report = check_model(str(tmp_path), *shape)
    # Then all is equal, and no two layers had weights at the same time
    assert report.equal, "\n".join(report.lines())
    assert [place.name for place in report.places] == PLACES
    assert report.answer
    assert report.answer.what == "next token"
    assert report.answer.same
    assert report.answer.drift.relative < report.limit
    assert held == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_equal(variant: str, tmp_path: Path) -> None:
    # Given a model with a rare feature
    family, fields = VARIANTS[variant]
    made = make_translator(family, fields, tmp_path)
    # When
    report = check_model(str(tmp_path), 2, 3)
    # Then
    assert report.equal, "\n".join(report.lines())
    assert len(report.places) == made.checkpoint.arch.total_layers + 4


@pytest.mark.parametrize("family", ["bart", "marian", "t5"])
def test_bfloat16_has_a_wider_limit(family: str, tmp_path: Path) -> None:
    # Given
    make_translator(family, {}, tmp_path)
    # When
    report = check_model(str(tmp_path), 2, 2, dtype="bfloat16")
    # Then
    assert report.equal, "\n".join(report.lines())


def test_places_are_in_the_stages_of_the_plan(tmp_path: Path) -> None:
    # Given a stage with the encoder's last layers and the decoder's only one
    make_translator("t5", {"num_layers": 4, "num_decoder_layers": 1}, tmp_path)
    # When
    places = check_model(str(tmp_path), 2, 2).to_json()["places"]
    # Then
    stages = [place["address"].partition(".")[0] for place in places]
    names = [place["name"] for place in places]
    first = names.index("encoder layer 3")
    assert set(stages[:first]) == {"stage0"}
    assert set(stages[first:]) == {"stage1"}


@pytest.mark.parametrize(
    "names",
    [
        ("lm_head",),
        ("model.encoder.embed_tokens",),
        ("model.encoder.embed_tokens", "model.decoder.embed_tokens"),
    ],
)
@pytest.mark.parametrize("family", ["bart", "marian"])
def test_a_tied_table_may_have_any_of_its_names(
    family: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    # Given a file with the table under names of older versions
    make_translator(family, {"tie_word_embeddings": True}, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    table = tensors.pop("model.shared.weight")
    tensors |= {f"{name}.weight": table.clone() for name in names}
    save_file(tensors, file, metadata={"format": "pt"})
    # When
    report = check_model(str(tmp_path), 2, 2)
    # Then
    assert report.equal, "\n".join(report.lines())


def test_the_next_token_is_that_of_a_decoder_that_repeats_the_prompt(tmp_path: Path) -> None:
    # Given a tokenizer
    model = make_translator("mbart", {}, tmp_path)
    save_tokenizer(tmp_path)
    ids = [5, 9, 44, 7, 120, 8]
    # When
    report = check_model(str(tmp_path), 2, 2, prompt=letters(ids))
    # Then
    best = int(model.logits(ids, [model.start, *ids[:-1]])[-1].argmax())
    assert report.answer
    assert (report.answer.skynet, report.answer.text) == (best, letters([best]))
    assert report.num_tokens == len(ids)


def test_ids_beyond_the_decoders_vocabulary_are_wrapped(tmp_path: Path) -> None:
    # Given a decoder with a smaller vocabulary than the encoder's
    family, fields = VARIANTS["marian-two-vocabularies"]
    model = make_translator(family, fields, tmp_path)
    save_tokenizer(tmp_path)
    # When
    report = check_model(str(tmp_path), 2, 2, prompt=letters([130, 120, 5, 6]))
    # Then
    best = int(model.logits([130, 120, 5, 6], [model.start, 21, 11, 5])[-1].argmax())
    assert report.equal, "\n".join(report.lines())
    assert report.answer
    assert report.answer.skynet == best


def test_a_prompt_may_have_tokens_without_a_position(tmp_path: Path) -> None:
    # Given a prompt with padding, which only the encoder gets
    make_translator("m2m_100", {}, tmp_path)
    save_tokenizer(tmp_path)
    # When
    report = check_model(str(tmp_path), 2, 2, prompt=letters([9, 1, 8, 1, 1, 5]))
    # Then
    assert report.equal, "\n".join(report.lines())


def test_distances_longer_than_the_prompt_are_noted(tmp_path: Path) -> None:
    # Given a prompt of 16 tokens, and a maximum distance below it or not
    make_translator("t5", {"relative_attention_max_distance": 15}, tmp_path / "near")
    make_translator("t5", {"relative_attention_max_distance": 16}, tmp_path / "far")
    # When
    near, far = (check_model(str(tmp_path / name), 1, 1) for name in ("near", "far"))
    # Then
    assert near.notes == []
    assert any("distances of 16" in note for note in far.notes)


def test_a_prompt_that_is_too_long_is_refused(tmp_path: Path) -> None:
    # Given
    make_translator("bart", {"max_position_embeddings": 4}, tmp_path)
    save_tokenizer(tmp_path)
    # When / Then
    with pytest.raises(PlanError, match="has 5 tokens"):
        check_model(str(tmp_path), prompt=letters([5, 6, 7, 8, 9]))


def test_the_command_lists_the_places(tmp_path: Path) -> None:
    # Given
    make_translator("pegasus", {}, tmp_path)
    # When
    lines = CliRunner().invoke(main, ["check", str(tmp_path)])
    numbers = CliRunner().invoke(main, ["check", str(tmp_path), "--json"])
    # Then
    assert lines.exit_code == numbers.exit_code == 0
    assert (
        "equal: 5 layers, encoder embedding, encoder output, decoder embedding and head."
        in lines.stdout
    )
    assert [place["name"] for place in json.loads(numbers.stdout)["places"]] == PLACES
