"""One supervised process of the cluster: a worker, an orchestrator or a gateway."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

DRAIN_S = 5  # of gateways: short, so that some answers are cut


@dataclass(eq=False)
class Slot:
    """One process, which is started again when it ends.

    queue: a worker's `-Q` option; "" for none.
    port: where a gateway listens; 0 for a worker.
    """

    name: str
    queue: str
    url: str
    log: Path
    process: subprocess.Popen[bytes]
    port: int = 0
    wanted: bool = True  # start a new process when it ends
    killed: bool = False  # this process got SIGKILL
    left_at: float = 0.0  # when this process got SIGTERM, monotonic
    stopped: int = 0  # number of faults that hold it by SIGSTOP
    restart_at: float = 0.0
    log_start: int = 0  # size of the log when this process started

    def alive(self) -> bool:
        return self.process.poll() is None

    def was_up(self) -> bool:
        """Had it started? Before that, SIGTERM ends Python at once."""
        sign = b"Press Ctrl-C to stop" if self.port else b" has started"
        return sign in self.log.read_bytes()[self.log_start :]


def words_of(queue: str, port: int) -> list[str]:
    """The command of a slot's process, after `python -m`."""
    if port:
        words = f"skynet.cli serve --no-auth --batch-gib 0 --drain-s {DRAIN_S} --port {port}"
        return words.split()
    return ["celery", "-A", "skynet", "worker", *(("-Q", queue) if queue else ())]
