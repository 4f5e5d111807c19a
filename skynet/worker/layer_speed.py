"""Measures what a layer costs besides its products: small operators, and Python between them."""

from __future__ import annotations

import time

import torch

from skynet.architecture.tensors import staged_tensors
from skynet.layers.alone import Alone
from skynet.layers.shard_model import ShardModel
from skynet.models.registry import load_architecture
from skynet.planning.ranges import Range
from skynet.planning.split import PlanOptions, make_plan
from skynet.wire.step import Row, Step
from skynet.worker.speed import Speeds

LAYERS, SEQUENCES = 4, 16
# So narrow that its products take little time, yet are divided among the threads.
WIDTH = 64
NARROW = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
PRODUCTS = 7 * WIDTH * WIDTH  # multiply-adds of a layer and a row
MIN_S = 0.1


@torch.inference_mode()
def measure_layer(speeds: Speeds, min_s: float = MIN_S) -> tuple[float, float]:
    """(seconds of a layer with one sequence, seconds that each further sequence adds).

    Both without products, on as many threads as `speeds`.

    min_s: seconds for each of the two.
    """
    model = _narrow_model()
    before = torch.get_num_threads()
    torch.set_num_threads(speeds.threads)
    try:
        one, many = (_seconds(model, sequences, min_s) for sequences in (1, SEQUENCES))
    finally:
        torch.set_num_threads(before)
    one_s = one / LAYERS - 2 * PRODUCTS / (speeds.one_row * speeds.threads)
    many_s = many / LAYERS - SEQUENCES * PRODUCTS / (speeds.few_rows * speeds.threads)
    return max(0.0, one_s), max(0.0, many_s - one_s) / (SEQUENCES - 1)


def _narrow_model() -> ShardModel:
    arch = load_architecture(NARROW)
    tensors = {tensor.name: tensor for tensor in staged_tensors(arch)}

    def zeros(name: str, region: Range) -> torch.Tensor:
        shape = list(tensors[name].shape)
        shape[tensors[name].axis] = region.size
        return torch.zeros(shape, dtype=torch.bfloat16)

    options = PlanOptions("", "", weight_dtype="bfloat16", num_slots=SEQUENCES)
    return ShardModel(arch, make_plan(arch, options, stages=1, shards=1), (0, 0), zeros)


def _seconds(model: ShardModel, sequences: int, min_s: float) -> float:
    """The seconds of a step: the lower quartile, since the machine may be busy for a while."""
    times: list[float] = []
    rows = tuple(Row(slot, 8, (1,), 8) for slot in range(sequences))
    until = time.perf_counter() + min_s
    while len(times) < 3 or time.perf_counter() < until:
        step = Step(1, len(times), rows, LAYERS)
        started = time.perf_counter()
        model.run(step, Range(0, LAYERS), None, Alone())
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]
