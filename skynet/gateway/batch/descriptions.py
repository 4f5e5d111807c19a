"""Descriptions of files and batches: a JSON file each, which is whole after a crash, or not there.

A description has an id, an owner and a time of creation.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from skynet.gateway.errors import ApiError


class Described(Protocol):
    """owner: the name of the key that may read it. created_at: seconds since 1970."""

    @property
    def id(self) -> str: ...

    @property
    def owner(self) -> str: ...

    @property
    def created_at(self) -> int: ...


D = TypeVar("D", bound=Described)


class Descriptions(Generic[D]):
    """The descriptions of one kind in a directory.

    kind: the first part of their ids. make: their dataclass.
    """

    def __init__(self, directory: Path, kind: str, make: type[D]) -> None:
        self.directory = directory
        self.kind = kind
        self._make = make
        self._id = re.compile(rf"{kind}-[0-9a-f]{{32}}")

    def new_id(self) -> str:
        return f"{self.kind}-{uuid.uuid4().hex}"

    def get(self, item_id: str, owner: str | None) -> D:
        """One description. owner: None: anybody's.

        Raises:
            ApiError: 404, it does not exist, or belongs to another key.
        """
        fields = _read(self._path(item_id)) if self._id.fullmatch(item_id) else None
        if fields is None or owner not in (None, fields["owner"]):
            code = f"{self.kind}_not_found"
            raise ApiError(404, f"no {self.kind} {item_id!r:.80}", code=code)
        return self._make(**fields)

    def all(self, owner: str | None) -> list[D]:
        """The descriptions of an owner, the newest first."""
        paths = self.directory.glob(f"{self.kind}-*.json") if self.directory.exists() else ()
        items = [self._make(**fields) for fields in map(_read, paths) if fields is not None]
        owned = [item for item in items if owner in (None, item.owner)]
        return sorted(owned, key=lambda item: (-item.created_at, item.id))

    def save(self, item: D) -> None:
        """Write a description, or write it again."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(item.id)
        partial = path.with_suffix(".new")
        with partial.open("w") as file:
            json.dump(asdict(item), file)  # type: ignore[call-overload]  # a dataclass
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def delete(self, item_id: str) -> None:
        self._path(item_id).unlink(missing_ok=True)

    def _path(self, item_id: str) -> Path:
        return self.directory / f"{item_id}.json"


def _read(path: Path) -> dict[str, Any] | None:
    """The fields of a description; None if it cannot be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
