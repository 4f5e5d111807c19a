"""decode, batch, prefill, weights: tokens per second of SkyNet and of Hugging Face `generate`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from skynet.bench.models import SMOLLM2, BenchModel
from skynet.bench.report import Result, take_turns
from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.checkpoint.unpacked import unpacked_directory
from skynet.errors import SkynetError
from skynet.local.cluster import LocalCluster
from skynet.settings import settings

NUM_TOKENS = 64
PROMPT_TOKENS, LONG_PROMPT_TOKENS = 16, 1024


def decode(rounds: int, model: BenchModel = SMOLLM2, reach: float = 3.0) -> Result:
    """One request, 64 tokens: 1 stage x 2 shards against one process on all cores."""
    return _compare("decode", model, 1, rounds, reach)


def batch(rounds: int) -> Result:
    """16 concurrent requests, 64 tokens each: 1 stage x 2 shards against a batch of 16."""
    return _compare("batch", SMOLLM2, 16, rounds, 1.5)


def prefill(rounds: int, model: BenchModel = SMOLLM2) -> Result:
    """One prompt of 1,024 tokens and the first token: 1 stage x 2 shards against one process."""
    prompt = [100 + 7 * index % 4000 for index in range(LONG_PROMPT_TOKENS)]
    what = f"a prompt of {LONG_PROMPT_TOKENS} tokens, {model.title}, {os.cpu_count()} cores"
    result = _take_turns("prefill", model, what, ([prompt], 1), rounds)
    for speeds in result.samples.values():  # of the only generated token
        speeds[:] = [LONG_PROMPT_TOKENS * speed for speed in speeds]
    result.target = (">=", 1.0)
    return result


def weights(
    rounds: int, model: BenchModel = SMOLLM2, reach: tuple[float, float] = (1.25, 1.25)
) -> Result:
    """One request, 64 tokens, 1 stage x 2 shards: with weights of 4 and 8 bits, and of 16.

    reach: of q4 and of q8, relative to 16 bits.
    """
    with ExitStack() as stack:
        clusters = {
            form: stack.enter_context(LocalCluster(model.find(), 1, 2, weights=form))
            for form in ("q4", "bf16", "q8")
        }
        speeds = {
            form: partial(_speed, cluster, [_prompt(0)], NUM_TOKENS)
            for form, cluster in clusters.items()
        }
        samples = take_turns(speeds, rounds)
    q8 = median(samples.pop("q8"))
    ratio = f"{q8 / median(samples['bf16']):.2f} times bf16, target >= {reach[1]:g}"
    what = f"1 x {NUM_TOKENS} tokens, {model.title} at 1x2, {os.cpu_count()} cores"
    notes = {"q8": f"{q8:.3g} tokens/s, {ratio}"}
    return Result("weights", what, "tokens/s", samples, (">=", reach[0]), notes)


def _compare(name: str, model: BenchModel, requests: int, rounds: int, reach: float) -> Result:
    what = f"{requests} x {NUM_TOKENS} tokens, {model.title}, {os.cpu_count()} cores"
    prompts = [_prompt(number) for number in range(requests)]
    result = _take_turns(name, model, what, (prompts, NUM_TOKENS), rounds)
    result.target = (">=", reach)
    return result


def _prompt(number: int) -> list[int]:
    return [100 + 37 * number + 11 * index for index in range(PROMPT_TOKENS)]


def _speed(cluster: LocalCluster, prompts: list[list[int]], num_tokens: int) -> float:
    """Tokens per second; nothing is reused of a prompt before."""
    options: dict[str, Any] = {"max_tokens": num_tokens, "ignore_eos": True}
    started = time.perf_counter()
    generations = cluster.submit_prompts(prompts, cache_salt=str(started), **options)
    made = sum(len(generation.get().token_ids) for generation in generations)
    return made / (time.perf_counter() - started)


def _take_turns(
    name: str, model: BenchModel, what: str, work: tuple[list[list[int]], int], rounds: int
) -> Result:
    """SkyNet and Hugging Face, tokens per second. work: prompts, and tokens for each."""
    prompts, num_tokens = work
    cache, source = settings().cache_dir, model.find()
    directory = unpacked_directory(open_checkpoint(source, cache), cache)
    with LocalCluster(source, stages=1, shards=2, weights="bf16") as cluster, ExitStack() as stack:
        references = {
            f"Hugging Face generate, {dtype}": stack.enter_context(Reference(directory, dtype))
            for dtype in reference_dtypes()
        }

        others = {name: partial(each.run, prompts, num_tokens) for name, each in references.items()}
        ours = partial(_speed, cluster, prompts, num_tokens)
        samples = take_turns({"SkyNet 1x2, bfloat16 weights": ours, **others}, rounds)
    return Result(name, what, "tokens/s", samples)


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

    def run(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Tokens per second of one `generate` call with all prompts."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise SkynetError("the reference process has no pipes")
        stdin.write(json.dumps({"prompts": prompts, "tokens": num_tokens}) + "\n")
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
