"""How fast this machine gets through weights: what plans weigh members by."""

from __future__ import annotations

import time

import torch

from skynet.layers.linear import Linear

ROWS, COLUMNS, MIN_S = 2048, 2048, 0.03


def measure_speed(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Bytes of weights a second through products of one row, by one thread of this process.

    Decoding reads every weight once a token, so this is what a token's time goes by. The best of
    some tries: a machine may be busy for a moment.
    """
    weight = torch.zeros((ROWS, COLUMNS), dtype=dtype, device=device)
    product, row = Linear(weight), torch.zeros((1, COLUMNS), dtype=dtype, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            product(row)
            best, until = float("inf"), time.perf_counter() + MIN_S
            while time.perf_counter() < until:
                started = time.perf_counter()
                product(row)
                if device != "cpu":
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return weight.nbytes / best
