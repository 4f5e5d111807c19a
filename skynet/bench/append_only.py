"""aof: bytes a token that decoding and prefill write into Redis's append-only file."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import redis

from skynet.bench.report import Result
from skynet.errors import SkynetError
from skynet.local.cluster import LocalCluster
from skynet.settings import settings

MODEL = "smollm2"
DECODED, PROMPT = 100, 1024
MAX_BYTES = 2048  # a token
SHOWN = 6
WRITTEN_S = 5.0

# What differs from key to key: ids, and numbers after a sign of punctuation.
_VARIABLE = re.compile(r"[0-9a-f]{8}[0-9a-f-]{4,}|(?<=[:.>])\d+(?=$|[:.>])")


def append_only(rounds: int) -> Result:
    """Bytes a token, all that is written meanwhile included: leases, requests, answers."""
    samples: dict[str, list[float]] = {"decode": [], f"prefill of {PROMPT}": []}
    kinds: dict[str, Counter[str]] = {name: Counter() for name in samples}
    prompt = [100 + 7 * index % 4000 for index in range(PROMPT)]
    work = (prompt[:16], DECODED, DECODED), (prompt, 1, PROMPT)
    with LocalCluster(MODEL, stages=1, shards=2, persistent=True) as cluster:
        file = AppendOnlyFile(cluster.client.redis)
        for _ in range(rounds):
            for name, (tokens, max_tokens, counted) in zip(samples, work, strict=True):
                file.mark()
                options: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": True}
                cluster.submit_prompt(tokens, **options).get()
                written = file.since_mark()
                samples[name].append(written.total() / counted)
                kinds[name] += Counter({kind: written[kind] // counted for kind in written})
    return Result(
        "aof",
        f"append-only file, SmolLM2-135M at 1x2: {DECODED} tokens, and a prompt of {PROMPT}",
        "B a token",
        samples,
        notes={name: _shown(kinds[name], rounds) for name in samples},
        targets=dict.fromkeys(samples, MAX_BYTES),
    )


def _shown(kinds: Counter[str], rounds: int) -> str:
    return ", ".join(f"{kind} {size // rounds}" for kind, size in kinds.most_common(SHOWN))


class AppendOnlyFile:
    """The append-only file of a server on this machine, by kinds of commands."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        config: dict[str, str] = client.config_get("dir", "appenddirname")  # type: ignore[assignment]
        self.directory = Path(config["dir"]) / config["appenddirname"]
        self._start: tuple[Path, int] = (self.directory, 0)
        # A rewrite would start another file in the middle of a measurement.
        client.config_set("auto-aof-rewrite-percentage", "0")

    def mark(self) -> None:
        """Count from here."""
        self._start = self._written()

    def since_mark(self) -> Counter[str]:
        """Bytes by command and key: "SET step:*.*".

        Raises:
            SkynetError: the server has started another file since.
        """
        (path, start), (now, stop) = self._start, self._written()
        if path != now:
            raise SkynetError(f"Redis has replaced its append-only file {path.name}")
        sizes: Counter[str] = Counter()
        with path.open("rb") as file:
            file.seek(start)
            for words, size in _commands(file, stop):
                sizes[_kind(words)] += size
        return sizes

    def _written(self) -> tuple[Path, int]:
        """The file and its size, once all that was run is in it."""
        deadline = time.monotonic() + WRITTEN_S
        while self._info("aof_rewrite_in_progress") or self._info("aof_buffer_length"):
            if time.monotonic() > deadline:
                raise SkynetError(f"Redis did not write its append-only file in {WRITTEN_S:g} s")
            time.sleep(0.01)
        files = self.directory.glob("*.incr.aof")
        path = max(files, key=lambda file: int(file.name.split(".")[-3]))
        return path, path.stat().st_size

    def _info(self, name: str) -> int:
        info: dict[str, Any] = self.client.info("persistence")
        return int(info.get(name, 0))


def _commands(file: BinaryIO, stop: int) -> Iterator[tuple[list[bytes], int]]:
    """Each command from here to `stop`, with its size in the file."""
    while (start := file.tell()) < stop:
        line = file.readline()
        if not line.startswith(b"*"):
            continue  # a comment
        words = []
        for _ in range(int(line[1:])):
            words.append(file.read(int(file.readline()[1:])))
            file.readline()
        yield words, file.tell() - start


def _kind(words: list[bytes]) -> str:
    name, *rest = [word.decode(errors="replace") for word in words[:2]]
    key = rest[0].removeprefix(settings().prefix) if rest else ""
    return f"{name.upper()} {_VARIABLE.sub('*', key)}".rstrip()
