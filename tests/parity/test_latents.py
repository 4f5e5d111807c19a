"""Latent attention: both of its forms are Transformers', and layers after the last are ignored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Checkpoint, Request, cluster_of, generate, last_logits
from references import NEW_TOKENS, PROMPTS, Reference
from safetensors.torch import load_file, save_file

from skynet.layers import latent_attention
from skynet.layers.latent_attention import LatentAttention

FILE = "model.safetensors"


@pytest.mark.parametrize("is_expanded", [False, True])
def test_both_forms_are_transformers(
    reference: Callable[..., Reference], monkeypatch: pytest.MonkeyPatch, is_expanded: bool
) -> None:
    # Given a cluster that computes chunks in one of the forms, a head at a time where expanded
    model_reference = reference("youtu")

    def is_in_form(self: LatentAttention, call: latent_attention.Attend) -> bool:
        return is_expanded and call.slots.size == 1

    monkeypatch.setattr(LatentAttention, "_is_expanded", is_in_form)
    monkeypatch.setattr(latent_attention, "EXPANDED_NUMBERS", 1)
    cluster = cluster_of(model_reference.checkpoint, 1, 3)
    # When prompts run whole, and in chunks
    try:
        for prompt, expected in zip(PROMPTS, model_reference.logits, strict=True):
            logits = last_logits(cluster, model_reference.checkpoint.arch, prompt, 99)
            np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
        requests = [Request(prompt, slot=slot) for slot, prompt in enumerate(PROMPTS)]
        tokens = generate(cluster, requests, NEW_TOKENS, 99, chunk=5)
    finally:
        cluster.close()
    # Then
    assert tokens == model_reference.tokens


def test_layers_that_predict_further_tokens_are_ignored(
    reference: Callable[..., Reference], tmp_path: Path
) -> None:
    # Given a checkpoint with the tensors of one more layer, as DeepSeek's have
    model_reference = reference("deepseek_v3")
    shutil.copytree(model_reference.path, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    tensors = load_file(tmp_path / FILE)
    more = {
        name.replace("layers.3.", "layers.4."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.3." in name
    }
    more["model.layers.4.eh_proj.weight"] = torch.ones(48, 96)
    save_file(tensors | more, tmp_path / FILE, metadata={"format": "pt"})
    # When / Then the model is the same
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.arch == model_reference.checkpoint.arch
    assert checkpoint.tensors.keys() == model_reference.checkpoint.tensors.keys()
