"""Chooses the class of a shard: SkyNet's layers or the Transformers backend."""

from __future__ import annotations

import logging

from skynet.architecture.architecture import Architecture
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.layers.shard_model import ShardModel

logger = logging.getLogger(__name__)


def shard_class(arch: Architecture) -> type[ShardModel]:
    """The class to load a shard of this model with; logs the Transformers backend's notice."""
    if not isinstance(arch, TransformersArchitecture):
        return ShardModel
    # Imported here: it takes seconds, and only these models need it.
    from skynet.transformers_backend.shard import TransformersShard

    logger.warning("%s", arch.notice)
    return TransformersShard
