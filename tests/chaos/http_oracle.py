"""Checks of requests over HTTP, against the answers of the undisturbed cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import redis

from skynet.wire import keys
from tests.chaos.case import Answer, Case
from tests.chaos.http_load import HttpOutcome

LOST = ("request_lost", "answer_not_found")
SHOWN = 30  # characters shown from the first wrong one on


@dataclass
class HttpVerdict:
    """num_lost: requests without an answer. wrong: all problems, those of lost ones included,
    unless a failover may lose requests."""

    wrong: list[str] = field(default_factory=list)
    num_wrong: int = 0
    num_lost: int = 0


def judge_http(
    client: redis.Redis,
    outcomes: Sequence[HttpOutcome],
    answers: Mapping[Case, Answer],
    *,
    may_lose: bool = False,
) -> HttpVerdict:
    """Check every outcome; `may_lose` as of `tests.chaos.oracle.judge`."""
    verdict = HttpVerdict()
    for outcome in outcomes:
        record = outcome.id.removeprefix("cmpl-")
        if outcome.problem:
            verdict.num_lost += 1
            if may_lose and any(code in outcome.problem for code in LOST):
                continue
            problems = [outcome.problem]
        else:
            problems = list(http_problems(outcome, answers[outcome.case]))
            if not client.exists(keys.request_key(record)):
                problems.append("answered, but its record is lost")
            verdict.num_wrong += bool(problems)
        verdict.wrong += [f"HTTP client of {record or 'a request'}: {p}" for p in problems]
    return verdict


def http_problems(outcome: HttpOutcome, answer: Answer) -> Iterator[str]:
    """What is wrong with a complete stream, joined from all its connections."""
    count = len(answer.tokens)
    positions = outcome.positions
    # Each token once, in order; then the end, which counts as one more.
    if outcome.has_logprobs:
        in_order = positions == [*range(1, count + 2)]
    else:  # a token without text has no event
        tokens = positions[:-1]
        in_order = tokens == sorted(set(tokens)) and positions[-1:] == [count + 1]
    if not in_order:
        yield f"positions of its events are {positions}, expected 1 to {count}, and one more"
    if outcome.text != answer.text:
        yield _difference(outcome.text, answer.text)
    if outcome.completion_tokens not in (None, count):
        yield f"its usage has {outcome.completion_tokens} tokens, expected {count}"
    if not outcome.case.stop and outcome.finish_reason != "length":
        yield f"ended with {outcome.finish_reason or 'no reason'}, expected length"


def _difference(actual: str, expected: str) -> str:
    pairs = zip(actual, expected, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(actual), len(expected)))
    got, right = actual[same : same + SHOWN], expected[same : same + SHOWN]
    return (
        f"text of {len(actual)} characters, expected {len(expected)}; from {same} on it is "
        f"{got!r}, expected {right!r}"
    )
