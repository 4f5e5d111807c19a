"""One forward pass of one batch: what the orchestrator asks for and what the shards answer.

Shared by engine/ (which makes steps) and layers/ and worker/ (which compute them).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet import wire
from skynet.errors import WireError


@dataclass(frozen=True)
class Want:
    """Which candidates for the next token a row needs from each vocabulary shard.

    top: the `top` largest logits (0: no limit).
    floor: besides, only tokens whose share of the shard's probability mass at `temperature` is at
        least this. A nucleus of mass p over V tokens lies within the tokens of probability
        >= (1 - p) / V, since all others together weigh less than 1 - p; and a token's share of its
        shard is never less than its share of the whole.
    ids: tokens that count for neither of these, nor for peak and mass: their logits are offered
        in any case, because something may change or forbid them before the choice.
    logprobs: with the log of the whole sum of exponentials, and so many of the likeliest tokens,
        `ids` or not; None: without.
    """

    top: int = 1
    floor: float = 0.0
    temperature: float = 1.0
    ids: tuple[int, ...] = ()
    logprobs: int | None = None

    def pack(self) -> list[Any]:
        plain = [self.top, self.floor, self.temperature]
        if not self.ids and self.logprobs is None:
            return plain
        return [*plain, np.asarray(self.ids, dtype=np.int32), self.logprobs]

    @classmethod
    def unpack(cls, data: list[Any]) -> Want:
        top, floor, temperature, *more = data
        if not more:
            return cls(top, floor, temperature)
        ids, logprobs = more
        return cls(top, floor, temperature, tuple(ids.tolist()), logprobs)


@dataclass(frozen=True)
class Row:
    """Some new tokens of one sequence, to be appended to its slot at `start`.

    source: a slot whose first `start` tokens are this row's too: their keys and values are copied
        from there before the step.
    """

    slot: int
    start: int
    tokens: tuple[int, ...]
    prompt_length: int  # dynamic rope scaling looks at it
    want: Want | None = None  # None: no logits, a prompt's earlier chunk
    source: int | None = None

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)

    def pack(self) -> list[Any]:
        want = None if self.want is None else self.want.pack()
        plain = [self.slot, self.start, list(self.tokens), self.prompt_length, want]
        return plain if self.source is None else [*plain, self.source]

    @classmethod
    def unpack(cls, data: list[Any]) -> Row:
        slot, start, tokens, prompt_length, want, *source = data
        wanted = None if want is None else Want.unpack(want)
        return cls(slot, start, tuple(tokens), prompt_length, wanted, *source)


@dataclass(frozen=True)
class Step:
    """A batch of rows, numbered. `layers_per_chord` is how many layers one chord covers."""

    epoch: int
    number: int
    rows: tuple[Row, ...]
    layers_per_chord: int

    @property
    def num_tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)

    def encode(self) -> bytes:
        rows = [row.pack() for row in self.rows]
        return wire.encode([self.epoch, self.number, self.layers_per_chord, rows])

    @classmethod
    def decode(cls, data: bytes) -> Step:
        try:
            epoch, number, layers_per_chord, rows = wire.decode(data)
            return cls(epoch, number, tuple(Row.unpack(row) for row in rows), layers_per_chord)
        except (TypeError, ValueError, AttributeError) as error:
            raise WireError(f"not a step: {error}") from error


@dataclass(frozen=True)
class Candidates:
    """What one vocabulary shard offers for one row's next token."""

    ids: npt.NDArray[np.int32]  # (k,) token ids of the whole vocabulary
    logits: npt.NDArray[np.float32]  # (k,) not scaled
    peak: float  # largest logit of the shard, without want.ids
    mass: float  # sum of exp((logit - peak) / want.temperature), without want.ids
    best: Best | None = None  # if want.logprobs

    def pack(self) -> list[Any]:
        plain = [self.ids, self.logits, self.peak, self.mass]
        best = self.best
        return plain if best is None else [*plain, best.ids, best.logits, best.total]

    @classmethod
    def unpack(cls, data: list[Any]) -> Candidates:
        ids, logits, peak, mass, *best = data
        return cls(ids, logits, float(peak), float(mass), Best(*best) if best else None)


@dataclass(frozen=True)
class Best:
    """The likeliest tokens of one vocabulary shard, as the model has them: nothing left out."""

    ids: npt.NDArray[np.int32]  # (k,)
    logits: npt.NDArray[np.float32]  # (k,)
    total: float  # log of the sum of exp(logit) over the shard


@dataclass(repr=False)
class Part:
    """What one shard returns for one span.

    `hidden` is its partial of the hidden states at the span's end, (tokens, hidden) float32, the
    residual in shard 0's; None after the last layer, where `candidates` has one entry a row with a
    `want`.
    """

    hidden: npt.NDArray[np.float32] | None = None
    candidates: list[Candidates] = field(default_factory=list)
    compute_s: float = 0.0  # without waiting for peers
    wait_s: float = 0.0  # in the exchange

    @property
    def busy_s(self) -> float:
        """Seconds between the first and the last layer of the span."""
        return self.compute_s + self.wait_s

    def __repr__(self) -> str:  # Celery asks for it after every task: keep it cheap
        return f"<Part {self.compute_s * 1000:.2f} ms compute, {self.wait_s * 1000:.2f} ms wait>"

    def encode(self) -> bytes:
        return wire.encode(
            [
                self.hidden,
                [candidate.pack() for candidate in self.candidates],
                self.compute_s,
                self.wait_s,
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> Part:
        try:
            hidden, candidates, compute_s, wait_s = wire.decode(data)
            unpacked = [Candidates.unpack(candidate) for candidate in candidates]
            return cls(hidden, unpacked, compute_s, wait_s)
        except (TypeError, ValueError) as error:
            raise WireError(f"not a part: {error}") from error
