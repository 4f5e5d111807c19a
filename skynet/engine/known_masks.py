"""Which masks of allowed tokens the shards have, so that only their digests travel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from skynet.wire.step import Row, TokenMask

MAX_KNOWN = 64  # shards keep more


class KnownMasks:
    """The masks of finished steps of one epoch, the last used ones.

    A step may overtake one in flight, so that a mask counts as known only when its step is
    finished. A shard that has lost one fails the step, and the next epoch begins with none.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, None] = {}  # the last used is last

    def forget(self) -> None:
        """Other shards, or restarted ones, compute from now on."""
        self._known.clear()

    def without_known(self, rows: Iterable[Row]) -> tuple[Row, ...]:
        """The rows, with digests only for masks that the shards have."""
        return tuple(self._shortened(row) for row in rows)

    def note_finished(self, rows: Iterable[Row]) -> None:
        """All shards have computed these rows."""
        for mask in filter(None, map(_mask_of, rows)):
            self._use(mask)
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def _shortened(self, row: Row) -> Row:
        mask, request = _mask_of(row), row.logits_request
        if mask is None or request is None or mask.digest not in self._known:
            return row
        self._use(mask)
        return replace(row, logits_request=replace(request, mask=TokenMask(mask.digest)))

    def _use(self, mask: TokenMask) -> None:
        self._known.pop(mask.digest, None)
        self._known[mask.digest] = None


def _mask_of(row: Row) -> TokenMask | None:
    return None if row.logits_request is None else row.logits_request.mask
