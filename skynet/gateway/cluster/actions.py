"""What an administrator may do to a cluster. Each action is an event of its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skynet.errors import NoModel
from skynet.gateway.cluster.reader import ClusterReader
from skynet.gateway.errors import ApiError
from skynet.store.connection import reachable
from skynet.store.events import Events
from skynet.store.plans import Plans
from skynet.store.targets import Targets

KIND = "admin"  # of the events


def cancel_request(cluster: ClusterReader, request_id: str) -> dict[str, Any]:
    """Cancel a request; a running one ends after its step."""
    with reachable(cluster.client.url):
        cancelled = cluster.client.generation(request_id).cancel()
    if cancelled:
        _tell(cluster, f"request {request_id} was cancelled")
    return {"id": request_id, "cancelled": cancelled}


def rebalance(cluster: ClusterReader) -> dict[str, Any]:
    """Have the leading orchestrator take the fastest shape.

    Raises:
        NoModel: no model was split.
    """
    with reachable(cluster.client.url):
        Targets(cluster.client.redis).require()
        Plans(cluster.client.redis).ask_rebalance()
    _tell(cluster, "a rebalance was asked for")
    return {"asked": True}


def verify_model(cluster: ClusterReader, digest: str) -> dict[str, Any]:
    """Begin a verification.

    Raises:
        ApiError: 404, no staged model has this digest.
        BadRequest: as `StagedModels.start_verifying`.
    """
    with _known_model(cluster):
        model = cluster.staged.start_verifying(digest)
    _tell(cluster, f"{model.name} ({model.digest[:12]}) is being verified")
    return {"digest": model.digest, "state": "running"}


def remove_model(cluster: ClusterReader, digest: str) -> dict[str, Any]:
    """Delete a staged model.

    Raises:
        ApiError: 404, no staged model has this digest.
        BadRequest: as `StagedModels.remove`.
    """
    with _known_model(cluster):
        model = cluster.staged.remove(digest)
    _tell(cluster, f"{model.name} ({model.digest[:12]}) was removed from Redis")
    return {"digest": model.digest, "freed_bytes": model.num_bytes}


@contextmanager
def _known_model(cluster: ClusterReader) -> Iterator[None]:
    """Around an action on a staged model; an unknown digest is 404, not 503."""
    try:
        with reachable(cluster.client.url):
            yield
    except NoModel as error:
        raise ApiError(404, str(error), code="model_not_found") from None


def _tell(cluster: ClusterReader, text: str) -> None:
    with reachable(cluster.client.url):
        Events(cluster.client.redis).add(KIND, text)
    cluster.forget()
