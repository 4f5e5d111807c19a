"""Targets of model files: config, tokenizer, template, generation defaults, weights' headers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models

from skynet.architecture.config import Config
from skynet.checkpoint.safetensors_file import NUMPY_DTYPES, read_header, read_region
from skynet.errors import CheckpointError
from skynet.models.registry import FAMILIES, load_architecture
from skynet.orchestrator.intake import end_ids
from skynet.planning.split import PlanOptions, make_plan
from skynet.request.generation_config import generation_defaults
from skynet.request.options import Limits, check_options
from skynet.request.text_tasks import TextTasks
from skynet.tokenizer.chat_template import ChatTemplate
from skynet.tokenizer.text import Text
from skynet.wire.typed_json import parse_json, parse_object
from tests.fuzz.fields import pack, unpack

SIZES = {
    "hidden_size": 48, "n_embd": 48, "d_model": 48, "dim": 48, "num_hidden_layers": 2,
    "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_attention_heads": 6, "n_head": 6, "n_heads": 6, "num_heads": 6,
    "encoder_attention_heads": 6, "decoder_attention_heads": 6, "intermediate_size": 80,
    "d_ff": 80, "d_kv": 8, "ffn_dim": 80, "hidden_dim": 80, "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80, "vocab_size": 100, "max_position_embeddings": 64, "n_positions": 64,
    "num_key_value_heads": 3, "num_local_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "eos_token_id": 2,
}  # fmt: skip


def read_config(data: bytes) -> None:
    """A config.json, and the plan of a small cluster for it."""
    config: Config = parse_object(data, "config.json", CheckpointError)
    arch = load_architecture(config)
    make_plan(arch, PlanOptions("d", "tiny"), stages=1, shards=2, epoch=1)


def config_seeds() -> Iterator[bytes]:
    for name, family in sorted(FAMILIES.items()):
        config = {**getattr(family, "DEFAULTS", {}), **SIZES, "model_type": name}
        yield json.dumps(config).encode()
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    yield json.dumps({**SIZES, "model_type": "llama", "rope_scaling": rope}).encode()


TEXT_FILES = [
    "tokenizer.json",
    "chat_template.jinja",
    "special_tokens.json",
    "decoding.json",
    "source_vocabulary.json",
    "source.spm",
    "target.spm",
]


def read_text_files(data: bytes) -> None:
    text = Text(unpack(data, TEXT_FILES))
    if text.has_tokenizer:
        text.decode(text.encode("ab a"))
        text.token_id("mask_token")
        text.spell(1)
        detokenizer = text.detokenizer()
        detokenizer.push(1)
        detokenizer.flush()
    text.chat([{"role": "user", "content": "ab"}])


def text_file_seeds() -> Iterator[bytes]:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<mask>": 2}, unk_token="a"))
    tokenizer.add_special_tokens(["<mask>"])
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "chat_template.jinja": b"{{ messages[0]['content'] }}",
        "special_tokens.json": b'{"mask_token": "<mask>"}',
        "decoding.json": b'{"clean_up_tokenization_spaces": true}',
        "source_vocabulary.json": b'{"a": 0}',
    }
    yield pack(files, TEXT_FILES)
    yield pack({"tokenizer.json": Tokenizer(models.BPE()).to_str().encode()}, TEXT_FILES)


def read_chat(data: bytes) -> None:
    """A template, then messages."""
    fields = unpack(data, ("template", "messages"))
    template = fields.get("template", b"").decode(errors="replace")
    messages = parse_json(fields.get("messages", b"[]"), "messages")
    ChatTemplate(template, {"bos_token": "<s>"}).render(messages)


def chat_seeds() -> Iterator[bytes]:
    messages = b'[{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]'
    templates = (
        b"{{ bos_token }}{% for m in messages %}{{ m['role'] ~ m.content | trim }}{% endfor %}",
        b"{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}",
        b"{% set x = 'ab' * 3 %}{{ x | tojson }}{{ '%5d' % 3 }}{{ 2 ** 8 }}{{ range(3) | list }}",
        b"{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}",
    )
    for template in templates:
        yield pack({"template": template, "messages": messages}, ("template", "messages"))


DEFAULTS_FILES = ("generation_config.json", "embedding.json")


def read_defaults(data: bytes) -> None:
    files = unpack(data, DEFAULTS_FILES)
    end_ids({"eos_token_id": 2}, files)
    defaults = generation_defaults(files)
    TextTasks.of(_tiny(), files, Text({})).check_task("embed")
    for options in ({}, {"do_sample": True}, {"num_beams": 2}):
        check_options(options, 3, Limits(64, 100, 4), defaults, lambda _: [1])


@cache
def _tiny() -> object:
    return load_architecture({**SIZES, "model_type": "bert"})


def defaults_seeds() -> Iterator[bytes]:
    generation = {
        "temperature": 0.6, "top_p": 0.9, "top_k": 5, "eos_token_id": [1, 2], "max_length": 20,
        "forced_eos_token_id": 2, "bad_words_ids": [[3]], "num_beams": 2, "min_length": 1,
        "suppress_tokens": [4], "decoder_start_token_id": 0, "early_stopping": True,
    }  # fmt: skip
    files = {
        "generation_config.json": json.dumps(generation).encode(),
        "embedding.json": b'{"normalize": true, "pooling": "mean"}',
    }
    yield pack(files, DEFAULTS_FILES)


@cache
def _file() -> Path:
    return Path(tempfile.mkdtemp(prefix="skynet-fuzz-")) / "model.safetensors"


def read_safetensors(data: bytes) -> None:
    """A file, and the first rows of its tensors."""
    _file().write_bytes(data)
    for name, info in read_header(_file()).items():
        if info.dtype in NUMPY_DTYPES:
            axis = len(info.shape) - 1
            read_region(name, info, max(0, axis), 0, min((*info.shape, 1)[axis], 2))


def safetensors_seeds() -> Iterator[bytes]:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
        }
    ).encode()
    yield len(header).to_bytes(8, "little") + header + bytes(22)
