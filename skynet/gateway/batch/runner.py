"""Runs the requests of a file, as many at a time as the cluster has slots to spare.

Each answer is on disk before the next request takes its place, so a run that was cut continues
where it stopped: the answers that are there are not asked for again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from skynet.errors import SkynetError
from skynet.gateway.answers import finished
from skynet.gateway.batch.endpoints import URLS, answer
from skynet.gateway.batch.lines import RequestLine, answered_ids, check_requests, requests_of
from skynet.gateway.errors import ApiError, api_error
from skynet.gateway.gateway import Gateway
from skynet.gateway.run import Origin

logger = logging.getLogger(__name__)

PRIORITY = 0
TRY_AGAIN = (429, 503)  # the cluster takes no request now
MAX_PAUSE_S = 30.0


@dataclass
class Counts:
    """Requests of a batch: all, and those that have an answer or an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        return self.completed + self.failed


@dataclass
class BatchRunner:
    """One file of requests.

    output, errors: files of answer lines; lines of errors go into the second.
    origin: whose requests these are.
    progress: called whenever the counts change.
    urls: what its lines may ask for.
    deadline: by `time` of the event loop; what is left then gets the error `batch_expired`.
    """

    gateway: Gateway
    source: Path
    output: Path
    errors: Path
    origin: Origin
    progress: Callable[[Counts], None] = lambda counts: None
    deadline: float | None = None
    urls: frozenset[str] = URLS
    counts: Counts = field(default_factory=Counts)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> Counts:
        """Answer every request that has no answer yet.

        Raises:
            BadRequest: the file cannot be used; nothing was sent.
        """
        self.counts.total = await asyncio.to_thread(check_requests, self.source, self.urls)
        answered = await asyncio.to_thread(answered_ids, self.output)
        failed = await asyncio.to_thread(answered_ids, self.errors)
        self.counts.completed, self.counts.failed = len(answered), len(failed)
        self.progress(self.counts)
        left = (
            request
            for request in requests_of(self.source, self.urls)
            if request.custom_id not in answered and request.custom_id not in failed
        )
        with self.output.open("ab") as output, self.errors.open("ab") as errors:
            workers = await self._workers()
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(left, output, errors))
        if not self.errors.stat().st_size:
            self.errors.unlink()
        return self.counts

    async def _workers(self) -> int:
        """Requests at a time: an eighth of the slots, at least one of several, is left free, so
        that somebody who waits need not wait for an answer of a batch."""
        slots = 1
        for cluster in self.gateway.clusters.all:
            try:
                slots = max(slots, (await cluster.served()).target.num_slots)
            except SkynetError:  # it may come
                continue
        return max(1, slots - max(1, slots // 8))

    async def _work(self, left: Iterator[RequestLine], output: BinaryIO, errors: BinaryIO) -> None:
        for request in left:
            line, is_answer = await self._answer(request)
            async with self._writing:
                await finished(asyncio.to_thread(_append, output if is_answer else errors, line))
            self.counts.completed += is_answer
            self.counts.failed += not is_answer
            self.progress(self.counts)

    async def _answer(self, request: RequestLine) -> tuple[dict[str, Any], bool]:
        """The line of its answer, and whether it is one."""
        try:
            async with asyncio.timeout_at(self.deadline):
                return await self._until_taken(request)
        except TimeoutError:
            return request.failure("batch_expired", "no answer until the batch's deadline"), False

    async def _until_taken(self, request: RequestLine) -> tuple[dict[str, Any], bool]:
        pause, origin = 0.5, self.origin
        while True:
            try:
                body = {**request.body, "priority": PRIORITY}  # people come first
                content = await answer(self.gateway, origin, request.url, body)
                return request.answer(200, content, origin.request_id), True
            except SkynetError as error:
                problem = api_error(error)
            except ApiError as error:
                problem = error
            except Exception:  # of one line; the others are answered
                logger.exception("%s, request %r", self.source.name, request.custom_id)
                problem = ApiError(500, "internal error; the log has more", code="internal_error")
            if problem.status not in TRY_AGAIN and problem.code != "request_lost":
                return request.answer(problem.status, problem.body(), origin.request_id), False
            await asyncio.sleep(pause)
            pause = min(MAX_PAUSE_S, 2 * pause)


def _append(file: BinaryIO, line: dict[str, Any]) -> None:
    """Write a line so that it is there after a crash."""
    file.write(json.dumps(line).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())
