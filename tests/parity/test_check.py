"""`skynet check`: equal for correct weights, and the damaged layer and shard otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checking import check_damaged, first
from click.testing import CliRunner
from model_families import FAMILIES
from references import save_random_model

from skynet.check import check_model
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.fetch import CheckpointFetch
from skynet.cli import main
from skynet.errors import BadRequest, PlanError, UnsupportedModel
from skynet.planning.ranges import Range
from skynet.reference.difference import difference


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers with 6 query heads of 8 in 3 KV groups; 2 shards have 4 heads and 2."""
    directory = tmp_path_factory.mktemp("llama")
    save_random_model("llama", {}, directory)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_equal(tmp_path: Path, family: str) -> None:
    # Given
    save_random_model(family, {}, tmp_path)
    # When
    report = check_model(str(tmp_path), 2, 2)
    # Then
    assert report.equal, "\n".join(report.lines())
    assert [place.name for place in report.places] == [
        "embedding",
        *(f"layer {layer}" for layer in range(4)),
        "head",
    ]
    assert report.answer
    assert report.answer.same
    assert report.peak_bytes > 0


def test_swapped_heads_are_reported_in_their_layer_and_shard(llama: Path) -> None:
    # Given layer 2 lies in stage 1, and heads 4 and 5 in its second shard
    def swap(name: str, region: Range, raw: torch.Tensor) -> torch.Tensor:
        if name == "model.layers.2.self_attn.q_proj.weight" and region.start == 32:
            return raw.roll(8, 0)
        return raw

    # When
    report = check_damaged(llama, swap)
    # Then only that layer differs: the next one got the right input
    assert first(report) == ("layer 2", "attention", ["stage1.shard1"])
    assert [place.name for place in report.differing] == ["layer 2"]
    assert any("stage1.shard1" in line for line in report.lines())


def test_damaged_columns_are_reported_in_the_mlp_of_their_shard(llama: Path) -> None:
    # Given one number of the first shard's columns
    def damage(name: str, region: Range, raw: torch.Tensor) -> torch.Tensor:
        if name == "model.layers.1.mlp.down_proj.weight" and region.start == 0:
            raw[5, 3] += 1
        return raw

    # When
    report = check_damaged(llama, damage)
    # Then the number of the hidden states is named too
    assert first(report) == ("layer 1", "MLP", ["stage0.shard0"])
    assert report.differing[0].beyond(report.limit)[0].difference.index == 5


def test_a_difference_in_every_shard_is_noted(llama: Path) -> None:
    # Given
    def damage(name: str, region: Range, raw: torch.Tensor) -> torch.Tensor:
        return raw * 1.1 if name == "model.layers.3.input_layernorm.weight" else raw

    # When
    report = check_damaged(llama, damage)
    # Then
    assert first(report) == ("layer 3", "attention", ["stage1.shard0", "stage1.shard1"])
    assert any("Every shard differs" in line for line in report.lines())


def test_embedding_and_head_are_checked(llama: Path) -> None:
    # Given a row of the embedding in the first shard's vocabulary, and one of the head's in the
    # second's
    def damage(name: str, region: Range, raw: torch.Tensor) -> torch.Tensor:
        if name == "model.embed_tokens.weight" and region.start == 0:
            raw[3] += 1
        if name == "lm_head.weight" and region.start > 0:
            raw[0] += 1
        return raw

    # When
    report = check_damaged(llama, damage)
    # Then
    assert first(report) == ("embedding", "rows of tokens", ["stage0.shard0"])
    head = report.differing[-1]
    assert [place.name for place in report.differing] == ["embedding", "head"]
    assert [head.address(one) for one in head.beyond(report.limit)] == ["stage1.shard1"]


def test_a_damaged_expert_is_reported(tmp_path: Path) -> None:
    # Given every expert of a shard damaged: one of them is chosen
    save_random_model("mixtral", {}, tmp_path)

    def damage(name: str, region: Range, raw: torch.Tensor) -> torch.Tensor:
        if name.startswith("model.layers.1.") and name.endswith("w2.weight") and region.start:
            return raw * 2
        return raw

    # When
    report = check_damaged(tmp_path, damage)
    # Then
    assert first(report) == ("layer 1", "MLP", ["stage0.shard1"])


def test_the_command_reports_the_damage(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    words = ["check", str(llama), "--stages", "1", "--shards", "3"]
    # When
    equal = CliRunner().invoke(main, [*words, "--json"])
    right = CheckpointFetch.__call__

    def wrong(self: CheckpointFetch, name: str, region: Range) -> torch.Tensor:
        raw = right(self, name, region)
        return raw * float("nan") if name == "model.layers.0.mlp.up_proj.weight" else raw

    monkeypatch.setattr(CheckpointFetch, "__call__", wrong)
    differs = CliRunner().invoke(main, words)
    # Then
    assert equal.exit_code == 0
    report = json.loads(equal.stdout)
    assert report["equal"]
    assert len(report["places"]) == 6
    assert report["differing"] == []
    assert differs.exit_code == 1
    assert "DIFFERS first in layer 0, MLP" in differs.stdout
    assert "stage0.shard2" in differs.stdout


def test_bfloat16_has_a_wider_limit(llama: Path) -> None:
    # When
    report = check_model(str(llama), 1, 2, dtype="bfloat16")
    # Then
    assert report.equal
    assert report.limit > 1e-2


def test_a_window_longer_than_the_prompt_is_noted(tmp_path: Path) -> None:
    # Given
    save_random_model("mistral", {}, tmp_path)
    # When
    report = check_model(str(tmp_path), 1, 1)
    # Then
    assert any("windows of 64 tokens" in note for note in report.notes)


def test_unsupported_models_and_shapes_are_refused_by_name(llama: Path, tmp_path: Path) -> None:
    # Given
    save_random_model("llama", {}, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "other"}))
    # When / Then
    with pytest.raises(UnsupportedModel, match="other"):
        check_model(str(tmp_path))
    with pytest.raises(PlanError, match="7 shards for 6 query heads"):
        check_model(str(llama), 1, 7)
    with pytest.raises(BadRequest, match="no tokenizer"):
        check_model(str(llama), prompt="hello")


def test_differences_are_relative_to_their_row() -> None:
    # Given
    reference = torch.tensor([[1000.0, 1.0], [2.0, 1.0]])
    # When
    apart = difference(reference + torch.tensor([[0.5, 0.0], [0.0, 0.1]]), reference)
    # Then the second row's is smaller, but not relative to its row
    assert (apart.token, apart.index) == (1, 1)
    assert apart.relative == pytest.approx(0.05)
    assert difference(reference * float("nan"), reference).relative == float("inf")


def test_the_demo_model_is_equal(demo_checkpoint: Checkpoint) -> None:
    # When
    report = check_model(str(demo_checkpoint.path), 2, 2)
    # Then
    assert report.equal, "\n".join(report.lines())
    assert len(report.places) == 32
    assert report.answer
    assert (report.answer.what, report.answer.text) == ("next token", " Rome")
