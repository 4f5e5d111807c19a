"""Whether a model fits into Redis: the memory its keys take, and the memory that is free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import redis

from skynet.checkpoint.tensor_plans import TILE_HEADER_BYTES, TensorPlan
from skynet.errors import SkynetError
from skynet.store.connection import server_info

# Memory of a key beside its value: name (about 110 bytes), dictionary entry, object. Measured on
# Valkey 9.1 with names of 140 bytes: 250 to 300.
KEY_BYTES = 320
MANIFEST_BYTES_PER_TILE = 40
PAGE_BYTES = 4096
MIB = 2**20


def needed_bytes(
    tensors: Iterable[TensorPlan], files: Mapping[str, bytes], tile_bytes: int, allocator: str
) -> int:
    """Peak of the additional memory that Redis uses to stage these tensors and files.

    allocator: `mem_allocator` of INFO memory.
    """
    total, largest, num_tiles = 0, 0, 0
    for plan in tensors:
        count = plan.num_tiles(tile_bytes)
        if not count:
            continue
        indices = min(plan.indices_per_tile(tile_bytes), plan.shape[plan.axis])
        last = plan.shape[plan.axis] - (count - 1) * indices
        full = _allocated(indices * plan.bytes_per_index + TILE_HEADER_BYTES, allocator)
        last_bytes = _allocated(last * plan.bytes_per_index + TILE_HEADER_BYTES, allocator)
        total += (count - 1) * full + last_bytes
        largest = max(largest, full)
        num_tiles += count
    total += sum(_allocated(len(data), allocator) for data in files.values())
    total += (num_tiles + len(files)) * KEY_BYTES + num_tiles * MANIFEST_BYTES_PER_TILE
    return total + 2 * largest  # the connection's input buffer


def _allocated(num_bytes: int, allocator: str) -> int:
    """Memory that the allocator takes for an allocation of this size."""
    if allocator.startswith("jemalloc"):  # four size classes for each doubling
        step = max(16, 2 ** max(0, (max(1, num_bytes - 1)).bit_length() - 3))
    else:
        step = PAGE_BYTES if num_bytes > PAGE_BYTES else 16
    return -(-num_bytes // step) * step


def check_room(
    client: redis.Redis,
    tensors: Iterable[TensorPlan],
    files: Mapping[str, bytes],
    tile_bytes: int,
) -> None:
    """Refuse a model that does not fit, before any write.

    Raises:
        SkynetError: too little memory, with the numbers; or Redis may evict keys.
    """
    memory = server_info(client, "memory")
    policy = memory.get("maxmemory_policy", "noeviction")
    if int(memory.get("maxmemory", 0)) and policy != "noeviction":
        raise SkynetError(
            f"Redis evicts keys when it is full (maxmemory-policy {policy}), which would silently "
            "lose weights and queues: set maxmemory-policy noeviction"
        )
    needed = needed_bytes(tensors, files, tile_bytes, str(memory.get("mem_allocator", "")))
    limit = int(memory.get("maxmemory", 0)) or int(memory.get("total_system_memory", 0))
    if limit and int(memory.get("used_memory", 0)) + needed > limit:
        raise SkynetError(room_message(client, needed))


def room_message(client: redis.Redis, needed: int) -> str:
    """The memory needed, the memory free, and the remedies."""
    memory = server_info(client, "memory")
    used, limit = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
    limit_text, remedy = f"maxmemory {limit / MIB:.0f} MiB", "raise maxmemory"
    if not limit:
        limit = int(memory.get("total_system_memory", 0))
        limit_text = f"its host's memory of {limit / MIB:.0f} MiB"
        remedy = "use a host with more memory"
    return (
        f"Redis has too little memory to stage this model: it needs {needed / MIB:.0f} MiB, "
        f"{max(0, limit - used) / MIB:.0f} MiB are free of {limit_text}. Nothing was staged; "
        f"{remedy}, or free unused models: `skynet models` lists them, `skynet models remove` "
        "frees one"
    )
