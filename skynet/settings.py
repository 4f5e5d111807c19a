"""Every setting, its default and its limits.

Each field is an environment variable with the prefix `SKYNET_`, or a name in the settings file.
Built once (`settings()`), frozen, validated; an invalid value is refused with its variable, or its
file and name.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from skynet.errors import ConfigurationError
from skynet.redis_url import RedisURL
from skynet.settings_sources import (
    VARIABLE_PREFIX,
    config_file,
    file_source,
    source_of,
    unknown_variables,
    variable_of,
)

logger = logging.getLogger(__name__)

# No character that has a meaning in patterns of Redis or in formats.
PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,62}:")


class Settings(BaseSettings):
    """The settings of a SkyNet process."""

    model_config = SettingsConfigDict(env_prefix=VARIABLE_PREFIX, frozen=True, extra="ignore")

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="URL of the Redis server: redis://, rediss://, unix:// or sentinel://",
    )
    cluster_urls: dict[str, str] = Field(
        {},
        description="Redis URLs of other clusters by the names of their models, for `model` "
        "of submit_prompt and for skynet serve",
    )
    api_keys: SecretStr | None = Field(
        None,
        description="keys of users of skynet serve, separated by commas; unset: as its options say",
    )
    admin_keys: SecretStr | None = Field(
        None, description="keys of administrators of skynet serve, separated by commas"
    )
    prefix: str = Field(
        "skynet:",
        description="first part of all keys, queues and channels; ends with a colon",
    )
    exchange: Literal["auto", "direct", "redis"] = Field(
        "auto",
        description="how shards of a stage exchange partials: by direct links where possible "
        "(auto, direct), or through Redis; auto: no TCP links with rediss://",
    )
    exchange_listen: str | None = Field(
        None,
        description="host:port where a shard worker accepts direct links by TCP; port 0: any; "
        "unset: links on one machine only",
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
        description="kernels of products with float32 activations and of decoding steps; "
        "auto: the CPU's best; torch: PyTorch's operators",
    )
    device: str = Field("cpu", description="torch device of a shard worker: cpu, cuda, cuda:1")
    max_batch_tokens: int = Field(
        512, ge=1, description="maximum number of prompt tokens in a step"
    )
    prefix_cache: bool = Field(
        True,
        description="use the keys and values of earlier prompts for prompts that begin alike",
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
    exchange_dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="dtype of partials in the exchange; auto: the dtype they were computed in; "
        "int8: blocks of 32 with a scale",
    )
    tile_bytes: int = Field(
        512 * 1024,
        ge=4096,
        le=64 * 2**20,
        description="bytes of a tile, the unit in which weights are stored in Redis",
    )
    cache_dir: Path = Field(
        Path("~/.cache/skynet"), description="directory of converted models and fetched weights"
    )
    tile_cache_gib: float = Field(
        64,
        ge=0,
        description="GiB of fetched weights to keep on this machine's disk, for all workers "
        "together; 0: none",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file."""
        path = config_file()
        return init_settings, env_settings, *([file_source(settings_cls, path)] if path else [])

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        return check_url(url)

    @field_validator("prefix")
    @classmethod
    def _literal_prefix(cls, prefix: str) -> str:
        if not PREFIX.fullmatch(prefix):
            raise ValueError(
                "use at most 64 letters, digits and _ . : / -, first a letter or digit, last a "
                "colon: SKYNET_PREFIX=skynet: or SKYNET_PREFIX=team-a:skynet:"
            )
        return prefix

    @field_validator("exchange_urls")
    @classmethod
    def _known_schemes(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_url(url) for url in urls)

    @field_validator("cluster_urls")
    @classmethod
    def _known_schemes_by_name(cls, urls: dict[str, str]) -> dict[str, str]:
        return {name: check_url(url) for name, url in urls.items()}

    @field_validator("exchange_listen")
    @classmethod
    def _listens(cls, address: str | None) -> str | None:
        if address and split_address(address)[0] in ("0.0.0.0", "::"):
            raise ValueError(
                "name an address of this machine that its peers can reach, not all of them"
            )
        return address

    @field_validator("cache_dir")
    @classmethod
    def _expand(cls, path: Path) -> Path:
        return path.expanduser()


def split_address(address: str) -> tuple[str, int]:
    """The host and the port of host:port, or of [IPv6]:port.

    Raises:
        ValueError: another form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("use host:port, as in 10.0.0.5:7400")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_url(url: str) -> str:
    """The URL, unchanged.

    Raises:
        ValueError: it cannot be used; the message hides the password.
    """
    RedisURL.parse(url)
    return url


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once. Logs a warning for each `SKYNET_` variable that is none.

    Raises:
        ConfigurationError: names the variables, or the file and names, with invalid values.
    """
    try:
        current = Settings()
    except ValidationError as error:
        sources = setting_sources()
        problems = (_explain(problem, sources) for problem in error.errors(include_url=False))
        raise ConfigurationError("; ".join(problems)) from None
    except SettingsError as error:  # a list that is not JSON; the message has the field's name
        names = [name for name in Settings.model_fields if f'"{name}"' in str(error)]
        variables = ", ".join(map(variable_of, names))
        raise ConfigurationError(f"{variables}: not a list in JSON, as in '[\"a\"]'") from None
    for problem in unknown_variables(Settings.model_fields):
        logger.warning("%s", problem)
    return current


def setting_sources() -> dict[str, str]:
    """Where the value of each setting comes from: see `source_of`."""
    path = config_file()
    in_file = file_source(Settings, path).toml_data if path else {}
    return {name: source_of(name, path, in_file) for name in Settings.model_fields}


def _explain(problem: Any, sources: dict[str, str]) -> str:
    """One value and its problem, without the values of URLs, which may hold a password."""
    name = str(problem["loc"][0])
    reason = problem["msg"].removeprefix("Value error, ")
    shown = "" if name.endswith(("url", "urls", "keys")) else f"={problem['input']!s:.80}"
    source = sources[name]
    written = variable_of(name) if source == "environment" else f"{source}: {name}"
    return f"{written}{shown}: {reason}"
