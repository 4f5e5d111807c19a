"""GGUF files of each architecture whose matrices stay quantised: Transformers' numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from skynet.architecture.tensors import resolve_names
from skynet.checkpoint.checkpoint import Checkpoint, open_checkpoint
from skynet.checkpoint.gguf_tensors import KEPT, GgufTensors
from skynet.checkpoint.model_config import model_config
from skynet.models.registry import load_architecture, settled
from skynet.wire.quantised import Quantised
from tests.gguf_files import transformers_model, write_random_gguf

MORE: dict[str, dict[str, Any]] = {
    "gemma2": {"attention.key_length": 64, "attention.sliding_window": 32},
    "gemma3": {"attention.key_length": 64, "attention.sliding_window": 32},
    "qwen3moe": {"attention.key_length": 64, "expert_count": 4, "expert_used_count": 2},
}


def numbers(value: Quantised | np.ndarray) -> np.ndarray:
    return value.dequantised() if isinstance(value, Quantised) else value


def in_modules(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of Transformers, which stacks the matrices of experts."""
    if name in tensors:
        return tensors[name]
    path, _, part = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj")}.get(part, (part,))
    return np.stack(
        [
            np.concatenate([tensors[f"{path}.{expert}.{each}.weight"] for each in parts])
            for expert in range(shape[0])
        ]
    )


@pytest.mark.parametrize("model", KEPT)
def test_tensors_are_those_of_transformers(tmp_path: Path, model: str) -> None:
    # Given a random model of blocks
    file = tmp_path / "tiny.gguf"
    head = None if model.startswith("gemma") else "Q8_0"  # Gemma's is tied
    write_random_gguf(file, model, "Q4_0", head=head, **MORE.get(model, {}))
    config = json.loads(AutoConfig.from_pretrained(tmp_path, gguf_file=file.name).to_json_string())
    # When
    read = dict(GgufTensors(file).read(load_architecture(config)))
    # Then no needed tensor is missing, and matrices are quantised
    arch = load_architecture(settled(config, read, lambda one, other: False))
    assert resolve_names(arch, read)
    plain = [name for name, value in read.items() if not isinstance(value, Quantised)]
    assert all("norm" in name or ".mlp.gate." in name or name.endswith("bias") for name in plain)
    # And every number is that of Transformers
    tensors = {name: numbers(value) for name, value in read.items()}
    for name, parameter in transformers_model(file).state_dict().items():
        if name == "lm_head.weight" and head is None:
            continue
        ours = in_modules(tensors, name, tuple(parameter.shape))
        np.testing.assert_array_equal(ours, parameter.numpy(), err_msg=name)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ4_XS", "F16"])
def test_a_converted_file_has_the_numbers_of_transformers(tmp_path: Path, kind: str) -> None:
    # Given
    write_random_gguf(tmp_path / "tiny.gguf", "llama", kind)
    # When
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
    # Then
    assert (len(checkpoint.quantised) == 0) == (kind == "F16")
    for name, parameter in transformers_model(tmp_path / "tiny.gguf").state_dict().items():
        if name in checkpoint.tensors:
            ours = checkpoint.read(name, 0, 0, len(parameter)).astype(np.float32)
            np.testing.assert_array_equal(ours, parameter.numpy(), err_msg=name)
    # And the directory is complete
    again = Checkpoint(checkpoint.path, "tiny", tmp_path / "cache")
    assert again.digest() == checkpoint.digest()


def test_types_that_are_rounded_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_random_gguf(tmp_path / "tiny.gguf", "llama", "Q5_K")
    open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
    assert "rounded to q8: 15 of Q5_K" in caplog.text


@pytest.mark.parametrize(("kind", "dtype"), [("Q8_0", "float32"), ("F16", "float16")])
def test_other_architectures_are_unpacked_by_transformers(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    # Given a GPT-2, whose matrices are transposed
    file, sizes = tmp_path / "tiny.gguf", {"attention.layer_norm_epsilon": 1e-5}
    write_random_gguf(file, "gpt2", kind, **sizes)
    # When
    checkpoint = open_checkpoint(str(file), tmp_path / "cache")
    # Then matrices have Transformers' numbers, in 16 bits if the file has them so
    assert not checkpoint.quantised
    expected = transformers_model(file).state_dict()
    name = "transformer.h.1.mlp.c_fc.weight"
    ours = torch.from_numpy(checkpoint.read(name, 0, 0, len(expected[name])))
    assert torch.equal(ours.float(), expected[name])
    matrices = [each.dtype for each in checkpoint.tensors.values() if len(each.shape) > 1]
    assert set(matrices) == {dtype}
    # And a plan made of the config alone counts those bits
    assert model_config(str(file), tmp_path / "cache").config["dtype"] == dtype
