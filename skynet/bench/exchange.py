"""exchange: all-reduce over two shards through Redis, against torch.distributed with gloo."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

from skynet.bench.report import Result
from skynet.local.server import local_server

FLOATS = 1024
SUMS = 1000


def exchange(rounds: int) -> Result:
    """Median time of an all-reduce of 1,024 floats, over 1,000 in a row."""
    samples: dict[str, list[float]] = {"SkyNet exchange": [], "gloo all_reduce": []}
    with local_server() as (server, _):
        for number in range(rounds):
            samples["SkyNet exchange"].append(_pair(_skynet, server.url, number))
            file = str(server.directory / f"gloo{number}")
            samples["gloo all_reduce"].append(_pair(_gloo, file, number))
    what = f"all-reduce of {FLOATS} floats over 2 processes"
    return Result("exchange", what, "µs", samples, target=("<=", 0.25))


def _pair(target: Callable[..., None], address: str, number: int) -> float:
    """Run two processes; the median of the first one's times, microseconds.

    address: of their meeting point, a Redis URL or a file.
    """
    context = multiprocessing.get_context("spawn")
    replies: Any = context.Queue()
    processes = [
        context.Process(target=target, args=(rank, address, number, replies), daemon=True)
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    median = float(replies.get(timeout=120))
    for process in processes:
        process.join(60)
    return median


def _time(rank: int, one_sum: Callable[[int], object], replies: Any) -> None:
    for index in range(100):
        one_sum(index)
    times = []
    for index in range(100, 100 + SUMS):
        started = time.perf_counter()
        one_sum(index)
        times.append(time.perf_counter() - started)
    if rank == 0:
        replies.put(statistics.median(times) * 1e6)


def _skynet(rank: int, url: str, number: int, replies: Any) -> None:
    import torch

    from skynet.store.exchange import Exchange
    from skynet.worker.all_reduce import AllReduce

    torch.set_num_threads(1)
    exchange = Exchange(url, 0, rank, 2)
    values = torch.randn(1, FLOATS)
    all_reduce = AllReduce(exchange, number, 0, 0)  # one per span, as in a worker
    _time(rank, lambda _: all_reduce(values), replies)


def _gloo(rank: int, file: str, number: int, replies: Any) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    values = torch.randn(FLOATS)
    _time(rank, lambda _: distributed.all_reduce(values.clone()), replies)
    distributed.destroy_process_group()
