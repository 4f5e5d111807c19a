"""Tiny random checkpoints of each family, and the logits and tokens of Transformers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from harness import Checkpoint, round_weights
from model_families import ENCODERS, tiny_config

PROMPTS = [
    [5, 6, 7, 100, 2, 9, 11, 3, 77, 88, 1, 4],
    [9, 8, 130],
    [12, 99, 31, 64, 2, 2, 18, 120, 45, 6, 71, 33, 90, 14, 27, 55, 3, 101, 60, 8, 19, 40, 77],
]
NEW_TOKENS = 24
LONGROPE: dict[str, Any] = {
    "partial_rotary_factor": 0.75,
    "rope_parameters": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.3, 2.1],
        "long_factor": [1.0, 5.0, 9.0],
    },
}
# Of the prompts, two outgrow the positions of the pretraining while they are answered.
OUTGROWN = LONGROPE | {"original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Reference:
    """A checkpoint, and the logits and greedy tokens of Transformers for `PROMPTS`."""

    checkpoint: Checkpoint
    logits: list[np.ndarray]  # after the last token of each prompt, (vocab,)
    tokens: list[list[int]]
    path: Path


def save_random_model(
    family: str, fields: dict[str, Any], directory: Path
) -> tuple[Any, Checkpoint]:
    """A model of Transformers with random weights, and the checkpoint that it saves."""
    torch.manual_seed(len(family))
    config = tiny_config(family, **fields)
    # Not grouped: that kernel takes no uneven sizes.
    counts = ("num_experts_per_tok", "top_k_experts", "moe_topk")
    has_experts = any(hasattr(config, name) for name in counts)
    eager = {"experts_implementation": "eager"} if has_experts else {}
    model = transformers.AutoModelForCausalLM.from_config(config, **eager)
    return _saved(model, directory), Checkpoint(directory)


@dataclass(frozen=True)
class Encoder:
    """A tiny random checkpoint of a family with one head, and Transformers' model of it."""

    checkpoint: Checkpoint
    model: Any

    def outputs(self, text: list[int], types: Sequence[int] = ()) -> Any:
        """The model's outputs for a text alone; types: of its tokens, if it is a pair of texts."""
        with torch.no_grad():
            return self.model(torch.tensor([text]), **_types(types))

    def hidden_states(self, text: list[int], types: Sequence[int] = ()) -> np.ndarray:
        """(tokens, hidden) after the last layer and its norm, whatever the head."""
        with torch.no_grad():
            outputs = self.model.base_model(torch.tensor([text]), **_types(types))
        return np.asarray(outputs.last_hidden_state[0])


def _types(types: Sequence[int]) -> dict[str, torch.Tensor]:
    return {"token_type_ids": torch.tensor([types])} if types else {}


def save_random_encoder(family: str, head: str, fields: dict[str, Any], directory: Path) -> Encoder:
    """An encoder with random weights, one of `ENCODER_HEADS`, and the checkpoint that it saves."""
    torch.manual_seed(len(family))
    name, kind, sizes = ENCODERS[family]
    config = kind(**(copy.deepcopy(sizes) | copy.deepcopy(fields)))
    model = _saved(getattr(transformers, name + head)(config), directory)
    return Encoder(Checkpoint(directory), model)


def _saved(model: Any, directory: Path) -> Any:
    model = model.float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_bias = name.endswith("bias")  # of experts, two axes
            if (
                parameter.ndim == 1 or is_bias
            ):  # norms and biases start as ones and zeros, which hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in model.named_buffers():
            # Of routers, zeros too; and the numbers that layers are multiplied by, ones.
            if name.endswith(("e_score_correction_bias", "expert_bias", "layer_scalar")):
                buffer.add_(torch.randn_like(buffer) * 0.2)
    round_weights(model)
    model.save_pretrained(directory)
    return model


def save_random_whole_model(config: Any, directory: Path) -> tuple[Any, Checkpoint]:
    """A model that takes more than text, and the checkpoint of its language model."""
    torch.manual_seed(len(config.model_type))
    model = transformers.AutoModelForImageTextToText.from_config(config)
    return _saved(model, directory), Checkpoint(directory)


def make_reference(family: str, fields: dict[str, Any], directory: Path) -> Reference:
    """A random model and its answers."""
    return answers(*save_random_model(family, fields, directory), directory)


def answers(model: Any, checkpoint: Checkpoint, directory: Path) -> Reference:
    """A model's answers."""
    # These kinds of rope remember the longest sequence that the model has seen.
    rope = str(getattr(model.config, "rope_parameters", ""))
    remembers = "dynamic" in rope or "longrope" in rope

    def unused() -> Any:
        return copy.deepcopy(model) if remembers else model

    logits, tokens = [], []
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            logits.append(unused()(ids).logits[0, -1].numpy())
            answer = unused().generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
            )
            tokens.append(answer[0, len(prompt) :].tolist())
    return Reference(checkpoint, logits, tokens, directory)
