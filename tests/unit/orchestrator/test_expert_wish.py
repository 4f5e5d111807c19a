"""How a target's experts are to be cut reaches every plan that is made for it."""

from __future__ import annotations

import pytest
from model_families import tiny_config

from skynet.models.registry import load_architecture
from skynet.orchestrator.target_plans import TargetPlans
from skynet.store.targets import Target


@pytest.mark.parametrize(("experts", "is_whole"), [("whole", True), ("columns", False)])
def test_every_shape_of_a_target_has_the_cut_that_was_asked_for(
    experts: str, is_whole: bool
) -> None:
    # Given a target of a mixture, which survives the journey through JSON
    arch = load_architecture(tiny_config("mixtral").to_dict())
    target = Target("digest", "tiny", "float32", "auto", 4, 32, 1, 3, experts=experts)
    plans = TargetPlans(arch, Target.from_json(target.to_json()))
    # When it is laid out in its shape, and in a smaller one after a loss
    for shards in (3, 2):
        (stage,) = plans.layout(1, shards).stages
        # Then its shards have whole experts, or columns of all
        assert [part.experts is not None for part in stage.shards] == [is_whole] * shards
