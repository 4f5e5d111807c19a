"""The calls over encoder KV: each token sees all of its text's encoder KV, and no other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from skynet.layers.attention import Attending, attend
from skynet.layers.cache import KVCache, KVLayout
from skynet.layers.encoder_kv import encoder_kv_attends
from skynet.planning.ranges import Range
from skynet.wire.step import Row

CPU = torch.device("cpu")


def row(place: int, length: int, count: int = 1) -> Row:
    return Row(0, 0, (7,) * count, 1, encoder_kv=(place, length))


@pytest.mark.parametrize(
    ("rows", "calls"),
    [
        # The beams of one request.
        ([row(3, 9), row(3, 9), row(3, 9)], [(Range(0, 3), Range(3, 4), Range(0, 9))]),
        # Neighbours of about one length.
        ([row(1, 9), row(2, 8), row(3, 9)], [(Range(0, 3), Range(1, 4), Range(0, 9))]),
        # A long one beside short ones, and one that is no neighbour.
        (
            [row(1, 9), row(2, 90), row(5, 90)],
            [
                (Range(0, 1), Range(1, 2), Range(0, 9)),
                (Range(1, 2), Range(2, 3), Range(0, 90)),
                (Range(2, 3), Range(5, 6), Range(0, 90)),
            ],
        ),
        # A replay of several tokens.
        (
            [row(1, 9, 4), row(2, 9)],
            [
                (Range(0, 4), Range(1, 2), Range(0, 9)),
                (Range(4, 5), Range(2, 3), Range(0, 9)),
            ],
        ),
    ],
)
def test_rows_share_a_call(rows: list[Row], calls: list[tuple[Range, Range, Range]]) -> None:
    attends = encoder_kv_attends(rows, 2, torch.float32, CPU)
    assert [(call.tokens, call.slots, call.keys) for call in attends] == calls


@given(
    rows=st.lists(
        st.builds(row, place=st.integers(0, 4), length=st.integers(1, 6), count=st.integers(1, 3)),
        min_size=1,
        max_size=6,
    ),
    slack=st.integers(0, 4),
)
def test_each_token_attends_to_the_encoder_kv_of_its_text(rows: list[Row], slack: int) -> None:
    # Given encoder KV of several lengths, one a place, and random content beyond them
    lengths: dict[int, int] = {}
    known = [
        Row(0, 0, r.tokens, 1, encoder_kv=(r.encoder_kv[0], lengths.setdefault(*r.encoder_kv)))
        for r in rows
        if r.encoder_kv is not None
    ]
    generator = torch.Generator().manual_seed(len(rows))
    slots = KVCache(KVLayout(5, 6), 4, 8, torch.float32, torch.device("cpu"))
    cache = slots.values  # (places, K and V heads, tokens, dim)
    cache.copy_(torch.randn(cache.shape, generator=generator))
    count = sum(len(r.tokens) for r in known)
    queries = torch.randn(count, 2, 8, generator=generator)
    # When all are attended to at once
    calls = encoder_kv_attends(known, slack, torch.float32, CPU)
    mixed = attend(queries, slots, calls, Attending(0.3))
    # Then each token has the result of attention alone
    encoder_kvs = [r.encoder_kv for r in known for _ in r.tokens if r.encoder_kv is not None]
    for token, (place, length) in enumerate(encoder_kvs):
        keys, values = cache[place, :2, :length], cache[place, 2:, :length]
        alone = F.scaled_dot_product_attention(queries[token][:, None], keys, values, scale=0.3)
        torch.testing.assert_close(mixed[token], alone.flatten(), atol=1e-5, rtol=1e-5)
