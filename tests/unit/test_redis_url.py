"""Every form of a Redis URL: its parts, its form for messages, and the refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skynet.client.client import Client
from skynet.errors import ConfigurationError
from skynet.redis_url import RedisURL, hide_password

CHECKED = (("ssl_cert_reqs", "required"), ("ssl_check_hostname", True))
UNCHECKED = (("ssl_cert_reqs", "none"), ("ssl_check_hostname", False))
CA = (("ssl_ca_certs", "/a b.pem"), *CHECKED)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://", {"hosts": (("localhost", 6379),)}),
        ("redis://h", {"hosts": (("h", 6379),)}),
        ("redis://h:1/", {"hosts": (("h", 1),)}),
        ("redis://h:1/3", {"hosts": (("h", 1),), "db": 3}),
        ("redis://h?db=4", {"hosts": (("h", 6379),), "db": 4}),
        ("redis://h/3?db=4", {"hosts": (("h", 6379),), "db": 4}),
        ("redis://[::1]:7/2", {"hosts": (("::1", 7),), "db": 2}),
        ("redis://[fe80::1]", {"hosts": (("fe80::1", 6379),)}),
        ("redis://:p@h", {"hosts": (("h", 6379),), "password": "p"}),
        ("redis://u:@h", {"hosts": (("h", 6379),), "username": "u"}),
        ("redis://u@h", {"hosts": (("h", 6379),), "username": "u"}),
        (
            "redis://u:a%40b%3Ac%2Fd%23e%25f%3Fg@h",
            {"hosts": (("h", 6379),), "username": "u", "password": "a@b:c/d#e%f?g"},
        ),
        ("redis://:a@b:c;[d@h", {"hosts": (("h", 6379),), "password": "a@b:c;[d"}),
        ("redis://:100%@h", {"hosts": (("h", 6379),), "password": "100%"}),
        (
            "redis://h?username=u&password=a%26b",
            {"hosts": (("h", 6379),), "username": "u", "password": "a&b"},
        ),
        ("rediss://h", {"hosts": (("h", 6379),), "tls": CHECKED}),
        ("rediss://h?ssl_ca_certs=/a%20b.pem", {"hosts": (("h", 6379),), "tls": CA}),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", {"hosts": (("h", 6379),), "tls": UNCHECKED}),
        ("unix:///p/r.sock", {"path": "/p/r.sock"}),
        ("unix:///p/a%20b@c.sock?db=2", {"path": "/p/a b@c.sock", "db": 2}),
        ("unix://u:p@/r.sock", {"path": "/r.sock", "username": "u", "password": "p"}),
        ("unix:///r.sock?password=p&db=1", {"path": "/r.sock", "password": "p", "db": 1}),
        (
            "sentinel://u:p@h1,h2:5,[::1]:6/main/2?sentinel_username=s&sentinel_password=t",
            {
                "hosts": (("h1", 26379), ("h2", 5), ("::1", 6)),
                "master": "main",
                "db": 2,
                "username": "u",
                "password": "p",
                "sentinel_username": "s",
                "sentinel_password": "t",
            },
        ),
        ("sentinel://h/main?db=3", {"hosts": (("h", 26379),), "master": "main", "db": 3}),
        (
            "sentinel://h/main?ssl=true",
            {"hosts": (("h", 26379),), "master": "main", "tls": CHECKED},
        ),
    ],
)
def test_the_parts_of_a_url(url: str, parts: dict[str, Any]) -> None:
    assert RedisURL.parse(url) == RedisURL(url.partition(":")[0], **parts)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://h/abc", "'abc' is not a database"),
        ("redis://h/-1", "'-1' is not a database"),
        ("redis://h/1/2", "'1/2' is not a database"),
        ("redis://h?db=x", "'x' is not a database"),
        ("redis://h?db=", None),
        ("redis://h:0", "no host and port"),
        ("redis://h:70000", "no host and port"),
        ("redis://::1", "no host and port"),
        ("redis://h?socket_timeout=1", "option 'socket_timeout' is not supported"),
        ("redis://h?ssl_ca_certs=/a", "option 'ssl_ca_certs' is not supported in a redis:// URL"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs 'maybe'"),
        ("unix://tmp/r.sock", "no absolute path"),
        ("unix://", "no absolute path"),
        ("sentinel://h:1", "no name of the master"),
        ("sentinel://h:1/0", "no name of the master"),
        ("sentinel://h:1/main/x", "'x' is not a database"),
        ("sentinel://h:1/main?ssl_ca_certs=/a", "needs ssl=true"),
    ],
)
def test_what_cannot_be_a_url_of_redis(url: str, problem: str | None) -> None:
    if problem is None:  # without a value, as if it were not given
        assert RedisURL.parse(url).db == 0
        return
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        RedisURL.parse(url)
    assert problem in str(caught.value)


@pytest.mark.parametrize("special", ["/", "?", "#", " ", "/?", "?@", "/@", "#@", "?a=@"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "sentinel"])
def test_a_password_that_must_be_encoded_is_said_so_and_not_shown(
    scheme: str, special: str
) -> None:
    # Given
    url = f"{scheme}://user:PASS{special}WORD@host:6379/0"
    # When
    with pytest.raises(ValueError, match="percent-encoded") as caught:
        RedisURL.parse(url)
    # Then
    assert "%40 for @" in str(caught.value)
    for text in (str(caught.value), hide_password(url)):
        assert "PASS" not in text
        assert "WORD" not in text


AROUND = st.text("abcXYZ019-_.~:@!$&'()*+,;=%/?#[] ", min_size=1)


@given(AROUND.map(lambda text: f"PASS{text}WORD"))
def test_no_message_shows_a_piece_of_any_password(password: str) -> None:
    url = f"redis://user:{password}@host:6379/0"
    shown = hide_password(url)
    try:
        shown += str(RedisURL.parse(url)) + repr(RedisURL.parse(url))
    except ValueError as error:
        shown += str(error)
    assert "PASS" not in shown
    assert "WORD" not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:p@h/1", "redis://u:***@h:6379/1"),
        ("redis://h?password=p", "redis://:***@h:6379/0"),
        ("rediss://:p@[::1]:7?ssl_password=k", "rediss://:***@[::1]:7/0"),
        ("unix://:p@/r.sock?db=1", "unix://:***@/r.sock?db=1"),
        (
            "sentinel://:p@h1,h2:2/main?sentinel_password=t",
            "sentinel://:***@h1:26379,h2:2/main/0",
        ),
    ],
)
def test_as_text_it_has_no_password(url: str, shown: str) -> None:
    assert str(RedisURL.parse(url)) == shown


def test_a_client_of_a_url_that_cannot_be_used_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="'abc' is not a database"):
        Client("redis://:secret@host/abc")
