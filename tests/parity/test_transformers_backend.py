"""The Transformers backend: Transformers' layers, cut, give Transformers' answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Checkpoint, cluster_of, last_logits
from references import PROMPTS, Reference
from test_parity import LAYER, STAGE, check
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers_families import DYNAMIC, LONGROPE, refused_config, transformers_config

from skynet.architecture.transformers_model import KEY
from skynet.errors import UnsupportedModel
from skynet.models.registry import FAMILIES
from skynet.transformers_backend.description import describe_model
from skynet.wire.step import Row, TextTask
from tests.transformers_types import REFUSED, RUN, TRANSFORMERS

# Stages, shards, layers per chord. Heads over 3 shards are 2, 1 and 3, in 2 KV groups.
SHAPES = [(2, 3, STAGE)]
# Of these, one of each kind: two sums, three, five, none, and mixtures of experts.
MORE_SHAPES = [(1, 1, LAYER), (2, 2, LAYER)]
KINDS = [
    *("arcee", "glm", "olmo3", "hunyuan_v1_dense"),
    *("ernie4_5_moe", "flex_olmo", "minimax_m2", "afmoe"),
]
REASONS = {name: one.says for one in REFUSED for name in one.model_types.split()}
# Its refusal: tests/unit/transformers_backend/test_description.py
NAMED_IN_FILES = ("sarvam_moe",)

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "arcee-tied": ("arcee", {"tie_word_embeddings": True}),
    "arcee-dynamic": ("arcee", {"rope_parameters": DYNAMIC, "max_position_embeddings": 48}),
    "internlm3-dynamic": ("internlm3", {"rope_parameters": DYNAMIC}),
    "olmo3-longrope": ("olmo3", {"rope_parameters": LONGROPE}),
    "phimoe-longrope": (
        "phimoe",
        {"rope_parameters": LONGROPE | {"short_mscale": 1.2, "long_mscale": 1.3}},
    ),
    "arcee-biases": ("arcee", {"attention_bias": True, "mlp_bias": True}),
    "glm-bias": ("glm", {"attention_bias": True, "tie_word_embeddings": True}),
    "olmo3-bias": ("olmo3", {"attention_bias": True}),
    "ernie4_5-bias": ("ernie4_5", {"use_bias": True}),
    "vaultgemma-tied": ("vaultgemma", {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize(
    ("model_type", "stages", "shards", "span"),
    [
        (model_type, *shape)
        for model_type in RUN
        for shape in SHAPES + (MORE_SHAPES if model_type in KINDS else [])
    ],
)
def test_a_model_type_in_every_shape(
    reference: Callable[..., Reference], model_type: str, stages: int, shards: int, span: int
) -> None:
    # Given a tiny random model and the answers of Transformers
    model_reference = reference(model_type)
    # When it runs split / Then logits are close and greedy tokens equal
    check(model_reference, stages, shards, span)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant(reference: Callable[..., Reference], variant: str) -> None:
    # Given a model with a feature that few have
    model_type, fields = VARIANTS[variant]
    model_reference = reference(model_type, **fields)
    # When it runs split / Then logits are close and greedy tokens equal
    check(model_reference, 2, 3, LAYER)


@pytest.mark.parametrize(
    ("family", "stages", "shards", "span"),
    [
        ("llama", 2, 2, LAYER),
        ("llama", 1, 4, STAGE),
        ("qwen3", 2, 2, LAYER),
        ("qwen3", 1, 4, STAGE),
        ("phi3", 2, 2, LAYER),
        ("gemma2", 1, 4, STAGE),
        ("cohere", 2, 2, LAYER),
    ],
)
def test_a_supported_family_runs_on_the_backend_too(
    reference: Callable[..., Reference], family: str, stages: int, shards: int, span: int
) -> None:
    # Given a supported family
    model_reference = reference(family)
    # When it runs on the Transformers backend / Then nothing changes
    check(
        replace(
            model_reference, checkpoint=Checkpoint(model_reference.path, transformers_backend=True)
        ),
        stages,
        shards,
        span,
    )


@pytest.mark.parametrize("model_type", ["afmoe", "ernie4_5_moe", "glm4_moe", "minimax_m2"])
def test_a_mixture_in_bfloat16_chooses_experts_as_transformers_does(
    tmp_path: Path, model_type: str
) -> None:
    # Given a checkpoint in bfloat16, of whose router some is float32, or is not, and would choose
    # other experts if it were the other way round
    torch.manual_seed(0)
    eager: dict[str, Any] = {"experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(transformers_config(model_type), **eager).bfloat16()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("gate.weight"):
            value.data = 1 + 0.01 * torch.randn(value.shape)
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            value.data = 1 + 0.003 * torch.randn(value.shape)
    model.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, **eager)
    # When it runs in bfloat16
    checkpoint, (prompt, *_) = Checkpoint(tmp_path), PROMPTS
    cluster = cluster_of(checkpoint, 1, 1, dtype="bfloat16")
    try:
        logits = last_logits(cluster, checkpoint.arch, prompt, STAGE)
    finally:
        cluster.close()
    # Then logits are Transformers', but for the order of sums
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1].float().numpy()
    assert logits @ expected / np.linalg.norm(logits) / np.linalg.norm(expected) > 0.9995


@pytest.mark.parametrize("model_type", ["arcee", "glm", "olmo3", "hunyuan_v1_dense", "apertus"])
def test_bfloat16_is_close(reference: Callable[..., Reference], model_type: str) -> None:
    # Given a plan in bfloat16 of a float32 checkpoint
    model_reference = reference(model_type)
    cluster = cluster_of(model_reference.checkpoint, 2, 2, dtype="bfloat16")
    # When it computes a prompt
    try:
        logits = last_logits(cluster, model_reference.checkpoint.arch, PROMPTS[0], STAGE)
    finally:
        cluster.close()
    # Then the logits are those of float32 up to bfloat16's 8 bits, which the hidden states between
    # two layers have here too
    expected = model_reference.logits[0]
    assert logits @ expected / np.linalg.norm(logits) / np.linalg.norm(expected) > 0.98


@pytest.mark.parametrize("model_type", [name for name in REASONS if name not in NAMED_IN_FILES])
def test_a_model_type_that_is_refused_says_why(model_type: str) -> None:
    # Given a config.json
    config = refused_config(model_type)
    # When / Then the message names the model and what of it
    with pytest.raises(UnsupportedModel, match=f"'{model_type}'") as refusal:
        describe_model(config)
    assert REASONS[model_type] in str(refusal.value)


@pytest.mark.skipif(
    not version("transformers").startswith(f"{TRANSFORMERS}."),
    reason=f"the list is that of Transformers {TRANSFORMERS}",
)
def test_every_model_type_with_a_plan_has_been_tried() -> None:
    # Given what Transformers has a plan for
    planned = {
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if getattr(CONFIG_MAPPING[name], "base_model_tp_plan", None)
    }
    # Then
    assert planned - FAMILIES.keys() == RUN.keys() | REASONS.keys()
    assert not RUN.keys() & REASONS.keys()


def test_an_embedding_is_of_the_last_hidden_states(reference: Callable[..., Reference]) -> None:
    # Given an embedding, as a decoder with the files of sentence-transformers computes
    model_reference = reference("arcee")
    cluster = cluster_of(model_reference.checkpoint, 2, 2)
    mean_embedding = TextTask("embed", pooling="mean")
    rows = [
        Row(slot, 0, tuple(prompt), len(prompt), text_task=mean_embedding)
        for slot, prompt in enumerate(PROMPTS)
    ]
    # When
    try:
        vectors = cluster.vectors(rows, LAYER)
    finally:
        cluster.close()
    # Then
    base = AutoModel.from_pretrained(model_reference.path)
    for vector, prompt in zip(vectors, PROMPTS, strict=True):
        with torch.no_grad():
            states = base(torch.tensor([prompt])).last_hidden_state[0]
        np.testing.assert_allclose(vector, states.mean(0).numpy(), atol=1e-4, rtol=0)


def test_a_config_has_a_description_on_the_backend_only(
    reference: Callable[..., Reference],
) -> None:
    assert KEY in reference("arcee").checkpoint.config
    assert KEY not in reference("llama").checkpoint.config
