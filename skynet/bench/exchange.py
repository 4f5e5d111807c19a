"""exchange: all-reduce over two shards, by direct links and through Redis, against gloo."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skynet.bench.report import Result
from skynet.local.server import local_server

FLOATS = 1024
SUMS = 1000
DIRECT, REDIS, GLOO = "direct, Unix socket", "through Redis", "gloo all_reduce"
REDIS_TARGET = 0.2  # of gloo's time


def exchange(rounds: int) -> Result:
    """Median time of an all-reduce of 1,024 floats, over 1,000 in a row."""
    samples: dict[str, list[float]] = {DIRECT: [], REDIS: [], GLOO: []}
    with local_server() as (server, _):
        for number in range(rounds):
            file = str(server.directory / f"{number}")
            samples[DIRECT].append(_pair(_direct, f"{file}.sock", number))
            samples[REDIS].append(_pair(_redis, server.url, number))
            samples[GLOO].append(_pair(_gloo, f"{file}.gloo", number))
    what = f"all-reduce of {FLOATS} floats over 2 processes"
    result = Result("exchange", what, "µs", samples, target=("<=", 0.05), against=GLOO)
    ratio = statistics.median(samples[REDIS]) / statistics.median(samples[GLOO])
    result.notes["Redis to gloo"] = f"{ratio:.3f}, target <= {REDIS_TARGET:g}"
    return result


def time_of_direct(path: Path) -> float:
    """Seconds of a sum by a link; no file has this path yet."""
    return _pair(_direct, str(path), 0) / 1e6


def time_of_redis(url: str) -> float:
    """Seconds of a sum through this Redis."""
    return _pair(_redis, url, 0) / 1e6


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


def _redis(rank: int, url: str, number: int, replies: Any) -> None:
    """Through the Redis at `url`, as soon as both have subscribed."""
    from skynet.exchange.exchange import Exchange
    from skynet.exchange.group import Group
    from skynet.store.connection import connect

    exchange = Exchange(Group(number, 0, rank, 2), url)
    exchange.open({})
    with connect(url) as client:
        client.incr(f"bench:{number}")
        while int(client.get(f"bench:{number}") or 0) < 2:
            time.sleep(0.01)
    _sum(exchange, number, rank, replies)


def _direct(rank: int, path: str, number: int, replies: Any) -> None:
    """By a link; `path` is where the first process listens."""
    import socket

    from skynet.exchange.exchange import Exchange
    from skynet.exchange.group import Group
    from skynet.exchange.link import Link

    if rank == 0:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{path}.new")
            listening.listen()
            Path(f"{path}.new").rename(path)  # it is there once it can be connected to
            end, _ = listening.accept()
    else:
        while not Path(path).exists():
            time.sleep(0.01)
        end = socket.socket(socket.AF_UNIX)
        end.connect(path)
    exchange = Exchange(Group(number, 0, rank, 2), "unix:///unused")
    exchange.open({1 - rank: Link(end, "unix")})
    _sum(exchange, number, rank, replies)


def _sum(exchange: Any, epoch: int, rank: int, replies: Any) -> None:
    import torch

    from skynet.worker.all_reduce import AllReduce

    torch.set_num_threads(1)
    values = torch.randn(1, FLOATS)
    all_reduce = AllReduce(exchange, epoch, 0, 0)  # one per span, as in a worker
    _time(rank, lambda _: all_reduce(values), replies)
    exchange.close()


def _gloo(rank: int, file: str, number: int, replies: Any) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    values = torch.randn(FLOATS)
    _time(rank, lambda _: distributed.all_reduce(values.clone()), replies)
    distributed.destroy_process_group()
