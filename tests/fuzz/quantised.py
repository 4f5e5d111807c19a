"""Targets of quantised weights: blocks of GGUF files; settings, and the tensors they describe."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.torch import save

from skynet.checkpoint.formats.gguf_blocks import DECODERS, decode
from skynet.checkpoint.formats.table import FIELD, quantised_matrices
from skynet.checkpoint.safetensors_file import read_header
from skynet.errors import CheckpointError
from skynet.wire.typed_json import parse_object
from tests.fuzz.fields import pack, unpack
from tests.published_formats import awq, gptq, pack_quantized, torch_tensor

KINDS = [*DECODERS, "Q5_1", "Q5_K", "IQ2_XS"]
FIELDS = ("settings", "weights")


def read_blocks(data: bytes) -> None:
    """The type's number, then two rows."""
    kind, half = KINDS[data[0] % len(KINDS)] if data else KINDS[0], max(0, len(data) - 1) // 2
    rows = np.frombuffer(data[1 : 1 + 2 * half], np.uint8).reshape(2, -1)
    with np.errstate(all="ignore"):
        decode(rows, kind)


def block_seeds() -> Iterator[bytes]:
    for number, kind in enumerate(KINDS):
        size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
        yield bytes([number]) + bytes(range(1, size + 1)) * 2


@cache
def _file() -> Path:
    return Path(tempfile.mkdtemp(prefix="skynet-fuzz-")) / "quantised.safetensors"


def read_quantised(data: bytes) -> None:
    """A quantization_config and a file of weights; reads the first rows of every matrix."""
    fields = unpack(data, FIELDS)
    settings = parse_object(fields.get("settings", b"{}"), "config.json", CheckpointError)
    _file().write_bytes(fields.get("weights", b""))
    for matrix in quantised_matrices({FIELD: settings}, read_header(_file())).values():
        with np.errstate(all="ignore"):
            matrix.read(0, 0, min(2, matrix.shape[0]))


def quantised_seeds() -> Iterator[bytes]:
    codes, scales = np.full((8, 32), 3, np.uint8), np.ones((8, 1), np.float16)
    zeros = np.full((8, 1), 8, np.uint8)
    packed = pack_quantized(codes, scales, zeros)
    int8 = {"weight": codes.view(np.int8), "weight_scale": scales}
    own = {"weight.codes": codes, "weight.scales": scales, "weight.minimums": scales}
    for settings, parts in (
        (b'{"quant_method": "gptq", "bits": 4, "group_size": 32}', gptq(codes, scales, zeros)),
        (b'{"quant_method": "awq", "bits": 4, "group_size": 32}', awq(codes, scales, zeros)),
        (b'{"quant_method": "compressed-tensors", "format": "pack-quantized"}', packed),
        (b'{"quant_method": "compressed-tensors", "format": "int-quantized"}', int8),
        (b'{"quant_method": "fp8", "weight_block_size": [4, 4]}', int8),
        (b"{}", own),
    ):
        weights = save({f"a.{part}": torch_tensor(value) for part, value in parts.items()})
        yield pack({"settings": settings, "weights": weights}, FIELDS)
