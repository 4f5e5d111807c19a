"""Where settings come from: the environment, and before it a TOML file that is named explicitly.

Knows the settings by their names only. A file is read only if `SKYNET_CONFIG` names it: a program
that imports SkyNet reads no file of the directory it was started in.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from skynet.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings, TomlConfigSettingsSource

VARIABLE_PREFIX = "SKYNET_"
CONFIG_VARIABLE = "SKYNET_CONFIG"
FILE_NAME = "skynet.toml"

# Kubernetes and Docker links describe a service of the name X by variables X_SERVICE_HOST, X_PORT,
# X_PORT_6379_TCP_ADDR, ...: a service named skynet-redis is not a misspelt setting.
_SERVICE = re.compile(r"(\w+)_SERVICE_HOST")


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return f"{VARIABLE_PREFIX}{name.upper()}"


def config_file() -> Path | None:
    """The absolute path in `SKYNET_CONFIG`; None if that is unset or empty.

    Raises:
        ConfigurationError: the file does not exist.
    """
    named = os.environ.get(CONFIG_VARIABLE, "")
    if not named:
        return None
    path = Path(named).expanduser().absolute()
    if not path.is_file():
        raise ConfigurationError(f"settings file {path} ({CONFIG_VARIABLE}, --config) is missing")
    return path


def file_source(cls: type[BaseSettings], path: Path) -> TomlConfigSettingsSource:
    """The settings in a file.

    Raises:
        ConfigurationError: the file cannot be read, or has a name that is no setting.
    """
    from pydantic_settings import TomlConfigSettingsSource

    try:
        source = TomlConfigSettingsSource(cls, path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    unknown = [name for name in source.toml_data if name not in cls.model_fields]
    if unknown:
        hints = "; ".join(f"{name!r:.80}{_hint(name, cls.model_fields)}" for name in unknown)
        raise ConfigurationError(f"{path}: no such setting: {hints}")
    return source


def source_of(name: str, path: Path | None, in_file: Collection[str]) -> str:
    """Where a setting's value comes from: `environment`, the path of a file, or `default`."""
    if variable_of(name) in _variables():
        return "environment"
    return str(path) if name in in_file else "default"


def unknown_variables(names: Collection[str]) -> Iterator[str]:
    """A sentence about each variable with SkyNet's prefix that is no setting."""
    variables = _variables()
    services = [match[1] for match in map(_SERVICE.fullmatch, variables) if match]
    of_services = tuple(f"{name}_{part}" for name in services for part in ("SERVICE_", "PORT"))
    known = {CONFIG_VARIABLE, *map(variable_of, names)}
    for variable in sorted(variables - known):
        if not variable.startswith(of_services):
            hint = _hint(variable, sorted(known)) or "; docs/settings.md lists the settings"
            yield f"environment variable {variable:.80} is no setting of SkyNet{hint}"


def _variables() -> set[str]:
    """The variables with SkyNet's prefix, in capitals: case does not matter to pydantic."""
    return {name.upper() for name in os.environ if name.upper().startswith(VARIABLE_PREFIX)}


def _hint(unknown: str, names: Collection[str]) -> str:
    """The name that was probably meant; "" if none is similar."""
    by_stem = {name.upper().removeprefix(VARIABLE_PREFIX): name for name in names}
    stem = unknown.upper().removeprefix(VARIABLE_PREFIX)
    near = get_close_matches(stem, by_stem, n=1)
    return f"; did you mean {by_stem[near[0]]}?" if near else ""
