"""Tiles as files: whole and right, or not there; never more than allowed."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from skynet.store import tile_cache
from skynet.store.manifest import TileName
from skynet.store.tile_cache import HEADER, TileCache, checksum_of

DIGEST = "feed" * 16
TILE = TileName("model.layers.0.mlp/up", 3)
NUMBERS = np.arange(60, dtype=np.float32).reshape(6, 10)
FILE_BYTES = HEADER.size + NUMBERS.nbytes


def cache_of(tmp_path: Path, files: float = 1000) -> TileCache:
    return TileCache(tmp_path / "tiles", int(files * FILE_BYTES))


def read(cache: TileCache, tile: TileName = TILE, checksum: int = 7) -> npt.NDArray[Any] | None:
    array = np.zeros_like(NUMBERS)
    return array if cache.read(DIGEST, tile, checksum, array) else None


def files(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_tile_is_read_as_it_was_written(tmp_path: Path) -> None:
    # Given an empty cache / When a tile is written
    assert read(cache_of(tmp_path)) is None
    cache_of(tmp_path).write(DIGEST, TILE, 7, NUMBERS)
    # Then another process reads it
    np.testing.assert_array_equal(read(cache_of(tmp_path)), NUMBERS)
    # And nobody takes it for another tile, model or content
    assert read(cache_of(tmp_path), TileName(TILE.tensor, 4)) is None
    assert read(cache_of(tmp_path), checksum=8) is None
    assert not cache_of(tmp_path).read("beef" * 16, TILE, 7, np.zeros_like(NUMBERS))


def test_the_directory_is_the_users_own(tmp_path: Path) -> None:
    cache_of(tmp_path).write(DIGEST, TILE, 7, NUMBERS)
    assert (tmp_path / "tiles").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty"])
def test_a_damaged_file_is_deleted(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a file that a disk or a stranger has changed
    cache = cache_of(tmp_path)
    cache.write(DIGEST, TILE, 7, NUMBERS)
    [file] = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    changed = {"flipped": content, "short": content[:-1], "long": content + b"x", "empty": b""}
    file.write_bytes(changed[damage])
    # When / Then
    assert read(cache) is None
    assert not file.exists()
    assert "is damaged" in caplog.text


def test_the_checksum_sees_what_disks_do() -> None:
    # Given the bytes of a tile of several pages
    content = np.random.default_rng(0).integers(0, 256, 40_007, dtype=np.uint8)
    right, changed = checksum_of(content), dict[str, npt.NDArray[np.uint8]]()
    for at in (0, 7, 4_072, 36_648, 40_006):  # in the first and last rows, and after them
        changed[f"bit of {at}"] = content.copy()
        changed[f"bit of {at}"][at] ^= 16
    for size in (512, 4096):
        zeros, exchanged = content.copy(), content.copy()
        zeros[2 * size : 3 * size] = 0
        exchanged[: 2 * size] = np.roll(content[: 2 * size], size)
        changed |= {f"{size} zeros": zeros, f"{size} exchanged": exchanged}
    # When / Then each change changes the checksum
    assert [name for name, each in changed.items() if checksum_of(each) == right] == []
    # And so does a missing end, even of zeros
    assert checksum_of(np.zeros(5_000, np.uint8)) != checksum_of(np.zeros(4_999, np.uint8))


def test_the_least_recently_used_give_way(tmp_path: Path) -> None:
    # Given a cache that is full with ten tiles, of which the first was read last
    cache = cache_of(tmp_path, files=10)
    tiles = [TileName("tensor", index) for index in range(11)]
    for tile in tiles[:10]:
        cache.write(DIGEST, tile, 7, NUMBERS)
    for age, file in enumerate(sorted(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(file, (1000 + age, 1000 + age))
    assert read(cache, tiles[0]) is not None
    # When one more is written
    cache.write(DIGEST, tiles[10], 7, NUMBERS)
    # Then there are never more bytes than allowed, and the oldest are gone
    kept = [tile.index for tile in tiles if read(cache, tile) is not None]
    assert {0, 9, 10} <= set(kept)
    assert kept == sorted({0, *range(11 - len(kept) + 1, 11)})
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 10 * FILE_BYTES
    assert cache.fits


def test_a_full_disk_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a disk of which only the reserve is free
    usage = type("Usage", (), {"free": tile_cache.RESERVE_BYTES})
    monkeypatch.setattr(tile_cache.shutil, "disk_usage", lambda path: usage)
    cache = cache_of(tmp_path)
    # When tiles are written / Then none is kept, which is said once
    with caplog.at_level(logging.WARNING):
        cache.write(DIGEST, TILE, 7, NUMBERS)
        cache.write(DIGEST, TILE, 7, NUMBERS)
    assert files(tmp_path) == []
    assert not cache.fits
    assert caplog.text.count("SKYNET_TILE_CACHE_GIB=0") == 1


def test_a_directory_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Given a file where the directory should be
    (tmp_path / "tiles").write_text("")
    cache = cache_of(tmp_path)
    # When / Then
    cache.write(DIGEST, TILE, 7, NUMBERS)
    assert not cache.fits
    assert read(cache) is None
    assert "tiles are not kept" in caplog.text
