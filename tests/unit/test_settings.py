"""Settings: bad values are refused by name, passwords are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from skynet.errors import ConfigurationError
from skynet.redis_url import hide_password
from skynet.settings import Settings, check_url, settings


@pytest.fixture(autouse=True)
def _fresh_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SKYNET_{name.upper()}", raising=False)
    settings.cache_clear()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@host:6379/1", "redis://:***@host:6379/1"),
        ("rediss://user:secret@host/2?ssl=1", "rediss://user:***@host/2?ssl=1"),
        ("redis://user@host", "redis://user@host"),
        ("redis://user:@host", "redis://user:***@host"),
        ("redis://user:se%40cret@host", "redis://user:***@host"),
        ("redis://user:se@cret@host", "redis://user:***@host"),
        ("redis://user:se:cret@host", "redis://user:***@host"),
        ("redis://user:se/cret@host:1/0", "redis://***@host:1/0"),
        ("user:secret@host:6379", "***@host:6379"),
        ("redis://:secret@[::1]:6379/0", "redis://:***@[::1]:6379/0"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("unix://user:secret@/run/redis.sock", "unix://user:***@/run/redis.sock"),
        ("unix:///run/redis.sock?password=secret&db=1", "unix:///run/redis.sock?password=***&db=1"),
        ("redis://host/0?db=1&password=secret", "redis://host/0?db=1&password=***"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert hide_password(url) == shown


@given(st.text("abcXYZ019-_.~:@!$&'()*+,;=%", min_size=1).map(lambda text: f"PASS{text}WORD"))
def test_no_part_of_any_password_is_shown(password: str) -> None:
    assert "PASS" not in hide_password(f"redis://user:{password}@host:6379/0")
    assert "WORD" not in hide_password(f"redis://user:{password}@host:6379/0")


@pytest.mark.parametrize("url", ["http://u:secret@host", "localhost:6379", "", "redis//host"])
def test_a_url_of_another_kind_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="is not a Redis URL") as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SKYNET_REDIS_URL", "http://user:secret@host"),
        ("SKYNET_EXCHANGE_URLS", '["http://user:secret@host"]'),
        ("SKYNET_REDIS_URL", "redis://:se/cret@host:6379/0"),
        ("SKYNET_REDIS_URL", "redis://host:6379/abc"),
        ("SKYNET_THREADS", "0"),
        ("SKYNET_THREADS", "many"),
        ("SKYNET_LOG_LEVEL", "LOUD"),
        ("SKYNET_LEASE_S", "-1"),
        ("SKYNET_CHORD_SHARE", "1"),
        ("SKYNET_EXCHANGE_DTYPE", "int4"),
        ("SKYNET_TILE_BYTES", "12"),
        ("SKYNET_PREFIX", ""),
        ("SKYNET_PREFIX", "skynet"),
        ("SKYNET_PREFIX", "sky net:"),
        ("SKYNET_PREFIX", "sky*:"),
        ("SKYNET_PREFIX", "{skynet}:"),
        ("SKYNET_PREFIX", "sky%d:"),
        ("SKYNET_PREFIX", "skÿnet:"),
        ("SKYNET_PREFIX", "s" * 64 + ":"),
    ],
)
def test_a_bad_value_is_refused_with_its_variables_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable) as caught:
        settings()
    assert "secret" not in str(caught.value)


def test_values_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYNET_REDIS_URL", "rediss://:secret@host:1/2")
    monkeypatch.setenv("SKYNET_EXCHANGE_URLS", '["redis://a", "unix:///b"]')
    monkeypatch.setenv("SKYNET_THREADS", "3")
    monkeypatch.setenv("SKYNET_PREFIX", "team-b:skynet:")
    read = settings()
    assert read.redis_url == "rediss://:secret@host:1/2"
    assert read.exchange_urls == ("redis://a", "unix:///b")
    assert read.threads == 3
    assert read.prefix == "team-b:skynet:"


def test_settings_are_built_once_and_frozen() -> None:
    assert settings() is settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings().threads = 1  # type: ignore[misc]


def test_a_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings().cache_dir == tmp_path / ".cache/skynet"
    monkeypatch.setenv("SKYNET_CACHE_DIR", "~/elsewhere")
    settings.cache_clear()
    assert settings().cache_dir == tmp_path / "elsewhere"
