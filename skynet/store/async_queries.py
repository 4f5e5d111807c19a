"""Short commands of many coroutines, over one connection of their event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio

from skynet.store.answer import RETRY_S

AWAY = (redis.ConnectionError, redis.TimeoutError)

Call = Callable[[redis.asyncio.client.Pipeline], Any]  # puts a command into a pipeline


class AsyncQueries:
    """Commands that do not block; those that come while others are under way share a pipeline."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self._waiting: list[_Query] = []  # not yet sent, or without a reply yet
        self._turn = asyncio.Lock()  # of the one who sends them

    async def ask(self, call: Call, patience_s: float) -> Any:
        """The command's reply; it is repeated for `patience_s` while Redis does not answer."""
        give_up = time.monotonic() + patience_s
        while True:
            query = _Query(call)
            self._waiting.append(query)
            async with self._turn:
                if not query.done:
                    await self._send()
            if not isinstance(query.reply, Exception):
                return query.reply
            refused = isinstance(query.reply, redis.AuthenticationError)
            if not isinstance(query.reply, AWAY) or refused or time.monotonic() > give_up:
                raise query.reply
            await asyncio.sleep(RETRY_S)

    async def _send(self) -> None:
        """Send all commands that wait, in one pipeline."""
        queries = list(self._waiting)
        async with self.client.pipeline(transaction=False) as pipe:
            for query in queries:
                query.call(pipe)
            try:
                replies = await pipe.execute(raise_on_error=False)
            except AWAY as error:
                replies = [error] * len(queries)
        del self._waiting[: len(queries)]  # not before: if this is cancelled, the next one sends
        for query, query.reply in zip(queries, replies, strict=True):
            query.done = True


class _Query:
    """A command and its reply, or the error instead."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.done = False
        self.reply: Any = None
