"""The listening end of links: one for each worker process, for all its plans.

On a Unix socket in a directory of this user, and by TCP if SKYNET_EXCHANGE_LISTEN says where. Each
connection has its handshake in a thread of its own, with a deadline; few at a time.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from skynet.errors import ConfigurationError, LinkRefused
from skynet.exchange.group import Group
from skynet.exchange.handshake import accept, welcome
from skynet.exchange.link import Link
from skynet.settings import split_address

logger = logging.getLogger(__name__)

MAX_HANDSHAKES = 32
BACKLOG = 128
WAKE_S = 0.5
STARTING_S = 60.0  # a younger socket may belong to a process that does not listen yet
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def socket_directory() -> Path:
    """The directory of Unix sockets of this user's workers, made if it is missing.

    Raises:
        OSError: it cannot be made, or is not this user's alone.
    """
    path = Path(tempfile.gettempdir()) / f"skynet-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path} is not a directory that only this user can use")
    return path


def socket_path(member: str) -> Path:
    """The Unix socket of a member on this machine."""
    return socket_directory() / f"{member}.sock"


class Listener:
    """Accepts links for the group that `expect` names.

    tcp: host:port to listen on by TCP; None: not at all.
    unix: whether there is a Unix socket.
    """

    def __init__(self, member: str, tcp: str | None = None) -> None:
        self.member = member
        self.tcp = ""
        self.unix = False
        self._sockets: list[tuple[socket.socket, str]] = []
        self._lock = threading.Lock()
        self._group: Group | None = None
        self._links: dict[int, Link] = {}
        self._handshakes = threading.BoundedSemaphore(MAX_HANDSHAKES)
        self._closed = False
        self._listen_unix()
        if tcp:
            self._listen_tcp(tcp)
        for listening, kind in self._sockets:
            threading.Thread(
                target=self._run, args=(listening, kind), name=f"links-{kind}", daemon=True
            ).start()

    def expect(self, group: Group) -> None:
        """Accept the links of this group from now on, and no others."""
        with self._lock:
            if group == self._group:
                return
            for link in self._links.values():
                link.close()
            self._group, self._links = group, {}

    def take(self, group: Group, peer: int) -> Link | None:
        """The link that this peer has made, or None; it is the caller's from now on."""
        with self._lock:
            return self._links.pop(peer, None) if group == self._group else None

    def close(self) -> None:
        self._closed = True
        for listening, _ in self._sockets:
            listening.close()
        if self.unix:
            socket_path(self.member).unlink(missing_ok=True)

    def _listen_unix(self) -> None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            delete_stale_sockets(socket_directory())
            listening.bind(str(socket_path(self.member)))
        except OSError as error:
            listening.close()
            logger.warning("no direct links on this machine: %s", error)
            return
        self.unix = True
        self._serve(listening, "unix")

    def _listen_tcp(self, address: str) -> None:
        host, port = split_address(address)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            self.close()
            raise ConfigurationError(
                f"SKYNET_EXCHANGE_LISTEN={address}: {error}; name an address of this machine, and "
                "port 0 if several workers share it"
            ) from None
        self.tcp = f"{address.rpartition(':')[0]}:{listening.getsockname()[1]}"
        self._serve(listening, "tcp")

    def _serve(self, listening: socket.socket, kind: str) -> None:
        listening.listen(BACKLOG)
        listening.settimeout(WAKE_S)  # so that its thread ends after `close`
        self._sockets.append((listening, kind))

    def _run(self, listening: socket.socket, kind: str) -> None:
        while not self._closed:
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if not self._closed:
                    logger.warning("no more direct links by %s: %s", kind, error)
                return
            if not self._handshakes.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._shake_hands, args=(connection, kind), name="link", daemon=True
            ).start()

    def _shake_hands(self, connection: socket.socket, kind: str) -> None:
        kept = False
        try:
            prepare(connection, kind)
            accepted = accept(connection, self._expecting)
            if accepted is not None:
                kept = self._keep(*accepted, Link(connection, kind))
                welcome(connection)
        except (OSError, LinkRefused) as error:
            logger.warning("a direct link by %s is refused: %s", kind, error)
        finally:
            if not kept:
                connection.close()
            self._handshakes.release()

    def _expecting(
        self, epoch: int, plan_id: bytes, stage: int, dialer: int, shard: int
    ) -> Group | None:
        group = self._group
        if group is None or (epoch, plan_id) != (group.epoch, group.plan_id.encode()):
            return None
        if (stage, shard) != (group.stage, group.shard) or dialer not in group.peers:
            raise LinkRefused(f"shard {dialer} of stage {stage} asks for shard {shard}")
        return group

    def _keep(self, group: Group, peer: int, link: Link) -> bool:
        """Keep a link for `take`; False: it is too late for this plan."""
        with self._lock:
            if group != self._group:
                return False
            before = self._links.pop(peer, None)
            if before is not None:  # its dialer tried again
                before.close()
            self._links[peer] = link
            return True


def machine_id() -> str:
    """The same for two processes if they run on one machine since its last start."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"


def delete_stale_sockets(directory: Path) -> None:
    """Delete the sockets of processes that were killed."""
    for path in directory.glob("*.sock"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if time.time() - path.stat().st_mtime < STARTING_S:
                continue
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def prepare(connection: socket.socket, kind: str) -> None:
    """Set the socket options of a link."""
    if kind == "tcp":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
