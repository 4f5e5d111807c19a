"""Runs `skynet check` with damaged weights for SkyNet's shards, not for the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from skynet.check.check import compare, open_checked
from skynet.check.report import Report
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.fetch import CheckpointFetch
from skynet.models.registry import load_architecture
from skynet.planning.ranges import Range

Damage = Callable[[str, Range, torch.Tensor], torch.Tensor]


def check_damaged(directory: Path, damage: Damage, shards: int = 2) -> Report:
    """The report of a check whose shards get each region from `damage`."""
    checkpoint = Checkpoint(directory, "damaged", directory)
    right = CheckpointFetch(checkpoint, load_architecture(checkpoint.config))

    def fetch(name: str, region: Range) -> torch.Tensor:
        return damage(name, region, right(name, region))

    return compare(open_checked(str(directory), (2, shards), experts="columns"), fetch=fetch)


def first(report: Report) -> tuple[str, str, list[str]]:
    """The first place that differs, what of it, and the shards."""
    place = report.to_json()["first"]
    assert place is not None
    return place["name"], place["what"], [shard["address"] for shard in place["shards"]]


def larger(tensor: str, second: bool | None) -> Damage:
    """Half as much again of one tensor: of the second shard's slice, the first's, or all of it."""

    def damage(name: str, region: Range, raw: torch.Tensor) -> torch.Tensor:
        chosen = second is None or bool(region.start) == second
        return raw * 1.5 if name == tensor and chosen else raw

    return damage
