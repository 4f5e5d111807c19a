"""Gateways as real processes, and a client of theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
from openai import OpenAI
from processes import command, wait_for

KEYS = "SKYNET_API_KEYS"
USER, ADMIN = "user-key-0001", "admin-key-0001"


@dataclass(frozen=True)
class GatewayProcess:
    """One gateway that takes requests."""

    process: psutil.Process
    url: str
    log: Path

    def openai(self, key: str = USER) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def http(self, key: str = USER) -> httpx2.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60)


@contextmanager
def gateway(
    url: str, directory: Path, name: str = "gateway", *options: str, **environment: str
) -> Iterator[GatewayProcess]:
    """`skynet serve` over the cluster at this Redis URL, on a free port."""
    log = directory / f"{name}.log"
    words = ("skynet.cli", "serve", "--port", "0", "--batch-dir", str(directory / "batches"))
    variables = {
        "SKYNET_REDIS_URL": url,
        "SKYNET_API_KEYS": USER,
        "SKYNET_ADMIN_KEYS": ADMIN,
        **environment,
    }
    with command(*words, *options, environment=variables, log=log, cwd=directory) as process:
        address = wait_for(
            "a gateway that listens",
            lambda: re.search(r"API +(http\S+)/v1", log.read_text(errors="replace")),
        )
        assert address is not None
        yield GatewayProcess(psutil.Process(process.pid), address[1], log)


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The id and the data of each event of a stream, up to [DONE]."""
    event_id = ""
    for line in lines:
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith("data: {"):
            yield event_id, json.loads(line[6:])
            event_id = ""


def content_of(chunk: Mapping[str, Any]) -> str:
    """The text that a chunk of a chat adds to its first choice."""
    return "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
