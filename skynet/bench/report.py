"""The result of a scenario: samples of each contestant, medians, spread, and the ratio."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

Contestant = Callable[[], float]


@dataclass
class Result:
    """Samples of one scenario.

    target: of the ratio, the first contestant's median to that of the best other.
    against: the contestant that the ratio is to, instead of the best other.
    targets, floors: upper and lower limits of contestants' medians; then there is no ratio.
    """

    name: str
    what: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    target: tuple[str, float] | None = None  # ("<=", 0.125) or (">=", 0.9)
    notes: dict[str, str] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    against: str = ""

    @property
    def ratio(self) -> float | None:
        if self.targets or self.floors:
            return None
        medians = [statistics.median(values) for values in self.samples.values() if values]
        if len(medians) < 2:
            return None
        if self.against:
            return medians[0] / statistics.median(self.samples[self.against])
        more_is_better = self.target is not None and self.target[0] == ">="
        return medians[0] / (max if more_is_better else min)(medians[1:])

    @property
    def reached(self) -> bool | None:
        """Whether all targets were reached; None if there is none."""
        if self.targets or self.floors:
            medians = {name: statistics.median(values) for name, values in self.samples.items()}
            return all(medians[name] <= limit for name, limit in self.targets.items()) and all(
                medians[name] >= limit for name, limit in self.floors.items()
            )
        if self.target is None or self.ratio is None:
            return None
        sign, limit = self.target
        return self.ratio <= limit if sign == "<=" else self.ratio >= limit

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "what": self.what,
            "unit": self.unit,
            "contestants": {
                name: {
                    "median": statistics.median(values),
                    "min": min(values),
                    "max": max(values),
                    "samples": values,
                }
                for name, values in self.samples.items()
            },
            "ratio": self.ratio,
            "reach": self.target and f"{self.target[0]} {self.target[1]:g}",
            "reached": self.reached,
            "bars": self.targets,
            "floors": self.floors,
            "notes": self.notes,
        }

    def _limit(self, name: str) -> str:
        """The target of a contestant, or ""."""
        for sign, limits in (("<=", self.targets), (">=", self.floors)):
            if name in limits:
                return f"{sign} {limits[name]:g} {self.unit}"
        return ""

    def table(self) -> Table:
        """For the terminal."""
        table = Table(
            "contestant", "median", "min", "max", "target", title=f"{self.name}: {self.what}"
        )
        table.title_justify = "left"
        for name, values in self.samples.items():
            row = (statistics.median(values), min(values), max(values))
            table.add_row(name, *(f"{value:.3g} {self.unit}" for value in row), self._limit(name))
        if self.ratio is not None:
            sign, limit = self.target or ("", 0.0)
            verdict = {True: "reached", False: "[red]missed[/]", None: ""}[self.reached]
            table.add_row("ratio", f"{self.ratio:.3f}", verdict, "", f"{sign} {limit:g}")
        for name, text in self.notes.items():
            table.add_row(name, text)
        return table


def take_turns(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """`rounds` samples of each contestant, in turns, after a warm-up of each."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant()
    for _ in range(rounds):
        for name, contestant in contestants.items():
            samples[name].append(contestant())
    return samples
