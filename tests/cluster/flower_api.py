"""`celery -A skynet flower` as a process, and its HTTP API."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def flower(
    environment: Mapping[str, str], directory: Path
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Flower with these variables: a function that replies a page of its API, {} on errors."""
    port = free_port()

    def page(path: str) -> dict[str, Any]:
        try:
            url = f"http://127.0.0.1:{port}/api/{path}"
            with urllib.request.urlopen(url, timeout=10) as reply:
                return dict(json.load(reply))
        except (urllib.error.URLError, ConnectionError):
            return {}

    with command(
        *("celery", "-A", "skynet", "flower", "--address=127.0.0.1", f"--port={port}"),
        environment={"FLOWER_UNAUTHENTICATED_API": "1", **environment},
        log=directory / "flower.log",
        cwd=directory,
    ):
        yield page
