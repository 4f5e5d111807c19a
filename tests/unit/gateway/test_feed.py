"""One reader for all pages, and no page misses a change."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

from skynet.gateway.cluster import feed as feeds
from skynet.gateway.cluster.feed import Change, Feed
from skynet.gateway.cluster.json_patch import apply

LIMIT_S = 20.0


class Counter:
    """A cluster whose state is the number of times that it was read."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> dict[str, Any]:
        self.reads += 1
        if self.reads == 3:
            raise ValueError("an error of one reading")
        return {"reads": self.reads, "same": [1, 2]}


async def take(feed: Feed, count: int, last_id: str = "") -> list[Change]:
    taken: list[Change] = []
    async with aclosing(feed.follow(last_id)) as changes:
        async for change in changes:
            taken.append(change)
            if len(taken) == count:
                break
    return taken


def document(changes: list[Change], start: Any = None) -> Any:
    for change in changes:
        data = json.loads(change.data)
        start = data if change.kind == "snapshot" else apply(start, data)
    return start


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, LIMIT_S))


def test_many_pages_share_one_reader_and_see_the_same() -> None:
    async def test() -> None:
        # Given a cluster that five pages follow
        cluster = Counter()
        feed = Feed(cluster.read, interval_s=0.01)
        # When each takes four changes
        pages = await asyncio.gather(*(take(feed, 4) for _ in range(5)))
        # Then each got a snapshot, then patches, though one reading failed
        for changes in pages:
            assert [change.kind for change in changes] == ["snapshot"] + 3 * ["patch"]
            assert document(changes) == {"reads": 5, "same": [1, 2]}
        assert cluster.reads == 5
        feed.close()

    run(test())


def test_a_page_that_connects_again_gets_what_it_missed() -> None:
    async def test() -> None:
        feed = Feed(Counter().read, interval_s=0.01)
        # Given a page that has seen two changes, and another that goes on
        seen = await take(feed, 2)
        await take(feed, 6)
        # When it comes back with the id of its last / Then it gets patches only
        missed = await take(feed, 3, seen[-1].id)
        assert {change.kind for change in missed} == {"patch"}
        whole = await take(feed, 1)
        assert document(missed, document(seen))["reads"] <= document(whole)["reads"]
        # Ids of another process, or none at all, get a snapshot
        for last_id in ("", "x", "0badcafe-1", f"{seen[0].id}9999", "-1"):
            (first,) = await take(feed, 1, last_id)
            assert first.kind == "snapshot"
        feed.close()

    run(test())


def test_too_old_an_id_gets_a_snapshot() -> None:
    async def test() -> None:
        feed = Feed(Counter().read, interval_s=0)
        (first,) = await take(feed, 1)
        await take(feed, feeds.KEPT_PATCHES + 5)
        (again,) = await take(feed, 1, first.id)
        assert again.kind == "snapshot"
        feed.close()

    run(test())


def test_reading_ends_after_the_last_page_and_begins_again(monkeypatch: Any) -> None:
    async def test() -> None:
        # Given a feed without pages
        monkeypatch.setattr(feeds, "LINGER_S", 0.0)
        cluster = Counter()
        feed = Feed(cluster.read, interval_s=0.01)
        await take(feed, 1)
        task = feed._task
        assert task is not None
        # When it is left / Then it ends, and the next page gets a fresh snapshot
        await task
        before = cluster.reads
        assert (await feed.current())["reads"] > before
        feed.close()

    run(test())


def test_closing_ends_the_streams() -> None:
    async def test() -> None:
        feed = Feed(Counter().read, interval_s=60)
        follower = asyncio.create_task(take(feed, 99))
        await take(feed, 1)
        feed.close()
        assert len(await follower) == 1

    run(test())
