"""Stock Celery: `celery.chord` as in its documentation, with numpy arrays as arguments."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import redis
from celery import Celery, chord

import skynet.chords.messenger  # registers the serializer that carries numpy arrays  # noqa: F401
from skynet.wire import keys

HIDDEN = 576

app = Celery(
    "stock",
    broker=os.environ["SKYNET_BENCH_BROKER"],
    backend=os.environ["SKYNET_BENCH_BACKEND"],
)
app.conf.update(
    task_serializer=keys.SERIALIZER,
    result_serializer=keys.SERIALIZER,
    accept_content=["json", keys.SERIALIZER],
    worker_prefetch_multiplier=1,
)

Array = npt.NDArray[np.float32]


@app.task(name="stock.partial")
def partial(hidden: Array) -> Array:
    """In place of a shard's partial."""
    return hidden * np.float32(0.5)


@app.task(name="stock.body")
def body(parts: list[Array], left: int) -> None:
    """Sum the parts and start the next chord, or report the end of the chain."""
    hidden = np.sum(parts, axis=0)
    if left:
        start_chord(hidden, left)
    else:
        redis.Redis.from_url(
            os.environ["SKYNET_BENCH_BACKEND"].replace("redis+socket://", "unix://")
        ).lpush("stock.done", 1)


@app.task(name="stock.start")
def start(count: int) -> None:
    start_chord(np.ones((1, HIDDEN), np.float32), count)


def start_chord(hidden: Array, left: int) -> None:
    header = [partial.s(hidden).set(queue=f"shard{shard}") for shard in (0, 1)]
    chord(header)(body.s(left - 1).set(queue="body"))
