"""Runs `skynet check` with our shards, and only they, reading damaged weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from skynet.check import Report, check_model
from skynet.check.skynet_shards import CheckpointFetch
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.models.registry import load_architecture
from skynet.planning.ranges import Range

Damage = Callable[[str, Range, torch.Tensor], torch.Tensor]


def check_damaged(directory: Path, damage: Damage, shards: int = 2) -> Report:
    """With our shards, and only they, reading what `damage` makes of each region."""
    checkpoint = Checkpoint(directory, "damaged", directory)
    right = CheckpointFetch(checkpoint, load_architecture(checkpoint.config))

    def fetch(name: str, region: Range) -> torch.Tensor:
        return damage(name, region, right(name, region))

    return check_model(str(directory), 2, shards, fetch=fetch)


def first(report: Report) -> tuple[str, str, list[str]]:
    """The first place that differs, what of it, and the shards."""
    found = report.to_json()["first"]
    assert found is not None
    return found["name"], found["what"], [shard["address"] for shard in found["shards"]]


def larger(tensor: str, second: bool | None) -> Damage:
    """Half as much again of one tensor: of the second shard's slice, the first's, or all of it."""

    def damage(name: str, region: Range, raw: torch.Tensor) -> torch.Tensor:
        mine = second is None or bool(region.start) == second
        return raw * 1.5 if name == tensor and mine else raw

    return damage
