"""The arguments of `submit_prompt` beside the prompt and the model's options. Knows no Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from skynet.errors import BadRequest
from skynet.request.option_table import BY_NAME
from skynet.request.option_values import check_flag, check_value, shown
from skynet.request.options import check_priority
from skynet.request.task_names import TASKS
from skynet.settings import settings
from skynet.tracing import current_traceparent, valid_traceparent

MAX_ANNOTATIONS = 64 * 1024  # characters of JSON


@dataclass(frozen=True)
class Arguments:
    """Checked arguments.

    n: answers to each prompt; None: one, without a list.
    annotations, traceparent: as the record has them.
    """

    task: str
    timeout_s: float
    raw: bool
    priority: int
    n: int | None = None
    annotations: str = ""
    traceparent: str = ""

    @classmethod
    def checked(
        cls,
        task: Any,
        timeout: Any,
        raw: Any,
        priority: Any,
        n: Any = None,
        annotations: Any = None,
    ) -> Arguments:
        """
        Raises:
            BadRequest: names the argument, its value and its limits.
        """
        if not isinstance(task, str) or task not in TASKS:
            raise BadRequest(f"task {shown(task)}: one of {', '.join(TASKS)}")
        if timeout is None:
            timeout = settings().request_timeout_s
        return cls(
            task,
            check_value(BY_NAME["timeout"], timeout),
            check_flag("raw", raw),
            check_priority(priority),
            None if n is None else check_value(BY_NAME["n"], n),
            _annotations(annotations),
        )

    def in_trace(self, traceparent: Any) -> Arguments:
        """As part of this span; None: of the current one. A value that is no span is dropped."""
        if traceparent is None:
            return replace(self, traceparent=current_traceparent())
        return replace(self, traceparent=valid_traceparent(traceparent))


def _annotations(value: Any) -> str:
    """The annotations as JSON text."""
    if value is None:
        return ""
    if not isinstance(value, Mapping):
        raise BadRequest(f"annotations {shown(value)}: a mapping of JSON's types")
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"annotations: not of JSON's types: {error}") from None
    if len(text) > MAX_ANNOTATIONS:
        raise BadRequest(f"annotations: {len(text)} characters of JSON, at most {MAX_ANNOTATIONS}")
    return text


def check_prompts(prompts: Any) -> Iterable[Any]:
    """The prompts, if they are several; each is checked later.

    Raises:
        BadRequest: one text, one chat message, or nothing that can be iterated over.
    """
    if isinstance(prompts, (str, bytes, bytearray, Mapping)) or not isinstance(prompts, Iterable):
        raise BadRequest(
            f"prompts {shown(prompts)}: a list of prompts; call submit_prompt for a single one"
        )
    return prompts
