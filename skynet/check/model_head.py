"""The output of a model after its last layer, by task: on SkyNet's side, and as an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from skynet.architecture.architecture import Architecture
from skynet.check.skynet_head import ShardResult, SkynetHead
from skynet.checkpoint.pooling_config import EMBEDDING
from skynet.layers.pooler import pool
from skynet.request.task_names import CLASSIFY, EMBED, FILL_MASK
from skynet.request.text_tasks import DEFAULT_POOLING
from skynet.tokenizer.text import Text


@dataclass(frozen=True)
class ModelHead:
    """The output after the last layer.

    place, what: its names in reports.
    run: computes it with SkyNet's shards, from several hidden states after the last layer.
    """

    place: str
    what: str
    run: Callable[[SkynetHead, list[torch.Tensor]], list[list[ShardResult]]]


_VOCABULARY = ModelHead("head", "logits", lambda head, hidden: head.logits(hidden))
_CLASSES = ModelHead("head", "class logits", lambda head, hidden: head.classes(hidden))
_STATES = ModelHead("last hidden states", "output", lambda head, hidden: head.states(hidden))


def model_head_of(arch: Architecture) -> ModelHead:
    """By the last of the model's tasks: the one that needs its head."""
    heads = {CLASSIFY: _CLASSES, EMBED: _STATES}
    return heads.get(arch.tasks[-1], _VOCABULARY)


@dataclass(frozen=True)
class Question:
    """How the output becomes the answer to a prompt: a token, a label, an embedding.

    what: its name in reports.
    token: position of the token whose row is the answer; None: all rows.
    spell: the text of a column, if the largest number is the answer; None: all numbers are.
    pooling: how the vectors of all tokens become one.
    """

    what: str
    token: int | None = None
    spell: Callable[[int], str] | None = None
    pooling: str | None = None

    @property
    def rows(self) -> slice:
        """The rows that the answer depends on, of hidden states and of outputs by token."""
        return slice(None) if self.token is None else slice(self.token, self.token + 1)

    def vector(self, result: torch.Tensor) -> torch.Tensor:
        """(1, width) of the result for `rows`, (rows, width)."""
        return result if self.pooling is None else pool(result, self.pooling)[None]


def question_of(arch: Architecture, files: Mapping[str, bytes], ids: list[int]) -> Question:
    """The question for the last stack's input `ids`; `files` as of `Checkpoint.text_files`."""
    task, text = arch.tasks[-1], Text(files)
    if task == EMBED:
        pooling = json.loads(files.get(EMBEDDING, b"{}")).get("pooling", DEFAULT_POOLING)
        return Question(f"embedding ({pooling})", pooling=pooling)
    if task == CLASSIFY:
        if arch.label_score == "none" or len(arch.labels) == 1:
            return Question("score")
        return Question("label", spell=arch.labels.__getitem__)
    what, position = "next token", len(ids) - 1
    if task == FILL_MASK:
        mask = text.token_id("mask_token")
        what = "token for the mask" if mask in ids else "token for the last place"
        position = ids.index(mask) if mask in ids else position
    return Question(what, position, text.spell)
