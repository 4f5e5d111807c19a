"""Tiles that workers found missing or corrupted, told to whoever can stage them again."""

from __future__ import annotations

import json
import logging
from typing import cast

import redis

from skynet.errors import SkynetError, TileCorrupted, TileMissing
from skynet.store.manifest import TileName
from skynet.wire import keys

logger = logging.getLogger(__name__)

REPORT_S = 3600  # a report is kept for this long
MAX_REPORTS = 10_000


def tile_error(
    kind: type[TileMissing | TileCorrupted], message: str, digest: str, tile: TileName
) -> SkynetError:
    """An error that remembers its tile: `report_bad_tile` tells it."""
    error = kind(message)
    vars(error)["tile"] = (digest, tile)
    return error


def report_bad_tile(client: redis.Redis, error: SkynetError) -> None:
    """Tell stagers of the tile that this TileMissing or TileCorrupted names.

    Best effort: a worker that cannot load tries, and reports, again.
    """
    found = vars(error).get("tile")
    if found is None:
        return
    try:
        push_bad_tile(client, *found)
    except redis.RedisError as problem:
        logger.warning("could not report %s: %s", found[1], problem)


def push_bad_tile(client: redis.Redis, digest: str, tile: TileName) -> None:
    """Tell stagers of this tile."""
    key = keys.bad_tiles_key(digest)
    with client.pipeline(transaction=True) as pipeline:
        pipeline.rpush(key, _text(tile))
        pipeline.ltrim(key, -MAX_REPORTS, -1)
        pipeline.expire(key, REPORT_S)
        pipeline.execute()


def reported_tiles(client: redis.Redis, digest: str) -> list[TileName]:
    """Each tile that was reported, once; what is no report is left out."""
    texts = cast("list[bytes]", client.lrange(keys.bad_tiles_key(digest), 0, -1))
    found: dict[TileName, None] = {}
    for text in texts:
        try:
            tensor, index = json.loads(text)
            found[TileName(str(tensor), int(index))] = None
        except (ValueError, TypeError):
            continue  # it runs out by itself
    return list(found)


def forget_reports(client: redis.Redis, digest: str, tiles: list[TileName]) -> None:
    """These have been dealt with."""
    with client.pipeline(transaction=False) as pipeline:
        for tile in tiles:
            pipeline.lrem(keys.bad_tiles_key(digest), 0, _text(tile))
        pipeline.execute()


def _text(tile: TileName) -> str:
    return json.dumps([tile.tensor, tile.index])
