"""One URL, as redis-py, kombu and Celery's result backend each spell it."""

from __future__ import annotations

import pytest

from skynet.store.connection import backend_url, broker_url

URLS = [
    ("redis://:pw@h:6379/1", "redis://:pw@h:6379/1", "redis://:pw@h:6379/1"),
    ("unix:///run/r.sock", "redis+socket:///run/r.sock", "socket:///run/r.sock"),
    (
        "rediss://:pw@h:6380/0",
        "rediss://:pw@h:6380/0?ssl_cert_reqs=required",
        "rediss://:pw@h:6380/0?ssl_cert_reqs=required",
    ),
    (
        "rediss://h?ssl_ca_certs=/ca.pem",
        "rediss://h?ssl_ca_certs=/ca.pem&ssl_cert_reqs=required",
        "rediss://h?ssl_ca_certs=/ca.pem&ssl_cert_reqs=required",
    ),
    (
        "rediss://h?ssl_cert_reqs=none",
        "rediss://h?ssl_cert_reqs=none",
        "rediss://h?ssl_cert_reqs=none",
    ),
]


@pytest.mark.parametrize(("url", "broker", "backend"), URLS)
def test_a_url_as_broker_and_as_backend(url: str, broker: str, backend: str) -> None:
    assert broker_url(url) == broker
    assert backend_url(url) == f"skynet.chords.backend:ChordBackend+{backend}"


@pytest.mark.parametrize("url", [url for url, _, _ in URLS])
def test_celery_takes_every_backend_url(url: str) -> None:
    # Given
    from skynet.chords.app import SkynetCelery

    app = SkynetCelery("test")
    app.conf.update(broker_url=broker_url(url), result_backend=backend_url(url))
    # When: stock Celery refuses a rediss URL that does not speak of certificates
    parameters = app.backend.connparams
    # Then
    assert ("ssl_cert_reqs" in parameters) == url.startswith("rediss")
