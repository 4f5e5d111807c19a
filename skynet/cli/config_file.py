"""Which settings file a command reads: the one that is named, or skynet.toml of this directory.

Only the command line looks into its directory. Workers that it starts are told the path.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from skynet.errors import ConfigurationError
from skynet.settings_sources import CONFIG_VARIABLE, FILE_NAME


def use_config_file(named: str | None = None) -> None:
    """Name the file in `SKYNET_CONFIG`, for this process and those that it starts.

    named: on the command line; else `SKYNET_CONFIG` counts, else the directory's file.

    Raises:
        ConfigurationError: the directory's file can be written by another user.
    """
    path = os.environ.get(CONFIG_VARIABLE) if named is None else named
    if path is None and os.path.lexists(FILE_NAME):
        _check_owner(Path(FILE_NAME))
        path = FILE_NAME
    if path:
        os.environ[CONFIG_VARIABLE] = str(Path(path).expanduser().absolute())
    elif named is not None:
        os.environ[CONFIG_VARIABLE] = ""


def _check_owner(path: Path) -> None:
    """Its Redis would get the prompts: in /tmp, say, anyone can put a file in the way."""
    try:
        about = path.stat()
    except OSError as error:
        raise ConfigurationError(f"{path.absolute()}: {error.strerror}") from None
    if about.st_uid not in (os.getuid(), 0) or about.st_mode & stat.S_IWOTH:
        raise ConfigurationError(
            f"{path.absolute()} can be written by another user, so it is not read by itself: name "
            f"it with --config {path} if you trust it, or remove it"
        )
