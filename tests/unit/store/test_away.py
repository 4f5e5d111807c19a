"""Which replies say that Redis cannot serve now."""

from __future__ import annotations

import pytest

from skynet.store.away import REPLIES, RedisFull, away


@pytest.mark.parametrize("code", REPLIES)
def test_a_reply_of_a_server_that_cannot_serve_now(code: str) -> None:
    # When
    error = away(f"{code} whatever the server says")
    # Then
    assert error is not None
    assert (str(error), error.remedy) == REPLIES[code]
    assert str(error) in repr(error)  # Celery logs it so


@pytest.mark.parametrize(
    "reply",
    [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "OOM command not allowed when used memory > 'maxmemory'. script: f, on @user_script:2.",
        "ERR Error running script (call to f_00): @user_script:2: @user_script: 2: -OOM command "
        "not allowed when used memory > 'maxmemory'.",
    ],
)
def test_a_full_redis_also_from_a_script(reply: str) -> None:
    assert isinstance(away(reply), RedisFull)


@pytest.mark.parametrize(
    "reply",
    [
        "ERR unknown command",
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "NOSCRIPT No matching script. Please use EVAL.",
        "NOPERM this user has no permissions to run the 'get' command",
        "FENCED another orchestrator leads",
        "BUSYGROUP Consumer Group name already exists",
    ],
)
def test_other_errors_stay_what_they_are(reply: str) -> None:
    assert away(reply) is None
