"""A process that computes one shard's decoding steps alone: no exchange, no chord, no server.

    python -m skynet.bench.shard MODEL WEIGHTS SHARD

For each line on its input it prints the median seconds of a step of a 1x2 plan.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from skynet.errors import SkynetError

SHARDS = 2
FIRST, STEPS = 16, 64  # tokens in the slot before the first step; steps


def main(name: str, weights: str, shard: int) -> None:
    import torch

    from skynet.checkpoint.fetch import CheckpointFetch
    from skynet.layers.shard_model import ShardModel
    from skynet.models.registry import load_architecture
    from skynet.staging.split import SplitOptions, draft_plan, open_source

    torch.set_num_threads(1)
    options = SplitOptions(1, SHARDS, weights=weights)
    source = open_source(name, options)
    arch, plan = load_architecture(source.config), draft_plan(source, options)
    model = ShardModel(arch, plan, (0, shard), CheckpointFetch(source, arch))
    for _ in sys.stdin:
        print(_step_s(model), flush=True)


def _step_s(model: Any) -> float:
    """The median seconds of a step with one token; partials count as their sums."""
    from skynet.layers.alone import Alone
    from skynet.wire.step import LogitsRequest, Row, Step

    times = []
    for number in range(STEPS):
        row = Row(0, FIRST + number, (100 + number,), FIRST, LogitsRequest())
        step = Step(1, number, (row,), model.layers.size)
        started = time.perf_counter()
        model.run(step, model.layers, None, Alone())
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class LoneShards:
    """Both shards of a 1x2 plan, each in a process with one thread; idle between rounds."""

    def __init__(self, model: str, weights: str) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", __name__, model, weights, str(shard)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for shard in range(SHARDS)
        ]

    def step_s(self) -> float:
        """Seconds of a step of the slower shard, while both compute."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.write("step\n")
                process.stdin.flush()
        lines = [process.stdout.readline() for process in self._processes if process.stdout]
        if not all(lines):
            raise SkynetError("a process of `python -m skynet.bench.shard` has ended")
        return max(map(float, lines))

    def __enter__(self) -> LoneShards:
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
