"""The tests' own app on the tests' own server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from chord_cases import make_app

from skynet.celery import SkynetCelery
from skynet.store.server import EmbeddedServer


@pytest.fixture
def app(server: EmbeddedServer, client: redis.Redis) -> Iterator[SkynetCelery]:
    found = make_app(server.url)
    yield found
    found.messenger.connection.close()
    found.close()
