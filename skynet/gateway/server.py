"""Runs the gateway in this process until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from skynet.errors import ConfigurationError
from skynet.gateway.config import GatewayConfig
from skynet.gateway.connection import IDLE_S, connection_class
from skynet.gateway.gateway import Gateway

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096
MAX_HEADER_BYTES = 64 * 1024
CUT_S = 3  # for streams that are cut to notice


class _Server(uvicorn.Server):
    """Leaves signals to `serve`: a gateway answers while it drains."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(config: GatewayConfig) -> socket.socket:
    """The socket that the gateway listens on; port 0 takes a free one.

    Raises:
        ConfigurationError: it cannot listen there.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((config.host, config.port))
        server.listen(2048)
    except OSError as error:
        server.close()
        raise ConfigurationError(
            f"--host {config.host} --port {config.port}: cannot listen there: {error}"
        ) from None
    return server


def server_of(app: FastAPI) -> uvicorn.Server:
    """The server of a gateway's application, which ends when it `should_exit`."""
    gateway: Gateway = app.state.gateway
    return _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            http=connection_class(gateway.config.receive_s),
            timeout_keep_alive=int(IDLE_S),
            timeout_graceful_shutdown=CUT_S,
        )
    )


async def serve(
    app: FastAPI, listener: socket.socket, started: Callable[[], None] = lambda: None
) -> None:
    """Serve until SIGTERM or Ctrl-C, then take no new requests, and end when answers have ended.

    started: called when requests are taken.
    """
    gateway: Gateway = app.state.gateway
    server = server_of(app)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    ending = asyncio.create_task(_end(told, gateway, server))
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if not serving.done():
            started()
        await serving
    finally:
        ending.cancel()


async def _end(told: asyncio.Event, gateway: Gateway, server: uvicorn.Server) -> None:
    await told.wait()
    told.clear()
    gateway.drain()
    if gateway.open_answers:
        logger.warning("ending: %d answers go on; a second signal cuts them", gateway.open_answers)
    idle = asyncio.create_task(gateway.wait_idle(gateway.config.drain_s))
    again = asyncio.create_task(told.wait())
    await asyncio.wait({idle, again}, return_when=asyncio.FIRST_COMPLETED)
    for task in (idle, again):
        task.cancel()
    if gateway.open_answers:
        gateway.is_ending = True
        logger.warning(
            "cutting %d answers: clients may take them up elsewhere", gateway.open_answers
        )
    server.should_exit = True
