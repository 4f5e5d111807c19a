"""Reports of missing or corrupted tiles, from workers to stagers."""

from __future__ import annotations

import json
import logging
from typing import cast

import redis

from skynet.errors import SkynetError, TileCorrupted, TileMissing
from skynet.store.manifest import TileName
from skynet.wire import keys

logger = logging.getLogger(__name__)

REPORT_S = 3600  # lifetime of the reports
MAX_REPORTS = 10_000


def tile_error(
    kind: type[TileMissing | TileCorrupted], message: str, digest: str, tile: TileName
) -> SkynetError:
    """An error with its tile attached, for `report_bad_tile`."""
    error = kind(message)
    vars(error)["tile"] = (digest, tile)
    return error


def report_bad_tile(client: redis.Redis, error: SkynetError) -> None:
    """Report the tile of a TileMissing or TileCorrupted.

    Best effort: a worker that cannot load its slice retries, and reports again.
    """
    bad_tile = vars(error).get("tile")
    if bad_tile is None:
        return
    digest, tile = bad_tile
    try:
        push_bad_tile(client, digest, tile)
    except redis.RedisError as problem:
        logger.warning("could not report %s: %s", tile, problem)


def push_bad_tile(client: redis.Redis, digest: str, tile: TileName) -> None:
    """Report a tile."""
    key = keys.bad_tiles_key(digest)
    with client.pipeline(transaction=True) as pipeline:
        pipeline.rpush(key, _report(tile))
        pipeline.ltrim(key, -MAX_REPORTS, -1)
        pipeline.expire(key, REPORT_S)
        pipeline.execute()


def reported_tiles(client: redis.Redis, digest: str) -> list[TileName]:
    """Each reported tile once; malformed reports are skipped."""
    reports = cast("list[bytes]", client.lrange(keys.bad_tiles_key(digest), 0, -1))
    tiles: dict[TileName, None] = {}
    for report in reports:
        try:
            tensor, index = json.loads(report)
            tiles[TileName(str(tensor), int(index))] = None
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue  # it expires
    return list(tiles)


def forget_reports(client: redis.Redis, digest: str, tiles: list[TileName]) -> None:
    """Delete the reports of these tiles."""
    with client.pipeline(transaction=False) as pipeline:
        for tile in tiles:
            pipeline.lrem(keys.bad_tiles_key(digest), 0, _report(tile))
        pipeline.execute()


def _report(tile: TileName) -> str:
    return json.dumps([tile.tensor, tile.index])
