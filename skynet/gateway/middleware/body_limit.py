"""Limits what a client can send: bytes, and time to send them."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skynet.gateway.errors import NO_RETRY, ApiError


class BodyLimit:
    """Refuses bodies that are longer than `max_bytes` or take longer than `timeout_s`."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            self._check_length(Headers(scope=scope))
            await self.app(scope, self._limited(receive), noting)
        except ApiError as error:
            if started:
                raise
            error.headers["connection"] = "close"
            await error.response(scope["path"])(scope, receive, send)

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not length.isdigit() or len(length) > 15 or int(length) > self.max_bytes:
            raise self._too_long()

    def _limited(self, receive: Receive) -> Receive:
        left, give_up, complete = self.max_bytes, time.monotonic() + self.timeout_s, False

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
                    f"the body did not arrive within {self.timeout_s:g} s",
                    code="slow_body",
                    headers=NO_RETRY,
                ) from None
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                complete = not message.get("more_body", False)
            if left < 0:
                raise self._too_long()
            return message

        return limited

    def _too_long(self) -> ApiError:
        return ApiError(
            413,
            f"the body is longer than {self.max_bytes} bytes, the gateway's limit",
            code="request_too_large",
            headers=NO_RETRY,
        )
