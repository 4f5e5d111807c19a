"""Stages checkpoints in Redis, once or again whenever Redis loses them.

Knows which tensors a model needs; their layout in Redis is `skynet/store/weights.py`'s.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import redis

from skynet.architecture.architecture import Architecture
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.checkpoint.model_source import ModelSource
from skynet.checkpoint.tensor_plans import model_files, tensor_plans
from skynet.errors import BadRequest, UnsupportedModel
from skynet.models.registry import load_architecture
from skynet.request.generation_config import FILE, end_ids, generation_defaults
from skynet.request.options import Limits, check_options
from skynet.request.task_names import GENERATE
from skynet.settings import settings
from skynet.staging.lean import announce, drop_kept_tiles
from skynet.store.bad_tiles import forget_reports, reported_tiles
from skynet.store.connection import connect
from skynet.store.events import Events
from skynet.store.staging import StagingJob
from skynet.store.staging_lock import LOCK_S
from skynet.store.weights import WeightStore

logger = logging.getLogger(__name__)

STOP_S = 10.0
Progress = Callable[[str, int, int], None]  # activity, bytes done, bytes in total


class _Stopped(Exception):
    """The stager was stopped during a staging."""


def stage_checkpoint(
    client: redis.Redis,
    checkpoint: ModelSource,
    digest: str,
    progress: Progress | None = None,
    *,
    lock_s: float = LOCK_S,
) -> None:
    """Put the checkpoint's tensors, config and text files into Redis, in tiles.

    Raises:
        CheckpointError, UnsupportedModel, SkynetError: see `WeightStore.stage`.
    """
    arch = load_architecture(checkpoint.config)
    job = staging_job(checkpoint, digest, arch)
    check_generation_config(job.files, arch)
    _note_unused_end(checkpoint.config, job.files, arch)
    total = sum(tensor.num_bytes for tensor in job.tensors.values())
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress:
            progress("staging", min(done, total), total)

    def waiting() -> None:
        if progress:
            progress("waiting for another process to stage this model", 0, total)

    WeightStore(client, lock_s).stage(job, progress=advance, waiting=waiting)
    if isinstance(arch, TransformersArchitecture):
        Events(client).add("model", arch.notice)


def staging_job(checkpoint: ModelSource, digest: str, arch: Architecture) -> StagingJob:
    """Which tensors and files of the checkpoint are staged."""
    return StagingJob(
        digest,
        checkpoint.name,
        checkpoint.config,
        tensor_plans(checkpoint, arch),
        model_files(checkpoint),
        checkpoint,
        settings().tile_bytes,
    )


def check_generation_config(files: Mapping[str, bytes], arch: Architecture) -> None:
    """Refuse a model whose default generation settings are not supported.

    Settings that only sampling uses are refused by the requests that sample.

    Raises:
        UnsupportedModel: names the setting.
    """
    defaults, has_encoder = generation_defaults(files), arch.encoder is not None
    limits = Limits(2**31, arch.vocab_size, has_encoder=has_encoder)
    options: dict[str, Any] = {}
    if has_encoder and "decoder_start_token_id" not in defaults.always:
        options["decoder_start_token_id"] = 0  # every request must give one
    try:
        check_options(options, 1, limits, defaults)
    except BadRequest as error:
        raise UnsupportedModel(f"{FILE}: {error}") from error
    sampled = {**options, "do_sample": not defaults.unsupported_sampling, "num_beams": 1}
    try:
        check_options(sampled, 1, limits, defaults)
    except BadRequest as error:
        logger.warning("%s: %s; requests that sample must set another value", FILE, error)


def _note_unused_end(
    config: Mapping[str, Any], files: Mapping[str, bytes], arch: Architecture
) -> None:
    unused = config.get("eos_token_id")
    if GENERATE in arch.tasks and unused is not None and not end_ids(config, files):
        logger.warning(
            "%s names no eos_token_id: answers end at max_tokens, as with Transformers, which does "
            "not use config.json's %s beside that file",
            FILE,
            unused,
        )


class Stager:
    """Keeps one model staged while it watches.

    publish: called after each staging to ask for the model's plan again; may be called twice.
    lean: let Redis drop tiles that every placed worker keeps; see `skynet/staging/lean.py`.
    """

    def __init__(
        self,
        url: str,
        checkpoint: ModelSource,
        publish: Callable[[], None],
        *,
        progress: Progress | None = None,
        lock_s: float = LOCK_S,
        lean: bool = False,
    ) -> None:
        self.url = url
        self.checkpoint = checkpoint
        self.publish = publish
        self.progress = progress
        self.lock_s = lock_s
        self.lean = lean
        self.digest = checkpoint.digest()
        self._to_publish = False
        self._problem = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, every_s: float = 1.0) -> None:
        """Watch in a new thread until `stop`."""
        self._stop.clear()
        self._thread = threading.Thread(
            target=self.watch, args=(self._stop, every_s), name="stager", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; a staging in progress is abandoned at its next batch."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=STOP_S)
            self._thread = None

    def watch(self, stop: threading.Event, every_s: float = 1.0) -> None:
        """Until `stop`: stage the model again when Redis loses it, repair reported tiles.

        If Redis is away or a staging fails, that is logged once and tried again.
        """
        with connect(self.url) as client:
            while not stop.is_set():
                try:
                    self._look(client, stop)
                    self._settled()
                except _Stopped:
                    return
                except Exception as error:
                    self._failed(error)
                stop.wait(every_s)

    def _look(self, client: redis.Redis, stop: threading.Event) -> None:
        store = WeightStore(client, self.lock_s)
        if not store.is_staged(self.digest):
            logger.info("%s is not in Redis: staging it", self.checkpoint.name)
            self._to_publish = True
            self._stage(client, stop)
        if self._to_publish:  # also if Redis went away after the staging
            self.publish()
            self._to_publish = False
            logger.info("%s is staged again", self.checkpoint.name)
        self._repair(store, stop)
        if self.lean:
            announce(client, self.digest)
            manifest = store.require_manifest(self.digest)
            if dropped := drop_kept_tiles(client, manifest, self.lock_s):
                logger.info(
                    "%s: %d tiles dropped from Redis: every worker has its own on disk",
                    self.checkpoint.name,
                    dropped,
                )

    def _stage(self, client: redis.Redis, stop: threading.Event) -> None:
        def progress(what: str, done: int, total: int) -> None:
            if stop.is_set():
                raise _Stopped
            if self.progress:
                self.progress(what, done, total)

        stage_checkpoint(client, self.checkpoint, self.digest, progress, lock_s=self.lock_s)

    def _repair(self, store: WeightStore, stop: threading.Event) -> None:
        """Write tiles again that workers report and that verification confirms as bad."""
        reported = reported_tiles(store.client, self.digest)
        if not reported:
            return

        def waiting() -> None:
            if stop.is_set():
                raise _Stopped

        manifest = store.require_manifest(self.digest)
        known = [tile for tile in reported if manifest.tile(tile) is not None]
        bad = store.verify(manifest, among=known)
        if self.lean and bad:  # the worker that misses one will miss others
            bad = list(dict.fromkeys([*bad, *store.missing_tiles(manifest)]))
        job = staging_job(self.checkpoint, self.digest, load_architecture(self.checkpoint.config))
        num_tiles = store.restage_tiles(manifest, job, bad, waiting)
        forget_reports(store.client, self.digest, reported)
        logger.info("%s: %d tiles staged again", self.checkpoint.name, num_tiles)

    def _settled(self) -> None:
        if self._problem:
            logger.info("%s: Redis answers, and the model is staged", self.checkpoint.name)
        self._problem = ""

    def _failed(self, error: Exception) -> None:
        """Log a new problem: a line as a warning, the traceback for debugging."""
        kind = "Redis" if isinstance(error, redis.RedisError) else f"{type(error).__name__}"
        if kind != self._problem:
            logger.warning(
                "cannot keep %s staged: %s: %s; trying until it works",
                self.checkpoint.name,
                kind,
                error,
            )
            logger.debug("traceback", exc_info=error)
        self._problem = kind
