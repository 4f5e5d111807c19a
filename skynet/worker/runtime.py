"""One shard worker: its place, its slice, its lease, and the spans it runs.

Two threads. Celery's runs the spans. The keeper's renews the lease (a worker busy with a long span
must not look dead) and loads the slice when a plan with this address comes into force.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import redis
from celery.exceptions import Ignore

from skynet import names
from skynet.chords import next_span
from skynet.errors import PeerLost, ShardFailed
from skynet.names import Address
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.settings import settings
from skynet.step import Part, Step
from skynet.store.connection import connect
from skynet.store.exchange import Exchange
from skynet.store.members import Member, Members
from skynet.store.plans import Plans

if TYPE_CHECKING:
    from skynet.celery import SkynetCelery
    from skynet.layers.shard_model import ShardModel

logger = logging.getLogger(__name__)

KEEPER_S = 0.2
REMEMBERED_SPANS = 4096
REMEMBERED_STEPS = 64


class ShardRuntime:
    """The shard worker at one address."""

    def __init__(self, app: SkynetCelery, address: Address, node: str) -> None:
        self.app = app
        self.address = address
        self.member = Member(node, str(address), socket.gethostname(), os.getpid())
        self.member.device = settings().device
        self.plan: Plan | None = None
        self.model: ShardModel | None = None
        self.exchange: Exchange | None = None
        self._client = connect()
        self._steps: dict[tuple[int, int], Step] = {}
        self._seen: dict[tuple[int, int, int], None] = {}  # ordered, oldest first
        self._progress: dict[tuple[int, int], int] = {}  # step -> the layer it has come to
        self._filled: dict[tuple[int, int], int] = {}  # (epoch, slot) -> tokens in it
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._threads_changed = 0

    # -- lifecycle -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to hold the lease and to look for a plan."""
        self._keeper.start()

    def ready(self, consumer: Any) -> None:
        """Celery consumes the queue from here on."""
        logger.info("waiting for work on queue %s", self.address)

    def stop(self) -> None:
        """Give the lease back."""
        self._stopping.set()
        self._keeper.join(timeout=5)
        try:
            Members(connect(timeout_s=2), settings().lease_s).leave(self.member.node)
        except redis.RedisError:
            logger.warning("could not give the lease back: it runs out by itself")

    def _keep(self) -> None:
        import torch  # seconds: here, while Celery starts beside it

        torch.set_grad_enabled(False)
        client = connect(timeout_s=5)
        members, plans = Members(client, settings().lease_s), Plans(client)
        renewed = 0.0
        while not self._stopping.is_set():
            try:
                if time.monotonic() - renewed > settings().lease_s / 4:
                    self._renew(members)
                    renewed = time.monotonic()
                plan = plans.current()
                if plan is not None and (self.plan is None or plan.epoch != self.plan.epoch):
                    self._take(plan, members)
                    renewed = 0.0
            except redis.RedisError as error:
                logger.warning("Redis: %s; trying again", error)
                self._stopping.wait(1)
            self._stopping.wait(KEEPER_S)

    def _renew(self, members: Members) -> None:
        process = psutil.Process()
        member = self.member
        if member.state == "starting":
            member.state = "waiting"
        member.resident_bytes = process.memory_info().rss
        member.free_bytes = psutil.virtual_memory().available
        if settings().threads is None:
            neighbours = sum(
                1
                for other in members.all()
                if other.host == member.host
                and other.address != names.ORCHESTRATOR_QUEUE
                and other.node != member.node
            )
            threads = max(1, (os.cpu_count() or 1) // (neighbours + 1))
        else:
            threads = settings().threads or 1
        if threads != member.threads:
            member.threads = threads
            self._threads_changed = threads
        members.renew(member)

    def _take(self, plan: Plan, members: Members) -> None:
        """Load this address's slice of a new plan, or wait if the plan has no such address."""
        member = self.member
        member.problem = ""
        if tuple(self.address) not in set(plan.addresses()):
            self.plan, self.model = plan, None
            member.state, member.epoch = "waiting", plan.epoch
            logger.info("plan %d has no %s: waiting for another", plan.epoch, self.address)
            return
        if (
            self.plan is not None
            and self.model is not None
            and _same_slice(self.plan, plan, self.address)
        ):
            self.plan = plan
            member.state, member.epoch = "ready", plan.epoch
            return
        member.state, member.epoch, member.loaded_bytes = "loading", plan.epoch, 0
        member.weight_bytes = 0
        self.model = None
        self._filled.clear()
        client = connect()
        started = time.monotonic()
        reported = [0.0]

        def progress(num_bytes: int) -> None:
            member.loaded_bytes += num_bytes
            if time.monotonic() - reported[0] > 0.1:
                self._renew(members)
                reported[0] = time.monotonic()

        try:
            import torch

            torch.set_num_threads(max(1, member.threads))  # of this thread; the other has its own
            from skynet.worker.slice import load_slice, return_free_memory, slice_bytes

            member.weight_bytes = slice_bytes(client, plan, self.address)
            model = load_slice(client, plan, self.address, settings().device, progress)
        except redis.RedisError:
            raise  # tried again
        except Exception as error:  # whatever it is, status shows it, and the keeper lives on
            logger.exception("could not load plan %d", plan.epoch)
            member.state, member.problem = "failed", f"{type(error).__name__}: {error}"
            self.plan = plan
            return
        urls = settings().exchange_urls or (settings().redis_url,)
        self.exchange = Exchange(
            urls[self.address.stage % len(urls)],
            self.address.stage,
            self.address.shard,
            len(plan.stages[self.address.stage].shards),
        )
        self.model, self.plan = model, plan
        gc.collect()
        gc.freeze()  # weights and modules stay: no collection needs to look at them again
        return_free_memory()
        member.state, member.weight_bytes = "ready", model.weight_bytes
        member.load_s = round(time.monotonic() - started, 3)
        logger.info(
            "plan %d: loaded %.1f MB of %s in %.2f s",
            plan.epoch,
            model.weight_bytes / 1e6,
            plan.name,
            member.load_s,
        )

    # -- spans ---------------------------------------------------------------------------------

    def run_span(
        self,
        epoch: int,
        step_number: int,
        start: int,
        stop: int,
        rows: bytes | None,
        hidden: bytes | None,
    ) -> Part:
        """This shard's part of layers [start, stop) of a step.

        rows, hidden: the encoded Step and the hidden states before `start`, where they are small
            enough to come with the message; else they lie in Redis.

        Raises:
            Ignore: the message is stale, a duplicate, or past its deadline; nothing changes.
            StepFailed: this shard, or a peer it waited for, could not.
        """
        plan, model, exchange = self.plan, self.model, self.exchange
        if plan is None or plan.epoch != epoch or model is None or exchange is None:
            if plan is not None and epoch < plan.epoch:
                logger.info("step %d of epoch %d is stale, dropped", step_number, epoch)
                raise Ignore
            raise ShardFailed(
                f"{self.address} has no weights of plan {epoch}: it is {self.member.state} "
                f"{self.member.problem}".rstrip()
            )
        if (epoch, step_number, start) in self._seen:
            logger.info("step %d: layer %d came twice, dropped", step_number, start)
            raise Ignore
        first = plan.stages[self.address.stage].layers.start
        if start > first and self._progress.get((epoch, step_number)) != start:
            raise ShardFailed(
                f"{self.address} has not computed the layers before {start} of step {step_number}: "
                "it was started meanwhile, or another worker has the same address"
            )
        self._seen[(epoch, step_number, start)] = None
        if len(self._seen) > REMEMBERED_SPANS:
            del self._seen[next(iter(self._seen))]
        step, hidden = self._inputs(epoch, step_number, start, rows, hidden)
        if step.deadline and time.time() > step.deadline:
            logger.warning("step %d is past its deadline, dropped", step_number)
            raise Ignore
        if start == first:
            self._check_slots(epoch, step)
        part = self._compute(plan, model, exchange, step, Range(start, stop), hidden)
        self._progress[(epoch, step_number)] = stop
        if len(self._progress) > REMEMBERED_STEPS:
            del self._progress[next(iter(self._progress))]
        return part

    def _check_slots(self, epoch: int, step: Step) -> None:
        """Raise ShardFailed unless this process itself filled the slots as far as the rows start.

        Otherwise keys and values are missing, and the answer would be wrong without a word.
        """
        for row in step.rows:
            filled = self._filled.get((epoch, row.slot), 0)
            if row.start > filled:
                raise ShardFailed(
                    f"{self.address} has {filled} tokens in slot {row.slot}, step {step.number} "
                    f"goes on at {row.start}: it was started meanwhile, or another worker has the "
                    "same address"
                )
        for row in step.rows:
            self._filled[(epoch, row.slot)] = row.stop

    def _compute(
        self,
        plan: Plan,
        model: ShardModel,
        exchange: Exchange,
        step: Step,
        span: Range,
        hidden: bytes | None,
    ) -> Part:
        import torch

        from skynet.worker.all_sum import AllSum

        if self._threads_changed:
            torch.set_num_threads(self._threads_changed)
            self._threads_changed = 0
        started, exchange.waited_s = time.perf_counter(), 0.0
        key = names.step_key(step.epoch, step.number)
        exchange.still_wanted = lambda: bool(self._client.exists(key))
        first = model.first_sum(span.start)
        all_sum = AllSum(exchange, step.epoch, step.number, first, settings().exchange_dtype)
        try:
            before = None
            if hidden is not None:
                array = np.frombuffer(bytearray(hidden), dtype=np.float32)
                before = torch.from_numpy(array.reshape(step.num_tokens, -1))
            partial, candidates = model.run(step, span, before, all_sum)
        except Exception as error:
            cause = (
                str(error) if isinstance(error, PeerLost) else f"{type(error).__name__}: {error}"
            )
            exchange.abort(step.epoch, step.number, all_sum.position, cause)
            if isinstance(error, PeerLost):
                raise
            raise ShardFailed(
                f"{self.address} (pid {self.member.pid} on {self.member.host}) failed at layers "
                f"[{span.start}, {span.stop}) of step {step.number}: {cause}"
            ) from error
        self.member.steps += 1
        waited = exchange.waited_s
        return Part(
            None if partial is None else partial.cpu().numpy(),
            candidates,
            time.perf_counter() - started - waited,
            waited,
        )

    def _inputs(
        self, epoch: int, number: int, start: int, rows: bytes | None, hidden: bytes | None
    ) -> tuple[Step, bytes | None]:
        """The step and the hidden states before `start`: what did not come, in one round trip."""
        step = self._steps.get((epoch, number))
        keys = []
        if step is None and rows is None:
            keys.append(names.step_key(epoch, number))
        if start > 0 and hidden is None:
            keys.append(names.hidden_key(names.chord_id(epoch, number, start)))
        if keys:
            found: list[bytes | None] = self._client.mget(keys)  # type: ignore[assignment]
            if None in found:
                raise ShardFailed(
                    f"{self.address}: {keys[found.index(None)]} is not in Redis: the step was "
                    "given up, or Redis lost its memory"
                )
            if step is None and rows is None:
                rows = found[0]
            if start > 0 and hidden is None:
                hidden = found[-1]
        if step is None:
            step = Step.decode(rows or b"")
            self._steps[(epoch, number)] = step
            if len(self._steps) > REMEMBERED_STEPS:
                del self._steps[next(iter(self._steps))]
        return step, hidden

    def advance(
        self, parts: list[bytes], epoch: int, step_number: int, layer: int, spent_s: float
    ) -> None:
        """Sum the parts of a span, in shard order, and send the chord that starts at `layer`."""
        plan, step = self.plan, self._steps.get((epoch, step_number))
        if plan is None or plan.epoch != epoch or step is None:
            logger.info("step %d of epoch %d is stale, not advanced", step_number, epoch)
            return
        decoded = [Part.decode(data) for data in parts]
        total: Any = None
        for part in decoded:
            if part.hidden is None:
                raise ShardFailed(f"step {step_number}: a part before layer {layer} is empty")
            total = part.hidden.copy() if total is None else total + part.hidden
        self.app.messenger.emit_chord(
            plan,
            step_number,
            next_span(plan, layer, step.layers_per_chord),
            rows=step.encode(),
            hidden=total.tobytes(),
            spent_s=spent_s + max(part.busy_s for part in decoded),
        )


def _same_slice(old: Plan, new: Plan, address: Address) -> bool:
    """Does the new plan ask this address for exactly what it has?"""
    same = ("model", "dtype", "num_slots", "slot_tokens")
    return (
        tuple(address) in set(old.addresses())
        and all(getattr(old, name) == getattr(new, name) for name in same)
        and len(old.stages) == len(new.stages)
        and old.stages[address.stage] == new.stages[address.stage]
    )
