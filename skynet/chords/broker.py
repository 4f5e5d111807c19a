"""Celery's way to Redis: kombu's Redis transport on the connections of `skynet/store/`.

The settings of kombu and Celery hold the parsed address; `broker_url` is only shown, and read by
Flower. Settings that are shown hold no password.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import kombu
from kombu.transport import redis as kombu_redis
from redis import ConnectionPool, Redis

from skynet.chords.checked_queue import CheckedDeliveries, CheckedReads
from skynet.redis_url import RedisURL
from skynet.store.connection import check_writes, connection_pool

ADDRESS = "redis_url"  # the transport option with the RedisURL
SECRET_INFO = ("password", "ssl", "transport_options")


def broker_settings(address: RedisURL, transport_options: dict[str, Any]) -> dict[str, Any]:
    """Celery's settings for the broker at `address`; the result backend uses the same.

    Kombu reads only the address of the transport options, Flower all the rest.
    """
    options = {**transport_options, ADDRESS: address}
    if address.master:
        options["master_name"] = address.master
    return {
        "broker_url": kombu_url(address),
        "broker_use_ssl": dict(address.tls or ()) or False,
        "broker_transport_options": options,
    }


def kombu_url(address: RedisURL, *, with_password: bool = False) -> str:
    """The URL as stock kombu and Flower spell it; of Sentinels, the first."""
    user = ""
    if with_password and (address.username or address.password):
        user = f"{quote(address.username or '', safe='')}:{quote(address.password or '', safe='')}@"
    if address.path:
        database = f"?virtual_host={address.db}" if address.db else ""
        return f"redis+socket://{user}{quote(address.path)}{database}"
    place = address.address().split(",")[0]
    query = "?ssl_cert_reqs=required" if address.scheme == "rediss" else ""
    return f"{address.scheme}://{user}{place}/{address.db}{query}"


class BrokerConnection(kombu.Connection):
    """Kombu's connection with this module's transport, to the address of its options."""

    def __init__(self, hostname: Any = None, *_: Any, **options: Any) -> None:
        kept = ("ssl", "connect_timeout", "transport_options", "heartbeat", "failover_strategy")
        super().__init__(
            "redis",
            transport=f"{__name__}:Transport",
            **{name: options[name] for name in kept if name in options},
        )

    def info(self) -> dict[str, Any]:
        """What `celery inspect stats` and Flower show."""
        info = {name: value for name, value in super().info().items() if name not in SECRET_INFO}
        return {**info, "hostname": self.as_uri(), "transport": "redis"}


class Channel(CheckedReads, kombu_redis.Channel):
    """Kombu's channel on SkyNet's connections."""

    keyprefix_fanout: str

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        try:
            # A worker waits until Redis takes writes. `self.client` would add the prefix again.
            check_writes(Redis(connection_pool=self.async_pool))
        except Exception:
            self.close()
            self._disconnect_pools()
            raise

    def _get_pool(self, asynchronous: bool = False) -> ConnectionPool:
        address = self.connection.client.transport_options[ADDRESS]
        self.keyprefix_fanout = self.keyprefix_fanout.format(db=address.db)
        pool = connection_pool(
            address,
            timeout_s=self.socket_timeout,
            connect_timeout_s=self.socket_connect_timeout,
            max_connections=self.max_connections,
            health_check_interval=self.health_check_interval,
        )
        if asynchronous:
            pool.connection_class = self._watched(pool.connection_class)
        return pool

    def _watched(self, kind: Any) -> Any:
        """Connections that leave the event loop when they close, as kombu's do."""
        channel = self

        class Watched(kind):
            def disconnect(self, *args: Any, **options: Any) -> None:
                super().disconnect(*args, **options)
                if channel._registered:
                    channel._on_connection_disconnect(self)

        return Watched


class Transport(CheckedDeliveries, kombu_redis.Transport):
    """Kombu's Redis transport with that channel."""

    Channel = Channel
    can_parse_url = True  # its connections ask it for their URL

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """The URL for logs; with the password, for the connection that Flower opens."""
        address = self.client.transport_options[ADDRESS]
        return kombu_url(address, with_password=True) if include_password else str(address)
