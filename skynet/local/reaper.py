"""A child process that outlives its parent: it ends and removes whatever the parent left.

So nothing is left behind, even after SIGKILL. The child reads commands from a pipe, one a line:
`+PID` (watch this process), `-PID` (it has ended) or `dir PATH` (remove this directory at the end).
When the pipe closes, the parent has ended or is done.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_S = 5.0


class Reaper:
    """The parent's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """End this process if the parent leaves it running."""
        self._send(f"+{pid}")

    def forget(self, pid: int) -> None:
        """The parent has ended this process."""
        self._send(f"-{pid}")

    def remove_at_end(self, directory: Path) -> None:
        """Remove this directory after the processes have ended."""
        self._send(f"dir {directory}")

    def close(self) -> None:
        """End the watched processes, remove the directory, and wait for it."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait(timeout=2 * GRACE_S)

    def _send(self, line: str) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it was killed: the parent cleans up
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pids: set[int] = set()
    directory = ""
    for line in sys.stdin:
        command = line.rstrip("\n")
        if command.startswith("+"):
            pids.add(int(command[1:]))
        elif command.startswith("-"):
            pids.discard(int(command[1:]))
        elif command.startswith("dir "):
            directory = command[4:]
    _end(pids)
    if directory:
        shutil.rmtree(directory, ignore_errors=True)


def _end(pids: set[int]) -> None:
    """SIGTERM to all; SIGKILL to those that run after GRACE_S."""
    running = {pid for pid in pids if _signal(pid, signal.SIGTERM)}
    deadline = time.monotonic() + GRACE_S
    while running and time.monotonic() < deadline:
        time.sleep(0.05)
        running = {pid for pid in running if _signal(pid, 0)}
    for pid in running:
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> bool:
    """True if the process exists."""
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
