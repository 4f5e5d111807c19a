"""Masks of the tokens that requests allow, as one shard keeps them: its slice, by content."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skynet.errors import ShardUnready, StepFailed, WireError
from skynet.wire.step import TokenMask

# Several times as many as an orchestrator counts on (`skynet/engine/known_masks.py`), because steps
# come in another order here: of 128k tokens in 2 shards, 2 MB.
MAX_MASKS = 256


class TokenMasks:
    """The last masks that came, for the tokens [first_id, first_id + size)."""

    def __init__(self, first_id: int, size: int) -> None:
        self._first_id = first_id
        self._size = size
        self._slices: dict[bytes, npt.NDArray[np.uint8]] = {}  # the last used is last

    def forbidden(self, mask: TokenMask) -> npt.NDArray[np.bool_]:
        """Which of the shard's tokens a mask forbids, (size,).

        Raises:
            ShardUnready: the mask came without its bits, and they are not here.
            StepFailed: its bits are not those of its digest.
        """
        packed = self._slices.pop(mask.digest, None)
        if packed is None:
            packed = np.packbits(self._unpacked(mask), bitorder="little")
        self._slices[mask.digest] = packed
        while len(self._slices) > MAX_MASKS:
            del self._slices[next(iter(self._slices))]
        allowed = np.unpackbits(packed, count=self._size, bitorder="little")
        forbidden: npt.NDArray[np.bool_] = allowed == 0
        return forbidden

    def _unpacked(self, mask: TokenMask) -> npt.NDArray[np.uint8]:
        if mask.packed is None:
            raise ShardUnready(f"mask {mask.digest.hex()} of allowed tokens is not in this shard")
        try:
            bits = np.frombuffer(mask.bits(), np.uint8)
        except WireError as error:
            raise StepFailed(str(error)) from error
        allowed = np.unpackbits(bits, bitorder="little")[self._first_id :][: self._size]
        # Tokens beyond the mask are not allowed.
        return np.pad(allowed, (0, self._size - len(allowed)))
