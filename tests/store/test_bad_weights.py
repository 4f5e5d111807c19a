"""NaN and infinity among weights: named by split, `skynet models verify` and `skynet check`."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from skynet import cli
from skynet.architecture.tensors import staged_tensors
from skynet.checkpoint.bad_numbers import bad_tensors, count_bad_numbers
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.tensor_plans import suppressing_tensors, tensor_plans
from skynet.local.server import EmbeddedServer
from skynet.models.registry import load_architecture
from skynet.settings import settings
from skynet.staging.stager import stage_checkpoint

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": 128,
    "tie_word_embeddings": False,
}
BART: dict[str, Any] = {
    "model_type": "bart",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
BAD = {"model.layers.1.mlp.down_proj.weight": 3, "model.norm.weight": 1}


def make(
    directory: Path, config: dict[str, Any], bad: dict[str, int], value: float, dtype: torch.dtype
) -> Checkpoint:
    """A random checkpoint whose tensors have `value` this often."""
    (directory / "config.json").write_text(json.dumps(config))
    torch.manual_seed(3)
    tensors = {
        tensor.name: torch.randn(tensor.shape, dtype=dtype)
        for tensor in staged_tensors(load_architecture(config))
    }
    for name, count in bad.items():
        tensors[name].view(-1)[-count:] = value
    save_file(tensors, directory / "model.safetensors")
    return Checkpoint(directory, "tiny", directory / "cache")


def skynet(server: EmbeddedServer, *words: str) -> Result:
    settings.cache_clear()
    try:
        return CliRunner().invoke(cli.main, words, env={"SKYNET_REDIS_URL": server.url})
    finally:
        settings.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_weights_are_named_when_split_and_when_verified(
    tmp_path: Path,
    server: EmbeddedServer,
    client: redis.Redis,
    value: float,
    dtype: torch.dtype,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a checkpoint with some
    checkpoint = make(tmp_path, LLAMA, BAD, value, dtype)
    assert bad_tensors(checkpoint, tensor_plans(checkpoint, load_architecture(LLAMA))) == BAD
    # When it is staged
    with caplog.at_level(logging.WARNING):
        stage_checkpoint(client, checkpoint, checkpoint.digest())
    # Then a warning names the tensors
    shown = "model.layers.1.mlp.down_proj.weight (3), model.norm.weight (1)"
    assert any(shown in record.getMessage() for record in caplog.records)
    # And so does the command, for people and programs, with exit code 1
    result = skynet(server, "models", "verify")
    assert result.exit_code == 1
    assert shown in result.stdout
    result = skynet(server, "models", "verify", "--json")
    assert json.loads(result.stdout)["bad_numbers"] == {checkpoint.digest(): BAD}
    assert json.loads(result.stdout)["broken"] == {checkpoint.digest(): []}


def test_good_weights_are_not_warned_of(
    tmp_path: Path, server: EmbeddedServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a model whose head suppresses a token
    config, name = BART, "final_logits_bias"
    assert suppressing_tensors(load_architecture(BART)) == {name}
    checkpoint = make(tmp_path, config, {name: 1}, -math.inf, torch.float32)
    # When / Then
    with caplog.at_level(logging.WARNING):
        stage_checkpoint(client, checkpoint, checkpoint.digest())
    assert caplog.records == []
    assert "all tiles match" in skynet(server, "models", "verify").stdout


def test_check_names_bad_weights(tmp_path: Path, server: EmbeddedServer) -> None:
    # Given
    make(tmp_path, LLAMA, BAD, math.nan, torch.float32)
    # When
    result = skynet(server, "check", str(tmp_path))
    # Then
    assert result.exit_code == 1, result.output
    assert "model.layers.1.mlp.down_proj.weight (3), model.norm.weight (1)" in result.stdout


def test_numbers_near_infinity_are_numbers() -> None:
    for dtype in ("float32", "float16"):
        largest = np.finfo(dtype).max
        numbers = np.array([largest, -largest, np.finfo(dtype).smallest_subnormal, -0.0], dtype)
        assert count_bad_numbers(numbers, dtype) == 0
    assert count_bad_numbers(np.array([0x7F7F, 0xFF7F, 0x0001, 0x8000], np.uint16), "bfloat16") == 0
    assert count_bad_numbers(np.array([0x7F80, 0x7F81, 0xFF80], np.uint16), "bfloat16") == 3
    assert count_bad_numbers(np.array([0x7F80, 0x7F81, 0xFF80], np.uint16), "bfloat16", True) == 2
