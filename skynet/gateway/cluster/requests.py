"""The unfinished requests of a cluster as the page shows them: sizes and times, never prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from skynet.errors import SkynetError
from skynet.store.requests import Requests
from skynet.wire import keys

MAX_LISTED = 200
FIELDS = ("state", "emitted", "cancel", "started_at", "first_token_at", "last_token_at")


class RequestList:
    """Reads each record once, and of all others only what changes."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._known: dict[str, dict[str, Any]] = {}  # what never changes, by id

    def read(self, engine: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The oldest `MAX_LISTED` requests by id.

        engine: the state of the engine, of `cluster_status`.
        """
        ids = self._requests.open_ids()[:MAX_LISTED]
        self._known = {each: self._known.get(each) or self._fixed(each) for each in ids}
        with self._requests.client.pipeline(transaction=False) as pipe:
            for each in ids:
                pipe.hmget(keys.request_key(each), FIELDS)
            replies = pipe.execute(raise_on_error=False) if ids else []
        return {
            each: {**self._known[each], **changing(reply, engine, each)}
            for each, reply in zip(ids, replies, strict=True)
            if not isinstance(reply, redis.RedisError)
        }

    def _fixed(self, request_id: str) -> dict[str, Any]:
        try:
            record = self._requests.read(request_id)
        except SkynetError:
            record = None  # another client has written it
        if record is None:
            return {}
        options = record.options
        return {
            "arrival": record.arrival,
            "created": round(record.created, 2),
            "deadline": round(record.deadline, 2),
            "priority": record.priority,
            "task": options.read["task"] if options.read else "generate",
            "prompt_tokens": len(record.prompt),
            "max_tokens": 0 if options.read else options.max_tokens,
        }


def changing(
    values: list[bytes | None], engine: Mapping[str, Any], request_id: str
) -> dict[str, Any]:
    """The state of a request, from its record's `FIELDS`."""
    state, emitted, cancel, _, first, last = values
    tokens = int(emitted) if emitted and emitted.isdigit() else 0
    progress = engine.get("computing", {}).get(request_id)  # tokens computed, and to compute
    if state is None:
        word = "unreadable"
    elif cancel:
        word = "cancelling"
    elif state == b"running":
        word = _doing(tokens, progress, engine)
    else:
        word = state.decode(errors="replace")
    seconds = _seconds(last) - _seconds(first)
    rate = (tokens - 1) / seconds if tokens > 1 and seconds > 0 else 0.0
    return {
        "state": word,
        "tokens": tokens,
        "tokens_per_s": round(rate, 1),
        "progress": progress if word in ("prefill", "replaying") else None,
    }


def _doing(tokens: int, progress: list[int] | None, engine: Mapping[str, Any]) -> str:
    if not str(engine.get("state", "")).startswith("ready"):
        return "recovering"
    if progress is not None and tokens:
        return "replaying"
    return "decoding" if tokens else "prefill"


def _seconds(text: bytes | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
