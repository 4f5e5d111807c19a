"""Processes forked from one that has imported what they need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from skynet.errors import SkynetError
from skynet.local.fork_server import ForkServer
from skynet.local.processes import PRELOADED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3])}
# `loaded` counts in a file how often it is imported; `work` does as its argument says.
LOADED = "open('imports', 'a').write('.')"
WORK = """
import os, signal, sys
sys.stdout.write(f"{sys.argv[1:]} {os.environ.get('COLOUR')} {'loaded' in sys.modules}\\n")
sys.stdout.flush()
if sys.argv[1] == "wait":
    signal.pause()
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[ForkServer]:
    (tmp_path / "loaded.py").write_text(LOADED)
    (tmp_path / "work.py").write_text(WORK)
    server = ForkServer(["loaded"], ENVIRONMENT, tmp_path / "server.log")
    yield server
    server.close()


def test_processes_run_a_module_each_and_import_once(forks: ForkServer, tmp_path: Path) -> None:
    # Given a server of forks / When two processes are started, with an environment each
    first = forks.start("work", ["3"], ENVIRONMENT | {"COLOUR": "red"}, tmp_path / "first")
    second = forks.start("work", ["0", "more"], ENVIRONMENT, tmp_path / "second")
    # Then their exit codes and output are their own, and what they share was imported once
    assert (first.wait(30), second.wait(30)) == (3, 0)
    assert first.poll() == first.returncode == 3
    assert (tmp_path / "first").read_text() == "['3'] red True\n"
    assert (tmp_path / "second").read_text() == "['0', 'more'] None True\n"
    assert (tmp_path / "imports").read_text() == "."


def test_a_process_ends_by_a_signal(forks: ForkServer, tmp_path: Path) -> None:
    # Given processes that wait, in sessions of their own
    waiting = [forks.start("work", ["wait"], ENVIRONMENT, tmp_path / "log") for _ in range(2)]
    deadline = time.monotonic() + 30
    while not (tmp_path / "log").exists() or (tmp_path / "log").read_text().count("wait") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len({os.getsid(process.pid) for process in waiting} | {os.getsid(0)}) == 3
    with pytest.raises(subprocess.TimeoutExpired):
        waiting[0].wait(0)
    # When one is asked to end, the other killed / Then their codes name the signal, as Popen's do
    waiting[0].terminate()
    waiting[1].kill()
    assert [process.wait(30) for process in waiting] == [-signal.SIGTERM, -signal.SIGKILL]
    waiting[0].kill()  # nothing happens to one that has ended


def test_a_server_that_cannot_import_names_the_reason(tmp_path: Path) -> None:
    # Given a module that is missing / When a process is started / Then the error has its name
    server = ForkServer(["nowhere"], ENVIRONMENT, tmp_path / "log")
    with pytest.raises(SkynetError, match="No module named 'nowhere'"):
        server.start("work", [], ENVIRONMENT, tmp_path / "first")
    server.close()


def test_processes_outlive_a_killed_server(forks: ForkServer, tmp_path: Path) -> None:
    # Given a process whose server is killed
    process = forks.start("work", ["wait"], ENVIRONMENT, tmp_path / "first")
    os.kill(forks.pid, signal.SIGKILL)
    # Then it runs on, no other can be started, and its end is noticed
    with pytest.raises(SkynetError, match="has ended"):
        forks.start("work", ["0"], ENVIRONMENT, tmp_path / "second")
    assert process.poll() is None
    process.kill()
    assert process.wait(30) == -signal.SIGKILL


def test_closing_leaves_processes_running(tmp_path: Path) -> None:
    # Given a process / When its server is closed / Then the server ends and the process does not
    (tmp_path / "work.py").write_text(WORK)
    server = ForkServer([], ENVIRONMENT, tmp_path / "log")
    process = psutil.Process(server.start("work", ["wait"], ENVIRONMENT, tmp_path / "out").pid)
    server.close()
    assert process.is_running()
    process.kill()
    process.wait(30)


def test_what_is_imported_before_a_fork_reads_no_settings() -> None:
    # Given settings that cannot be made, since a worker has its own
    code = (
        "import importlib, skynet.settings\n"
        "skynet.settings.Settings.__init__ = None\n"
        f"for module in {PRELOADED!r}: importlib.import_module(module)\n"
    )
    # When modules are imported as the server does / Then none asks for them
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
