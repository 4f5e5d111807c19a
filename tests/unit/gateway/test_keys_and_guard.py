"""Who may use a gateway: keys, hosts, origins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from skynet.errors import ConfigurationError
from skynet.gateway.config import GatewayConfig
from skynet.gateway.keys import Caller, Keys, keys_of_lines, new_key, read_keys
from skynet.gateway.middleware.guard import Guard

KEYS = Keys({"user-key-0": "ann"}, {"admin-key-0": "root"})


def sent(config: GatewayConfig, path: str = "/v1/models", **headers: str) -> tuple[int, Any]:
    """The status of a request's answer, and who the application was told has sent it."""
    seen: list[Any] = []
    messages: list[dict[str, Any]] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        seen.append(scope["caller"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "method": "GET", "headers": raw, "query_string": b""}
    asyncio.run(Guard(app, config)(scope, receive, send))
    return messages[0]["status"], seen[0] if seen else None


@pytest.mark.parametrize(
    ("headers", "status", "caller"),
    [
        ({"authorization": "Bearer user-key-0"}, 200, Caller("ann")),
        ({"authorization": "bearer user-key-0"}, 200, Caller("ann")),
        ({"x_api_key": "user-key-0"}, 200, Caller("ann")),
        ({"authorization": "Bearer admin-key-0"}, 200, Caller("root", True)),
        ({"authorization": "Bearer USER-KEY-0"}, 401, None),
        ({"authorization": "Bearer user-key-"}, 401, None),
        ({"authorization": "Basic user-key-0"}, 401, None),
        ({"authorization": "Bearer"}, 401, None),
        ({}, 401, None),
    ],
)
def test_a_key_tells_who_it_is(headers: dict[str, str], status: int, caller: Any) -> None:
    assert sent(GatewayConfig(keys=KEYS), **headers) == (status, caller)


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_needs_no_key(path: str) -> None:
    assert sent(GatewayConfig(keys=KEYS), path)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example:8000"}, 403),  # a name that an attacker points at this machine
        ({}, 403),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:3000"}, 200),
        ({"host": "localhost:8000", "origin": "http://evil.example"}, 403),
        ({"host": "localhost:8000", "origin": "null"}, 403),
    ],
)
def test_without_keys_only_this_machines_own_names_and_pages_are_served(
    headers: dict[str, str], status: int
) -> None:
    config = GatewayConfig(cors_origins=("http://localhost:3000",))
    assert sent(config, **headers)[0] == status


def test_without_keys_only_who_is_on_this_machine_is_an_administrator() -> None:
    assert sent(GatewayConfig(), host="localhost")[1] == Caller(is_admin=True)
    assert sent(GatewayConfig(host="0.0.0.0"), host="anything")[1] == Caller()


def test_every_origin_at_once_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="name each origin"):
        GatewayConfig(cors_origins=("*",))


def test_a_key_file_has_keys_with_and_without_names(tmp_path: Path) -> None:
    # Given
    path = tmp_path / "keys"
    path.write_text("# users\n\nann secret-key-1\nsecret-key-2\n")
    # When / Then
    keys = read_keys(path)
    assert keys["secret-key-1"] == "ann"
    # Then a key without a name has one of its own, wherever it stands
    path.write_text("secret-key-2\nsecret-key-3\n")
    again = read_keys(path)
    assert again["secret-key-2"] == keys["secret-key-2"] != again["secret-key-3"]


@pytest.mark.parametrize("line", ["short", "a b c", "name clé-clé-clé", "x" * 600])
def test_a_bad_key_is_refused_without_showing_it(line: str) -> None:
    with pytest.raises(ConfigurationError, match="line 1") as caught:
        keys_of_lines([line], "key file")
    assert line not in str(caught.value)


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# nothing\n")
    with pytest.raises(ConfigurationError, match="0 keys"):
        read_keys(tmp_path / "keys")
    with pytest.raises(ConfigurationError, match="missing"):
        read_keys(tmp_path / "missing")


def test_made_keys_differ_and_no_key_is_in_memory() -> None:
    assert new_key() != new_key()
    key = new_key()
    assert key not in repr(vars(Keys({key: "ann"}, {})))
