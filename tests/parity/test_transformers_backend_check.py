"""`skynet check` on the Transformers backend, and the self-test before a model is staged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from references import save_random_model
from torch import nn
from transformers.models.arcee.modeling_arcee import ArceeMLP, ArceeModel
from transformers_families import DYNAMIC, LONGROPE

from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.check import check_model
from skynet.check.check import compare, open_checked
from skynet.checkpoint.fetch import CheckpointFetch
from skynet.cli import main
from skynet.errors import UnsupportedModel
from skynet.models.registry import load_architecture
from skynet.planning.ranges import Range
from skynet.staging.split import SplitOptions, draft_plan, skysplit
from skynet.transformers_backend.opening import describe, open_model
from skynet.transformers_backend.self_test import self_test

EQUAL = ["apertus", "glm", "hunyuan_v1_dense", "nanochat", "olmo3", "vaultgemma"]
EQUAL += ["exaone_moe", "minimax_m2", "qwen2_moe"]  # mixtures of experts
PLACES = ["embedding", *(f"layer {layer}" for layer in range(3)), "head"]


@pytest.fixture(scope="module")
def arcee(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("arcee")
    save_random_model("arcee", {}, directory)
    return directory


@pytest.mark.parametrize("model_type", EQUAL)
def test_a_model_type_is_equal(tmp_path: Path, model_type: str) -> None:
    # Given
    save_random_model(model_type, {}, tmp_path)
    # When
    report = check_model(str(tmp_path), 2, 3)
    # Then
    assert report.equal, "\n".join(report.lines())
    assert [place.name for place in report.places] == PLACES
    assert report.answer
    assert report.answer.same
    assert any("Transformers' layers" in note for note in report.notes)


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE])
def test_a_rope_that_depends_on_the_length_is_equal(tmp_path: Path, rope: dict[str, Any]) -> None:
    # Given
    save_random_model("arcee", {"rope_parameters": rope}, tmp_path)
    # When
    report = check_model(str(tmp_path), 1, 2)
    # Then
    assert report.equal, "\n".join(report.lines())


def test_a_supported_family_passes_on_the_backend_too(tmp_path: Path) -> None:
    # Given a supported family, described for the Transformers backend
    save_random_model("qwen3", {}, tmp_path)
    checkpoint = open_model(str(tmp_path), tmp_path)
    # When / Then nothing is raised
    self_test(checkpoint, describe(checkpoint), 4)


def test_a_damaged_shard_is_reported_in_its_layer(arcee: Path) -> None:
    # Given one number of the second shard's columns of layer 2
    checkpoint = open_model(str(arcee), arcee)
    right = CheckpointFetch(checkpoint, load_architecture(checkpoint.config))

    def damaged(name: str, region: Range) -> torch.Tensor:
        raw = right(name, region)
        if name == "model.layers.2.mlp.down_proj.weight" and region.start > 0:
            raw[5, 3] += 1
        return raw

    # When
    report = compare(open_checked(str(arcee), (2, 2)), fetch=damaged)
    # Then the layer is named, and the number; by the sum, every shard has it
    assert [place.name for place in report.differing] == ["layer 2"]
    first = report.to_json()["first"]
    assert first is not None
    assert [shard["address"] for shard in first["shards"]] == ["stage1.shard0", "stage1.shard1"]
    assert first["shards"][0]["index"] == 5


def test_the_command_says_what_it_compares(arcee: Path) -> None:
    result = CliRunner().invoke(main, ["check", str(arcee), "--shards", "3"])
    assert result.exit_code == 0
    assert "equal: 3 layers" in result.stdout
    assert "'arcee' has no file" in result.stdout


def test_a_split_warns_that_it_is_slower(arcee: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Given
    calls: list[tuple[str, int, int]] = []
    checkpoint = open_model(str(arcee), arcee)
    # When
    with caplog.at_level(logging.WARNING):
        plan = draft_plan(checkpoint, SplitOptions(2, 3), lambda *now: calls.append(now))
    # Then layer 0, embedding and head are tested first, with progress
    assert plan.shape == (2, 3)
    assert "slower" in caplog.text
    assert [what for what, _, _ in calls] == ["checking"] * 3
    assert calls[-1][1] == calls[-1][2]


# What the plan does not know of: the middle of an MLP is cut, and here is not computed by column.
def _scaled_by_its_sum(self: Any, x: torch.Tensor) -> torch.Tensor:
    middle = self.act_fn(self.up_proj(x))
    made: torch.Tensor = self.down_proj(middle / (1 + middle.mean(-1, keepdim=True)))
    return made


def _of_a_fixed_width(self: Any, x: torch.Tensor) -> torch.Tensor:
    middle = self.act_fn(self.up_proj(x))
    made: torch.Tensor = self.down_proj(middle.view(1, -1, 83))
    return made


def _with_the_token_before(self: Any, x: torch.Tensor) -> torch.Tensor:
    before = nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
    made: torch.Tensor = self.down_proj(self.act_fn(self.up_proj(x + before)))
    return made


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (_scaled_by_its_sum, r"differ in layer 0 by \d.*limit 0\.0001"),
        (
            _of_a_fixed_width,
            "layer 0, cut over 2 shards by Transformers' plan, fails: RuntimeError",
        ),
        (
            _with_the_token_before,
            "layer 0.*for a sequence beside.*another way than attention",
        ),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, arcee: Path, forward: Any, message: str
) -> None:
    # Given layers that are not what their plan cuts
    monkeypatch.setattr(ArceeMLP, "forward", forward)
    # When it is split, with no Redis there / Then the refusal names the model and the numbers
    with pytest.raises(UnsupportedModel, match=f"'arcee'.*{message}"):
        skysplit(str(arcee), 1, 2, url="redis://127.0.0.1:1/0")


def test_a_layer_that_uses_the_embedding_is_refused(
    monkeypatch: pytest.MonkeyPatch, arcee: Path
) -> None:
    # Given a model whose layers get the tokens' embeddings too: a later stage has none
    monkeypatch.setattr(ArceeModel, "forward", _looking_back(ArceeModel.forward))
    checkpoint = open_model(str(arcee), arcee)
    arch = load_architecture(checkpoint.config)
    assert isinstance(arch, TransformersArchitecture)
    # When / Then
    with pytest.raises(UnsupportedModel, match=r"'arcee'.*differ in layer 0 by inf"):
        self_test(checkpoint, arch, 2)


def _looking_back(forward: Any) -> Any:
    """Adds the embedding to the first layer's input."""

    def changed(self: Any, **given: Any) -> Any:
        layer, embedded = self.layers[0], []
        hooks = [
            self.embed_tokens.register_forward_hook(lambda *args: embedded.append(args[2])),
            layer.mlp.register_forward_pre_hook(lambda _, args: (args[0] + 0.1 * embedded[0],)),
        ]
        try:
            return forward(self, **given)
        finally:
            for hook in hooks:
                hook.remove()

    return changed
