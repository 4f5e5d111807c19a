"""Differences of JSON documents as JSON Patch (RFC 6902): `add`, `remove` and `replace`.

Objects are compared by key and lists of equal length by index; other lists are replaced whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

Operation = dict[str, Any]


def diff(before: Any, after: Any, path: str = "") -> Iterator[Operation]:
    """The operations that turn `before` into `after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before.keys() - after.keys():
            yield {"op": "remove", "path": _join(path, name)}
        for name, value in after.items():
            if name not in before:
                yield {"op": "add", "path": _join(path, name), "value": value}
            else:
                yield from diff(before[name], value, _join(path, name))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from diff(old, new, f"{path}/{index}")
    elif type(before) is not type(after) or before != after:  # 1, 1.0 and true differ
        yield {"op": "replace", "path": path, "value": after}


def apply(document: Any, patch: Sequence[Operation]) -> Any:
    """The document with these operations of `diff` applied to it; the argument is unchanged."""
    root = {"": copy.deepcopy(document)}
    for operation in patch:
        parent: Any = root
        *parents, last = ["", *_split(operation["path"])]
        for name in parents:
            parent = parent[int(name) if isinstance(parent, list) else name]
        key = int(last) if isinstance(parent, list) else last
        if operation["op"] == "remove":
            del parent[key]
        else:
            parent[key] = operation["value"]
    return root[""]


def _join(path: str, name: str) -> str:
    return f"{path}/{name.replace('~', '~0').replace('/', '~1')}"


def _split(path: str) -> list[str]:
    return [name.replace("~1", "/").replace("~0", "~") for name in path.split("/")[1:]]
