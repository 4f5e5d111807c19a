"""The command `serve`: OpenAI's API over HTTP."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skynet.cli import terminal
from skynet.cli.options import interruptible, model_options, shape_of
from skynet.cli.root import main
from skynet.errors import ConfigurationError

if TYPE_CHECKING:
    from skynet.gateway.config import GatewayConfig
    from skynet.gateway.keys import Keys
    from skynet.local.cluster import LocalCluster

MIB = 2**20
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
ENDS_S = 1.0  # between looks at the workers of --model

cluster_option = click.option(
    "--cluster",
    "named",
    metavar="NAME=URL",
    multiple=True,
    help="The cluster at this Redis URL has the model NAME; repeatable.  [default: "
    "SKYNET_CLUSTER_URLS, or SKYNET_REDIS_URL]",
)


@main.command()
@click.option(
    "--model",
    help="Start a cluster of this model on this machine, as `skynet up` does, and serve that.  "
    "[default: serve the cluster at SKYNET_REDIS_URL]",
)
@cluster_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--api-keys",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keys of users, one in each line, or a name and a key.  [default: SKYNET_API_KEYS, or "
    "one that is made and printed]",
)
@click.option(
    "--admin-keys",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keys of administrators, who may also manage the cluster.  [default: SKYNET_ADMIN_KEYS]",
)
@click.option("--no-auth", is_flag=True, help="Ask for no keys.")
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin use the gateway, as in http://localhost:3000; repeatable.",
)
@click.option(
    "--open-metrics", is_flag=True, help="Ask for no key at /metrics and /cluster/metrics."
)
@click.option(
    "--max-body-mib",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="Longest body of a request, in MiB.",
)
@click.option(
    "--receive-s",
    type=click.FloatRange(1, 3600),
    default=60,
    show_default=True,
    help="Longest time to receive a request's head, and its body, in seconds.",
)
@click.option(
    "--drain-s",
    type=click.FloatRange(0, 3600),
    default=60,
    show_default=True,
    help="After SIGTERM, longest time for open answers to end, in seconds.",
)
@click.option(
    "--batch-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of files and batches.  [default: batches in SKYNET_CACHE_DIR]",
)
@click.option(
    "--batch-gib",
    type=click.FloatRange(0, 65536),
    default=4,
    show_default=True,
    help="Room for files of batches, in GiB; 0: no batches.",
)
@model_options
def serve(model: str | None, named: tuple[str, ...], **options: Any) -> None:
    """Serve OpenAI's API over HTTP, with a page to watch and to chat.

    On this machine, from nothing:

    \b
        skynet serve --model smollm2 --stages 1 --shards 2

    For the cluster at SKYNET_REDIS_URL, and for several clusters, each with a model:

    \b
        skynet serve
        skynet serve --cluster qwen3=redis://a/0 --cluster smollm2=redis://b/0

    Several gateways may serve the same clusters. On SIGTERM or Ctrl-C the gateway takes no more
    requests, and ends when open answers have ended; a second signal cuts them.
    """
    require_gateway()
    shape, urls = shape_of(options), named_urls(named)
    config, made = _config(**options)
    with ExitStack() as stack:
        watch: Callable[[], None] | None = None
        if model is not None:
            cluster = _local(model, shape)
            stack.callback(cluster.stop)
            urls = {Path(model).name: cluster.url, **urls}
            watch = lambda: _restart_failed(cluster)  # noqa: E731
        _run(urls or {"": None}, config, made, watch)


def _run(
    urls: dict[str, Any], config: GatewayConfig, made: str, watch: Callable[[], None] | None
) -> None:
    """Serve until told to end. watch: called now and then in a thread."""
    import asyncio
    import logging
    from dataclasses import replace

    from skynet.gateway.app import create_app
    from skynet.gateway.clusters import Clusters
    from skynet.gateway.memory import share_heaps
    from skynet.gateway.server import listen
    from skynet.gateway.server import serve as serve_app
    from skynet.settings import settings

    share_heaps()
    logging.basicConfig(level=settings().log_level, format=LOG_FORMAT)
    listener = listen(config)
    config = replace(config, port=listener.getsockname()[1])
    app = create_app(Clusters(urls), config)
    ended = threading.Event()
    if watch is not None:
        threading.Thread(target=_repeat, args=(watch, ended), daemon=True).start()
    try:
        asyncio.run(serve_app(app, listener, lambda: _print_start(config, made, list(urls))))
    finally:
        ended.set()
        terminal.err.print("Shutting down.")


def _repeat(call: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(ENDS_S):
        call()


def _local(model: str, shape: dict[str, Any]) -> LocalCluster:
    """A cluster on this machine that has started."""
    from skynet.local.cluster import LocalCluster

    with interruptible(), terminal.progress() as progress:
        cluster = LocalCluster(model, **shape, elastic=True, progress=progress)
        cluster.start()
    return cluster


def _restart_failed(cluster: LocalCluster) -> None:
    for name in cluster.processes.failed():
        terminal.err.print(f"[red]{name} has ended; starting it again[/]")
        cluster.processes.restart(name)


def require_gateway() -> None:
    """Raise ConfigurationError if the extra `gateway` is not installed."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"{error.name} is not installed: pip install 'skynet-celery[gateway]'"
        ) from None


def named_urls(named: Iterable[str]) -> dict[str, Any]:
    """Redis URLs by model, of --cluster or of the settings."""
    from skynet.settings import check_url, settings

    urls: dict[str, Any] = {}
    for each in named:
        name, _, url = each.partition("=")
        if not name or not url:
            raise click.UsageError("--cluster: expected NAME=URL, as in qwen3=redis://host/0")
        try:
            check_url(url)
        except ValueError as error:
            raise ConfigurationError(f"--cluster {name}: {error}") from None
        urls[name] = url
    return urls or dict(settings().cluster_urls)


def _config(
    *,
    host: str,
    port: int,
    api_keys: Path | None,
    admin_keys: Path | None,
    no_auth: bool,
    cors_origins: tuple[str, ...],
    open_metrics: bool,
    max_body_mib: int,
    receive_s: float,
    drain_s: float,
    batch_dir: Path | None,
    batch_gib: float,
) -> tuple[GatewayConfig, str]:
    """The configuration, and the key that was made for this start, "" if none."""
    from skynet.gateway.config import GatewayConfig, is_loopback
    from skynet.settings import settings

    directory = (batch_dir or settings().cache_dir / "batches") if batch_gib else None
    keys, made = _keys(api_keys, admin_keys, no_auth)
    config = GatewayConfig(
        host=host,
        port=port,
        keys=keys,
        cors_origins=cors_origins,
        max_body_bytes=max_body_mib * MIB,
        receive_s=receive_s,
        drain_s=drain_s,
        open_metrics=open_metrics or (no_auth and is_loopback(host)),
        batch_dir=directory,
        batch_bytes=int(batch_gib * 1024 * MIB),
    )
    return config, made


def _keys(api_keys: Path | None, admin_keys: Path | None, no_auth: bool) -> tuple[Keys | None, str]:
    """The keys of files and settings; without any, one that is made."""
    from skynet.gateway.keys import Keys, keys_of_lines, new_key, read_keys
    from skynet.settings import settings

    def keys_of(path: Path | None, name: str) -> dict[str, str]:
        if path is not None:
            return read_keys(path)
        secret = getattr(settings(), name)
        if secret is None:
            return {}
        return keys_of_lines(secret.get_secret_value().split(","), f"SKYNET_{name.upper()}")

    users, admins = keys_of(api_keys, "api_keys"), keys_of(admin_keys, "admin_keys")
    if no_auth:
        if users or admins:
            raise click.UsageError("--no-auth, and keys are given: leave one out")
        return None, ""
    if users or admins:
        return Keys(users, admins), ""
    made = new_key()
    return Keys({}, {made: "made"}), made


def _print_start(config: GatewayConfig, made: str, names: list[str]) -> None:
    """Print where the gateway is, its key, and a command that uses it."""
    key = made or "$KEY"
    authorization = [] if config.keys is None else ["-H", f"Authorization: Bearer {key}"]
    body = json.dumps({"messages": [{"role": "user", "content": "What is the capital of France?"}]})
    served = ", ".join(filter(None, names)) or "the cluster at SKYNET_REDIS_URL"
    terminal.err.print(f"Serving {served}", highlight=False, markup=False)
    lines = [("Page", f"{config.url}/"), ("API", f"{config.url}/v1")]
    if made:
        lines.append(("Key", f"{made}  (made for this start; --api-keys FILE has lasting ones)"))
    elif config.keys is None and not config.is_local:
        lines.append(("Key", "none: everybody who reaches this address may use it"))
    command = ["curl", f"{config.url}/v1/chat/completions", *authorization]
    command += ["-H", "Content-Type: application/json", "-d", body]
    quoted = shlex.join(command)
    if not made:  # the shell has to expand it
        quoted = quoted.replace(f"'Authorization: Bearer {key}'", f'"Authorization: Bearer {key}"')
    lines.append(("Try", quoted))
    for name, text in lines:
        terminal.err.print(f"{name:<6} {text}", highlight=False, markup=False, soft_wrap=True)
    terminal.err.print("Press Ctrl-C to stop.")
