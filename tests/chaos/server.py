"""A Redis with an append-only file, so that it can be restarted."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import redis

from skynet.local.server import server_binary
from tests.cluster.processes import wait_for

CONFIG = """\
port 0
unixsocket {directory}/redis.sock
unixsocketperm 700
dir {directory}
save ""
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
daemonize no
logfile {directory}/redis.log
"""
STOP_S = 20.0


class PersistentServer:
    """One server process with its files in `directory`, on a Unix socket."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "redis.sock"
        self._config = directory / "redis.conf"
        self._config.write_text(CONFIG.format(directory=directory))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pids(self) -> list[int]:
        return [self._process.pid] if self._process else []

    def start(self) -> None:
        """Start it with its data, and wait until it answers."""
        self._process = subprocess.Popen(
            [server_binary(), str(self._config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for("Redis to answer", self._answers, 30)

    def stop(self) -> None:
        """SIGTERM, so that it completes its file."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def restart(self, down_s: float) -> None:
        """Stop it for `down_s` seconds; it keeps its data."""
        self.stop()
        time.sleep(down_s)
        self.start()

    def _answers(self) -> bool:
        with redis.Redis(unix_socket_path=str(self.socket), socket_timeout=2) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:  # not listening yet, or loading its data
                return False
