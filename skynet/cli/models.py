"""Commands about the models staged in Redis: models, models verify, models remove."""

from __future__ import annotations

import json
import sys

import click

from skynet.cli import terminal
from skynet.cli.completion import complete_models
from skynet.cli.options import json_option
from skynet.cli.root import main


@main.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models staged at SKYNET_REDIS_URL.

    \b
        skynet models
        skynet models verify
        skynet models remove SmolLM2-135M-Instruct
    """
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from skynet.store.connection import connect, reachable
    from skynet.store.staged_models import list_models

    with reachable(), connect() as client:
        listed = [asdict(model) for model in list_models(client)]
    if as_json:
        click.echo(json.dumps({"models": listed}))
    else:
        terminal.print_models(listed)


@models.command("remove")
@click.argument("name", shell_complete=complete_models)
@click.option("--force", is_flag=True, help="Remove the model even if the cluster runs it.")
def remove_staged(name: str, force: bool) -> None:
    """Remove the staged model NAME, or whose digest starts with NAME.

    Says how many bytes are free then. The model that the cluster runs is not removed, unless
    --force.
    """
    from skynet.store.connection import connect, reachable
    from skynet.store.staged_models import find_model, remove_model

    with reachable(), connect() as client:
        model = find_model(client, name)
        remove_model(client, model, force=force)
    terminal.err.print(
        f"freed {model.num_bytes / 1e6:.1f} MB of {model.name} ({model.digest[:12]})",
        highlight=False,
    )


@models.command("verify")
@click.argument("name", default="", shell_complete=complete_models)
@json_option
def verify_staged(name: str, as_json: bool) -> None:
    """Verify the tiles of staged models.

    Verifies the model NAME, or whose digest starts with NAME, or all. The exit code is 1 if a tile
    or file is missing or corrupted, or if a weight is NaN or infinite, else 0.
    """
    from skynet.store.connection import connect, reachable
    from skynet.store.staged_models import find_model, list_models, verify_model

    with reachable(), connect() as client, terminal.progress(quiet=as_json) as progress:
        chosen = [find_model(client, name)] if name else list_models(client)
        verified = {model.digest: verify_model(client, model, progress) for model in chosen}
    if as_json:
        broken = {digest: result.broken for digest, result in verified.items()}
        bad_numbers = {digest: result.bad_numbers for digest, result in verified.items()}
        click.echo(json.dumps({"broken": broken, "bad_numbers": bad_numbers}))
    else:
        for model in chosen:
            terminal.print_verified(model.name, model.digest, verified[model.digest])
    if not all(result.is_good for result in verified.values()):
        sys.exit(1)
