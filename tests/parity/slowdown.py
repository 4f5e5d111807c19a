"""How much slower Transformers' layers are than SkyNet's: one Llama, both ways, in one process.

`python tests/parity/slowdown.py` prints the ratios of a decoding step, for one sequence and for a
batch, with one shard and no exchange. It asserts nothing: ratios travel, times don't.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from harness import Checkpoint, Cluster
from plans import plan_for

from skynet.wire.step import LogitsRequest, Row

SIZES = {  # of SmolLM2-135M
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
}
CONTEXT, ROUNDS, BATCHES = 64, 25, (1, 8)


def step_s(cluster: Cluster, position: int, batch: int) -> float:
    rows = [Row(slot, position, (slot + 5,), CONTEXT, LogitsRequest()) for slot in range(batch)]
    started = time.perf_counter()
    cluster.step(rows, layers_per_chord=99)
    return time.perf_counter() - started


def main() -> None:
    directory = Path(tempfile.mkdtemp())
    config = transformers.LlamaConfig(**SIZES)
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    for dtype in ("float32", "bfloat16"):
        clusters = []
        for backend in (False, True):
            checkpoint = Checkpoint(directory, transformers_backend=backend)
            options = {"model": "m", "name": "m", "stages": 1, "shards": 1, "dtype": dtype}
            clusters.append(Cluster(checkpoint, plan_for(checkpoint.arch, **options)))
            prompt = tuple(range(CONTEXT))
            for slot in range(max(BATCHES)):
                clusters[-1].step([Row(slot, 0, prompt, CONTEXT)], layers_per_chord=99)
        for batch in BATCHES:
            times: list[list[float]] = [[], []]
            for number in range(ROUNDS):  # in turns: whatever slows one down slows the other too
                for step_times, cluster in zip(times, clusters, strict=True):
                    step_times.append(step_s(cluster, CONTEXT + number, batch))
            skynet_s, transformers_s = (statistics.median(step_times) for step_times in times)
            print(
                f"{dtype}, {batch} rows: {1000 * skynet_s:.1f} ms with SkyNet's layers, "
                f"{1000 * transformers_s:.1f} ms with Transformers': "
                f"{transformers_s / skynet_s:.2f} times",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
