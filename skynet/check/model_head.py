"""What a checkpoint's model ends in: what comes out of it on either side, and what people read of
that. A row for each kind of end; nothing else here tells kinds apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from skynet.architecture.architecture import Architecture
from skynet.check.reference_model import ReferenceModel
from skynet.check.skynet_shards import Piece, SkynetShards
from skynet.checkpoint.pooling_config import EMBEDDING
from skynet.layers.pooler import pool
from skynet.request.task_names import CLASSIFY, EMBED, FILL_MASK, GENERATE
from skynet.request.text_tasks import DEFAULT_POOLING
from skynet.tokenizer.text import Text


@dataclass(frozen=True)
class ModelHead:
    """What comes after the last layer.

    place, what: what reports call it.
    theirs: the model that gives it.
    ours: the same of our shards, of each of several hidden states after the last layer.
    """

    place: str
    what: str
    reference: ReferenceModel
    skynet: Callable[[SkynetShards, list[torch.Tensor]], list[list[Piece]]]


# By the last of the tasks that a model can do: the one that needs its head.
ENDINGS: dict[str, ModelHead] = {
    GENERATE: ModelHead(
        "head",
        "logits",
        ReferenceModel("AutoModelForCausalLM", "logits", options={"use_cache": False}),
        lambda skynet, hidden: skynet.logits(hidden),  # a family without a file has its own
    ),
    FILL_MASK: ModelHead(
        "head", "logits", ReferenceModel("AutoModelForMaskedLM", "logits"), SkynetShards.logits
    ),
    CLASSIFY: ModelHead(
        "head",
        "class logits",
        ReferenceModel("AutoModelForSequenceClassification", "logits"),
        SkynetShards.classes,
    ),
    EMBED: ModelHead(
        "last hidden states",
        "output",
        ReferenceModel("AutoModel", "last_hidden_state", bare=True, unused=("pooler",)),
        SkynetShards.states,
    ),
}


ENCODER_DECODER = ModelHead(
    "head",
    "logits",
    ReferenceModel(
        "AutoModelForSeq2SeqLM",
        "logits",
        inputs=("input_ids", "decoder_input_ids"),
        options={"use_cache": False},
    ),
    SkynetShards.logits,
)


def model_head_of(arch: Architecture) -> ModelHead:
    """What a checkpoint of this architecture ends in."""
    return ENDINGS[arch.tasks[-1]] if arch.encoder is None else ENCODER_DECODER


@dataclass(frozen=True)
class Question:
    """What people read of the result for a prompt.

    what: as reports call it.
    token: the number of that which it is read of; None: of all.
    spell: the name of the largest number, which is the answer; None: all numbers are.
    pooling: how the vectors of all tokens become one.
    """

    what: str
    token: int | None = None
    spell: Callable[[int], str] | None = None
    pooling: str | None = None

    @property
    def rows(self) -> slice:
        """Of hidden states, and of a result that has a row for each token."""
        return slice(None) if self.token is None else slice(self.token, self.token + 1)

    def vector(self, result: torch.Tensor) -> torch.Tensor:
        """(1, width) of the result for `rows`, (rows, width)."""
        return result if self.pooling is None else pool(result, self.pooling)[None]


def question_of(arch: Architecture, files: Mapping[str, bytes], ids: list[int]) -> Question:
    """What is asked of the last stack's answer to `ids`; `files` as of `Checkpoint.text_files`."""
    task, text = arch.tasks[-1], Text(files)
    if task == EMBED:
        pooling = json.loads(files.get(EMBEDDING, b"{}")).get("pooling", DEFAULT_POOLING)
        return Question(f"embedding ({pooling})", pooling=pooling)
    if task == CLASSIFY:
        if arch.label_score == "none" or len(arch.labels) == 1:
            return Question("score")
        return Question("label", spell=arch.labels.__getitem__)
    what, place = "next token", len(ids) - 1
    if task == FILL_MASK:
        mask = text.token_id("mask_token")
        what = "token for the mask" if mask in ids else "token for the last place"
        place = ids.index(mask) if mask in ids else place
    return Question(what, place, text.spell)
