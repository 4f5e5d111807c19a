"""http: the same load through the gateway and through `submit_prompt`, in turns."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from skynet.bench.report import Result
from skynet.errors import SkynetError
from skynet.local.cluster import LocalCluster, free_port

MODEL = "smollm2"
STREAMS, NUM_TOKENS, PROMPT_TOKENS = 16, 64, 16
IDLE_STREAMS, SHORT_REQUESTS, FIRST_TOKENS = 500, 200, 12
START_S = 120.0
MAX_ADDED_MS, MAX_IDLE_MB = 5, 150


def http(rounds: int) -> Result:
    """16 streams of 64 tokens at 1x2: tokens per second through HTTP and direct; what HTTP adds to
    the time to the first token; memory with 500 waiting streams; 200 short requests at once."""
    samples: dict[str, list[float]] = {"HTTP": [], "submit_prompt": []}
    with LocalCluster(MODEL, stages=1, shards=2, weights="bf16") as cluster:
        with _gateway(cluster.url) as (port, process):
            for number in range(rounds + 1):
                speeds = {
                    "HTTP": asyncio.run(_speed_of_http(port)),
                    "submit_prompt": asyncio.run(_speed_of_client(cluster)),
                }
                for name, speed in speeds.items() if number else ():
                    samples[name].append(speed)
            added = 1000 * _added_s(cluster, port)
            failed = asyncio.run(_failed_at_once(port))
            before = process.memory_info().rss / 1e6
            idle = asyncio.run(_idle_megabytes(port, process))
    notes = {
        "first token": f"{added:.2f} ms later through HTTP, at most {MAX_ADDED_MS}",
        "idle streams": f"{idle:.0f} MB with {IDLE_STREAMS} open, at most {MAX_IDLE_MB}; "
        f"{before:.0f} before",
        "at once": f"{failed} errors of {SHORT_REQUESTS} short requests",
    }
    what = f"{STREAMS} streams x {NUM_TOKENS} tokens, SmolLM2-135M at 1x2, {os.cpu_count()} cores"
    return Result("http", what, "tokens/s", samples, target=(">=", 0.95), notes=notes)


@contextmanager
def _gateway(url: str) -> Iterator[tuple[int, psutil.Process]]:
    """A gateway process over the cluster at this URL: its port and itself."""
    port = free_port()
    words = ["-m", "skynet.cli", "serve", "--port", str(port), "--no-auth", "--batch-gib", "0"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "SKYNET_REDIS_URL": url, "SKYNET_LOG_LEVEL": "WARNING"},
            stdout=log,
            stderr=log,
            cwd=Path.home(),
        )
        try:
            asyncio.run(_until_ready(port, process))
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


async def _until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            async with asyncio.timeout(5):
                status, _ = await _post(port, {"prompt": [1], "max_tokens": 1})
        except OSError:  # it does not listen yet
            await asyncio.sleep(0.1)
            continue
        if status == 200:
            return
    raise SkynetError("the gateway does not answer")


def _prompt(number: int, salt: int) -> list[int]:
    return [100 + (37 * number + 11 * index + 101 * salt) % 4000 for index in range(PROMPT_TOKENS)]


async def _speed_of_http(port: int) -> float:
    started = time.perf_counter()
    salt = time.time_ns()
    bodies = [
        {"prompt": _prompt(n, salt), "max_tokens": NUM_TOKENS, "ignore_eos": True,
         "temperature": 0, "stream": True}
        for n in range(STREAMS)
    ]  # fmt: skip
    answers = await asyncio.gather(*(_post(port, body) for body in bodies))
    for status, text in answers:
        if status != 200 or b"[DONE]" not in text:
            raise SkynetError(f"a stream failed: {text[:200]!r}")
    return STREAMS * NUM_TOKENS / (time.perf_counter() - started)


async def _speed_of_client(cluster: LocalCluster) -> float:
    started = time.perf_counter()
    salt = time.time_ns()
    prompts = [_prompt(number, salt) for number in range(STREAMS)]
    generations = await asyncio.to_thread(
        cluster.submit_prompts, prompts, max_tokens=NUM_TOKENS, ignore_eos=True
    )

    async def count(generation: Any) -> int:
        return sum([token.id >= 0 async for token in generation.tokens()])

    made = sum(await asyncio.gather(*map(count, generations)))
    return made / (time.perf_counter() - started)


def _added_s(cluster: LocalCluster, port: int) -> float:
    """What HTTP adds to the median time to the first token of single requests, seconds."""
    direct, through = [], []
    for number in range(FIRST_TOKENS):
        prompt = _prompt(number, time.time_ns())
        started = time.perf_counter()
        with cluster.submit_prompt(prompt, max_tokens=1, ignore_eos=True) as generation:
            next(iter(generation.tokens()))
            direct.append(time.perf_counter() - started)
        body = {"prompt": _prompt(number, time.time_ns()), "max_tokens": 1, "stream": True,
                "temperature": 0, "ignore_eos": True}  # fmt: skip
        through.append(asyncio.run(_first_token_s(port, body)))
    return median(through) - median(direct)


async def _first_token_s(port: int, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    async for line in _lines(port, body):
        if line.startswith(b"data: {"):
            break
    return time.perf_counter() - started


async def _failed_at_once(port: int) -> int:
    body = {"prompt": _prompt(0, 0), "max_tokens": 1, "temperature": 0}
    answers = await asyncio.gather(
        *(_post(port, body) for _ in range(SHORT_REQUESTS)), return_exceptions=True
    )
    return sum(isinstance(each, BaseException) or each[0] != 200 for each in answers)


async def _idle_megabytes(port: int, process: psutil.Process) -> float:
    """Memory of the gateway with many streams open, most of which wait for a slot."""
    opened = asyncio.Semaphore(0)

    async def keep_open() -> None:
        body = {"prompt": _prompt(0, 0), "max_tokens": 4000, "ignore_eos": True, "stream": True}
        is_open = False
        async for line in _lines(port, body):
            if not is_open and line.startswith(b": "):  # the comment that a stream begins with
                is_open = True
                opened.release()

    tasks = [asyncio.create_task(keep_open()) for _ in range(IDLE_STREAMS)]
    try:
        for _ in range(IDLE_STREAMS):
            await opened.acquire()
        await asyncio.sleep(2)
        return process.memory_info().rss / 1e6
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _post(port: int, body: dict[str, Any]) -> tuple[int, bytes]:
    """The status and the whole answer."""
    lines = [line async for line in _lines(port, body)]
    return int(lines[0].split()[1]), b"".join(lines)


async def _lines(port: int, body: dict[str, Any]) -> AsyncIterator[bytes]:
    """The lines of an answer of /v1/completions and of its head; opens a connection for it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
            "Connection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        async for line in reader:
            yield line
    finally:
        writer.close()
