"""The feeds of all clusters of a gateway, by name."""

from __future__ import annotations

from collections.abc import Mapping

from skynet.client.client import Client
from skynet.gateway.cluster.feed import Feed
from skynet.gateway.cluster.reader import ClusterReader
from skynet.gateway.errors import ApiError


class Feeds:
    """A reader and a feed for each cluster, made at the first use; for one event loop.

    source: the clients of all clusters by name; the first one is the default. It may change.
    """

    def __init__(self, source: Mapping[str, Client]) -> None:
        self._source = source
        self._made: dict[str, tuple[ClusterReader, Feed]] = {}

    def names(self) -> list[str]:
        return list(self._source)

    def of(self, name: str) -> tuple[ClusterReader, Feed]:
        """The cluster of this name; "": the first.

        Raises:
            ApiError: 404, there is none.
        """
        name = name or next(iter(self._source), "")
        client = self._source.get(name)
        if client is None:
            raise ApiError(
                404,
                f"no cluster has the name {name!r:.80}",
                code="cluster_not_found",
                param="cluster",
            )
        made = self._made.get(name)
        if made is None or made[0].client is not client:
            reader = ClusterReader(name, client)
            made = self._made[name] = reader, Feed(reader.read)
        return made

    def close(self) -> None:
        """End all streams; to be called when the gateway begins to shut down."""
        for _, feed in self._made.values():
            feed.close()
