"""The gateway's ASGI application: routes, what requests pass before them, and errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from skynet import __version__
from skynet.errors import QueueFull, SkynetError
from skynet.gateway.batch.batches import Batches
from skynet.gateway.cluster.feeds import Feeds
from skynet.gateway.cluster.routes import cluster_router
from skynet.gateway.clusters import Clusters
from skynet.gateway.config import GatewayConfig
from skynet.gateway.errors import NO_RETRY, ApiError, api_error, invalid_body
from skynet.gateway.gateway import Gateway, require_admin
from skynet.gateway.metrics import CountRequests
from skynet.gateway.middleware.access_log import AccessLog
from skynet.gateway.middleware.body_limit import BodyLimit
from skynet.gateway.middleware.guard import Guard
from skynet.gateway.middleware.request_id import HEADER, RequestId
from skynet.gateway.openapi import describe_api
from skynet.gateway.routes import (
    batches,
    cancel,
    chat,
    completions,
    health,
    messages,
    metrics,
    models,
    responses,
    text_tasks,
)
from skynet.gateway.telemetry import telemetry
from skynet.tracing import tracer_provider
from skynet.web.page import page_router

logger = logging.getLogger(__name__)

ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    text_tasks.router,
    models.router,
    cancel.router,
    health.router,
    metrics.router,
)
EXPOSED = (HEADER, "retry-after", "x-should-retry", "x-skynet-ignored")
REJECTIONS = {"queue_full": "queue_full", "draining": "draining", "no_model": "no_plan"}
CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(clusters: Clusters, config: GatewayConfig) -> FastAPI:
    """The application over these clusters, which it closes at its end."""
    gateway = Gateway(clusters, config)
    feeds = Feeds({cluster.name or "default": cluster.client for cluster in clusters.all})
    gateway.at_drain.append(feeds.close)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            async with clusters.reading(), _running_batches(app, gateway):
                yield
        finally:
            feeds.close()
            clusters.close()

    app = FastAPI(
        title="SkyNet",
        version=__version__,
        summary="OpenAI's API over a cluster of Celery workers",
        lifespan=lifespan,
        docs_url=None,  # they load scripts from another origin
        redoc_url=None,
        telemetry=telemetry(tracer_provider("skynet-gateway")),
    )
    app.state.gateway = gateway
    for router in ROUTERS:
        app.include_router(router)
    app.include_router(cluster_router(feeds, require_admin))
    app.include_router(page_router())
    if config.batch_dir is not None:
        app.state.batches = Batches(config.batch_dir, config.batch_bytes)
        app.include_router(batches.router)
    describe_api(app)
    _handle_errors(app, gateway)
    _wrap(app, config)
    return app


@asynccontextmanager
async def _running_batches(app: FastAPI, gateway: Gateway) -> AsyncIterator[None]:
    if gateway.config.batch_dir is None:
        yield
        return
    running = asyncio.create_task(app.state.batches.run_all(gateway))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


def _wrap(app: FastAPI, config: GatewayConfig) -> None:
    """What requests pass, from the inside out."""
    app.add_middleware(
        BodyLimit,
        max_bytes=config.max_body_bytes,
        timeout_s=config.receive_s,
        longer={"/v1/files": config.batch_bytes},
    )
    open_paths = ("/", *(metrics.PATHS if config.open_metrics else ()))
    app.add_middleware(Guard, config=config, open_paths=open_paths)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=list(EXPOSED),
            max_age=600,
        )
    app.add_middleware(CountRequests, metrics=app.state.gateway.metrics)
    app.add_middleware(AccessLog)
    app.add_middleware(RequestId)


def _handle_errors(app: FastAPI, gateway: Gateway) -> None:
    """All errors have one form, those of the framework too."""

    def answer(request: Request, error: ApiError) -> Response:
        if error.code in REJECTIONS:
            gateway.metrics.rejected(REJECTIONS[error.code])
        return error.response(request.url.path)

    @app.exception_handler(ApiError)
    async def _of_api(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    @app.exception_handler(SkynetError)
    async def _of_skynet(request: Request, error: SkynetError) -> Response:
        if isinstance(error, QueueFull):
            return answer(request, api_error(error, retry_s=gateway.retry_s()))
        return answer(request, api_error(error))

    @app.exception_handler(RequestValidationError)
    async def _of_body(request: Request, error: RequestValidationError) -> Response:
        return answer(request, invalid_body(error.errors()))

    @app.exception_handler(HTTPException)
    async def _of_framework(request: Request, error: HTTPException) -> Response:
        path = f"{request.method} {request.url.path!r:.200}"
        message = {
            404: f"{path}: no such path",
            405: f"{path}: no such method",
        }.get(error.status_code, str(error.detail)[:500])
        headers: dict[str, Any] = {**(error.headers or {}), **NO_RETRY}
        code = CODES.get(error.status_code, "invalid_request")
        return answer(request, ApiError(error.status_code, message, code=code, headers=headers))

    @app.exception_handler(Exception)
    async def _of_fault(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        fault = ApiError(500, "internal error; the log has more", code="internal_error")
        return answer(request, fault)
