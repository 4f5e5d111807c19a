"""Answers of a cluster while they are generated, until the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, suppress
from typing import TypeVar

from starlette.requests import Request

from skynet.client.ends import error_of
from skynet.client.generation import Generation
from skynet.request.record import End, Token

T = TypeVar("T")

AHEAD = 64  # items that are kept for a client that reads slowly
Item = tuple[int, Token | End]  # the number of the answer, and what came


class ClientLeft(Exception):
    """The client closed the connection before its answer."""


async def finished(work: Awaitable[T]) -> T:
    """The result of work that goes on to its end if the caller is cancelled meanwhile, and the
    caller's own end waits for it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        raise


async def merged(
    generations: Sequence[Generation], ended: set[str], start: int = 0
) -> AsyncGenerator[Item]:
    """Tokens of several answers as they come, each with its answer's number, and their ends.

    ended: gets the ids of those that have.

    Raises:
        SkynetError: the error with which an answer ended.
    """
    queue: asyncio.Queue[Item | BaseException] = asyncio.Queue(AHEAD)

    async def read(number: int, generation: Generation) -> None:
        try:
            async with aclosing(generation.items(start)) as items:
                async for item in items:
                    await queue.put((number, item))
        except Exception as error:
            await queue.put(error)

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
