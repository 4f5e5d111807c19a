"""What a gateway is started with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skynet.errors import ConfigurationError
from skynet.gateway.keys import Keys

MIB = 2**20


@dataclass(frozen=True)
class GatewayConfig:
    """
    host, port: where it listens.
    keys: who may use it; None: everybody who reaches it.
    cors_origins: pages of other origins that may use it.
    max_body_bytes: longest body of a request.
    receive_s: longest time to receive a request's head, and its body.
    keep_alive_s: between comments in a stream that is silent.
    drain_s: after SIGTERM, longest time for open answers to end.
    open_metrics: /metrics needs no key.
    batch_dir: where files of batches are kept; None: there are no batches.
    batch_bytes: of all these files together.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Keys | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 * MIB
    receive_s: float = 60.0
    keep_alive_s: float = 10.0
    drain_s: float = 60.0
    open_metrics: bool = False
    batch_dir: Path | None = None
    batch_bytes: int = 4096 * MIB

    def __post_init__(self) -> None:
        if "*" in self.cors_origins:
            raise ConfigurationError(
                "--cors-origin *: name each origin, as in http://localhost:3000; any page could "
                "use the gateway else"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """Its address, for clients on this machine."""
        host: Any = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
