"""Two clusters with different prefixes in one database of one Redis do not see each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Tiny, make_tiny
from flower_api import flower
from processes import command, run, wait_for

from skynet.client.status import cluster_status
from skynet.local.cluster import LocalCluster
from skynet.store.staged_models import list_models

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
PREFIX = "team-b:skynet:"
PLACES = ["orchestrator", "stage0.shard0"]


@pytest.fixture(scope="module")
def other_tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("other"), "gpt2")


# What a user of the other cluster does, in one process with its variables.
SESSION = """
import json, sys
from skynet.client.status import cluster_status
from skynet.client.client import Client
from skynet.staging.split import skysplit
from skynet.store.staged_models import list_models
path, prompt = sys.argv[1], json.loads(sys.argv[2])
skysplit(path, 1, 1, dtype="float32")
client = Client()
answer = client.submit_prompt(prompt, max_tokens=24).get(timeout=120)
print(json.dumps({
    "tokens": answer.token_ids,
    "status": cluster_status(client.redis, client.url),
    "models": [model.name for model in list_models(client.redis)],
}))
"""


@pytest.fixture
def other(cluster: LocalCluster, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Workers of another cluster in the same database: its variables."""
    environment = {"SKYNET_REDIS_URL": cluster.url, "SKYNET_PREFIX": PREFIX}
    with ExitStack() as stack:
        for place in PLACES:
            words = ("celery", "-A", "skynet", "worker", "-Q", place)
            log = tmp_path / f"{place}.log"
            stack.enter_context(command(*words, environment=environment, log=log, cwd=tmp_path))
        yield environment


def session(environment: dict[str, str], tiny: Tiny, prompt: list[int]) -> dict[str, Any]:
    """What SESSION prints."""
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(tiny.path), json.dumps(prompt)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_two_clusters_in_one_database_do_not_see_each_other(
    cluster: LocalCluster, tiny: Tiny, other: dict[str, str], other_tiny: Tiny, tmp_path: Path
) -> None:
    # Given one with a request that runs
    client = cluster.client.redis
    running = cluster.submit_prompt(tiny.prompts[0], max_tokens=2000)
    next(running.tokens(timeout=60))
    assert cluster_status(client, cluster.url)["requests"]["open"] == 1
    # When the other gets its model and a request / Then it answers with its model
    told = session(other, other_tiny, other_tiny.prompts[1])
    assert told["tokens"] == other_tiny.tokens[1]
    # And it has its workers, model and requests only
    status = told["status"]
    assert sorted(member["address"] for member in status["members"]) == PLACES
    assert (status["requests"]["open"], status["missing"]) == (0, [])
    assert status["prefix"] == PREFIX
    assert told["models"] == [other_tiny.path.name]
    # And so has the first
    status = cluster_status(client, cluster.url)
    assert len(status["members"]) == 7
    assert {model.name for model in list_models(client)} == {tiny.path.name}
    running.cancel()
    answer = cluster.submit_prompt(tiny.prompts[1], max_tokens=24).get(timeout=60)
    assert answer.token_ids == tiny.tokens[1]
    # And Celery's commands reach the workers of one cluster
    ping = run("celery", "-A", "skynet", "inspect", "ping", "--json", environment=other)
    assert ping.returncode == 0, ping.stderr
    nodes = json.loads(ping.stdout)
    assert sorted(node.split("@")[0] for node in nodes) == PLACES
    # And Flower shows them and their queues, under the names that people type
    with flower(other, tmp_path) as page:
        shown = wait_for("Flower shows two workers", lambda: len(w := page("workers")) == 2 and w)
        assert set(shown) == set(nodes)

        def queues() -> dict[str, int]:
            lengths = page("queues/length").get("active_queues", [])
            return {queue["name"]: queue["messages"] for queue in lengths}

        wait_for(
            "Flower shows two queues", lambda: page("workers?refresh=1") and len(queues()) == 2
        )
        assert queues() == dict.fromkeys(PLACES, 0)
    # And every key is under a prefix
    names = [key.decode() for key in client.scan_iter(count=1000)]
    assert [name for name in names if not name.startswith(("skynet:", PREFIX))] == []
    assert any(name.startswith(f"{PREFIX}celery-task-meta-") for name in names)
    assert any(name.startswith(f"{PREFIX}_kombu.binding.") for name in names)
