"""Tiny random encoder-decoders, what Transformers answers, and how the harness runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from harness import Checkpoint, Cluster, full_logits, round_weights
from model_families import encoder_decoder_config

from skynet.wire.step import LogitsRequest, Row

# Two of one length, which are encoded in one call, and others.
TEXTS = [
    [5, 6, 7, 100, 2, 9, 11, 3, 77, 88, 12, 4],
    [9, 8, 123],
    [12, 99, 31],
    [12, 99, 31, 64, 2, 2, 18, 120, 45, 6, 71, 33, 90, 14, 27, 55, 3, 101, 60, 8, 19, 40, 77],
    [44],
]
NEW_TOKENS = 24
# Tiny random models repeat themselves: no token may come twice.
VARIED = {"no_repeat_ngram_size": 1}
FORCED = [7, 100, 3, 3, 51, 90, 17]  # what a decoder is given after its start
# Features that few have: the family, and the fields of its config.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart-scaled": ("bart", {"scale_embedding": True, "activation_function": "relu"}),
    "bart-tied": ("bart", {"tie_word_embeddings": True}),
    "bart-other-heads": (
        "bart",
        {"encoder_attention_heads": 4, "decoder_attention_heads": 8, "decoder_ffn_dim": 31},
    ),
    "mbart-scaled": ("mbart", {"scale_embedding": True, "decoder_layers": 4}),
    "mbart-tied": ("mbart", {"tie_word_embeddings": True}),
    "marian-scaled": ("marian", {"scale_embedding": True, "activation_function": "swish"}),
    "marian-tied": ("marian", {"tie_word_embeddings": True}),
    "m2m_100-tied": ("m2m_100", {"tie_word_embeddings": True}),
    "pegasus-tied": ("pegasus", {"tie_word_embeddings": True, "scale_embedding": True}),
    "t5-tied": ("t5", {"own_head": False}),
    "marian-two-vocabularies": (
        "marian",
        {
            "share_encoder_decoder_embeddings": False,
            "decoder_vocab_size": 109,
            "pad_token_id": 108,
        },
    ),
    "m2m_100-unscaled": ("m2m_100", {"scale_embedding": False, "encoder_layers": 1}),
    "t5-1.1": (
        "t5",
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1},
    ),
    "t5-gated-silu": ("t5", {"feed_forward_proj": "gated-silu", "d_kv": 7}),
    "t5-many-buckets": (
        "t5",
        {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    ),
    "mt5-relu": ("mt5", {"feed_forward_proj": "relu"}),
}


@dataclass(frozen=True)
class Translator:
    """A checkpoint, and Transformers' model of it."""

    checkpoint: Checkpoint
    model: Any
    path: Path
    # What the model has computed once: tests of several shapes ask for the same.
    known_logits: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    known_answers: dict[str, list[int]] = field(default_factory=dict, compare=False)

    @property
    def start(self) -> int:
        return int(self.model.generation_config.decoder_start_token_id)

    def logits(self, text: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """(tokens, vocab) of a decoder that is given these tokens."""
        key = f"{list(text)} {list(tokens)}"
        if key not in self.known_logits:
            ids, given = torch.tensor([list(text)]), torch.tensor([list(tokens)])
            mask = torch.ones_like(ids)
            with torch.no_grad():
                output = self.model(ids, attention_mask=mask, decoder_input_ids=given)
            self.known_logits[key] = output.logits[0].numpy()
        return self.known_logits[key]

    def generate(self, text: Sequence[int], **options: Any) -> Any:
        ids = torch.tensor([list(text)])
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **options}
        with torch.no_grad():
            return self.model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    def answer(self, text: Sequence[int], **options: Any) -> list[int]:
        """The generated ids, without the decoder's start."""
        key = f"{list(text)} {options}"
        if key not in self.known_answers:
            self.known_answers[key] = self.generate(text, **options)[0, 1:].tolist()
        return list(self.known_answers[key])


def make_translator(family: str, fields: dict[str, Any], directory: Path) -> Translator:
    """A random model, saved by Transformers and opened by SkyNet."""
    torch.manual_seed(len(family))
    fields = dict(fields)
    own_head = fields.pop("own_head", family in ("t5", "mt5"))
    config = encoder_decoder_config(family, **fields)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    randomise(model)
    if own_head:  # as T5 1.1 has one, which no config asks for
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.3)
    round_weights(model)
    model.save_pretrained(directory)
    return Translator(Checkpoint(directory), model, directory)


def randomise(model: Any) -> None:
    """Norms and biases start as ones and zeros, and tables small: that hides mistakes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            if "relative_attention_bias" in name:
                parameter.copy_(torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.copy_(torch.randn_like(buffer))


def encode(cluster: Cluster, texts: Sequence[Sequence[int]], span: int) -> None:
    """Encodes each text; the encoder KV of a text has its number."""
    rows = [Row(place, 0, tuple(text), len(text)) for place, text in enumerate(texts)]
    rows.sort(key=lambda row: len(row.tokens))
    assert cluster.step(rows, span, start=0) == []


def decoder_logits(
    cluster: Cluster, place: int, length: int, tokens: Sequence[int], span: int
) -> list[np.ndarray]:
    """After each of these tokens: the first three as a chunk, the others one by one."""
    vocab_size, logits = cluster.arch.vocab_size, []
    bounds = [0, *range(min(3, len(tokens)), len(tokens) + 1)]
    for start, stop in pairwise(bounds):
        row = Row(
            5, start, tuple(tokens[start:stop]), 1, LogitsRequest(top=0), encoder_kv=(place, length)
        )
        logits.append(full_logits(cluster.step([row], span)[0], vocab_size))
    return logits


def translate(
    cluster: Cluster, texts: Sequence[Sequence[int]], start: int, span: int, slots: Sequence[int]
) -> list[list[int]]:
    """Greedy, `VARIED` answers to all texts, which have been encoded, side by side.

    Each joins a step later than the one before it.
    """
    answers: list[list[int]] = [[] for _ in texts]
    for number in range(NEW_TOKENS + len(texts)):
        rows, running = [], []
        for index, (text, slot) in enumerate(zip(texts, slots, strict=True)):
            count = number - index
            if 0 <= count < NEW_TOKENS:
                token = [start, *answers[index]][count]
                encoder_kv = (index, len(text))
                rows.append(
                    Row(slot, count, (token,), 1, LogitsRequest(top=0), encoder_kv=encoder_kv)
                )
                running.append(index)
        results = cluster.step(rows, span) if rows else []
        for index, candidates in zip(running, results, strict=True):
            logits = full_logits(candidates, cluster.arch.vocab_size)
            logits[[start, *answers[index]]] = -np.inf
            answers[index].append(int(logits.argmax()))
    return answers
