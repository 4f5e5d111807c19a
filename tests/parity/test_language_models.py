"""Checkpoints that take more than text: their language model, as the whole model computes text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from model_families import DEEPSEEK, DELTA, FAMILIES, GEMMA, LLAMA, SHARED_MOE
from references import answers, save_random_whole_model
from safetensors.torch import load_file, save_file
from test_parity import LAYER, check

from skynet.architecture.tensors import staged_tensors
from skynet.check import check_model
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.models.language_model import language_config, language_tensors
from skynet.models.registry import load_architecture

VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SMALL = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": LLAMA["hidden_size"],
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


def text(**fields: Any) -> dict[str, Any]:
    return LLAMA | {"num_hidden_layers": 2, "tie_word_embeddings": False} | fields


WHOLE: dict[str, tuple[Any, dict[str, Any]]] = {
    "gemma3": (
        transformers.Gemma3Config,
        {
            "text_config": GEMMA
            | {"num_hidden_layers": 2, "tie_word_embeddings": True, "initializer_range": 0.3},
            "vision_config": VISION,
        },
    ),
    "gemma4": (
        transformers.Gemma4Config,
        {
            "text_config": FAMILIES["gemma4_text"][1] | {"pad_token_id": 0},
            "vision_config": VISION | {"num_key_value_heads": 2, "head_dim": 8},
            "audio_config": None,
            "tie_word_embeddings": True,
        },
    ),
    "kimi_k25": (
        transformers.Kimi_K25Config,
        {
            "text_config": DEEPSEEK,
            "vision_config": {name: VISION[name] for name in SMALL},
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_5": (
        transformers.Qwen3_5Config,
        {
            "text_config": DELTA | {"rope_parameters": MROPE | {"mrope_interleaved": True}},
            "vision_config": QWEN_VISION,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_5_moe": (
        transformers.Qwen3_5MoeConfig,
        {
            "text_config": DELTA
            | SHARED_MOE
            | {"rope_parameters": MROPE | {"mrope_interleaved": True}},
            "vision_config": QWEN_VISION,
            "tie_word_embeddings": False,
        },
    ),
    "mistral3": (
        transformers.Mistral3Config,
        {
            "text_config": text(model_type="mistral", sliding_window=None, head_dim=8),
            "vision_config": VISION | {"model_type": "pixtral", "head_dim": 8},
            "tie_word_embeddings": False,
        },
    ),
    "qwen2_5_vl": (
        transformers.Qwen2_5_VLConfig,
        {
            "text_config": text(rope_parameters=MROPE),
            "vision_config": QWEN_VISION,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_vl": (
        transformers.Qwen3VLConfig,
        {
            "text_config": text(head_dim=8, rope_parameters=MROPE | {"mrope_interleaved": True}),
            "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0]},
            "tie_word_embeddings": True,
        },
    ),
    "smolvlm": (
        transformers.SmolVLMConfig,
        {
            "text_config": text(model_type="llama", rms_norm_eps=1e-5),
            "vision_config": VISION,
            "tie_word_embeddings": False,
        },
    ),
}


def config_of(model_type: str) -> Any:
    kind, fields = WHOLE[model_type]
    return kind(**fields)


@pytest.mark.parametrize("model_type", WHOLE)
def test_the_language_model_answers_as_the_whole_model(model_type: str, tmp_path: Path) -> None:
    # Given a random model with a tower for images
    model, checkpoint = save_random_whole_model(config_of(model_type), tmp_path)
    # When its language model runs split / Then it answers texts as the whole model does
    reference = answers(model, checkpoint, tmp_path)
    check(reference, 2, 3, LAYER)
    # And no tensor of the towers is staged
    opened = Checkpoint(tmp_path, model_type, tmp_path / "cache")
    assert opened.is_inside
    assert not [name for name in opened.tensors if "visi" in name or "project" in name[:20]]
    assert staged_tensors(load_architecture(opened.config)) == staged_tensors(checkpoint.arch)
    # And a check of the directory finds every layer equal
    assert check_model(str(tmp_path), 2, 2).equal


@pytest.mark.parametrize(
    "prefixes",
    [
        ("model.language_model.", ""),
        ("language_model.model.", "language_model."),
        ("model.text_model.", ""),
        ("model.llm.", ""),
    ],
)
def test_every_naming_of_files_is_known(prefixes: tuple[str, str], tmp_path: Path) -> None:
    # Given a file with the names of another time
    layers, head = prefixes
    save_random_whole_model(config_of("gemma3"), tmp_path)
    file = tmp_path / "model.safetensors"
    renamed, names = {}, language_tensors(load_file(file))
    for name, stored in names.items():
        inside = name.removeprefix("model.")
        renamed[head + name if inside == name else layers + inside] = load_file(file)[stored]
    tower = {"vision_tower.patch.weight": load_file(file)[names["model.norm.weight"]]}
    save_file(renamed | tower, file)
    # When / Then it is read as before, and the tower is not
    opened = Checkpoint(tmp_path, "renamed", tmp_path / "cache")
    assert set(opened.tensors) == set(names)
    for name in names:
        assert opened.read(name, 0, 0, opened.tensors[name].shape[0]).size


def test_a_plain_model_is_left_as_it_is() -> None:
    config = {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert language_config(config) == config
    assert language_tensors(["model.norm.weight", "lm_head.weight"]) == {
        "model.norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }


def test_what_only_the_program_sets_is_not_taken_from_a_file() -> None:
    config = language_config({"text_config": {"model_type": "llama", "skynet_absent": ["x"]}})
    assert config == {"model_type": "llama"}
