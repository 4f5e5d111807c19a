"""One forward pass of one batch: what the orchestrator asks for and what the shards answer.

Shared by engine/ (which makes steps) and layers/ and worker/ (which compute them).
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """

    top: int = 1
    floor: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Read:
    """What is read of a row that is a whole text, instead of its next token.

    task: `embed` and `classify` give a vector; `fill-mask` gives candidates for each of
        `positions`, the places of the masks in the row.
    pooling: of an embedding, `mean`, `cls`, `last` or `max`; normalize: to length 1.
    top: candidates for each mask.
    """

    task: str
    pooling: str = "mean"
    normalize: bool = False
    positions: tuple[int, ...] = ()
    top: int = 5

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Read:
        """From the fields by their names, as JSON has them."""
        return cls(**{**fields, "positions": tuple(fields["positions"])})

    @property
    def is_vector(self) -> bool:
        return self.task != "fill-mask"

    def pack(self) -> list[Any]:
        positions = np.asarray(self.positions, dtype=np.int32)
        return [self.task, self.pooling, self.normalize, positions, self.top]

    @classmethod
    def unpack(cls, data: list[Any]) -> Read:
        task, pooling, normalize, positions, top = data
        return cls(task, pooling, normalize, tuple(positions.tolist()), top)


@dataclass(frozen=True)
class Row:
    """Some new tokens of one sequence, to be appended to its slot at `start`."""

    slot: int
    start: int
    tokens: tuple[int, ...]
    prompt_length: int  # dynamic rope scaling looks at it
    want: Want | None = None  # None: no logits, a prompt's earlier chunk
    read: Read | None = None  # of a row that is a whole text

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)


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
        return wire.encode(
            [
                self.epoch,
                self.number,
                self.layers_per_chord,
                [
                    [
                        row.slot,
                        row.start,
                        list(row.tokens),
                        row.prompt_length,
                        row.want and [row.want.top, row.want.floor, row.want.temperature],
                        *([row.read.pack()] if row.read else []),
                    ]
                    for row in self.rows
                ],
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> Step:
        try:
            epoch, number, layers_per_chord, rows = wire.decode(data)
            return cls(
                epoch,
                number,
                tuple(
                    Row(
                        slot,
                        start,
                        tuple(tokens),
                        prompt_length,
                        want and Want(*want),
                        Read.unpack(read[0]) if read else None,
                    )
                    for slot, start, tokens, prompt_length, want, *read in rows
                ),
                layers_per_chord,
            )
        except (TypeError, ValueError) as error:
            raise WireError(f"not a step: {error}") from error


@dataclass(frozen=True)
class Candidates:
    """What one vocabulary shard offers for one row's next token."""

    ids: npt.NDArray[np.int32]  # (k,) token ids of the whole vocabulary
    logits: npt.NDArray[np.float32]  # (k,) not scaled
    peak: float  # largest logit of the shard
    mass: float  # sum of exp((logit - peak) / want.temperature) over the shard

    def pack(self) -> list[Any]:
        return [self.ids, self.logits, self.peak, self.mass]

    @classmethod
    def unpack(cls, data: list[Any]) -> Candidates:
        ids, logits, peak, mass = data
        return cls(ids, logits, float(peak), float(mass))


@dataclass(repr=False)
class Part:
    """What one shard returns for one span.

    `hidden` is its partial of the hidden states at the span's end, (tokens, hidden) float32, the
    residual in shard 0's; None after the last layer, where `candidates` has one entry a row with a
    `want` or a mask, and shard 0's `vectors` one a row that is to be read as such.
    """

    hidden: npt.NDArray[np.float32] | None = None
    candidates: list[Candidates] = field(default_factory=list)
    compute_s: float = 0.0  # without waiting for peers
    wait_s: float = 0.0  # in the exchange
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)

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
                *([self.vectors] if self.vectors else []),
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> Part:
        try:
            hidden, candidates, compute_s, wait_s, *vectors = wire.decode(data)
            unpacked = [Candidates.unpack(candidate) for candidate in candidates]
            return cls(hidden, unpacked, compute_s, wait_s, *vectors)
        except (TypeError, ValueError) as error:
            raise WireError(f"not a part: {error}") from error
