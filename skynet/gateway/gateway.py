"""What all routes of one gateway process share."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.requests import Request

from skynet.gateway.clusters import Clusters
from skynet.gateway.config import GatewayConfig
from skynet.gateway.errors import ApiError
from skynet.gateway.keys import Caller
from skynet.gateway.metrics import GatewayMetrics

RATE_WINDOW_S = 300.0
MAX_RETRY_S = 120
DEFAULT_RETRY_S = 5


class Gateway:
    """One gateway: its clusters, its configuration, and the answers that it is giving."""

    def __init__(self, clusters: Clusters, config: GatewayConfig) -> None:
        self.clusters = clusters
        self.config = config
        self.open_answers = 0
        self.is_draining = False
        self.is_ending = False  # open answers are cut
        self.metrics = GatewayMetrics()
        self.at_drain: list[Callable[[], None]] = []
        self._idle = asyncio.Event()
        self._finished: deque[float] = deque(maxlen=1000)

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Around each answer.

        Raises:
            ApiError: 503, the gateway is about to end.
        """
        if self.is_draining:
            raise ApiError(
                503,
                "this gateway is shutting down: send the request again, to another one",
                code="draining",
                headers={"retry-after": "1"},
            )
        self.open_answers += 1
        try:
            yield
            self._finished.append(time.monotonic())
        finally:
            self.open_answers -= 1
            if not self.open_answers:
                self._idle.set()

    def drain(self) -> None:
        """Take no more requests."""
        self.is_draining = True
        for call in self.at_drain:
            call()

    async def wait_idle(self, timeout_s: float) -> None:
        """Wait until no answer is open, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.open_answers:
                    self._idle.clear()
                    await self._idle.wait()

    def retry_s(self) -> int:
        """Seconds until a place in a full queue is free, by the rate of the last answers."""
        now = time.monotonic()
        recent = [at for at in self._finished if now - at < RATE_WINDOW_S]
        if len(recent) < 2:
            return DEFAULT_RETRY_S
        interval = (now - recent[0]) / len(recent)
        return max(1, min(MAX_RETRY_S, round(interval)))


def gateway_of(request: Request) -> Gateway:
    """The gateway that serves a request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def caller_of(request: Request) -> Caller:
    """Who sent it."""
    caller: Caller = request.scope.get("caller", Caller())
    return caller


def require_admin(request: Request) -> None:
    """
    Raises:
        ApiError: 403, the caller has no admin key.
    """
    if not caller_of(request).is_admin:
        raise ApiError(
            403,
            "this needs an admin key, of SKYNET_ADMIN_KEYS",
            code="admin_only",
        )


def request_id_of(request: Request) -> str:
    """Its `x-request-id`."""
    return str(request.scope.get("request_id", ""))
