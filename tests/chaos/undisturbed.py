"""The expected answers: the cluster's before the attack, checked."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.unpacked import unpacked_directory
from skynet.client.client import Client
from skynet.settings import settings
from tests.chaos.case import Answer, Case
from tests.chaos.cases import greedy_answers, make_cases, stopped_cases
from tests.chaos.http_load import HttpClient
from tests.chaos.http_oracle import http_problems
from tests.chaos.oracle import difference

READY_S = 180.0  # for the first answer, loading included
ROUNDS = 2

Answers = dict[Case, Answer]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Expected:
    """The model whose answers by Transformers are expected.

    rounded: to bfloat16.
    """

    checkpoint: Checkpoint
    rounded: bool


class WarmupFailed(Exception):
    """The undisturbed cluster answers wrongly, so an attack would prove nothing."""


def undisturbed_answers(
    client: Client, expected: Expected, chance: random.Random, max_tokens: int, say: Say
) -> Answers:
    """Each case's answer.

    Raises:
        WarmupFailed: greedy answers differ from Transformers', or answers differ when repeated.
    """
    checkpoint = expected.checkpoint
    cases = make_cases(chance, int(checkpoint.config["vocab_size"]), max_tokens)
    answers = _ask(client, cases, say)
    say("Transformers' answers")
    directory = unpacked_directory(checkpoint, settings().cache_dir)
    for case, tokens in greedy_answers(directory, cases, expected.rounded).items():
        wrong = difference(answers[case].tokens, tokens)
        if wrong:
            raise WarmupFailed(f"{case}: Transformers answers otherwise: {wrong}")
    answers.update(_ask(client, stopped_cases(chance, answers), say))
    for _ in range(ROUNDS):
        _ask_again(client, answers, chance, say)
    return answers


def check_gateways(urls: Sequence[str], answers: Answers, num_clients: int, say: Say) -> None:
    """Check each gateway's answers; gateways also reach their number of connections under load.

    Raises:
        WarmupFailed: an answer over HTTP is wrong.
    """

    def problems(asked: tuple[str, int, Case]) -> list[str]:
        url, number, case = asked
        client = HttpClient([url], random.Random(number), READY_S, threading.Event())
        outcome = client.complete(case)
        client.close()
        if outcome is None or outcome.problem:
            return [outcome.problem if outcome else "no answer"]
        return list(http_problems(outcome, answers[case]))

    streamed = [case for case in answers if case.num_beams == 1]
    asked = [(url, number, case) for url in urls for number, case in enumerate(streamed)]
    say(f"{len(asked)} undisturbed answers over HTTP")
    with ThreadPoolExecutor(num_clients) as pool:
        for (url, _, case), wrong in zip(asked, pool.map(problems, asked), strict=True):
            if wrong:
                raise WarmupFailed(f"{url}: {case}: {'; '.join(wrong)}")


def _ask(client: Client, cases: Sequence[Case], say: Say) -> Answers:
    say(f"{len(cases)} undisturbed answers")
    generations = [(c, client.submit_prompt(c.prompt, timeout=READY_S, **c.options)) for c in cases]
    ends = [(case, generation.get()) for case, generation in generations]
    return {case: Answer(end.token_ids, end.text) for case, end in ends}


def _ask_again(client: Client, answers: Answers, chance: random.Random, say: Say) -> None:
    """Check the answers in other batches; workers also reach their size under load."""
    again = list(answers)
    chance.shuffle(again)
    for case, (tokens, _) in _ask(client, again, say).items():
        wrong = difference(tokens, answers[case].tokens)
        if wrong:
            raise WarmupFailed(f"{case}: another answer when repeated: {wrong}")
