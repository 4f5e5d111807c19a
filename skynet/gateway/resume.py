"""Answers that a client takes up again, through any gateway of the cluster."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request

from skynet.client.client import sample_id
from skynet.client.generation import Generation
from skynet.errors import ClusterUnreachable, RequestLost, SkynetError
from skynet.gateway.clusters import Cluster
from skynet.gateway.errors import ApiError
from skynet.gateway.gateway import caller_of, gateway_of
from skynet.gateway.run import Run
from skynet.gateway.usage import Usage

POSITION = re.compile(r"\d{1,9}(,\d{1,9}){0,15}")
ID = re.compile(r"[0-9a-f-]{36}")


def position_of(request: Request, starting_after: str) -> str:
    """The place in a stream after which it continues; "" from its beginning.

    Raises:
        ApiError: 400, it is no id of an event.
    """
    position = starting_after or request.headers.get("last-event-id", "")
    if position and not POSITION.fullmatch(position):
        raise ApiError(
            400,
            f"starting_after {position!r:.80}: expected the id of an event, as in 17 or 3,5",
            code="invalid_value",
            param="starting_after",
        )
    return position


async def resumed(request: Request, run_id: str, kind: str) -> Run:
    """The run of a request that any gateway has submitted for the same caller.

    Raises:
        ApiError: 404, there is none.
    """
    cluster, about = await submitted(request, run_id)
    if about.get("kind") != kind:
        raise _no_answer(run_id)
    return await _run(request, cluster, run_id, about)


async def submitted(request: Request, run_id: str) -> tuple[Cluster, dict[str, Any]]:
    """The cluster and the annotations of a request that any gateway has submitted for the same
    caller; for an administrator, of any.

    Raises:
        ApiError: 404, there is none.
        SkynetError: there is none in the clusters that answer.
    """
    gateway, caller = gateway_of(request), caller_of(request)
    problem: SkynetError | None = None
    for cluster in gateway.clusters.all if ID.fullmatch(run_id) else ():
        try:
            about = await cluster.call(cluster.client.generation(run_id).annotations)
        except RequestLost:
            continue
        except SkynetError as error:  # a cluster that is away; another may have it
            problem = error
            continue
        if "kind" in about and (caller.is_admin or about.get("caller") == caller.name):
            return cluster, about
    if problem is not None:
        raise problem
    raise _no_answer(run_id)


def generations_of(cluster: Cluster, run_id: str, about: dict[str, Any]) -> list[Generation]:
    """The answers of a run."""
    return [
        Generation(sample_id(run_id, number), cluster.client) for number in range(about["choices"])
    ]


def _no_answer(run_id: str) -> ApiError:
    return ApiError(
        404,
        f"no answer {run_id!r:.80}: it has expired, or never was",
        code="answer_not_found",
    )


async def _run(request: Request, cluster: Cluster, run_id: str, about: dict[str, Any]) -> Run:
    if "lost" in about:
        raise ApiError(
            404,
            f"answer {run_id}: its {about['lost']} were too long to be kept, so that it cannot be "
            "taken up again",
            code="answer_not_found",
        )
    generations = generations_of(cluster, run_id, about)
    record = await cluster.call(lambda: cluster.client.requests.read(run_id))
    usage = Usage(prompt_tokens=len(record.prompt) if record else 0)
    try:
        served = await cluster.served()
    except ClusterUnreachable:  # for a moment, maybe: the client comes again
        raise
    except SkynetError as error:
        raise RequestLost(f"request {run_id}: its model is not served any more: {error}") from None
    # Others may read the same answer: it does not end when this client leaves.
    return Run(gateway_of(request), cluster, served, generations, about, True, usage)
