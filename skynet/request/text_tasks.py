"""Text tasks of a request: embeddings, masked tokens, classes, scores of pairs. Checked before
anything is written; knows no Redis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from skynet.architecture.architecture import Architecture
from skynet.errors import BadRequest, CheckpointError
from skynet.request.input_encoder import InputEncoder
from skynet.request.option_values import check_flag, check_integer, shown
from skynet.request.prompts import EncodedText
from skynet.request.record import MAX_TOKEN_ID, Options
from skynet.request.reranker import Reranker
from skynet.request.task_names import (
    CLASSIFY,
    EMBED,
    FILL_MASK,
    GENERATE,
    MAX_TOP,
    POOLINGS,
    RERANK,
    TASKS,
)
from skynet.tokenizer.text import Text
from skynet.wire.step import MAX_TYPE, TextTask
from skynet.wire.typed_json import parse_object

# prompt_name and instruction decide token ids: `InputEncoder` takes them.
KNOWN: dict[str, tuple[str, ...]] = {
    EMBED: ("pooling", "normalize", "prompt_name"),
    FILL_MASK: ("top_k",),
    CLASSIFY: (),
    RERANK: ("instruction",),
}
PAIR_SCORES = ("Sigmoid", "Identity")
MAX_POOLINGS = 6  # joined in one vector
DEFAULT_POOLING, DEFAULT_TOP = "mean", 5


@dataclass(frozen=True)
class TextTasks:
    """The text tasks that a model supports.

    embedding: its embedding.json.
    mask_id: its mask token.
    reranker: of a decoder that ranks.
    """

    arch: Architecture
    embedding: Mapping[str, Any] | None = None
    mask_id: int | None = None
    reranker: Reranker | None = None

    @classmethod
    def of(cls, arch: Architecture, files: Mapping[str, bytes], text: Text) -> TextTasks:
        content = files.get("embedding.json")
        embedding = content and parse_object(content, "embedding.json", CheckpointError)
        reranker = None
        if embedding and embedding.get("reranker") and text.has_tokenizer:
            reranker = Reranker.of(text, arch.max_positions, arch.has_head)
        return cls(arch, embedding or None, text.token_id("mask_token"), reranker)

    def encoder(self, text: Text) -> InputEncoder:
        """How the inputs of these tasks become token ids."""
        return InputEncoder(text, self.arch, self.embedding or {}, self.reranker)

    @property
    def embedding_size(self) -> int:
        """The numbers of an embedding, as the model's files pool it."""
        if self.arch.dense_roles:
            weight = self.arch.weight(self.arch.dense_roles[-1])
            return self.arch.outputs(weight) if weight else 0
        pooling = str((self.embedding or {}).get("pooling", DEFAULT_POOLING))
        return self.arch.hidden_size * len(pooling.split("+"))

    def tasks(self) -> tuple[str, ...]:
        """Supported tasks, `generate` included."""
        further = {
            EMBED: bool({"pooling", "refused"} & set(self.embedding or ())),
            RERANK: len(self.arch.labels) == 1 or self.reranker is not None,
        }
        tasks = self.arch.tasks
        return (
            *tasks,
            *(task for task, is_done in further.items() if is_done and task not in tasks),
        )

    def check_task(self, task: Any, samples: int | None = None) -> None:
        """Raise BadRequest unless the model supports the task, and several samples if asked for."""
        if not isinstance(task, str) or task not in TASKS:
            raise BadRequest(f"task {shown(task)}: one of {', '.join(TASKS)}")
        if task != GENERATE and samples is not None:
            raise BadRequest(f"n {shown(samples)}: task {task} has one answer")
        if task == RERANK and RERANK in self.tasks() and self.arch.pair_score not in PAIR_SCORES:
            raise BadRequest(
                f"task rerank: the activation {self.arch.pair_score} of the model's config.json is "
                f"not supported, only {' and '.join(PAIR_SCORES)}; use task classify"
            )
        if task in self.tasks():
            return
        why = {
            GENERATE: "it is an encoder"
            if self.arch.bidirectional
            else "it has no vocabulary head",
            EMBED: "it generates text, and has no modules.json that sets a pooling",
            FILL_MASK: "its checkpoint has no masked-language-model head",
            CLASSIFY: "its checkpoint has no sequence-classification head",
            RERANK: "it has no sequence-classification head of one label; embeddings rank, too",
        }
        raise BadRequest(
            f"task {task} is not supported by this {self.arch.model_type} model: {why[task]}; "
            f"supported: {', '.join(self.tasks())}"
        )

    def check(
        self, task: str, given: Mapping[str, Any], text: EncodedText, slot_tokens: int
    ) -> Options:
        """Options of a text task on a text or a pair of texts.

        Raises:
            BadRequest: names the task or option, its value and its limit.
        """
        self.check_task(task)
        unknown = sorted(set(given) - set(KNOWN[task]))
        if unknown:
            known = ", ".join(KNOWN[task]) or "none"
            raise BadRequest(f"unknown option {', '.join(unknown)} of task {task}; known: {known}")
        if len(text.ids) > slot_tokens:
            raise BadRequest(
                f"the text has {len(text.ids)} tokens, the cluster takes {slot_tokens}, of the "
                f"model's {self.arch.max_positions}: shorten it, or split it into several"
            )
        chosen = {name: value for name, value in given.items() if value is not None}
        make = {EMBED: self._embed, FILL_MASK: self._fill_mask, RERANK: self._rerank}
        text_task = make.get(task, _classify)(chosen, text)
        return Options(max_tokens=0, read=replace(text_task, types=text.types).fields())

    def _embed(self, chosen: Mapping[str, Any], text: EncodedText) -> TextTask:
        defaults = self.embedding or {}
        pooling = chosen.get("pooling", defaults.get("pooling"))
        if "refused" in defaults and "pooling" not in chosen:
            raise BadRequest(
                f"task embed: the model's modules.json asks for {defaults['refused']}, which is "
                f"not supported; choose a pooling: {', '.join(POOLINGS)}"
            )
        pooling = DEFAULT_POOLING if pooling is None else pooling
        if not _is_pooling(pooling):
            raise BadRequest(
                f"pooling {shown(pooling)}: one of {', '.join(POOLINGS)}, or several joined by +"
            )
        self._check_dense(pooling)
        normalize = chosen.get("normalize", defaults.get("normalize", False))
        return TextTask(EMBED, pooling, check_flag("normalize", normalize), skip=text.skip)

    def _check_dense(self, pooling: str) -> None:
        """Raise BadRequest if the model's first Dense takes vectors of another size."""
        roles = self.arch.dense_roles
        weight = self.arch.weight(roles[0]) if roles else None
        size = self.arch.hidden_size * len(pooling.split("+"))
        if weight is not None and (inputs := self.arch.inputs(weight)) != size:
            raise BadRequest(
                f"pooling {shown(pooling)}: a vector of {size} numbers, the model's module Dense "
                f"takes {inputs}"
            )

    def _rerank(self, _chosen: Mapping[str, Any], text: EncodedText) -> TextTask:
        if self.reranker is None or self.reranker.answers is None:
            return TextTask(RERANK)
        return TextTask(RERANK, positions=(len(text.ids) - 1,), top=1, tokens=self.reranker.answers)

    def _fill_mask(self, chosen: Mapping[str, Any], text: EncodedText) -> TextTask:
        if self.mask_id is None:
            raise BadRequest("task fill-mask: this model's tokenizer has no mask token")
        positions = tuple(at for at, token in enumerate(text.ids) if token == self.mask_id)
        if not positions:
            raise BadRequest("task fill-mask: the text has no mask token, such as [MASK] or <mask>")
        top = check_integer("top_k", chosen.get("top_k", DEFAULT_TOP), 1, MAX_TOP)
        return TextTask(FILL_MASK, positions=positions, top=top)


def _classify(_chosen: Mapping[str, Any], _text: EncodedText) -> TextTask:
    return TextTask(CLASSIFY)


def _is_pooling(pooling: Any) -> bool:
    if not isinstance(pooling, str):
        return False
    parts = pooling.split("+")
    return len(parts) <= MAX_POOLINGS and all(part in POOLINGS for part in parts)


def check_text_task(fields: Mapping[str, Any], length: int) -> TextTask:
    """The text task in a record's options, on a text of `length` tokens.

    Raises:
        BadRequest: it is none that a client writes.
    """
    try:
        task = TextTask.of(fields)
        numbers = (*task.positions, *task.types, *task.tokens, task.top, task.skip)
        is_task = (
            task.task in KNOWN
            and _is_pooling(task.pooling)
            and isinstance(task.normalize, bool)
            and all(type(number) is int for number in numbers)
            and all(0 <= position < length for position in task.positions)
            and 1 <= task.top <= MAX_TOP
            and len(task.types) in (0, length)
            and all(0 <= each <= MAX_TYPE for each in task.types)
            and len(task.tokens) in (0, 2 if task.task == RERANK else 0)
            and all(0 <= token <= MAX_TOKEN_ID for token in task.tokens)
            and (not task.tokens or len(task.positions) == 1)
            and 0 <= task.skip < length
        )
    except (KeyError, TypeError):
        is_task = False
    if not is_task:
        raise BadRequest(f"text task {dict(fields)!r:.80}: no client writes it")
    return task
