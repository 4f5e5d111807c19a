"""One shard of any model: of a family that has a file, or of one whose layers are Transformers'."""

from __future__ import annotations

import logging

from skynet.layers.shard_model import ShardModel
from skynet.layers.weights import Fetch, Progress
from skynet.models.architecture import Architecture
from skynet.models.derived import Derived
from skynet.planning.plan import Plan

logger = logging.getLogger(__name__)


def load_shard(
    arch: Architecture,
    plan: Plan,
    stage: int,
    shard: int,
    fetch: Fetch,
    device: str = "cpu",
    progress: Progress | None = None,
    kept: ShardModel | None = None,
    consume: bool = False,
) -> ShardModel:
    """Load a shard's slice; arguments as of `ShardModel`.

    Raises:
        ConfigurationError: Transformers here is not the version that the model was split with.
    """
    if not isinstance(arch, Derived):
        return ShardModel(arch, plan, stage, shard, fetch, device, progress, kept, consume)
    from skynet.derived.shard import DerivedShard  # seconds, and only these models need it

    logger.warning("%s", arch.notice)
    return DerivedShard(arch, plan, stage, shard, fetch, device, progress, kept, consume)
