"""Named byte strings, as of a Redis hash or of a model's files, in one fuzz input and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def pack(fields: Mapping[str, bytes], names: Sequence[str]) -> bytes:
    """For each field: the index of its name (1 byte), its length (3 bytes), its value."""
    return b"".join(
        bytes([names.index(name)]) + len(value).to_bytes(3, "little") + value
        for name, value in fields.items()
    )


def unpack(data: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """Any bytes are fields: indices and lengths are taken modulo."""
    fields, at = {}, 0
    while at + 4 <= len(data):
        name = names[data[at] % len(names)]
        stop = at + 4 + int.from_bytes(data[at + 1 : at + 4], "little")
        fields[name] = data[at + 4 : stop]
        at = stop
    return fields
