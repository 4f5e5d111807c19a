"""How fast the planner predicts the staged model to be in other shapes of the present workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from skynet.errors import SkynetError
from skynet.models.registry import load_architecture
from skynet.orchestrator.membership import Membership
from skynet.planning.cost import Candidate
from skynet.planning.forecast import Forecast, Question, forecasts, recommended
from skynet.planning.split import PlanOptions
from skynet.planning.timing import Costs
from skynet.settings import settings
from skynet.store.members import Members
from skynet.store.staging import readable_manifest
from skynet.store.targets import Target

MAX_WORKERS = 16  # of which shapes are predicted: there are more of larger numbers


class Shapes:
    """Predictions for one cluster; made again when its target or its workers change."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._asked: tuple[Any, ...] | None = None
        self._made: dict[str, Any] | None = None

    def read(self, target: Target | None) -> dict[str, Any] | None:
        """`shapes`, the fastest first; `recommended`; None: no model, or no measured worker."""
        if target is None:
            return None
        membership = Membership(Members(self._client, settings().lease_s), lambda kind, text: None)
        membership.look()
        workers = [each for each in membership.candidates() if not each.leaving][:MAX_WORKERS]
        asked = (target, *sorted((w.id, w.host, w.cores, w.threads, w.pinned) for w in workers))
        if asked != self._asked:
            self._asked, self._made = asked, self._predict(target, workers)
        return self._made

    def _predict(self, target: Target, workers: list[Candidate]) -> dict[str, Any] | None:
        manifest = readable_manifest(self._client, target.model)
        if manifest is None or not workers:
            return None
        try:
            arch = load_architecture(manifest.config)
            options = PlanOptions(
                target.model,
                target.name,
                target.dtype,
                weight_dtype=target.weight_dtype,
                num_slots=target.num_slots,
                slot_tokens=target.slot_tokens,
                kv_dtype=target.kv_dtype,
            )
            # The staged config has the formats of quantised weights: they are kept as they are.
            question = Question(arch, options, target.weight_dtype or target.dtype, Costs())
            made = forecasts(question, range(1, len(workers) + 1), workers)
        except SkynetError as error:
            return {"problem": str(error), "shapes": [], "recommended": None}
        return shapes_of(made)


def shapes_of(made: list[Forecast]) -> dict[str, Any]:
    """Forecasts for the page."""
    chosen = recommended(made)
    fitting = [each for each in made if not each.problem]
    rows = sorted(fitting, key=lambda each: -each.speed) + [each for each in made if each.problem]
    return {
        "problem": "",
        "shapes": [_row(each) for each in rows],
        "recommended": {"shape": chosen[0].shape, "reason": chosen[1]} if chosen else None,
    }


def _row(each: Forecast) -> Mapping[str, Any]:
    return {
        "shape": each.shape,
        "workers": each.workers,
        "memory_bytes": each.memory_bytes,
        "load_s": round(each.load_s, 2),
        "first_token_s": round(each.first_token_s, 3),
        "one": round(each.one, 1),
        "many": round(each.many, 1),
        "bound": each.bound,
        "problem": each.problem,
    }
