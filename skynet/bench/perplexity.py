"""What rounding costs: the perplexity of a text in each form of the weights, and in int8.

    python -m skynet.bench.perplexity README.md docs/*.md

The text's first tokens are read in windows side by side, as requests are decoded: each token's
probability is taken after the ones before it in its window.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.checkpoint.fetch import CheckpointFetch
from skynet.checkpoint.model_source import ModelSource
from skynet.checkpoint.staged_form import LAYOUTS, WEIGHTS, in_staged_form
from skynet.checkpoint.tensor_plans import model_files, tensor_plans
from skynet.layers.alone import Alone
from skynet.layers.shard_model import ShardModel
from skynet.models.registry import load_architecture
from skynet.planning.plan import INT8
from skynet.planning.split import PlanOptions, make_plan
from skynet.settings import settings
from skynet.staging.split import narrowest
from skynet.tokenizer.text import Text
from skynet.wire.step import LogitsRequest, Row, Step

MODEL = "smollm2"
WINDOWS, LENGTH = 16, 192  # tokens


@dataclass(frozen=True)
class Reading:
    """What a model made of windows: the mean loss of a token, and the likeliest tokens."""

    loss: float
    likeliest: np.ndarray  # (windows, tokens - 1)

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.loss))


def main(files: Sequence[str]) -> None:
    """Print the perplexity for each form of the weights, and its ratio to that of bfloat16.

    Of quantised weights with int8 activations too, with the share of the tokens after which the
    likeliest one is that of float32 activations.
    """
    checkpoint = open_checkpoint(MODEL, settings().cache_dir)
    text = "\n".join(Path(file).read_text() for file in files)
    ids = Text(model_files(checkpoint)).encode(text)[: WINDOWS * LENGTH]
    windows = np.array(ids[: len(ids) // LENGTH * LENGTH]).reshape(-1, LENGTH)
    first = 0.0
    for weights in WEIGHTS:
        source = in_staged_form(checkpoint, weights)
        exact = read(source, windows)
        first = first or exact.perplexity
        print(f"{weights:9}{_shown(exact, first)}", flush=True)
        if weights in LAYOUTS:
            rounded = read(source, windows, INT8)
            same = (rounded.likeliest == exact.likeliest).mean()
            print(f"{weights}+{INT8:6}{_shown(rounded, first)}  same token {same:.3f}", flush=True)


def _shown(reading: Reading, first: float) -> str:
    perplexity = reading.perplexity
    return f"{perplexity:9.4f}  {100 * (perplexity / first - 1):+.2f} %"


def read(source: ModelSource, windows: np.ndarray, dtype: str = "float32") -> Reading:
    """Read windows of tokens, (windows, tokens); the first token of each is given.

    dtype: what is computed in.
    """
    arch = load_architecture(source.config)
    numbers = narrowest(tensor_plans(source, arch), arch, dtype)
    count, length = windows.shape
    options = PlanOptions("", source.name, dtype, numbers, num_slots=count, slot_tokens=length)
    model = ShardModel(
        arch, make_plan(arch, options, stages=1, shards=1), (0, 0), CheckpointFetch(source, arch)
    )
    steps = [list(_step(model, windows, step)) for step in range(length - 1)]
    losses, likeliest = np.array(steps).transpose(2, 1, 0)
    return Reading(float(losses.mean()), likeliest)


def _step(model: ShardModel, windows: np.ndarray, step: int) -> Iterator[tuple[float, int]]:
    """Of each window after this step: minus the log of its token's probability, the likeliest."""
    rows = tuple(
        Row(slot, step, (int(window[step]),), 1, LogitsRequest(top=0))
        for slot, window in enumerate(windows)
    )
    message = Step(0, step + 1, rows, model.layers.size)
    _, candidates, _ = model.run(message, model.layers, None, Alone())
    for window, found in zip(windows, candidates, strict=True):
        logits = np.zeros(len(found.ids))
        logits[found.ids] = found.logits
        largest = logits.max()
        loss = float(np.log(np.exp(logits - largest).sum()) + largest - logits[window[step + 1]])
        yield loss, int(logits.argmax())


if __name__ == "__main__":
    main(sys.argv[1:])
