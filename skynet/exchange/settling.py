"""Settles, before a plan's shards are ready, how each pair of them exchanges partials.

The shard of higher number dials, decides, and writes its decision into its member's record; the
other one follows the record. So both ends of a pair believe the same, whatever breaks meanwhile: a
link that one of them has lost is a lost peer, and the next epoch settles anew.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

from skynet.errors import LinkRefused
from skynet.exchange.exchange import Exchange
from skynet.exchange.handshake import TIMEOUT_S, dial
from skynet.exchange.link import Link
from skynet.exchange.listener import Listener, machine_id, prepare, socket_path
from skynet.redis_url import RedisURL
from skynet.settings import settings, split_address
from skynet.store.members import LinkState, Member

logger = logging.getLogger(__name__)

REDIS = "redis"
MAX_TRIES = 3  # of a peer that answers and then fails


def links_allowed() -> bool:
    return settings().exchange != REDIS


def tcp_allowed() -> bool:
    """Links are not encrypted: beside a Redis with TLS they are by wish only."""
    encrypted = RedisURL.parse(settings().redis_url).tls is not None
    return settings().exchange == "direct" or (links_allowed() and not encrypted)


class Settling:
    """The pairs of one shard in one epoch.

    listener: None: all pairs exchange through Redis.
    """

    def __init__(self, exchange: Exchange, listener: Listener | None) -> None:
        self.exchange = exchange
        self.group = exchange.group
        self.listener = listener if self.group.secret else None
        self.kinds: dict[int, str] = {}  # of the pairs that are settled
        self.links: dict[int, Link] = {}
        self._is_open = False
        self._tries: dict[int, int] = {}
        if self.listener is not None:
            self.listener.expect(self.group)

    @property
    def decided(self) -> bool:
        """Whether this shard has made all decisions that are its own."""
        return all(peer in self.kinds for peer in self.group.peers if peer < self.group.shard)

    def states(self) -> tuple[LinkState, ...]:
        """This shard's decisions, for its member's record."""
        trips = {peer: link.round_trip_s for peer, link in self.links.items()}
        return tuple(
            LinkState(
                self.group.name(peer), kind, trips.get(peer, self.exchange.redis.round_trip_s)
            )
            for peer, kind in sorted(self.kinds.items())
            if peer < self.group.shard
        )

    def trips(self, members: Mapping[str, Member]) -> dict[str, float]:
        """Round trips of the links that this shard has made, by the peer's host."""
        trips: dict[str, float] = {}
        for peer, link in self.links.items():
            member = members.get(self.group.members[peer])
            if member is not None and link.round_trip_s:
                known = trips.get(member.host, link.round_trip_s)
                trips[member.host] = min(known, link.round_trip_s)
        return trips

    def advance(self, members: Mapping[str, Member]) -> bool:
        """Settle what can be settled now; whether the exchange is open.

        members: the peers, by id.

        Raises:
            redis.RedisError: Redis is away, or refuses to subscribe.
        """
        for peer in self.group.peers:
            if peer in self.kinds:
                continue
            member = members.get(self.group.members[peer]) if self.group.members else None
            if peer < self.group.shard:
                self._decide(peer, member)
            elif member is not None and member.epoch == self.group.epoch:
                self._follow(peer, member)
        if len(self.kinds) == len(self.group.peers) and not self._is_open:
            self.exchange.open(self.links)
            self._is_open = True
        return self._is_open

    def _decide(self, peer: int, member: Member | None) -> None:
        """Dial the peer, or settle for Redis."""
        if self.listener is None:
            self.kinds[peer] = REDIS
            return
        if member is None:
            return
        reason = "it accepts none from here"
        for kind, address in _addresses(member):
            try:
                link = self._dial(peer, kind, address)
            except (OSError, LinkRefused) as error:
                reason = f"{kind}: {error}"
                continue
            if link is not None:
                self.kinds[peer], self.links[peer] = kind, link
            return
        self.kinds[peer] = REDIS
        logger.info(
            "%s exchanges with %s through Redis, without a direct link: %s",
            self.group.name(),
            self.group.name(peer),
            reason,
        )

    def _dial(self, peer: int, kind: str, address: str | tuple[str, int]) -> Link | None:
        """A link; None: not yet."""
        connection = _connect(address)
        try:
            prepare(connection, kind)
            round_trip_s = dial(connection, self.group, peer)
        except BaseException as error:
            connection.close()
            self._tries[peer] = self._tries.get(peer, 0) + 1
            if isinstance(error, OSError) and self._tries[peer] < MAX_TRIES:
                return None
            raise
        if round_trip_s is None:
            connection.close()
            return None
        return Link(connection, kind, round_trip_s)

    def _follow(self, peer: int, member: Member) -> None:
        """Take over the decision of the peer, once it has made it."""
        name = self.group.name()
        kind = next((link.kind for link in member.links if link.peer == name), None)
        if kind is None:
            return
        self.kinds[peer] = kind
        link = self.listener.take(self.group, peer) if self.listener is not None else None
        if kind != REDIS:
            self.links[peer] = link or broken_link(kind)
        elif link is not None:  # its dialer heard no welcome
            link.close()


def broken_link(kind: str) -> Link:
    """A link that has broken already: its first use is a lost peer."""
    link = Link(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), kind)
    link.close()
    return link


def _addresses(member: Member) -> list[tuple[str, str | tuple[str, int]]]:
    """Where a member accepts links from this process."""
    addresses: list[tuple[str, str | tuple[str, int]]] = []
    # A record may hold anything: the id is part of a path.
    if member.unix_socket and member.machine == machine_id() and member.id.isalnum():
        addresses.append(("unix", str(socket_path(member.id))))
    if member.tcp_address and tcp_allowed():
        try:
            addresses.append(("tcp", split_address(member.tcp_address)))
        except ValueError:
            logger.warning("member %s: no address: %.80r", member.id, member.tcp_address)
    return addresses


def _connect(address: str | tuple[str, int]) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout=TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_S)
    try:
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection
