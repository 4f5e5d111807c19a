"""decode and batch: tokens per second of SmolLM2, against Hugging Face `generate`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from skynet.bench.report import Result, take_turns
from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.checkpoint.unpacked import unpacked_directory
from skynet.errors import SkynetError
from skynet.local.cluster import LocalCluster
from skynet.settings import settings

NUM_TOKENS = 64
PROMPT_TOKENS = 16
MODEL = "smollm2"


def decode(rounds: int) -> Result:
    """One request, 64 tokens: 1 stage x 2 shards against one process on all cores."""
    return _compare("decode", 1, rounds)


def batch(rounds: int) -> Result:
    """16 concurrent requests, 64 tokens each: 1 stage x 2 shards against a batch of 16."""
    return _compare("batch", 16, rounds)


def _compare(name: str, requests: int, rounds: int) -> Result:
    prompts = [[100 + 37 * i + 11 * j for j in range(PROMPT_TOKENS)] for i in range(requests)]
    cache = settings().cache_dir
    directory = unpacked_directory(open_checkpoint(MODEL, cache), cache)
    with LocalCluster(MODEL, stages=1, shards=2, weights="bf16") as cluster, ExitStack() as stack:
        references = {
            f"Hugging Face generate, {dtype}": stack.enter_context(Reference(directory, dtype))
            for dtype in reference_dtypes()
        }

        def skynet() -> float:
            started = time.perf_counter()
            generations = cluster.submit_prompts(prompts, max_tokens=NUM_TOKENS, ignore_eos=True)
            num_tokens = sum(len(generation.get().token_ids) for generation in generations)
            return num_tokens / (time.perf_counter() - started)

        others = {name: partial(each.run, prompts) for name, each in references.items()}
        samples = take_turns({"SkyNet 1x2, bfloat16 weights": skynet, **others}, rounds)
    what = f"{requests} x {NUM_TOKENS} tokens, SmolLM2-135M, {os.cpu_count()} cores"
    return Result(name, what, "tokens/s", samples, target=(">=", 0.9))


def reference_dtypes() -> list[str]:
    """What Hugging Face computes in: bfloat16 too, where the CPU has instructions for it."""
    import torch

    has_bfloat16 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return ["float32", "bfloat16"] if has_bfloat16 else ["float32"]


class Reference:
    """Hugging Face `generate` in a separate process, on all cores; idle between rounds."""

    def __init__(self, directory: Path, dtype: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "skynet.bench.reference", str(directory), dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, prompts: list[list[int]]) -> float:
        """Tokens per second of one `generate` call with all prompts."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise SkynetError("the reference process has no pipes")
        stdin.write(json.dumps({"prompts": prompts, "tokens": NUM_TOKENS}) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise SkynetError(f"the reference process ended with code {self._process.wait()}")
        return float(json.loads(line)["tokens_per_s"])

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.kill()
        self._process.communicate()
