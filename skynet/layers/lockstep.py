"""All shards of a layer in one process, with an all-reduce that needs no exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from skynet.layers.norm import AllReduce


class _Waiting(Exception):
    """A shard has reached an all-reduce whose other partials are not computed yet."""

    def __init__(self, partial: torch.Tensor) -> None:
        self.partial = partial


@dataclass(frozen=True)
class ShardOutputs:
    """`partials[sum][shard]`, and the `outputs` of each shard.

    Every shard has the whole output, (tokens, hidden) float32, and they are all the same.
    """

    partials: list[list[torch.Tensor]]
    outputs: list[torch.Tensor]


def run_in_lockstep(shards: Sequence[Callable[[AllReduce], torch.Tensor]]) -> ShardOutputs:
    """Run all shards to their ends.

    No shard can pass an all-reduce before all have reached it, so each takes a round, in which
    every shard starts again with the sums of the rounds before.
    """
    sums: list[torch.Tensor] = []
    partials: list[list[torch.Tensor]] = []
    while True:
        outputs, waiting = [], []
        for run in shards:
            try:
                outputs.append(run(_known_sums(sums)))
            except _Waiting as wait:
                waiting.append(wait.partial)
        if not waiting:
            return ShardOutputs(partials, outputs)
        partials.append(waiting)
        sums.append(sum_partials(waiting))


def _known_sums(sums: list[torch.Tensor]) -> AllReduce:
    """Returns the known sums in order, then raises `_Waiting`."""
    remaining = iter(sums)

    def all_reduce(partial: torch.Tensor) -> torch.Tensor:
        total = next(remaining, None)
        if total is None:
            raise _Waiting(partial)
        return total.clone()  # the caller may change it

    return all_reduce


def sum_partials(partials: list[torch.Tensor]) -> torch.Tensor:
    """The sum in shard order, float32, as the exchange makes it."""
    total = torch.zeros(partials[0].shape, dtype=torch.float32)
    for partial in partials:
        total += partial
    return total
