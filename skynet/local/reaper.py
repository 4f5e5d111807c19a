"""Outlives its parent by a moment: ends what the parent leaves behind, even after SIGKILL.

Started with a pipe as standard input. Each line is `+PID` (look after it), `-PID` (it is gone) or
`dir PATH` (remove it at the end). When the pipe closes, whoever wrote to it is dead or done.
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
        self._tell(f"+{pid}")

    def forget(self, pid: int) -> None:
        self._tell(f"-{pid}")

    def remove_at_end(self, directory: Path) -> None:
        self._tell(f"dir {directory}")

    def close(self) -> None:
        """Let it do its work, and wait for it."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait(timeout=2 * GRACE_S)

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it was killed: we clean up ourselves
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pids: set[int] = set()
    directory = ""
    for line in sys.stdin:
        word = line.rstrip("\n")
        if word.startswith("+"):
            pids.add(int(word[1:]))
        elif word.startswith("-"):
            pids.discard(int(word[1:]))
        elif word.startswith("dir "):
            directory = word[4:]
    _end(pids)
    if directory:
        shutil.rmtree(directory, ignore_errors=True)


def _end(pids: set[int]) -> None:
    """Ask all to end; kill those who have not after GRACE_S."""
    left = {pid for pid in pids if _send(pid, signal.SIGTERM)}
    deadline = time.monotonic() + GRACE_S
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = {pid for pid in left if _send(pid, 0)}
    for pid in left:
        _send(pid, signal.SIGKILL)


def _send(pid: int, number: int) -> bool:
    """True if the process was there."""
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
