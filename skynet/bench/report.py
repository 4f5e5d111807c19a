"""What a scenario measured: samples of each contestant, medians, spread, and the ratio."""

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

    ratio: of the first contestant's median to the second's. `reach` says what it should be.
    bars: what a contestant's own median should be at most; then there is no ratio.
    """

    name: str
    what: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    reach: tuple[str, float] | None = None  # ("<=", 0.125) or (">=", 0.9)
    notes: dict[str, str] = field(default_factory=dict)
    bars: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        if self.bars:
            return None
        medians = [statistics.median(values) for values in self.samples.values() if values]
        return medians[0] / medians[1] if len(medians) > 1 else None

    @property
    def reached(self) -> bool | None:
        """Whether the bar was reached; None where there is none."""
        if self.bars:
            return all(
                statistics.median(self.samples[name]) <= bar for name, bar in self.bars.items()
            )
        if self.reach is None or self.ratio is None:
            return None
        sign, bar = self.reach
        return self.ratio <= bar if sign == "<=" else self.ratio >= bar

    def summary(self) -> dict[str, Any]:
        """The same as JSON."""
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
            "reach": self.reach and f"{self.reach[0]} {self.reach[1]:g}",
            "reached": self.reached,
            "bars": self.bars,
            "notes": self.notes,
        }

    def table(self) -> Table:
        """The same for people."""
        table = Table(
            "contestant", "median", "min", "max", "bar", title=f"{self.name}: {self.what}"
        )
        table.title_justify = "left"
        for name, values in self.samples.items():
            row = (statistics.median(values), min(values), max(values))
            bar_of = f"<= {self.bars[name]:g} {self.unit}" if name in self.bars else ""
            table.add_row(name, *(f"{value:.3g} {self.unit}" for value in row), bar_of)
        if self.ratio is not None:
            sign, bar = self.reach or ("", 0.0)
            verdict = {True: "reached", False: "[red]missed[/]", None: ""}[self.reached]
            table.add_row("ratio", f"{self.ratio:.3f}", verdict, "", f"{sign} {bar:g}")
        for name, text in self.notes.items():
            table.add_row(name, text)
        return table


def take_turns(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """One sample of each contestant in turn, `rounds` times, after a warm-up of each."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant()
    for _ in range(rounds):
        for name, contestant in contestants.items():
            samples[name].append(contestant())
    return samples
