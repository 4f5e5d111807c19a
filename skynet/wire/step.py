"""A step, one forward pass of one batch: its rows, and the parts that shards return.

Shared by engine/ (which makes steps) and layers/ and worker/ (which compute them).
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skynet.errors import WireError
from skynet.wire import codec
from skynet.wire.frame import FLOAT32, MAGIC, Frame
from skynet.wire.scores import Scores, ScoresRequest

MAX_INDEX = 2**31 - 1
MAX_TYPE = 255  # of a token: it travels as a byte


def _index(value: Any) -> int:
    """Of a slot, token, layer, step or epoch; a size."""
    if type(value) is not int or not 0 <= value <= MAX_INDEX:
        raise WireError(f"{value!r:.40} is not a whole number from 0 to {MAX_INDEX}")
    return value


def _indices(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise WireError(f"{values!r:.40} is not a list of numbers")
    if values and set(map(type, values)) != {int}:
        raise WireError("a list of numbers holds something else")
    if values and not 0 <= min(values) <= max(values) <= MAX_INDEX:
        raise WireError(f"numbers from {min(values)} to {max(values)}, not from 0 to {MAX_INDEX}")
    return tuple(values)


def _amount(value: Any) -> float:
    """A finite number, 0 or more."""
    if not isinstance(value, float | int) or not 0 <= value < math.inf:
        raise WireError(f"{value!r:.40} is not a number of 0 or more")
    return float(value)


def _row_of(array: Any, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """An array of one dimension."""
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
        raise WireError(f"{array!r:.40} is not a row of {dtype.__name__}")
    return array


MASK_DIGEST_BYTES = 16
MAX_MASK_BYTES = 2**17  # a bit for each token of the largest vocabulary
MAX_PACKED_MASK_BYTES = MAX_MASK_BYTES + 2**10


@dataclass(frozen=True)
class TokenMask:
    """The tokens of the whole vocabulary that may be chosen.

    digest: of the bits, one for each token, in little order.
    packed: the bits, compressed by zlib; None: the shards have them already.
    """

    digest: bytes
    packed: bytes | None = None

    @classmethod
    def of(cls, bits: bytes) -> TokenMask:
        return cls(_mask_digest(bits), zlib.compress(bits, 1))

    def bits(self) -> bytes:
        """The uncompressed bits.

        Raises:
            WireError: there are none, they are too many, or not those of the digest.
        """
        unpacking = zlib.decompressobj()
        try:
            bits = unpacking.decompress(self.packed or b"", MAX_MASK_BYTES)
        except zlib.error as error:
            raise WireError(f"a mask of tokens cannot be read: {error}") from None
        if not unpacking.eof or _mask_digest(bits) != self.digest:
            raise WireError(f"a mask of tokens has {len(bits)} bytes, not those of its digest")
        return bits

    @classmethod
    def unpack(cls, digest: Any, packed: Any) -> TokenMask:
        if not isinstance(digest, bytes) or len(digest) != MASK_DIGEST_BYTES:
            raise WireError(f"{digest!r:.40} is not the digest of a mask")
        is_short = isinstance(packed, bytes) and len(packed) <= MAX_PACKED_MASK_BYTES
        if packed is not None and not is_short:
            raise WireError(
                f"{packed!r:.40} is not a mask of at most {MAX_PACKED_MASK_BYTES} bytes"
            )
        return cls(digest, packed)


def _mask_digest(bits: bytes) -> bytes:
    return hashlib.blake2b(bits, digest_size=MASK_DIGEST_BYTES).digest()


@dataclass(frozen=True)
class LogitsRequest:
    """The candidates for a row's next token that each vocabulary shard returns.

    top: the `top` largest logits (0: no limit).
    floor: of these, only tokens whose share of the shard's probability mass at `temperature` is at
        least `floor`. A nucleus of mass p over V tokens lies within the tokens of probability
        >= (1 - p) / V, since all others together weigh less than 1 - p; and a token's share of its
        shard is never less than its share of the whole.
    ids: tokens whose logits are returned in any case, because the request's rules may change or
        forbid them; they count neither for `top` and `floor` nor for peak and mass.
    logprobs: also return this many of the likeliest tokens, `ids` included, and the log of the
        shard's sum of exponentials; None: do not.
    mask: the only tokens that may be chosen; others count neither for `top` and `floor` nor for
        peak and mass. None: all.
    """

    top: int = 1
    floor: float = 0.0
    temperature: float = 1.0
    ids: tuple[int, ...] = ()
    logprobs: int | None = None
    mask: TokenMask | None = None

    def pack(self) -> list[Any]:
        plain = [self.top, self.floor, self.temperature]
        mask = [] if self.mask is None else [self.mask.digest, self.mask.packed]
        if not self.ids and self.logprobs is None and not mask:
            return plain
        return [*plain, np.asarray(self.ids, dtype=np.int32), self.logprobs, *mask]

    @classmethod
    def unpack(cls, data: list[Any]) -> LogitsRequest:
        top, floor, temperature, *more = data
        plain = _index(top), _amount(floor), _amount(temperature)
        if not more:
            return cls(*plain)
        ids, logprobs, *packed = more
        listed = _indices(_row_of(ids, np.int32).tolist())
        mask = TokenMask.unpack(*packed) if packed else None
        return cls(*plain, listed, None if logprobs is None else _index(logprobs), mask)


@dataclass(frozen=True)
class TextTask:
    """A task on a row that is a whole text, instead of its next token.

    task: `embed`, `classify` and `rerank` give a vector; `fill-mask` gives candidates for each of
        `positions`, the positions of the masks in the row.
    pooling: of an embedding, see `pool`; normalize: to length 1.
    top: number of candidates for each mask.
    types: the token type of each token, 0 to 255; (): all 0.
    tokens: of `rerank` by a model with a vocabulary head, the tokens that say yes and no; their
        logits at `positions`, the last token, are wanted instead of a vector.
    skip: leading tokens, of a prompt, that an embedding's pooling leaves out.
    """

    task: str
    pooling: str = "mean"
    normalize: bool = False
    positions: tuple[int, ...] = ()
    top: int = 5
    types: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    skip: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> TextTask:
        """From the fields by name, as decoded from JSON."""
        lists = {name: tuple(fields.get(name, ())) for name in ("positions", "types", "tokens")}
        return cls(**{**fields, **lists})

    def fields(self) -> dict[str, Any]:
        """For `of`, without the later fields where they have their defaults."""
        later = ("types", "tokens", "skip")
        return {n: value for n, value in self.__dict__.items() if value or n not in later}

    @property
    def is_vector(self) -> bool:
        return self.task != "fill-mask" and not self.tokens

    @property
    def logits_request(self) -> LogitsRequest:
        """What is wanted at each of `positions`."""
        return LogitsRequest(1, ids=self.tokens) if self.tokens else LogitsRequest(self.top)

    def pack(self) -> list[Any]:
        positions, tokens = (
            np.asarray(numbers, dtype=np.int32) for numbers in (self.positions, self.tokens)
        )
        plain = [self.task, self.pooling, self.normalize, positions, self.top]
        return [*plain, bytes(self.types), tokens, self.skip]

    @classmethod
    def unpack(cls, data: list[Any]) -> TextTask:
        task, pooling, normalize, positions, top, types, tokens, skip = data
        is_named = isinstance(task, str) and isinstance(pooling, str)
        if not (is_named and type(normalize) is bool and isinstance(types, bytes)):
            raise WireError(f"{data!r:.80} is not a text task")
        listed, wanted = (
            _indices(_row_of(numbers, np.int32).tolist()) for numbers in (positions, tokens)
        )
        plain = (task, pooling, normalize, listed, _index(top))
        return cls(*plain, tuple(types), wanted, _index(skip))


@dataclass(frozen=True)
class Row:
    """New tokens of one sequence, appended to its slot from position `start` on.

    source: a slot with the same first `start` tokens; their keys and values are copied from it
        before the step.
    encoder_kv: index and number of tokens of the encoder KV that a decoder attends to. In a row of
        an encoder's text, `slot` is that index.
    scores: the log-probabilities of a prompt's own tokens are wanted.
    """

    slot: int
    start: int
    tokens: tuple[int, ...]
    prompt_length: int  # some RoPE scalings depend on it
    logits_request: LogitsRequest | None = None  # None: not the last chunk of a prompt
    source: int | None = None
    text_task: TextTask | None = None
    encoder_kv: tuple[int, int] | None = None
    scores: ScoresRequest | None = None

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)

    @property
    def num_choices(self) -> int:
        """Places for which a token is chosen: the next one, or its masks."""
        masks = self.text_task is not None and not self.text_task.is_vector
        return (
            len(self.text_task.positions)
            if masks and self.text_task
            else (self.logits_request is not None)
        )

    @property
    def num_candidates(self) -> int:
        """Its entries in `Part.candidates`."""
        return max(self.num_choices, self.scores is not None)

    @property
    def places(self) -> range:
        """The positions of its tokens in the slot."""
        return range(self.start, self.stop)

    def pack(self) -> list[Any]:
        logits_request = None if self.logits_request is None else self.logits_request.pack()
        text_task = None if self.text_task is None else self.text_task.pack()
        encoder_kv = None if self.encoder_kv is None else list(self.encoder_kv)
        scores = None if self.scores is None else self.scores.pack()
        extra: list[Any] = [self.source, text_task, encoder_kv, scores]
        while extra and extra[-1] is None:
            extra.pop()
        return [
            self.slot,
            self.start,
            list(self.tokens),
            self.prompt_length,
            logits_request,
            *extra,
        ]

    @classmethod
    def unpack(cls, data: list[Any]) -> Row:
        slot, start, tokens, prompt_length, logits, *more = data
        source, task, kv, scores = (*more, None, None, None, None)[:4]
        row = cls(
            _index(slot),
            _index(start),
            _indices(tokens),
            _index(prompt_length),
            None if logits is None else LogitsRequest.unpack(logits),
            None if source is None else _index(source),
            None if task is None else TextTask.unpack(task),
            None if kv is None else (_index(kv[0]), _index(kv[1])),
            None if scores is None else ScoresRequest.unpack(scores, len(tokens)),
        )
        positions = () if row.text_task is None else row.text_task.positions
        if not row.tokens or max(positions, default=0) >= len(row.tokens):
            raise WireError(f"a row of {len(row.tokens)} tokens, with masks at {positions}")
        if row.text_task is not None:
            row._check_text_task(row.text_task)
        return row

    def _check_text_task(self, task: TextTask) -> None:
        if self.scores is not None:
            raise WireError("a row with a text task, whose tokens have no scores")
        if len(task.types) not in (0, len(self.tokens)) or task.skip >= len(self.tokens):
            raise WireError(
                f"a row of {len(self.tokens)} tokens with {len(task.types)} token types, "
                f"{task.skip} tokens left out"
            )


@dataclass(frozen=True)
class Step:
    """A numbered batch of rows.

    layers_per_chord: number of layers of one chord.
    start: the first layer. In an encoder-decoder, a step of texts starts at layer 0 and runs all
        layers, the decoder's only to store encoder KV; a step of tokens starts at the decoder.
    """

    epoch: int
    number: int
    rows: tuple[Row, ...]
    layers_per_chord: int
    start: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)

    def encode(self) -> bytes:
        rows = [row.pack() for row in self.rows]
        start = [self.start] if self.start else []
        return codec.encode([self.epoch, self.number, self.layers_per_chord, rows, *start])

    @classmethod
    def decode(cls, data: bytes) -> Step:
        try:
            epoch, number, layers_per_chord, packed, *start = codec.decode(data)
            rows = tuple(Row.unpack(row) for row in packed)
            start = [_index(layer) for layer in start]
            return cls(_index(epoch), _index(number), rows, _index(layers_per_chord), *start)
        except (TypeError, ValueError, LookupError) as error:
            raise WireError(f"not a step: {error}") from error


class SpanMessage(NamedTuple):
    """The arguments of the task `skynet.run_span`: layers [start, stop) of a step.

    rows: the encoded Step; None: under `keys.step_key`.
    hidden: the hidden states before `start`, an encoded Frame of (tokens, hidden) float32; None:
        under `keys.hidden_key`, or the step begins at `start`.
    plan_id: of the plan with this epoch; another cluster may have a plan with the same epoch.
    """

    epoch: int
    step: int
    start: int
    stop: int
    rows: bytes | None = None
    hidden: bytes | None = None
    plan_id: str = ""

    def check(self) -> None:
        """Raise WireError unless all arguments are of their types."""
        for number in self[:4]:
            _index(number)
        if not all(data is None or isinstance(data, bytes) for data in (self.rows, self.hidden)):
            raise WireError(f"step {self.step}: rows and hidden states are bytes")


@dataclass(frozen=True)
class Candidates:
    """One vocabulary shard's candidates for one row's next token, and the scores of its tokens."""

    ids: npt.NDArray[np.int32]  # (k,) token ids of the whole vocabulary
    logits: npt.NDArray[np.float32]  # (k,) before temperature
    peak: float  # largest logit of the shard, LogitsRequest.ids left out
    mass: float  # sum of exp((logit - peak) / temperature), LogitsRequest.ids left out
    best: Best | None = None  # if LogitsRequest.logprobs
    scores: Scores | None = None  # if Row.scores

    def pack(self) -> list[Any]:
        best = None if self.best is None else self.best.pack()
        extra = [best, None if self.scores is None else self.scores.pack()]
        while extra and extra[-1] is None:
            extra.pop()
        return [self.ids, self.logits, self.peak, self.mass, *extra]

    @classmethod
    def unpack(cls, data: list[Any]) -> Candidates:
        ids, logits, peak, mass, *more = data
        best, scores = (*more, None, None)[:2]
        listed, numbers = _row_of(ids, np.int32), _row_of(logits, np.float32)
        if len(listed) != len(numbers) or (len(listed) and listed.min() < 0):
            raise WireError(f"{len(listed)} candidates with {len(numbers)} logits")
        return cls(
            listed,
            numbers,
            float(peak),
            float(mass),
            None if best is None else Best.unpack(best),
            None if scores is None else Scores.unpack(scores),
        )


@dataclass(frozen=True)
class Best:
    """The likeliest tokens of one vocabulary shard by the model's logits; no token left out."""

    ids: npt.NDArray[np.int32]  # (k,)
    logits: npt.NDArray[np.float32]  # (k,)
    total: float  # log of the sum of exp(logit) over the shard

    def pack(self) -> list[Any]:
        return [self.ids, self.logits, self.total]

    @classmethod
    def unpack(cls, data: list[Any]) -> Best:
        ids, logits, total = data
        listed, numbers = _row_of(ids, np.int32), _row_of(logits, np.float32)
        if len(listed) != len(numbers):
            raise WireError(f"{len(listed)} tokens with {len(numbers)} logits")
        return cls(listed, numbers, float(total))


@dataclass(repr=False)
class Part:
    """One shard's result of one span.

    `hidden` is its partial of the hidden states at the span's end, (tokens, hidden) float32, in
    shard 0 with the residual. After the last layer it is None: `candidates` has one entry for each
    row with a `logits_request` or `scores` and for each mask, and shard 0's `vectors` one for each
    row whose text task gives a vector.
    """

    hidden: npt.NDArray[np.float32] | None = None
    candidates: list[Candidates] = field(default_factory=list)
    compute_s: float = 0.0  # without the exchange
    wait_s: float = 0.0  # in the exchange
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)

    @property
    def hidden_size(self) -> int:
        return 0 if self.hidden is None else int(self.hidden.shape[1])

    @property
    def busy_s(self) -> float:
        """Seconds between the first and the last layer of the span."""
        return self.compute_s + self.wait_s

    def __repr__(self) -> str:  # called by Celery after every task: keep it cheap
        return f"<Part {self.compute_s * 1000:.2f} ms compute, {self.wait_s * 1000:.2f} ms wait>"

    def encode(self) -> bytes:
        """Msgpack, after the frame of `hidden` where there is one."""
        fields = codec.encode(
            [
                [candidate.pack() for candidate in self.candidates],
                self.compute_s,
                self.wait_s,
                *([self.vectors] if self.vectors else []),
            ]
        )
        if self.hidden is None:
            return fields
        frame = Frame.of(self.hidden)
        return b"".join((frame.header, frame.data, fields))

    @classmethod
    def decode(cls, data: bytes) -> Part:
        """The encoded part; `hidden` is a read-only view into `data`."""
        fields: bytes | memoryview = data
        hidden = None
        try:
            if data.startswith(MAGIC):  # never the first bytes of a msgpack list
                frame, fields = Frame.split(data)
                if frame.kind != FLOAT32:
                    raise WireError(f"hidden states of {frame}, not float32")
                hidden = frame.array()
            candidates, compute_s, wait_s, *vectors = codec.decode(fields)
            unpacked = [Candidates.unpack(candidate) for candidate in candidates]
            (listed,) = vectors or [[]]
            rows = [_row_of(vector, np.float32) for vector in listed]
            return cls(hidden, unpacked, _amount(compute_s), _amount(wait_s), rows)
        except (TypeError, ValueError, AttributeError) as error:
            raise WireError(f"not a part: {error}") from error
