"""The command line. Each command is a few calls; what they do lives elsewhere."""

from skynet.cli import check, cluster, local, models, text_tasks
from skynet.cli.root import main

__all__ = ["check", "cluster", "local", "main", "models", "text_tasks"]
