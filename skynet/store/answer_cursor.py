"""Where a reader of an answer is: entries of a request's streams to tokens in order, then the end.

Knows no connection: `answer.py` reads with a blocking one, `async_answers.py` in an event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from skynet.errors import RequestLost, SkynetError
from skynet.request.option_table import decimal
from skynet.request.record import End, Token
from skynet.wire import keys

START = b"0"  # before all entries of a stream
PROGRESS_FIELDS = ("emitted", "end")  # of a record: the arguments of `Cursor.progressed`

Entry = tuple[bytes, dict[bytes, bytes]]


class Cursor:
    """The end of a request, from its stream that has nothing else.

    key, last: the stream, and the entry that was read last.
    rereads: the stream is read again from its start.
    """

    def __init__(self, request_id: str, key: str = "") -> None:
        self.id = request_id
        self.key = key or keys.end_key(request_id)
        self.last = START
        self.rereads = False

    def take(self, entries: list[Entry]) -> Iterator[Token | End]:
        """Use entries after `last`, or after an earlier one."""
        for entry, fields in entries:
            self.last = entry
            if b"end" in fields:
                yield End.from_json(fields[b"end"])
                return
            yield from self._token(fields)

    def progressed(self, emitted: bytes | None, end: bytes | None) -> Iterator[End]:
        """Use the record's fields, of a request whose stream had no entries.

        Raises:
            RequestLost: there is no record.
        """
        if emitted is None:
            raise RequestLost(
                f"request {self.id} is not in Redis: it expired after SKYNET_RESULT_EXPIRES_S, "
                "never existed, or Redis lost it in a restart or failover; submit it again"
            )
        yield from self._behind(int(emitted), None if end is None else End.from_json(end))

    def restart(self) -> None:
        """Redis was away: the stream may be restored under other entry ids."""
        self.last = START

    def _token(self, fields: dict[bytes, bytes]) -> Iterator[Token]:
        yield from ()

    def _behind(self, emitted: int, end: End | None) -> Iterator[End]:
        if end is not None:
            yield end


class TokenCursor(Cursor):
    """The tokens of a request from index `start` on, each once and in order, then the end.

    `take` and `progressed` raise SkynetError if tokens are missing in Redis.
    """

    def __init__(self, request_id: str, start: int = 0) -> None:
        super().__init__(request_id, keys.tokens_key(request_id))
        self.expected = start

    def _token(self, fields: dict[bytes, bytes]) -> Iterator[Token]:
        token = Token.from_fields(fields)
        if token.index > self.expected:
            raise self._missing()
        if token.index == self.expected:
            self.expected, self.rereads = self.expected + 1, False
            yield token

    def _behind(self, emitted: int, end: End | None) -> Iterator[End]:
        """Read again from the start, once, if the record has more than the stream has given."""
        if emitted > self.expected or end is not None:
            if self.rereads:
                raise self._missing()
            self.last, self.rereads = START, True
        yield from ()

    def _missing(self) -> SkynetError:
        return SkynetError(
            f"request {self.id}: token {self.expected} is missing in Redis, but later ones exist: "
            "submit the request again"
        )


def no_token(request_id: str, timeout_s: float | None) -> TimeoutError:
    """The error of a reader whose time is over."""
    seconds = decimal(timeout_s or 0)
    return TimeoutError(f"request {request_id}: no token and no end for {seconds} s")


def entries_by_key(replies: Any) -> dict[bytes, list[Entry]]:
    """The reply of XREAD by stream, of either version of Redis's protocol."""
    if isinstance(replies, dict):
        return {key: entries[0] for key, entries in replies.items()}
    return cast(dict[bytes, list[Entry]], dict(replies or ()))
