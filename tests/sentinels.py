"""A master and a replica behind three Sentinels, on free loopback ports."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import redis

try:
    from redis_servers import ConfiguredServer, answers_at, free_port
except ImportError:  # from the chaos suite, which runs as a module
    from tests.redis_servers import ConfiguredServer, answers_at, free_port

NAME = "main"
# Without an answer until a Sentinel takes a server for dead. Sentinels ping once a second: with
# less than two of these they took new masters for dead, and chose a replica that was not in step.
DOWN_MS = 2500
SERVER = """\
bind 127.0.0.1
protected-mode no
save ""
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
repl-diskless-sync-delay 0
repl-ping-replica-period 1
"""
SENTINEL = f"""\
bind 127.0.0.1
protected-mode no
sentinel monitor {NAME} 127.0.0.1 {{master}} 2
sentinel down-after-milliseconds {NAME} {DOWN_MS}
sentinel failover-timeout {NAME} 3000
sentinel parallel-syncs {NAME} 1
"""
WAIT_S = 60.0


class SentinelServers:
    """Five processes with their files in `directory`.

    password: of servers and Sentinels; None for none.
    """

    def __init__(self, directory: Path, password: str | None = None) -> None:
        self.password = password
        master, other = free_port(), free_port()
        secrets, sentinel_secrets = [], []
        if password:
            secrets = [f"requirepass {password}", f"masterauth {password}"]
            sentinel_secrets = [
                f"requirepass {password}",
                f"sentinel auth-pass {NAME} {password}",
                f"sentinel sentinel-pass {password}",
            ]
        self.sentinel_ports = [free_port() for _ in range(3)]
        self.servers = {
            port: ConfiguredServer(
                directory / f"server-{port}",
                [f"port {port}", *SERVER.splitlines(), *secrets, *lines],
                answers_at(port, password),
            )
            for port, lines in ((master, []), (other, [f"replicaof 127.0.0.1 {master}"]))
        }
        self.sentinels = [
            ConfiguredServer(
                directory / f"sentinel-{port}",
                [f"port {port}", *SENTINEL.format(master=master).splitlines(), *sentinel_secrets],
                answers_at(port, password),
                sentinel=True,
            )
            for port in self.sentinel_ports
        ]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        if not self.password:
            return f"sentinel://{hosts}/{NAME}"
        return f"sentinel://:{self.password}@{hosts}/{NAME}?sentinel_password={self.password}"

    @property
    def processes(self) -> list[ConfiguredServer]:
        return [*self.servers.values(), *self.sentinels]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes if process.pid]

    def start(self) -> None:
        """Start all, and wait until a failover is possible."""
        for process in self.processes:
            process.start()
        self.wait_for_replica()

    def stop(self) -> None:
        for process in [*self.sentinels, *self.servers.values()]:
            process.stop()

    def master_port(self) -> int:
        """As a majority of the Sentinels says; 0: they differ."""
        ports = [self._state(port).get("port", 0) for port in self.sentinel_ports]
        return next((port for port in ports if ports.count(port) >= 2), 0)

    def replica_port(self) -> int:
        return next(port for port in self.servers if port != self.master_port())

    def kill_master(self) -> int:
        """SIGKILL the master, wait for the failover; the port of the old one."""
        old = self.master_port()
        self.servers[old].kill()
        self.wait_for_master_after(old)
        return old

    def restart(self, down_s: float) -> None:
        """Stop the master for `down_s` seconds: there may be a failover, or not."""
        port = self.master_port()
        self.servers[port].stop()
        time.sleep(down_s)
        if self.master_port() == port:
            self.servers[port].start()
            self.wait_for_replica()
        else:
            self.start_replica(port)

    def start_replica(self, port: int) -> None:
        """Start a server that was the master as a replica, and wait until it is in step.

        As a master it would be one of old data for seconds, until the Sentinels have noticed, and
        the next failover could promote it.
        """
        self.servers[port].start("--replicaof", "127.0.0.1", str(self.master_port()))
        self.wait_for_replica()

    def wait_for_master_after(self, old: int) -> None:
        """Wait until the Sentinels name another master."""

        def moved() -> bool:
            new = self.master_port()
            return new not in (0, old) and self._replication(new).get("role") == "master"

        _wait("another master", moved)

    def wait_for_replica(self) -> None:
        """Wait until a failover loses nothing: the replica is in step, all Sentinels know it."""

        def ready() -> bool:
            master = self.master_port()
            if not master or self._replication(master).get("role") != "master":
                return False
            replica = next(port for port in self.servers if port != master)
            states = [self._state(port) for port in self.sentinel_ports]
            return self._replication(replica).get("master_link_status") == "up" and all(
                state.get("num-slaves") == 1
                and state.get("num-other-sentinels") == 2
                and state.get("flags") == "master"
                and self._replica_is_well(port)
                for port, state in zip(self.sentinel_ports, states, strict=True)
            )

        _wait("the replica to follow the master", ready)

    def _state(self, port: int) -> dict[str, Any]:
        try:
            with self._client(port) as client:
                return dict(client.sentinel_master(NAME))
        except redis.RedisError:
            return {}

    def _replica_is_well(self, port: int) -> bool:
        try:
            with self._client(port) as client:
                replicas: Any = client.sentinel_slaves(NAME)
        except redis.RedisError:
            return False
        return [replica["flags"] for replica in replicas] == ["slave"]

    def _replication(self, port: int) -> dict[str, Any]:
        try:
            with self._client(port) as client:
                info: Any = client.info("replication")
                return dict(info)
        except redis.RedisError:
            return {}

    def _client(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, password=self.password, socket_timeout=1)


def _wait(name: str, condition: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {WAIT_S:g} s still not: {name}")
        time.sleep(0.05)
