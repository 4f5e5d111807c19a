"""The commands `requests` and `requests cancel`: the unfinished requests in Redis."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from skynet.cli import terminal
from skynet.cli.completion import complete_requests
from skynet.cli.options import json_option
from skynet.cli.root import main
from skynet.errors import BadRequest, SkynetError

if TYPE_CHECKING:
    from skynet.store.requests import Requests

MAX_LISTED = 1000
SHOWN_ID = 8  # characters of an id in the table
UNREADABLE = {"state": "unreadable", "age_s": 0.0, "prompt_tokens": 0, "tokens": 0, "model": ""}


@main.group(invoke_without_command=True)
@json_option
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_LISTED),
    default=50,
    show_default=True,
    help="Longest list; the oldest requests come first.",
)
@click.pass_context
def requests(context: click.Context, as_json: bool, limit: int) -> None:
    """List the requests that have not ended, and say why they wait.

    \b
        skynet requests
        skynet requests cancel 3f2a9c01
        skynet requests cancel --all
    """
    if context.invoked_subcommand is not None:
        return
    from skynet.client.status import cluster_status
    from skynet.settings import settings
    from skynet.store.connection import connect, reachable
    from skynet.store.requests import Requests

    url = settings().redis_url
    with reachable(url), connect(url) as client:
        state = cluster_status(client, url, events=1)
        records = Requests(client, settings().result_expires_s)
        ids = records.open_ids()
        target = state["target"] or {}
        names = {target.get("model"): target.get("name")}
        listed = [_describe(records, request_id, names) for request_id in ids[:limit]]
    listed = [request for request in listed if request["state"] != "done"]
    if as_json:
        shown = {"open": len(ids), "waiting_for": state["waiting_for"], "requests": listed}
        click.echo(json.dumps(shown))
    else:
        _print(listed, len(ids), state["waiting_for"])


@requests.command("cancel")
@click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=complete_requests)
@click.option("--all", "all_of_them", is_flag=True, help="Cancel every request.")
@click.option("--yes", is_flag=True, help="Do not ask before --all.")
def cancel_requests(ids: tuple[str, ...], all_of_them: bool, yes: bool) -> None:
    """Cancel the requests whose ids start with ID, or all.

    A running request ends after its current step.
    """
    from skynet.cli.cluster import client_of_settings
    from skynet.client.generation import Generation
    from skynet.store.connection import reachable

    if bool(ids) == all_of_them:
        raise click.UsageError("give ids of `skynet requests`, or --all")
    with closing(client_of_settings()) as client:
        with reachable(client.url):
            unfinished = client.requests.open_ids()
        chosen = unfinished if all_of_them else [_find(unfinished, word) for word in ids]
        if all_of_them and chosen and not yes:
            click.confirm(f"Cancel {terminal.many(len(chosen), 'request')}?", abort=True, err=True)
        cancelled = sum(Generation(each, client).cancel() for each in dict.fromkeys(chosen))
    terminal.err.print(f"Cancelled {terminal.many(cancelled, 'request')}.", highlight=False)


def _find(unfinished: list[str], word: str) -> str:
    """The one id that starts with `word`."""
    matches = [request_id for request_id in unfinished if request_id.startswith(word)]
    if not word or not matches:
        raise BadRequest(f"no unfinished request has an id that starts with {word!r:.80}")
    if len(matches) > 1 and word not in matches:
        raise BadRequest(f"{len(matches)} ids start with {word!r:.80}: give more of the id")
    return word if word in matches else matches[0]


def _describe(records: Requests, request_id: str, names: dict[Any, Any]) -> dict[str, Any]:
    """An item of `skynet requests --json`. A record that is damaged or gone is unreadable."""
    try:
        record = records.read(request_id)
    except (ValueError, TypeError, KeyError, SkynetError):
        record = None
    if record is None:
        return {"id": request_id, **UNREADABLE}
    options = record.options
    return {
        "id": request_id,
        "state": "cancelling" if record.cancelled and record.state != "done" else record.state,
        "age_s": round(records.now() - record.created, 1),
        "seconds_left": round(record.deadline - records.now(), 1),
        "task": options.read["task"] if options.read else "generate",
        "prompt_tokens": len(record.prompt),
        "tokens": record.emitted,
        "max_tokens": 0 if options.read else options.max_tokens,
        "priority": record.priority,
        "model": names.get(record.model) or record.model[:12],
    }


def _print(listed: list[dict[str, Any]], num_open: int, waiting_for: list[str]) -> None:
    if not num_open:
        click.echo("No requests.")
        return
    rows = [
        (
            request["id"][:SHOWN_ID],
            request["state"],
            f"{request['age_s']:.0f} s",
            str(request["prompt_tokens"]),
            f"{request['tokens']} of {request['max_tokens']}" if request.get("max_tokens") else "",
            request["model"],
        )
        for request in listed
    ]
    terminal.print_table(("id", "state", "age", "prompt", "tokens", "model"), rows)
    if num_open > len(listed):
        click.echo(f"and {num_open - len(listed)} more; --limit shows them")
    for reason in waiting_for:
        text = f"They wait: {reason}"
        terminal.err.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
