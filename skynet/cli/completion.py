"""Words for the shell's completion, from Redis; none where it does not answer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from skynet.cli.config_file import use_config_file

if TYPE_CHECKING:
    import redis

Complete = Callable[[click.Context, click.Parameter, str], list[str]]
MAX_WORDS = 100
WAIT_S = 0.5


def _from_redis(words: Callable[[redis.Redis], Iterable[str]]) -> Complete:
    """Completes with those of `words` that start with what is typed."""

    def complete(context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
        from skynet.store.connection import connect

        try:
            use_config_file(context.find_root().params.get("config"))
            with connect(timeout_s=WAIT_S, connect_timeout_s=WAIT_S) as client:
                return [word for word in words(client) if word.startswith(typed)][:MAX_WORDS]
        except Exception:  # an error message would stand in the middle of the command line
            return []

    return complete


def _models(client: redis.Redis) -> Iterable[str]:
    from skynet.store.staged_models import list_models

    models = list_models(client)
    return [model.name for model in models] + [model.digest for model in models]


def _places(client: redis.Redis) -> Iterable[str]:
    from skynet.client.status import needed_places
    from skynet.store.plans import Plans
    from skynet.store.targets import Targets
    from skynet.wire.keys import ORCHESTRATOR_QUEUE

    needed = needed_places(Plans(client).current(), Targets(client).current())
    return [*needed, ORCHESTRATOR_QUEUE]


def _requests(client: redis.Redis) -> Iterable[str]:
    from skynet.store.requests import Requests

    return Requests(client, 1).open_ids()


complete_models: Any = _from_redis(_models)
complete_places: Any = _from_redis(_places)
complete_requests: Any = _from_redis(_requests)
