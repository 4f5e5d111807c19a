"""Whether the gateway lives, and whether its clusters answer."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from skynet import __version__
from skynet.errors import SkynetError
from skynet.gateway.clusters import Cluster
from skynet.gateway.gateway import gateway_of

router = APIRouter(tags=["health"])

LOOK_S = 2.0  # probes do not wait as long as Redis may take


@router.get("/health")
@router.get("/v1/health", include_in_schema=False)
async def health() -> dict[str, str]:
    """The process answers; nothing else is looked at."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """200 if at least one cluster runs its model now; 503 with the reasons, also while draining."""
    gateway = gateway_of(request)
    states = await asyncio.gather(*(_state(cluster) for cluster in gateway.clusters.all))
    running = sum(is_running for is_running, _ in states)
    reasons = [text for is_running, text in states if not is_running]
    if gateway.is_draining:
        reasons.insert(0, "draining")
    is_ready = running > 0 and not gateway.is_draining
    content = {"status": "ready" if is_ready else "not ready", "reasons": reasons}
    return JSONResponse(content, 200 if is_ready else 503, {} if is_ready else {"retry-after": "2"})


@router.get("/version")
async def version() -> dict[str, Any]:
    """The version of SkyNet."""
    return {"version": __version__}


async def _state(cluster: Cluster) -> tuple[bool, str]:
    """Whether a cluster runs its model, and what it does."""
    name = cluster.name or "the cluster"
    try:
        async with asyncio.timeout(LOOK_S):
            served = await cluster.served()
            state = await cluster.state()
    except TimeoutError:
        return False, f"{name}: Redis does not answer within {LOOK_S:g} s"
    except SkynetError as error:
        return False, f"{name}: {error}"
    return state.startswith("ready"), f"{served.name}: {state}"
