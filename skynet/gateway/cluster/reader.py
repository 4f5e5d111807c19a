"""Reads one cluster for the page: one set of commands a second, and rarer what costs more."""

from __future__ import annotations

import logging
import time
from typing import Any

import redis

from skynet.client.client import Client
from skynet.client.status import cluster_status
from skynet.errors import SkynetError, WireError
from skynet.gateway.cluster.redis_state import read_redis
from skynet.gateway.cluster.requests import RequestList
from skynet.gateway.cluster.shapes import Shapes
from skynet.gateway.cluster.snapshot import Readings, snapshot_of, unreadable
from skynet.gateway.cluster.staged import StagedModels
from skynet.settings import settings
from skynet.store.connection import reachable
from skynet.store.metrics import Metrics
from skynet.store.targets import Targets

logger = logging.getLogger(__name__)

NUM_EVENTS = 60
MODELS_S = 20.0  # between scans for models
SHAPES_S = 5.0  # between looks whether other workers came


class ClusterReader:
    """One cluster. `read` is called by one thread at a time."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self.client = client
        self.staged = StagedModels(client.redis, client.url)
        self._requests = RequestList(client.requests)
        self._shapes = Shapes(client.redis)
        self._models: tuple[float, dict[str, Any]] = (-MODELS_S, {})
        self._forecast: tuple[float, dict[str, Any] | None] = (-SHAPES_S, None)

    def read(self) -> dict[str, Any]:
        """A snapshot. Blocks; of a cluster that does not answer it says so."""
        try:
            with reachable(self.client.url):
                return snapshot_of(self._readings())
        except SkynetError as error:
            return unreadable(self.name, time.time(), str(error))
        except redis.RedisError as error:
            return unreadable(self.name, time.time(), f"Redis: {error}")

    def forget(self) -> None:
        """Something was changed: read models and shapes again at the next `read`."""
        self._models = (-MODELS_S, self._models[1])
        self._forecast = (-SHAPES_S, self._forecast[1])

    def _readings(self) -> Readings:
        client, now = self.client.redis, time.monotonic()
        state = cluster_status(client, self.client.url, NUM_EVENTS)
        seconds, micros = client.time()
        if now - self._models[0] >= MODELS_S:
            self._models = (now, self.staged.read())
        if now - self._forecast[0] >= SHAPES_S:
            self._forecast = (now, self._shapes.read(Targets(client).current()))
        return Readings(
            name=self.name,
            now=seconds + micros / 1e6,
            lease_s=settings().lease_s,
            state=state,
            redis=read_redis(client),
            requests=self._requests.read(state["engine"] or {}),
            models=self._models[1],
            checks=self.staged.checks(),
            shapes=self._forecast[1],
            metrics=self._metrics(),
        )

    def _metrics(self) -> Metrics | None:
        try:
            return self.client.metrics()
        except WireError as error:
            logger.debug("no metrics of %s: %s", self.name, error)
            return None
