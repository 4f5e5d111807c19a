"""Why requests wait, in the words of `skynet status`, and when a waiting command says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from skynet.cli import text_tasks, waiting
from skynet.cli.waiting import WaitingNotices
from skynet.client.status import obstacles

NO_ORCHESTRATOR = "no orchestrator (start one with `celery -A skynet worker -Q orchestrator`)"
PLACES = [f"stage{stage}.shard{shard}" for stage in range(2) for shard in range(2)]
RUNS = {"state": "ready", "reason": "in the shape asked for, 0 spare"}


def member(address: str = "", state: str = "ready", **fields: Any) -> dict[str, Any]:
    values = {"pinned": "", "leaving": False, "problem": ""}
    return {"address": address, "state": state, **values, **fields}


def state_of(**fields: Any) -> dict[str, Any]:
    """The state of a cluster that is asked for a model and has nothing else."""
    nothing = {"target": {"name": "tiny"}, "missing": [], "members": [], "engine": None}
    return {**nothing, **fields}


@pytest.mark.parametrize(
    ("state", "phrases"),
    [
        (state_of(engine=RUNS), []),
        (state_of(engine={**RUNS, "state": "ready, preparing plan 3"}), []),
        (
            state_of(target=None),
            ["no model (stage one with `skynet split MODEL --stages S --shards N`)"],
        ),
        (
            state_of(missing=["stage0.shard0", "orchestrator"]),
            [NO_ORCHESTRATOR, "stage0.shard0 has no worker"],
        ),
        # The engine's last report outlives its orchestrator
        (state_of(missing=["orchestrator"], engine=RUNS), [NO_ORCHESTRATOR]),
        # Workers that take any place get the first ones
        (
            state_of(missing=PLACES, members=[member(state="spare"), member(state="starting")]),
            ["stage1.shard0, stage1.shard1 have no worker"],
        ),
        (
            state_of(missing=PLACES[:2], members=[member(state="spare", leaving=True)]),
            ["stage0.shard0, stage0.shard1 have no worker"],
        ),
        (
            state_of(missing=PLACES[:1], members=[member(PLACES[0], "loading")]),
            ["stage0.shard0 is loading its weights"],
        ),
        (
            state_of(missing=PLACES[:1], members=[member(PLACES[0], "failed", problem="no tile")]),
            ["stage0.shard0: no tile"],
        ),
        (
            state_of(missing=[f"stage0.shard{shard}" for shard in range(100)]),
            [f"{', '.join(f'stage0.shard{n}' for n in range(4))} and 96 more have no worker"],
        ),
        # What only the orchestrator knows
        (
            state_of(engine={"state": "waiting", "reason": "waiting for members to settle"}),
            ["waiting for members to settle"],
        ),
        (
            state_of(engine={"state": "tiny is asked for, and not staged"}),
            ["tiny is asked for, and not staged"],
        ),
    ],
)
def test_the_reason_names_what_is_missing(state: dict[str, Any], phrases: list[str]) -> None:
    assert obstacles(state) == phrases


class Clusters:
    """Stands in for `cluster_status`: `reasons`, or an error."""

    def __init__(self) -> None:
        self.reasons: list[str] | Exception = []

    def status(self, *_: Any, **__: Any) -> dict[str, Any]:
        if isinstance(self.reasons, Exception):
            raise self.reasons
        return {"waiting_for": self.reasons}


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> Clusters:
    clusters = Clusters()
    monkeypatch.setattr("skynet.client.status.cluster_status", clusters.status)
    monkeypatch.setattr(waiting, "LOOK_S", 0.01)
    monkeypatch.setattr(waiting, "NOTICE_S", 0.05)
    return clusters


class Output:
    """What was printed on stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.text = capsys, ""

    def wait_for(self, condition: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition(self.text):
            assert time.monotonic() < deadline, self.text
            captured = self.capsys.readouterr()
            assert captured.out == ""
            self.text += captured.err
            time.sleep(0.01)


def test_a_reason_is_said_once_and_again_when_it_changes(
    clusters: Clusters, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a command that waits
    output = Output(capsys)
    clusters.reasons = ["no orchestrator", "stage0.shard0 has no worker"]
    with WaitingNotices("unix:///x"):
        first = "The request waits: no orchestrator; stage0.shard0 has no worker\n"
        output.wait_for(lambda text: text == first)
        # When the state changes, and Redis is away for a moment
        clusters.reasons = ["stage0.shard0 is loading its weights"]
        output.wait_for(lambda text: text.count("\n") == 2)
        clusters.reasons = OSError("no answer")
        output.wait_for(lambda text: text.count("\n") == 3)
        clusters.reasons = []
        output.wait_for(lambda text: text.count("\n") == 4)
    # Then each is one line
    assert output.text.splitlines()[1:] == [
        "The request waits: stage0.shard0 is loading its weights",
        "The request waits: no answer",
        "The cluster is ready.",
    ]


def test_a_reason_is_said_again_after_progress(
    clusters: Clusters, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a command that has said why it waits
    output = Output(capsys)
    clusters.reasons = ["no orchestrator"]
    with WaitingNotices("unix:///x") as notices:
        output.wait_for(lambda text: text.count("\n") == 1)
        # When a token comes, and then nothing again / Then it says so again
        notices.progress()
        output.wait_for(lambda text: text == 2 * "The request waits: no orchestrator\n")


def test_text_tasks_say_why_they_wait(
    clusters: Clusters, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a request that is answered once its command has said why it waits
    clusters.reasons = ["no orchestrator"]

    class Request:
        def get(self) -> str:
            Output(capsys).wait_for(lambda text: "waits: no orchestrator" in text)
            return "answer"

    class Submitting:
        url = "unix:///x"

        def submit_prompts(self, texts: tuple[str, ...], **_: Any) -> list[Request]:
            return [Request() for _ in texts]

    monkeypatch.setattr(text_tasks, "client_of_settings", Submitting)
    # When / Then
    assert text_tasks._complete(("a",), "embed", {}) == ["answer"]


def test_nothing_is_said_while_the_cluster_only_takes_its_time(
    clusters: Clusters, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a cluster that can run requests, and is looked at several times
    looks: list[int] = []

    def look(*_: Any, **__: Any) -> dict[str, Any]:
        looks.append(1)
        return clusters.status()

    monkeypatch.setattr("skynet.client.status.cluster_status", look)
    with WaitingNotices("unix:///x"):
        Output(capsys).wait_for(lambda _: len(looks) > 2)
    # Then
    assert capsys.readouterr() == ("", "")
