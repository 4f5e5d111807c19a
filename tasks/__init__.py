"""SkyNet's Celery tasks, for readers of the repository: they are `skynet.tasks`.

Installed packages and workers use that name only, so that an application's own `tasks` package and
SkyNet's never stand in for each other.
"""

from skynet.tasks import orchestrator, shard

__all__ = ["orchestrator", "shard"]
