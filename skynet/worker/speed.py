"""Measures how fast this machine multiplies weights; plans weigh members by it."""

from __future__ import annotations

import time

import torch

from skynet.layers.linear import make_linear

ROWS, COLUMNS, MIN_S = 2048, 2048, 0.03


def measure_speed(device: str) -> float:
    """Bytes of weights that one thread of this process multiplies by one row in a second.

    Decoding reads every weight once a token, so the time of a token is proportional. Takes the best
    of several runs: the machine may be busy for a moment.
    """
    weight = torch.zeros((ROWS, COLUMNS), dtype=torch.bfloat16, device=device)
    product = make_linear(weight, dtype=torch.float32)
    row = torch.zeros((1, COLUMNS), device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            product(row)
            best_s, until = float("inf"), time.perf_counter() + MIN_S
            while time.perf_counter() < until:
                started = time.perf_counter()
                product(row)
                if device != "cpu":
                    torch.cuda.synchronize()
                best_s = min(best_s, time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return weight.nbytes / best_s
