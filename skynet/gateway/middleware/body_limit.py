"""Limits what a client can send: bytes, and time to send them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skynet.gateway.errors import ApiError
from skynet.gateway.middleware.http import HttpMiddleware

MIB = 2**20
IDLE_S = 10.0  # for each MiB of a body that may be long


class BodyLimit(HttpMiddleware):
    """Refuses bodies that are longer than `max_bytes` or take longer than `timeout_s`.

    longer: paths with another limit, for bodies that go to disk and take as long as they need.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, timeout_s: float, longer: Mapping[str, int]
    ) -> None:
        super().__init__(app)
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s
        self.longer = longer

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self.longer.get(scope["path"], self.max_bytes)
        timeout_s = IDLE_S * limit / MIB if scope["path"] in self.longer else self.timeout_s
        started, refused = False, None

        async def noting(message: Message) -> None:
            nonlocal started
            if refused is not None and not started:
                return  # the framework's answer to a body that it could not read
            started = started or message["type"] == "http.response.start"
            await send(message)

        async def noted(read: Receive) -> Message:
            nonlocal refused
            try:
                return await read()
            except ApiError as error:
                refused = error
                raise

        limited = self._limited(receive, limit, timeout_s)
        try:
            self._check_length(Headers(scope=scope), limit)
            await self.app(scope, lambda: noted(limited), noting)
        except ApiError as error:
            if started:
                raise
            refused = refused or error
        if refused is not None and not started:
            refused.headers["connection"] = "close"
            await refused.response(scope["path"])(scope, receive, send)

    def _check_length(self, headers: Headers, limit: int) -> None:
        length = headers.get("content-length", "0")
        if not length.isdigit() or len(length) > 15 or int(length) > limit:
            raise _too_long(limit)

    def _limited(self, receive: Receive, limit: int, timeout_s: float) -> Receive:
        left, give_up, complete = limit, time.monotonic() + timeout_s, False

        async def limited() -> Message:
            nonlocal left, complete
            if complete:  # from here on only a disconnect comes, whenever that is
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, give_up - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408,
                    f"the body did not arrive within {timeout_s:g} s",
                    code="slow_body",
                ) from None
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                complete = not message.get("more_body", False)
            if left < 0:
                raise _too_long(limit)
            return message

        return limited


def _too_long(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is longer than {limit} bytes, the gateway's limit",
        code="request_too_large",
    )
