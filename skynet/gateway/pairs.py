"""Scores of pairs of texts: of a model that ranks, or the cosine of two embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skynet.gateway.clusters import Served
from skynet.gateway.gateway import Gateway
from skynet.gateway.run import Origin, Run
from skynet.gateway.schemas.text_tasks import PairBody
from skynet.gateway.text_tasks import (
    TextInputs,
    cosine,
    start_text_task,
    text_answers,
    vectors_of,
)
from skynet.request.task_names import EMBED, RERANK
from skynet.tokenizer.text import Pair

# The prompts of sentence-transformers' encode_query and encode_document.
QUERY, DOCUMENTS = "query", ("document", "passage", "corpus")


@dataclass(frozen=True)
class Pairs:
    """name: of the body's field, for errors."""

    name: str
    pairs: Sequence[Pair]


async def start_pairs(gateway: Gateway, origin: Origin, body: PairBody, pairs: Pairs) -> Run:
    """Submit what scores the pairs.

    Raises:
        ApiError, SkynetError: why it cannot run.
    """
    served = await (await gateway.clusters.find(body.model)).served()
    if _ranks(served):
        options = {} if body.instruction is None else {"instruction": body.instruction}
        texts = TextInputs(RERANK, pairs.name, pairs.pairs, options)
    else:
        named = _texts(served, pairs.pairs)
        names = [name for name, _ in named]
        texts = TextInputs(EMBED, pairs.name, [text for _, text in named], {}, names)
    return await start_text_task(gateway, origin, body, texts)


async def pair_scores(run: Run, pairs: Pairs) -> list[float]:
    """The score of each pair.

    Raises:
        SkynetError: why one failed; the others are cancelled.
    """
    answers = await text_answers(run)
    if _ranks(run.served):
        return [float(answer["score"]) for answer in answers]
    named = _texts(run.served, pairs.pairs)
    vectors = dict(zip(named, vectors_of(answers), strict=True))
    query, document = _prompt_names(run.served)
    return [cosine(vectors[query, one], vectors[document, other]) for one, other in pairs.pairs]


def _ranks(served: Served) -> bool:
    return RERANK in served.model.tasks


def _texts(served: Served, pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """The prompt's name and the text of each embedding that is needed, each once."""
    query, document = _prompt_names(served)
    sides = (side for one, other in pairs for side in ((query, one), (document, other)))
    return list(dict.fromkeys(sides))


def _prompt_names(served: Served) -> tuple[str, str]:
    """The prompts of queries and of documents; "" where the model has none."""
    known = served.model.input_encoder.prompts
    document = next((name for name in DOCUMENTS if name in known), "")
    return (QUERY if QUERY in known else ""), document
