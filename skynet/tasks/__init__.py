"""SkyNet's Celery tasks: decode, one call, encode."""

from skynet.tasks import orchestrator, shard

__all__ = ["orchestrator", "shard"]
