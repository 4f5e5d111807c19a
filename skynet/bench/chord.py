"""chord: SkyNet's chord of two shards and a body, against stock `celery.chord`.

SkyNet's is measured at chord_span=layer on a real cluster with a narrow random model, including the
layers' compute and exchange. Stock chords only carry numpy arrays of the same size.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import skynet.chords.messenger  # registers the serializer of the workers' replies  # noqa: F401
from skynet.bench.report import Result, take_turns
from skynet.chords.broker import kombu_url
from skynet.errors import SkynetError
from skynet.local.cluster import LocalCluster
from skynet.local.reaper import Reaper
from skynet.local.server import local_server
from skynet.redis_url import RedisURL
from skynet.store.connection import connect
from skynet.wire import keys

LAYERS = 24
HIDDEN = 576
TOKENS = 32
STOCK_CHORDS = 60


def chord(rounds: int) -> Result:
    """Milliseconds per chord, in a long chain."""
    with local_server() as (server, reaper):
        model = narrow_model(server.directory / "model", LAYERS)
        with (
            LocalCluster(model, 1, 2, "float32", "layer") as cluster,
            StockWorkers(server.url, reaper) as stock,
        ):
            samples = take_turns(
                {"SkyNet chord": lambda: _skynet(cluster), "stock celery.chord": stock.run}, rounds
            )
    what = f"2 shards and a body, {HIDDEN} floats; SkyNet's with a layer's compute and exchange"
    return Result("chord", what, "ms", samples, target=("<=", 1 / 14))


def _skynet(cluster: LocalCluster) -> float:
    generation = cluster.submit_prompt([1, 2, 3], max_tokens=TOKENS, ignore_eos=True)
    rate = generation.get().timings["decode_tokens_per_s"]
    return 1000 / rate / LAYERS


def narrow_model(directory: Path, layers: int) -> Path:
    """A directory with random weights whose products take next to no time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=128,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


class StockWorkers:
    """Three solo workers with Celery's Redis backend: two for shards, one for bodies."""

    def __init__(self, url: str, reaper: Reaper) -> None:
        stock_url = kombu_url(RedisURL.given(url), with_password=True)
        environment = {"SKYNET_BENCH_BROKER": stock_url, "SKYNET_BENCH_BACKEND": stock_url}
        self.environment = environment
        self._client = connect(url, timeout_s=120)
        self._processes = [self._start(queue) for queue in ("shard0", "shard1", "body")]
        for process in self._processes:
            reaper.watch(process.pid)
        self._app = _stock_app(environment)
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while len(self._app.control.ping(timeout=0.5) or []) < len(self._processes):
            if time.monotonic() > deadline:
                raise SkynetError("the stock Celery workers did not start")

    def run(self) -> float:
        """Milliseconds per chord in a chain of STOCK_CHORDS, in which each body starts the next."""
        started = time.perf_counter()
        self._app.send_task("stock.start", (STOCK_CHORDS,), queue="body")
        if self._client.blpop(["stock.done"], timeout=120) is None:
            raise SkynetError("the stock chords did not end within 120 s")
        return (time.perf_counter() - started) * 1000 / STOCK_CHORDS

    def _start(self, queue: str) -> subprocess.Popen[bytes]:
        command = (
            "worker --pool solo --without-gossip --without-mingle --loglevel ERROR "
            f"-Q {queue} -n {queue}@bench"
        )
        return subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "skynet.bench.stock", *command.split()],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> StockWorkers:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()


def _stock_app(environment: dict[str, str]) -> Any:
    from celery import Celery

    app = Celery(
        "stock-client",
        broker=environment["SKYNET_BENCH_BROKER"],
        backend=environment["SKYNET_BENCH_BACKEND"],
        set_as_current=False,
    )
    app.conf.accept_content = ["json", keys.SERIALIZER]  # of the workers' replies
    return app
