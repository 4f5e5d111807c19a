"""What `cost` and `bandwidth` measure: the bytes of a step, and a shard's steps alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plans import plan_for
from transformers import LlamaConfig, LlamaForCausalLM

from skynet.bench import step_shares
from skynet.bench.shard import LoneShards
from skynet.bench.step_shares import memory_bytes_per_s, step_bytes
from skynet.models.registry import load_architecture

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # as wide as a group of quantised weights
    "vocab_size": 256,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
# Query and output, key and value, three of the MLP; the head.
WEIGHTS = 2 * (2 * 64 * 128 + 2 * 64 * 64 + 3 * 64 * 128) + 256 * 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with bfloat16 weights."""
    directory: Path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize(("form", "bits"), [("bf16", 16), ("q8", 8.5), ("q4", 5)])
def test_a_step_reads_every_matrix_once(model: str, form: str, bits: float) -> None:
    arch = load_architecture({"model_type": "llama", **SIZES})
    plan = plan_for(arch, 1, 2, weight_dtype="bfloat16")
    size = step_bytes(model, form, plan)
    norms = 2 * 5 * 64 * 4  # on both shards, float32
    assert WEIGHTS * bits / 8 <= size <= WEIGHTS * bits / 8 + norms


def test_memory_is_read_by_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_shares, "READ_BYTES", 2**20)
    monkeypatch.setattr(step_shares, "READ_S", 0.01)
    before = torch.get_num_threads()
    assert memory_bytes_per_s() > 0
    assert torch.get_num_threads() == before


def test_shards_compute_steps_alone(model: str) -> None:
    with LoneShards(model, "bf16") as shards:
        assert shards.step_s() > 0
