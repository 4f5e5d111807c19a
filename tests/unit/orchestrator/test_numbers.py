"""Counting, and where the time of stages goes."""

from __future__ import annotations

import pytest

from skynet.engine.step_timing import StepTotals
from skynet.errors import WireError
from skynet.orchestrator.numbers import Numbers
from skynet.orchestrator.stage_times import StageTimes
from skynet.store.members import Member
from skynet.store.metric_table import BY_NAME, METRICS
from skynet.store.metrics import MAX_BYTES, MAX_SERIES, Metrics, Sums, parse
from skynet.wire.typed_json import write_json


def shard(name: str, compute_s: float, exchange_s: float, spans: int) -> Member:
    member = Member(name, name, name, "here", 7)
    member.compute_s, member.exchange_s, member.steps = compute_s, exchange_s, spans
    return member


def kept(numbers: Numbers) -> Metrics:
    """As the next leader reads them."""
    return parse(write_json(Metrics, Metrics(1.0, **numbers.series())))


def test_the_next_leader_counts_on() -> None:
    # Given
    first = Numbers()
    first.count("request_success", "stop", by=2)
    first.add("step_seconds", 3, 0.5, 0)
    for value in (0.005, 0.0051, 9000.0):  # a limit belongs to its bucket
        first.observe("time_to_first_token_seconds", value)
    # When
    second = Numbers(kept(first))
    second.count("request_success", "length")
    second.add("step_seconds", 1, 0.25, 0)
    second.observe("time_to_first_token_seconds", 0.001)
    metrics = kept(second)
    # Then
    assert metrics.counters["request_success"] == {"stop": 2, "length": 1}
    assert metrics.counter("request_success") == 3
    assert metrics.summaries["step_seconds"] == {"0": Sums(4, 0.75)}
    counts = metrics.histograms["time_to_first_token_seconds"][""].counts
    assert (counts[0], counts[1], counts[2], counts[-1], sum(counts)) == (1, 1, 1, 1, 4)
    # And the leader before is not changed by it
    assert kept(first).counter("request_success") == 2


def test_the_number_of_series_is_bounded_and_labels_are_those_of_the_table() -> None:
    numbers = Numbers()
    for number in range(MAX_SERIES + 5):
        numbers.count("request_failure", f"Error{number}")
    numbers.count("request_failure", "Error0")
    assert kept(numbers).counter("request_failure") == MAX_SERIES + 1
    with pytest.raises(ValueError, match=r"labels \('error',\)"):
        numbers.count("request_failure")


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b'{"at": -1}', b'{"counters": {"x": 3}}', b"{" + b" " * MAX_BYTES + b"}"],
)
def test_nonsense_in_the_key_is_one_error(text: bytes) -> None:
    with pytest.raises(WireError):
        parse(text)


def test_a_histogram_of_other_buckets_is_left_out() -> None:
    text = (
        b'{"histograms": {"step_tokens": {"": {"counts": [1, 2]}}, "gone": {"": {"counts": []}}}}'
    )
    assert parse(text).histograms == {}


def test_a_stage_is_compute_exchange_chords_and_idle() -> None:
    # Given a stage of two shards, and one of one, that have reported before
    times, numbers = StageTimes(), Numbers()
    before = [shard("stage0.shard0", 5, 1, 10), shard("stage0.shard1", 5, 1, 10)]
    times.follow([*before, shard("stage1.shard0", 9, 0, 10)], StepTotals(), numbers)
    assert numbers.series()["summaries"]["shard_compute_seconds"]["0,0"].sum == 0
    # When 10 steps of 20 chords follow, whose chords took 2 s in all
    after = [shard("stage0.shard0", 6, 3, 20), shard("stage0.shard1", 7, 2, 20)]
    totals = StepTotals(10, 7.0, 5.0, 20)
    times.follow([*after, shard("stage1.shard0", 11, 0, 20)], totals, numbers)
    first, second = times.take(10.0)
    # Then the slowest shard decides
    assert (first.slowest, first.compute, first.exchange) == (1, 0.2, 0.1)
    assert (first.chord, first.idle) == (0.1, 0.6)
    assert [(item.shard, item.compute, item.exchange) for item in first.shards] == [
        (0, 0.1, 0.2),
        (1, 0.2, 0.1),
    ]
    assert (second.stage, second.compute, second.exchange, second.chord) == (1, 0.2, 0, 0.1)
    # And the sums are of as many steps
    summaries = numbers.series()["summaries"]
    assert summaries["step_seconds"] == {"0": Sums(10, 4.0), "1": Sums(10, 3.0)}
    assert summaries["exchange_wait_seconds"]["0,0"] == Sums(10, 2.0)
    # And nothing is counted twice, by the next leader neither
    StageTimes(times.seen).follow(after, StepTotals(), numbers)
    assert numbers.series()["summaries"]["step_seconds"]["0"] == Sums(10, 4.0)


def test_a_share_is_never_more_than_the_whole() -> None:
    times, numbers = StageTimes(), Numbers()
    times.follow([shard("stage0.shard0", 0, 0, 0)], StepTotals(), numbers)
    times.follow([shard("stage0.shard0", 8, 4, 9)], StepTotals(9, 99, 9, 9), numbers)
    (stage,) = times.take(10.0)
    assert (stage.compute, stage.exchange, stage.chord, stage.idle) == (0.8, 0.2, 0, 0)


def test_steps_of_another_engine_are_all_new() -> None:
    assert StepTotals(2, 1.0, 0.5, 2).since(StepTotals(9, 9, 9, 9)).steps == 2


def test_every_metric_has_a_help_text_and_a_unit() -> None:
    assert len(BY_NAME) == len(METRICS)
    units = ("_seconds", "_tokens", "_bytes", "_perc", "_total")
    without = {
        *("num_requests_running", "num_requests_waiting", "plan_epoch", "leader_term", "members"),
        *("missing_places", "spares", "http_streams_open", "build_info"),
    }
    for metric in METRICS:
        assert metric.help.endswith(".")
        assert metric.shown_name.endswith(units) or metric.name in without
        assert bool(metric.buckets) == (metric.kind == "histogram")
