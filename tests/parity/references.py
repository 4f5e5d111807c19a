"""Tiny random checkpoints of each family and what Transformers itself answers with them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from harness import Checkpoint

PROMPTS = [
    [5, 6, 7, 100, 2, 9, 11, 3, 77, 88, 1, 4],
    [9, 8, 130],
    [12, 99, 31, 64, 2, 2, 18, 120, 45, 6, 71, 33, 90, 14, 27, 55, 3, 101, 60, 8, 19, 40, 77],
]
NEW_TOKENS = 24

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 83,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "n_embd": 48,
    "n_layer": 4,
    "n_head": 6,
    "n_positions": 128,
    "n_inner": 83,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {
    "gpt2": transformers.GPT2Config,
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}


@dataclass(frozen=True)
class Reference:
    """A checkpoint, and the logits and greedy tokens of Transformers for `PROMPTS`."""

    checkpoint: Checkpoint
    logits: list[np.ndarray]  # after the last token of each prompt, (vocab,)
    tokens: list[list[int]]
    path: Path


def make_reference(family: str, fields: dict[str, Any], directory: Path) -> Reference:
    sizes = GPT2_SIZES if family == "gpt2" else SIZES
    torch.manual_seed(len(family))
    config = CONFIGS[family](**(sizes | copy.deepcopy(fields)))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases start as ones and zeros, which hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    logits, tokens = [], []
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            # A copy: dynamic rope remembers the longest sequence the model has seen.
            logits.append(copy.deepcopy(model)(ids).logits[0, -1].numpy())
            answer = copy.deepcopy(model).generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
            )
            tokens.append(answer[0, len(prompt) :].tolist())
    return Reference(Checkpoint(directory), logits, tokens, directory)
