"""Builds one shard's slice of a staged model from its tiles; never reads a checkpoint."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import redis
import torch

from skynet.layers.shard_model import PreviousSlice, ShardModel
from skynet.models.registry import load_architecture
from skynet.planning.memory import shard_weight_bytes
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.settings import settings
from skynet.store.staged_weights import StagedWeights
from skynet.store.tile_cache import TileCache
from skynet.store.weights import WeightStore
from skynet.wire.keys import Address
from skynet.wire.tensor_dtypes import block_format, item_bytes
from skynet.worker.shard_class import shard_class


class TensorFetcher:
    """Fetches regions of staged tensors as torch tensors.

    progress: called after each region with the bytes that it takes in `dtype`.
    """

    def __init__(self, weights: StagedWeights, dtype: str, progress: Callable[[int], None]) -> None:
        self.weights = weights
        self.item_bytes = item_bytes(dtype)
        self.progress = progress

    def __call__(self, name: str, region: Range) -> torch.Tensor:
        array, dtype = self.weights.fetch(name, region)
        self.progress(array.size * (1 if block_format(dtype) else self.item_bytes))
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


class LoadedSlice(NamedTuple):
    """A slice, and the bytes of tiles that were read for it from Redis and from the cache."""

    model: ShardModel
    fetched_bytes: int
    cached_bytes: int


def load_slice(
    client: redis.Redis,
    plan: Plan,
    address: Address,
    progress: Callable[[int], None],
    previous: PreviousSlice | None = None,
    cache: TileCache | None = None,
) -> LoadedSlice:
    """Read the tiles of this shard's slice that `previous` lacks, and build its layers.

    progress: called with the bytes of each region read.
    previous: an earlier slice whose weights are reused; see `ShardModel`.
    cache: where tiles are looked for first, and kept.

    Raises:
        TileMissing, TileCorrupted, NoModel: Redis no longer holds what was staged.
    """
    manifest = WeightStore(client).require_manifest(plan.model)
    arch = load_architecture(manifest.config)
    weights = StagedWeights(client, manifest, cache)
    model = shard_class(arch)(
        arch,
        plan,
        address,
        TensorFetcher(weights, plan.number_dtype, progress),
        device=settings().device,
        previous=previous,
    )
    return LoadedSlice(model, weights.fetched_bytes, weights.cached_bytes)


def slice_bytes(client: redis.Redis, plan: Plan, address: Address) -> int:
    """Bytes that this shard's weights take in memory."""
    manifest = WeightStore(client).require_manifest(plan.model)
    arch = load_architecture(manifest.config)
    return shard_weight_bytes(arch, plan, address.stage, address.shard)


def return_free_memory() -> None:
    """Return freed memory to the system; the C library would keep it for this thread."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass  # not glibc
