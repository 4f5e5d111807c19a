"""Embeddings, classes and scores: inputs are encoded here, run as requests of a text task, and
answered together."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.errors import BadRequest
from skynet.gateway.clusters import Served
from skynet.gateway.gateway import Gateway
from skynet.gateway.prompts import answer_limit
from skynet.gateway.run import Origin, Run
from skynet.gateway.schemas.body import refuse
from skynet.gateway.schemas.text_tasks import Input, TextTaskBody
from skynet.gateway.usage import Usage
from skynet.request.option_values import is_integer, shown
from skynet.request.prompts import EncodedText, Prompt
from skynet.request.record import End
from skynet.settings import settings
from skynet.tokenizer.text import Pair

ENCODING = ("prompt_name", "instruction")  # options that only decide token ids
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TextInputs:
    """What is to be run.

    name: of the body's field, for errors.
    prompt_names: of each input, if they differ.
    """

    task: str
    name: str
    inputs: Sequence[Input | Pair]
    options: dict[str, Any]
    prompt_names: Sequence[str] = ()


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
    encoded = await cluster.call(lambda: encoded_inputs(served, texts))
    prompts: list[Prompt] = [*encoded]
    about = origin.annotations(served, texts.task, {"choices": 1})
    generations = await cluster.submit_all(
        prompts,
        task=texts.task,
        annotations=about,
        traceparent=origin.traceparent,
        **body.arguments(),
        **{name: value for name, value in texts.options.items() if name not in ENCODING},
    )
    usage = Usage(prompt_tokens=sum(len(each.ids) for each in encoded))
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


def encoded_inputs(served: Served, texts: TextInputs) -> list[EncodedText]:
    """The token ids of all inputs.

    Raises:
        ApiError: 400, ids of another tokenizer, a text that cannot be encoded, or more tokens
            than the model takes.
    """
    return [_encoded(served, texts, number) for number in range(len(texts.inputs))]


def _encoded(served: Served, texts: TextInputs, number: int) -> EncodedText:
    given = texts.inputs[number]
    where = texts.name if len(texts.inputs) == 1 else f"{texts.name}[{number}]"
    if isinstance(given, list):
        encoded = EncodedText(tuple(_known_ids(where, given, served.model.vocab_size)))
    else:
        options = dict(texts.options)
        if texts.prompt_names:
            options["prompt_name"] = texts.prompt_names[number]
        try:
            encoded = served.model.input_encoder.encode(given, texts.task, options)
        except BadRequest as error:
            why = str(error).removeprefix("prompt: ")
            raise refuse(where, why, "invalid_value") from None
    if len(encoded.ids) > served.max_tokens:
        # Refused, in words that clients know.
        answer_limit(served, len(encoded.ids), 1, texts.name)
    return encoded


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
