"""Files of families with delta nets in other forms than Transformers writes: the same answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Checkpoint, cluster_of, last_logits
from references import PROMPTS, save_random_model
from safetensors.torch import load_file, save_file

from skynet.check import check_model

Tensors = dict[str, torch.Tensor]
EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d+)\.(?P<name>\w+)\.weight")


def packed(tensors: Tensors) -> Tensors:
    """All experts of a layer in one tensor, and layers for the prediction of several tokens."""
    found = {name: match for name in tensors if (match := EXPERT.fullmatch(name))}
    made = {name: value for name, value in tensors.items() if name not in found}
    for layer in {match["experts"] for match in found.values()}:
        count = sum(name.startswith(layer) for name in found) // 3
        gate, up, down = (
            torch.stack([tensors[f"{layer}.{n}.{name}.weight"] for n in range(count)])
            for name in ("gate_proj", "up_proj", "down_proj")
        )
        made |= {f"{layer}.gate_up_proj": torch.cat([gate, up], dim=1), f"{layer}.down_proj": down}
    return made | {"mtp.layers.0.input_layernorm.weight": torch.ones(3)}


def as_published(tensors: Tensors) -> Tensors:
    """OLMo Hybrid's norms under their other names; convolutions of queries, keys and values."""
    made = dict(tensors)
    for name in tensors:
        layer = name.partition("feedforward_layer_norm")[0]
        if layer != name:
            made[f"{layer}post_attention_layernorm.weight"] = made.pop(name)
        if name.endswith("attention_layer_norm.weight"):
            made[name.replace("attention_layer_norm", "input_layernorm")] = made.pop(name)
        layer = name.partition("q_conv1d")[0]
        if layer != name:
            names = [f"{layer}{part}_conv1d.weight" for part in "qkv"]
            sizes = [len(tensors[f"{layer}{part}_proj.weight"]) for part in "qkv"]
            joined = torch.cat([tensors[each] for each in names])
            made |= dict(zip(names, (each.clone() for each in joined.split(sizes)), strict=True))
    return made


@pytest.mark.parametrize(
    ("family", "fields", "change"),
    [
        ("qwen3_5_moe_text", {}, packed),
        # Wider values than keys, as published
        ("olmo_hybrid", {"linear_key_head_dim": 8, "linear_value_head_dim": 16}, as_published),
    ],
)
def test_a_file_in_another_form_gives_the_same_answers(
    family: str, fields: dict[str, Any], change: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    # Given a model, and its file in another form
    path = tmp_path / "model.safetensors"
    model, _ = save_random_model(family, fields, tmp_path)
    save_file(change(load_file(path)), path, {"format": "pt"})
    # When it runs on uneven shards
    cluster = cluster_of(Checkpoint(tmp_path), 2, 3)
    try:
        for prompt in PROMPTS:
            logits = last_logits(cluster, cluster.arch, prompt, 1)
            # Then the logits are those of the model
            with torch.no_grad():
                expected = model(torch.tensor([prompt])).logits[0, -1].numpy()
            np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    finally:
        cluster.close()
    # And the check of the file finds no difference
    report = check_model(str(tmp_path), 1, 2)
    assert report.equal, "\n".join(report.lines())
