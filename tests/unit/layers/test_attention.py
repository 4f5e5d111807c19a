"""In any layout of rows in calls, each token attends to the tokens before it in its slot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import plan_for

from skynet.layers.attention import Attending, attend, capped_attention, store
from skynet.layers.cache import KVCache, KVLayout
from skynet.layers.context import StepContext, StepLayout, make_context
from skynet.models.registry import load_architecture
from skynet.planning.plan import Plan
from skynet.wire.step import Row, Step

HEADS, KV_HEADS, HEAD_DIM, SLOTS, TOKENS = 6, 2, 8, 6, 40
CPU = torch.device("cpu")


def plan() -> Plan:
    config = {
        "model_type": "llama",
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": 10,
        "max_position_embeddings": TOKENS,
    }
    arch = load_architecture(config)
    return plan_for(arch, 1, 1, num_slots=SLOTS)


def context_of(rows: list[Row], window: int | None, token_bytes: int = 256) -> StepContext:
    step = Step(1, 1, tuple(rows), 1)
    windows = frozenset({window})
    layout = StepLayout(KVLayout.of(plan()), 10, windows, token_bytes, torch.float32, CPU)
    return make_context(step, layout)


def one_by_one(
    queries: torch.Tensor, cache: torch.Tensor, rows: list[Row], window: int | None
) -> torch.Tensor:
    """The textbook: for each token, softmax over what it sees."""
    out, index = torch.empty(queries.shape), 0
    for row in rows:
        for position in range(row.start, row.stop):
            first = 0 if window is None else max(0, position + 1 - window)
            for head in range(HEADS):
                kv = head // (HEADS // KV_HEADS)
                keys = cache[row.slot, kv, first : position + 1]
                values = cache[row.slot, KV_HEADS + kv, first : position + 1]
                weights = (keys @ queries[index, head] * 0.3).softmax(0)
                out[index, head] = weights @ values
            index += 1
    return out.flatten(1)


@settings(max_examples=60)
@given(data=st.data(), window=st.sampled_from([None, 1, 4, 13]))
def test_any_batch_equals_textbook_attention(data: st.DataObject, window: int | None) -> None:
    # Given rows of any lengths in any slots, with any content left in the slots
    slots = data.draw(st.permutations(range(SLOTS)))[: data.draw(st.integers(1, SLOTS))]
    if data.draw(st.booleans()):
        slots = sorted(slots)
    rows = []
    for slot in slots:
        count = data.draw(st.sampled_from([1, 1, 1, 2, 7]))
        start = data.draw(st.integers(0, TOKENS - count))
        rows.append(Row(slot, start, (1,) * count, start + count))
    torch.manual_seed(0)
    cache = KVCache(KVLayout(SLOTS, TOKENS), 2 * KV_HEADS, HEAD_DIM, torch.float32, CPU)
    cache.values.copy_(torch.randn(cache.values.shape))
    context = context_of(rows, window, data.draw(st.sampled_from([256, 100_000])))
    tokens = sum(len(row.tokens) for row in rows)
    qkv = torch.randn(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)
    # When keys and values are stored and attended to
    store(cache, qkv[:, HEADS:], context)
    mixed = attend(qkv[:, :HEADS], cache, context.attends[window], Attending(0.3))
    # Then each token has what the textbook gives it
    torch.testing.assert_close(
        mixed, one_by_one(qkv[:, :HEADS], cache.values, rows, window), rtol=1e-4, atol=1e-5
    )


def test_neighbouring_single_tokens_are_one_call() -> None:
    # Given decoding rows of similar lengths in neighbouring slots, and one elsewhere
    rows = [Row(slot, 20 + slot, (1,), 20) for slot in (1, 2, 3, 5)]
    # When they are laid out
    calls = context_of(rows, None).attends[None]
    # Then the neighbours share a masked call
    assert [call.slots.size for call in calls] == [3, 1]
    assert calls[0].mask is not None
    assert calls[1].mask is None


def test_lengths_that_differ_much_are_separate_calls() -> None:
    # Given a short and a long row, and keys so big that padding is dear
    rows = [Row(0, 0, (1,), 1), Row(1, 39, (1,), 39)]
    # When / Then they are apart
    assert len(context_of(rows, None, token_bytes=65536).attends[None]) == 2


def test_untouched_slots_are_zeros_in_either_dtype() -> None:
    # When / Then nothing in a new cache can be a NaN that passes a mask
    for dtype in (torch.float32, torch.bfloat16):
        cache = KVCache(KVLayout(2, 16), 4, 8, dtype, CPU).values
        assert cache.dtype == dtype
        assert cache.shape == (2, 4, 16, 8)
        assert not cache.any()


@pytest.mark.parametrize("window", [None, 3])
def test_equal_lengths_need_no_mask(window: int | None) -> None:
    # Given decoding rows of one length
    rows = [Row(slot, 9, (1,), 9) for slot in range(4)]
    # When / Then they share a call without a mask
    calls = context_of(rows, window).attends[window]
    assert [call.mask for call in calls] == [None]


@pytest.mark.parametrize("causal", [False, True])
def test_capped_scores(causal: bool) -> None:
    # Given queries and keys so large that scores go far beyond the cap
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 8).unbind(0)
    query = query * 20
    mask = None if causal else torch.zeros(5, 5).masked_fill_(torch.eye(5).bool(), float("-inf"))
    # When they are capped
    mixed = capped_attention(query, key, value, mask, is_causal=causal, scale=0.5, cap=3.0)
    # Then visible tokens are weighted by the capped score, and masked ones have no weight
    scores = 3.0 * torch.tanh(query @ key.transpose(-1, -2) * 0.5 / 3.0)
    hidden = torch.ones(5, 5).triu(1).bool() if causal else torch.eye(5).bool()
    expected = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6)
