"""The clusters behind a gateway: a cluster for each model, found by the model's name.

What a cluster runs is read from its Redis at most once a second, in a thread: the calls block.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.client.served_model import ServedModel
from skynet.errors import SkynetError
from skynet.gateway.errors import ApiError
from skynet.gateway.memory import give_back_memory
from skynet.request.prompts import Prompt
from skynet.store.connection import reachable
from skynet.store.engine_state import read_engine_state
from skynet.store.targets import Target

logger = logging.getLogger(__name__)

T = TypeVar("T")

FRESH_S = 1.0
THREADS = 8  # of each cluster: those of one that does not answer are all taken, maybe


@dataclass(frozen=True)
class Served:
    """What a cluster runs. name: of the model, as clients write it."""

    name: str
    target: Target
    model: ServedModel

    @property
    def max_tokens(self) -> int:
        """The longest prompt and answer together."""
        return self.target.slot_tokens


class Cluster:
    """One cluster.

    name: its model's name for clients; "": as the model is called.
    """

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self.client = client
        self._threads = ThreadPoolExecutor(THREADS, "gateway")
        self._known: tuple[float, Served] | None = None
        self._failed: tuple[float, SkynetError] | None = None
        self._looking: asyncio.Lock | None = None
        self.since = int(time.time())

    async def served(self) -> Served:
        """What it runs now.

        Raises:
            SkynetError: Redis does not answer, or no model is split onto the cluster.
        """
        self._looking = self._looking or asyncio.Lock()
        async with self._looking:
            if self._known is not None and time.monotonic() - self._known[0] <= FRESH_S:
                return self._known[1]
            # Who waited meanwhile for a Redis that is away does not wait as long again.
            if self._failed is not None and time.monotonic() - self._failed[0] <= FRESH_S:
                raise self._failed[1].with_traceback(None)
            try:
                served = await self.call(self._look)
            except SkynetError as error:
                self._failed = (time.monotonic(), error)
                raise
            self._known = (time.monotonic(), served)
            return served

    @property
    def last_served(self) -> Served | None:
        """What it ran when it was last asked."""
        return self._known[1] if self._known else None

    async def state(self) -> str:
        """What the leading orchestrator says of its engine: `ready`, or what it waits for.

        Raises:
            SkynetError: Redis does not answer.
        """
        return await self.call(self._state)

    def _state(self) -> str:
        with reachable(self.client.url):
            engine = read_engine_state(self.client.redis)
        return str((engine or {}).get("state", "no orchestrator leads"))

    async def why_silent(self) -> str:
        """For a client whose answer does not go on: `keep-alive`, or what the cluster waits for."""
        try:
            state = await self.state()
        except SkynetError:
            state = "Redis does not answer"
        return "keep-alive" if state.startswith("ready") else f"recovering: {state}"

    def _look(self) -> Served:
        with reachable(self.client.url):
            target = self.client.target()
            model = self.client.served_model(target)
        if self.last_served is None or self.last_served.model is not model:
            give_back_memory()
        return Served(self.name or target.name, target, model)

    async def call(self, function: Callable[[], T]) -> T:
        """A call that blocks, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def submit(self, prompt: Prompt, **arguments: Any) -> list[Generation]:
        """As `Client.submit_prompt`. If the caller is cancelled meanwhile, so is the request."""
        return await self._submitted(
            lambda: _listed(self.client.submit_prompt(prompt, **arguments))
        )

    async def submit_all(self, prompts: list[Prompt], **arguments: Any) -> list[Generation]:
        """As `Client.submit_prompts`."""
        return await self._submitted(lambda: self.client.submit_prompts(prompts, **arguments))

    async def _submitted(self, submit: Callable[[], list[Generation]]) -> list[Generation]:
        future = self._threads.submit(submit)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if not future.cancel():  # in a thread: a callback of what is done blocks this one
                self._threads.submit(_cancel_submitted, future.result)
            raise

    async def cancel(self, generations: list[Generation]) -> None:
        """Cancel what has not ended."""
        await self.call(lambda: cancel_all(generations))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.client.close()


class Clusters:
    """All clusters of a gateway, by name.

    urls: Redis URLs by name; the name "" is the cluster of SKYNET_REDIS_URL.
    """

    def __init__(self, urls: Mapping[str, str | None]) -> None:
        self.all = [Cluster(name, Client(url)) for name, url in urls.items()]

    async def find(self, name: str | None) -> Cluster:
        """The cluster whose model has this name. Without a name: the only one, or the first.

        Raises:
            ApiError: 404, no cluster has it.
        """
        if not name:
            return self.all[0]
        for cluster in self.all:
            if name == cluster.name:
                return cluster
        for cluster in self.all:
            with suppress(SkynetError):
                served = await cluster.served()
                if name in (served.name, served.target.name, served.target.model):
                    return cluster
        known = [c.name or (s.name if (s := c.last_served) else "") for c in self.all]
        if not any(known):
            await self.all[0].served()  # says why no name is known
        raise ApiError(
            404,
            f"The model {name!r:.200} does not exist; there is {', '.join(filter(None, known))}",
            code="model_not_found",
            param="model",
        )

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """While this lasts, each cluster's answers have one reader in this event loop."""
        async with AsyncExitStack() as stack:
            for cluster in self.all:
                await stack.enter_async_context(cluster.client.async_answers())
            yield

    def close(self) -> None:
        for cluster in self.all:
            cluster.close()


def cancel_all(generations: list[Generation]) -> None:
    for generation in generations:
        try:
            generation.cancel()
        except SkynetError as error:
            logger.warning("request %s was not cancelled: %s", generation.id, error)


def _cancel_submitted(result: Callable[[], list[Generation]]) -> None:
    with suppress(SkynetError):
        cancel_all(result())


def _listed(generations: Generation | list[Generation]) -> list[Generation]:
    return generations if isinstance(generations, list) else [generations]
