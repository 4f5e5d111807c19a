"""Answers to one prompt: streamed to stdout, then log-probabilities, beams and timings."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from skynet.cli import terminal
from skynet.cli.waiting import WaitingNotices
from skynet.errors import SkynetError

if TYPE_CHECKING:
    from skynet.client.client import Client
    from skynet.client.generation import Generation
    from skynet.request.completion import Completion

UNDECODED = "\ufffd"  # a token that is a part of a character


@dataclass(frozen=True)
class Startup:
    """When a command and then its cluster started, by `time.monotonic()`."""

    started: float
    up: float

    def since(self, first_at: float) -> str:
        """The time until the first token, with that of the start."""
        return (
            f"after the prompt, {first_at - self.started:.1f} s after the command "
            f"(cluster up in {self.up - self.started:.1f} s)"
        )


@dataclass(frozen=True)
class Answer:
    """A completion, and the texts of the tokens in its log-probabilities by id.

    first_at: `time.monotonic()` at its first token.
    """

    completion: Completion
    texts: dict[int, str]
    first_at: float

    def to_json(self) -> dict[str, Any]:
        """The completion's fields; each token of its log-probabilities with id and text."""
        return {**self.completion.__dict__, "logprobs": self._logprobs()}

    def lines(self) -> list[str]:
        """A line for each token, if log-probabilities were requested."""
        lines = []
        for entry in self._logprobs():
            likeliest = "".join(f"  {_name(other)}" for other in entry["top"])
            lines.append(f"{_name(entry)}{' |' if likeliest else ''}{likeliest}")
        return lines

    def _logprobs(self) -> list[dict[str, Any]]:
        return [
            {
                **self._token(token_id, entry["logprob"]),
                "top": [self._token(*pair) for pair in entry["top"]],
            }
            for token_id, entry in zip(
                self.completion.token_ids, self.completion.logprobs, strict=False
            )
        ]

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {"token_id": token_id, "token": self.texts.get(token_id, ""), "logprob": logprob}


def answer_prompt(
    client: Client, prompt: str, as_json: bool, up: Startup | None = None, **options: Any
) -> list[Answer]:
    """Submit a prompt and stream its answers, one after the other; Ctrl-C cancels them.

    as_json: print nothing.
    up: of a cluster that was started for this prompt.
    options: of `Client.submit_prompt`.
    """
    n = options.pop("n", 1)
    generations = client.submit_prompt(prompt, n=n, **options)
    answers = []
    try:
        with WaitingNotices(client.url) as notices:
            for generation in generations:
                answers.append(_stream(client, generation, as_json, notices))
                if not as_json:
                    _print_end(answers[-1], up)
    except KeyboardInterrupt:
        for generation in generations:
            generation.cancel()
        raise
    return answers


def _stream(client: Client, generation: Generation, quiet: bool, notices: WaitingNotices) -> Answer:
    first_at = 0.0
    for token in generation.tokens():
        notices.progress()
        first_at = first_at or time.monotonic()
        if not quiet and token.text:
            click.echo(token.text, nl=False)
            sys.stdout.flush()
    if not quiet:
        click.echo()
    completion = generation.get()
    return Answer(completion, _texts_of(client, generation.id, completion), first_at)


def _print_end(answer: Answer, up: Startup | None) -> None:
    """Print log-probabilities, beams and timings of an answer."""
    completion, timings = answer.completion, answer.completion.timings
    for line in answer.lines():
        click.echo(line)
    _print_beams(completion)
    _print_prompt_logprobs(completion)
    cached = f" ({completion.cached_tokens} cached)" if completion.cached_tokens else ""
    since = "" if up is None else f" {up.since(answer.first_at)}"
    terminal.err.print(
        f"[dim]{completion.prompt_tokens} prompt tokens{cached}, "
        f"{len(completion.token_ids)} tokens "
        f"({completion.finish_reason}) | first token {timings['first_token_s']:.2f} s{since} | "
        f"{timings['decode_tokens_per_s']:.1f} tokens/s[/]",
        highlight=False,
        soft_wrap=True,
    )


def _texts_of(client: Client, request_id: str, completion: Completion) -> dict[int, str]:
    """Texts of the tokens in the log-probabilities; none if the model is gone from Redis."""
    if not completion.logprobs:
        return {}
    likeliest = [token_id for entry in completion.logprobs for token_id, _ in entry["top"]]
    try:
        return client.spell(request_id, [*completion.token_ids, *likeliest])
    except SkynetError:
        return {}


def _name(token: dict[str, Any]) -> str:
    """A token's text in quotes, or its id where the text does not distinguish it."""
    text = token["token"]
    name = repr(text) if text and UNDECODED not in text else f"token {token['token_id']}"
    return f"{name} {token['logprob']:.4f}"


def _print_beams(completion: Completion) -> None:
    """Print the scores of a beam search, and all hypotheses but the first, which is the answer."""
    for number, beam in enumerate(completion.beams):
        text = "" if number == 0 else f" {beam['text'] or beam['token_ids']}"
        line = f"beam {number + 1}: {beam['score']:.4f}{text}"
        terminal.err.print(line, highlight=False, markup=False)


def _print_prompt_logprobs(completion: Completion) -> None:
    """Print what the model makes of the whole prompt; `--json` has each token."""
    known = [entry["logprob"] for entry in completion.prompt_logprobs if entry is not None]
    if known:
        total = sum(known)
        line = (
            f"prompt: log-probability {total:.4f} of {terminal.many(len(known), 'token')} after "
            f"the first, perplexity {math.exp(-total / len(known)):.4g}"
        )
        terminal.err.print(line, highlight=False, markup=False)
