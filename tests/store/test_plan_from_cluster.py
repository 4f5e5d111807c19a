"""`skynet plan --from-cluster`: with what the members in Redis have measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result

from skynet.cli import main
from skynet.local.server import EmbeddedServer
from skynet.settings import settings
from skynet.store.members import Member, Members

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "dtype": "bfloat16",
}


@pytest.fixture
def members(client: redis.Redis, server: EmbeddedServer, monkeypatch: Any) -> Members:
    monkeypatch.setenv("SKYNET_REDIS_URL", server.url)
    settings.cache_clear()
    return Members(client, 60)


def run(root: Path, *words: str) -> Result:
    (root / "config.json").write_text(json.dumps(CONFIG))
    return CliRunner().invoke(main, ["plan", str(root), "--from-cluster", *words])


def test_the_members_are_what_shapes_run_on(tmp_path: Path, members: Members) -> None:
    # Given two members, one with little memory, and an orchestrator
    for name, free in (("a", 2**34), ("b", 2**34)):
        members.renew(
            Member(
                name, name, "", f"host-{name}", 1, cores=4, speed=2e9, free_bytes=free,
                few_rows_speed=3e9, many_rows_speed=4e9,
            )
        )  # fmt: skip
    members.renew(Member("o", "o", "orchestrator", "host-o", 1, cores=4))
    # When shapes are predicted
    shown = json.loads(run(tmp_path, "--json").stdout)
    # Then they are those of one and two workers, as fast as the members
    assert {row["workers"] for row in shown["shapes"]} == {1, 2}
    worker = shown["assumed"]["worker"]
    assert (worker["speed"], worker["few_rows"], worker["many_rows"]) == (2e9, 3e9, 4e9)
    assert worker["cores"] == 4
    assert 0 < worker["round_trip_s"] < 1
    assert "the 2 workers at" in shown["assumed"]["source"]
    # And more workers, and other machines, can be asked for
    more = json.loads(run(tmp_path, "--workers", "4", "--cores", "2", "--json").stdout)
    assert {row["workers"] for row in more["shapes"]} == {4}
    assert more["assumed"]["worker"]["cores"] == 2


def test_without_members_it_says_what_to_do(tmp_path: Path, members: Members) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "--from-cluster: no worker at" in result.output
