"""Arguments of the client's functions: refused by name and value, before Redis is asked."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import numpy as np
import pytest

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.errors import BadRequest, ConfigurationError

NAN, INFINITY = float("nan"), float("inf")
SECONDS = "a finite number"


@pytest.fixture
def nowhere() -> Client:
    """A client of a Redis that does not exist."""
    return Client("unix:///nowhere/redis.sock")


@pytest.mark.parametrize("prompts", ["abc", "", b"abc", bytearray(b"a"), {"role": "user"}, 5, None])
def test_prompts_are_a_list(nowhere: Client, prompts: Any) -> None:
    with pytest.raises(BadRequest, match=re.escape(f"prompts {prompts!r}: a list of prompts")):
        nowhere.submit_prompts(prompts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout": "30"}, f"timeout '30': {SECONDS}"),
        ({"timeout": True}, f"timeout True: {SECONDS}"),
        ({"timeout": NAN}, f"timeout nan: {SECONDS}"),
        ({"timeout": INFINITY}, f"timeout inf: {SECONDS}"),
        ({"timeout": 10**400}, f"timeout 1{'0' * 76}...: {SECONDS}"),
        ({"timeout": [1]}, f"timeout [1]: {SECONDS}"),
        ({"timeout": 0}, "timeout 0: more than 0, at most 1000000000"),
        ({"timeout": -0.01}, "timeout -0.01: more than 0, at most 1000000000"),
        ({"timeout": np.float32(-0.01)}, "timeout -0.01: more than 0"),
        ({"timeout": 1e10}, "timeout 10000000000.0: more than 0, at most 1000000000"),
        ({"raw": "no"}, "raw 'no': True or False"),
        ({"raw": 0}, "raw 0: True or False"),
        ({"raw": None}, "raw None: True or False"),
        ({"priority": "5"}, "priority '5': a whole number from 0 to 9"),
        ({"priority": True}, "priority True: a whole number from 0 to 9"),
        ({"priority": 1.0}, "priority 1.0: a whole number from 0 to 9"),
        ({"priority": 10}, "priority 10: a whole number from 0 to 9"),
        ({"n": "2"}, "n '2': a whole number from 1 to 16"),
        ({"n": True}, "n True: a whole number from 1 to 16"),
        ({"n": 10**20}, f"n 1{'0' * 20}: a whole number from 1 to 16"),
        ({"task": "chat"}, "task 'chat': one of generate, embed, fill-mask, classify"),
        ({"task": None}, "task None: one of generate"),
        ({"task": ["embed"]}, "task ['embed']: one of generate"),
        ({"task": np.array(["embed", "classify"])}, "task array("),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_are_checked_before_redis_is_asked(
    nowhere: Client, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=f"^{re.escape(message)}"):
        nowhere.submit_prompt("Hello", **arguments)
    if "n" not in arguments:
        with pytest.raises(BadRequest, match=f"^{re.escape(message)}"):
            nowhere.submit_prompts(["Hello"], **arguments)


@pytest.mark.parametrize(
    ("timeout", "message"),
    [
        ("30", f"timeout '30': {SECONDS}"),
        (False, f"timeout False: {SECONDS}"),
        (NAN, f"timeout nan: {SECONDS}"),
        (INFINITY, f"timeout inf: {SECONDS}"),
        (-1, "timeout -1: seconds from 0 to 1000000000, or None"),
        (np.float32(-0.01), "timeout -0.01: seconds from 0"),
    ],
)
def test_every_wait_checks_its_timeout(nowhere: Client, timeout: Any, message: str) -> None:
    generation = nowhere.generation("id")
    for wait in (generation.get, generation.wait, generation.stream, generation.tokens):
        with pytest.raises(BadRequest, match=f"^{re.escape(message)}"):
            wait(timeout=timeout)
    with pytest.raises(BadRequest, match=f"^{re.escape(message)}"):
        asyncio.run(generation.aget(timeout))


@pytest.mark.parametrize("start", [-1, 1.5, True, "0", None])
def test_a_stream_starts_at_a_token(nowhere: Client, start: Any) -> None:
    generation = nowhere.generation("id")
    for read in (generation.stream, generation.tokens, generation.atokens):
        with pytest.raises(BadRequest, match=re.escape(f"start {start!r}: a whole number from 0")):
            read(start=start)


@pytest.mark.parametrize("request_id", [None, 5, "", b"id", ["id"]])
def test_a_generation_has_an_id(nowhere: Client, request_id: Any) -> None:
    with pytest.raises(BadRequest, match=re.escape(f"id {request_id!r}: the id of a request")):
        nowhere.generation(request_id)


def test_a_generation_has_a_client() -> None:
    with pytest.raises(BadRequest, match=r"client str: a skynet\.Client, or None"):
        Generation("id", "redis://other")  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["localhost:6379", "http://host", "", "redis://user:se/cret@host"])
def test_a_client_has_a_redis_url(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^url: ") as caught:
        Client(url)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("url", [5, b"redis://host", ["redis://host"]])
def test_a_url_is_a_text(url: Any) -> None:
    with pytest.raises(BadRequest, match=re.escape(f"url {url!r}: a Redis URL, or None")):
        Client(url)
