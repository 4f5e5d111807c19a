"""`submit_prompt` and the client of one cluster. A client holds nothing that the cluster needs."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from skynet.client.arguments import Arguments, check_prompts
from skynet.client.connection import ClusterConnection
from skynet.client.generation import Generation
from skynet.errors import BadRequest, ClusterUnreachable, CommandRefused, QueueFull
from skynet.request.option_table import DEFAULT_PRIORITY
from skynet.request.option_values import shown
from skynet.request.prompts import Prompt
from skynet.request.record import Options, Record
from skynet.request.task_names import GENERATE
from skynet.settings import settings
from skynet.store.connection import ping, reachable
from skynet.store.metrics import Metrics, MetricsStore
from skynet.store.targets import Target, Targets
from skynet.wire import keys

if TYPE_CHECKING:
    from skynet.client.served_model import ServedModel

logger = logging.getLogger(__name__)


class Client(ClusterConnection):
    """Submits requests to one cluster.

    url, lazy, errors: as of `ClusterConnection`.
    """

    def __init__(self, url: str | None = None, *, lazy: bool = False) -> None:
        super().__init__(url, lazy=lazy)
        self._models: dict[str, ServedModel] = {}
        self._others: dict[str, Client] = {}  # by Redis URL

    def __reduce__(self) -> Any:
        # By name, so that `submit_prompt` can be the target of a new process.
        return "default_client" if self is default_client else super().__reduce__()

    @overload
    def submit_prompt(self, prompt: Prompt, *, n: None = None, **arguments: Any) -> Generation: ...

    @overload
    def submit_prompt(self, prompt: Prompt, *, n: int, **arguments: Any) -> list[Generation]: ...

    def submit_prompt(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        task: str = GENERATE,
        timeout: float | None = None,
        raw: bool = True,
        priority: int = DEFAULT_PRIORITY,
        n: int | None = None,
        annotations: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        **options: Any,
    ) -> Generation | list[Generation]:
        """Submit a request; returns at once.

        prompt: text; chat messages, a list of {"role": ..., "content": ...}; or token ids. Of
            `rerank`, and if you want of `classify`: two texts, such as (query, document).
        model: a name of `SKYNET_CLUSTER_URLS`, whose cluster gets the request; or the name of the
            model that this cluster runs. None: whatever it runs.
        task: `generate`; or a text task: `embed` (options pooling: mean, cls, last, max, sqrt or
            weighted; normalize; prompt_name: a prompt of the model before the text; by default as
            the model's modules.json says, else mean), `fill-mask` (option top_k: 5), `classify`,
            or `rerank` (option instruction, of decoders). Encoders do text tasks, decoders
            generate; a decoder with a modules.json embeds, too.
        timeout: seconds until the request fails, `SKYNET_REQUEST_TIMEOUT_S` by default.
        raw: False puts a text into the model's chat template, if it has one.
        options of chat messages: tools, documents, continue_final_message,
            add_generation_prompt, chat_template_kwargs; see `skynet.tokenizer.chat_options`.
        priority: 0 to 9; waiting requests of a higher priority run first. Running requests are
            not interrupted.
        n: 1 to 16 answers, a list of as many Generations; those that run at the same time share
            the prompt's prefill. Answer i equals the single answer with seed `seed` + i.
        annotations: of JSON's types, kept with the request: `Generation(id).annotations()` reads
            them in any process. Its `request_id` is shown in Flower.
        traceparent: the span that the request belongs to, as in W3C Trace Context; a malformed one
            is dropped. None: OpenTelemetry's current span, if this process uses OpenTelemetry.
        options: of task `generate`, the rows of `skynet.request.option_table.OPTIONS`:
            max_tokens, temperature, top_p, stop, ... None is the default: the model's
            generation_config.json's, or the row's. temperature, top_k, top_p and min_p of that
            file apply to requests that sample.

        Raises:
            BadRequest: names the argument, its value and its limit.
            ClusterUnreachable, NoModel, QueueFull: why the cluster cannot take the request now.
        """
        arguments = Arguments.checked(task, timeout, raw, priority, n, annotations)
        arguments = arguments.in_trace(traceparent)
        generations = self.of_model(model)._submit([prompt], arguments, options)
        return generations[0] if n is None else generations

    def submit_prompts(
        self,
        prompts: Iterable[Prompt],
        *,
        model: str | None = None,
        task: str = GENERATE,
        timeout: float | None = None,
        raw: bool = True,
        priority: int = DEFAULT_PRIORITY,
        annotations: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        **options: Any,
    ) -> list[Generation]:
        """Submit many requests, which share steps: all, or none if one of them is refused.

        Arguments and errors as of `submit_prompt`.

        Raises:
            BadRequest: `n`, which is for one prompt.
        """
        if (count := options.pop("n", None)) is not None:
            raise BadRequest(f"n {shown(count)}: call submit_prompt for each prompt")
        arguments = Arguments.checked(task, timeout, raw, priority, annotations=annotations)
        arguments = arguments.in_trace(traceparent)
        many = list(check_prompts(prompts))
        return self.of_model(model)._submit(many, arguments, options) if many else []

    def of_model(self, model: str | None) -> Client:
        """The client of the cluster that runs a model: see `submit_prompt`.

        Raises:
            BadRequest: no cluster that is known here runs it.
        """
        if model is None:
            return self
        urls = settings().cluster_urls if self._given_url is None else {}
        if isinstance(model, str) and model in urls:
            if urls[model] not in self._others:
                self._others[urls[model]] = Client(urls[model])
            return self._others[urls[model]]
        with reachable(self.url):
            target = self.target()
        if model in (target.name, target.model):
            return self
        raise BadRequest(
            f"model {shown(model)}: this cluster runs {target.name}; "
            + (f"others are {', '.join(urls)}" if urls else "SKYNET_CLUSTER_URLS names others")
        )

    def close(self) -> None:
        """Close the connections that are open, those to other clusters too."""
        for other in self._others.values():
            other.close()
        super().close()

    def generation(self, request_id: str) -> Generation:
        """A request of this cluster, which any process submitted."""
        return Generation(request_id, self)

    def _submit(
        self, prompts: Sequence[Prompt], arguments: Arguments, options: Mapping[str, Any]
    ) -> list[Generation]:
        """Submit a request for each prompt, or for each answer to it: all or none."""
        ping(self.url)
        with reachable(self.url):
            target = self.target()
            limit = settings().max_waiting + target.num_slots
            if len(prompts) > limit:
                raise QueueFull(
                    f"{len(prompts)} prompts at once, the limit is {limit}: submit fewer at a "
                    "time, or raise SKYNET_MAX_WAITING"
                )
            model = self._model(target.model)
            encoded = model.encode_all(prompts, arguments, options, target)
            now = self.requests.clock.now(exact=True)
            records = [
                sample
                for ids, checked in encoded
                for sample in samples_of(
                    record_of(ids, checked, arguments, target, now), arguments.n or 1
                )
            ]
            self.requests.create_all(records, limit)
        for each in records:
            self._send_generate(each)
        return [Generation(each.id, self, each.deadline) for each in records]

    def has_chat_template(self) -> bool:
        """Whether the current model expects chat messages."""
        return self.served_model(self.target()).text.has_chat_template

    def target(self) -> Target:
        """The model and shape that the cluster is asked to run.

        Raises:
            NoModel: none.
        """
        return Targets(self.redis).require()

    def served_model(self, target: Target) -> ServedModel:
        """Tokenizer and default options of a target's model; read once."""
        return self._model(target.model)

    def metrics(self) -> Metrics | None:
        """The numbers that the leading orchestrator wrote last; None: none within an hour.

        In an event loop: `skynet.store.metrics.parse` of the value of `metrics_key()`.

        Raises:
            ClusterUnreachable: Redis does not answer.
            WireError: the key holds something else.
        """
        with reachable(self.url):
            return MetricsStore(self.redis).read()

    def spell(self, request_id: str, ids: Iterable[int]) -> dict[int, str]:
        """The text of each token id, by the tokenizer of a request's model; "" without one.

        Raises:
            NoModel: the model is not in Redis any more.
        """
        with reachable(self.url):
            record = self.requests.read(request_id)
            digest = record.model if record is not None else self.target().model
            text = self._model(digest).text
        return {token_id: text.spell(token_id) for token_id in set(ids)}

    def _send_generate(self, record: Record) -> None:
        """Send the request's task. If the message is lost, a sweep finds the record."""
        options = record.options
        about: dict[str, Any] = {"prompt_tokens": len(record.prompt)}
        if options.read is None:
            about["max_tokens"] = options.max_tokens
        else:
            about["task"] = options.read["task"]
        if record.annotations:
            about["request_id"] = str(json.loads(record.annotations).get("request_id", ""))
        try:
            self.send(
                keys.GENERATE_TASK,
                task_id=record.id,
                argsrepr=f"(prompt of {len(record.prompt)} tokens)",
                kwargsrepr=json.dumps(about),
            )
        except (ClusterUnreachable, CommandRefused) as error:
            logger.warning("request %s: record written, message not sent: %s", record.id, error)

    def _model(self, digest: str) -> ServedModel:
        if digest not in self._models:
            from skynet.client.served_model import ServedModel

            self._models = {digest: ServedModel.staged(self.redis, digest)}
        return self._models[digest]


def record_of(
    ids: Sequence[int], options: Options, arguments: Arguments, target: Target, now: float
) -> Record:
    """A new request's record."""
    return Record(
        str(uuid.uuid4()),
        tuple(ids),
        options,
        now,
        now + arguments.timeout_s,
        model=target.model,
        priority=arguments.priority,
        annotations=arguments.annotations,
        traceparent=arguments.traceparent,
    )


def samples_of(record: Record, count: int) -> list[Record]:
    """Records of `count` answers to one prompt, which share its prefill.

    Sample i is a request with the first one's seed plus i. Its id is `sample_id(first id, i)`.
    """
    if count == 1:
        return [record]
    seed, samples = record.options.seed, []
    for number in range(count):
        sample_seed = None if seed is None else (seed + number) % 2**64
        samples.append(
            replace(
                record,
                id=sample_id(record.id, number),
                options=replace(record.options, seed=sample_seed),
                sample_group=record.id,
            )
        )
    return samples


def sample_id(first: str, number: int) -> str:
    """The id of a sample of the request `first`."""
    return f"{first}.{number}" if number else first


default_client = Client(lazy=True)  # of SKYNET_REDIS_URL, which is read at the first use
submit_prompt = default_client.submit_prompt
submit_prompts = default_client.submit_prompts
