"""The staged models of a cluster, and their verification in the background."""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict
from typing import Any

import redis

from skynet.errors import BadRequest, SkynetError
from skynet.store.bad_tiles import reported_tiles
from skynet.store.connection import connect
from skynet.store.staged_models import (
    StagedModel,
    find_model,
    list_models,
    remove_model,
    verify_model,
)

logger = logging.getLogger(__name__)

MAX_NAMED = 5  # broken tiles


class StagedModels:
    """Lists, verifies and removes the models of one Redis.

    url: of that Redis; a verification has a connection of its own.
    """

    def __init__(self, client: redis.Redis, url: str) -> None:
        self._client = client
        self._url = url
        self._checks: dict[str, dict[str, Any]] = {}  # the last verification of each, by digest
        self._lock = threading.Lock()

    def read(self) -> dict[str, dict[str, Any]]:
        """The models by digest. Asks Redis for every key of a model: not to be done every second.

        state: `complete`, `lean`, `half`, `broken` or `staging`.
        """
        listed = {}
        for model in list_models(self._client):
            broken = len(reported_tiles(self._client, model.digest))
            fields = asdict(model)
            listed[model.digest] = {**fields, "broken": broken, "state": state_of(model, broken)}
        return listed

    def checks(self) -> dict[str, dict[str, Any]]:
        """The last verification of each model: bytes done and in all, and the result."""
        with self._lock:
            return {digest: dict(check) for digest, check in self._checks.items()}

    def start_verifying(self, digest: str) -> StagedModel:
        """Read the whole model in a thread; `checks` tells how far it is.

        Raises:
            NoModel: no staged model has this digest.
            BadRequest: it is being verified already.
        """
        model = find_model(self._client, digest)
        with self._lock:
            running = self._checks.get(model.digest, {}).get("state") == "running"
            if running:
                raise BadRequest(f"{model.name} ({model.digest[:12]}) is being verified already")
            self._checks[model.digest] = {
                "state": "running",
                "done": 0,
                "total": model.num_bytes,
                "text": "",
            }
        threading.Thread(
            target=self._verify, args=(model,), name=f"verify-{model.digest[:8]}", daemon=True
        ).start()
        return model

    def remove(self, digest: str) -> StagedModel:
        """Delete a model that is not in force.

        Raises:
            NoModel, BadRequest: as `find_model` and `remove_model`.
        """
        model = find_model(self._client, digest)
        remove_model(self._client, model)
        with self._lock:
            self._checks.pop(model.digest, None)
        return model

    def _verify(self, model: StagedModel) -> None:
        def progress(_what: str, done: int, total: int) -> None:
            self._note(model.digest, done=done, total=total)

        try:
            with connect(self._url) as client:
                found = verify_model(client, model, progress)
            text = found_text(found.broken, found.bad_numbers)
            self._note(model.digest, state="good" if found.is_good else "bad", text=text)
        except (SkynetError, redis.RedisError) as error:
            self._note(model.digest, state="failed", text=str(error))
        except Exception as error:  # a thread that ends silently would leave it running for ever
            logger.exception("model %s could not be verified", model.digest[:12])
            self._note(model.digest, state="failed", text=f"{type(error).__name__}: {error}")

    def _note(self, digest: str, **fields: Any) -> None:
        with self._lock:
            if digest in self._checks:
                self._checks[digest].update(fields)


def state_of(model: StagedModel, broken: int) -> str:
    if model.being_staged:
        return "staging"
    if broken and not model.lean:  # tiles of a lean model are reported to be staged again
        return "broken"
    if model.complete:
        return "complete"
    return "lean" if model.lean else "half"


def found_text(broken: list[str], bad_numbers: dict[str, int]) -> str:
    """The result of a verification in a sentence."""
    parts = []
    if broken:
        more = ", ..." if len(broken) > MAX_NAMED else ""
        parts.append(f"{len(broken)} missing or corrupted: {', '.join(broken[:MAX_NAMED])}{more}")
    if bad_numbers:
        count = sum(bad_numbers.values())
        parts.append(f"{count} numbers are NaN or infinite, in {', '.join(list(bad_numbers)[:3])}")
    return "; ".join(parts) or "all tiles and files match"
