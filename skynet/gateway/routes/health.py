"""Whether the gateway lives, and whether its clusters answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from skynet import __version__
from skynet.errors import SkynetError
from skynet.gateway.gateway import gateway_of

router = APIRouter(tags=["health"])


@router.get("/health")
@router.get("/v1/health", include_in_schema=False)
async def health() -> dict[str, str]:
    """The process answers; nothing else is looked at."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """200 if at least one cluster runs its model now; 503 with the reasons, also while draining."""
    gateway = gateway_of(request)
    reasons: list[str] = []
    running = 0
    for cluster in gateway.clusters.all:
        try:
            served = await cluster.served()
            state = str((await cluster.engine_state()).get("state", "no orchestrator leads"))
        except SkynetError as error:
            reasons.append(f"{cluster.name or 'the cluster'}: {error}")
            continue
        running += state.startswith("ready")
        if not state.startswith("ready"):
            reasons.append(f"{served.name}: {state}")
    if gateway.is_draining:
        reasons.insert(0, "draining")
    is_ready = running > 0 and not gateway.is_draining
    content = {"status": "ready" if is_ready else "not ready", "reasons": reasons}
    return JSONResponse(content, 200 if is_ready else 503, {} if is_ready else {"retry-after": "2"})


@router.get("/version")
async def version() -> dict[str, Any]:
    """The version of SkyNet."""
    return {"version": __version__}
