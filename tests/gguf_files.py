"""Writes tiny GGUF files of random models: blocks of any type, with numbers of a weight's size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

SPREAD = 0.08  # standard deviation of weights
# The float16 numbers of a block: where, and in which proportion, so that weights are around 0.
HALVES: dict[str, dict[int, float]] = {
    "Q4_0": {0: 1},
    "Q4_1": {0: 1, 2: -7.5},
    "Q5_0": {0: 1},
    "Q5_1": {0: 1, 2: -15.5},
    "Q8_0": {0: 1},
    "Q2_K": {80: 1, 82: 1.5},
    "Q3_K": {108: 1},
    "Q4_K": {0: 1, 2: 7.5},
    "Q5_K": {0: 1, 2: 15.5},
    "Q6_K": {208: 1},
    "IQ3_S": {0: 1},
    "IQ4_NL": {0: 1},
    "IQ4_XS": {0: 1},
}
# The metadata of a tiny model.
SIZES: dict[str, Any] = {
    "context_length": 128,
    "embedding_length": 256,
    "block_count": 2,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": 64,
    "rope.freq_base": 500.0,
    "vocab_size": 131,
}
VALUE_TYPES = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}


def random_blocks(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Rows of blocks whose numbers have the shape (..., in), and are about `SPREAD`."""
    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // numbers, size), dtype=np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = 122 + blocks[..., 0] % 3
        return blocks.reshape(*shape[:-1], -1)
    _set_halves(kind, blocks, np.ones(blocks.shape[:-1]))
    spread = dequantize(blocks.reshape(-1, size), GGMLQuantizationType[kind]).std()
    _set_halves(kind, blocks, random.uniform(0.5, 1.5, blocks.shape[:-1]) * SPREAD / spread)
    return blocks.reshape(*shape[:-1], -1)


def _set_halves(kind: str, blocks: np.ndarray, factor: np.ndarray) -> None:
    for at, share in HALVES[kind].items():
        halves = (factor * share).astype(np.float16)
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)


def write_random_gguf(
    file: Path,
    model: str,
    kind: str,
    *,
    head: str | None = None,
    others: Mapping[str, str] = MappingProxyType({}),
    **more: Any,
) -> None:
    """A model of llama.cpp's architecture `model`, whose matrices are of type `kind`.

    head: the type of the output matrix, which is tied to the embedding without it.
    others: the types of matrices whose names contain a word.
    more: metadata of the architecture, beside `SIZES`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    random = np.random.default_rng(len(model))
    _write(file, model, {}, more)  # without weights, for Transformers' config of it
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    tensors = {}
    for name, shape in _gguf_shapes(model, shapes).items():
        matrix_kind = head if name == "output.weight" else kind
        matrix_kind = next((others[word] for word in others if word in name), matrix_kind)
        if name == "output.weight" and head is None:
            continue
        if len(shape) < 2 or "gate_inp" in name:
            tensors[name] = ("F32", random.normal(1, 0.2, shape).astype(np.float32))
        elif matrix_kind == "F16":
            tensors[name] = ("F16", random.normal(0, SPREAD, shape).astype(np.float16))
        else:
            tensors[name] = (str(matrix_kind), random_blocks(str(matrix_kind), shape, random))
    _write(file, model, tensors, more)


def _gguf_shapes(model: str, parameters: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[model], SIZES["block_count"])
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in parameters.items():
        shape = tuple(parameter.shape)
        if name.endswith("experts.gate_up_proj"):  # Transformers has both in one
            layer = name.split(".")[2]
            half = (shape[0], shape[1] // 2, shape[2])
            shapes |= {f"blk.{layer}.ffn_{part}_exps.weight": half for part in ("gate", "up")}
        elif name.endswith("experts.down_proj"):
            shapes[f"{names.get_name(name)}.weight"] = shape
        elif name != "lm_head.weight" or names.get_name("lm_head"):  # Gemma 2 has none
            path, _, ending = name.rpartition(".")
            transposed = model == "gpt2" and name.startswith("transformer.h.")
            shapes[f"{names.get_name(path)}.{ending}"] = shape[::-1] if transposed else shape
    return shapes


def _write(file: Path, model: str, tensors: dict[str, Any], more: dict[str, Any]) -> None:
    writer = gguf.GGUFWriter(file, model)
    writer.add_name("tiny")
    for name, value in (SIZES | more).items():
        writer.add_key_value(f"{model}.{name}", value, VALUE_TYPES[type(value)])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    tokens = [chr(0x100 + number) for number in range(SIZES["vocab_size"] - 1)]  # "Ā" is byte 0
    writer.add_token_list([*tokens, tokens[0] + tokens[1]])
    writer.add_token_types([gguf.TokenType.NORMAL] * SIZES["vocab_size"])
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, (kind, array) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def transformers_model(file: Path) -> Any:
    """The model that Transformers makes of a GGUF file, unpacked to float32."""
    import transformers

    gguf_config = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": gguf_config(dequantize=True)} if gguf_config else {}
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, **unpack
    )
