"""What rounds a plan's answers, in the words of `skynet status` and `skynet check`."""

from __future__ import annotations

from typing import Any

import pytest

from skynet.check.report import Answer, Report
from skynet.cli.plan_table import dtypes_of
from skynet.planning.promise import promise, spelled_out
from skynet.reference.difference import Difference

PLAN = {"dtype": "float32", "weight_dtype": "float32", "quantisation": "", "kv_dtype": "float32"}
REPORT = ("tiny", "llama", 1, 2)


@pytest.mark.parametrize(
    ("plan", "exchange_dtypes", "words"),
    [
        ({}, ["auto"], "float32, exact"),
        ({"weight_dtype": "bfloat16"}, ["float32"], "float32, bfloat16 weights, exact"),
        ({"quantisation": "q4+q8"}, [], "float32, q4+q8 weights, exact"),
        (
            {"dtype": "bfloat16", "weight_dtype": "bfloat16", "kv_dtype": "bfloat16"},
            ["auto", "bfloat16"],
            "bfloat16, rounded by bfloat16 activations",
        ),
        (
            {"dtype": "int8", "weight_dtype": "float32", "quantisation": "q4"},
            [],
            "int8, q4 weights, float32 keys and values, rounded by int8 activations",
        ),
        (
            {"kv_dtype": "q8"},
            ["auto", "int8", "bfloat16"],
            "float32, q8 keys and values, rounded by q8 keys and values and bfloat16 partials and "
            "int8 partials",
        ),
    ],
)
def test_a_plan_is_exact_unless_something_rounds(
    plan: dict[str, Any], exchange_dtypes: list[str], words: str
) -> None:
    shown = {**PLAN, "weight_dtype": plan.get("dtype", "float32"), **plan}
    assert dtypes_of(shown, exchange_dtypes) == words


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_check_says_what_holds_if_all_is_equal(dtype: str) -> None:
    # Given a check that found no difference
    report = Report(*REPORT, dtype, 1e-4, "Transformers", 5)
    # Then it says what holds, in the words of the status
    assert report.to_json()["promise"] == report.promise == promise(dtype)
    assert spelled_out(report.promise) in list(report.lines())
    # And nothing if it found one
    report.bad_numbers = {"weight": 1}
    assert report.promise == ""
    assert not any("exact" in line or "rounded" in line for line in report.lines())


def test_a_check_whose_token_differs_is_not_exact() -> None:
    # Given another token, by no more than rounding
    report = Report(*REPORT, "float32", 1e-4, "Transformers", 5)
    report.answer = Answer("next token", Difference(1e-6, 1e-6, 0, 0), 3, 4)
    # Then all numbers are equal, and it makes no promise
    assert report.equal
    assert report.promise == ""
