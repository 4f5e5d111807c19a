"""Lists, checks and removes the models in Redis, completely staged or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis

from skynet.checkpoint.bad_numbers import add_count, count_bad_numbers
from skynet.checkpoint.tensor_plans import suppressing_tensors
from skynet.errors import BadRequest, NoModel
from skynet.models.registry import load_architecture
from skynet.store.manifest import Manifest, TileName
from skynet.store.plans import Plans
from skynet.store.staging import KEYS_AT_ONCE, drop_model, readable_manifest
from skynet.store.staging_lock import LOCK_S, StagingLock
from skynet.store.targets import Targets
from skynet.store.weights import WeightStore
from skynet.wire import codec, keys

Progress = Callable[[str, int, int], None]  # activity, bytes done, total bytes


@dataclass(frozen=True)
class StagedModel:
    """One model in Redis.

    num_bytes: sum of its values' sizes. tiles, tiles_wanted: number of tiles in Redis, and in the
    manifest; the latter is 0 without a manifest.
    weights: the layouts and dtypes of its matrices.
    """

    digest: str
    name: str
    num_bytes: int
    tiles: int
    tiles_wanted: int
    complete: bool
    in_force: bool
    being_staged: bool
    weights: str


def list_models(client: redis.Redis) -> list[StagedModel]:
    """All models with any key in Redis, by name. Reads no weights."""
    redis_keys: dict[str, list[bytes]] = defaultdict(list)
    for key in client.scan_iter(match=keys.model_keys("*"), count=KEYS_AT_ONCE):
        redis_keys[keys.digest_of(key)].append(key)
    used = digests_in_force(client)
    models = [_describe(client, digest, names, used) for digest, names in redis_keys.items()]
    return sorted(models, key=lambda model: (model.name, model.digest))


def digests_in_force(client: redis.Redis) -> set[str]:
    """Digests of the target's model and of the current plan's."""
    sources = Targets(client).current(), Plans(client).current()
    return {source.model for source in sources if source is not None}


def find_model(client: redis.Redis, word: str) -> StagedModel:
    """The one model of this name, or else whose digest starts with `word`.

    Raises:
        NoModel: there is none.
        BadRequest: there are several.
    """
    models = list_models(client)
    named = [model for model in models if model.name == word]
    matches = named or [model for model in models if model.digest.startswith(word)]
    if not matches:
        raise NoModel(
            f"no model in Redis has the name {word!r:.80}, or a digest that starts with it: see "
            "`skynet models`"
        )
    if len(matches) > 1:
        digests = ", ".join(model.digest[:16] for model in matches)
        what = "have the name" if named else "have a digest that starts with"
        raise BadRequest(f"several models {what} {word!r:.80}: {digests}; give more of a digest")
    return matches[0]


def remove_model(
    client: redis.Redis, model: StagedModel, *, force: bool = False, lock_s: float = LOCK_S
) -> int:
    """Delete the model's manifest, tiles and files; returns the number of keys.

    Raises:
        BadRequest: the model is in force and `force` is not set, or it is being staged.
    """
    if not force and model.digest in digests_in_force(client):
        raise BadRequest(
            f"{model.name} ({model.digest[:12]}) is in force: workers that start or move could no "
            "longer load it. Split another model first, or add --force"
        )
    lock = StagingLock(client, model.digest, lock_s)
    if not lock.acquire():
        raise BadRequest(
            f"{model.name} ({model.digest[:12]}) is being staged: wait until that ends, or "
            f"{lock_s:g} s if its process was killed"
        )
    try:
        return drop_model(client, lock)
    finally:
        client.delete(keys.bad_tiles_key(model.digest))
        lock.release()


@dataclass(frozen=True)
class Verified:
    """What is wrong with a staged model.

    broken: names of missing or corrupted tiles and files.
    bad_numbers: how many numbers of a tensor are NaN or infinite, by its name.
    """

    broken: list[str]
    bad_numbers: dict[str, int]

    @property
    def is_good(self) -> bool:
        return not self.broken and not self.bad_numbers


def verify_model(
    client: redis.Redis, model: StagedModel, progress: Progress | None = None
) -> Verified:
    """Read the whole model."""
    store, bad_numbers = WeightStore(client), dict[str, int]()
    manifest = readable_manifest(client, model.digest)
    if manifest is None:
        return Verified(["the manifest"], bad_numbers)
    suppressing = suppressing_tensors(load_architecture(manifest.config))
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress:
            progress("checking", min(done, manifest.num_bytes), manifest.num_bytes)

    def count(tile: TileName, payload: bytes) -> None:
        dtype, suppresses = manifest.tensors[tile.tensor].dtype, tile.tensor in suppressing
        bad = count_bad_numbers(codec.decode(payload), dtype, suppresses)
        add_count(bad_numbers, tile.tensor, bad)

    broken = [str(tile) for tile in store.verify(manifest, advance, visit=count)]
    broken += [f"file {name}" for name in store.missing_files(manifest)]
    return Verified(broken, bad_numbers)


def _describe(
    client: redis.Redis, digest: str, redis_keys: list[bytes], used: set[str]
) -> StagedModel:
    present = set(redis_keys)
    tiles = sum(keys.is_tile_key(key) for key in present)
    manifest = readable_manifest(client, digest)
    complete = manifest is not None and all(key.encode() in present for key in _keys_of(manifest))
    return StagedModel(
        digest=digest,
        name=manifest.name if manifest else "?",
        num_bytes=_stored_bytes(client, redis_keys),
        tiles=tiles,
        tiles_wanted=manifest.num_tiles if manifest else 0,
        complete=complete,
        in_force=digest in used,
        being_staged=keys.staging_lock_key(digest).encode() in present,
        weights=manifest.weights if manifest else "?",
    )


def _keys_of(manifest: Manifest) -> Iterator[str]:
    yield from (tile.key(manifest.digest) for tile in manifest.tile_names())
    yield from (keys.file_key(manifest.digest, name) for name in manifest.files)


def _stored_bytes(client: redis.Redis, redis_keys: list[bytes]) -> int:
    strings = [key for key in redis_keys if not key.endswith(b":bad")]
    total = 0
    for at in range(0, len(strings), KEYS_AT_ONCE):
        with client.pipeline(transaction=False) as pipeline:
            for key in strings[at : at + KEYS_AT_ONCE]:
                pipeline.strlen(key)
            total += sum(pipeline.execute())
    return total
