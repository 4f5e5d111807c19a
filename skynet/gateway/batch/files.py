"""Files of batches on the gateway's disk: uploads, answers and errors.

Beside each file lies its description. Both are complete or not there: a file is written under
another name first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from skynet.gateway.errors import NO_RETRY, ApiError

FILE_ID = re.compile(r"file-[0-9a-f]{32}")
MAX_NAME = 255
CHUNK = 2**20


@dataclass(frozen=True)
class StoredFile:
    """owner: the name of the key that may read it. created_at: seconds since 1970."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    owner: str = ""

    def to_json(self) -> dict[str, Any]:
        """OpenAI's object."""
        shown = {name: value for name, value in asdict(self).items() if name != "owner"}
        return {**shown, "object": "file", "status": "processed"}


class Files:
    """All files of a directory.

    max_bytes: of all files together.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes

    def add(self, source: BinaryIO, filename: str, purpose: str, owner: str) -> StoredFile:
        """Keep a file.

        Raises:
            ApiError: 413, there is no room for it.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file_id, room = new_id("file"), self.max_bytes - self.used_bytes()
        partial = self.directory / f"{file_id}.partial"
        try:
            with partial.open("xb") as copy:
                while chunk := source.read(CHUNK):
                    room -= len(chunk)
                    if room < 0:
                        raise self._full()
                    copy.write(chunk)
                copy.flush()
                os.fsync(copy.fileno())
                size = copy.tell()
            return self._describe(partial, file_id, (filename, purpose, owner), size)
        finally:
            partial.unlink(missing_ok=True)

    def adopt(self, path: Path, filename: str, purpose: str, owner: str) -> StoredFile:
        """Keep a file that is in this directory's file system, by renaming it."""
        details = (filename, purpose, owner)
        return self._describe(path, new_id("file"), details, path.stat().st_size)

    def _describe(
        self, path: Path, file_id: str, details: tuple[str, str, str], size: int
    ) -> StoredFile:
        filename, purpose, owner = details
        stored = StoredFile(file_id, filename[:MAX_NAME], purpose, size, int(time.time()), owner)
        path.replace(self.path(file_id))
        write_json(self.directory / f"{file_id}.json", asdict(stored))
        return stored

    def get(self, file_id: str, owner: str | None) -> StoredFile:
        """A file's description. owner: None: anybody's.

        Raises:
            ApiError: 404, there is none, or it is another's.
        """
        stored = None
        if FILE_ID.fullmatch(file_id):
            stored = read_json(self.directory / f"{file_id}.json")
        if stored is None or owner not in (None, stored["owner"]):
            raise ApiError(404, f"no file {file_id!r:.80}", code="file_not_found", headers=NO_RETRY)
        return StoredFile(**stored)

    def all(self, owner: str | None) -> list[StoredFile]:
        """The descriptions of all files of an owner, the newest first."""
        found = [StoredFile(**fields) for fields in read_all(self.directory, "file-*.json")]
        mine = [each for each in found if owner in (None, each.owner)]
        return sorted(mine, key=lambda each: -each.created_at)

    def delete(self, file_id: str) -> None:
        (self.directory / f"{file_id}.json").unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)

    def path(self, file_id: str) -> Path:
        return self.directory / f"{file_id}.jsonl"

    def used_bytes(self) -> int:
        """Bytes of everything in the directory."""
        if not self.directory.exists():
            return 0
        return sum(entry.stat().st_size for entry in os.scandir(self.directory) if entry.is_file())

    def check_room(self) -> None:
        """
        Raises:
            ApiError: 413, the directory is full, or the disk nearly.
        """
        free = shutil.disk_usage(self.directory).free if self.directory.exists() else CHUNK
        if self.used_bytes() >= self.max_bytes or free < CHUNK:
            raise self._full()

    def _full(self) -> ApiError:
        return ApiError(
            413,
            f"files of batches may have {self.max_bytes} bytes together: delete some at "
            "/v1/files, or start the gateway with a larger --batch-gib",
            code="storage_full",
            headers=NO_RETRY,
        )


def new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a description so that it is whole after a crash."""
    partial = path.with_suffix(".new")
    with partial.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """A description; None if there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_all(directory: Path, pattern: str) -> Iterator[dict[str, Any]]:
    for path in directory.glob(pattern) if directory.exists() else ():
        if (value := read_json(path)) is not None:
            yield value
