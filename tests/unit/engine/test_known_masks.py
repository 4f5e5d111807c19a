"""Masks of allowed tokens: to shards once, by digest afterwards, again after a loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skynet.engine import allowed_tokens
from skynet.engine.allowed_tokens import AllowedTokens
from skynet.engine.known_masks import MAX_KNOWN, KnownMasks
from skynet.engine.processors import NO_RULES
from skynet.engine.sampling import logits_request_of, sample
from skynet.errors import ShardUnready, StepFailed, WireError
from skynet.layers.candidates import pick
from skynet.layers.token_masks import MAX_MASKS, TokenMasks
from skynet.request.record import Options
from skynet.wire.step import LogitsRequest, Row, Step, TokenMask

VOCAB = 5000


def mask_of(seed: int) -> TokenMask:
    mask = AllowedTokens(flags_of(seed)).mask
    assert mask is not None
    return mask


def flags_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(VOCAB) < 0.5


def row_of(mask: TokenMask) -> Row:
    return Row(0, 0, (1,), 1, LogitsRequest(mask=mask))


def sent(known: KnownMasks, mask: TokenMask) -> TokenMask | None:
    """The mask as it travels."""
    (row,) = known.without_known([row_of(mask)])
    (decoded,) = Step.decode(Step(1, 0, (row,), 1).encode()).rows
    assert decoded.logits_request is not None
    return decoded.logits_request.mask


def test_a_mask_travels_until_a_step_with_it_is_finished_and_again_in_the_next_epoch() -> None:
    # Given
    known, mask = KnownMasks(), mask_of(0)
    assert sent(known, mask) == mask
    assert sent(known, mask) == mask  # the first one may be overtaken
    # When a step is finished
    known.note_finished([row_of(mask)])
    # Then only the digest travels, until shards are replaced
    assert sent(known, mask) == TokenMask(mask.digest)
    known.forget()
    assert sent(known, mask) == mask


def test_shards_keep_more_masks_than_the_orchestrator_counts_on() -> None:
    # Given
    known, shard, masks = KnownMasks(), TokenMasks(100, 300), [mask_of(n) for n in range(400)]
    # When
    for mask in masks:
        shard.forbidden(mask)
        known.note_finished([row_of(mask)])
    # Then what the orchestrator leaves out is in the shard
    left_out = [mask for mask in masks if (sent(known, mask) or mask).packed is None]
    assert len(left_out) == MAX_KNOWN < MAX_MASKS
    for number, mask in enumerate(masks):
        if mask in left_out:
            forbidden = shard.forbidden(TokenMask(mask.digest))
            assert (forbidden == ~flags_of(number)[100:400]).all()
    # And an old one is missing, which fails the step and blames no request
    with pytest.raises(ShardUnready, match=masks[0].digest.hex()):
        shard.forbidden(TokenMask(masks[0].digest))


@pytest.mark.parametrize(
    "mask",
    [
        TokenMask(bytes(16), mask_of(0).packed),
        TokenMask(mask_of(0).digest, b"nonsense"),
        TokenMask(mask_of(0).digest, b""),
        TokenMask.of(bytes(2**17 + 1)),
    ],
)
def test_a_mask_that_is_not_its_digests_is_refused(mask: TokenMask) -> None:
    with pytest.raises(StepFailed, match="a mask of tokens"):
        TokenMasks(0, 10).forbidden(mask)


@pytest.mark.parametrize("more", [[b"short", None], [bytes(16), 5], [bytes(16), bytes(2**18)], [1]])
def test_a_mask_of_another_form_is_refused(more: list[object]) -> None:
    plain = [1, 0.0, 1.0, np.empty(0, np.int32), None]
    with pytest.raises((WireError, TypeError)):
        LogitsRequest.unpack([*plain, *more])


SAMPLING = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.4, "top_k": 4},
    {"temperature": 0.9, "top_p": 0.6},
    {"temperature": 1.1, "min_p": 0.2, "top_p": 0.9},
]


@given(
    st.integers(0, 2**32),
    st.floats(0.02, 0.98),
    st.sampled_from(SAMPLING),
    st.sampled_from([0, 20, 70, 90]),
)
def test_sampling_under_a_mask_is_sampling_without_the_other_tokens(
    seed: int, share: float, sampling: dict[str, Any], max_ids: int
) -> None:
    # Given a model whose logits of forbidden tokens are -inf, and one that is told of the mask
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy((rng.normal(size=(1, 90)) * 3).astype(np.float32))
    flags = rng.random(90) < share
    flags[int(rng.integers(90))] = True
    without = logits.clone()
    without[0, ~torch.from_numpy(flags)] = -torch.inf
    options = Options(seed=seed, **sampling)
    # When
    with patch.object(allowed_tokens, "MAX_IDS", max_ids):
        rules = replace(NO_RULES, grammar=AllowedTokens(flags))
        masked = logits_request_of(options, rules)
        assert (masked.mask is None) == (min(flags.sum(), (~flags).sum()) <= max_ids)
    plain, cuts = logits_request_of(options), (0, 31, 90)
    found, expected = (
        [pick(rows[:, a:b], [request], a)[0] for a, b in pairwise(cuts)]
        for rows, request in ((logits, masked), (without, plain))
    )
    # Then
    for index in range(5):
        token = sample(found, options, index, rules)
        assert token == sample(expected, options, index)
        assert flags[token]


@given(st.integers(0, 2**32), st.sampled_from([1, 5, 0]), st.integers(1, 4), st.booleans())
def test_candidates_under_a_mask_are_those_of_the_allowed_tokens(
    seed: int, top: int, shards: int, extras: bool
) -> None:
    # Given logits, and a mask of a vocabulary that is longer or shorter than the head's
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(1, 90)).astype(np.float32))
    flags = rng.random(90) < 0.3
    mask = TokenMask.of(np.packbits(flags, bitorder="little").tobytes())
    request = LogitsRequest(top, 0.0, 0.7, (3, 80) if extras else (), 2 if extras else None, mask)
    plain = LogitsRequest(top, 0.0, 0.7, request.ids, request.logprobs)
    masked = logits.clone()
    masked[0, ~torch.from_numpy(flags)] = -torch.inf
    # When
    for start, stop in zip(
        range(0, 90, -(-90 // shards)), [*range(0, 90, -(-90 // shards))[1:], 90], strict=True
    ):
        (found,) = pick(logits[:, start:stop], [request], start)
        (expected,) = pick(masked[:, start:stop], [plain], start)
        # Then those of `ids` are returned in any case, with their raw logits
        kept = [at for at, token in enumerate(expected.ids) if expected.logits[at] > -np.inf]
        chosen = [token for token in found.ids if flags[token]]
        assert chosen == expected.ids[kept].tolist()
        assert (found.peak, found.mass) == (expected.peak, expected.mass)
        raw = logits[0, found.ids].numpy()
        assert (found.logits == raw).all()
