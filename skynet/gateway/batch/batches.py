"""OpenAI's batches: files of requests that the gateway answers while it runs.

A batch is a description on disk. Whoever holds its lock runs it, so gateways that share the
directory share the work, and a gateway that starts goes on where the last one stopped.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skynet.errors import BadRequest
from skynet.gateway.batch.descriptions import Descriptions
from skynet.gateway.batch.endpoints import URLS
from skynet.gateway.batch.files import Files
from skynet.gateway.batch.runner import BatchRunner, Counts
from skynet.gateway.errors import ApiError
from skynet.gateway.gateway import Gateway
from skynet.gateway.run import Origin

logger = logging.getLogger(__name__)

LOOK_S = 2.0
SAVE_S = 1.0
MAX_OPEN = 1000
MAX_RUNNING = 4  # at once: one whose cluster is away does not hold up the others
WINDOW = re.compile(r"([1-9]\d{0,3})(m|h|d)")
SECONDS = {"m": 60, "h": 3600, "d": 86_400}
ENDED = ("failed", "completed", "expired", "cancelled")


@dataclass(frozen=True)
class Batch:
    """One batch, as OpenAI describes it. Times are seconds since 1970."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    owner: str = ""
    status: str = "validating"
    in_progress_at: int | None = None
    ended_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    problem: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    metadata: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """OpenAI's object."""
        problems = [{"code": "invalid_batch", "message": self.problem, "line": None, "param": None}]
        ends: dict[str, int | None] = {f"{status}_at": None for status in ENDED}
        if self.status in ENDED:
            ends[f"{self.status}_at"] = self.ended_at
        counts = {"total": self.total, "completed": self.completed, "failed": self.failed}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": problems} if self.problem else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": None,
            "cancelling_at": None,
            **ends,
            "request_counts": counts,
            "metadata": self.metadata or None,
        }


class Batches:
    """All batches of a directory."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self.files = Files(directory, max_bytes)
        self._descriptions = Descriptions(directory, "batch", Batch)

    def create(
        self, endpoint: str, file_id: str, window: str, owner: str, metadata: dict[str, str]
    ) -> Batch:
        """Queue a batch.

        Raises:
            ApiError: 400, 404 or 429: why it cannot be.
        """
        match = WINDOW.fullmatch(window)
        if match is None or endpoint not in URLS:
            param = "endpoint" if match else "completion_window"
            value = endpoint if match else window
            raise ApiError(
                400,
                f"{param} {value!r:.80}: expected "
                + (", ".join(sorted(URLS)) if match else "a number of m, h or d, as in 24h"),
                code="invalid_value",
                param=param,
            )
        self.files.get(file_id, owner)
        self.files.check_room()
        if sum(batch.status not in ENDED for batch in self.all(None)) >= MAX_OPEN:
            raise ApiError(429, f"{MAX_OPEN} batches are unfinished", code="queue_full")
        now = int(time.time())
        expires = now + int(match[1]) * SECONDS[match[2]]
        batch_id = self._descriptions.new_id()
        batch = Batch(batch_id, endpoint, file_id, window, now, expires, owner, metadata=metadata)
        self.save(batch)
        return batch

    def get(self, batch_id: str, owner: str | None) -> Batch:
        """A batch; arguments and errors as of `Descriptions.get`."""
        return self._descriptions.get(batch_id, owner)

    def all(self, owner: str | None) -> list[Batch]:
        """All batches of an owner, the newest first."""
        return self._descriptions.all(owner)

    def cancel(self, batch: Batch) -> Batch:
        """Have the gateway that runs a batch stop it."""
        if batch.status in ENDED:
            return batch
        batch = replace(batch, status="cancelling")
        self.save(batch)
        return batch

    def save(self, batch: Batch) -> None:
        self._descriptions.save(batch)

    @contextmanager
    def lock(self, batch: Batch) -> Iterator[bool]:
        """Whether this process alone may run the batch now."""
        with (self.directory / f"{batch.id}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    async def run_all(self, gateway: Gateway) -> None:
        """Run batches, the oldest first, a few at once, until cancelled."""
        running: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                for batch in await self._unfinished():
                    if len(running) < MAX_RUNNING and batch.id not in running:
                        running[batch.id] = asyncio.create_task(self._run(gateway, batch))
                if not running:
                    await asyncio.sleep(LOOK_S)
                    continue
                await asyncio.wait(running.values(), timeout=LOOK_S)
                running = {name: task for name, task in running.items() if not task.done()}
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    async def _unfinished(self) -> list[Batch]:
        """Batches that have not ended, the oldest first."""
        try:
            found = await asyncio.to_thread(self.all, None)
        except OSError as error:
            logger.error("batches in %s: %s; trying again", self.directory, error)
            return []
        return [batch for batch in reversed(found) if batch.status not in ENDED]

    async def _run(self, gateway: Gateway, batch: Batch) -> None:
        """Run a batch, unless another gateway does."""
        try:
            with self.lock(batch) as is_mine:
                if is_mine:
                    await _BatchRun(self, gateway, batch).run()
                else:
                    await asyncio.sleep(LOOK_S)
        except OSError as error:  # a full disk, say: it may have room later
            logger.error("batch %s: %s; trying again", batch.id, error)
            await asyncio.sleep(LOOK_S)
        except Exception:  # other batches go on
            logger.exception("batch %s; trying again", batch.id)
            await asyncio.sleep(LOOK_S)


class _BatchRun:
    """Runs one batch to its end."""

    def __init__(self, batches: Batches, gateway: Gateway, batch: Batch) -> None:
        self.batches = batches
        self.gateway = gateway
        self.batch = batches.get(batch.id, None)  # as it is under the lock
        self.output = batches.directory / f"{batch.id}.output"
        self.errors = batches.directory / f"{batch.id}.errors"
        self._saved = 0.0

    async def run(self) -> None:
        batch = self.batch
        if batch.status in ENDED:  # another gateway has run it since it was listed
            return
        if batch.status != "cancelling":
            started = batch.in_progress_at or int(time.time())
            self._save(status="in_progress", in_progress_at=started)
            left = batch.expires_at - time.time()
            deadline = asyncio.get_running_loop().time() + left
            running = asyncio.create_task(self._runner(deadline).run())
            try:
                await self._until_done(running)
            except BadRequest as error:
                self._end("failed", str(error))
                return
            except Exception:
                logger.exception("batch %s failed", batch.id)
                self._end("failed", "internal error; the gateway's log has more")
                return
        is_cancelled = self.batches.get(batch.id, None).status == "cancelling"
        is_late = time.time() >= batch.expires_at
        self._end("cancelled" if is_cancelled else "expired" if is_late else "completed")

    def _runner(self, deadline: float) -> BatchRunner:
        batch = self.batch
        return BatchRunner(
            self.gateway,
            self.batches.files.path(batch.input_file_id),
            self.output,
            self.errors,
            Origin(batch.id, batch.owner),
            self._count,
            deadline,
            frozenset({batch.endpoint}),
        )

    async def _until_done(self, running: asyncio.Task[Counts]) -> None:
        """Wait for the end of a run; stop it if the batch is cancelled."""
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=LOOK_S)
                if self.batches.get(self.batch.id, None).status == "cancelling":
                    running.cancel()
                    await asyncio.wait({running})
                    return
            running.result()
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await running

    def _count(self, counts: Counts) -> None:
        self.batch = replace(
            self.batch, total=counts.total, completed=counts.completed, failed=counts.failed
        )
        if time.monotonic() - self._saved > SAVE_S:
            self._save()

    def _save(self, **changes: Any) -> None:
        """Write the batch; a cancellation that somebody asked for stays."""
        if self.batches.get(self.batch.id, None).status == "cancelling":
            changes.pop("status", None)
            self.batch = replace(self.batch, status="cancelling")
        self.batch = replace(self.batch, **changes)
        self.batches.save(self.batch)
        self._saved = time.monotonic()

    def _end(self, status: str, problem: str = "") -> None:
        files, owner = self.batches.files, self.batch.owner
        ids: dict[str, Any] = {}
        for name, path in (("output_file_id", self.output), ("error_file_id", self.errors)):
            if path.exists() and path.stat().st_size:
                filename = f"{self.batch.id}_{path.suffix[1:]}.jsonl"
                ids[name] = files.adopt(path, filename, "batch_output", owner).id
        self.batch = replace(
            self.batch, status=status, ended_at=int(time.time()), problem=problem, **ids
        )
        self.batches.save(self.batch)  # before the lock goes: whoever has it next sees the end
        (self.batches.directory / f"{self.batch.id}.lock").unlink(missing_ok=True)
