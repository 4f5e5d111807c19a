"""Forks processes from one that has imported what they need.

Importing torch and Celery costs a core seconds and 200 MB for each worker. A forked worker spends
neither. The server is a child process. It reads requests from its standard input, a line of JSON
each, and reports there to its parent: `{"started": pid}`, `{"ended": pid, "code": exit code}`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skynet.errors import SkynetError

POLL_S = 0.01
IMPORT_S = 300.0  # a new installation is compiled at its first import
READ_BYTES = 1 << 16


class ForkServer:
    """The parent's end."""

    def __init__(self, modules: Iterable[str], environment: Mapping[str, str], log: Path) -> None:
        """modules: imported before the first fork; none may read the environment."""
        self._log = log
        with log.open("ab") as file:
            self._server = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import main; main()", *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=dict(environment),
                cwd=log.parent,
                start_new_session=True,
            )
        self._lock = threading.Lock()
        self._received = b""
        self._started: list[int] = []
        self._codes: dict[int, int] = {}

    @property
    def pid(self) -> int:
        return self._server.pid

    def start(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> ForkedProcess:
        """Run a module as `python -m` does in the log's directory, once all is imported.

        Raises:
            SkynetError: the server has ended, or imports for too long; with the end of its log.
        """
        request = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "log": str(log),
        }
        with self._lock:
            self._send(request)
            deadline = time.monotonic() + IMPORT_S
            while not self._started:
                received = self._receive(max(0, int(1000 * (deadline - time.monotonic()))))
                if received is None:
                    raise self._failed(f"has not finished its imports after {IMPORT_S:g} s")
                if not received:
                    raise self._failed("has ended")
            pid = self._started.pop()
            self._codes.pop(pid, None)  # of an earlier process with this pid
            return ForkedProcess(pid, self)

    def code_of(self, pid: int) -> int | None:
        """The exit code of a process that has ended; negative if a signal ended it."""
        with self._lock:
            while True:
                received = self._receive(0)
                if pid in self._codes:
                    return self._codes[pid]
                if received is None:
                    return None
                if not received:  # the server was killed, and nobody knows the code
                    return None if _exists(pid) else -signal.SIGKILL

    def close(self) -> None:
        """End the server. Processes that it has started go on."""
        for pipe in (self._server.stdin, self._server.stdout):
            if pipe is not None:
                pipe.close()
        self._server.wait()

    def _send(self, request: dict[str, Any]) -> None:
        if self._server.stdin is None:
            raise self._failed("has no input")
        try:
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed("has ended") from error

    def _receive(self, timeout_ms: int) -> bytes | None:
        """Take in reports: the bytes read, none at the end, None if nothing came in time."""
        if self._server.stdout is None:
            return b""
        descriptor = self._server.stdout.fileno()
        ready = select.poll()  # select.select refuses the descriptors of a large application
        ready.register(descriptor)
        if not ready.poll(timeout_ms):
            return None
        data = os.read(descriptor, READ_BYTES)
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "started" in report:
                self._started.append(report["started"])
            else:
                self._codes[report["ended"]] = report["code"]
        return data

    def _failed(self, how: str) -> SkynetError:
        tail = self._log.read_text(errors="replace")[-1500:].strip()
        return SkynetError(f"the process that forks workers {how}:\n{tail}")


class ForkedProcess:
    """A forked process, with the methods of `subprocess.Popen` that are needed."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.code_of(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if timeout is not None and deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(POLL_S)
        return code

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None and _exists(self.pid):
            os.kill(self.pid, number)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _serve(modules: Iterable[str]) -> dict[str, Any] | None:
    """Fork a process for each request. Returns the request in a forked process, None at the end."""
    reports = os.dup(1)
    os.dup2(2, 1)  # what imports print goes to the log
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that no collection writes to pages that processes share
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    received = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, READ_BYTES)
            _report_ended(reports)
        if 0 in ready:
            data = os.read(0, READ_BYTES)
            if not data:
                return None
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                pid = _fork()
                if pid == 0:
                    for descriptor in (wake, waker, reports):
                        os.close(descriptor)
                    return dict(json.loads(line))
                _report(reports, {"started": pid})


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 counts the threads of numpy's OpenBLAS, which itself prepares for a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return pid


def _report_ended(reports: int) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _report(reports, {"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _report(reports: int, message: dict[str, int]) -> None:
    os.write(reports, json.dumps(message).encode() + b"\n")


def _run(request: dict[str, Any]) -> None:
    """Become the process of a request."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(Path(request["log"]).parent)
    for descriptor, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, mode, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    request = _serve(sys.argv[1:])
    if request is not None:
        _run(request)
