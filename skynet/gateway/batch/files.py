"""Files of batches on the gateway's disk: uploads, answers and errors.

Beside each file lies its description. A file is complete or not there: it is written under another
name first.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from skynet.gateway.batch.descriptions import Descriptions
from skynet.gateway.errors import ApiError

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
        self._descriptions = Descriptions(directory, "file", StoredFile)

    def add(self, source: BinaryIO, filename: str, purpose: str, owner: str) -> StoredFile:
        """Keep a file.

        Raises:
            ApiError: 413, there is no room for it.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file_id, room = self._descriptions.new_id(), self.max_bytes - self.used_bytes()
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
        return self._describe(path, self._descriptions.new_id(), details, path.stat().st_size)

    def _describe(
        self, path: Path, file_id: str, details: tuple[str, str, str], size: int
    ) -> StoredFile:
        filename, purpose, owner = details
        stored = StoredFile(file_id, filename[:MAX_NAME], purpose, size, int(time.time()), owner)
        path.replace(self.path(file_id))
        self._descriptions.save(stored)
        return stored

    def get(self, file_id: str, owner: str | None) -> StoredFile:
        """A file's description; arguments and errors as of `Descriptions.get`."""
        return self._descriptions.get(file_id, owner)

    def all(self, owner: str | None) -> list[StoredFile]:
        """The descriptions of all files of an owner, the newest first."""
        return self._descriptions.all(owner)

    def delete(self, file_id: str) -> None:
        self._descriptions.delete(file_id)
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
        )
