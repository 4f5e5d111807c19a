"""Gives each request an id: the client's `x-request-id`, or a new one."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from skynet.gateway.middleware.http import HttpMiddleware

HEADER = "x-request-id"
VALID = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)


class RequestId(HttpMiddleware):
    """Puts the id into the scope, as `request_id`, and into the answer's headers."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if VALID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        scope["request_id"] = request_id

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self.app(scope, receive, with_id)
