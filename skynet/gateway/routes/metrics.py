"""/metrics: of this gateway; /cluster/metrics: of all clusters, the same at every gateway."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from skynet.client.status import cluster_status
from skynet.errors import SkynetError
from skynet.gateway.cluster_exposition import clusters_exposition
from skynet.gateway.clusters import Cluster
from skynet.gateway.gateway import gateway_of

router = APIRouter(tags=["metrics"])
PATHS = ("/metrics", "/cluster/metrics")


@router.get("/metrics", response_class=PlainTextResponse)
async def gateway_metrics(request: Request) -> Response:
    """The numbers of this gateway process, in Prometheus' text format: scrape each gateway."""
    exposition = gateway_of(request).metrics.exposition()
    return Response(exposition, media_type=CONTENT_TYPE_LATEST)


@router.get("/cluster/metrics", response_class=PlainTextResponse)
async def cluster_metrics(request: Request) -> Response:
    """The numbers of the clusters whose Redis answers: scrape one gateway."""
    found: dict[str, Any] = {}
    for cluster in gateway_of(request).clusters.all:
        try:
            name, numbers = await cluster.call(partial(_numbers, cluster))
        except SkynetError:
            continue
        found[name] = numbers
    return Response(clusters_exposition(found), media_type=CONTENT_TYPE_LATEST)


def _numbers(cluster: Cluster) -> tuple[str, Any]:
    client = cluster.client
    status = cluster_status(client.redis, client.url)
    name = cluster.name or str((status["target"] or {}).get("name", ""))
    return name, (client.metrics(), status)
