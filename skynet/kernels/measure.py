"""Measures how this process multiplies many rows fastest; see many_rows.py."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from skynet.kernels import many_rows
from skynet.kernels.library import kernels
from skynet.kernels.many_rows import KERNEL, TORCH, UNPACKED_ROWS, Choice
from skynet.kernels.products import PackedWeight

logger = logging.getLogger(__name__)

# Numbers of rows from which weights may be unpacked. Not fewer than the default: the steps of so
# few sequences run as programs of kernels, which save more than the product costs.
ROWS = (UNPACKED_ROWS, 2 * UNPACKED_ROWS, 4 * UNPACKED_ROWS)
MARGIN = 1.25  # another way or number than the default must be faster by this factor: times vary
WIDTH, MANY = 1024, 128  # of the square weight; rows
REPEATS = 3
WAYS = (KERNEL, TORCH)


@torch.inference_mode()
def choose_many_rows(threads: int) -> Choice:
    """Measure the ways on so many threads, in about 0.1 s, and use the fastest from now on.

    Without kernels there is nothing to choose. To be called before others compute.
    """
    library = kernels()
    if library is None:
        return many_rows.choice()
    weight = PackedWeight(library, torch.zeros(WIDTH, WIDTH, dtype=torch.bfloat16), None)
    chosen, before = many_rows.choice(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.zeros(MANY, WIDTH)
        by_kernel, by_torch = _best_s(*(_product(weight, x, Choice(way, 1)) for way in WAYS))
        way = TORCH if by_torch * MARGIN < by_kernel else KERNEL
        rows = next((rows for rows in ROWS if _unpacking_pays(weight, rows, way)), ROWS[-1])
        chosen = Choice(way, rows)
    finally:
        torch.set_num_threads(before)
        many_rows.keep(chosen)
    speed = 2e-9 * MANY * WIDTH**2 / min(by_kernel, by_torch)
    logger.info("products of %d rows and more: %s, %.0f GFLOP/s", rows, way, speed)
    return chosen


def _unpacking_pays(weight: PackedWeight, rows: int, way: str) -> bool:
    x = torch.zeros(rows, WIDTH)
    unpacked, packed = (_product(weight, x, Choice(way, least)) for least in (1, rows + 1))
    unpacked_s, packed_s = _best_s(unpacked, packed)
    return unpacked_s < packed_s * MARGIN


def _product(weight: PackedWeight, x: torch.Tensor, choice: Choice) -> Callable[[], object]:
    def run() -> None:
        many_rows.keep(choice)
        weight(x)

    return run


def _best_s(*works: Callable[[], object]) -> list[float]:
    """The least seconds of each, taken in turns after a first call: the machine may be busy."""
    best = [float("inf") for _ in works]
    for work in works:
        work()
    for _ in range(REPEATS):
        for index, work in enumerate(works):
            started = time.perf_counter()
            work()
            best[index] = min(best[index], time.perf_counter() - started)
    return best
