"""Sums of partials over a stage's shards: the same bits on every shard, whatever the way.

A large partial goes in pieces. Of three shards and more each then sums its slice of a piece and
sends the sum to the others (reduce-scatter, all-gather): 2 (n - 1) / n of a partial for each shard,
instead of n - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from skynet.exchange.exchange import Exchange, Sum
from skynet.wire.frame import BLOCK, FLOAT32, Frame

Floats = npt.NDArray[np.float32]

# Redis drops a subscriber that is 32 MB behind: two pieces of each peer at most.
PIECE_FLOATS = 2**20
# From here on less traffic is worth a second round: measured with three shards through Redis. More
# than `FastSum` takes: all shards of a sum must go the same way.
SCATTER_FLOATS = 2**17


def sum_of_shards(exchange: Exchange, at: Sum, mine: Frame) -> Floats:
    """The sum of all shards' frames, in shard order. Raises as `Exchange.swap`."""
    count, shards = mine.rows * mine.columns, exchange.group.num_shards
    scatters = shards > 2 and count >= SCATTER_FLOATS
    if not scatters and count <= PIECE_FLOATS:
        return add_in_order(exchange.swap(*at, mine))
    total = np.empty(count, np.float32)
    for part, start in enumerate(range(0, count, PIECE_FLOATS)):
        stop = min(start + PIECE_FLOATS, count)
        frame, into = mine.flat(start, stop), total[start:stop]
        if scatters:
            _scatter_and_gather(exchange, at, 2 * part, frame, into)
        else:
            frames = exchange.transfer(at, 2 * part, frame, frame)
            into[:] = add_in_order({**frames, exchange.shard: frame})[0]
    return total.reshape(mine.rows, mine.columns)


def add_in_order(frames: Mapping[int, Frame]) -> Floats:
    """The sum in shard order."""
    total: Floats = frames[0].floats() + frames[1].floats()
    for shard in range(2, len(frames)):
        total += frames[shard].floats()
    return total


def _scatter_and_gather(exchange: Exchange, at: Sum, part: int, mine: Frame, total: Floats) -> None:
    """Sum a piece into `total`: this shard's slice of it, and the peers' slices by the peers."""
    slices = _slices(mine.columns, exchange.group.num_shards)
    frames = {shard: mine.flat(*bounds) for shard, bounds in enumerate(slices)}
    own = frames[exchange.shard]
    received = exchange.transfer(at, part, frames, own)
    start, stop = slices[exchange.shard]
    total[start:stop] = add_in_order({**received, exchange.shard: own})[0]
    gathered = {
        shard: Frame(FLOAT32, 1, stop - start, total[start:stop].data.cast("B"))
        for shard, (start, stop) in enumerate(slices)
    }
    sums = exchange.transfer(at, part + 1, gathered[exchange.shard], gathered)
    for peer, frame in sums.items():
        total[slice(*slices[peer])] = frame.floats()[0]


def _slices(count: int, shards: int) -> list[tuple[int, int]]:
    """Where each shard's slice starts and stops: whole blocks."""
    blocks = -(-count // BLOCK)
    edges = [min(count, blocks * shard // shards * BLOCK) for shard in range(shards + 1)]
    return list(pairwise(edges))
