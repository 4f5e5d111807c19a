"""What a fuzz target is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from skynet.errors import SkynetError

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """A reader of foreign bytes.

    run: reads one input.
    seeds: valid inputs, which the fuzzer mutates.
    allowed: errors that an input may raise.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    allowed: tuple[type[BaseException], ...] = (SkynetError,)

    def inputs(self) -> list[bytes]:
        """Valid inputs, and all past findings."""
        files = sorted(CORPUS.glob(f"{self.name}-*"))
        return [*self.seeds(), *(file.read_bytes() for file in files)]
