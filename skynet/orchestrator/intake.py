"""Taking requests in: from their records, whether their message came or was lost."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from skynet.architecture.architecture import Architecture
from skynet.engine.engine import Engine
from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence
from skynet.errors import BadRequest, RequestCancelled, RequestTimeout, StepFailed
from skynet.models.registry import load_architecture
from skynet.orchestrator.answers import Answers
from skynet.request.record import Record
from skynet.store.plans import Target
from skynet.store.requests import Requests
from skynet.store.weights import WeightStore
from skynet.tokenizer.text import Text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """The model that requests are answered with."""

    digest: str
    arch: Architecture
    text: Text
    end_ids: frozenset[int]

    @classmethod
    def staged(cls, client: redis.Redis, target: Target) -> tuple[Served | None, str]:
        """From what is staged; without a model, why there is none."""
        store = WeightStore(client)
        manifest = store.manifest(target.model)
        if manifest is None:
            return None, f"{target.name} is asked for, and not staged"
        files = store.read_files(manifest)
        lacking = sorted(set(manifest.files) - files.keys())
        if lacking:
            return None, f"{target.name}: {', '.join(lacking)} is not in Redis any more"
        arch = load_architecture(manifest.config)
        return cls(target.model, arch, Text(files), end_ids(manifest.config, files)), ""


class Intake:
    """Makes sequences of records, for one engine after another."""

    def __init__(
        self, served: Served, target: Target, requests: Requests, answers: Answers
    ) -> None:
        self.served = served
        self.target = target
        self.requests = requests
        self.answers = answers

    def sweep(self, engine: Engine) -> None:
        """Adopt requests whose message was lost, or that another orchestrator left behind."""
        for request_id in self.requests.open_ids():
            if request_id not in engine.sequences:
                self.accept(engine, request_id)

    def accept(self, engine: Engine, request_id: str) -> None:
        """Take one in; a record that this version cannot read ends with an error."""
        try:
            record = self.requests.read(request_id)
            if record is None:
                self.requests.forget(request_id)
            elif record.state != "done" and request_id not in engine.sequences:
                self._adopt(engine, record)
        except (ValueError, TypeError, KeyError) as error:
            logger.exception("request %s cannot be read", request_id)
            told = f"request {request_id} cannot be read: {type(error).__name__}: {error}"
            self.answers.refuse(request_id, BadRequest(told))

    def _adopt(self, engine: Engine, record: Record) -> None:
        sequence = self._sequence_of(record)
        logger.info(
            "request %s: prompt of %d tokens, up to %d more",
            record.id,
            len(record.prompt),
            record.options.max_tokens,
        )
        if record.model not in ("", self.target.model):
            told = (
                "the cluster was given another model after this request was submitted: submit it "
                "again"
            )
            self.answers.failed(sequence, StepFailed(told))
        elif sequence.finish_reason:  # its last token was written, its end was not
            self.answers.finished(sequence)
        elif problem := _misfit(sequence, self.target):
            self.answers.failed(sequence, BadRequest(problem))
        else:
            engine.accept(sequence)
            if record.cancelled:
                engine.cancel(record.id)

    def _sequence_of(self, record: Record) -> Sequence:
        """With the tokens that were written before."""
        served = self.served
        model = ModelInfo(served.arch, served.text, served.end_ids, self.target.slot_tokens)
        sequence = Sequence.of(record, model, self.requests.now)
        if record.emitted:
            emitted = self.requests.emitted(record.id)
            logprobs = [token.logprobs for token in emitted if token.logprobs is not None]
            sequence.output.restore([token.id for token in emitted], logprobs)
        return sequence


def _misfit(sequence: Sequence, target: Target) -> str:
    """Why a request does not fit a plan that was made after it was submitted; "" if it does."""
    prompt, room = len(sequence.record.prompt), target.slot_tokens
    if prompt > room or sequence.mode.min_length > room:
        return f"the prompt has {prompt} tokens, a slot of the new plan has {room}"
    if sequence.mode.num_slots > target.num_slots:
        return f"{sequence.mode.num_slots} beams, the new plan has {target.num_slots} slots"
    return ""


def expire(requests: Requests, answers: Answers, problem: str) -> None:
    """With no model to run, because of `problem`, deadlines hold all the same."""
    now = requests.now()
    for request_id in requests.open_ids():
        record = requests.read(request_id)
        if record is None:
            requests.forget(request_id)
        elif record.cancelled:
            told = f"request {request_id} was cancelled"
            answers.refuse(request_id, RequestCancelled(told))
        elif now > record.deadline:
            told = f"request {request_id} was not begun by its deadline: {problem}"
            answers.refuse(request_id, RequestTimeout(told))


def end_ids(config: Mapping[str, Any], files: Mapping[str, bytes]) -> frozenset[int]:
    """End-of-sequence ids: the generation config's, or else the model config's."""
    generation = json.loads(files.get("generation_config.json", b"{}") or b"{}")
    found = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = found if isinstance(found, list) else [found]
    return frozenset(int(item) for item in ids if item is not None)
