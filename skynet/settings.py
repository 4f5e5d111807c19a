"""The only reader of the environment: every setting, its default and its limits.

Each field is an environment variable with the prefix `SKYNET_`. Built once (`settings()`), frozen,
validated; an invalid value is refused with the variable's name.
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
    """The settings of a SkyNet process."""

    model_config = SettingsConfigDict(env_prefix="SKYNET_", frozen=True, extra="ignore")

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="URL of the Redis server: redis://, rediss:// or unix://",
    )
    exchange_urls: tuple[str, ...] = Field(
        (), description="Redis servers of the exchange; stage i uses server i modulo their number"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="minimum level of log messages: DEBUG, INFO, WARNING or ERROR"
    )
    trace: bool = Field(False, description="send a Celery task event for every span of every shard")
    threads: int | None = Field(
        None, ge=1, description="compute threads of a shard worker; unset: its share of the cores"
    )
    kernels: Literal["auto", "avx512", "avx2", "neon", "torch"] = Field(
        "auto",
        description="kernels of products with bfloat16 weights; auto: the CPU's best; "
        "torch: PyTorch's operators",
    )
    device: str = Field("cpu", description="torch device of a shard worker: cpu, cuda, cuda:1")
    max_batch_tokens: int = Field(
        512, ge=1, description="maximum number of prompt tokens in a step"
    )
    max_waiting: int = Field(
        1024, ge=1, description="maximum number of waiting requests; more are refused"
    )
    request_timeout_s: float = Field(
        600, gt=0, description="default timeout of a request, in seconds"
    )
    result_expires_s: int = Field(
        86_400, ge=60, description="seconds that an answer is stored after its end"
    )
    step_timeout_s: float = Field(120, gt=0, description="timeout of a step, in seconds")
    exchange_timeout_s: float = Field(20, gt=0, description="seconds to wait for a peer's partial")
    exchange_spin_us: int = Field(
        300,
        ge=0,
        le=10_000,
        description="microseconds to poll for a peer's partial before sleeping",
    )
    lease_s: float = Field(
        3, ge=0.6, description="seconds without a sign of life until a worker counts as dead"
    )
    connect_timeout_s: float = Field(
        4, gt=0, description="seconds to wait for a connection to Redis"
    )
    chord_share: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="maximum share of a step's time for chords, with chord_span=auto",
    )
    exchange_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="dtype of partials in the exchange; auto: the dtype they were computed in",
    )
    tile_bytes: int = Field(
        512 * 1024,
        ge=4096,
        le=64 * 2**20,
        description="bytes of a tile, the unit in which weights are stored in Redis",
    )
    cache_dir: Path = Field(Path("~/.cache/skynet"), description="directory of converted models")

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
    """The URL, unchanged.

    Raises:
        ValueError: it is not a Redis URL; the message hides the password.
    """
    if urlsplit(url).scheme not in REDIS_SCHEMES:
        raise ValueError(
            f"{hide_password(url)!r} is not a Redis URL; use redis://, rediss:// (TLS) "
            "or unix:///path/to/socket"
        )
    return url


def hide_password(url: str) -> str:
    """The URL for messages: `redis://user:***@host`."""
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
        ConfigurationError: names the variables with invalid values.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ConfigurationError("; ".join(_explain(problem) for problem in problems)) from None


def _explain(problem: Any) -> str:
    """One variable and its problem, without the values of URLs, which may hold a password."""
    name = str(problem["loc"][0])
    reason = problem["msg"].removeprefix("Value error, ")
    shown = "" if name.endswith(("url", "urls")) else f"={problem['input']!s:.80}"
    return f"SKYNET_{name.upper()}{shown}: {reason}"
