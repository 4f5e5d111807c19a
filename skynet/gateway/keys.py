"""API keys: who may use a gateway, and who may manage the cluster.

Only hashes of keys are in memory. A key file has a key in each line, or a name and a key; lines
that begin with # are comments.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from skynet.errors import ConfigurationError

MIN_LENGTH = 8
MAX_LENGTH = 512
MAX_KEYS = 10_000
PREFIX = "sk-skynet-"


@dataclass(frozen=True)
class Caller:
    """Who sent a request. name: of the key, "" without one."""

    name: str = ""
    is_admin: bool = False


class Keys:
    """Keys of users and of administrators, who are users, too. Both are mappings of key to name."""

    def __init__(self, users: Mapping[str, str], admins: Mapping[str, str]) -> None:
        self._callers = {
            **{_digest(key): Caller(name) for key, name in users.items()},
            **{_digest(key): Caller(name, True) for key, name in admins.items()},
        }
        self.has_admins = bool(admins)

    def caller(self, key: str) -> Caller | None:
        """Whose key this is; None: nobody's. Takes as long for any key."""
        given, found = _digest(key), None
        for digest, caller in self._callers.items():
            if hmac.compare_digest(digest, given):
                found = caller
        return found


def new_key() -> str:
    """A random key."""
    return PREFIX + secrets.token_urlsafe(24)


def read_keys(path: Path) -> dict[str, str]:
    """The keys of a file, each with its name.

    Raises:
        ConfigurationError: it cannot be read, or has no keys; shows no key.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"key file {path}: {error}") from None
    return keys_of_lines(lines, f"key file {path}")


def keys_of_lines(lines: Iterable[str], source: str) -> dict[str, str]:
    """The keys of these lines, each with its name."""
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        key = words[-1]
        name = words[0] if len(words) == 2 else _name_of(key)
        if len(words) > 2 or not MIN_LENGTH <= len(key) <= MAX_LENGTH or not key.isascii():
            raise ConfigurationError(
                f"{source}, line {number}: expected a key, or a name and a key of {MIN_LENGTH} to "
                f"{MAX_LENGTH} ASCII characters"
            )
        keys[key] = name
    if not 0 < len(keys) <= MAX_KEYS:
        raise ConfigurationError(f"{source}: {len(keys)} keys, expected 1 to {MAX_KEYS}")
    return keys


def _name_of(key: str) -> str:
    """The name of a key without one. Answers and files belong to names: another key has another,
    and that of a key stays when lines of its file come and go."""
    return f"key-{_digest(key).hex()[:12]}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
