"""The only reader of the environment: every setting, its default and its limits.

Each field is an environment variable with `SKYNET_` before its name. Built once (`settings()`),
frozen, validated; a bad value is refused with the variable's name.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from skynet.errors import ConfigurationError

REDIS_SCHEMES = ("redis", "rediss", "unix")


class Settings(BaseSettings):
    """What a SkyNet process may be told from outside."""

    model_config = SettingsConfigDict(env_prefix="SKYNET_", frozen=True, extra="ignore")

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", description="queues, weights, requests: redis, rediss or unix"
    )
    exchange_urls: tuple[str, ...] = Field(
        (), description="Redis servers for the exchange, stage i uses number i modulo their count"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    trace: bool = Field(False, description="send a task event for every span of every shard")
    threads: int | None = Field(None, ge=1, description="compute threads of a shard worker")
    device: str = Field("cpu", description="torch device of a shard worker: cpu, cuda, cuda:1")
    max_batch_tokens: int = Field(512, ge=1, description="prompt tokens of one step, at most")
    max_waiting: int = Field(1024, ge=1, description="requests that may wait before a refusal")
    request_timeout_s: float = Field(600, gt=0, description="deadline of a request without its own")
    result_expires_s: int = Field(86_400, ge=60, description="how long an answer is kept")
    step_timeout_s: float = Field(120, gt=0, description="deadline of one step")
    exchange_timeout_s: float = Field(20, gt=0, description="wait for one partial of a peer")
    exchange_spin_us: int = Field(
        300,
        ge=0,
        le=10_000,
        description="busy-wait for a shard's reply before sleeping, in µs",
    )
    lease_s: float = Field(3, ge=0.6, description="a worker silent for so long is taken as dead")
    connect_timeout_s: float = Field(4, gt=0, description="wait for Redis to accept a connection")
    chord_share: float = Field(
        0.05, gt=0, lt=1, description="share of a step that chords may cost with chord_span=auto"
    )
    exchange_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="what partials travel as; auto: as they were computed"
    )
    tile_bytes: int = Field(512 * 1024, ge=4096, le=64 * 2**20, description="size of a tile")
    cache_dir: Path = Field(Path("~/.cache/skynet"), description="converted models")

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        return check_url(url)

    @field_validator("exchange_urls")
    @classmethod
    def _known_schemes(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_url(url) for url in urls)

    @field_validator("cache_dir")
    @classmethod
    def _expand(cls, path: Path) -> Path:
        return path.expanduser()


def check_url(url: str) -> str:
    """The URL itself, or a ValueError that shows it without its password."""
    if urlsplit(url).scheme not in REDIS_SCHEMES:
        raise ValueError(
            f"{hide_password(url)!r} is no Redis URL; it starts with redis://, rediss:// (TLS) "
            "or unix:///path/to/socket"
        )
    return url


def hide_password(url: str) -> str:
    """The URL as it may be shown to people: `redis://user:***@host`."""
    url = re.sub(r"(?i)([?&][^=&]*password=)[^&#]*", r"\1***", url)
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = quote(parts.username or "", safe="")
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once.

    Raises:
        ConfigurationError: a variable has a value that cannot work; names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ConfigurationError("; ".join(_explain(problem) for problem in problems)) from None


def _explain(problem: Any) -> str:
    """One line about one variable; URLs are not repeated, they may hold a password."""
    name = str(problem["loc"][0])
    reason = problem["msg"].removeprefix("Value error, ")
    shown = "" if name.endswith(("url", "urls")) else f"={problem['input']!s:.80}"
    return f"SKYNET_{name.upper()}{shown}: {reason}"
