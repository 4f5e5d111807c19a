"""What rounding of weights costs: the perplexity of a text in each form of the weights.

    python -m skynet.bench.perplexity README.md docs/*.md

The text's first tokens are read in windows side by side, as requests are decoded: each token's
probability is taken after the ones before it in its window.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.checkpoint.fetch import CheckpointFetch
from skynet.checkpoint.model_source import ModelSource
from skynet.checkpoint.staged_form import WEIGHTS, in_staged_form
from skynet.checkpoint.tensor_plans import model_files, tensor_plans
from skynet.layers.shard_model import ShardModel
from skynet.models.registry import load_architecture
from skynet.planning.split import PlanOptions, make_plan
from skynet.settings import settings
from skynet.staging.split import narrowest
from skynet.tokenizer.text import Text
from skynet.wire.step import LogitsRequest, Row, Step

MODEL = "smollm2"
WINDOWS, LENGTH = 16, 192  # tokens


def main(files: Sequence[str]) -> None:
    """Print the perplexity for each form of the weights, and its ratio to that of bfloat16."""
    checkpoint = open_checkpoint(MODEL, settings().cache_dir)
    text = "\n".join(Path(file).read_text() for file in files)
    ids = Text(model_files(checkpoint)).encode(text)[: WINDOWS * LENGTH]
    windows = np.array(ids[: len(ids) // LENGTH * LENGTH]).reshape(-1, LENGTH)
    first = 0.0
    for weights in WEIGHTS:
        found = perplexity(in_staged_form(checkpoint, weights), windows)
        first = first or found
        print(f"{weights:5}{found:9.4f}  {100 * (found / first - 1):+.2f} %", flush=True)


def perplexity(source: ModelSource, windows: np.ndarray) -> float:
    """Of windows of tokens, (windows, tokens); the first token of each is given."""
    arch = load_architecture(source.config)
    dtype = narrowest(tensor_plans(source, arch), arch, "float32")
    count, length = windows.shape
    options = PlanOptions("", source.name, weight_dtype=dtype, num_slots=count, slot_tokens=length)
    model = ShardModel(
        arch, make_plan(arch, options, stages=1, shards=1), (0, 0), CheckpointFetch(source, arch)
    )
    losses = [loss for step in range(length - 1) for loss in _losses(model, windows, step)]
    return float(np.exp(np.mean(losses)))


def _losses(model: ShardModel, windows: np.ndarray, step: int) -> Iterator[float]:
    """Minus the log of the probability of each window's token after this step."""
    rows = tuple(
        Row(slot, step, (int(window[step]),), 1, LogitsRequest(top=0))
        for slot, window in enumerate(windows)
    )
    message = Step(0, step + 1, rows, model.layers.size)
    _, candidates, _ = model.run(message, model.layers, None, lambda partial: partial.float())
    for window, found in zip(windows, candidates, strict=True):
        logits = np.zeros(len(found.ids))
        logits[found.ids] = found.logits
        largest = logits.max()
        yield float(np.log(np.exp(logits - largest).sum()) + largest - logits[window[step + 1]])


if __name__ == "__main__":
    main(sys.argv[1:])
