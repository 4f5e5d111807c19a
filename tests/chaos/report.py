"""Tables of a run, and details of failures."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.cluster import Exits
from tests.chaos.http_load import HttpOutcome
from tests.chaos.http_oracle import HttpVerdict
from tests.chaos.leaks import Level
from tests.chaos.load import Outcome
from tests.chaos.oracle import Verdict

SHOWN_PROBLEMS = 20
TAIL_LINES = 30
QUIET_S = 60.0  # a pause counts if it begins at most this long after a fault


@dataclass
class Done:
    """One injected fault. Times are unix seconds."""

    kind: str
    at: float
    until: float = 0.0
    notes: list[str] = field(default_factory=list)
    error: str = ""  # of the harness: the fault could not be injected


@dataclass
class Report:
    """All results of a run."""

    seed: int
    command: str
    seconds: float
    faults: list[Done]
    outcomes: list[Outcome]
    verdict: Verdict
    http_outcomes: list[HttpOutcome]
    http_verdict: HttpVerdict
    exits: Exits
    before: Level
    after: Level
    num_retries: int
    wrong: list[str]

    def show(self, console: Console) -> None:
        console.print(self._requests())
        console.print(self._faults())
        ends = self.exits.unasked
        if ends:
            shown = "; ".join(f"{n} x {text}" for text, n in Counter(ends).most_common(8))
            console.print(f"ended by themselves (restarted, not counted as wrong): {shown}")
        console.print(f"before: {self.before}\nafter:  {self.after}", highlight=False)
        for problem in self.wrong[:SHOWN_PROBLEMS]:
            console.print(f"WRONG {problem}", style="red", highlight=False, markup=False)
        if len(self.wrong) > SHOWN_PROBLEMS:
            console.print(f"and {len(self.wrong) - SHOWN_PROBLEMS} more")
        verdict = (
            f"{len(self.wrong)} wrong or lost" if self.wrong else "nothing wrong, nothing lost"
        )
        console.print(f"seed {self.seed}: {verdict}. Again: {self.command}", highlight=False)

    def _requests(self) -> Table:
        table = Table("load", "", title=None)
        modes = Counter(outcome.mode for outcome in self.outcomes)
        table.add_row("seconds under attack", f"{self.seconds:.0f}")
        table.add_row("requests", str(self.verdict.num_records))
        for mode, number in sorted(modes.items()):
            table.add_row(f"  clients that {mode}", str(number))
        reads = sum(max(0, len(outcome.reads) - 1) for outcome in self.outcomes)
        table.add_row("reconnections to streams", str(reads))
        table.add_row("repeated submissions", str(self.num_retries))
        self._add_http(table)
        table.add_row("cancelled", str(self.verdict.num_cancelled))
        table.add_row("lost in a failover", str(self.verdict.num_lost))
        table.add_row("tokens", str(len(self.verdict.token_times)))
        everything = [*self.outcomes, *self.http_outcomes]
        worst = max((outcome.seconds for outcome in everything), default=0.0)
        table.add_row("longest request", f"{worst:.1f} s")
        table.add_row("exits with code 0 after SIGTERM", str(self.exits.polite))
        return table

    def _add_http(self, table: Table) -> None:
        outcomes, verdict = self.http_outcomes, self.http_verdict
        rows = {
            "requests over HTTP": len(outcomes),
            "  streams resumed after a lost connection": sum(o.num_resumed for o in outcomes),
            "  streams left and resumed": sum(o.num_left for o in outcomes),
            "  sent again before the first event": sum(o.num_retried for o in outcomes),
            "  wrong": verdict.num_wrong,
            "  lost": verdict.num_lost,
        }
        for name, number in rows.items():
            table.add_row(name, str(number))

    def _faults(self) -> Table:
        table = Table("fault", "times", "next token: median", "worst", "pause: median", "worst")
        times = self.verdict.token_times
        starts = sorted(fault.at for fault in self.faults)
        for kind, number in sorted(Counter(fault.kind for fault in self.faults).items()):
            done = [fault.at for fault in self.faults if fault.kind == kind and not fault.error]
            row = [kind, str(number)]
            for waits in (_next_waits(done, times), _pauses(done, starts, times)):
                row += (
                    [f"{statistics.median(waits):.2f} s", f"{max(waits):.2f} s"]
                    if waits
                    else 2 * ["-"]
                )
            table.add_row(*row)
        return table


def _next_waits(faults: Sequence[float], times: Sequence[float]) -> list[float]:
    """Seconds from each fault to the next token of any request, if there is one."""
    waits = []
    for at in faults:
        index = bisect_right(times, at)
        if index < len(times):
            waits.append(times[index] - at)
    return waits


def _pauses(
    faults: Sequence[float], all_faults: Sequence[float], times: Sequence[float]
) -> list[float]:
    """After each fault, the longest time without any token.

    Tokens on their way still arrive, so the time to the next token alone says too little. A pause
    belongs to a fault if it begins within `QUIET_S` and before the next fault; it may last longer.
    """
    pauses = []
    for at in faults:
        following = bisect_right(all_faults, at)
        until = min([at + QUIET_S, *all_faults[following : following + 1]])
        first = bisect_right(times, at)
        last = bisect_right(times, until)
        points = [at, *times[first : last + 1]]
        gaps = [after - before for before, after in pairwise(points)]
        if gaps:
            pauses.append(max(gaps))
    return pauses


def show_logs(console: Console, directory: Path) -> None:
    """The end of every log."""
    for log in sorted(directory.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        console.rule(log.name)
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
