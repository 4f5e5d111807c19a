"""The routes of `/cluster/`: a snapshot, the stream of its changes, and admin actions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from skynet.gateway.cluster import actions
from skynet.gateway.cluster.feed import Feed
from skynet.gateway.cluster.feeds import Feeds

MAX_NAME = 200

Name = Annotated[
    str, Query(max_length=MAX_NAME, description="name of a cluster; the first one by default")
]
RequestId = Annotated[str, Path(max_length=MAX_NAME, pattern="^[A-Za-z0-9._-]+$")]
Digest = Annotated[str, Path(max_length=MAX_NAME, pattern="^[0-9a-f]+$")]
Guard = Callable[..., Any]
"""A dependency of FastAPI that raises where the caller's key does not suffice."""


def cluster_router(feeds: Feeds, admin: Guard, user: Guard | None = None) -> APIRouter:
    """The routes for these clusters.

    admin, user: dependencies that check the key of actions, and of reading; `user` None: reading is
        guarded elsewhere, as by a middleware.
    """
    guards = [Depends(user)] if user else []
    router = APIRouter(prefix="/cluster", tags=["cluster"], dependencies=guards)
    _add_views(router, feeds)
    _add_actions(router, feeds, [Depends(admin)])
    return router


def _add_views(router: APIRouter, feeds: Feeds) -> None:
    @router.get("/state")
    async def state(cluster: Name = "") -> dict[str, Any]:
        """The state of a cluster, at most some seconds old."""
        _, feed = feeds.of(cluster)
        return {**await feed.current(), "clusters": feeds.names()}

    def feed_of(cluster: Name = "") -> Feed:  # before the stream begins: 404 is a status
        return feeds.of(cluster)[1]

    of_query = Depends(feed_of)

    @router.get("/events", response_class=EventSourceResponse)
    async def events(
        feed: Feed = of_query,
        last_event_id: Annotated[str, Header(max_length=MAX_NAME)] = "",
    ) -> AsyncIterator[ServerSentEvent]:
        """The state of a cluster as server-sent events, each second.

        First `snapshot`, then `patch`: a JSON Patch (RFC 6902) of the snapshot before. With
        `Last-Event-ID` only the patches that were missed, if they are still there.
        """
        async with aclosing(feed.follow(last_event_id)) as changes:
            async for change in changes:
                yield ServerSentEvent(raw_data=change.data, event=change.kind, id=change.id)


def _add_actions(router: APIRouter, feeds: Feeds, admin: list[Any]) -> None:
    async def act(
        cluster: str, action: Callable[..., dict[str, Any]], *arguments: str
    ) -> dict[str, Any]:
        reader, feed = feeds.of(cluster)
        result = await run_in_threadpool(action, reader, *arguments)
        feed.refresh()
        return result

    @router.post("/requests/{id}/cancel", dependencies=admin)
    async def cancel(id: RequestId, cluster: Name = "") -> dict[str, Any]:
        """Cancel a request. `cancelled` is false if it has ended already."""
        return await act(cluster, actions.cancel_request, id)

    @router.post("/rebalance", dependencies=admin)
    async def rebalance(cluster: Name = "") -> dict[str, Any]:
        """Change to the fastest shape for the current workers."""
        return await act(cluster, actions.rebalance)

    @router.post("/models/{digest}/verify", dependencies=admin, status_code=202)
    async def verify(digest: Digest, cluster: Name = "") -> dict[str, Any]:
        """Begin to verify all tiles of a staged model; the snapshot has the progress."""
        return await act(cluster, actions.verify_model, digest)

    @router.delete("/models/{digest}", dependencies=admin)
    async def remove(digest: Digest, cluster: Name = "") -> dict[str, Any]:
        """Remove a staged model that is not in force."""
        return await act(cluster, actions.remove_model, digest)

    _ = (cancel, rebalance, verify, remove)
