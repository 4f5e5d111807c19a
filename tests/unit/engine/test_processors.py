"""Rules over a few logits are Hugging Face's logits processors over all of them, in their order."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin

from skynet.engine.processors import rules_of
from skynet.engine.sampling import logits_request_of, logprobs_of, sample
from skynet.layers.candidates import pick
from skynet.request.record import Options
from skynet.wire.step import Candidates

VOCAB = 12
END_IDS = (3, 7)
MAX_TOKENS = 6

IDS = st.integers(0, VOCAB - 1)
TOKENS = st.lists(IDS, max_size=MAX_TOKENS - 1)
PROMPTS = st.lists(st.integers(0, 4), min_size=1, max_size=12)  # few ids, so that they repeat
BIASES = st.sampled_from([-100.0, -3.5, 0.0, 0.1, 4.25, 100.0])
LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=VOCAB, max_size=VOCAB)


@st.composite
def all_options(draw: st.DrawFn) -> Options:
    """Any combination of rules."""
    return Options(
        max_tokens=MAX_TOKENS,
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.2, 0.7, 3.0])),
        no_repeat_ngram_size=draw(st.integers(0, 3)),
        min_new_tokens=draw(st.integers(0, 3)),
        bad_words_ids=tuple(
            tuple(word) for word in draw(st.lists(st.lists(IDS, min_size=1, max_size=3)))
        ),
        suppress_tokens=tuple(draw(st.lists(IDS, max_size=2))),
        begin_suppress_tokens=tuple(draw(st.lists(IDS, max_size=2))),
        forced_bos_token_id=draw(st.none() | IDS),
        forced_eos_token_id=tuple(draw(st.lists(IDS, max_size=2))),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.3, -1.7, 2.0])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 1.1, -2.0])),
        logit_bias=tuple(draw(st.dictionaries(IDS, BIASES, max_size=4)).items()),
    )


class Mixin(GenerationMixin):  # type: ignore[misc]
    """Transformers' mixin that orders the processors, without a model."""

    config: Any = SimpleNamespace(is_encoder_decoder=False)


def processed_by_transformers(
    options: Options, prompt: list[int], generated: list[int], logits: list[float]
) -> np.ndarray:
    """(vocab,) float32, -inf for tokens that must not be chosen."""
    fields: dict[str, Any] = {
        "max_length": len(prompt) + options.max_tokens,
        "repetition_penalty": options.repetition_penalty,
        "no_repeat_ngram_size": options.no_repeat_ngram_size,
        "min_new_tokens": options.min_new_tokens,
        "bad_words_ids": _words(options) or None,
        "suppress_tokens": list(options.suppress_tokens) or None,
        "begin_suppress_tokens": list(options.begin_suppress_tokens) or None,
        "forced_bos_token_id": options.forced_bos_token_id,
        "forced_eos_token_id": list(options.forced_eos_token_id) or None,
        "sequence_bias": {(token,): bias for token, bias in options.logit_bias} or None,
    }
    config = GenerationConfig()
    for name, value in fields.items():  # one by one: some together are refused
        setattr(config, name, value)
    config._eos_token_tensor = torch.tensor(END_IDS)
    processors = Mixin()._get_logits_processor(config, len(prompt), device="cpu")
    scores = processors(torch.tensor([prompt + generated]), torch.tensor([logits]))
    processed: np.ndarray = scores[0].numpy()
    last = options.forced_eos_token_id and len(generated) == options.max_tokens - 1
    first = options.forced_bos_token_id is not None and len(prompt + generated) == 1
    return processed if last or first else penalised(options, generated, processed)


def penalised(options: Options, generated: list[int], logits: np.ndarray) -> np.ndarray:
    """OpenAI's penalties of the tokens of the answer, over a whole vocabulary."""
    counts = np.bincount(generated, minlength=VOCAB)
    penalties = options.frequency_penalty * counts + options.presence_penalty * (counts > 0)
    return logits - penalties.astype(np.float32)


def _words(options: Options) -> list[list[int]]:
    """Transformers refuses a list of end tokens only."""
    words = [list(word) for word in options.bad_words_ids]
    return words if any(word not in ([3], [7]) for word in words) else []


def shard_candidates(logits: list[float], cuts: list[int], logits_request: Any) -> list[Candidates]:
    """Candidates of the vocabulary shards [0, cuts[0]), [cuts[0], cuts[1]), ..."""
    edges = [0, *sorted(cuts), VOCAB]
    row = torch.tensor([logits], dtype=torch.float32)
    return [pick(row[:, start:stop], [logits_request], start)[0] for start, stop in pairwise(edges)]


@given(options=all_options(), prompt=PROMPTS, generated=TOKENS, logits=LOGITS)
def test_the_logits_are_those_of_transformers(
    options: Options, prompt: list[int], generated: list[int], logits: list[float]
) -> None:
    # Given any tokens and any rules
    expected = processed_by_transformers(options, prompt, generated, logits)
    # When they are applied to all logits
    rules = rules_of(options, prompt, generated, END_IDS)
    ids, values = np.arange(VOCAB, dtype=np.int32), np.array(logits, np.float32)
    if rules is not None:
        ids, values = rules.apply(ids, values)
    # Then each is the same, to the last bit
    full = np.full(VOCAB, -np.inf, np.float32)
    full[ids] = values
    np.testing.assert_array_equal(full, expected)


@given(
    options=all_options(),
    prompt=PROMPTS,
    generated=TOKENS,
    logits=LOGITS,
    cuts=st.lists(st.integers(0, VOCAB), max_size=3),
)
def test_candidates_are_enough_for_the_best_token(
    options: Options, prompt: list[int], generated: list[int], logits: list[float], cuts: list[int]
) -> None:
    # Given Transformers' processed logits
    expected = processed_by_transformers(options, prompt, generated, logits)
    rules = rules_of(options, prompt, generated, END_IDS)
    candidates = shard_candidates(logits, cuts, logits_request_of(options, rules))
    # When the vocabulary is cut anywhere / Then the choice is the same, or an error if it is empty
    if expected.max() == -np.inf:
        with pytest.raises(ValueError, match="every token is forbidden"):
            sample(candidates, options, 0, rules)
    else:
        assert sample(candidates, options, 0, rules) == int(np.argmax(expected))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"top_p": 0.6},
        {"top_k": 4},
        {"min_p": 0.3},
        {"top_p": 0.9, "min_p": 0.1},
        {"top_k": 5, "top_p": 0.8, "min_p": 0.2},
        {"forced_eos_token_id": (2, 5), "max_tokens": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("cuts", [[], [2, 3, 9]], ids=str)
def test_draws_follow_the_processed_distribution(fields: dict[str, Any], cuts: list[int]) -> None:
    # Given rules that touch half of a vocabulary, and filters
    logits = [2.0, -1.0, 0.5, 3.0, 3.0, -4.0, 1.0, 0.0, 2.5, -0.5, 1.5, -2.0]
    prompt, generated = [3, 8, 1, 3], [8, 5]
    rules_only = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "suppress_tokens": (4,)}
    rules_only |= {"logit_bias": ((11, 5.0), (0, -0.5)), "presence_penalty": 0.6}
    options = Options(**{"max_tokens": MAX_TOKENS, "temperature": 1.5, **rules_only, **fields})
    scores = processed_by_transformers(options, prompt, generated, logits)
    config = GenerationConfig(
        do_sample=True,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p or None,
    )
    config._eos_token_tensor = torch.tensor(END_IDS)
    warpers = Mixin()._get_logits_processor(config, len(prompt), device="cpu")
    warped = warpers(torch.tensor([prompt + generated]), torch.tensor(scores)[None])
    expected = warped.softmax(dim=-1)[0].numpy()
    # When many tokens are drawn, each with its seed
    rules = rules_of(options, prompt, generated, END_IDS)
    candidates = shard_candidates(logits, cuts, logits_request_of(options, rules))
    counts = np.zeros(VOCAB)
    for seed in range(1500):
        counts[sample(candidates, _seeded(options, seed), seed % 5, rules)] += 1
    # Then the frequencies are the probabilities of Transformers
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    deviation = np.sqrt(1500 * expected * (1 - expected))
    assert (np.abs(counts - 1500 * expected) <= 4.5 * deviation + 1e-6).all()


@given(
    logits=LOGITS,
    generated=TOKENS,
    cuts=st.lists(st.integers(0, VOCAB), max_size=3),
    biases=st.dictionaries(IDS, BIASES, max_size=6),
    penalties=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    filters=st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.7}, {"top_p": 0.9, "min_p": 0.1}]),
    seed=st.integers(0, 2**64 - 1),
)
def test_biases_and_penalties_of_candidates_are_those_of_the_whole_vocabulary(
    logits: list[float],
    generated: list[int],
    cuts: list[int],
    biases: dict[int, float],
    penalties: tuple[float, float],
    filters: dict[str, Any],
    seed: int,
) -> None:
    # Given biases and penalties over all logits, by hand
    options = Options(
        temperature=0.8,
        seed=seed,
        frequency_penalty=penalties[0],
        presence_penalty=penalties[1],
        logit_bias=tuple(biases.items()),
        **filters,
    )
    biased = np.array(logits, np.float32)
    for token, bias in biases.items():
        biased[token] += np.float32(bias)
    whole = penalised(options, generated, biased)
    plain = _seeded(Options(temperature=0.8, **filters), seed)
    expected = sample(shard_candidates(whole.tolist(), [], logits_request_of(plain)), plain, 3)
    # When shards return candidates only
    rules = rules_of(options, [1, 2], generated, END_IDS)
    parts = shard_candidates(logits, cuts, logits_request_of(options, rules))
    assume(_clear_of_the_edges(whole, options))
    # Then the draw is the same
    assert sample(parts, options, 3, rules) == expected


def _clear_of_the_edges(logits: np.ndarray, options: Options) -> bool:
    """Whether no cumulated probability is so near to top_p, or to min_p, that rounding decides."""
    scaled = np.sort(logits.astype(np.float64) / options.temperature)[::-1]
    weights = np.exp(scaled - scaled[0])
    near = np.abs(np.cumsum(weights) / weights.sum() - options.top_p) < 1e-5
    nearly = np.abs(weights - options.min_p) < 1e-5 if options.min_p else np.zeros(1, bool)
    return options.top_p == 1 or not (near.any() or nearly.any())


def test_stop_tokens_wait_for_the_shortest_answer() -> None:
    # Given an answer that is too short / Then neither end tokens nor stop tokens may come
    options = Options(min_new_tokens=2, stop_token_ids=(5,))
    rules = rules_of(options, [1], [2], END_IDS)
    assert rules is not None
    assert rules.banned.tolist() == [3, 5, 7]


def _seeded(options: Options, seed: int) -> Options:
    return Options(**{**options.__dict__, "seed": seed})


@given(
    options=all_options(),
    prompt=PROMPTS,
    logits=LOGITS,
    cuts=st.lists(st.integers(0, VOCAB), max_size=3),
    count=st.integers(0, VOCAB),
    temperature=st.sampled_from([0.0, 0.7]),
)
def test_log_probabilities_are_those_of_the_raw_logits(
    options: Options,
    prompt: list[int],
    logits: list[float],
    cuts: list[int],
    count: int,
    temperature: float,
) -> None:
    # Given rules, which must not change them
    asked = {**options.__dict__, "logprobs": count, "temperature": temperature, "seed": 1}
    options = Options(**asked)
    rules = rules_of(options, prompt, [], END_IDS)
    candidates = shard_candidates(logits, cuts, logits_request_of(options, rules))
    try:
        token = sample(candidates, options, 0, rules)
    except ValueError:
        return
    # When they are computed for the chosen token
    logprobs = logprobs_of(candidates, token, count)
    # Then they are the log-softmax of the raw logits, best first
    expected = torch.tensor(logits, dtype=torch.float64).log_softmax(dim=0).numpy()
    assert logprobs.logprob == pytest.approx(expected[token], abs=1e-4)
    assert len(logprobs.top) == count
    ranked = sorted(range(VOCAB), key=lambda at: (-np.float32(logits[at]), at))[:count]
    assert [other for other, _ in logprobs.top] == ranked
    assert [value for _, value in logprobs.top] == pytest.approx(expected[ranked], abs=1e-4)


def test_without_options_there_are_no_rules_and_the_request_is_short() -> None:
    # Given plain options / Then shards are asked for one candidate, in the short form
    assert rules_of(Options(), [1, 2], [3], END_IDS) is None
    assert logits_request_of(Options(), None).pack() == [1, 0.0, 1.0]


def test_n_grams_of_a_long_answer_are_banned() -> None:
    # Given an n-gram at the very beginning of a long text, begun again
    options = Options(no_repeat_ngram_size=4)
    prompt = [1, 2, 3, 9, *range(10, 4000), 1, 2]
    # Then only its last token is banned
    rules = rules_of(options, prompt, [3], END_IDS)
    assert rules is not None
    assert rules.banned.tolist() == [9]
