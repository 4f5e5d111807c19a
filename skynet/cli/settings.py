"""The command `settings`: the settings in effect, and where each comes from."""

from __future__ import annotations

import json
from typing import Any

import click

from skynet.cli import terminal
from skynet.cli.options import json_option
from skynet.cli.root import main
from skynet.settings_sources import config_file, variable_of


@main.command("settings")
@json_option
def show_settings(as_json: bool) -> None:
    """Show every setting and where its value comes from.

    That is its default, the settings file or the environment, which wins over the file. Passwords
    are hidden. A file is read if --config or SKYNET_CONFIG names it, else skynet.toml of this
    directory if there is one; `celery -A skynet worker` and Python programs read a file only if
    SKYNET_CONFIG names it.
    """
    from skynet.settings import setting_sources, settings

    values = {name: _shown(name, value) for name, value in settings()}
    sources = setting_sources()
    if as_json:
        path = config_file()
        shown = {name: {"value": value, "source": sources[name]} for name, value in values.items()}
        click.echo(json.dumps({"file": str(path) if path else None, "settings": shown}))
        return
    rows = [
        (variable_of(name), "unset" if value is None else f"{value}", sources[name])
        for name, value in values.items()
    ]
    terminal.print_table(("variable", "value", "source"), rows)


def _shown(name: str, value: Any) -> Any:
    """The value as JSON has it, without a password."""
    from skynet.redis_url import hide_password

    if isinstance(value, dict):
        return {key: hide_password(url) for key, url in value.items()}
    if name.endswith(("url", "urls")):
        return hide_password(value) if isinstance(value, str) else list(map(hide_password, value))
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
