"""/v1/embeddings: runs inputs, and writes OpenAI's object."""

from __future__ import annotations

from typing import Any

from skynet.gateway.clusters import Served
from skynet.gateway.gateway import Gateway
from skynet.gateway.run import Origin, Run
from skynet.gateway.schemas.body import refuse
from skynet.gateway.schemas.text_tasks import EmbeddingBody
from skynet.gateway.text_tasks import (
    TextInputs,
    base64_of,
    start_text_task,
    text_answers,
    usage_json,
    vectors_of,
)
from skynet.request.task_names import EMBED


async def start_embeddings(gateway: Gateway, origin: Origin, body: EmbeddingBody) -> Run:
    """Submit a body's inputs.

    Raises:
        ApiError, SkynetError: why they cannot run.
    """
    inputs = TextInputs(EMBED, "input", body.inputs(), body.options())
    if body.dimensions is not None:
        cluster = await gateway.clusters.find(body.model)
        _check_dimensions(await cluster.served(), body.dimensions)
    return await start_text_task(gateway, origin, body, inputs)


async def embeddings(run: Run, body: EmbeddingBody) -> dict[str, Any]:
    """The whole answer."""
    answers = await text_answers(run)
    given: list[Any] = [answer["embedding"] for answer in answers]
    if body.encoding_format == "base64":
        given = [base64_of(vector) for vector in vectors_of(answers)]
    data = [
        {"object": "embedding", "index": index, "embedding": each}
        for index, each in enumerate(given)
    ]
    return {"object": "list", "data": data, "model": run.model, "usage": usage_json(run.usage)}


def _check_dimensions(served: Served, dimensions: int) -> None:
    """A vector cut short is another model's, but for models that were trained for it; no file of
    a checkpoint that is read here says so."""
    size = served.model.text_tasks.embedding_size
    if dimensions != size:
        raise refuse("dimensions", f"{dimensions}: {served.name} has {size}, and is not cut")
