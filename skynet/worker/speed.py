"""Measures how fast this machine computes; plans weigh members by it, and predict steps from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from skynet.kernels.measure import choose_many_rows
from skynet.layers.linear import Linear, make_linear

WIDTH = 2048  # of the square weights
FEW, MANY = 16, 256  # rows
MIN_S = 0.03


@dataclass(frozen=True)
class Speeds:
    """What one of `threads` threads computes in a second while the others do the same.

    one_row: bytes of bfloat16 weights, multiplied by one row: decoding reads every weight once a
        token.
    few_rows, many_rows: multiply-adds with 16 rows, as of a batch, and with 256, as of a prompt.
    """

    one_row: float
    few_rows: float
    many_rows: float
    threads: int


@torch.inference_mode()
def measure_speeds(device: str, threads: int = 1, min_s: float = MIN_S) -> Speeds:
    """Measure products of float32 rows with bfloat16 weights on so many threads.

    Takes the best of several runs of each: the machine may be busy for a moment. From then on this
    process multiplies many rows in the way that is the fastest here.

    min_s: seconds for each of the three.
    """
    if device == "cpu":
        choose_many_rows(threads)  # what many rows are then measured with
    # Together larger than the caches of small machines: a model does not fit in a cache.
    weights = [
        make_linear(
            torch.zeros((WIDTH, WIDTH), dtype=torch.bfloat16, device=device), dtype=torch.float32
        )
        for _ in range(4)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        one, few, many = (
            _seconds(weights[:count], torch.zeros((rows, WIDTH), device=device), min_s)
            for rows, count in ((1, len(weights)), (FEW, 1), (MANY, 1))
        )
    finally:
        torch.set_num_threads(before)
    size = WIDTH * WIDTH / threads
    return Speeds(2 * size / one, FEW * size / few, MANY * size / many, threads)


def _seconds(weights: list[Linear], rows: torch.Tensor, min_s: float) -> float:
    """Least seconds of a product, over rounds through all weights."""

    def all_weights() -> None:
        for product in weights:
            product(rows)
        if rows.device.type != "cpu":
            torch.cuda.synchronize()

    return _least(all_weights, min_s) / len(weights)


def _least(work: Callable[[], None], min_s: float) -> float:
    """The least of the seconds that `work` takes, over about `min_s` seconds."""
    work()
    best_s, until = float("inf"), time.perf_counter() + min_s
    while best_s == float("inf") or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - started)
    return best_s
