"""What the leading orchestrator says of its engine, every moment."""

from __future__ import annotations

from typing import Any, cast

import redis

from skynet.wire import keys
from skynet.wire.typed_json import parse_object


def read_engine_state(client: redis.Redis) -> dict[str, Any] | None:
    """The newest state; None: no orchestrator leads.

    Raises:
        WireError: the key holds something else.
    """
    text = cast("bytes | None", client.get(keys.engine_key()))
    return parse_object(text, keys.engine_key()) if text else None
