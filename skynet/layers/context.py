"""The layout of a step, shared by all layers: positions, rope factors, calls of attention.

Rows are ragged: chunks of prompts next to single tokens. Single tokens in adjacent slots share a
call of the attention kernel when their lengths are similar; other rows have a call each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from skynet.architecture.window import Chunk, Window, first_key
from skynet.errors import StepFailed
from skynet.kernels.many_rows import choice
from skynet.kernels.prompts import Sight
from skynet.kernels.steps import DecodingStep, StepKernels
from skynet.layers.cache import KVLayout
from skynet.layers.encoder_attention import Bias, TextBatch, text_batches
from skynet.layers.encoder_kv import Attend, encoder_kv_attends
from skynet.layers.rope import Rotary
from skynet.layers.weights import Loader
from skynet.planning.ranges import Range
from skynet.wire.step import Row, Step

# A call of the attention kernel costs as much as reading this many bytes of keys and values: rows
# are batched while their padding is smaller.
CALL_BYTES = 64 * 1024


@dataclass(frozen=True)
class StepContext:
    """A step as the layers see it."""

    step: Step
    ids: torch.Tensor  # (tokens,) int64
    positions: torch.Tensor  # (tokens,) int64
    slots: torch.Tensor  # (tokens,) int64
    ropes: tuple[torch.Tensor, ...]  # of each rope of the model (tokens, 1, dims / 2) complex64
    attends: dict[Window, list[Attend]]  # by window
    single_token: tuple[int, int] | None  # (slot, position), if the step has only one token
    # Of an encoder, by window:
    text_batches: dict[Window, list[TextBatch]] = field(default_factory=dict)
    encoder_kvs: list[Attend] = field(default_factory=list)  # `slots` are those of encoder KV
    decoding: DecodingStep | None = None  # for the kernels, if they can run the step
    types: torch.Tensor | None = None  # (tokens,) int64, token types; None: all 0
    # What hidden states carry, see `Carrier`: (tokens, hidden) float32, and keys and values by the
    # layer that has computed them, where this stage only passes them on.
    embeddings: torch.Tensor | None = None
    passing: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StepLayout:
    """The parameters that all steps of one stack are laid out with.

    token_bytes: of the K and V, or the latent, of one token in one layer of this shard.
    """

    kv: KVLayout
    vocab_size: int
    windows: frozenset[Window]
    token_bytes: int
    dtype: torch.dtype
    device: torch.device
    rotaries: Sequence[Rotary] = ()
    bias: Bias | None = None
    bidirectional: bool = False
    step_kernels: StepKernels | None = None
    token_types: int = 0  # rows of the table

    @classmethod
    def of(
        cls,
        load: Loader,
        kv: KVLayout,
        windows: Iterable[Window],
        rotaries: Sequence[Rotary] = (),
        bias: Bias | None = None,
        step_kernels: StepKernels | None = None,
    ) -> StepLayout:
        """The layout of the shard and stack that `load` loads."""
        arch, dtype = load.arch, load.dtype
        token_bytes = max(_token_sizes(load), default=0) * dtype.itemsize
        return cls(
            kv=kv,
            vocab_size=arch.vocab_size,
            windows=frozenset(windows),
            token_bytes=token_bytes,
            dtype=dtype,
            device=load.device,
            rotaries=rotaries,
            bias=bias,
            bidirectional=arch.bidirectional,
            step_kernels=step_kernels,
            token_types=arch.token_types,
        )


def _token_sizes(load: Loader) -> Iterator[int]:
    """The numbers kept of each token, by each kind's mixers that keep any."""
    for layer in range(load.arch.num_layers):
        of_layer = load.at(layer)
        for mixer in of_layer.arch.mixers:
            kept = mixer.kept(of_layer.count, of_layer.arch.head_dim)
            yield kept.vectors * kept.size


def make_context(step: Step, layout: StepLayout) -> StepContext:
    """Lay a step out.

    Raises:
        StepFailed: a row that does not fit the plan; names the slot and the limit.
    """
    _check(step, layout)
    dtype, device, bias = layout.dtype, layout.device, layout.bias
    counts = [len(row.tokens) for row in step.rows]
    flat = [
        [token for row in step.rows for token in row.tokens],
        [position for row in step.rows for position in range(row.start, row.stop)],
        [row.slot for row, count in zip(step.rows, counts, strict=True) for _ in range(count)],
        [row.prompt_length for row, n in zip(step.rows, counts, strict=True) for _ in range(n)],
    ]
    ids, positions, slots, prompt_lengths = torch.tensor(flat, device=device).unbind()
    slack = max(1, CALL_BYTES // max(1, layout.token_bytes))
    attends: dict[Window, list[Attend]] = {}
    batches: dict[Window, list[TextBatch]] = {}
    if layout.bidirectional:
        for window in layout.windows:
            if not isinstance(window, Chunk):  # no encoder has them
                batches[window] = text_batches(step.rows, window, dtype, device, bias)
    else:
        masks = _Masks(dtype, device, bias)
        for window in layout.windows:
            attends[window] = _attends(step.rows, window, slack, masks)
    ropes = tuple(rotary.factors(positions, prompt_lengths) for rotary in layout.rotaries)
    decoding, kernels, encoder = None, layout.step_kernels, _encoder_rows(step.rows)
    if kernels is not None and _is_decoding(step.rows) and (encoder or not kernels.crosses):
        decoding = kernels.step(slots, positions, ropes, encoder)
    return StepContext(
        step=step,
        ids=ids,
        positions=positions,
        slots=slots,
        ropes=ropes,
        attends=attends,
        single_token=(step.rows[0].slot, step.rows[0].start) if len(ids) == 1 else None,
        text_batches=batches,
        encoder_kvs=encoder_kv_attends(step.rows, slack, dtype, device),
        decoding=decoding,
        types=_types(step.rows, device),
    )


def _encoder_rows(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Slots and tokens of the rows' encoder KV, (rows,) each; None if any row has none."""
    given = [row.encoder_kv for row in rows if row.encoder_kv is not None]
    if len(given) < len(rows):
        return None
    slots, lengths = torch.tensor(given).t().contiguous().unbind()
    return slots, lengths


def _types(rows: Sequence[Row], device: torch.device) -> torch.Tensor | None:
    """The token type of each token; None if no row has any."""
    given = [row.text_task.types if row.text_task else () for row in rows]
    if not any(given):
        return None
    pairs = zip(rows, given, strict=True)
    flat = [each for row, types in pairs for each in types or (0,) * len(row.tokens)]
    return torch.tensor(flat, device=device)


def _is_decoding(rows: Sequence[Row]) -> bool:
    """Whether every row is one token of its own slot, and so few that kernels multiply them."""
    return (
        len(rows) < choice().rows
        and all(len(row.tokens) == 1 for row in rows)
        and len({row.slot for row in rows}) == len(rows)
    )


def _check(step: Step, layout: StepLayout) -> None:
    num_slots, slot_tokens = layout.kv.num_slots, layout.kv.slot_tokens
    if not step.rows:
        raise StepFailed(f"step {step.number} has no rows")
    for row in step.rows:
        if not 0 <= row.slot < num_slots:
            raise StepFailed(f"slot {row.slot} is none of the plan's {num_slots}")
        if row.source is not None and not 0 <= row.source < num_slots:
            raise StepFailed(f"source slot {row.source} is none of the plan's {num_slots}")
        if not row.tokens or row.start < 0 or row.stop > slot_tokens:
            raise StepFailed(
                f"slot {row.slot}: tokens [{row.start}, {row.stop}) are none or do not fit its "
                f"{slot_tokens}"
            )
        if row.encoder_kv is not None and not (
            0 <= row.encoder_kv[0] < num_slots and 1 <= row.encoder_kv[1] <= slot_tokens
        ):
            raise StepFailed(f"slot {row.slot}: there is no encoder KV {row.encoder_kv}")
        if min(row.tokens) < 0 or max(row.tokens) >= layout.vocab_size:
            raise StepFailed(
                f"slot {row.slot}: a token id is outside the vocabulary {layout.vocab_size}"
            )
        types = row.text_task.types if row.text_task else ()
        if types and (len(types) != len(row.tokens) or max(types) >= layout.token_types):
            raise StepFailed(
                f"slot {row.slot}: token types up to {max(types)} of {len(types)} tokens, the "
                f"model has {layout.token_types} types"
            )


@dataclass(frozen=True)
class _Masks:
    """Makes the masks added to the scores: the bias, and minus infinity for hidden keys."""

    dtype: torch.dtype
    device: torch.device
    bias: Bias | None

    def single_tokens(
        self, rows: Sequence[Row], visible_keys: Sequence[Range], keys: Range
    ) -> torch.Tensor | None:
        """The mask of one token of each row; broadcasts to (slots, kv_heads, group, keys)."""
        visible = None
        if any(row_keys != keys for row_keys in visible_keys):
            index = torch.arange(keys.start, keys.stop)
            starts = torch.tensor([row_keys.start for row_keys in visible_keys])[:, None]
            stops = torch.tensor([row_keys.stop for row_keys in visible_keys])[:, None]
            visible = ((index >= starts) & (index < stops))[:, None, None]
        bias = None
        if self.bias is not None:
            positions = torch.tensor([row.start for row in rows])
            bias = self.bias.of(positions, keys).permute(2, 0, 1, 3)
        return self._additive(visible, bias)

    def one_row(self, row: Row, keys: Range, window: Window, causal: bool) -> torch.Tensor | None:
        """The mask of the tokens of one row; broadcasts to (kv_heads, group, tokens, keys)."""
        position = torch.arange(row.start, row.stop)
        visible = None
        if len(row.tokens) > 1 and not causal:
            index = torch.arange(keys.start, keys.stop)
            visible = index <= position[:, None]
            if window is not None:
                first = [first_key(each, window) for each in range(row.start, row.stop)]
                visible &= index >= torch.tensor(first)[:, None]
        bias = None if self.bias is None else self.bias.of(position, keys)
        if bias is not None and len(row.tokens) == 1:
            bias = bias.permute(2, 0, 1, 3)  # one token is computed as one token per slot
        return self._additive(visible, bias)

    def _additive(
        self, visible: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor | None:
        if visible is None:
            return None if bias is None else bias.to(self.device, self.dtype)
        mask = torch.zeros(visible.shape, dtype=self.dtype) if bias is None else bias
        return mask.masked_fill(~visible, float("-inf")).to(self.device, self.dtype)


def _attends(rows: Sequence[Row], window: Window, slack: int, masks: _Masks) -> list[Attend]:
    calls, first, index = [], 0, 0
    while index < len(rows):
        count = _neighbours(rows[index:], window, slack)
        if count > 1:
            batch = rows[index : index + count]
            calls.append(_single_tokens(batch, first, window, masks))
            first += count
        else:
            calls.append(_one_row(rows[index], first, window, masks))
            first += len(rows[index].tokens)
        index += count
    return calls


def _visible_keys(row: Row, window: Window) -> Range:
    """The keys that any token of this row sees."""
    return Range(first_key(row.start, window), row.stop)


def _neighbours(rows: Sequence[Row], window: Window, slack: int) -> int:
    """How many rows from the first share a call: single tokens, adjacent slots, little padding."""
    keys = _visible_keys(rows[0], window)
    useful = keys.size
    for count, row in enumerate(rows[1:], start=1):
        row_keys = _visible_keys(row, window)
        keys = Range(min(keys.start, row_keys.start), max(keys.stop, row_keys.stop))
        useful += row_keys.size
        padding = keys.size * (count + 1) - useful
        single = len(rows[0].tokens) == len(row.tokens) == 1
        if not single or row.slot != rows[0].slot + count or padding > slack * count:
            return count
    return len(rows)


def _single_tokens(rows: Sequence[Row], first: int, window: Window, masks: _Masks) -> Attend:
    visible = [_visible_keys(row, window) for row in rows]
    keys = Range(min(each.start for each in visible), max(each.stop for each in visible))
    return Attend(
        tokens=Range(first, first + len(rows)),
        slots=Range(rows[0].slot, rows[0].slot + len(rows)),
        keys=keys,
        mask=masks.single_tokens(rows, visible, keys),
        causal=False,
    )


def _one_row(row: Row, first: int, window: Window, masks: _Masks) -> Attend:
    keys, count = _visible_keys(row, window), len(row.tokens)
    windowless = first_key(row.stop - 1, window) == 0
    # The kernel takes either `is_causal` or a mask.
    causal = count > 1 and windowless and row.start == 0 and masks.bias is None
    sight = None
    if masks.bias is None and not isinstance(window, Chunk):
        sight = Sight(row.start - keys.start, window or 0)
    return Attend(
        tokens=Range(first, first + count),
        slots=Range(row.slot, row.slot + 1),
        keys=keys,
        mask=masks.one_row(row, keys, window, causal),
        causal=causal,
        sight=sight,
    )
