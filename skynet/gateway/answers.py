"""Answers of a cluster while they are generated, and their end when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from starlette.requests import Request

from skynet.client.ends import error_of
from skynet.client.generation import Generation
from skynet.gateway.clusters import Cluster
from skynet.request.record import End, Token

T = TypeVar("T")

Item = tuple[int, Token | End]  # the number of the answer, and what came


class ClientLeft(Exception):
    """The client closed the connection before its answer."""


@asynccontextmanager
async def cancelled_at_exit(
    cluster: Cluster, generations: Sequence[Generation], unless: Callable[[], bool]
) -> AsyncIterator[set[str]]:
    """Cancels at its end what has not ended; the block adds the ids of those that have.

    unless: asked at the end: nothing is cancelled, as for a client that comes back.
    """
    ended: set[str] = set()
    try:
        yield ended
    finally:
        rest = [each for each in generations if each.id not in ended]
        if rest and not unless():
            await asyncio.shield(asyncio.ensure_future(cluster.cancel(rest)))


async def merged(
    generations: Sequence[Generation], ended: set[str], start: int = 0
) -> AsyncGenerator[Item]:
    """Tokens of several answers as they come, each with its answer's number, and their ends.

    ended: gets the ids of those that have.

    Raises:
        SkynetError: the error with which an answer ended.
    """
    queue: asyncio.Queue[Item | BaseException] = asyncio.Queue()

    async def read(number: int, generation: Generation) -> None:
        try:
            async with aclosing(generation.items(start)) as items:
                async for item in items:
                    queue.put_nowait((number, item))
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(read(n, each)) for n, each in enumerate(generations)]
    left = len(tasks)
    try:
        while left:
            entry = await queue.get()
            if isinstance(entry, BaseException):
                raise entry
            number, item = entry
            if isinstance(item, End):
                left -= 1
                ended.add(generations[number].id)
                if item.error:
                    raise error_of(item)
            yield entry
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_left(request: Request, answer: Awaitable[T]) -> T:
    """The answer, unless the client leaves first: it is cancelled then.

    Raises:
        ClientLeft: it did.
    """
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientLeft
        return answering.result()
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
