"""Lets in who may use the gateway."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from skynet.gateway.config import GatewayConfig, is_loopback
from skynet.gateway.errors import ApiError
from skynet.gateway.keys import Caller
from skynet.gateway.middleware.http import HttpMiddleware

OPEN_PATHS = ("/health", "/ready", "/v1/health")
PAGE_PREFIX = "/static/"  # the page itself holds nothing: it asks for a key


class Guard(HttpMiddleware):
    """Refuses requests without a valid key, and requests that pages of other origins make.

    A gateway without keys has no other way to tell its user from a page that the user visits: it
    answers only where `Host` is its own name, so that no name of an attacker's leads to it.
    """

    def __init__(self, app: ASGIApp, config: GatewayConfig, open_paths: Iterable[str] = ()) -> None:
        super().__init__(app)
        self.config = config
        self.open_paths = {*OPEN_PATHS, *open_paths}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope["caller"] = self._caller(scope)
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller:
        """
        Raises:
            ApiError: 401 or 403.
        """
        headers, path = Headers(scope=scope), scope["path"]
        keys = self.config.keys
        if path in self.open_paths or path.startswith(PAGE_PREFIX):
            return Caller()
        if keys is None:
            self._check_origin(headers)
            return Caller(is_admin=self.config.is_local)
        key = _key_of(headers)
        caller = keys.caller(key) if key else None
        if caller is None:
            raise ApiError(
                401,
                "no valid API key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return caller

    def _check_origin(self, headers: Headers) -> None:
        if not self.config.is_local:
            return
        if not is_loopback(_host_of(headers.get("host", ""))):
            raise ApiError(
                403,
                f"Host {headers.get('host', '')!r:.100}: this gateway has no keys and answers to "
                "names of its own machine only",
                code="foreign_host",
            )
        origin = headers.get("origin")
        if origin is None or origin in self.config.cors_origins:
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise ApiError(
                403,
                f"Origin {origin!r:.100}: allow pages of this origin with --cors-origin",
                code="foreign_origin",
            )


def _host_of(netloc: str) -> str:
    """The host of `host:port`."""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def _key_of(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return headers.get("x-api-key", "").strip()
