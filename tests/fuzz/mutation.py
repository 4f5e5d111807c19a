"""Mutates inputs: their bytes, or a value of the JSON in them, which bytes alone rarely reach.

Used by itself where atheris is not installed, and in the test suite; else beside libFuzzer's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

# At which sizes, depths and types break.
TOKENS = (
    b"", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"9" * 30, b"[]", b"{}", b'""',
    b'"\\ud800"', b"[" * 3000, b"\x91" * 3000, b"\xff" * 4, b"\x00" * 8, b"\xc0", b"\xc4\x00",
    b"\xdd\xff\xff\xff\xff",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "0", "a" * 300, [], [0], [[]], {}, {"a": 1}, [None] * 5,
)  # fmt: skip


def mutate(data: bytes, inputs: Sequence[bytes], chance: random.Random) -> bytes:
    """`data` with one to four changes."""
    for _ in range(chance.randint(1, 4)):
        other = _mutate_json(data, chance) if chance.random() < 0.5 else None
        data = _mutate_bytes(data, inputs, chance) if other is None else other
    return data


def mutate_json(data: bytes, seed: int) -> bytes | None:
    """`data` with a change in its JSON; None if it has none."""
    return _mutate_json(data, random.Random(seed))


def _mutate_bytes(data: bytes, inputs: Sequence[bytes], chance: random.Random) -> bytes:
    mutated = bytearray(data)
    at = chance.randint(0, len(mutated))
    stop = min(len(mutated), at + chance.choice((0, 1, 1, 2, 4, 8, 64)))
    match chance.randrange(5):
        case 0:
            mutated[at:stop] = chance.choice(TOKENS)
        case 1:
            mutated[at:stop] = chance.randbytes(stop - at)
        case 2:
            del mutated[at:stop]
        case 3:
            other = chance.choice(inputs)
            start = chance.randint(0, len(other))
            mutated[at:stop] = other[start : start + chance.choice((1, 4, 16, 64))]
        case 4:
            mutated[at:stop] = mutated[at:stop] * 2
    return bytes(mutated)


def _mutate_json(data: bytes, chance: random.Random) -> bytes | None:
    """The whole input, or one field of `tests.fuzz.fields.pack`, is JSON."""
    whole = _change(data, chance)
    if whole is not None:
        return whole
    fields = []
    at = 0
    while at + 4 <= len(data):
        stop = at + 4 + int.from_bytes(data[at + 1 : at + 4], "little")
        fields.append((data[at : at + 1], data[at + 4 : stop]))
        at = stop
    for index in chance.sample(range(len(fields)), len(fields)):
        changed = _change(fields[index][1], chance)
        if changed is not None:
            fields[index] = (fields[index][0], changed)
            return b"".join(n + len(v).to_bytes(3, "little") + v for n, v in fields)
    return None


def _change(data: bytes, chance: random.Random) -> bytes | None:
    """JSON with one value replaced, added or left out; None if `data` is no list or object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict | list):
        return None
    place: Any = value
    while True:
        names: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not names:
            break
        name = chance.choice(names)
        if isinstance(place[name], dict | list) and place[name] and chance.random() < 0.8:
            place = place[name]
            continue
        if chance.random() < 0.1:
            del place[name]
        else:
            place[name] = chance.choice(VALUES)
        break
    return json.dumps(value).encode()
