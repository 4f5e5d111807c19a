"""Serving one model: its engine, its plans and its requests; steps to the messenger."""

from __future__ import annotations

from typing import Any

import redis

from skynet.chords.messenger import next_span
from skynet.engine.engine import Engine, EngineOptions
from skynet.engine.token_rate import TokenRate
from skynet.errors import ClusterUnreachable, SkynetError
from skynet.orchestrator.context import Context
from skynet.orchestrator.intake import Intake, Served
from skynet.orchestrator.membership import Membership
from skynet.orchestrator.metrics import Reading
from skynet.orchestrator.plan_controller import PlanController
from skynet.orchestrator.target_plans import TargetPlans
from skynet.settings import settings
from skynet.store.targets import Target
from skynet.wire import keys
from skynet.wire.step import SpanMessage, Step


class ModelService:
    """Engine, plan controller and intake for one target; the engine's carrier."""

    def __init__(
        self, context: Context, membership: Membership, served: Served, target: Target
    ) -> None:
        self.context = context
        self.served = served
        self.target = target
        plans = TargetPlans(served.arch, target)
        options = EngineOptions(
            settings().max_batch_tokens,
            settings().step_timeout_s,
            settings().chord_share,
            settings().prefix_cache,
        )
        clock = context.requests.now
        self.engine = Engine(plans.layout(1, 1), self, context.answers, options, clock)
        self.token_rate = TokenRate()
        self.plan_controller = PlanController(
            context.plans, membership, self.engine, plans, lambda: context.fence, context.tell
        )
        self.plan_controller.switch.recovered = context.metrics.recovered
        self.intake = Intake(served, target, context.requests, context.answers)

    def can_follow(self, target: Target) -> bool:
        """Whether the engine and its requests fit another target."""
        same = ("model", "num_slots", "slot_tokens")
        return all(getattr(self.target, name) == getattr(target, name) for name in same)

    def follow(self, target: Target) -> None:
        """The same model is asked for in another shape."""
        self.plan_controller.follow(target)
        self.target = target

    def redis_was_away(self) -> None:
        """Messages may be lost: start a new epoch."""
        self.engine.suspend()
        self.plan_controller.step_failed("Redis was away")

    def sweep(self) -> None:
        """Accept requests whose message was lost, or that another orchestrator left."""
        self.intake.sweep(self.engine)

    def engine_status(self) -> dict[str, Any]:
        """For `skynet status`; measures the rate of tokens."""
        engine = self.engine
        rate = self.token_rate.measure(engine.clock(), engine.num_tokens)
        return {
            "running": len(engine.scheduler.running),
            "waiting": len(engine.scheduler.waiting),
            "steps_in_flight": len(engine.in_flight),
            "steps": engine.num_steps,
            "tokens": engine.num_tokens,
            "prompt_tokens": engine.num_prompt_tokens,
            "cached_tokens": engine.num_cached_tokens,
            "tokens_per_s": round(rate, 1),
            "chord_ms": round(engine.timing.spans.chord_s * 1000, 3),
            "layers_per_chord": engine.layers_per_chord,
            "computing": {
                sequence.id: [sequence.mode.computed, sequence.mode.num_tokens]
                for sequence in engine.scheduler.running
                if not sequence.mode.is_decoding
            },
        }

    def reading(self) -> Reading:
        """For the cluster's metrics."""
        engine, slots = self.engine, self.engine.scheduler.slots
        gauges = {
            "num_requests_running": len(engine.scheduler.running),
            "num_requests_waiting": len(engine.scheduler.waiting),
            "kv_cache_usage_perc": 1 - len(slots.free) / max(1, slots.num_slots),
            "plan_epoch": self.plan_controller.epoch,
        }
        members = self.plan_controller.membership.live.values()
        staged = self.target.name, self.served.num_bytes
        return Reading(engine.timing.totals, members, gauges, staged)

    # -- the engine's carrier ------------------------------------------------------------------

    def send(self, step: Step) -> None:
        plan, messenger = self.engine.plan, self.context.app.messenger
        span = next_span(plan, step.start, step.layers_per_chord)
        message = SpanMessage(plan.epoch, step.number, span.start, span.stop, step.encode())
        try:
            messenger.emit_chord(plan, message, fence=self.context.fence)
        except redis.RedisError as error:
            raise ClusterUnreachable(f"step {step.number} could not be sent: {error}") from error
        self.context.metrics.numbers.observe("step_tokens", step.num_tokens)

    def give_up(self, step: Step) -> None:
        try:
            self.context.client.delete(keys.step_key(step.epoch, step.number))
        except redis.RedisError:
            self.context.redis_away = True  # the key expires

    def step_failed(self, error: SkynetError) -> None:
        if isinstance(error, ClusterUnreachable):
            self.context.redis_away = True
        self.plan_controller.step_failed(str(error))

    def replayed(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        self.plan_controller.replayed(num_sequences, num_tokens, seconds)
