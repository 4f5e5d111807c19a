"""Text tasks of a request: embeddings, masked tokens, classes. Checked before anything is written;
knows no Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from skynet.architecture.architecture import Architecture
from skynet.errors import BadRequest, CheckpointError
from skynet.request.option_values import check_flag, check_integer, shown
from skynet.request.record import Options
from skynet.request.task_names import (
    CLASSIFY,
    EMBED,
    FILL_MASK,
    GENERATE,
    MAX_TOP,
    POOLINGS,
    TASKS,
)
from skynet.wire.step import TextTask
from skynet.wire.typed_json import parse_object

KNOWN: dict[str, tuple[str, ...]] = {
    EMBED: ("pooling", "normalize"),
    FILL_MASK: ("top_k",),
    CLASSIFY: (),
}
DEFAULT_POOLING, DEFAULT_TOP = "mean", 5


@dataclass(frozen=True)
class TextTasks:
    """The text tasks that a model supports.

    embedding: its embedding.json.
    mask_id: its mask token.
    """

    arch: Architecture
    embedding: Mapping[str, Any] | None = None
    mask_id: int | None = None

    @classmethod
    def of(cls, arch: Architecture, files: Mapping[str, bytes], mask_id: int | None) -> TextTasks:
        content = files.get("embedding.json")
        embedding = content and parse_object(content, "embedding.json", CheckpointError)
        return cls(arch, embedding or None, mask_id)

    def tasks(self) -> tuple[str, ...]:
        """Supported tasks, `generate` included."""
        tasks = self.arch.tasks
        return tasks if self.embedding is None or EMBED in tasks else (*tasks, EMBED)

    def check_task(self, task: Any, samples: int | None = None) -> None:
        """Raise BadRequest unless the model supports the task, and several samples if asked for."""
        if not isinstance(task, str) or task not in TASKS:
            raise BadRequest(f"task {shown(task)}: one of {', '.join(TASKS)}")
        if task != GENERATE and samples is not None:
            raise BadRequest(f"n {shown(samples)}: task {task} has one answer")
        if task in self.tasks():
            return
        why = {
            GENERATE: "it is an encoder",
            EMBED: "it generates text, and has no modules.json that sets a pooling",
            FILL_MASK: "its checkpoint has no masked-language-model head",
            CLASSIFY: "its checkpoint has no sequence-classification head",
        }
        raise BadRequest(
            f"task {task} is not supported by this {self.arch.model_type} model: {why[task]}; "
            f"supported: {', '.join(self.tasks())}"
        )

    def check(
        self, task: str, given: Mapping[str, Any], ids: Sequence[int], slot_tokens: int
    ) -> Options:
        """Options of a text task on the tokens `ids`.

        Raises:
            BadRequest: names the task or option, its value and its limit.
        """
        self.check_task(task)
        unknown = sorted(set(given) - set(KNOWN[task]))
        if unknown:
            known = ", ".join(KNOWN[task]) or "none"
            raise BadRequest(f"unknown option {', '.join(unknown)} of task {task}; known: {known}")
        if len(ids) > slot_tokens:
            raise BadRequest(
                f"the text has {len(ids)} tokens, the cluster takes {slot_tokens}, of the model's "
                f"{self.arch.max_positions}: shorten it, or split it into several"
            )
        chosen = {name: value for name, value in given.items() if value is not None}
        text_task = {EMBED: self._embed, FILL_MASK: self._fill_mask}.get(task, _classify)(
            chosen, ids
        )
        return Options(max_tokens=0, read=asdict(text_task))

    def _embed(self, chosen: Mapping[str, Any], ids: Sequence[int]) -> TextTask:
        defaults = self.embedding or {}
        pooling = chosen.get("pooling", defaults.get("pooling"))
        if "refused" in defaults and "pooling" not in chosen:
            raise BadRequest(
                f"task embed: the model's modules.json asks for {defaults['refused']}, which is "
                f"not supported; choose a pooling: {', '.join(POOLINGS)}"
            )
        pooling = DEFAULT_POOLING if pooling is None else pooling
        if not isinstance(pooling, str) or pooling not in POOLINGS:
            raise BadRequest(f"pooling {shown(pooling)}: one of {', '.join(POOLINGS)}")
        normalize = chosen.get("normalize", defaults.get("normalize", False))
        return TextTask(EMBED, pooling, check_flag("normalize", normalize))

    def _fill_mask(self, chosen: Mapping[str, Any], ids: Sequence[int]) -> TextTask:
        if self.mask_id is None:
            raise BadRequest("task fill-mask: this model's tokenizer has no mask token")
        positions = tuple(at for at, token in enumerate(ids) if token == self.mask_id)
        if not positions:
            raise BadRequest("task fill-mask: the text has no mask token, such as [MASK] or <mask>")
        top = check_integer("top_k", chosen.get("top_k", DEFAULT_TOP), 1, MAX_TOP)
        return TextTask(FILL_MASK, positions=positions, top=top)


def _classify(_chosen: Mapping[str, Any], _ids: Sequence[int]) -> TextTask:
    return TextTask(CLASSIFY)


def check_text_task(fields: Mapping[str, Any], length: int) -> TextTask:
    """The text task in a record's options, on a text of `length` tokens.

    Raises:
        BadRequest: it is none that a client writes.
    """
    try:
        task = TextTask.of(fields)
        numbers = (*task.positions, task.top)
        is_task = (
            task.task in KNOWN
            and task.pooling in POOLINGS
            and isinstance(task.normalize, bool)
            and all(type(number) is int for number in numbers)
            and all(0 <= position < length for position in task.positions)
            and 1 <= task.top <= MAX_TOP
        )
    except (KeyError, TypeError):
        is_task = False
    if not is_task:
        raise BadRequest(f"text task {dict(fields)!r:.80}: no client writes it")
    return task
