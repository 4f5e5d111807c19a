"""A replica, or a Redis whose memory is full: what clients and commands say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import redis
from click.testing import CliRunner
from orchestrator_cases import CONFIG, ask
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from skynet import cli
from skynet.architecture.tensors import staged_tensors
from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.client.status import cluster_status
from skynet.errors import ClusterUnreachable
from skynet.local.server import EmbeddedServer
from skynet.models.registry import load_architecture
from skynet.settings import settings
from skynet.store.away import RedisAway, RedisFull
from skynet.store.members import Member, Members
from skynet.store.resp import RespConnection, Script, command
from skynet.store.staging import StagingJob
from skynet.store.weights import WeightStore
from skynet.tokenizer.staged_tokenizer import FILE, StagedTokenizer

Refusal = Callable[[redis.Redis], None]


def as_replica(client: redis.Redis) -> None:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")  # where nobody listens


def as_full(client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)


TOLD = {as_replica: "it is a replica", as_full: "its memory is full"}


@pytest.fixture
def staged(
    server: EmbeddedServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[redis.Redis]:
    """A cluster that is asked for a model; afterwards the server takes writes again."""
    monkeypatch.setenv("SKYNET_REDIS_URL", server.url)
    settings.cache_clear()
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    files = {FILE: StagedTokenizer(backend=tokenizer.to_str()).to_json()}
    WeightStore(client).stage(StagingJob("d", "tiny", CONFIG, {}, files, None, 4096))  # type: ignore[arg-type]
    ask(client)
    yield client
    client.config_set("maxmemory", 0)
    client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that is not staged yet."""
    path = tmp_path_factory.mktemp("refused")
    (path / "config.json").write_text(json.dumps(CONFIG))
    shapes = {t.name: t.shape for t in staged_tensors(load_architecture(CONFIG))}
    save_file({n: np.zeros(s, np.float32) for n, s in shapes.items()}, path / "model.safetensors")
    return path


@contextmanager
def told(refusal: Refusal, url: str) -> Iterator[None]:
    """ClusterUnreachable, in a line that names server, reason and remedy."""
    with pytest.raises(ClusterUnreachable, match=r"^[^\n]*$") as caught:
        yield
    text = str(caught.value)
    assert f"Redis at {url} cannot serve now: {TOLD[refusal]}" in text
    assert ("maxmemory" if refusal is as_full else "set SKYNET_REDIS_URL to the master") in text


@pytest.mark.parametrize("refusal", TOLD)
def test_a_prompt_that_cannot_be_written(
    staged: redis.Redis, server: EmbeddedServer, refusal: Refusal
) -> None:
    # Given a client that has submitted before
    client = Client(server.url)
    known = client.submit_prompt([1, 2, 3], max_tokens=5)
    # When Redis takes no more writes / Then
    refusal(staged)
    with told(refusal, server.url):
        client.submit_prompt([1, 2, 3], max_tokens=5)
    # And what only reads still works
    assert Generation(known.id, client)._record() is not None
    client.close()


@pytest.mark.parametrize("words", [("rebalance",), ("generate", "hello"), ("split",)])
@pytest.mark.parametrize("refusal", TOLD)
def test_a_command_that_cannot_write_says_why_in_a_line(
    staged: redis.Redis,
    server: EmbeddedServer,
    checkpoint: Path,
    refusal: Refusal,
    words: tuple[str, ...],
) -> None:
    # Given
    if words == ("split",):
        words = ("split", str(checkpoint), "--shards", "2")
    refusal(staged)
    # When
    result = CliRunner().invoke(cli.main, list(words))
    # Then
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"ClusterUnreachable: Redis at {server.url} cannot serve now")
    assert TOLD[refusal] in line


@pytest.mark.parametrize("refusal", TOLD)
def test_status_and_models_work_without_writes(
    staged: redis.Redis, server: EmbeddedServer, refusal: Refusal
) -> None:
    # Given a member whose lease is over, which is removed from the list when that is possible
    Members(staged, 0.1).renew(Member("gone", "node", "", "host", 1))
    staged.delete("skynet:member:gone")
    refusal(staged)
    # When / Then
    assert cluster_status(staged, server.url)["target"]["name"] == "tiny"
    result = CliRunner().invoke(cli.main, ["models", "--json"])
    assert [model["name"] for model in json.loads(result.stdout)["models"]] == ["tiny"]


@pytest.mark.parametrize("refusal", TOLD)
def test_all_connections_take_it_for_a_lost_connection(
    staged: redis.Redis, server: EmbeddedServer, refusal: Refusal
) -> None:
    # Given
    kind = RedisFull if refusal is as_full else RedisAway
    hot = RespConnection(server.url, 5)
    script = Script("return redis.call('SET', KEYS[1], 'x')")
    refusal(staged)

    def transaction() -> None:
        with staged.pipeline(transaction=True) as pipe:
            pipe.set("a", 1).set("b", 1).execute()

    def pipeline() -> None:
        with staged.pipeline(transaction=False) as pipe:
            pipe.ping().set("a", 1).set("b", 1).execute()

    # When / Then
    for write in (
        lambda: staged.set("a", 1),
        lambda: staged.register_script(script.text)(keys=["a"]),
        transaction,
        pipeline,
        lambda: hot.call([command(b"PING"), command(b"SET", b"a", b"1")]),
        lambda: hot.run(script, [b"a"], []),
    ):
        with pytest.raises(kind, match=TOLD[refusal]):
            write()
    # And each is usable at once
    assert staged.ping()
    assert hot.call([command(b"PING")]) == [b"PONG"]
    hot.close()
