"""A `redis-server` of the system with TLS and access lists; its certificates are made here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from flower_api import free_port

CONFIG = """\
bind 127.0.0.1
port 0
tls-port {port}
tls-cert-file {directory}/server.crt
tls-key-file {directory}/server.key
tls-ca-cert-file {directory}/ca.crt
tls-auth-clients no
unixsocket {directory}/redis.sock
unixsocketperm 700
dir {directory}
save ""
logfile {directory}/redis.log
"""


@dataclass(frozen=True)
class TlsServer:
    """A running server.

    admin: a connection that may do everything, over its Unix socket.
    """

    port: int
    directory: Path
    admin: redis.Redis

    def url(self, user: str, password: str) -> str:
        """The URL of a user, over TLS."""
        authority = self.directory / "ca.crt"
        return f"rediss://{user}:{password}@localhost:{self.port}/0?ssl_ca_certs={authority}"

    def set_user(self, line: str) -> None:
        """Run a line `ACL SETUSER ...`."""
        self.admin.execute_command(*line.split())


def why_not() -> str:
    """Why there can be no such server here; "" if there can."""
    path = shutil.which("redis-server")
    if path is None or shutil.which("openssl") is None:
        return "redis-server and openssl are not on PATH: `make redis-server` installs them"
    shown = subprocess.run([path, "--tls-port", "x"], capture_output=True, text=True, check=False)
    # A server without TLS does not know the option; one with TLS refuses its value.
    return "redis-server is built without TLS" if "Bad directive" in shown.stderr else ""


@contextmanager
def tls_server() -> Iterator[TlsServer]:
    """Start one; stop it and remove its files at the end."""
    directory = Path(tempfile.mkdtemp(prefix="skynet-tls-"))
    _make_certificates(directory)
    port = free_port()
    (directory / "redis.conf").write_text(CONFIG.format(port=port, directory=directory))
    process = subprocess.Popen(["redis-server", str(directory / "redis.conf")])
    admin = redis.Redis(unix_socket_path=str(directory / "redis.sock"), decode_responses=True)
    try:
        deadline = time.monotonic() + 20
        while not _answers(admin):
            if time.monotonic() > deadline or process.poll() is not None:
                raise AssertionError((directory / "redis.log").read_text())
            time.sleep(0.02)
        yield TlsServer(port, directory, admin)
    finally:
        admin.close()
        process.terminate()
        process.wait(timeout=20)
        shutil.rmtree(directory)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def _make_certificates(directory: Path) -> None:
    """An authority, and a certificate of `localhost` that it signed."""
    new_key = "req -newkey rsa:2048 -nodes -days 2"
    for arguments in (
        f"{new_key} -x509 -subj /CN=authority -keyout ca.key -out ca.crt",
        f"{new_key} -x509 -subj /CN=localhost -addext subjectAltName=DNS:localhost "
        "-addext basicConstraints=CA:FALSE -CA ca.crt -CAkey ca.key "
        "-keyout server.key -out server.crt",
    ):
        subprocess.run(
            ["openssl", *arguments.split()], cwd=directory, check=True, capture_output=True
        )
