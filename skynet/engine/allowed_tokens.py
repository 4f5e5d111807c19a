"""The tokens that a grammar allows next, in the forms in which shards and sampling need them.

Few allowed or few forbidden tokens travel as ids in the logits request
(`skynet.wire.step.LogitsRequest.ids`), others as a mask.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.wire.step import TokenMask

Ids = npt.NDArray[np.int32]

MAX_IDS = 1024  # 4 kB of ids; a mask of a large vocabulary has 16 kB, and 16 bytes once it is known
MAX_CACHED = 64  # masks: within a string, steps have the same one


class AllowedTokens:
    """Some tokens of a vocabulary."""

    def __init__(self, flags: npt.NDArray[np.bool_]) -> None:
        """flags: (vocabulary,), whether each token is allowed."""
        self._flags = flags
        self.count = int(np.count_nonzero(flags))

    def has(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of these tokens are allowed."""
        inside = ids < len(self._flags)
        allowed: npt.NDArray[np.bool_] = inside & self._flags[np.where(inside, ids, 0)]
        return allowed

    @cached_property
    def allowed(self) -> Ids | None:
        """The allowed tokens, if they are few."""
        few = self.count <= MAX_IDS
        return np.flatnonzero(self._flags).astype(np.int32) if few else None

    @cached_property
    def forbidden(self) -> Ids | None:
        """The forbidden tokens, if they are few and the allowed ones are not."""
        few = self.allowed is None and len(self._flags) - self.count <= MAX_IDS
        return np.flatnonzero(~self._flags).astype(np.int32) if few else None

    @cached_property
    def mask(self) -> TokenMask | None:
        """If neither are few."""
        if self.allowed is not None or self.forbidden is not None:
            return None
        return TokenMask.of(np.packbits(self._flags, bitorder="little").tobytes())


@lru_cache(MAX_CACHED)
def allowed_tokens(bits: bytes, vocab_size: int) -> AllowedTokens:
    """Of a mask with one bit for each token, in little order."""
    flags = np.unpackbits(np.frombuffer(bits, np.uint8), count=vocab_size, bitorder="little")
    return AllowedTokens(flags.astype(np.bool_))
