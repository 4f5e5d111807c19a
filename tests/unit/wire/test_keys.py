"""Names of keys: all under the prefix, and read back from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from skynet.settings import settings
from skynet.wire import keys

PREFIX = "team-b:skynet:"
OTHERS = {"digest_of", "is_tile_key", "chord_id"}  # take keys apart, or make none
NAMES = {
    name: function
    for name, function in inspect.getmembers(keys, inspect.isfunction)
    if function.__module__ == keys.__name__ and not name.startswith("_") and name not in OTHERS
}


@pytest.fixture(autouse=True)
def _another_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYNET_PREFIX", PREFIX)
    settings.cache_clear()


@pytest.mark.parametrize("function", NAMES.values(), ids=NAMES.keys())
def test_every_key_begins_with_the_prefix(function: Callable[..., Any]) -> None:
    # When a key is made
    key = function(*range(len(inspect.signature(function).parameters)))  # type: ignore[arg-type]
    # Then
    assert key.startswith(PREFIX.encode() if isinstance(key, bytes) else PREFIX)


def test_a_key_of_a_model_is_read_back() -> None:
    # Given keys of a model under a prefix with two colons
    tile, name = keys.tile_key("feed", "a:b", 3), keys.file_key("feed", "tile")
    # Then
    assert keys.digest_of(tile.encode()) == keys.digest_of(name.encode()) == "feed"
    assert keys.is_tile_key(tile.encode())
    assert not keys.is_tile_key(name.encode())


def test_the_names_of_the_exchanges_channels() -> None:
    assert keys.exchange_channel(15, 2, 0) == b"team-b:skynet:x:15:2.0"
    assert keys.exchange_channel(15, 2, 0, 3) == b"team-b:skynet:x:15:2.0>3"
