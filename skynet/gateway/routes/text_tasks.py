"""/v1/embeddings, /v1/classify, /v1/rerank and /v1/score."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from skynet.gateway.embeddings import embeddings, start_embeddings
from skynet.gateway.gateway import gateway_of
from skynet.gateway.pairs import Pairs, pair_scores, start_pairs
from skynet.gateway.reply import reply_whole
from skynet.gateway.run import Run, origin_of
from skynet.gateway.schemas.body import ignored_header
from skynet.gateway.schemas.text_tasks import (
    ClassifyBody,
    EmbeddingBody,
    PairBody,
    RerankBody,
    ScoreBody,
    TextTaskBody,
)
from skynet.gateway.text_tasks import (
    TextInputs,
    start_text_task,
    text_answers,
    usage_json,
)
from skynet.request.task_names import CLASSIFY

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings")
async def create_embeddings(request: Request, body: EmbeddingBody) -> Response:
    """A vector for each input."""

    async def start() -> Run:
        return await start_embeddings(gateway_of(request), origin_of(request), body)

    return await _reply(request, body, start, lambda run: embeddings(run, body))


@router.post("/v1/classify")
@router.post("/classify", include_in_schema=False)
async def classify(request: Request, body: ClassifyBody) -> Response:
    """Probabilities of the model's classes for each input, in the order of its config."""

    async def whole(run: Run) -> dict[str, Any]:
        names = run.served.model.text_tasks.arch.labels
        answers = await text_answers(run)
        data = [_classes(index, answer["labels"], names) for index, answer in enumerate(answers)]
        return {
            "id": f"classify-{run.id}",
            "object": "list",
            "created": run.created,
            "model": run.model,
            "data": data,
            "usage": usage_json(run.usage),
        }

    inputs = TextInputs(CLASSIFY, "input", body.inputs(), {})
    return await _reply(request, body, lambda: _start(request, body, inputs), whole)


@router.post("/v1/rerank")
@router.post("/rerank", include_in_schema=False)
@router.post("/v1/reranking", include_in_schema=False)
@router.post("/v2/rerank", include_in_schema=False)
async def rerank(request: Request, body: RerankBody) -> Response:
    """Documents by their scores for the query, best first.

    Scores are of a model that ranks, else the cosine of embeddings.
    """
    query, *documents = body.texts()
    pairs = Pairs("documents", [(query, document) for document in documents])

    async def whole(run: Run) -> dict[str, Any]:
        scores = await pair_scores(run, pairs)
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        return {
            "id": f"rerank-{run.id}",
            "model": run.model,
            "usage": usage_json(run.usage),
            "results": [_ranked(index, scores[index], document) for index, document in best(order)],
        }

    def best(order: list[int]) -> list[tuple[int, str | None]]:
        shown = order if body.top_n is None else order[: body.top_n]
        return [(n, documents[n] if body.return_documents else None) for n in shown]

    return await _reply(request, body, lambda: _start_pairs(request, body, pairs), whole)


@router.post("/v1/score")
@router.post("/score", include_in_schema=False)
async def score(request: Request, body: ScoreBody) -> Response:
    """The score of each pair of texts: of a model that ranks, else the cosine of embeddings."""
    pairs = Pairs("text_2" if body.queries is None else "documents", body.pairs())

    async def whole(run: Run) -> dict[str, Any]:
        data = [
            {"index": index, "object": "score", "score": value}
            for index, value in enumerate(await pair_scores(run, pairs))
        ]
        return {
            "id": f"score-{run.id}",
            "object": "list",
            "created": run.created,
            "model": run.model,
            "data": data,
            "usage": usage_json(run.usage),
        }

    return await _reply(request, body, lambda: _start_pairs(request, body, pairs), whole)


async def _start_pairs(request: Request, body: PairBody, pairs: Pairs) -> Run:
    return await start_pairs(gateway_of(request), origin_of(request), body, pairs)


async def _start(request: Request, body: TextTaskBody, inputs: TextInputs) -> Run:
    return await start_text_task(gateway_of(request), origin_of(request), body, inputs)


async def _reply(
    request: Request,
    body: TextTaskBody,
    start: Callable[[], Awaitable[Run]],
    whole: Callable[[Run], Awaitable[dict[str, Any]]],
) -> Response:
    return await reply_whole(request, start, whole, ignored_header(body.ignored()))


def _classes(index: int, labels: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    scores = {each["label"]: each["score"] for each in labels}
    return {
        "index": index,
        "label": labels[0]["label"],
        "probs": [scores[name] for name in names],
        "num_classes": len(names),
    }


def _ranked(index: int, score: float, document: str | None) -> dict[str, Any]:
    shown = {} if document is None else {"document": {"text": document}}
    return {"index": index, **shown, "relevance_score": score}
