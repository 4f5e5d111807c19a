"""Writes quantised matrices as the published formats have them, one code at a time.

Independent of the decoders: loops over codes in place of array operations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

Array = np.ndarray
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words_of(codes: Array, bits: int) -> Array:
    """Codes along the last axis as int32 words, the first in the lowest bits; padded with 0."""
    per_word = 32 // bits
    words = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // per_word)), np.uint32)
    for at in range(codes.shape[-1]):
        code = codes[..., at].astype(np.uint32)
        words[..., at // per_word] |= code << np.uint32(bits * (at % per_word))
    return words.view(np.int32)


def gptq(
    codes: Array, scales: Array, zeros: Array, bits: int = 4, less: int = 1, **more: Array
) -> dict[str, Array]:
    """less: what the zero points are stored less of; 1 in the first version of the format."""
    return {
        "qweight": words_of(codes, bits).T,
        "qzeros": words_of(zeros.T - less, bits),
        "scales": scales.T,
        **more,
    }


def awq(codes: Array, scales: Array, zeros: Array) -> dict[str, Array]:
    return {"qweight": _awq_words(codes.T), "qzeros": _awq_words(zeros.T), "scales": scales.T}


def _awq_words(codes: Array) -> Array:
    """(inputs or groups, outputs / 8)"""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for column in range(words.shape[1]):
        for place, output in enumerate(AWQ_ORDER):
            code = codes[:, 8 * column + output].astype(np.uint32)
            words[:, column] |= code << np.uint32(4 * place)
    return words.view(np.int32)


def pack_quantized(
    codes: Array, scales: Array, zeros: Array | None = None, bits: int = 4
) -> dict[str, Array]:
    parts = {
        "weight_packed": words_of(codes, bits),
        "weight_scale": scales,
        "weight_shape": np.array(codes.shape, np.int64),
    }
    return parts if zeros is None else {**parts, "weight_zero_point": words_of(zeros.T, bits).T}


def torch_tensor(value: Any) -> torch.Tensor:
    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    return tensor.contiguous()


def write_checkpoint(
    directory: Path, config: dict[str, Any], tensors: dict[str, Any], settings: dict[str, Any]
) -> Path:
    """settings: the quantization_config."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {**config, "quantization_config": settings}
    (directory / "config.json").write_text(json.dumps(content))
    stored = {name: torch_tensor(value) for name, value in tensors.items()}
    save_file(stored, directory / "model.safetensors")
    return directory
