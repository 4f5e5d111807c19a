"""Embeddings and classes: inputs are encoded here, run as requests of a text task, and answered
together."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.client.served_model import ServedModel
from skynet.errors import BadRequest
from skynet.gateway.clusters import Served
from skynet.gateway.gateway import Gateway
from skynet.gateway.prompts import answer_limit
from skynet.gateway.run import Origin, Run
from skynet.gateway.schemas.body import refuse
from skynet.gateway.schemas.text_tasks import Input, TextTaskBody
from skynet.gateway.usage import Usage
from skynet.request.option_values import is_integer, shown
from skynet.request.prompts import embedding_ids, token_ids
from skynet.request.record import End
from skynet.request.task_names import EMBED
from skynet.settings import settings

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TextInputs:
    """What is to be run. name: of the body's field, for errors."""

    task: str
    name: str
    inputs: Sequence[Input]
    options: dict[str, Any]


async def start_text_task(
    gateway: Gateway, origin: Origin, body: TextTaskBody, texts: TextInputs
) -> Run:
    """Submit all inputs, or none if one of them is refused.

    Raises:
        ApiError, SkynetError: why they cannot run.
    """
    cluster = await gateway.clusters.find(body.model)
    served = await cluster.served()
    _check_task(served, texts.task)
    most = settings().max_waiting + served.target.num_slots
    if len(texts.inputs) > most:
        raise refuse(
            texts.name,
            f"{len(texts.inputs)} at once, this cluster takes at most {most}: send fewer",
            "invalid_value",
        )
    prompts: list[Any] = await cluster.call(
        lambda: [input_ids(served, texts, number) for number in range(len(texts.inputs))]
    )
    about = origin.annotations(served, texts.task, {"choices": 1})
    generations = await cluster.submit_all(
        prompts,
        task=texts.task,
        annotations=about,
        traceparent=origin.traceparent,
        **body.arguments(),
        **texts.options,
    )
    usage = Usage(prompt_tokens=sum(map(len, prompts)))
    return Run(gateway, cluster, served, generations, about, usage=usage)


async def text_answers(run: Run) -> list[dict[str, Any]]:
    """The answer to each input, when all are there: `embedding` or `labels`.

    Raises:
        SkynetError: why one failed; the others are cancelled.
    """
    answers: list[dict[str, Any]] = [{} for _ in run.generations]
    async with aclosing(run.steps()) as steps:
        async for step in steps:
            if isinstance(step.item, End):
                answers[step.choice] = step.item.answer
    return answers


def vectors_of(answers: Sequence[dict[str, Any]]) -> list[Vector]:
    return [np.asarray(answer["embedding"], np.float32) for answer in answers]


def base64_of(vector: Vector) -> str:
    """Its numbers as little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def cosine(one: Vector, other: Vector) -> float:
    """From -1 to 1; 0 for a vector of zeros."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / length if length else 0.0


def usage_json(usage: Usage) -> dict[str, Any]:
    """Usage of answers that have no tokens."""
    return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}


def _check_task(served: Served, task: str) -> None:
    try:
        served.model.text_tasks.check_task(task)
    except BadRequest as error:
        raise refuse("model", f"{served.name}: {error}", "unsupported_task") from None


def input_ids(served: Served, texts: TextInputs, number: int) -> list[int]:
    """The token ids of an input.

    Raises:
        ApiError: 400, ids of another tokenizer, a text that cannot be encoded, or more tokens
            than the model takes.
    """
    given, model = texts.inputs[number], served.model
    where = texts.name if len(texts.inputs) == 1 else f"{texts.name}[{number}]"
    if not isinstance(given, str):
        ids = _known_ids(where, given, model.vocab_size)
    else:
        try:
            ids = _encoded(model, texts.task, given)
        except BadRequest as error:
            why = str(error).removeprefix("prompt: ")
            raise refuse(where, why, "invalid_value") from None
    if len(ids) > served.max_tokens:
        answer_limit(served, len(ids), 1, texts.name)  # refuses it, in words that clients know
    return ids


def _encoded(model: ServedModel, task: str, text: str) -> list[int]:
    if task == EMBED:
        return embedding_ids(text, model.text, model.text_tasks.embedding or {})
    return token_ids(text, model.text, raw=True)


def _known_ids(where: str, ids: Sequence[int], vocab_size: int) -> list[int]:
    for position, token in enumerate(ids):
        if not is_integer(token) or not 0 <= token < vocab_size:
            raise refuse(
                where,
                f"token {shown(token)} at position {position} is not in the vocabulary, 0 to "
                f"{vocab_size - 1}: these are ids of another model's tokenizer. Send texts; with "
                "langchain's OpenAIEmbeddings set check_embedding_ctx_length=False",
                "invalid_value",
            )
    return list(ids)
