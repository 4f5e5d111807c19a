"""Redis users with limited rights: which commands SkyNet needs, and errors for refused ones.

docs/operations.md has the same commands as lines for an administrator; tests compare them, and run
a cluster with no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import redis

from skynet import errors
from skynet.settings import settings
from skynet.wire import keys

# Workers, orchestrators, `skynet split` and Flower. Each with arguments, so that it can be probed.
NEEDED = """
BRPOP k 0 | DEL k | EVAL return 0 | EVALSHA s 0 | EXISTS k | EXPIRE k 1 | GET k | GETDEL k
HDEL k f | HGET k f | HGETALL k | HLEN k | HMGET k f | HSET k f v | INCR k
INCRBY k 1 | LLEN k | LPUSH k v | LRANGE k 0 0 | LREM k 0 v | LTRIM k 0 0 | MGET k | PING
PEXPIRE k 1 | PSUBSCRIBE c | PUBLISH c v | PUNSUBSCRIBE c | RPUSH k v | SADD k v | SCAN 0
SCRIPT EXISTS s | SCRIPT LOAD s | SET k v | SETEX k 1 v | SMEMBERS k | SREM k v | STRLEN k
SUBSCRIBE c | TIME | TYPE k | UNLINK k | UNWATCH | XADD k * f v | XRANGE k - +
XREAD STREAMS k 0 | XREVRANGE k + - | ZADD k 0 v | ZCARD k | ZRANGE k 0 0 | ZRANGEBYSCORE k 0 0
ZREM k v | ZREMRANGEBYSCORE k 0 0 | WATCH k | MULTI | EXEC | DISCARD
"""
# Redis works without these, and something is lost.
OPTIONAL = "INFO | CLIENT ID | CLIENT LIST ID 1"
MEMORY = "memory figures, and the check that a model fits: Redis refuses INFO"
CONNECTIONS = "quick detection of closed connections: Redis refuses CLIENT ID or CLIENT LIST"

REMEDY = "give the user the commands, keys and channels that docs/operations.md lists"
MAX_SHOWN = 5
_REFUSED = re.compile(r"NOPERM |.*(?:The user executing the script can't|ACL failure in script)")
_COMMAND = re.compile(r"'([a-z|]+)' command")
_AROUND = re.compile(r"^(?:NOPERM|ERR) |^ACL failure in script: |,? script: .*|\.$")


def commands(table: str) -> list[str]:
    """The commands of NEEDED or OPTIONAL, with their arguments."""
    return [command.strip() for line in table.strip().splitlines() for command in line.split("|")]


class CommandRefused(errors.CommandRefused, redis.exceptions.NoPermissionError):
    """`what`: the command, with its key or channel if known."""

    what = ""


def refusal(reply: str, what: str, user: str | None) -> CommandRefused | None:
    """The error for an error reply that refuses a command for lack of rights, or None."""
    if not _REFUSED.match(reply):
        return None
    named = _COMMAND.search(reply)
    command = named[1].upper().replace("|", " ") if named else ""
    if command and not what.startswith(command):  # of a script
        what = f"{command} in {what}" if what else command
    what = what or "a command"
    reason = _AROUND.sub("", _AROUND.sub("", reply))
    error = CommandRefused(
        f"Redis refuses {what} to user {user or 'default'!r}: {reason}; {REMEDY}"
    )
    error.what = what
    return error


def reply_of(error: redis.ResponseError) -> str:
    """An error reply as Redis sent it: redis-py takes its code off."""
    return f"{error.status_code or ''} {error}".strip()


class NamesRefusals:
    """Mixin of redis-py's connections: refused commands are CommandRefused, with their key."""

    username: str | None
    _sent: Iterator[Sequence[Any]] = iter(())  # commands whose replies are due

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        self._sent = iter([args])
        super().send_command(*args, **kwargs)  # type: ignore[misc]

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        sent = self._sent
        super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        self._sent = sent  # it may have connected or pinged before

    def pack_commands(self, commands: Iterable[Sequence[Any]]) -> Any:
        listed = list(commands)
        self._sent = iter(listed)
        return super().pack_commands(listed)  # type: ignore[misc]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        sent = next(self._sent, None)
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.ResponseError as error:
            what = _named(sent) if sent else ""
            refused = refusal(reply_of(error), what, self.username)
            if refused is None:
                raise
            raise refused from None


def _named(command: Sequence[Any]) -> str:
    """The command and the first key or channel of SkyNet's among its first arguments."""
    prefix = settings().prefix
    words = [word.decode() if isinstance(word, bytes) else word for word in command[:1]]
    for word in command[1:8]:
        if isinstance(word, bytes) and word.startswith(prefix.encode()):
            word = word.decode(errors="replace")
        if isinstance(word, str) and word.startswith(prefix):
            return f"{words[0]} {word:.200}"
    return str(words[0])


def check_access(client: redis.Redis) -> None:
    """Ask Redis for the right to each needed command, in a transaction that is given up.

    Raises:
        errors.CommandRefused: names those that are refused.
        redis.ConnectionError, redis.TimeoutError: Redis is away.
    """
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    refused: list[CommandRefused] = []
    try:
        for command in (["WATCH", keys.probe_key()], ["MULTI"]):
            connection.send_command(*command)
            connection.read_response()  # without a transaction the others would be run
        probes = [*_probes(int(connection.db)), ["DISCARD"]]
        connection.send_packed_command(connection.pack_commands(probes))
        for _ in probes:
            try:
                connection.read_response()
            except CommandRefused as error:
                refused.append(error)
    finally:
        pool.release(connection)
    if refused:
        shown = ", ".join(error.what for error in refused[:MAX_SHOWN])
        more = f" and {len(refused) - MAX_SHOWN} more" if len(refused) > MAX_SHOWN else ""
        user = connection.username or "default"
        raise errors.CommandRefused(f"Redis refuses {shown}{more} to user {user!r}: {REMEDY}")


def _probes(db: int) -> Iterable[list[str]]:
    """The needed commands, with keys and channels, but for those of the transaction."""
    words = {
        "k": keys.probe_key(),
        "c": keys.key(f"/{db}.celery.pidbox"),
        "s": "0" * 40,
    }
    for command in commands(NEEDED):
        first, *rest = command.split()
        if first not in ("WATCH", "MULTI", "EXEC", "DISCARD"):
            yield [first, *(words.get(word, word) for word in rest)]
