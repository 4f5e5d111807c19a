"""A request that runs on a cluster for a client, whatever API the client speaks.

Its answers come as `Step`s: what a token adds, with its place, so that a client that lost its
connection continues after the last one that it has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from skynet.client.generation import Generation
from skynet.gateway.answers import finished, merged
from skynet.gateway.clusters import Cluster, Served
from skynet.gateway.gateway import Gateway, caller_of, request_id_of
from skynet.gateway.usage import Usage
from skynet.request.record import End, Token
from skynet.tracing import current_traceparent, valid_traceparent

ON_DISCONNECT = "x-skynet-on-disconnect"  # `continue`: the client comes back for the rest


@dataclass(frozen=True)
class Step:
    """One thing that happened to an answer.

    choice: its number.
    item: a token; or its end, which has the text that was held back until then.
    position: tokens of each answer so far, as in 3,5; an answer's end counts as one more.
    is_seen: the client has it.
    """

    choice: int
    item: Token | End
    position: str
    is_seen: bool


@dataclass
class Run:
    """generations: an answer each, in order.
    about: what a client that comes back needs, from the request's annotations.
    continues: the answers go on when the client leaves.
    form: what the API that started it needs to write the answer.
    """

    gateway: Gateway
    cluster: Cluster
    served: Served
    generations: list[Generation]
    about: dict[str, Any]
    continues: bool = False
    usage: Usage = field(default_factory=Usage)
    form: Any = None
    _leaving: asyncio.Future[None] | None = None
    _ended: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        """The id of the first answer's request, which stands for all of them."""
        return self.generations[0].id

    @property
    def created(self) -> int:
        return int(self.about["created"])

    @property
    def model(self) -> str:
        return str(self.about["model"])

    async def steps(self, after: str = "") -> AsyncGenerator[Step]:
        """All steps, those up to the position `after` as seen.

        Cancels the answers when it is closed before their ends.

        Raises:
            SkynetError: why an answer failed.
        """
        counts = [0] * len(self.generations)
        seen = _counts(after, len(counts))
        try:
            async with aclosing(merged(self.generations, self._ended)) as items:
                async for choice, item in items:
                    counts[choice] += 1
                    if isinstance(item, End):
                        self.usage.cached_tokens = max(self.usage.cached_tokens, item.cached_tokens)
                    else:
                        self.usage.completion_tokens += 1
                    is_seen = counts[choice] <= seen[choice]
                    yield Step(choice, item, ",".join(map(str, counts)), is_seen)
        finally:
            await self.leave()

    async def leave(self) -> None:
        """Cancel the answers that have not ended, unless the client comes back for them."""
        rest = [each for each in self.generations if each.id not in self._ended]
        if self._leaving is None:
            if not rest or self._goes_on:
                return
            self._leaving = asyncio.ensure_future(self.cluster.cancel(rest))
        await finished(self._leaving)  # whoever began it: the last one to leave waits for its end

    @property
    def _goes_on(self) -> bool:
        # A gateway that ends has not been left by its client, who may go on at another one.
        return self.continues or self.gateway.is_ending


def _counts(position: str, choices: int) -> list[int]:
    """The counts of a position; zeros for one that is none."""
    words = position.split(",")
    if len(words) != choices or not all(word.isdigit() and len(word) < 10 for word in words):
        return [0] * choices
    return [int(word) for word in words]


@dataclass(frozen=True)
class Origin:
    """Where a request comes from.

    caller: the name of its key.
    continues: the answer goes on when the client leaves.
    traceparent: the span that it belongs to, or "".
    """

    request_id: str
    caller: str = ""
    continues: bool = False
    traceparent: str = ""

    def annotations(self, served: Served, kind: str, more: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept with a request for a client that comes back.

        kind: the API, which decides the form of the answer.
        """
        return {
            "request_id": self.request_id,
            "kind": kind,
            "caller": self.caller,
            "model": served.name,
            "created": int(time.time()),
            **more,
        }


def origin_of(request: Request) -> Origin:
    """Where an HTTP request comes from."""
    continues = request.headers.get(ON_DISCONNECT, "").lower() == "continue"
    # The span of this HTTP request; without one, that of the client.
    traceparent = current_traceparent() or valid_traceparent(request.headers.get("traceparent"))
    return Origin(request_id_of(request), caller_of(request).name, continues, traceparent)
