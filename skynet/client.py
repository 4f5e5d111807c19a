"""submit_prompt() and what it returns. A client holds nothing that the cluster needs."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from skynet import errors, names
from skynet.errors import BadRequest, QueueFull, RequestTimeout, SkynetError
from skynet.options import check_options
from skynet.planning.plan import Plan
from skynet.settings import settings
from skynet.store.connection import backend_url, broker_url, connect, ping, reachable
from skynet.store.plans import Plans
from skynet.store.requests import End, Record, Requests, Token
from skynet.store.weights import Manifest, WeightStore

if TYPE_CHECKING:
    from celery import Celery

    from skynet.text import Text

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]

MAX_PROMPT_CHARACTERS = 4_000_000
GRACE_S = 10.0  # how long after a request's deadline a client still waits for its end


@dataclass(frozen=True)
class Completion:
    """An answer. `token_ids` are the generated ones only; `finish_reason` is `stop` or `length`.

    timings: `first_token_s` and `total_s` since submission, `decode_tokens_per_s` after the first
    token, `queued_s` before the first step.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: str
    timings: dict[str, float] = field(default_factory=dict)


class Generation(AsyncResult):
    """A request under way: Celery's AsyncResult, with the answer as it comes.

    `Generation(id)` in any process takes hold of a request that was submitted elsewhere.
    """

    def __init__(self, id: str, client: Client | None = None) -> None:
        self.client = client or default_client()
        super().__init__(id, app=self.client.app)

    def get(self, timeout: float | None = None, **options: Any) -> Completion:
        """Wait for the whole answer.

        timeout: seconds; by default until the request's own deadline.

        Raises:
            celery.exceptions.TimeoutError: not done in time; it goes on.
            SkynetError: why the request failed, was cancelled or timed out.
        """
        limit = self._time_left() if timeout is None else timeout
        try:
            return Completion(**super().get(timeout=limit, **options))
        except CeleryTimeoutError:
            if timeout is None:
                raise RequestTimeout(self._no_end_message()) from None
            raise

    @property
    def completion(self) -> Completion | None:
        """The answer if it is there, without waiting."""
        return Completion(**self.result) if self.successful() else None

    def tokens(self, start: int = 0, timeout: float | None = None) -> Iterator[Token]:
        """Tokens from number `start` on, as they are made. From any process, as often as wanted.

        timeout: longest wait for the next token, seconds; by default until the deadline.

        Raises:
            TimeoutError: no token in time.
            SkynetError: why the request failed, was cancelled or timed out.
        """
        with reachable(self.client.url):
            limit = self._time_left() if timeout is None else timeout
            for item in self._stream(start, limit, own_limit=timeout is None):
                if isinstance(item, Token):
                    yield item
                else:
                    yield from _last(item)

    def _stream(self, start: int, limit: float, own_limit: bool) -> Iterator[Token | End]:
        try:
            yield from self.client.requests.stream(self.id, start, limit)
        except TimeoutError:
            if own_limit:
                raise RequestTimeout(self._no_end_message()) from None
            raise

    def stream(self, start: int = 0, timeout: float | None = None) -> Iterator[str]:
        """The text in pieces, as it is made; see `tokens` for arguments and errors."""
        for token in self.tokens(start, timeout):
            if token.text:
                yield token.text

    def cancel(self) -> bool:
        """Ask for an end at the next step; False if the request has ended already."""
        with reachable(self.client.url):
            asked = self.client.requests.ask_cancel(self.id)
            if asked:
                self.client.app.send_task(
                    names.CANCEL_TASK, (self.id,), queue=names.ORCHESTRATOR_QUEUE
                )
            return asked

    def __await__(self) -> Generator[Any, None, Completion]:
        return asyncio.to_thread(self.get).__await__()

    def _time_left(self) -> float:
        record = self.client.requests.read(self.id)
        return GRACE_S + (max(0.0, record.deadline - time.time()) if record else 0.0)

    def _no_end_message(self) -> str:
        return (
            f"request {self.id} has not ended {GRACE_S:g} s after its deadline: is an orchestrator "
            "running? Start one with `celery -A skynet worker -Q orchestrator`"
        )


def _last(end: End) -> Iterator[Token]:
    """The text that was held back, or the error."""
    if end.error:
        cls = getattr(errors, end.error, SkynetError)
        known = isinstance(cls, type) and issubclass(cls, SkynetError)
        raise (cls if known else SkynetError)(end.message)
    if end.text:
        yield Token(-1, -1, end.text)


class Client:
    """A way to one cluster.

    url: its Redis; `SKYNET_REDIS_URL` by default.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = url or settings().redis_url
        self.redis = connect(self.url)
        self.requests = Requests(self.redis, settings().result_expires_s)
        self._models: dict[str, tuple[Manifest, Text]] = {}

    @cached_property
    def app(self) -> Celery:
        """A Celery app that talks to this cluster."""
        from skynet.celery import SkynetCelery

        app = SkynetCelery("skynet", set_as_current=False, config_source="celeryconfig")
        app.conf.update(broker_url=broker_url(self.url), result_backend=backend_url(self.url))
        return app

    def submit_prompt(
        self, prompt: Prompt, *, timeout: float | None = None, raw: bool = True, **options: Any
    ) -> Generation:
        """Ask for an answer; returns at once. See `skynet.submit_prompt`."""
        ping(self.url)
        plan = Plans(self.redis).require()
        if self.requests.num_open() >= settings().max_waiting:
            raise QueueFull(
                f"{settings().max_waiting} requests are unfinished: try again later, or raise "
                "SKYNET_MAX_WAITING"
            )
        manifest, text = self._model(plan)
        ids = token_ids(prompt, text, raw)
        if len(ids) >= plan.slot_tokens:  # before every id is looked at
            check_options(options, len(ids), plan.slot_tokens)
        check_token_ids(ids, int(manifest.config["vocab_size"]))
        checked = check_options(options, len(ids), plan.slot_tokens)
        allowed = settings().request_timeout_s if timeout is None else timeout
        if not 0 < allowed < 1e9:
            raise BadRequest(f"timeout {timeout}: seconds, more than 0")
        now = time.time()
        record = Record(
            str(uuid.uuid4()), tuple(ids), checked, now, now + allowed, model=plan.model
        )
        with reachable(self.url):
            self.requests.create(record)
            self.app.send_task(
                names.GENERATE_TASK,
                task_id=record.id,
                queue=names.ORCHESTRATOR_QUEUE,
                argsrepr=f"(prompt of {len(ids)} tokens)",
                kwargsrepr=json.dumps(
                    {"prompt_tokens": len(ids), "max_tokens": checked.max_tokens}
                ),
            )
        return Generation(record.id, self)

    def submit_prompts(self, prompts: Iterable[Prompt], **options: Any) -> list[Generation]:
        """Many at once: they share steps."""
        return [self.submit_prompt(prompt, **options) for prompt in prompts]

    def close(self) -> None:
        """Close this client's connections."""
        if "app" in self.__dict__:
            self.app.close()
        self.redis.close()

    def has_chat_template(self) -> bool:
        """Does the model in force expect chat messages?"""
        return self._model(Plans(self.redis).require())[1].has_chat_template

    def _model(self, plan: Plan) -> tuple[Manifest, Text]:
        """What a client needs of the model: its config and its tokenizer, both from Redis."""
        if plan.model not in self._models:
            from skynet.text import Text

            store = WeightStore(self.redis)
            manifest = store.require_manifest(plan.model)
            self._models = {plan.model: (manifest, Text(store.read_files(manifest)))}
        return self._models[plan.model]


def token_ids(prompt: Prompt, text: Text, raw: bool) -> list[int]:
    """The prompt as token ids: text, chat messages, or ids as they are.

    raw: False puts a text into the model's chat template, as the user's message, if there is one.

    Raises:
        BadRequest: empty, too long, of no such type, or the model has no tokenizer or template.
    """
    if isinstance(prompt, str):
        check_text(prompt)
        if not raw and text.has_chat_template:
            return text.chat([{"role": "user", "content": prompt}])
        ids = text.encode(prompt)
        if not ids:
            raise BadRequest("prompt: it has no tokens")
        return ids
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise BadRequest(
            f"prompt: expected text, chat messages or token ids, got {type(prompt).__name__}"
        )
    if not prompt:
        raise BadRequest("prompt: it is empty")
    if isinstance(prompt[0], Mapping):
        length = sum(len(str(m.get("content", ""))) for m in prompt if isinstance(m, Mapping))
        if length > MAX_PROMPT_CHARACTERS:
            raise BadRequest(f"messages: {length} characters, at most {MAX_PROMPT_CHARACTERS}")
        return text.chat(prompt)  # type: ignore[arg-type]
    return list(prompt)  # type: ignore[arg-type]


def check_text(prompt: str) -> None:
    """Raise BadRequest if a prompt is empty or far too long for any model."""
    if not prompt.strip():
        raise BadRequest("prompt: it is empty")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise BadRequest(f"prompt: {len(prompt)} characters, at most {MAX_PROMPT_CHARACTERS}")


def check_token_ids(ids: Sequence[Any], vocab_size: int) -> None:
    """Raise BadRequest unless all are ids of this vocabulary."""
    for position, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise BadRequest(
                f"prompt: token {token!r:.40} at position {position} is none of the vocabulary's "
                f"{vocab_size} (0 to {vocab_size - 1})"
            )


@lru_cache(maxsize=1)
def default_client() -> Client:
    """The client of `SKYNET_REDIS_URL`."""
    return Client()


def submit_prompt(
    prompt: Prompt, *, timeout: float | None = None, raw: bool = True, **options: Any
) -> Generation:
    """Ask the cluster at `SKYNET_REDIS_URL` for an answer; returns at once.

    prompt: text; chat messages, a list of {"role": ..., "content": ...}; or a list of token ids.
    timeout: seconds until the request is given up, `SKYNET_REQUEST_TIMEOUT_S` by default.
    raw: False puts a text into the model's chat template, if it has one.
    options: max_tokens (128), temperature (0: greedy), top_k (0: off), top_p (1: off), seed, stop
        (a text or several), ignore_eos.

    Raises:
        BadRequest: names what cannot work.
        ClusterUnreachable, NoModel, QueueFull: why the cluster cannot take it now.
    """
    return default_client().submit_prompt(prompt, timeout=timeout, raw=raw, **options)


def submit_prompts(prompts: Iterable[Prompt], **options: Any) -> list[Generation]:
    """Ask for many answers at once; they share steps. Options as of `submit_prompt`."""
    return default_client().submit_prompts(prompts, **options)
