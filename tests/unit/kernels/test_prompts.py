"""Attention of chunks of prompts: the kernel gives PyTorch's result."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from skynet.kernels.library import Library, available
from skynet.kernels.prompts import MIN_TOKENS, Sight, attend_prompt, can_attend
from skynet.layers import attention
from skynet.layers.attention import Attending, attend
from skynet.layers.cache import KVCache, KVLayout
from skynet.layers.encoder_kv import Attend
from skynet.planning.ranges import Range

LIBRARIES = available()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="none built")


@pytest.fixture(params=LIBRARIES)
def compiled(request: pytest.FixtureRequest) -> Library:
    return LIBRARIES[request.param]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("tokens", [1, 6, 13, 64, 203])
@pytest.mark.parametrize(("first", "window"), [(0, 0), (70, 0), (0, 5), (90, 1), (130, 100)])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(3, 1, 64), (4, 2, 20), (2, 2, 7)])
def test_the_kernel_gives_softmax_attention(
    compiled: Library,
    tokens: int,
    first: int,
    window: int,
    heads: int,
    kv_heads: int,
    dim: int,
    threads: int,
) -> None:
    # Given queries beside keys and values, and a slot with room for more tokens
    torch.manual_seed(tokens + first)
    queries = 2 * torch.randn(tokens, heads + 3, dim)[:, :heads]
    slot = torch.randn(2 * kv_heads, 400, dim)[:, : first + tokens]
    keys, values = slot[:kv_heads], slot[kv_heads:]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # When they attend
        result = attend_prompt(compiled, queries, keys, values, Sight(first, window), dim**-0.5)
    finally:
        torch.set_num_threads(before)
    # Then the result is that of float64, to float32's rounding
    expected = by_float64(queries, keys, values, mask_of(tokens, first, window))
    assert (result - expected).abs().max() < 1e-5


def test_chunks_of_a_prompt_give_the_same_bits(compiled: Library) -> None:
    # Given a prompt that attends at once
    torch.manual_seed(0)
    queries, slot = torch.randn(203, 6, 24), torch.randn(4, 203, 24)
    whole = attend_prompt(compiled, queries, slot[:2], slot[2:], Sight(0, 0), 0.2)
    # When it attends in chunks of any size
    for size in (8, 50, 120):
        chunks = [
            attend_prompt(
                compiled,
                queries[start : start + size],
                slot[:2, : start + size],
                slot[2:, : start + size],
                Sight(start, 0),
                0.2,
            )
            for start in range(0, 203, size)
        ]
        # Then the bits are equal
        assert torch.equal(torch.cat(chunks), whole)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_seen(compiled: Library, number: float) -> None:
    # Given such a number in a key that later tokens see
    torch.manual_seed(0)
    queries, slot = torch.randn(40, 2, 16), torch.randn(2, 40, 16)
    slot[0, 20, 3] = number
    # When they attend
    result = attend_prompt(compiled, queries, slot[:1], slot[1:], Sight(0, 0), 0.25)
    # Then those before it have finite results, and the token itself has none
    assert result[:20].isfinite().all()
    assert not result[20:].isfinite().all(-1).all(0).any()


@pytest.mark.parametrize("kv_of_query", [None, [0, 0, 0, 1, 1]])
@pytest.mark.parametrize("window", [0, 30])
def test_layers_use_the_kernel(
    monkeypatch: pytest.MonkeyPatch, kv_of_query: list[int] | None, window: int
) -> None:
    # Given a slot with keys and values, whose KV heads have like or different numbers of heads
    torch.manual_seed(0)
    heads, first, tokens, dim = 6 if kv_of_query is None else 5, 40, 50, 24
    cache = KVCache(KVLayout(2, 100), 4, dim, torch.float32, torch.device("cpu"))
    cache.values.copy_(torch.randn(cache.values.shape))
    queries = torch.randn(tokens, heads, dim)
    of_query = None if kv_of_query is None else torch.tensor(kv_of_query)
    mask = mask_of(tokens, first, window)
    call = Attend(
        Range(0, tokens), Range(1, 2), Range(0, first + tokens), mask, False, Sight(first, window)
    )
    used: list[Sight] = []
    real = attention.attend_prompt

    def attend_noted(*args: object) -> torch.Tensor:
        used.append(args[-2])
        return real(*args)

    monkeypatch.setattr(attention, "attend_prompt", attend_noted)
    how = Attending(dim**-0.5, kv_of_query=of_query)
    # When a layer attends with the kernel, and without
    result = attend(queries, cache, [call], how)
    monkeypatch.setattr(attention, "kernels", lambda: None)
    without = attend(queries, cache, [call], how)
    # Then the results agree
    assert used == [Sight(first, window)] * (1 if kv_of_query is None else 2)
    torch.testing.assert_close(result, without)


def test_other_calls_are_pytorchs() -> None:
    # Given queries and keys that the kernel supports
    queries, keys = torch.randn(MIN_TOKENS, 4, 16), torch.randn(2, 99, 16)
    assert can_attend(queries, keys, 2)
    # When / Then few tokens, other dtypes, other orders and very wide groups are not
    assert not can_attend(queries[1:], keys, 2)
    assert not can_attend(queries.bfloat16(), keys.bfloat16(), 2)
    assert not can_attend(queries.transpose(1, 2), keys.transpose(1, 2), 2)
    assert not can_attend(queries, keys, 1000)


def mask_of(tokens: int, first: int, window: int) -> torch.Tensor:
    """(tokens, keys): 0 where a token sees a key, else minus infinity."""
    last = torch.arange(first, first + tokens)[:, None]
    keys = torch.arange(first + tokens)
    visible = keys <= last
    if window:
        visible &= keys > last - window
    return torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))


def by_float64(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    group = queries.shape[1] // len(keys)
    heads = [each.double().repeat_interleave(group, 0) for each in (keys, values)]
    mixed = F.scaled_dot_product_attention(
        queries.double().transpose(0, 1), *heads, attn_mask=mask.double()
    )
    return mixed.transpose(0, 1)
