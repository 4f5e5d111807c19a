"""App, orchestrators and shards on the tests' server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import redis
from chord_cases import make_app
from orchestrator_cases import Consumer, MakeRuntime, Shards, ask, beat, stage_model
from redis_servers import embedded_server
from safetensors.numpy import save_file

from skynet.architecture.tensors import staged_tensors
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.chords.app import SkynetCelery
from skynet.local.server import EmbeddedServer
from skynet.models.registry import load_architecture
from skynet.orchestrator.runtime import OrchestratorRuntime
from skynet.settings import settings

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A llama of a few hundred kB, of random weights."""
    path = tmp_path_factory.mktemp("llama")
    (path / "config.json").write_text(json.dumps(LLAMA))
    random = np.random.default_rng(5)
    tensors = {
        tensor.name: random.standard_normal(tensor.shape, np.float32)
        for tensor in staged_tensors(load_architecture(LLAMA))
    }
    save_file(tensors, path / "model.safetensors")
    return Checkpoint(path, "tiny-llama", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server that a test may stop. It starts with what was saved last."""
    with embedded_server() as embedded:
        yield embedded


@pytest.fixture
def app(server: EmbeddedServer, client: redis.Redis) -> Iterator[SkynetCelery]:
    app = make_app(server.url)
    yield app
    app.messenger.connection.close()
    app.close()


@pytest.fixture
def make_runtime(
    server: EmbeddedServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeRuntime]:
    """Orchestrators beside a staged model; none leads until its lease is kept."""
    monkeypatch.setenv("SKYNET_REDIS_URL", server.url)
    settings.cache_clear()
    stage_model(client)
    made = []

    def make() -> OrchestratorRuntime:
        app = make_app(server.url)
        runtime = OrchestratorRuntime(app, "orchestrator@here")
        app.runtime = runtime
        runtime.ready(Consumer())
        made.append(runtime)
        return runtime

    yield make
    for runtime in made:
        runtime.stop()
        runtime.context.client.close()
        runtime.leadership.client.close()
        runtime.context.app.messenger.connection.close()
        runtime.context.app.close()


@pytest.fixture
def runtime(make_runtime: MakeRuntime) -> OrchestratorRuntime:
    """One that leads."""
    runtime = make_runtime()
    beat(runtime)
    return runtime


@pytest.fixture
def shards(server: EmbeddedServer, client: redis.Redis) -> Iterator[Shards]:
    """Workers for 2 stages x 2 shards, which is the target."""
    shards = Shards(server.url)
    shards.join_all()
    ask(client)
    yield shards
    shards.close()
