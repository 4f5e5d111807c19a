"""The broker's settings: one address for all clients, and no password where they are shown."""

from __future__ import annotations

import json

import pytest
from celery.app.utils import Settings

from skynet.chords.app import SkynetCelery
from skynet.chords.broker import kombu_url
from skynet.redis_url import RedisURL

SECRET = "hu%40sh"


@pytest.mark.parametrize(
    ("url", "spelled"),
    [
        ("redis://u:p%40@h:1/2", "redis://u:p%40@h:1/2"),
        ("redis://h?db=2", "redis://h:6379/2"),
        ("redis://[::1]", "redis://[::1]:6379/0"),
        ("rediss://:p@h", "rediss://:p@h:6379/0?ssl_cert_reqs=required"),
        ("unix:///p/r.sock", "redis+socket:///p/r.sock"),
        ("unix://:p@/p/r.sock?db=2", "redis+socket://:p@/p/r.sock?virtual_host=2"),
        ("sentinel://:p@h1,h2/main/2", "sentinel://:p@h1:26379/2"),
    ],
)
def test_the_url_as_stock_kombu_spells_it(url: str, spelled: str) -> None:
    assert kombu_url(RedisURL.parse(url), with_password=True) == spelled


@pytest.mark.parametrize(
    "url",
    [
        f"redis://u:{SECRET}@h:1/2",
        f"rediss://u:{SECRET}@h:1?ssl_keyfile=/k&ssl_password={SECRET}",
        f"unix://u:{SECRET}@/p.sock?db=2",
        f"sentinel://u:{SECRET}@h1,h2/main?sentinel_password={SECRET}",
    ],
)
def test_what_celery_and_flower_show_has_no_password(url: str) -> None:
    # Given
    app = SkynetCelery("shown")
    app.use(url)
    # When: banner and logs, `celery inspect stats`, `inspect conf`, `celery report`
    with app.connection_for_read() as connection:
        shown = [
            connection.as_uri(),
            repr(connection),
            json.dumps(connection.info()),
            json.dumps(connection.clone().info()),
            app.pool.connection.as_uri(),
            app.backend.as_uri(),
            app.conf.humanize(with_defaults=True),
            repr(app.conf.table()),
            repr(app.address),
        ]
    # Then
    assert isinstance(app.conf, Settings)
    for text in shown:
        assert "hu%40sh" not in text
        assert "hu@sh" not in text


def test_the_urls_of_all_sentinels_are_kept() -> None:
    # Given
    app = SkynetCelery("sentinels")
    # When
    app.use("sentinel://h1:1,h2:2,h3:3/main")
    # Then
    assert app.address.hosts == (("h1", 1), ("h2", 2), ("h3", 3))
    assert app.conf.broker_transport_options["master_name"] == "main"  # for Flower
