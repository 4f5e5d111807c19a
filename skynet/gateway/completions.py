"""/v1/completions: runs prompts, and writes OpenAI's objects, whole and as chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from skynet.client.generation import Generation
from skynet.gateway.answers import finished
from skynet.gateway.clusters import Cluster, Served
from skynet.gateway.gateway import Gateway
from skynet.gateway.logprobs import LegacyLogprobs
from skynet.gateway.prompts import EncodedPrompt, answer_limit, completion_prompt
from skynet.gateway.run import Origin, Run
from skynet.gateway.schemas.completion import CompletionBody
from skynet.gateway.sse import DONE, Event
from skynet.gateway.usage import Usage
from skynet.request.record import End, Token

KIND = "completion"


@dataclass(frozen=True)
class Form:
    """What decides the form of an answer.

    prompts: each has `choices` answers, one after the other.
    echo: the prompt is repeated before each of its answers.
    """

    prompts: tuple[EncodedPrompt, ...]
    choices: int
    has_logprobs: bool
    echo: bool


async def start_completions(gateway: Gateway, origin: Origin, body: CompletionBody) -> Run:
    """Submit a body's prompts: all, or none if one of them is refused.

    Raises:
        ApiError, SkynetError: why they cannot run.
    """
    options = body.options()
    cluster = await gateway.clusters.find(body.model)
    served = await cluster.served()
    prompts = await cluster.call(
        lambda: [completion_prompt(served, prompt) for prompt in body.prompts()]
    )
    if body.logprobs is not None:
        options["logprobs"] = body.logprobs
    if (scored := body.scored_prompt) is not None:
        options["prompt_logprobs"] = scored
    if (structure := body.structure()) is not None:
        options["structured_outputs"] = structure
    form = Form(tuple(prompts), body.choices, body.logprobs is not None, bool(body.echo))
    more = {"choices": body.choices, "has_logprobs": form.has_logprobs}
    about = origin.annotations(served, KIND, more)
    options["traceparent"] = origin.traceparent
    generations = await _submit(cluster, served, form, body.limit, about, options)
    usage = Usage(prompt_tokens=sum(len(prompt.ids) for prompt in prompts))
    goes_on = origin.continues and len(prompts) == 1
    return Run(gateway, cluster, served, generations, about, goes_on, usage, form)


def form_of(run: Run) -> Form:
    """The form of a run's answer; one that is taken up again has one prompt, and repeats none."""
    if isinstance(run.form, Form):
        return run.form
    prompt = EncodedPrompt([])
    return Form((prompt,), len(run.generations), bool(run.about.get("has_logprobs")), False)


async def _submit(
    cluster: Cluster,
    served: Served,
    form: Form,
    limit: int,
    about: dict[str, Any],
    options: dict[str, Any],
) -> list[Generation]:
    """A generation for each choice of each prompt; if one is refused none stays."""
    generations: list[Generation] = []
    try:
        for prompt in form.prompts:
            longest = answer_limit(served, len(prompt.ids), limit, "prompt")
            generations += await cluster.submit(
                prompt.ids, n=form.choices, annotations=about, max_tokens=longest, **options
            )
    except BaseException:
        await finished(cluster.cancel(generations))
        raise
    return generations


async def completion(run: Run) -> dict[str, Any]:
    """The whole answer."""
    choices = _choices(run)
    async with aclosing(run.steps()) as steps:
        async for step in steps:
            choices[step.choice].add(step.item)
    return {
        **_head(run),
        "choices": [choice.piece(choice.echoed(run) + choice.text) for choice in choices],
        "usage": run.usage.to_json(),
    }


async def completion_events(
    run: Run, include_usage: bool, continuous_usage: bool = False, after: str = ""
) -> AsyncGenerator[Event]:
    """The answer as chunks; ids of events as of `chat_events`."""
    form, choices, head = form_of(run), _choices(run), _head(run)

    def chunk(choice: dict[str, Any], position: str) -> Event:
        usage: dict[str, Any] = {"usage": None} if include_usage else {}
        if continuous_usage:
            usage = {"usage": run.usage.to_json()}
        return Event({**head, "choices": [choice], **usage}, id=position)

    if form.echo and not after:
        for choice in choices:
            yield chunk(choice.piece(choice.echoed(run)), "")
    async with aclosing(run.steps(after)) as steps:
        async for step in steps:
            choice, item = choices[step.choice], step.item
            choice.add(item)
            text, is_end = item.text, isinstance(item, End)
            if not step.is_seen and (text or is_end or form.has_logprobs):
                yield chunk(choice.piece(text), step.position)
    if include_usage:
        yield Event({**head, "choices": [], "usage": run.usage.to_json()})
    yield Event(DONE)


def _choices(run: Run) -> list[_Choice]:
    form, spell = form_of(run), run.served.model.text.spell
    return [_Choice(form, index, LegacyLogprobs(spell)) for index in range(len(run.generations))]


class _Choice:
    """One answer so far."""

    def __init__(self, form: Form, index: int, logprobs: LegacyLogprobs) -> None:
        self.form = form
        self.index = index
        self.prompt = form.prompts[index // form.choices]
        self.logprobs = logprobs
        self.text = ""
        self.finish_reason: str | None = None
        self._answer: list[Token] = []  # with log-probabilities that follow the prompt's

    def add(self, item: Token | End) -> None:
        self.text += item.text
        if isinstance(item, End):
            self.finish_reason = item.finish_reason
            self._add_logprobs(item)
        elif item.logprobs is not None:
            self._answer.append(item)
            if not self.form.echo:
                self._take_answer()

    def _add_logprobs(self, end: End) -> None:
        """Those of the prompt, if it is repeated, which come at the end; then the answer's."""
        for token_id, entry in zip(
            self.prompt.ids, end.answer.get("prompt_logprobs", ()), strict=False
        ):
            if entry is None:
                self.logprobs.add(token_id, None)
            else:
                self.logprobs.add(token_id, entry["logprob"], entry["top"])
        self._take_answer()

    def _take_answer(self) -> None:
        for token in self._answer:
            if token.logprobs is not None:
                self.logprobs.add(token.id, token.logprobs.logprob, token.logprobs.top)
        self._answer.clear()

    def echoed(self, run: Run) -> str:
        """The prompt's text, if it is to be repeated."""
        if not self.form.echo:
            return ""
        return self.prompt.text or run.served.model.text.decode(self.prompt.ids)

    def piece(self, text: str) -> dict[str, Any]:
        """A choice of a chunk."""
        return {
            "index": self.index,
            "text": text,
            "logprobs": self.logprobs.take() if self.form.has_logprobs else None,
            "finish_reason": self.finish_reason,
        }


def _head(run: Run) -> dict[str, Any]:
    return {
        "id": f"cmpl-{run.id}",
        "object": "text_completion",
        "created": run.created,
        "model": run.model,
    }
