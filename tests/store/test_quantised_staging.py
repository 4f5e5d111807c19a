"""Quantised models in Redis: staged, verified, repaired, loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import redis
import torch
from safetensors.torch import save_file

from skynet.architecture.tensors import staged_tensors
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.fetch import CheckpointFetch
from skynet.checkpoint.model_source import ModelSource
from skynet.checkpoint.staged_form import in_staged_form
from skynet.models.registry import load_architecture
from skynet.planning.memory import shard_weight_bytes
from skynet.planning.ranges import Range
from skynet.planning.split import PlanOptions, make_plan
from skynet.settings import settings
from skynet.staging.stager import stage_checkpoint, staging_job
from skynet.store.manifest import Manifest, TileName
from skynet.store.staged_models import list_models, verify_model
from skynet.store.staged_weights import StagedWeights
from skynet.store.weights import WeightStore
from skynet.wire import codec
from skynet.wire.keys import Address
from skynet.worker.slice import TensorFetcher, load_slice

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
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A llama of random weights."""
    path = tmp_path / "llama"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    tensors = {
        tensor.name: torch.randn(tensor.shape).bfloat16()
        for tensor in staged_tensors(load_architecture(CONFIG))
    }
    save_file(tensors, path / "model.safetensors")
    return Checkpoint(path, "tiny-llama", tmp_path / "cache")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYNET_TILE_BYTES", "4096")
    settings.cache_clear()


def stage(client: redis.Redis, source: ModelSource) -> Manifest:
    stage_checkpoint(client, source, source.digest())
    return WeightStore(client).require_manifest(source.digest())


@pytest.mark.usefixtures("small_tiles")
def test_forms_of_one_checkpoint_lie_beside_each_other(
    client: redis.Redis, checkpoint: Checkpoint
) -> None:
    # Given a checkpoint that is staged as it is, in q8 and in q4
    manifests = [stage(client, in_staged_form(checkpoint, form)) for form in (None, "q8", "q4")]
    # When they are listed / Then each is complete and names its weights
    listed = {model.digest: model for model in list_models(client)}
    assert all(listed[manifest.digest].complete for manifest in manifests)
    assert [listed[m.digest].weights for m in manifests] == ["bfloat16", "q8", "q4"]
    sizes = [manifest.num_bytes for manifest in manifests]
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * 1.6 * sizes[2]
    for manifest in manifests:
        assert verify_model(client, listed[manifest.digest]).is_good
        # And a manifest reads as it was written
        assert Manifest.from_json(manifest.to_json().encode()) == manifest


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("weights", ["q8", "q4"])
def test_a_broken_tile_is_written_again_byte_for_byte(
    client: redis.Redis, checkpoint: Checkpoint, weights: str
) -> None:
    # Given a staged model, one of whose tiles has other bytes and one of which is gone
    source = in_staged_form(checkpoint, weights)
    manifest, store = stage(client, source), WeightStore(client)
    tiles = [TileName(DOWN, 0), TileName("lm_head.weight", 1)]
    keys = [tile.key(manifest.digest) for tile in tiles]
    before = client.mget(keys)
    client.set(keys[0], codec.encode(np.zeros(3, np.uint8)))
    client.delete(keys[1])
    # When it is verified and repaired from the checkpoint
    bad = store.verify(manifest)
    assert set(bad) == set(tiles)
    job = staging_job(source, manifest.digest, load_architecture(source.config))
    store.restage_tiles(manifest, job, bad)
    # Then the bytes are those of before
    assert client.mget(keys) == before
    assert store.verify(manifest) == []


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("weights", ["q8", "q4"])
def test_a_worker_loads_the_blocks(
    client: redis.Redis, checkpoint: Checkpoint, weights: str
) -> None:
    # Given a staged model
    source = in_staged_form(checkpoint, weights)
    manifest = stage(client, source)
    arch = load_architecture(manifest.config)
    # When a region of groups is fetched / Then it is the checkpoint's
    fetched = TensorFetcher(StagedWeights(client, manifest), "float32", lambda n: None)
    region = Range(1, 3)
    expected = CheckpointFetch(source, arch)(DOWN, region)
    assert torch.equal(fetched(DOWN, region), expected)
    # When a slice is loaded / Then the progress adds up to its bytes
    options = PlanOptions(manifest.digest, manifest.name)
    plan, loaded = make_plan(arch, options, stages=1, shards=2), list[int]()
    model, _, _ = load_slice(client, plan, Address(0, 1), loaded.append)
    assert model.weight_bytes == shard_weight_bytes(arch, plan, 0, 1)
    assert sum(loaded) == model.weight_bytes
