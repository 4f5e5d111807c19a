"""Fetched tiles as files of this machine, shared by its workers: a restart fetches nothing again.

A file is named after the model's digest, the tile and its checksum in Redis, so that one of the
same name has the same content: a checksum, then the tile's numbers. It is moved into place when
complete, read straight into the tensor, which is quicker than a memory map, and checked each time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.digests import write_atomically
from skynet.store.manifest import TileName

logger = logging.getLogger(__name__)

HEADER = struct.Struct("<L")  # `checksum_of` the numbers that follow
FORMAT = 2  # of files
# A prime number of words of 8 bytes, so that exchanged pages or sectors change a sum.
ROW_WORDS = 509
RESERVE_BYTES = 2 * 2**30  # of the disk stay free
TRIMMED = 0.9  # of the limit is kept when it is passed


class _File(NamedTuple):
    used: float  # when it was last read or written
    num_bytes: int
    path: Path


class TileCache:
    """The tiles in one directory. Processes may share it; a thread of each at a time.

    max_bytes: of all files; the least recently used are deleted first.
    fits: whether every tile given to `write` so far was kept.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.fits = True
        self._room: int | None = None  # bytes until the next look at all files

    def read(self, digest: str, tile: TileName, checksum: int, array: npt.NDArray[Any]) -> bool:
        """Fill `array`, contiguous, with a tile's numbers; False if they are not here.

        A damaged file is deleted; `array` may then be overwritten, too.

        checksum: the tile's in Redis.
        """
        path, header = self._path(digest, tile, checksum), bytearray(HEADER.size)
        numbers = array.reshape(-1).view(np.uint8)
        try:
            with open(path, "rb", buffering=0) as file:
                whole = os.fstat(file.fileno()).st_size == HEADER.size + numbers.nbytes
                done = os.readv(file.fileno(), [header, numbers.data]) if whole else 0
        except OSError:
            return False
        if done != HEADER.size + numbers.nbytes or HEADER.unpack(header)[0] != checksum_of(numbers):
            logger.warning("%s is damaged: the tile is fetched again", path)
            self._delete(path)
            return False
        with suppress(OSError):
            os.utime(path)
        return True

    def write(self, digest: str, tile: TileName, checksum: int, array: npt.NDArray[Any]) -> None:
        """Keep a tile's numbers, if there is room for them on the disk."""
        if not self.fits:
            return
        numbers = array.reshape(-1).view(np.uint8)
        content = HEADER.pack(checksum_of(numbers)) + numbers.data
        try:
            self._make_room(len(content))
            write_atomically(Path(self._path(digest, tile, checksum)), content)
        except OSError as error:
            self.fits = False
            logger.warning(
                "tiles are not kept in %s: %s; set SKYNET_CACHE_DIR to a directory with room, or "
                "SKYNET_TILE_CACHE_GIB=0",
                self.directory,
                error,
            )

    def _make_room(self, num_bytes: int) -> None:
        """Delete files until `num_bytes` more fit.

        Raises:
            OSError: the disk has too little room, or the directory cannot be made.
        """
        if self._room is None or self._room < num_bytes:
            self.directory.mkdir(parents=True, mode=0o700, exist_ok=True)
            free = shutil.disk_usage(self.directory).free - RESERVE_BYTES
            files = sorted(self._files())
            kept = sum(file.num_bytes for file in files)
            limit = min(self.max_bytes, kept + free)
            if kept + num_bytes > limit:
                limit = int(limit * TRIMMED)
            for file in files:
                if kept + num_bytes <= limit:
                    break
                self._delete(file.path)
                kept -= file.num_bytes
            if kept + num_bytes > limit:
                raise OSError(f"no room for {num_bytes} bytes")
            # Others may write too: look again after a tenth of the room.
            self._room = max(num_bytes, (limit - kept) // 10)
        self._room -= num_bytes

    def _files(self) -> Iterator[_File]:
        for path in self.directory.glob("*/*"):
            with suppress(OSError):  # another process has deleted it
                status = path.stat()
                yield _File(status.st_mtime, status.st_size, path)

    def _delete(self, path: str | Path) -> None:
        with suppress(OSError):
            os.unlink(path)

    def _path(self, digest: str, tile: TileName, checksum: int) -> str:
        name = hashlib.sha256(f"{tile.tensor}\0{tile.index}".encode()).hexdigest()[:32]
        model = digest if digest.isalnum() else hashlib.sha256(digest.encode()).hexdigest()
        return f"{self.directory}/{model}/{name}-{checksum:08x}-{FORMAT}"


def checksum_of(numbers: npt.NDArray[np.uint8]) -> int:
    """The CRC-32 of the sums of columns of 8 bytes, modulo 2^64, and of the bytes after whole rows.

    It takes a sixth of the time of a CRC-32 of all bytes.
    """
    row_bytes = 8 * ROW_WORDS
    whole = len(numbers) // row_bytes * row_bytes
    rows = numbers[:whole].view(np.uint64).reshape(-1, ROW_WORDS)
    return zlib.crc32(numbers[whole:].data, zlib.crc32(rows.sum(axis=0, dtype=np.uint64).data))
