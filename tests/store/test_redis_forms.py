"""Every form of a Redis URL leads each of our clients into the same database of a real server."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from redis_servers import (
    ConfiguredServer,
    answers_at,
    free_port,
    make_certificates,
    tls_binary,
)
from sentinels import SentinelServers

from skynet.chords.app import SkynetCelery
from skynet.errors import ClusterUnreachable, ConfigurationError
from skynet.settings import settings
from skynet.store.async_connection import close_async, connect_async
from skynet.store.connection import connect, ping
from skynet.store.resp import RespConnection, command
from skynet.wire import keys

PASSWORD = "a@b:c/d#e%f?g h"
ENCODED = "a%40b%3Ac%2Fd%23e%25f%3Fg%20h"


@dataclass
class Place:
    """Where one server, without a password for its default user, listens."""

    directory: Path
    port: int
    tls_port: int = 0

    @property
    def socket(self) -> str:
        return str(self.directory / "r.sock")

    def client(self, db: int) -> redis.Redis:
        """Redis-py itself, not through SkyNet."""
        return redis.Redis(unix_socket_path=self.socket, db=db)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A server on IPv4, IPv6 and a socket, with a user whose password has special characters.

    With TLS, if the system has a server that can.
    """
    directory = Path(tempfile.mkdtemp(prefix="skynet-test-"))
    place = Place(directory, free_port())
    config = [
        "bind 127.0.0.1 -::1",
        f"port {place.port}",
        f"unixsocket {place.socket}",
        'save ""',
        f'user named on ">{PASSWORD}" ~* &* +@all',
    ]
    binary = tls_binary() if shutil.which("openssl") else ""
    if binary:
        place.tls_port = free_port()
        make_certificates(directory)
        config += [
            f"tls-port {place.tls_port}",
            f"tls-cert-file {directory}/server.pem",
            f"tls-key-file {directory}/server.key",
            f"tls-ca-cert-file {directory}/ca.pem",
            "tls-auth-clients optional",
        ]
    server = ConfiguredServer(directory, config, answers_at(place.port), binary=binary)
    server.start()
    yield place
    server.stop()
    shutil.rmtree(directory)


FORMS = [
    ("redis://127.0.0.1:{port}", 0),
    ("redis://localhost:{port}/", 0),
    ("redis://127.0.0.1:{port}/3", 3),
    ("redis://127.0.0.1:{port}?db=4", 4),
    ("redis://127.0.0.1:{port}/3?db=5", 5),
    ("redis://[::1]:{port}/1", 1),
    (f"redis://named:{ENCODED}@127.0.0.1:{{port}}/2", 2),
    (f"redis://127.0.0.1:{{port}}/2?username=named&password={ENCODED}", 2),
    ("unix://{socket}", 0),
    ("unix://{socket}?db=2", 2),
    (f"unix://named:{ENCODED}@{{socket}}?db=6", 6),
    (f"unix://{{socket}}?db=7&username=named&password={ENCODED}", 7),
    ("rediss://localhost:{tls_port}/2?ssl_ca_certs={directory}/ca.pem", 2),
    (f"rediss://named:{ENCODED}@127.0.0.1:{{tls_port}}?ssl_ca_certs={{directory}}/ca.pem", 0),
    ("rediss://localhost:{tls_port}/1?ssl_cert_reqs=none", 1),
    (
        "rediss://localhost:{tls_port}?db=3&ssl_ca_certs={directory}/ca.pem"
        "&ssl_certfile={directory}/server.pem&ssl_keyfile={directory}/server.key",
        3,
    ),
]


def url_of(form: str, place: Place) -> str:
    if "{tls_port}" in form and not place.tls_port:
        pytest.skip("no openssl, or no system Redis with TLS")
    names = {name: getattr(place, name) for name in ("port", "tls_port", "socket", "directory")}
    return form.format(**names)


async def write_in_an_event_loop(url: str) -> None:
    client = connect_async(url)
    await client.set("asyncio", 1)
    await close_async(client)


@pytest.mark.parametrize(("form", "db"), FORMS)
def test_a_form_of_url_means_one_database_to_all_clients(form: str, db: int, place: Place) -> None:
    # Given
    url = url_of(form, place)
    place.client(0).flushall()
    app = SkynetCelery("forms")
    app.use(url)
    hot = RespConnection(url, 5)
    # When each client writes
    with connect(url) as client:
        client.set("redis-py", 1)
    hot.call([command(b"SET", b"resp", b"1")])
    app.send_task("skynet.cancel", ("an id",), queue="orchestrator")
    app.backend.client.set("celery-result", 1)
    asyncio.run(write_in_an_event_loop(url))
    # Then all is in one database
    with place.client(db) as client:
        written = {
            *(b"redis-py", b"asyncio", b"resp"),
            *(b"skynet:orchestrator", b"celery-result"),
        }
        assert written <= set(client.keys())  # type: ignore[arg-type]
        assert list(client.info("keyspace")) == [f"db{db}"]
    hot.close()
    app.close()


def test_sentinels_with_passwords_lead_all_clients_to_each_new_master() -> None:
    # Given
    directory = Path(tempfile.mkdtemp(prefix="skynet-test-"))
    servers = SentinelServers(directory, "secret")
    try:
        servers.start()
        url = servers.url.replace("/main?", "/main/2?")
        app = SkynetCelery("sentinels")
        app.use(url)
        hot, lease = RespConnection(url, 5), connect(url, single_connection=True)

        def write(name: bytes) -> None:
            hot.call_again([command(b"SET", b"resp-" + name, b"1")])
            lease.set(b"redis-py-" + name, 1)
            app.send_task("skynet.cancel", ("an id",), queue=keys.ORCHESTRATOR_QUEUE)
            app.backend.client.set(b"celery-" + name, 1)

        write(b"before")
        # When the master is killed, and the Sentinels name another one
        servers.wait_for_replica()
        servers.kill_master()
        with pytest.raises(redis.ConnectionError):
            lease.ping()
        # Then each of their clients writes to it, in the database of the URL
        write(b"after")
        with redis.Redis(port=servers.master_port(), password="secret", db=2) as master:
            names = {
                client + when
                for client in (b"resp-", b"redis-py-", b"celery-")
                for when in (b"before", b"after")
            }
            assert names <= set(master.keys())  # type: ignore[arg-type]
            assert master.llen(keys.queue_key(keys.ORCHESTRATOR_QUEUE)) == 2
        app.close()
        hot.close()
        lease.close()
    finally:
        servers.stop()
        shutil.rmtree(directory)


@pytest.mark.parametrize("form", ["redis://127.0.0.1:{port}/99", "unix://{socket}?db=99"])
def test_a_database_that_does_not_exist_is_named_in_a_line(form: str, place: Place) -> None:
    # Given
    url = url_of(form, place)
    # When
    with pytest.raises(ConfigurationError, match=r"^[^\n]*$") as caught:
        ping(url)
    # Then
    assert "has no database 99" in str(caught.value)
    with pytest.raises(redis.ConnectionError, match="has no database 99"):
        asyncio.run(write_in_an_event_loop(url))
    with pytest.raises(redis.ConnectionError, match="has no database 99"):
        RespConnection(url, 5).call([command(b"PING")])


def test_a_wrong_password_is_not_shown(place: Place) -> None:
    with pytest.raises(ClusterUnreachable) as caught:
        ping(f"redis://named:SECRET@127.0.0.1:{place.port}")
    assert "SECRET" not in str(caught.value)
    assert "invalid username-password pair" in str(caught.value)


def test_tls_without_the_certificate_of_its_authority_is_refused(place: Place) -> None:
    with pytest.raises(ClusterUnreachable, match="certificate verify failed"):
        ping(url_of("rediss://localhost:{tls_port}", place))


def test_a_setting_of_a_database_that_does_not_exist_ends_a_worker(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    from skynet.chords.worker_check import check_server

    monkeypatch.setenv("SKYNET_REDIS_URL", f"redis://127.0.0.1:{place.port}/99")
    settings.cache_clear()
    # When / Then
    with pytest.raises(ConfigurationError, match="has no database 99"):
        check_server()
