"""A float16 checkpoint takes 2 bytes a weight: in Redis, in the cache on disk, in a worker."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
import redis
import torch
from safetensors.torch import save_file

from skynet.architecture.tensors import staged_tensors
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.models.registry import load_architecture
from skynet.staging.split import SplitOptions, draft_plan
from skynet.staging.stager import stage_checkpoint
from skynet.store.staged_models import list_models
from skynet.store.tile_cache import TileCache
from skynet.store.weights import WeightStore
from skynet.wire.keys import Address
from skynet.worker.slice import load_slice

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
NORMS = 64 * 5  # numbers of norms


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A llama of random weights, with norms in float32."""
    path = tmp_path / "llama"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    tensors = {
        tensor.name: torch.randn(tensor.shape).to(
            torch.float16 if len(tensor.shape) > 1 else torch.float32
        )
        for tensor in staged_tensors(load_architecture(CONFIG))
    }
    save_file(tensors, path / "model.safetensors")
    return Checkpoint(path, "tiny-llama", tmp_path / "cache")


def test_two_bytes_a_weight_everywhere(
    client: redis.Redis, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    # Given the plan that a split makes of it
    plan = draft_plan(checkpoint, SplitOptions())
    arch = load_architecture(checkpoint.config)
    weights = sum(prod(each.shape) for each in staged_tensors(arch)) - NORMS
    # When it is staged, and loaded by a worker that keeps tiles
    stage_checkpoint(client, checkpoint, plan.model)
    cache, loaded = TileCache(tmp_path / "tiles", 2**20), list[int]()
    slice_ = load_slice(client, plan, Address(0, 0), loaded.append, cache=cache)
    # Then Redis, cache and worker have 2 bytes of each weight, and 4 of a norm's numbers
    manifest = WeightStore(client).require_manifest(plan.model)
    assert [model.weights for model in list_models(client)] == ["float16"]
    assert (plan.dtype, plan.weight_dtype) == ("float32", "float16")
    assert manifest.num_bytes == slice_.model.weight_bytes == 2 * weights + 4 * NORMS
    assert 2 * weights <= slice_.fetched_bytes < 2 * weights + 4 * NORMS + 256 * manifest.num_tiles
    files = [file for file in (tmp_path / "tiles").glob("*/*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) == manifest.num_bytes + 4 * len(files)
    assert sum(loaded) == 2 * (weights + NORMS)
    # And the next load of the slice takes all from the cache
    again = load_slice(client, plan, Address(0, 0), loaded.append, cache=cache)
    assert (again.fetched_bytes, again.cached_bytes) == (0, manifest.num_bytes)
