"""Follows the plans: takes this worker's place in each and loads the slice of the place.

Runs in a separate thread, so that a worker can load the next slice while it computes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis

from skynet.errors import ClusterUnreachable, TileCorrupted, TileMissing, WireError
from skynet.exchange.exchange import Exchange
from skynet.exchange.group import Group
from skynet.exchange.listener import Listener
from skynet.exchange.settling import Settling
from skynet.planning.plan import Plan, protocol_of
from skynet.redis_url import hide_password
from skynet.settings import settings
from skynet.store.access import CommandRefused
from skynet.store.connection import connect, reason
from skynet.store.lease import Lease
from skynet.store.members import FAILED, LOADING, READY, SPARE, Member, Members
from skynet.store.plans import Plans, plan_of
from skynet.wire import keys
from skynet.wire.keys import Address
from skynet.wire.protocol import PROTOCOL
from skynet.worker.memory import free_memory
from skynet.worker.slice_loader import SliceLoader, collect_garbage
from skynet.worker.step_guard import StepGuard

if TYPE_CHECKING:
    from skynet.layers.shard_model import ShardModel

logger = logging.getLogger(__name__)

FOLLOW_S = 0.1
SETTLE_S = 0.02  # while the exchange is not open
RETRY_S = 1.0  # after a slice could not be loaded
MAX_TRIPS = 256  # to so many hosts are kept
MARGIN_BYTES = 256 * 2**20  # stays free while two slices are in memory


@dataclass(eq=False)
class Place:
    """A worker's place in a plan, with the model and the connections of that place."""

    plan: Plan
    address: Address
    model: ShardModel
    exchange: Exchange
    guard: StepGuard


class PlanFollower:
    """Keeps one worker at its place in the plan in force.

    consumes: whether Celery consumes the queue of a place, and no other. Called until it is true;
        then the worker is ready.
    listener: accepts links of peers; None: this worker exchanges through Redis.
    """

    def __init__(
        self,
        lease: Lease,
        consumes: Callable[[Place | None], bool],
        listener: Listener | None = None,
    ) -> None:
        self.lease = lease
        self.member = lease.member
        self.consumes = consumes
        self.listener = listener
        self.place: Place | None = None
        self.epoch = 0  # of the last plan taken
        self.threads_changed = 0
        self.client = connect(timeout_s=30)
        self.loader = SliceLoader(self.client, lease)
        self._taken: bytes | None = None  # JSON of the plan taken last
        self._seen: tuple[bytes | None, bytes | None] = (None, None)  # JSON of the plans seen last
        self._prepared: tuple[Plan, Address, ShardModel] | None = None
        self._settling: Settling | None = None  # until the exchange of the place is open
        self._counted = 0.0  # time when the host's workers were last counted
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plan-follower", daemon=True)

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
                if self._settling is not None:
                    pause_s = SETTLE_S
                    self._settle(self._settling)
                self._report_ready()
            except redis.RedisError as error:
                logger.debug("Redis: %s", error)  # the lease's thread logs a warning
            except Exception as error:  # `skynet status` shows it; this thread must not end
                self._report_problem(error)
                pause_s = RETRY_S
            self._stopping.wait(pause_s)

    def _warm_up(self) -> None:
        import torch  # takes seconds: here, while Celery starts in its thread

        from skynet.worker.speed import measure_speeds

        torch.set_grad_enabled(False)
        speeds = measure_speeds(self.member.device)
        self.lease.update(
            speed=speeds.one_row,
            few_rows_speed=speeds.few_rows,
            many_rows_speed=speeds.many_rows,
            state=SPARE,
            problem="",
        )

    def _follow(self, plans: Plans) -> None:
        current = plans.texts()
        if current == self._seen:
            return
        try:
            plan, following = (plan_of(text) for text in current)
        except WireError as error:
            logger.error("%s: this worker stays where it is", error)
            self._seen = current
            return
        if plan is None:
            self._taken = None  # Redis restarted without its data: any plan is new
            if current[0] is not None:
                self._stand_by(protocol_of(current[0]))
        elif current[0] != self._taken:
            self._take(plan)
            self._taken = current[0]
        if self._prepared is not None and (
            following is None or following.epoch != self._prepared[0].epoch
        ):
            self._prepared = None
            collect_garbage()
        if following is not None and following.epoch != self.member.prepared:
            self._prepare(following)
        self._seen = current

    # -- the plan in force ---------------------------------------------------------------------

    def _take(self, plan: Plan) -> None:
        """Load the slice of this worker's place; it is ready once its queue is consumed too."""
        placed = plan.placed().get(self.member.id)
        prepared, self._prepared = self._prepared, None
        if placed is None:
            self._step_down(plan)
            return
        address, started = Address(*placed), time.monotonic()
        self._settling = None
        self.lease.update(
            state=LOADING, epoch=plan.epoch, address=str(address), problem="", links=()
        )
        old, self.place = self.place, None
        if old is not None and plan.same_slice(address, old.plan, old.address):
            model = old.model
        elif prepared is not None and prepared[0].epoch == plan.epoch:
            model = prepared[2]
        else:
            prepared = None
            model = self.loader.load(plan, address, old.model if old else None, consume=True)
        exchange = Exchange(Group.of(plan, address), exchange_url(address.stage))
        first_layer = plan.stages[address.stage].layers.start
        guard = StepGuard(str(address), first_layer, plan.encoder_layers)
        self._settling = Settling(exchange, self.listener)
        self.place = Place(plan, address, model, exchange, guard)
        self.epoch = plan.epoch
        if old is None or model is not old.model:
            old = prepared = None
            collect_garbage()
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
        self.epoch = plan.epoch
        if self._give_up_place(epoch=plan.epoch, problem=""):
            logger.info("plan %d has no place for this worker: it is a spare", plan.epoch)

    def _stand_by(self, protocol: int) -> None:
        """Follow no plan until there is one of this worker's protocol."""
        problem = (
            f"the plan in force is of protocol {protocol}, this worker speaks {PROTOCOL}: it "
            "waits; stop it, or start an orchestrator of its version"
        )
        if problem != self.member.problem:
            logger.warning("%s", problem)
        self._give_up_place(problem=problem)

    def _give_up_place(self, **fields: Any) -> bool:
        """Become a spare; whether there was a place."""
        had_place, self.place = self.place is not None, None
        self._settling = None
        self.lease.update(
            state=SPARE, address="", weight_bytes=0, loaded_bytes=0, links=(), **fields
        )
        if had_place:
            collect_garbage()
        return had_place

    def _settle(self, settling: Settling) -> None:
        """Open the exchange once all pairs of this shard are settled."""
        members = Members(self.client, settings().lease_s).of(settling.group.members)
        try:
            is_open = settling.advance(members)
        except redis.RedisError as error:
            if not settings().exchange_urls and not isinstance(error, CommandRefused):
                raise  # the Redis of everything else is away too
            url = hide_password(exchange_url(settling.group.stage))
            raise ClusterUnreachable(f"the exchange's Redis at {url}: {reason(error)}") from error
        links = settling.states()
        if settling.decided and links != self.member.links:
            trips = least_trips(self.member, settling.trips(members))
            self.lease.update(links=links, trips=trips)
        if is_open:
            self._settling = None

    def _report_ready(self) -> None:
        place = self.place
        if (
            self.consumes(place)
            and place is not None
            and self._settling is None
            and self.member.state == LOADING
        ):
            self.lease.update(state=READY)

    # -- the plan to come ----------------------------------------------------------------------

    def _prepare(self, plan: Plan) -> None:
        """Load the slice for `plan` beside the one in use, if it differs and memory allows."""
        placed, place = plan.placed().get(self.member.id), self.place
        if placed is not None and not (
            place is not None and plan.same_slice(placed, place.plan, place.address)
        ):
            address = Address(*placed)
            needed = self.loader.slice_bytes(plan, address)
            if place is None or needed + MARGIN_BYTES < free_memory():
                model = self.loader.load(
                    plan, address, place.model if place else None, consume=False
                )
                self._prepared = (plan, address, model)
            else:
                logger.info(
                    "plan %d: loading only when it is in force: too little memory", plan.epoch
                )
        self.lease.update(prepared=plan.epoch)

    def _report_problem(self, error: Exception) -> None:
        from skynet.store.bad_tiles import report_bad_tile

        problem = f"{type(error).__name__}: {error}"
        if problem != self.member.problem:
            logger.exception("could not take the place in the plan; retrying")
        self._prepared = None
        self.lease.update(state=self.member.state if self.place else FAILED, problem=problem)
        if isinstance(error, (TileMissing, TileCorrupted)):
            report_bad_tile(self.client, error)

    def _share_cores(self) -> None:
        """Set the compute threads: SKYNET_THREADS, or a share of the host's cores."""
        if time.monotonic() - self._counted < 1:
            return
        self._counted = time.monotonic()
        member, threads = self.member, settings().threads
        others = Members(self.client, settings().lease_s).all()
        busy = {m.id for m in others if m.host == member.host and m.address}
        busy -= {m.id for m in others if m.address == keys.ORCHESTRATOR_QUEUE}
        num_busy = len(busy | {member.id})
        if threads is None:
            threads = max(1, (os.cpu_count() or 1) // num_busy)
        if threads != member.threads:
            self.lease.update(quietly=True, threads=threads)
            self.threads_changed = threads
        if self.place is not None:  # a core that others compute on is not to be polled on
            self.place.exchange.spins = threads * num_busy <= (os.cpu_count() or 1)


def least_trips(member: Member, measured: dict[str, float]) -> dict[str, float]:
    """The member's round trips to other hosts, and these: the least of each, as noise only adds."""
    known = dict(member.trips)
    for host, trip_s in measured.items():
        if host != member.host:
            known[host] = min(trip_s, known.pop(host, trip_s))  # the latest host is the last
    return dict(list(known.items())[-MAX_TRIPS:])


def exchange_url(stage: int) -> str:
    """The Redis through which the shards of a stage exchange."""
    urls = settings().exchange_urls or (settings().redis_url,)
    return urls[stage % len(urls)]
