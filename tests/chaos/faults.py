"""The faults. Each restores what it changed before it returns."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import redis

from skynet.wire import keys
from tests.chaos.cluster import ChaosCluster
from tests.chaos.slot import Slot
from tests.cluster.proxy import Direction, Proxy

T = TypeVar("T")
PATIENCE_S = 60.0


@dataclass
class Attack:
    """The cluster, this fault's random choices, and notes on them for the report."""

    cluster: ChaosCluster
    chance: random.Random
    end: threading.Event
    notes: list[str] = field(default_factory=list)

    def last(self, min_s: float, max_s: float) -> None:
        """Let the fault last for a random time; shorter if the run ends."""
        self.end.wait(self.chance.uniform(min_s, max_s))

    def choose(self, slots: list[Slot]) -> Slot:
        return self.chance.choice(slots)

    def patiently(self, work: Callable[[redis.Redis], T]) -> T:
        """The result of `work`, tried again while another fault keeps Redis from answering."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with self.cluster.connect() as client:
                    return work(client)
            except (redis.ConnectionError, redis.TimeoutError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


# -- processes -------------------------------------------------------------------------------------


def kill_shard(attack: Attack) -> None:
    """SIGKILL one shard worker."""
    _kill(attack, [attack.choose(attack.cluster.shard_slots)])


def kill_many(attack: Attack) -> None:
    """SIGKILL several shard workers at once."""
    slots = attack.cluster.shard_slots
    _kill(
        attack, attack.chance.sample(slots, attack.chance.randint(min(2, len(slots)), len(slots)))
    )


def kill_orchestrator(attack: Attack) -> None:
    """SIGKILL one orchestrator, possibly the leader."""
    _kill(attack, [attack.choose(attack.cluster.orchestrator_slots)])


def kill_orchestrators(attack: Attack) -> None:
    """SIGKILL all orchestrators."""
    _kill(attack, attack.cluster.orchestrator_slots)


def kill_gateway(attack: Attack) -> None:
    """SIGKILL one gateway; it is started again at the same port."""
    _kill(attack, [attack.choose(attack.cluster.gateway_slots)])


def kill_all(attack: Attack) -> None:
    """SIGKILL every worker, orchestrator and gateway."""
    _kill(attack, list(attack.cluster.slots))


def pause(attack: Attack) -> None:
    """SIGSTOP one process for 1 to 10 s."""
    slot = attack.choose(list(attack.cluster.slots))
    attack.notes.append(slot.name)
    attack.cluster.pause(slot)
    attack.last(1, 10)
    attack.cluster.resume(slot)


def leave(attack: Attack) -> None:
    """SIGTERM one process: it hands over its place and ends with code 0."""
    slot = attack.choose(list(attack.cluster.slots))
    attack.notes.append(slot.name)
    attack.cluster.ask_to_leave(slot)


def join(attack: Attack) -> None:
    """Start one more worker, and SIGTERM it after some seconds."""
    slot = attack.cluster.add_slot(f"extra-{attack.chance.randrange(10**6)}", "")
    attack.notes.append(slot.name)
    attack.last(5, 12)
    attack.cluster.ask_to_leave(slot, wanted=False)


def _kill(attack: Attack, slots: list[Slot]) -> None:
    attack.notes += [slot.name for slot in slots]
    for slot in slots:
        attack.cluster.kill(slot)


# -- Redis and the way to it -----------------------------------------------------------------------


def restart_redis(attack: Attack) -> None:
    """Restart Redis with the same append-only file."""
    down_s = attack.chance.uniform(0, 2)
    attack.notes.append(f"down for {down_s:.1f} s")
    attack.cluster.restart_redis(down_s)


def kill_master(attack: Attack) -> None:
    """SIGKILL the master: the Sentinels fail over to its replica; it returns as a replica."""
    attack.cluster.kill_master()


def cut_clients(attack: Attack) -> None:
    """Redis closes every connection but the harness's."""

    def cut(client: redis.Redis) -> int:
        kinds = ("normal", "pubsub")
        return sum(client.client_kill_filter(_type=kind, skipme=True) for kind in kinds)

    attack.notes.append(f"{attack.patiently(cut)} connections")


def cut_proxied(attack: Attack) -> None:
    """The proxy resets every connection of half of the processes."""
    attack.notes.append(f"{attack.cluster.proxy.cut()} connections")


def cut_in_message(attack: Attack) -> None:
    """The proxy resets some connections in the middle of a message, in either direction."""
    proxy = attack.cluster.proxy
    before = proxy.num_cut_in_message
    for _ in range(attack.chance.randint(1, 5)):
        proxy.cut_in_message(attack.chance.choice(list(Direction)))
        attack.last(0.1, 0.6)
    attack.notes.append(f"{proxy.num_cut_in_message - before} messages")


def delay(attack: Attack) -> None:
    """The proxy delays half of the processes for some seconds."""
    seconds = attack.chance.uniform(0.001, 0.05)
    attack.notes.append(f"{seconds * 1000:.0f} ms")
    attack.cluster.proxy.delay(seconds)
    attack.last(2, 5)
    attack.cluster.proxy.delay(0)


def partition(attack: Attack) -> None:
    """The proxy holds one direction or both of half of the processes for some seconds."""
    directions = attack.chance.choice(([], [Direction.UP], [Direction.DOWN]))
    attack.notes += [direction.value for direction in directions] or ["both ways"]
    attack.cluster.proxy.hold(*directions)
    attack.last(1, 8)
    attack.cluster.proxy.release()


# -- direct links ----------------------------------------------------------------------------------


def cut_links(attack: Attack) -> None:
    """Close the links of a worker."""
    for relay in _link_relay(attack):
        attack.notes.append(f"{relay.cut()} links")


def cut_link_in_message(attack: Attack) -> None:
    """Close a link of a worker in the middle of a message."""
    for relay in _link_relay(attack):
        relay.cut_in_message(attack.chance.choice(list(Direction)))


def delay_links(attack: Attack) -> None:
    """Delay what arrives by the links of a worker for some seconds."""
    for relay in _link_relay(attack):
        seconds = attack.chance.uniform(0.001, 0.05)
        attack.notes.append(f"{seconds * 1000:.0f} ms")
        relay.delay(seconds)
        attack.last(2, 5)
        relay.delay(0)


def half_open_links(attack: Attack) -> None:
    """Nothing arrives by the links of a worker for some seconds, and none closes."""
    for relay in _link_relay(attack):
        directions = attack.chance.choice(([], [Direction.UP], [Direction.DOWN]))
        attack.notes += [direction.value for direction in directions] or ["both ways"]
        relay.hold(*directions)
        attack.last(1, 8)
        relay.release()


def _link_relay(attack: Attack) -> list[Proxy]:
    """The relay of one worker that has links; none while no worker has."""
    relays = attack.cluster.link_relays.in_use()
    attack.notes.append(f"of {len(relays)} workers with links")
    return [attack.chance.choice(relays)] if relays else []


# -- messages and weights --------------------------------------------------------------------------


def mix_messages(attack: Attack) -> None:
    """For some seconds, take messages from the queues and put them back twice or swapped."""
    twice = swapped = 0
    queues = _queues(attack)
    with attack.cluster.connect() as client:
        until = time.monotonic() + attack.chance.uniform(2, 4)
        try:
            while time.monotonic() < until and not attack.end.is_set():
                taken = _take(client, queues, 0.2)
                if taken is None:
                    continue
                if attack.chance.random() < 0.5:
                    client.lpush(taken[0], taken[1], taken[1])
                    twice += 1
                    continue
                second = _take(client, [taken[0].decode()], 0.05)
                client.lpush(taken[0], *([second[1]] if second else []), taken[1])
                swapped += second is not None
        except (redis.ConnectionError, redis.TimeoutError):
            attack.notes.append("cut off, a message may be lost")
    attack.notes.append(f"{twice} twice, {swapped} swapped")


def lose_messages(attack: Attack) -> None:
    """Drop some messages from the queues: delivery is at most once."""
    queues = _queues(attack)
    wanted = attack.chance.randint(1, 3)
    lost = 0

    def take(client: redis.Redis) -> bool:
        return _take(client, queues, 0.5) is not None

    until = time.monotonic() + 4
    while lost < wanted and time.monotonic() < until and not attack.end.is_set():
        lost += attack.patiently(take)
    attack.notes.append(f"{lost} lost")


def _queues(attack: Attack) -> list[str]:
    stages, shards = attack.cluster.shape
    addresses = [str(keys.Address(i, j)) for i in range(stages) for j in range(shards)]
    return [keys.queue_key(queue) for queue in (*addresses, keys.ORCHESTRATOR_QUEUE)]


def _take(client: redis.Redis, queues: list[str], seconds: float) -> tuple[bytes, bytes] | None:
    return cast("tuple[bytes, bytes] | None", client.brpop(queues, timeout=cast(int, seconds)))


def corrupt_tile(attack: Attack) -> None:
    """Corrupt a staged tile, kill a worker so that a load meets it, and restore the tile."""
    redis_keys = attack.patiently(
        lambda client: sorted(client.scan_iter(keys.key("model:*:tile:*")))
    )
    key = attack.chance.choice(redis_keys)
    right = attack.patiently(lambda client: cast(bytes, client.get(key)))
    wrong = bytearray(right)
    for _ in range(8):
        wrong[attack.chance.randrange(len(wrong) // 2, len(wrong))] ^= 0xFF
    attack.patiently(lambda client: client.set(key, bytes(wrong)))
    slot = attack.choose(attack.cluster.shard_slots)
    attack.cluster.kill(slot)
    attack.notes += [key.decode().partition(":tile:")[2], f"killed {slot.name}"]
    attack.last(2, 6)
    attack.patiently(lambda client: client.set(key, right))


PROXY_FAULTS = {"cut_proxied", "cut_in_message", "delay", "partition"}
SENTINEL_FAULTS = {"kill_master"}
GATEWAY_FAULTS = {"kill_gateway"}
LINK_FAULTS = {"cut_links", "cut_link_in_message", "delay_links", "half_open_links"}
Fault = Callable[[Attack], None]
FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in cast(
        Any,
        (
            kill_shard,
            kill_many,
            kill_orchestrator,
            kill_orchestrators,
            kill_gateway,
            kill_all,
            pause,
            leave,
            join,
            restart_redis,
            kill_master,
            cut_clients,
            cut_proxied,
            cut_in_message,
            delay,
            partition,
            cut_links,
            cut_link_in_message,
            delay_links,
            half_open_links,
            mix_messages,
            lose_messages,
            corrupt_tile,
        ),
    )
}
