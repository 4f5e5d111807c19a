"""submit_prompt() and what it returns. A client holds nothing that the cluster needs."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, overload

import redis
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult
from kombu.exceptions import OperationalError

from skynet import errors
from skynet.errors import BadRequest, ClusterUnreachable, RequestTimeout, SkynetError
from skynet.request.completion import Completion
from skynet.request.options import LANGUAGES, check_priority, check_samples
from skynet.request.prompts import Prompt, check_token_ids, token_ids
from skynet.request.record import End, Record, Token
from skynet.request.task_names import GENERATE
from skynet.settings import settings
from skynet.store.connection import backend_url, broker_url, connect, ping, reachable
from skynet.store.requests import Requests
from skynet.store.targets import Target, Targets
from skynet.wire import keys

if TYPE_CHECKING:
    from celery import Celery

    from skynet.client.served_model import ServedModel

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 0.1  # between tries while Redis is away
GRACE_S = 10.0  # how long after a request's deadline a client still waits for its end


class Generation(AsyncResult):
    """A request under way: Celery's AsyncResult, with the answer as it comes.

    `Generation(id)` in any process takes hold of a request that was submitted elsewhere.
    """

    def __init__(
        self, id: str, client: Client | None = None, deadline: float | None = None
    ) -> None:
        self.client = client or default_client()
        self._deadline = deadline  # by Redis's clock; read from the record when it is needed
        super().__init__(id, app=self.client.app)

    def get(
        self, timeout: float | None = None, propagate: bool = True, **_options: Any
    ) -> Completion:
        """Wait for the whole answer, through restarts of Redis.

        timeout: seconds; by default until the request's own deadline.
        propagate: False returns the error that the request ended with, rather than raise it.
        Celery's other options are taken and mean nothing here: nothing is polled.

        Raises:
            celery.exceptions.TimeoutError: not done in time; it goes on.
            ClusterUnreachable: Redis was away until then.
            RequestLost: Redis does not know the request, or not any more.
            SkynetError: why the request failed, was cancelled or timed out.
        """
        requests = self.client.requests
        with reachable(self.client.url):
            limit = self._time_left() if timeout is None else timeout
            try:
                end = requests.wait_end(self.id, limit)
            except TimeoutError:
                if timeout is None:
                    raise RequestTimeout(self._no_end_message()) from None
                raise CeleryTimeoutError(
                    f"request {self.id} is not done after {timeout:g} s"
                ) from None
            if not end.error:
                return self._completion_of(end)
        if propagate:
            raise _error_of(end)
        return _error_of(end)  # type: ignore[return-value]  # as Celery does it

    wait = get

    def _completion_of(self, end: End) -> Completion:
        """The answer that this is the end of."""
        tokens = []
        for item in self.client.requests.stream(self.id, 0, GRACE_S):
            if isinstance(item, Token):
                tokens.append(item)
        record = self._record()
        return Completion(
            text="".join(token.text for token in tokens) + end.text,
            token_ids=[token.id for token in tokens],
            prompt_tokens=len(record.prompt) if record else 0,
            finish_reason=end.finish_reason,
            timings=end.timings,
            logprobs=[token.logprobs.as_dict() for token in tokens if token.logprobs],
            **end.answer,
        )

    @property
    def completion(self) -> Completion | None:
        """The answer if it is there, without waiting."""
        return Completion(**self.result) if self.successful() else None

    def tokens(self, start: int = 0, timeout: float | None = None) -> Iterator[Token]:
        """Tokens from number `start` on, as they are made. From any process, as often as wanted.

        timeout: longest wait for the next token, seconds; by default until the deadline.

        Raises:
            TimeoutError: no token in time.
            ClusterUnreachable: Redis was away for as long.
            RequestLost: Redis does not know the request, or not any more.
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
                self.client.send(keys.CANCEL_TASK, (self.id,))
            return asked

    def __await__(self) -> Generator[Any, None, Completion]:
        return asyncio.to_thread(self.get).__await__()

    def _time_left(self) -> float:
        """Seconds to the deadline and a little more, by Redis's clock."""
        if self._deadline is None:
            record = self._record()
            self._deadline = record.deadline if record else 0.0
        return GRACE_S + max(0.0, self._deadline - _patiently(self.client.requests.now))

    def _record(self) -> Record | None:
        return _patiently(lambda: self.client.requests.read(self.id))

    def _no_end_message(self) -> str:
        return (
            f"request {self.id} has not ended {GRACE_S:g} s after its deadline: is an orchestrator "
            "running? Start one with `celery -A skynet worker -Q orchestrator`"
        )


def _patiently(ask: Callable[[], T]) -> T:
    """What Redis answers; one that is away for a moment is asked again."""
    give_up = time.monotonic() + GRACE_S
    while True:
        try:
            return ask()
        except (redis.ConnectionError, redis.TimeoutError):
            if time.monotonic() > give_up:
                raise
            time.sleep(RETRY_S)


def _last(end: End) -> Iterator[Token]:
    """The text that was held back, or the error."""
    if end.error:
        raise _error_of(end)
    if end.text:
        yield Token(-1, -1, end.text)


def _error_of(end: End) -> SkynetError:
    cls = getattr(errors, end.error, SkynetError)
    known = isinstance(cls, type) and issubclass(cls, SkynetError)
    error: SkynetError = (cls if known else SkynetError)(end.message)
    return error


class Client:
    """A way to one cluster.

    url: its Redis; `SKYNET_REDIS_URL` by default.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = url or settings().redis_url
        self.redis = connect(self.url)
        self.requests = Requests(self.redis, settings().result_expires_s)
        self._models: dict[str, ServedModel] = {}

    @cached_property
    def app(self) -> Celery:
        """A Celery app that talks to this cluster."""
        from skynet.chords.app import SkynetCelery

        app = SkynetCelery("skynet", set_as_current=False, config_source="celeryconfig")
        app.conf.update(broker_url=broker_url(self.url), result_backend=backend_url(self.url))
        return app

    @overload
    def submit_prompt(
        self,
        prompt: Prompt,
        *,
        task: str = GENERATE,
        timeout: float | None = None,
        raw: bool = True,
        priority: int = 0,
        n: None = None,
        **options: Any,
    ) -> Generation: ...

    @overload
    def submit_prompt(
        self,
        prompt: Prompt,
        *,
        task: str = GENERATE,
        timeout: float | None = None,
        raw: bool = True,
        priority: int = 0,
        n: int,
        **options: Any,
    ) -> list[Generation]: ...

    def submit_prompt(
        self,
        prompt: Prompt,
        *,
        task: str = GENERATE,
        timeout: float | None = None,
        raw: bool = True,
        priority: int = 0,
        n: int | None = None,
        **options: Any,
    ) -> Generation | list[Generation]:
        """Ask for an answer, or for `n`; returns at once. See `skynet.submit_prompt`."""
        ping(self.url)
        with reachable(self.url):
            target = self._target()
            model = self._model(target.model)
            model.text_tasks.check_task(task, n)
            languages = {}
            if task == GENERATE:
                languages = {name: options.pop(name, None) for name in LANGUAGES}
            ids = token_ids(prompt, model.text, raw or task != GENERATE, **languages)
            if (language := languages.get("target_language")) is not None:
                options = model.answering_in(options, language)
            if len(ids) >= target.slot_tokens:  # before every id is looked at
                model.check(task, options, ids, target)
            check_token_ids(ids, model.vocab_size)
            checked = model.check(task, options, ids, target)
            allowed = _checked_timeout(timeout)
            now = self.requests.clock.now(exact=True)
            record = Record(
                str(uuid.uuid4()),
                tuple(ids),
                checked,
                now,
                now + allowed,
                model=target.model,
                priority=check_priority(priority),
            )
            records = samples_of(record, 1 if n is None else check_samples(n, checked))
            self.requests.create_all(records, settings().max_waiting + target.num_slots)
        for each in records:
            self._tell(each)
        generations = [Generation(each.id, self, each.deadline) for each in records]
        return generations[0] if n is None else generations

    def _tell(self, record: Record) -> None:
        """Send the task. The record is written: should this be lost, a sweep finds the request."""
        options = record.options
        about: dict[str, Any] = {"prompt_tokens": len(record.prompt)}
        if options.read is None:
            about["max_tokens"] = options.max_tokens
        else:
            about["task"] = options.read["task"]
        try:
            self.send(
                keys.GENERATE_TASK,
                task_id=record.id,
                argsrepr=f"(prompt of {len(record.prompt)} tokens)",
                kwargsrepr=json.dumps(about),
            )
        except ClusterUnreachable as error:
            logger.warning("request %s is written, its message was not sent: %s", record.id, error)

    def send(self, task: str, arguments: tuple[str, ...] = (), **options: Any) -> None:
        """Send a task to the orchestrator.

        Raises:
            ClusterUnreachable: Redis did not take it.
        """
        with reachable(self.url):
            try:
                self.app.send_task(task, arguments, queue=keys.ORCHESTRATOR_QUEUE, **options)
            except OperationalError as error:
                raise redis.ConnectionError(str(error)) from error

    def submit_prompts(self, prompts: Iterable[Prompt], **options: Any) -> list[Generation]:
        """Many at once: they share steps.

        Raises:
            BadRequest: `n`, which is for one prompt.
        """
        if options.get("n") is not None:
            raise BadRequest(f"n {options['n']!r:.80}: call submit_prompt for each prompt")
        return [self.submit_prompt(prompt, **options) for prompt in prompts]

    def close(self) -> None:
        """Close this client's connections."""
        if "app" in self.__dict__:
            self.app.close()
        self.redis.close()

    def has_chat_template(self) -> bool:
        """Does the model in force expect chat messages?"""
        return self._model(self._target().model).text.has_chat_template

    def _target(self) -> Target:
        """What the cluster is asked to run."""
        return Targets(self.redis).require()

    def _model(self, digest: str) -> ServedModel:
        if digest not in self._models:
            from skynet.client.served_model import ServedModel

            self._models = {digest: ServedModel.staged(self.redis, digest)}
        return self._models[digest]


def samples_of(record: Record, count: int) -> list[Record]:
    """Records of `count` answers to one prompt, which share its prefill.

    Each is a request of its own; sample i has the seed of the first plus i.
    """
    if count == 1:
        return [record]
    seed, samples = record.options.seed, []
    for number in range(count):
        own = None if seed is None else (seed + number) % 2**64
        samples.append(
            replace(
                record,
                id=record.id if number == 0 else str(uuid.uuid4()),
                options=replace(record.options, seed=own),
                sample_group=record.id,
            )
        )
    return samples


def _checked_timeout(timeout: float | None) -> float:
    allowed = settings().request_timeout_s if timeout is None else timeout
    if not 0 < allowed < 1e9:
        raise BadRequest(f"timeout {timeout}: seconds, more than 0")
    return allowed


@lru_cache(maxsize=1)
def default_client() -> Client:
    """The client of `SKYNET_REDIS_URL`."""
    return Client()


@overload
def submit_prompt(
    prompt: Prompt,
    *,
    task: str = GENERATE,
    timeout: float | None = None,
    raw: bool = True,
    priority: int = 0,
    n: None = None,
    **options: Any,
) -> Generation: ...


@overload
def submit_prompt(
    prompt: Prompt,
    *,
    task: str = GENERATE,
    timeout: float | None = None,
    raw: bool = True,
    priority: int = 0,
    n: int,
    **options: Any,
) -> list[Generation]: ...


def submit_prompt(
    prompt: Prompt,
    *,
    task: str = GENERATE,
    timeout: float | None = None,
    raw: bool = True,
    priority: int = 0,
    n: int | None = None,
    **options: Any,
) -> Generation | list[Generation]:
    """Ask the cluster at `SKYNET_REDIS_URL` for an answer; returns at once.

    prompt: text; chat messages, a list of {"role": ..., "content": ...}; or a list of token ids.
    task: `generate`; or, of a text that is only read, `embed` (options pooling: mean, cls, last or
        max, and normalize; by default as the model's modules.json says, or mean), `fill-mask`
        (top_k: 5) or `classify`. Encoders read, decoders generate; one with a modules.json embeds.
    timeout: seconds until the request is given up, `SKYNET_REQUEST_TIMEOUT_S` by default.
    raw: False puts a text into the model's chat template, if it has one.
    priority: 0 to 9; who waits with a higher one runs first, as in AMQP. Who runs is not
        interrupted.
    n: 1 to 16 answers, a list of as many Generations; the prompt is computed once for those that
        run at the same time. Answer i is the one that `seed` + i alone gives.
    options: max_tokens (128), temperature (0: greedy), do_sample (with the model's own
        temperature), top_k (0: off), top_p (1: off), min_p (0: off), seed, stop (a text or
        several), ignore_eos, repetition_penalty (1: off), no_repeat_ngram_size (0: off),
        min_new_tokens, bad_words (texts), bad_words_ids, suppress_tokens, begin_suppress_tokens,
        forced_bos_token_id, forced_eos_token_id, logprobs (0 to 20 alternatives a token),
        num_beams (1: no beam search), length_penalty (1), early_stopping (False),
        renormalize_logits (False); of an encoder-decoder decoder_start_token_id, and of a text to
        translate source_language and target_language, by the codes of the model's tokenizer.
        Defaults are the model's generation_config.json's where it sets them; temperature, top_k,
        top_p and min_p of that file hold for requests that sample.

    Raises:
        BadRequest: names what cannot work.
        ClusterUnreachable, NoModel, QueueFull: why the cluster cannot take it now.
    """
    return default_client().submit_prompt(
        prompt, task=task, timeout=timeout, raw=raw, priority=priority, n=n, **options
    )


def submit_prompts(prompts: Iterable[Prompt], **options: Any) -> list[Generation]:
    """Ask for many answers at once; they share steps. Options as of `submit_prompt`."""
    return default_client().submit_prompts(prompts, **options)
