"""The cluster's numbers, as the leading orchestrator counts them; written once a second."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import redis

from skynet.engine.sequence import Sequence
from skynet.engine.step_timing import StepTotals
from skynet.errors import WireError
from skynet.orchestrator.numbers import Numbers
from skynet.orchestrator.stage_times import StageTimes
from skynet.request.record import End, Token
from skynet.store.members import Member
from skynet.store.metrics import (
    MAX_RECOVERIES,
    MAX_SAMPLES,
    SAMPLE_S,
    Metrics,
    MetricsStore,
    Recovery,
    Sample,
    StageTime,
)

logger = logging.getLogger(__name__)

MAX_FIRST_TOKENS = 1000  # of a sample's percentiles


class Reading(NamedTuple):
    """What changes without an event.

    totals: of the engine's finished steps.
    gauges: without labels.
    staged: the served model's name, and the bytes of its weights.
    """

    totals: StepTotals
    members: Iterable[Member]
    gauges: dict[str, float]
    staged: tuple[str, int]


class ClusterMetrics:
    """Counts what `Answers`, the steps and the plans report.

    spares_log: whether writing them leaves Redis's append-only file alone.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.store = MetricsStore(client)
        self.numbers = Numbers()
        self.spares_log = True
        self._round_trip_s = 0.0  # of the last write
        self._stage_times = StageTimes()
        self._stages: tuple[StageTime, ...] = ()
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._recoveries: deque[Recovery] = deque(maxlen=MAX_RECOVERIES)
        self._first_tokens: deque[float] = deque(maxlen=MAX_FIRST_TOKENS)
        self._sampled = self._totals_before()

    def take_up(self) -> None:
        """Continue as the leader before; without its numbers, with those of this process."""
        try:
            before = self.store.read()
        except WireError as error:
            logger.error("%s: counting starts over", error)
            return
        if before is not None:
            self.numbers = Numbers(before)
            self._stage_times = StageTimes(before.seen)
            self._samples = deque(before.samples, MAX_SAMPLES)
            self._recoveries = deque(before.recoveries, MAX_RECOVERIES)
            self._stages = before.stages
        self._sampled = self._totals_before()

    # -- requests ------------------------------------------------------------------------------

    def started(self, sequences: Iterable[Sequence]) -> None:
        """Their first step was sent."""
        for sequence in sequences:
            timings = sequence.timings
            self.numbers.count("prompt_tokens", by=len(sequence.record.prompt))
            queued_s = timings.started_at - timings.created
            self.numbers.observe("request_queue_time_seconds", queued_s)

    def tokens(self, written: Iterable[tuple[Sequence, Token]]) -> None:
        """Tokens that readers can see now."""
        for sequence, token in written:
            timings = sequence.timings
            self.numbers.count("generation_tokens")
            if token.index == 0:
                first_s = max(0.0, timings.last_token_at - timings.created)
                self.numbers.observe("time_to_first_token_seconds", first_s)
                self._first_tokens.append(first_s)
            elif timings.gap_s:
                self.numbers.observe("inter_token_latency_seconds", timings.gap_s)

    def succeeded(self, sequence: Sequence, end: End) -> None:
        """A request is answered."""
        numbers, timings = self.numbers, sequence.timings
        numbers.count("request_success", end.finish_reason)
        numbers.count("generation_tokens", by=len(sequence.output.pending))
        numbers.observe("e2e_request_latency_seconds", end.timings["total_s"])
        numbers.observe("request_prompt_tokens", len(sequence.record.prompt))
        numbers.observe("request_generation_tokens", len(sequence.output.tokens))
        if timings.first_token_at:
            prefill_s = timings.first_token_at - timings.started_at
            numbers.observe("request_prefill_time_seconds", prefill_s)
            decode_s = timings.last_token_at - timings.first_token_at
            numbers.observe("request_decode_time_seconds", decode_s)

    def failed(self, error: str) -> None:
        """A request ended with this class of error."""
        self.numbers.count("request_failure", error)

    # -- recoveries ----------------------------------------------------------------------------

    def recovered(self, recovery: Recovery) -> None:
        """A plan is in force; called again for the same epoch once `replay_s` is known."""
        recoveries, numbers = self._recoveries, self.numbers
        if recoveries and recoveries[-1].epoch == recovery.epoch:
            recoveries[-1] = replace(recoveries[-1], replay_s=recovery.replay_s)
            numbers.observe("recovery_seconds", recovery.replay_s, "replay")
            return
        recoveries.append(recovery)
        numbers.count("recoveries", recovery.kind)
        numbers.observe("recovery_seconds", recovery.load_s, "load")
        if recovery.notice_s:
            numbers.observe("recovery_seconds", recovery.notice_s, "notice")

    # -- once a second -------------------------------------------------------------------------

    def write(self, reading: Reading | None, now: float, fence: str) -> None:
        """Write everything.

        reading: None: no model is served.
        now: unix seconds by Redis's clock.
        """
        totals, numbers = StepTotals(), self.numbers
        numbers.gauges.clear()
        if reading is not None:
            totals = reading.totals
            self._stage_times.follow(reading.members, totals, numbers)
            for name, value in reading.gauges.items():
                numbers.gauge(name, value)
            numbers.gauge("staged_bytes", reading.staged[1], reading.staged[0])
        if self._round_trip_s:
            numbers.gauge("redis_round_trip_seconds", self._round_trip_s)
        numbers.gauge("leader_term", float(fence.partition(":")[0] or 0))
        if not 0 <= now - self._sampled[0] < SAMPLE_S:
            self._sample(now, totals)
        started = time.perf_counter()
        self.spares_log = self.store.write(
            Metrics(
                at=now,
                stages=self._stages,
                samples=tuple(self._samples),
                recoveries=tuple(self._recoveries),
                seen=self._stage_times.seen,
                **numbers.series(),
            ),
            fence,
        )
        self._round_trip_s = time.perf_counter() - started

    def _totals_before(self) -> tuple[float, float, float, StepTotals]:
        """When the last sample was taken, and the totals then: tokens in, tokens out, steps."""
        numbers = self.numbers
        tokens = numbers.total("prompt_tokens"), numbers.total("generation_tokens")
        return 0.0, *tokens, StepTotals()

    def _sample(self, now: float, totals: StepTotals) -> None:
        at, tokens_in, tokens_out, before = self._sampled
        numbers = self.numbers
        self._sampled = (
            now,
            numbers.total("prompt_tokens"),
            numbers.total("generation_tokens"),
            totals,
        )
        seconds = now - at
        if not 0 < seconds < 10 * SAMPLE_S:  # the first, or the clock was set
            self._stage_times.take(SAMPLE_S)
            return
        since = totals.since(before)
        first_tokens = sorted(self._first_tokens)
        self._first_tokens.clear()
        self._stages = self._stage_times.take(seconds)
        gauges = numbers.gauges
        self._samples.append(
            Sample(
                round(now, 3),
                round((self._sampled[1] - tokens_in) / seconds, 3),
                round((self._sampled[2] - tokens_out) / seconds, 3),
                int(sum(gauges.get("num_requests_running", {}).values())),
                int(sum(gauges.get("num_requests_waiting", {}).values())),
                _percentile(first_tokens, 0.5),
                _percentile(first_tokens, 0.95),
                round(since.seconds / since.steps, 6) if since.steps else None,
            )
        )


def _percentile(ordered: list[float], share: float) -> float | None:
    """The value that `share` of the values do not exceed; None without any."""
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 6)
