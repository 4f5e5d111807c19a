"""Writes answers: records, streams, Celery's results, and events for Flower."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Any

import redis

from skynet import errors
from skynet.engine.sequence import Sequence
from skynet.engine.timings import Timings
from skynet.errors import IncompatibleVersion, RequestLost, SkynetError, WireError
from skynet.orchestrator.metrics import ClusterMetrics
from skynet.orchestrator.request_spans import RequestSpans
from skynet.request.record import End, Token
from skynet.store.requests import Requests

if TYPE_CHECKING:
    from skynet.chords.app import SkynetCelery

logger = logging.getLogger(__name__)


class Answers:
    """The engine's journal."""

    def __init__(
        self,
        app: SkynetCelery,
        requests: Requests,
        metrics: ClusterMetrics,
        spans: RequestSpans,
    ) -> None:
        self.app = app
        self.requests = requests
        self.metrics = metrics
        self.spans = spans
        self.consumer: Any = None  # Celery's, once it runs

    def started(self, sequences: Items[Sequence]) -> None:
        self.requests.writer.start([sequence.id for sequence in sequences])
        self.metrics.started(sequences)

    def tokens(self, tokens: Items[tuple[Sequence, Token]]) -> tuple[set[str], set[str]]:
        ids = [sequence.id for sequence, _ in tokens]
        try:
            replies = self.requests.writer.append([(s.id, token) for s, token in tokens])
        except redis.RedisError as error:
            logger.warning("tokens could not be written: %s", error)
            replies = [0] * len(ids)
        self.metrics.tokens(item for item, reply in zip(tokens, replies, strict=True) if reply)
        by_id = list(zip(ids, replies, strict=True))
        return {i for i, reply in by_id if reply < 0}, {i for i, reply in by_id if reply == 0}

    def finished(self, sequence: Sequence) -> None:
        end = sequence.end()
        result = {
            "text": sequence.output.text,
            "token_ids": sequence.output.tokens,
            "prompt_tokens": len(sequence.record.prompt),
            "finish_reason": end.finish_reason,
            "timings": end.timings,
            "cached_tokens": end.cached_tokens,
            **sequence.output.answer,
        }
        if sequence.record.options.logprobs is not None:
            result["logprobs"] = [item.as_dict() for item in sequence.output.logprobs]
        if not self._end(sequence.id, end, result, "SUCCESS", sequence.output.pending):
            return
        self.metrics.succeeded(sequence, end)
        self._span(sequence, end)
        summary, runtime_s = sequence.mode.summary, end.timings["total_s"]
        self._event("task-succeeded", sequence, result=summary, runtime=runtime_s)
        logger.info(
            "request %s: %d prompt tokens (%d cached), %d tokens (%s), first after %.3f s, then "
            "%.1f tokens/s",
            sequence.id,
            len(sequence.record.prompt),
            end.cached_tokens,
            len(sequence.output.tokens),
            end.finish_reason,
            end.timings["first_token_s"],
            end.timings["decode_tokens_per_s"],
        )

    def failed(self, sequence: Sequence, error: SkynetError) -> None:
        name = type(error).__name__
        end = End(
            error=name,
            message=str(error),
            timings=sequence.timings.report(len(sequence.output.tokens)),
        )
        cancelled = isinstance(error, errors.RequestCancelled)
        if not self._end(sequence.id, end, error, "REVOKED" if cancelled else "FAILURE"):
            return
        self.metrics.failed(name)
        self._span(sequence, end)
        if cancelled:
            self._event("task-revoked", sequence, terminated=False, signum=None, expired=False)
        else:
            self._event("task-failed", sequence, exception=f"{name}: {error}", traceback="")
        logger.log(
            logging.INFO if cancelled else logging.ERROR,
            "request %s: %s: %s",
            sequence.id,
            name,
            error,
        )

    def refuse(self, request_id: str, error: SkynetError) -> bool:
        """End a request that has no sequence; False if it has no record, or has ended."""
        end = End(error=type(error).__name__, message=str(error))
        cancelled = isinstance(error, errors.RequestCancelled)
        ended = self._end(request_id, end, error, "REVOKED" if cancelled else "FAILURE")
        if ended:
            self.metrics.failed(end.error)
            self._span_of_refused(request_id, end)
            logger.error("request %s: %s: %s", request_id, end.error, error)
        return ended

    def bury(self, sequence: Sequence) -> None:
        """End a request whose record was lost with Redis's data, so that its client is told."""
        if self.requests.read(sequence.id) is None:
            self.requests.create(sequence.record, limit=2**31)
            self.failed(
                sequence,
                RequestLost(
                    f"request {sequence.id} was running when Redis restarted without its data: "
                    "submit it again"
                ),
            )

    def _end(
        self, request_id: str, end: End, result: Any, state: str, tokens: Items[Token] = ()
    ) -> bool:
        """Write the end of record, stream and Celery's result in one script; False: not written."""
        backend = self.app.backend
        stored = result if state == "SUCCESS" else backend.prepare_exception(result)
        meta = backend._get_result_meta(stored, state, None, None)
        meta["task_id"] = request_id
        key = backend.get_key_for_task(request_id)
        name = key.decode() if isinstance(key, bytes) else key
        return self.requests.writer.finish(
            request_id, end, (name, _bytes(backend.encode(meta))), tokens
        )

    def _span(self, sequence: Sequence, end: End) -> None:
        self.spans.ended(sequence.record, sequence.timings, len(sequence.output.tokens), end)

    def _span_of_refused(self, request_id: str, end: End) -> None:
        if self.spans.provider is None:
            return
        try:
            record = self.requests.read(request_id)
        except (WireError, IncompatibleVersion, redis.RedisError):
            return  # nothing is known of it
        if record is not None:
            timings = Timings.of(record, self.requests.now)
            self.spans.ended(record, timings, record.emitted, end)

    def _event(self, kind: str, sequence: Sequence, **fields: Any) -> None:
        """The task's end for Flower; for Celery it ended when the request was accepted."""
        dispatcher = getattr(self.consumer, "event_dispatcher", None)
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.send(kind, uuid=sequence.id, retry=False, **fields)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
