"""A chat's answer as pieces that any API can be written from: chats, responses, messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from skynet.gateway.answer_form import AnswerForm, Parser
from skynet.gateway.gateway import Gateway
from skynet.gateway.logprobs import chat_entry
from skynet.gateway.parsing.deltas import Delta, ToolCallDelta
from skynet.gateway.prompts import answer_limit, chat_prompt
from skynet.gateway.run import Origin, Run, Step
from skynet.gateway.schemas.chat import ChatBody
from skynet.gateway.usage import Usage
from skynet.request.record import End

KIND = "chat"


@dataclass(frozen=True)
class ChatPiece:
    """What a step adds to one answer.

    deltas: in order; none for a token whose text comes with a later one.
    logprobs: of its token, if requested.
    finish_reason: "" until the answer's end.
    position: see `Step`.
    stop: the stop string that ended the answer.
    """

    choice: int
    deltas: list[Delta]
    logprobs: list[dict[str, Any]]
    finish_reason: str
    position: str
    stop: str = ""


class Choice:
    """One answer so far."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser
        self.has_tool_calls = False

    def deltas(self, step: Step) -> list[Delta]:
        """What a step adds."""
        deltas = self.parser.feed(step.item.text)
        if isinstance(step.item, End):
            deltas += self.parser.finish()
        self.has_tool_calls = self.has_tool_calls or any(each.tool_call for each in deltas)
        return deltas

    def finish_reason(self, end: End) -> str:
        """OpenAI's word for why the answer ended."""
        if self.has_tool_calls and end.finish_reason == "stop":
            return "tool_calls"
        return end.finish_reason


@dataclass(frozen=True)
class ChatForm:
    """What the pieces of a run are made with."""

    answers: AnswerForm
    prompt_text: str


async def start_chat(
    gateway: Gateway,
    origin: Origin,
    body: ChatBody,
    kind: str = KIND,
    more: Mapping[str, Any] | None = None,
) -> Run:
    """Submit a chat.

    kind, more: of the annotations.

    Raises:
        ApiError, SkynetError: why it cannot run.
    """
    options = body.options()
    cluster = await gateway.clusters.find(body.model)
    served = await cluster.served()
    form = await cluster.call(lambda: AnswerForm.of(served, body))
    prompt = await cluster.call(lambda: chat_prompt(served, body, form))
    options["max_tokens"] = answer_limit(served, len(prompt.ids), body.limit, "messages")
    if (top := body.top()) is not None:
        options["logprobs"] = top
    structure = form.grammar(body, prompt.text) or body.structure()
    if structure is not None:
        options["structured_outputs"] = structure
    if form.keeps_special_tokens:
        options["skip_special_tokens"] = False
    kept = {"choices": body.choices, **form.annotations(), **(more or {})}
    about = origin.annotations(served, kind, kept)
    options["traceparent"] = origin.traceparent
    generations = await cluster.submit(prompt.ids, n=body.choices, annotations=about, **options)
    usage = Usage(prompt_tokens=len(prompt.ids))
    chat = ChatForm(form, prompt.text)
    return Run(gateway, cluster, served, generations, about, origin.continues, usage, chat)


async def chat_pieces(run: Run, after: str = "") -> AsyncGenerator[ChatPiece]:
    """The answers' pieces, those after a position.

    Raises:
        SkynetError: why an answer failed.
    """
    spell, form = run.served.model.text.spell, await _form_of(run)
    choices = [Choice(form.answers.parser(form.prompt_text)) for _ in run.generations]
    async with aclosing(run.steps(after)) as steps:
        async for step in steps:
            choice, item = choices[step.choice], step.item
            run.usage.reasoning_tokens += choice.parser.in_reasoning
            deltas = choice.deltas(step)
            if step.is_seen:
                continue
            logprobs, reason, stop = [], "", ""
            if isinstance(item, End):
                reason, stop = choice.finish_reason(item), item.stop
            elif item.logprobs is not None:
                logprobs = [chat_entry(item.id, item.logprobs, spell)]
            if deltas or logprobs or reason:
                yield ChatPiece(step.choice, deltas, logprobs, reason, step.position, stop)


async def _form_of(run: Run) -> ChatForm:
    """The form of a run, also of one that is taken up again."""
    if not isinstance(run.form, ChatForm):
        record = await run.cluster.call(run.generations[0].record)
        prompt = record.prompt if record else ()
        text = run.served.model.text.decode(prompt, False)
        run.form = ChatForm(AnswerForm.again(run.served, run.about), text)
    return run.form


@dataclass
class ChatAnswer:
    """One whole answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = ""
    stop: str = ""

    def add(self, piece: ChatPiece) -> None:
        for delta in piece.deltas:
            self.content += delta.content
            self.reasoning += delta.reasoning
            if delta.tool_call is not None:
                self._add_call(delta.tool_call)
        self.logprobs += piece.logprobs
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.stop = piece.stop or self.stop

    def _add_call(self, delta: ToolCallDelta) -> None:
        while len(self.tool_calls) <= delta.index:
            function = {"name": "", "arguments": ""}
            self.tool_calls.append({"id": "", "type": "function", "function": function})
        call = self.tool_calls[delta.index]
        call["id"] = call["id"] or delta.id
        call["function"]["name"] = call["function"]["name"] or delta.name
        call["function"]["arguments"] += delta.arguments


async def whole_chat(run: Run) -> list[ChatAnswer]:
    """All answers, when they have ended."""
    answers = [ChatAnswer() for _ in run.generations]
    async with aclosing(chat_pieces(run)) as pieces:
        async for piece in pieces:
            answers[piece.choice].add(piece)
    return answers
