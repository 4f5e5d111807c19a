"""SkyNet's Celery tasks: decode, one call, encode."""

from tasks import orchestrator, shard

__all__ = ["orchestrator", "shard"]
