"""Checkpoints whose files disagree, read as Transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from references import PROMPTS, save_random_model
from safetensors.torch import load_file, save_file

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.tensor_plans import model_files
from skynet.errors import CheckpointError
from skynet.request.generation_config import end_ids

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("kind", ["one", "several"])
@pytest.mark.parametrize(
    ("in_file", "in_config"),
    [
        (None, "third"),  # no generation_config.json
        (None, None),
        ({}, "third"),
        ({"temperature": 0.5, "do_sample": True}, "third"),
        ({"eos_token_id": None}, "third"),
        ({"eos_token_id": "third"}, None),
        ({"eos_token_id": "third"}, "second"),
        ({"_from_model_config": True}, "third"),
    ],
)
def test_answers_end_where_those_of_transformers_end(
    in_file: dict[str, Any] | None, in_config: str | None, kind: str, tmp_path: Path
) -> None:
    # Given end tokens in config.json and generation_config.json
    model, _ = save_random_model("llama", {}, tmp_path)
    ids = torch.tensor([PROMPTS[0]])
    free = model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=None)
    tokens = free[0, ids.shape[1] :].tolist()
    third = next(token for token in tokens[2:] if token not in tokens[:2])
    named = {"second": tokens[1], "third": third if kind == "one" else [third, 130]}
    config = json.loads((tmp_path / "config.json").read_text())
    config["eos_token_id"] = named.get(in_config or "")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").unlink()
    if in_file is not None:
        content = {name: named.get(str(value), value) for name, value in in_file.items()}
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    # When Transformers answers
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    out = loaded.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_length=20)
    answer = out[0, ids.shape[1] :].tolist()
    # Then SkyNet's end tokens end the answer at the same place
    checkpoint = Checkpoint(tmp_path, "tiny", tmp_path / "cache")
    ends = end_ids(checkpoint.config, model_files(checkpoint))
    stop = next((at + 1 for at, token in enumerate(tokens) if token in ends), len(tokens))
    assert answer == tokens[:stop]


def split_in_two(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, str]]:
    """The tensors of two files, and the index's map."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    files = {file: {name: tensors[name] for name in half} for file, half in halves.items()}
    return files, {name: file for file, half in halves.items() for name in half}


def write(
    path: Path, files: dict[str, dict[str, torch.Tensor]], weight_map: dict[str, str]
) -> None:
    for file, tensors in files.items():
        save_file(tensors, path / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("case", ["unnamed", "in both", "in both, unnamed", "in the other file"])
@pytest.mark.parametrize("home", ["a.safetensors", "b.safetensors"])
def test_a_tensor_is_the_one_that_transformers_reads(case: str, home: str, tmp_path: Path) -> None:
    # Given an index that does not say where a tensor is, or says so wrongly
    save_random_model("llama", {}, tmp_path)
    files, weight_map = split_in_two(tmp_path)
    tensor = files[weight_map.pop(NAME)].pop(NAME)
    (other,) = files.keys() - {home}
    files[home][NAME] = tensor
    if case.startswith("in both"):
        files[other][NAME] = tensor + 1
    if not case.endswith("unnamed"):
        weight_map[NAME] = other if case == "in the other file" else home
    write(tmp_path, files, weight_map)
    # When
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    checkpoint = Checkpoint(tmp_path, "tiny", tmp_path / "cache")
    # Then
    read = checkpoint.read(NAME, 0, 0, len(tensor))
    assert torch.equal(torch.from_numpy(read), model.state_dict()[NAME])


def test_a_tensor_that_no_file_has_is_named(tmp_path: Path) -> None:
    save_random_model("llama", {}, tmp_path)
    files, weight_map = split_in_two(tmp_path)
    del files[weight_map[NAME]][NAME]
    write(tmp_path, files, weight_map)
    with pytest.raises(CheckpointError, match=rf"does not hold {NAME}, which .* places there"):
        Checkpoint(tmp_path, "tiny", tmp_path / "cache")
