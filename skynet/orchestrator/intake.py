"""Accepting requests from their records, whether their message came or was lost."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import dataclass

import redis
from llguidance import LLMatcher

from skynet.architecture.architecture import Architecture
from skynet.engine.engine import Engine
from skynet.engine.grammar import Constraint, Grammars
from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence
from skynet.errors import (
    BadRequest,
    IncompatibleVersion,
    RequestCancelled,
    RequestTimeout,
    SkynetError,
    StepFailed,
    WireError,
)
from skynet.models.registry import load_architecture
from skynet.orchestrator.answers import Answers
from skynet.request.generation_config import end_ids
from skynet.request.options import check_record
from skynet.request.record import Record
from skynet.request.task_names import GENERATE
from skynet.store.foreign import is_wrong_type
from skynet.store.requests import Requests
from skynet.store.targets import Target
from skynet.store.weights import WeightStore
from skynet.tokenizer.text import Text

logger = logging.getLogger(__name__)

PATIENCE_S = 0.01  # with a grammar that compiles, before other work goes on


@dataclass(frozen=True)
class Served:
    """The model that answers requests."""

    digest: str
    arch: Architecture
    text: Text
    end_ids: frozenset[int]
    grammars: Grammars
    num_bytes: int = 0  # of its weights in Redis

    @classmethod
    def staged(cls, client: redis.Redis, target: Target) -> tuple[Served | None, str]:
        """The staged model, or None and the reason."""
        try:
            return cls._staged(WeightStore(client), target)
        except SkynetError as error:  # staged by another version of SkyNet
            return None, f"{target.name}: {error}"

    @classmethod
    def _staged(cls, store: WeightStore, target: Target) -> tuple[Served | None, str]:
        manifest = store.manifest(target.model)
        if manifest is None:
            return None, f"{target.name} is asked for, and not staged"
        files = store.read_files(manifest)
        missing = sorted(set(manifest.files) - files.keys())
        if missing:
            return None, f"{target.name}: {', '.join(missing)} is not in Redis any more"
        arch = load_architecture(manifest.config)
        text, ends = Text(files), end_ids(manifest.config, files)
        tokenizer = text.tokenizer_json if GENERATE in arch.tasks and arch.encoder is None else None
        grammars = Grammars(tokenizer, arch.vocab_size, ends)
        return cls(target.model, arch, text, ends, grammars, manifest.num_bytes), ""


class Intake:
    """Makes sequences of records."""

    def __init__(
        self, served: Served, target: Target, requests: Requests, answers: Answers
    ) -> None:
        self.served = served
        self.target = target
        self.requests = requests
        self.answers = answers
        self._compiling: dict[str, Future[LLMatcher]] = {}  # by the id of a request that waits

    def accept_compiled(self, engine: Engine) -> None:
        """Accept the requests whose grammars are compiled by now; call it often."""
        done = [request_id for request_id, future in self._compiling.items() if future.done()]
        for request_id in done:
            self.accept(engine, request_id)
            self._compiling.pop(request_id, None)

    def sweep(self, engine: Engine) -> None:
        """Accept requests whose message was lost, or that another orchestrator left."""
        for request_id in self.requests.open_ids():
            if request_id not in engine.sequences:
                self.accept(engine, request_id)

    def accept(self, engine: Engine, request_id: str) -> None:
        """Accept one; a record that cannot be read, or that breaks limits, ends with an error."""
        try:
            record = self.requests.read(request_id)
            if record is None:
                self.requests.forget(request_id)
            elif record.state == "done":
                self.requests.forget(request_id)  # its end removes it, nonsense may add it again
            elif request_id not in engine.sequences:
                self._adopt(engine, record)
        except (WireError, BadRequest, IncompatibleVersion) as error:
            reject(self.requests, self.answers, request_id, error)

    def _adopt(self, engine: Engine, record: Record) -> None:
        arch = self.served.arch
        check_record(record, (arch.encoder or arch).vocab_size, arch.vocab_size)
        option, matcher = record.options.structured_outputs, None
        if option is not None:
            compiling = self._compiling.get(record.id) or self.served.grammars.compile(
                option, PATIENCE_S
            )
            if not compiling.done():
                self._compiling[record.id] = compiling
                return
            matcher = compiling.result()
        sequence = self._sequence_of(record, matcher)
        logger.info(
            "request %s: prompt of %d tokens, up to %d more",
            record.id,
            len(record.prompt),
            record.options.max_tokens,
        )
        if record.model not in ("", self.target.model):
            message = (
                "the cluster was given another model after this request was submitted: submit it "
                "again"
            )
            self.answers.failed(sequence, StepFailed(message))
        elif sequence.finish_reason:  # the last token is written, the end is not
            self.answers.finished(sequence)
        elif problem := _misfit(sequence, self.target):
            self.answers.failed(sequence, BadRequest(problem))
        else:
            engine.accept(sequence)
            if record.cancelled:
                engine.cancel(record.id)

    def _sequence_of(self, record: Record, matcher: LLMatcher | None) -> Sequence:
        """A sequence with the tokens that are already written."""
        served = self.served
        model = ModelInfo(served.arch, served.text, served.end_ids, self.target.slot_tokens)
        sequence = Sequence.of(record, model, self.requests.now)
        output = sequence.output
        if matcher is not None:
            output.constraint = Constraint(matcher, served.arch.vocab_size)
        if record.emitted:
            emitted = self.requests.emitted(record.id)
            logprobs = [token.logprobs for token in emitted if token.logprobs is not None]
            output.restore([token.id for token in emitted], logprobs)
        if output.constraint is not None and not output.finish_reason:
            output.constraint.next_tokens()  # fails here, if at all, rather than in a step
        return sequence


def _misfit(sequence: Sequence, target: Target) -> str:
    """Why a request does not fit a plan that is newer than the request, or ""."""
    prompt, room = len(sequence.record.prompt), target.slot_tokens
    if prompt > room or sequence.mode.min_length > room:
        return f"the prompt has {prompt} tokens, a slot of the new plan has {room}"
    if sequence.mode.num_slots > target.num_slots:
        return f"{sequence.mode.num_slots} beams, the new plan has {target.num_slots} slots"
    return ""


def reject(requests: Requests, answers: Answers, request_id: str, error: SkynetError) -> None:
    """End a request that cannot be read; one that cannot even be ended is deleted."""
    try:
        kept = error if isinstance(error, IncompatibleVersion) else BadRequest(str(error))
        if answers.refuse(request_id, kept):
            return
    except redis.ResponseError as problem:
        if not is_wrong_type(problem):
            raise
    logger.error("%s: deleted", error)
    requests.discard(request_id)


def expire(requests: Requests, answers: Answers, problem: str) -> None:
    """End cancelled and overdue requests while no model is served, because of `problem`."""
    now = requests.now()
    for request_id in requests.open_ids():
        try:
            record = requests.read(request_id)
        except WireError as error:
            reject(requests, answers, request_id, error)
            continue
        if record is None:
            requests.forget(request_id)
        elif record.cancelled:
            message = f"request {request_id} was cancelled"
            answers.refuse(request_id, RequestCancelled(message))
        elif now > record.deadline:
            message = f"request {request_id} was not begun by its deadline: {problem}"
            answers.refuse(request_id, RequestTimeout(message))
