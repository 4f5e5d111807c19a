"""Results of `skynet bench`: targets from above and below, and one entry for each scenario."""

from __future__ import annotations

import json
from math import prod

import pytest
from rich.console import Console

from skynet import bench
from skynet.architecture.tensors import staged_tensors
from skynet.bench.models import QWEN3_SIZES
from skynet.bench.report import Result
from skynet.models.registry import saved_architecture


@pytest.mark.parametrize(("share", "reached"), [(64.0, False), (66.0, True)])
def test_a_median_below_its_floor_misses_the_target(share: float, reached: bool) -> None:
    # Given a share that has a lower limit, beside one without
    result = Result("bandwidth", "", "%", {"bf16": [share], "q4": [1.0]}, floors={"bf16": 65.0})
    # Then it is reached only above it, and there is no ratio
    assert result.reached is reached
    assert result.ratio is None
    assert result.summary()["floors"] == {"bf16": 65.0}


def test_both_limits_must_be_kept() -> None:
    samples = {"above": [2.0], "below": [2.0]}
    good = Result("", "", "s", samples, targets={"below": 3.0}, floors={"above": 1.0})
    bad = Result("", "", "s", samples, targets={"below": 1.0}, floors={"above": 1.0})
    assert (good.reached, bad.reached) == (True, False)


def test_json_has_an_entry_for_each_scenario(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a scenario for two models
    def scenario(rounds: int) -> Result:
        return Result("decode", "", "tokens/s", {"a": [1.0], "b": [2.0]})

    monkeypatch.setattr(bench, "_scenarios", lambda: {"decode": scenario, "decode-qwen3": scenario})
    # When both run
    bench.run_scenarios([], 1, True, Console(quiet=True))
    # Then neither hides the other
    assert set(json.loads(capsys.readouterr().out)) == {"decode", "decode-qwen3"}


def test_the_larger_model_has_the_sizes_of_qwen3() -> None:
    arch = saved_architecture({"model_type": "qwen3", **QWEN3_SIZES})
    assert (
        sum(prod(tensor.shape) for tensor in staged_tensors(arch)) == 596_049_920
    )  # as Qwen3-0.6B
