"""When `--dtype auto` is bfloat16."""

from __future__ import annotations

import pytest
from plans import plan_for

from skynet.models.registry import load_architecture
from skynet.planning.auto_dtype import all_gpus, cpu_dtype, gpu_dtype
from skynet.planning.cost import Candidate

ARCH = load_architecture(
    {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "vocab_size": 100,
    }
)
GPU, OTHER_GPU, CPU = Candidate("a", device="cuda"), Candidate("b", device="cuda:1"), Candidate("c")


def test_a_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert cpu_dtype("auto") == cpu_dtype("float32") == "float32"
    assert cpu_dtype("bfloat16") == "bfloat16"


@pytest.mark.parametrize(
    ("dtype", "weight_dtype", "kv_dtype", "expected"),
    [
        ("auto", "bfloat16", None, "bfloat16"),
        ("auto", "bfloat16", "q8", "bfloat16"),
        ("auto", "bfloat16", "float32", None),  # keys and values would be wider
        ("auto", "float32", None, None),
        ("float32", "bfloat16", None, None),
    ],
)
def test_gpus_compute_bfloat16_weights_in_bfloat16(
    dtype: str, weight_dtype: str, kv_dtype: str | None, expected: str | None
) -> None:
    plan = plan_for(ARCH, weight_dtype=weight_dtype, kv_dtype=kv_dtype)
    assert gpu_dtype(dtype, plan) == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([GPU, OTHER_GPU], True),
        ([GPU, CPU], False),
        ([GPU, Candidate("d", leaving=True)], True),
        ([Candidate("e", device="mps")], False),
        ([], False),
    ],
)
def test_members_are_gpus_only_if_all_are(members: list[Candidate], expected: bool) -> None:
    assert all_gpus(members) is expected
