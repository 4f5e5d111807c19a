"""Checks of every request after the attack, against the answers of the undisturbed cluster.

Both the records in Redis and the clients' outcomes are checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import redis

from skynet.request.record import Record
from skynet.store.requests import Requests
from skynet.wire import keys
from tests.chaos.case import Answer, Case
from tests.chaos.load import Outcome

SHOWN = 12  # tokens shown around the first wrong one


@dataclass
class Verdict:
    """The result of the checks.

    token_times: time at which each token was appended, by Redis's clock, unix seconds.
    """

    wrong: list[str] = field(default_factory=list)
    num_records: int = 0
    num_cancelled: int = 0
    num_lost: int = 0
    token_times: list[float] = field(default_factory=list)


def judge(
    client: redis.Redis,
    outcomes: list[Outcome],
    answers: Mapping[Case, Answer],
    *,
    may_lose: bool = False,
) -> Verdict:
    """Check every record in Redis and every client's outcome.

    may_lose: a request may end with RequestLost: its replica did not have the newest writes when
        the master was killed.
    """
    verdict = Verdict()
    if may_lose:
        verdict.num_lost = sum(_is_lost(outcome) for outcome in outcomes)
        outcomes = [outcome for outcome in outcomes if not _is_lost(outcome)]
    known = set()
    for record in _records(client):
        known.add(record.id)
        verdict.num_records += 1
        problems = list(_record_problems(client, record, answers, verdict))
        if may_lose:
            problems = [p for p in problems if not p.startswith("ended with RequestLost")]
        verdict.wrong += [f"request {record.id}: {problem}" for problem in problems]
    for outcome in outcomes:
        problems = list(_outcome_problems(outcome, answers[outcome.case].tokens))
        if outcome.id not in known:
            problems.append("accepted, but its record is lost")
        verdict.wrong += [f"client of {outcome.id} ({outcome.mode}): {p}" for p in problems]
    still_open = client.zcard(keys.open_requests_key())
    if still_open:
        verdict.wrong.append(f"{still_open} requests are still open")
    verdict.token_times.sort()
    return verdict


def _is_lost(outcome: Outcome) -> bool:
    return outcome.problem.startswith("RequestLost")


def case_of(record: Record) -> Case:
    """The case of a record's prompt and options."""
    options = record.options
    return Case(
        record.prompt,
        options.max_tokens,
        options.temperature,
        options.top_k,
        options.top_p,
        options.seed,
        options.stop,
        options.ignore_eos,
        options.num_beams,
    )


def difference(actual: list[int], expected: list[int], *, whole: bool = True) -> str:
    """The first difference of two answers, or "". `whole`: a prefix is a difference too."""
    for index, (token, right) in enumerate(zip(actual, expected, strict=False)):
        if token != right:
            stop = index + SHOWN
            return (
                f"token {index} of {len(expected)} is {token}, expected {right}: got "
                f"...{actual[index:stop]}, expected ...{expected[index:stop]}"
            )
    if len(actual) > len(expected) or (whole and len(actual) < len(expected)):
        return f"{len(actual)} tokens, expected {len(expected)}"
    return ""


def _records(client: redis.Redis) -> Iterator[Record]:
    requests = Requests(client, 60)
    for key in client.scan_iter(f"{keys.request_key('*')}", count=1000):
        request_id = key.decode().removeprefix(keys.request_key(""))
        if ":" not in request_id and request_id:
            record = requests.read(request_id)
            if record is not None:
                yield record


def _record_problems(
    client: redis.Redis, record: Record, answers: Mapping[Case, Answer], verdict: Verdict
) -> Iterator[str]:
    entries = cast(list[Any], client.xrange(keys.tokens_key(record.id)))
    tokens = [(int(f[b"i"]), int(f[b"t"])) for _, f in entries if b"t" in f]
    ends = [json.loads(f[b"end"]) for _, f in entries if b"end" in f]
    verdict.token_times += [
        int(entry.split(b"-")[0]) / 1000 for entry, fields in entries if b"t" in fields
    ]
    if [index for index, _ in tokens] != list(range(len(tokens))):
        yield f"indexes in its stream are {[index for index, _ in tokens]}"
    if len(ends) != 1 or record.state != "done":
        yield f"{len(ends)} ends, state {record.state}"
        return
    if entries and b"end" not in entries[-1][1]:
        yield "tokens after its end"
    error = ends[0]["error"]
    cancelled = error == "RequestCancelled"
    verdict.num_cancelled += cancelled
    if error and not (cancelled and record.cancelled):
        yield f"ended with {error}: {ends[0]['message']}"
    expected = answers.get(case_of(record))
    if expected is None:
        yield f"not submitted: {record.prompt} {record.options}"
    else:
        ids = [token for _, token in tokens]
        yield from filter(None, [difference(ids, expected.tokens, whole=not error)])


def _outcome_problems(outcome: Outcome, expected: list[int]) -> Iterator[str]:
    if outcome.problem:
        yield outcome.problem
    if outcome.answer is not None:
        yield from filter(None, [difference(outcome.answer, expected)])
    furthest = 0
    for start, seen in outcome.reads:
        indexes = [index for index, _ in seen]
        if indexes != list(range(start, start + len(indexes))):
            yield f"read from {start}, saw indexes {indexes}"
            return
        wrong = difference([token for _, token in seen], expected[start:], whole=False)
        if wrong:
            yield f"read from {start}: {wrong}"
        furthest = max(furthest, start + len(seen))
    ended = outcome.answer is not None or outcome.cancelled or outcome.problem
    if not ended and furthest != len(expected):
        yield f"saw {furthest} tokens, expected {len(expected)}"
    if outcome.cancelled and outcome.mode != "cancel":
        yield "cancelled without a request"
