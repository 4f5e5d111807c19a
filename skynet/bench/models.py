"""The models that scenarios run: the demo model, and random weights in the shape of Qwen3-0.6B."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skynet.checkpoint.made_once import made_once
from skynet.settings import settings

# Of Qwen/Qwen3-0.6B.
QWEN3_SIZES: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class BenchModel:
    """A model of scenarios.

    title: in results. find: returns what `LocalCluster` takes.
    """

    title: str
    find: Callable[[], str]


def qwen3_shape() -> str:
    """A directory with bfloat16 weights of 1.2 GB, made once in the cache."""
    target = settings().cache_dir / "models" / "qwen3-0.6b-random"
    made_once(target, _make_qwen3, "random weights")
    return str(target)


def _make_qwen3(directory: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(**QWEN3_SIZES)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


SMOLLM2 = BenchModel("SmolLM2-135M", lambda: "smollm2")
QWEN3 = BenchModel("random weights in Qwen3-0.6B's shape", qwen3_shape)
