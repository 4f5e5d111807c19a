"""Leases are kept through outages of Redis."""

from __future__ import annotations

from pathlib import Path

import pytest
from waiting import wait_for

from skynet.local.server import EmbeddedServer
from skynet.settings import settings
from skynet.store.connection import connect
from skynet.store.lease import Lease
from skynet.store.members import Member, Members


def test_a_lease_that_starts_before_redis_does_is_kept_as_soon_as_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a Redis that is away
    server = EmbeddedServer(tmp_path)
    monkeypatch.setenv("SKYNET_REDIS_URL", server.url)
    settings.cache_clear()
    lease = Lease(Member("a", "a@here", "stage0.shard0", "here", 7, "ready"), lease_s=60)
    try:
        # When a process starts its lease, and Redis comes after that
        lease.start()
        wait_for("a warning", lambda: "trying until it works" in caplog.text)
        server.start()
        # Then the process is a member
        with connect(server.url) as client:
            members = Members(client, lease_s=60)
            wait_for("a member", lambda: [m.id for m in members.all()] == ["a"])
            # And there is none when it has given its lease back
            lease.stop()
            assert members.all() == []
    finally:
        lease.stop()
        server.stop()
