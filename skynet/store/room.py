"""Is there room in Redis for a model? What its keys will really take, and what is free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import redis

from skynet.checkpoint.tensor_plans import TILE_HEADER_BYTES, TensorPlan
from skynet.errors import SkynetError
from skynet.store.connection import server_info

# Beside its value: the key (about 110 bytes of name), its entry in the dictionary and the object.
# Measured on Valkey 9.1 with keys of 140 bytes: 250 to 300.
KEY_BYTES = 320
MANIFEST_BYTES_PER_TILE = 40
PAGE_BYTES = 4096
MIB = 2**20


def needed_bytes(
    tensors: Iterable[TensorPlan], files: Mapping[str, bytes], tile_bytes: int, allocator: str
) -> int:
    """Memory that Redis will use more when all of this is staged, at its peak.

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
        rest = _allocated(last * plan.bytes_per_index + TILE_HEADER_BYTES, allocator)
        total += (count - 1) * full + rest
        largest = max(largest, full)
        num_tiles += count
    total += sum(_allocated(len(data), allocator) for data in files.values())
    total += (num_tiles + len(files)) * KEY_BYTES + num_tiles * MANIFEST_BYTES_PER_TILE
    return total + 2 * largest  # the connection's input buffer


def _allocated(num_bytes: int, allocator: str) -> int:
    """What the allocator takes for a block of this size."""
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
    """Refuse what cannot fit, before a byte of it is written.

    Raises:
        SkynetError: too little memory, with the numbers; or Redis may evict what it holds.
    """
    memory = server_info(client, "memory")
    policy = memory.get("maxmemory_policy", "noeviction")
    if int(memory.get("maxmemory", 0)) and policy != "noeviction":
        raise SkynetError(
            f"Redis evicts keys when it is full (maxmemory-policy {policy}), which would lose "
            "weights and queues without a word: set maxmemory-policy noeviction"
        )
    needed = needed_bytes(tensors, files, tile_bytes, str(memory.get("mem_allocator", "")))
    limit = int(memory.get("maxmemory", 0)) or int(memory.get("total_system_memory", 0))
    if limit and int(memory.get("used_memory", 0)) + needed > limit:
        raise SkynetError(room_message(client, needed))


def room_message(client: redis.Redis, needed: int) -> str:
    """How much is needed, how much there is, and what to do."""
    memory = server_info(client, "memory")
    used, limit = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
    of, remedy = f"maxmemory {limit / MIB:.0f} MiB", "raise maxmemory"
    if not limit:
        limit = int(memory.get("total_system_memory", 0))
        of, remedy = f"its host's memory of {limit / MIB:.0f} MiB", "use a host with more memory"
    return (
        f"Redis has too little memory to stage this model: it needs {needed / MIB:.0f} MiB, "
        f"{max(0, limit - used) / MIB:.0f} MiB are free of {of}. Nothing was staged; {remedy}, or "
        "free models that are not used any more: `skynet models` lists them, `skynet models "
        "remove` frees one"
    )
