"""Flower shows requests as tasks, and with SKYNET_TRACE=1 every layer of every shard."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Tiny
from disturbed import kill, members, worker_with_a_place
from flower_api import flower
from processes import wait_for

from skynet.local.cluster import LocalCluster
from skynet.wire import keys

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
Tasks = dict[str, dict[str, Any]]


@contextmanager
def shown_tasks(cluster: LocalCluster, directory: Path) -> Iterator[Callable[[], Tasks]]:
    """Flower beside the cluster: a function that replies the tasks it shows."""
    with flower({"SKYNET_REDIS_URL": cluster.url}, directory) as page:
        yield lambda: page("tasks?limit=5000")


def shown(cluster: LocalCluster, tasks: Callable[[], Tasks], prompt: list[int]) -> dict[str, Any]:
    """A request that was submitted while Flower listened, as Flower shows it when it is over."""

    def ask() -> dict[str, Any] | None:
        generation = cluster.submit_prompt(prompt, max_tokens=5)
        generation.get(timeout=60)
        task = tasks().get(generation.id)
        # A task without a name came before Flower was there: it has seen its end only.
        return task if task and task["name"] and task["state"] == "SUCCESS" else None

    return wait_for("Flower shows a request that succeeded", ask)


def test_requests_are_tasks_and_shard_tasks_are_not_shown(
    cluster: LocalCluster, tiny: Tiny, tmp_path: Path
) -> None:
    # Given Flower beside a cluster
    with shown_tasks(cluster, tmp_path) as tasks:
        # When requests are answered
        prompt = tiny.prompts[0]
        task = shown(cluster, tasks, prompt)
        # Then the task tells the prompt's length and the tokens made
        assert task["name"] == keys.GENERATE_TASK
        assert task["args"] == f"(prompt of {len(prompt)} tokens)"
        assert f'"prompt_tokens": {len(prompt)}' in task["kwargs"]
        assert "answer of 5 tokens, length" in task["result"]
        assert task["runtime"] > 0
        assert task["worker"].startswith("orchestrator@")
        # And a cancelled one is shown as cancelled
        cancelled = cluster.submit_prompt(prompt, max_tokens=2000)
        next(cancelled.tokens(timeout=60))
        cancelled.cancel()
        wait_for(
            "Flower shows the cancelled one",
            lambda: tasks().get(cancelled.id, {}).get("state") == "REVOKED",
        )
        # And no task of a shard is there
        assert {task["name"] for task in tasks().values()} - {None} == {keys.GENERATE_TASK}


def test_traced_shard_tasks_are_shown(tiny: Tiny, tmp_path: Path) -> None:
    # Given a cluster that traces, one chord a layer
    with LocalCluster(
        tiny.path, 1, 2, "float32", "layer", environment={"SKYNET_TRACE": "1"}
    ) as traced:
        with shown_tasks(traced, tmp_path) as tasks:
            # When a request is answered
            task = shown(traced, tasks, tiny.prompts[0])
            # Then it is there
            assert task["name"] == keys.GENERATE_TASK
            # And so is every kind of hop: on each shard, between layers, and at the end

            def spans() -> set[str]:
                return {
                    str(task["worker"]).split("@")[0]
                    for task in tasks().values()
                    if task["name"] == keys.RUN_SPAN_TASK and task["state"] == "SUCCESS"
                }

            wait_for("spans of both shards", lambda: spans() == {"stage0.shard0", "stage0.shard1"})
            kinds = {task["name"] for task in tasks().values()}
            assert kinds >= {keys.RUN_SPAN_TASK, keys.ADVANCE_TASK, keys.FINISH_STEP_TASK}
            layers = [
                task["args"] for task in tasks().values() if task["name"] == keys.RUN_SPAN_TASK
            ]
            assert all(any(f"layers [{n}, {n + 1})" in args for args in layers) for n in range(4))
            # And traced answers are right
            completion = traced.submit_prompt(tiny.prompts[0], max_tokens=24).get(timeout=60)
            assert completion.token_ids == tiny.tokens[0]


def test_workers_are_named_after_the_place_they_have(tiny: Tiny, tmp_path: Path) -> None:
    # Given workers that take any place, one more than there are places, and Flower
    with LocalCluster(tiny.path, 1, 2, "float32", elastic=True, spares=1) as elastic:
        with flower({"SKYNET_REDIS_URL": elastic.url}, tmp_path) as get:

            def answering() -> set[str]:
                """Names of the workers that answer to remote control, before "@"."""
                answers = elastic.client.app.control.ping(timeout=1.0)
                return {name.split("@")[0] for answer in answers for name in answer}

            def online() -> set[str]:
                """Names of the workers that Flower shows as online, before "@"."""
                states = get("workers?status=1")
                return {name.split("@")[0] for name, is_online in states.items() if is_online}

            # When they have places / Then they are named after them, and the spare is not
            placed = {m.pid for m in members(elastic) if m.address}
            (idle,) = [worker for worker in elastic.workers if worker.pid not in placed]
            names = {"stage0.shard0", "stage0.shard1", "orchestrator"}
            wait_for("their names", lambda: answering() == {*names, f"worker-{idle.pid}"})
            wait_for("them in Flower", lambda: online() == {*names, f"worker-{idle.pid}"})
            assert {member.node.split("@")[0] for member in members(elastic)} == answering()
            # And when one of them is gone, the spare is named after its place
            kill(elastic, worker_with_a_place(elastic))
            wait_for("the name to pass on", lambda: answering() == names)
            wait_for("the same in Flower", lambda: online() == names)
            # And still works there, with the place in the lines of its log
            answer = elastic.submit_prompt(tiny.prompts[0], max_tokens=24).get(timeout=60)
            assert answer.token_ids == tiny.tokens[0]
            elastic.processes.remove(idle.address)
            assert re.search(r"INFO +stage0.shard\d leaving", idle.log.read_text())
