"""The command line: each command is a few calls of other packages."""

from skynet.cli import (
    batch,
    check,
    cluster,
    local,
    models,
    plan,
    requests,
    serve,
    settings,
    text_tasks,
)
from skynet.cli.root import main

__all__ = [
    "batch",
    "check",
    "cluster",
    "local",
    "main",
    "models",
    "plan",
    "requests",
    "serve",
    "settings",
    "text_tasks",
]
