"""The command `batch`: many requests from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from skynet.cli import terminal
from skynet.cli.options import interruptible
from skynet.cli.root import main
from skynet.cli.serve import cluster_option, named_urls, require_gateway

if TYPE_CHECKING:
    from skynet.gateway.batch.runner import Counts


@main.command()
@click.argument("requests", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File of the answers; those that it has are not asked for again.",
)
@click.option(
    "--errors",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of requests that failed.  [default: the output's name with .errors.jsonl]",
)
@cluster_option
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1),
    help="Seconds after which requests without an answer fail.  [default: none]",
)
def batch(
    requests: Path,
    output: Path,
    errors: Path | None,
    named: tuple[str, ...],
    timeout_s: float | None,
) -> None:
    """Answer the requests of a file, after those that somebody waits for.

    REQUESTS has a request of OpenAI's batches in each line:

    \b
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
         "body": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}}

    Answers come in the order in which they are ready. The same command continues a batch that was
    interrupted; remove the file of errors to try those again.
    """
    import asyncio

    require_gateway()
    if errors is None:
        errors = output.with_name(f"{output.stem}.errors.jsonl")
    with interruptible(), terminal.counter("requests") as show:
        counts = asyncio.run(_run(requests, output, errors, named, timeout_s, show))
    terminal.err.print(
        f"{counts.completed} answers in {output}"
        + (f", {counts.failed} errors in {errors}" if counts.failed else ""),
        highlight=False,
        markup=False,
    )
    if counts.failed:
        raise SystemExit(1)


async def _run(
    requests: Path,
    output: Path,
    errors: Path,
    named: tuple[str, ...],
    timeout_s: float | None,
    show: terminal.Counter,
) -> Counts:
    import asyncio

    from skynet.gateway.batch.runner import BatchRunner
    from skynet.gateway.clusters import Clusters
    from skynet.gateway.config import GatewayConfig
    from skynet.gateway.gateway import Gateway
    from skynet.gateway.run import Origin

    clusters = Clusters(named_urls(named) or {"": None})
    deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
    try:
        runner = BatchRunner(
            Gateway(clusters, GatewayConfig()),
            requests,
            output,
            errors,
            Origin(f"batch-{requests.name}"[:128], "batch"),
            lambda counts: show(counts.done, counts.total),
            deadline,
        )
        async with clusters.reading():
            return await runner.run()
    finally:
        clusters.close()
