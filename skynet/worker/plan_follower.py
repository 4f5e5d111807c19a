"""Follows the plans: takes this worker's place in each, and loads what the place needs.

A thread of its own, so that a worker can load the next slice while it computes with this one.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis

from skynet.errors import TileCorrupted, TileMissing
from skynet.planning.plan import Plan
from skynet.settings import settings
from skynet.store.connection import connect
from skynet.store.exchange import Exchange
from skynet.store.lease import Lease
from skynet.store.members import FAILED, LOADING, READY, SPARE, Members
from skynet.store.plans import Plans
from skynet.wire import keys
from skynet.wire.keys import Address
from skynet.worker.memory import free_memory
from skynet.worker.step_guard import StepGuard

if TYPE_CHECKING:
    from skynet.layers.shard_model import ShardModel

logger = logging.getLogger(__name__)

FOLLOW_S = 0.1
AGAIN_S = 1.0  # after a slice could not be loaded
MARGIN_BYTES = 256 * 2**20  # left free where two slices are held for a moment


@dataclass(eq=False)
class Place:
    """What a worker computes with, from one plan to the next."""

    plan: Plan
    address: Address
    model: ShardModel
    exchange: Exchange
    guard: StepGuard


class PlanFollower:
    """One worker's place.

    consumes: may messages come, and only this worker's? Asked until it is true; then the worker
        is ready.
    """

    def __init__(self, lease: Lease, consumes: Callable[[Place | None], bool]) -> None:
        self.lease = lease
        self.member = lease.member
        self.consumes = consumes
        self.place: Place | None = None
        self.epoch = 0  # of the last plan taken
        self.threads_changed = 0
        self.client = connect(timeout_s=30)
        self._taken: bytes | None = None  # the plan taken last, as text
        self._texts: tuple[bytes | None, bytes | None] = (None, None)
        self._prepared: tuple[Plan, Address, ShardModel] | None = None
        self._counted = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        plans = Plans(self.client)
        while not self._stopping.is_set():
            pause_s = FOLLOW_S
            try:
                if not self.member.speed:
                    self._warm_up()
                self._share_cores()
                self._follow(plans)
                self._report_ready()
            except redis.RedisError as error:
                logger.debug("Redis: %s", error)  # the lease's thread says so aloud
            except Exception as error:  # whatever it is, status shows it, and the keeper lives on
                self._could_not(error)
                pause_s = AGAIN_S
            self._stopping.wait(pause_s)

    def _warm_up(self) -> None:
        import torch  # seconds: here, while Celery starts beside it

        from skynet.worker.speed import measure_speed

        torch.set_grad_enabled(False)
        speed = measure_speed(self.member.device)
        self.lease.update(speed=speed, state=SPARE, problem="")

    def _follow(self, plans: Plans) -> None:
        texts = plans.texts()
        if texts == self._texts:
            return
        plan, following = (Plan.from_json(text) if text else None for text in texts)
        if plan is None:
            self._taken = None  # Redis has started again without its data: any plan is new
        elif texts[0] != self._taken:
            self._take(plan)
            self._taken = texts[0]
        if self._prepared is not None and (
            following is None or following.epoch != self._prepared[0].epoch
        ):
            self._prepared = None
            self._tidy()
        if following is not None and following.epoch != self.member.prepared:
            self._prepare(following)
        self._texts = texts

    # -- the plan in force ---------------------------------------------------------------------

    def _take(self, plan: Plan) -> None:
        """Have what the plan asks of this worker; ready when its queue is consumed too."""
        placed = plan.placed().get(self.member.id)
        prepared, self._prepared = self._prepared, None
        if placed is None:
            self._step_down(plan)
            return
        address, started = Address(*placed), time.monotonic()
        self.lease.update(state=LOADING, epoch=plan.epoch, address=str(address), problem="")
        old, self.place = self.place, None
        if old is not None and plan.same_slice(address, old.plan, old.address):
            model = old.model
        elif prepared is not None and prepared[0].epoch == plan.epoch:
            model = prepared[2]
        else:
            prepared = None
            model = self._load(plan, address, old.model if old else None, consume=True)
        shards = len(plan.stages[address.stage].shards)
        urls = settings().exchange_urls or (settings().redis_url,)
        exchange = Exchange(urls[address.stage % len(urls)], address.stage, address.shard, shards)
        first_layer = plan.stages[address.stage].layers.start
        guard = StepGuard(str(address), first_layer, plan.encoder_layers)
        self.place = Place(plan, address, model, exchange, guard)
        self.epoch = plan.epoch
        if old is None or model is not old.model:
            old = prepared = None
            self._tidy()
        self.lease.update(quietly=True, weight_bytes=model.weight_bytes)
        logger.info(
            "plan %d: %s of %s, %.1f MB, after %.2f s",
            plan.epoch,
            address,
            plan.name,
            model.weight_bytes / 1e6,
            time.monotonic() - started,
        )

    def _step_down(self, plan: Plan) -> None:
        had = self.place
        self.place, self.epoch = None, plan.epoch
        self.lease.update(
            state=SPARE, epoch=plan.epoch, address="", weight_bytes=0, loaded_bytes=0, problem=""
        )
        if had is not None:
            logger.info("plan %d has no place for this worker: it is a spare", plan.epoch)
            had = None
            self._tidy()

    def _report_ready(self) -> None:
        place = self.place
        if self.consumes(place) and place is not None and self.member.state == LOADING:
            self.lease.update(state=READY)

    # -- the plan to come ----------------------------------------------------------------------

    def _prepare(self, plan: Plan) -> None:
        """Load beside the slice in use, if the plan needs another and memory allows."""
        placed, place = plan.placed().get(self.member.id), self.place
        if placed is not None and not (
            place is not None and plan.same_slice(placed, place.plan, place.address)
        ):
            address = Address(*placed)
            needed = self._slice_bytes(plan, address)
            if place is None or needed + MARGIN_BYTES < free_memory():
                model = self._load(plan, address, place.model if place else None, consume=False)
                self._prepared = (plan, address, model)
            else:
                logger.info("plan %d: loading when it is in force, for want of memory", plan.epoch)
        self.lease.update(prepared=plan.epoch)

    # -- loading -------------------------------------------------------------------------------

    def _slice_bytes(self, plan: Plan, address: Address) -> int:
        from skynet.worker.slice import slice_bytes

        return slice_bytes(self.client, plan, address)

    def _load(
        self, plan: Plan, address: Address, kept: ShardModel | None, *, consume: bool
    ) -> ShardModel:
        """The slice of `address`; what `kept` has of it is not fetched again.

        consume: take `kept` apart on the way, so that there are never two slices.
        """
        import torch

        from skynet.layers.shard_model import PreviousSlice
        from skynet.worker.slice import load_slice

        member, started = self.member, time.monotonic()
        torch.set_num_threads(max(1, member.threads))  # of this thread; the other has its own
        needed = self._slice_bytes(plan, address)
        self.lease.update(quietly=True, weight_bytes=needed, loaded_bytes=0)

        def progress(num_bytes: int) -> None:
            self.lease.update(quietly=True, loaded_bytes=member.loaded_bytes + num_bytes)

        previous = None if kept is None else PreviousSlice(kept, consume)
        model, fetched = load_slice(
            self.client, plan, address, settings().device, progress, previous
        )
        seconds = round(time.monotonic() - started, 3)
        had = max(0, model.weight_bytes - fetched)
        self.lease.update(quietly=True, load_s=seconds, kept_bytes=had)
        logger.info(
            "plan %d: fetched %.1f MB for %s in %.2f s, %.1f MB were there",
            plan.epoch,
            fetched / 1e6,
            address,
            seconds,
            had / 1e6,
        )
        return model

    def _could_not(self, error: Exception) -> None:
        from skynet.store.bad_tiles import report_bad_tile

        problem = f"{type(error).__name__}: {error}"
        if problem != self.member.problem:
            logger.exception("could not take the plan's place, trying again")
        self._prepared = None
        self.lease.update(state=self.member.state if self.place else FAILED, problem=problem)
        if isinstance(error, (TileMissing, TileCorrupted)):
            report_bad_tile(self.client, error)

    def _tidy(self) -> None:
        """Free what is not used any more; what stays needs no collector to look at it again."""
        from skynet.worker.slice import return_free_memory

        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return_free_memory()

    def _share_cores(self) -> None:
        """Compute threads: those asked for, or this worker's share of the host's cores."""
        if time.monotonic() - self._counted < 1:
            return
        self._counted = time.monotonic()
        member, threads = self.member, settings().threads
        if threads is None:
            others = Members(self.client, settings().lease_s).all()
            busy = {m.id for m in others if m.host == member.host and m.address}
            busy -= {m.id for m in others if m.address == keys.ORCHESTRATOR_QUEUE}
            threads = max(1, (os.cpu_count() or 1) // len(busy | {member.id}))
        if threads != member.threads:
            self.lease.update(quietly=True, threads=threads)
            self.threads_changed = threads
