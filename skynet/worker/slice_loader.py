"""Loads the slices of one worker and reports the progress in its lease."""

from __future__ import annotations

import gc
import logging
import time
from typing import TYPE_CHECKING

import redis

from skynet.planning.plan import Plan
from skynet.settings import settings
from skynet.store.lease import Lease
from skynet.store.tile_cache import TileCache
from skynet.wire.keys import Address

if TYPE_CHECKING:
    from skynet.layers.shard_model import ShardModel

logger = logging.getLogger(__name__)


class SliceLoader:
    """Loads slices for the worker that holds `lease`; imports torch on first use."""

    def __init__(self, client: redis.Redis, lease: Lease) -> None:
        self.client = client
        self.lease = lease

    def slice_bytes(self, plan: Plan, address: Address) -> int:
        """Bytes that the weights of `address` take in memory."""
        from skynet.worker.slice import slice_bytes

        return slice_bytes(self.client, plan, address)

    def load(
        self, plan: Plan, address: Address, previous: ShardModel | None, *, consume: bool
    ) -> ShardModel:
        """The slice of `address`; weights that `previous` has are not fetched again.

        consume: free `previous` on the way, so that there are never two slices in memory.
        """
        import torch

        from skynet.layers.shard_model import PreviousSlice
        from skynet.worker.slice import load_slice

        member, started = self.lease.member, time.monotonic()
        torch.set_num_threads(max(1, member.threads))  # of this thread; Celery's sets another
        needed = self.slice_bytes(plan, address)
        self.lease.update(quietly=True, weight_bytes=needed, loaded_bytes=0)

        def progress(num_bytes: int) -> None:
            self.lease.update(quietly=True, loaded_bytes=member.loaded_bytes + num_bytes)

        reused = None if previous is None else PreviousSlice(previous, consume)
        cache = tile_cache()
        model, fetched, cached = load_slice(self.client, plan, address, progress, reused, cache)
        load_s = round(time.monotonic() - started, 3)
        reused_bytes = max(0, model.weight_bytes - model.fetched_bytes)
        keeps_tiles = cache is not None and cache.fits
        self.lease.update(
            quietly=True, load_s=load_s, kept_bytes=reused_bytes, keeps_tiles=keeps_tiles
        )
        logger.info(
            "plan %d: %s in %.2f s: %.1f MB from Redis, %.1f MB from this machine's cache, %.1f MB "
            "were reused",
            plan.epoch,
            address,
            load_s,
            fetched / 1e6,
            cached / 1e6,
            reused_bytes / 1e6,
        )
        return model


def tile_cache() -> TileCache | None:
    """The cache that the settings name, if any."""
    max_bytes = int(settings().tile_cache_gib * 2**30)
    return TileCache(settings().cache_dir / "tiles", max_bytes) if max_bytes else None


def collect_garbage() -> None:
    """Free a slice that was dropped; what remains is exempt from later collections."""
    from skynet.worker.slice import return_free_memory

    gc.unfreeze()
    gc.collect()
    gc.freeze()
    return_free_memory()
