"""Logs each request in one line: what, how it ended, how long it took, its id and its key's name.

Neither prompts nor answers nor query strings, which may hold them.
"""

from __future__ import annotations

import logging
import time

from starlette.types import Message, Receive, Scope, Send

from skynet.gateway.middleware.guard import OPEN_PATHS
from skynet.gateway.middleware.http import HttpMiddleware

logger = logging.getLogger(__name__)


class AccessLog(HttpMiddleware):
    """At level INFO; requests for the gateway's health, which are many, at DEBUG."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.monotonic(), 499  # unless an answer begins, the client has left

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            logger.log(
                logging.DEBUG if scope["path"] in OPEN_PATHS else logging.INFO,
                "%s %r %d %.3f s %s %s",
                scope["method"],
                scope["path"][:200],
                status,
                time.monotonic() - started,
                scope.get("request_id", "-"),
                getattr(scope.get("caller"), "name", "") or "-",
            )
