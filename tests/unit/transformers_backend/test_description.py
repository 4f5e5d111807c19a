"""Descriptions of models on the Transformers backend: contents, readers, and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_families import tiny_config
from plans import plan_for
from references import save_random_model
from safetensors.torch import load_file, save_file
from transformers.models.arcee.configuration_arcee import ArceeConfig
from transformers.models.arcee.modeling_arcee import ArceeMLP
from transformers_families import DYNAMIC, LONGROPE, transformers_config

from skynet.architecture.tensors import staged_tensors
from skynet.architecture.transformers_model import KEY, TransformersArchitecture, read
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.errors import CheckpointError, ConfigurationError, UnsupportedModel
from skynet.layers.cache import KVLayout
from skynet.models.registry import load_architecture
from skynet.planning.ranges import Range
from skynet.transformers_backend.body import Body
from skynet.transformers_backend.description import describe_model
from skynet.transformers_backend.loader import TransformersLoader
from skynet.transformers_backend.opening import describe, open_model

EMBED = "model.embed_tokens.weight"
ROOT = Path(__file__).parents[3]


def described(model_type: str, **fields: Any) -> dict[str, Any]:
    """A config with its description, as it is staged."""
    config: dict[str, Any] = json.loads(
        transformers_config(model_type, **fields).to_json_string(False)
    )
    return config | {KEY: describe_model(config)}


@pytest.fixture
def arcee(tmp_path: Path) -> Path:
    """A checkpoint for the Transformers backend."""
    save_random_model("arcee", {}, tmp_path / "arcee")
    return tmp_path / "arcee"


def opened(path: Path) -> Checkpoint:
    return open_model(str(path), path.parent / "cache")


def rewrite(path: Path, changed: dict[str, torch.Tensor]) -> None:
    """Put these tensors into a checkpoint, beside or instead of those in it."""
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | changed, path / "model.safetensors", metadata={"format": "pt"})


# -- what a description says ------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "model_type",
    ["apertus", "arcee", "dots1", "glm4", "minimax_m2", "nemotron", "olmo", "olmo3", "phimoe"],
)
def test_tensors_are_those_that_transformers_saves(
    tmp_path: Path, model_type: str, tied: bool
) -> None:
    # Given a checkpoint
    save_random_model(model_type, {"tie_word_embeddings": tied}, tmp_path / "model")
    # When it is described
    checkpoint = opened(tmp_path / "model")
    # Then each tensor is staged, with its shape, but buffers that the model makes itself
    staged = {
        tensor.name: tuple(tensor.shape)
        for tensor in staged_tensors(load_architecture(checkpoint.config))
    }
    buffers = (".act_fn.beta", ".act_fn.eps")
    assert staged == {
        name: tuple(info.shape)
        for name, info in checkpoint.tensors.items()
        if not name.endswith(buffers)
    }


def test_a_description_survives_json_and_names_the_cuts() -> None:
    # Given a config as it lies in Redis
    config = json.loads(json.dumps(described("olmo3", attention_bias=True)))
    # When
    arch = load_architecture(config)
    # Then
    assert isinstance(arch, TransformersArchitecture)
    assert (arch.num_heads, arch.num_kv_heads, arch.head_dim) == (6, 2, 8)
    assert (arch.intermediate_size, arch.vocab_size, arch.max_positions) == (83, 131, 128)
    assert arch.windows == (7, None, 7)
    assert (arch.heads_of, arch.sums_per_layer, arch.samples) == ("gathered", 5, (0, 1))
    cuts = {weight.role: (weight.cut, weight.unit, weight.bias) for weight in arch.weights}
    assert cuts["self_attn.q_proj"] == ("column", "columns", True)
    assert cuts["self_attn.o_proj"] == ("row", "heads", True)
    assert cuts["self_attn.q_norm"] == ("replicated", "hidden", False)
    assert cuts["mlp.up_proj"] == ("column", "columns", False)
    assert cuts["embed"] == cuts["head"] == ("vocab", "vocab", False)
    assert json.loads(arch.config) == {k: v for k, v in config.items() if k != KEY}


@pytest.mark.parametrize(
    ("model_type", "rope", "positions"),
    [("internlm3", DYNAMIC, 128), ("arcee", LONGROPE, 64), ("olmo3", LONGROPE, 64)],
)
def test_sequences_end_where_a_rope_would_move(
    model_type: str, rope: dict[str, Any], positions: int
) -> None:
    # When / Then a dynamic one stays for all positions, longrope for those of the pretraining
    assert load_architecture(described(model_type, rope_parameters=rope)).max_positions == positions


def test_experts_are_in_the_layers_that_have_them() -> None:
    # Given a model whose first layer has none, and whose shared experts are wider
    config = json.loads(json.dumps(described("dots1")))
    # When
    arch = load_architecture(config)
    # Then
    assert isinstance(arch, TransformersArchitecture)
    assert (arch.num_experts, arch.intermediate_size, arch.samples) == (6, 21, (0, 1))
    assert (arch.sums, arch.sums_per_layer) == ((2, 3, 3), 3)
    weights = {weight.role: weight for weight in arch.weights}
    gate = weights["mlp.experts.gate_up_proj:0"]
    assert (gate.cut, gate.unit, arch.shape(gate)) == ("column", "columns", (21, 48))
    assert gate.tensor(2, piece=4) == "model.layers.2.mlp.experts.4.gate_proj.weight"
    assert [gate.is_in(layer) for layer in range(3)] == [False, True, True]
    assert arch.shape(weights["mlp.gate_proj"]) == (83, 48)
    assert [weights["mlp.gate_proj"].is_in(layer) for layer in range(3)] == [True, False, False]
    assert arch.shape(weights["mlp.shared_experts.down_proj"]) == (48, 42)
    bias = weights["mlp.gate.e_score_correction_bias"]
    assert (bias.cut, bias.tensor(1)) == ("replicated", "model.layers.1.mlp." + bias.role[4:])


def test_a_parameter_of_experts_is_made_of_tensors_of_each() -> None:
    # Given a model whose files call things otherwise
    arch = read(described("minimax_m2"))
    # When / Then
    made = arch.experts_of("model.layers.1.mlp.experts.gate_up_proj")
    prefix = "model.layers.1.block_sparse_moe.experts"
    assert made[3] == [f"{prefix}.3.w1.weight", f"{prefix}.3.w3.weight"]
    assert len(made) == 5
    assert arch.experts_of("model.layers.1.mlp.gate.weight") == []
    names = arch.module_names()
    assert names["model.layers.1.mlp.gate.weight"] == "model.layers.1.block_sparse_moe.gate.weight"


def test_a_description_is_read_without_torch_and_transformers(tmp_path: Path) -> None:
    # Given a config with a description
    (tmp_path / "config.json").write_text(json.dumps(described("arcee")))
    code = (
        "import json, sys; from skynet.models.registry import load_architecture as load;"
        f"arch = load(json.load(open({str(tmp_path / 'config.json')!r})));"
        "print(arch.num_layers, *{'torch', 'transformers'} & sys.modules.keys())"
    )
    # When a fresh interpreter reads it, as a client does
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    # Then
    assert done.stdout.split() == ["3"], done.stderr


def test_a_layer_of_each_kind_is_a_sample() -> None:
    # Given a model whose layers differ by their rope too
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    # When / Then
    assert read(described("cohere_compass_text", layer_types=kinds)).samples == (0, 2)
    assert read(described("arcee")).samples == (0,)


def test_a_file_cannot_bring_a_description(arcee: Path) -> None:
    # Given a config.json with one
    config = json.loads((arcee / "config.json").read_text())
    (arcee / "config.json").write_text(json.dumps(config | {KEY: {"num_layers": 1}}))
    # When / Then it is that of Transformers that counts
    assert KEY not in Checkpoint(arcee, "arcee", arcee.parent).config
    assert opened(arcee).config[KEY]["num_layers"] == 3


def test_another_description_is_another_content(arcee: Path) -> None:
    # Given a checkpoint whose digest is remembered
    digest = opened(arcee).digest()
    assert opened(arcee).digest() == digest
    # When another Transformers describes it
    other = opened(arcee)
    other.describe(other.config[KEY] | {"transformers": "99.0"})
    # Then
    assert other.digest() != digest


def test_a_description_of_another_version_is_refused() -> None:
    config = described("arcee")
    del config[KEY]["sums"]
    with pytest.raises(CheckpointError, match="split the model again"):
        load_architecture(config)


def nothing(name: str, region: Range) -> torch.Tensor:
    raise AssertionError(f"{name} is fetched")


def test_a_worker_with_another_transformers_refuses() -> None:
    # Given a model that was split with another version
    config = described("arcee")
    config[KEY]["transformers"] = "99.0"
    arch = read(config)
    plan = plan_for(arch, 1, 1)
    part = plan.stages[0].shards[0]
    load = TransformersLoader(arch, part, nothing, torch.float32, torch.device("cpu"))
    # When / Then both versions are named
    with pytest.raises(ConfigurationError, match=r"99\.0.*" + transformers.__version__):
        Body(load, KVLayout.of(plan))


def test_the_notice_says_what_is_run() -> None:
    assert "'arcee' has no file" in read(described("arcee")).notice
    assert "every shard has all" in read(described("hunyuan_v1_dense")).notice


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quant_method='fp8'"),
        ({"model_type": "mamba"}, "'mamba'.*base_model_tp_plan"),
        ({"model_type": "nobody"}, "'nobody' has no file"),
        ({"model_type": "nobody", "auto_map": {}}, "'nobody'.*never run"),
        ({"hidden_act": "nothing"}, "arcee model of config.json"),
        ({"max_position_embeddings": 0}, "'arcee': max_position_embeddings is 0"),
        ({"num_key_value_heads": 4}, "'arcee'.*6 query heads, which do not share 4"),
    ],
)
def test_unsupported_configs_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    # Given
    config = transformers_config("arcee").to_dict() | fields
    # When / Then
    with pytest.raises(UnsupportedModel, match=message):
        describe_model(config)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"layers.*.mlp.up_proj": "sideways"}, r"mlp\.up_proj is 'sideways'.*known are colwise"),
        ({"layers.*.mlp": "colwise"}, r"layers\.0\.mlp \(ArceeMLP\) is cut.*no plain Linear"),
        (
            {"layers.*.mlp.up_proj": "colwise", "layers.*.mlp.down_proj": "colwise"},
            r"mlp\.up_proj .Linear. makes 83 columns, of which .* take in none",
        ),
        ({"layers.*.self_attn.q_proj": "colwise"}, "cut in a way that is not supported"),
        ({"layers.*.self_attn.o_proj": "rowwise"}, "cut in a way that is not supported"),
        ({"layers.*.mlp.up_proj": "embedding_rowwise"}, r"cuts a table, .*mlp\.up_proj"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, plan: dict[str, str], message: str
) -> None:
    # Given another plan than Transformers', or but a part of it
    monkeypatch.setattr(ArceeConfig, "base_model_tp_plan", plan)
    config = transformers_config("arcee").to_dict()
    # When / Then
    with pytest.raises(UnsupportedModel, match=f"'arcee'.*{message}"):
        describe_model(config)


def test_layers_with_other_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a model whose first layer has a wider MLP
    made = ArceeMLP.__init__

    def wider_first(self: Any, config: Any) -> None:
        made(self, config)
        if not hasattr(config, "told"):
            config.told = True
            self.up_proj = torch.nn.Linear(48, 84, bias=False)
            self.down_proj = torch.nn.Linear(84, 48, bias=False)

    monkeypatch.setattr(ArceeMLP, "__init__", wider_first)
    # When / Then
    with pytest.raises(UnsupportedModel, match=r"layers\.0 .*has mlp\.up_proj unlike that of an"):
        describe_model(transformers_config("arcee").to_dict())


def test_tensors_that_transformers_does_not_have_are_refused(arcee: Path) -> None:
    # Given a norm more than the class has
    name = "model.layers.2.self_attn.q_norm.weight"
    rewrite(arcee, {name: torch.ones(8)})
    # When / Then
    with pytest.raises(UnsupportedModel, match=f"ArceeForCausalLM does not have: {name}"):
        opened(arcee)


def test_tensors_that_files_may_have_besides_are_left_alone(tmp_path: Path) -> None:
    # Given an old file with frequencies, and a head that is the embedding
    save_random_model("arcee", {"tie_word_embeddings": True}, tmp_path / "arcee")
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "lm_head.weight": load_file(tmp_path / "arcee" / "model.safetensors")[EMBED].clone(),
    }
    rewrite(tmp_path / "arcee", more)
    # When / Then
    assert load_architecture(opened(tmp_path / "arcee").config).tied


def test_buffers_are_what_the_model_makes_or_refused(tmp_path: Path) -> None:
    # Given a checkpoint that holds buffers
    path = tmp_path / "apertus"
    save_random_model("apertus", {}, path)
    opened(path)
    # When one is not what Transformers makes
    name = "model.layers.1.mlp.act_fn.beta"
    rewrite(path, {name: torch.tensor(0.25)})
    # Then
    with pytest.raises(UnsupportedModel, match=f"buffer {name}"):
        opened(path)


def test_missing_tensors_are_named(arcee: Path) -> None:
    # Given
    tensors = load_file(arcee / "model.safetensors")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, arcee / "model.safetensors", metadata={"format": "pt"})
    # When / Then
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.down_proj\.weight"):
        opened(arcee)


def test_tensors_that_are_called_otherwise_in_files_are_refused(tmp_path: Path) -> None:
    # Given a model type whose files spell the names of another time
    model = transformers.AutoModelForCausalLM.from_config(transformers_config("sarvam_moe"))
    model.save_pretrained(tmp_path / "sarvam")
    # When / Then
    with pytest.raises(UnsupportedModel, match=r"'sarvam_moe'.*have to be converted"):
        opened(tmp_path / "sarvam")


def test_a_supported_family_is_not_described(tmp_path: Path) -> None:
    # Given
    save_random_model("llama", {}, tmp_path / "llama")
    # When / Then
    checkpoint = opened(tmp_path / "llama")
    assert KEY not in checkpoint.config
    # But can be
    assert describe(checkpoint).model_type == "llama"
    assert isinstance(load_architecture(checkpoint.config), TransformersArchitecture)
    assert tiny_config("llama").model_type == "llama"
