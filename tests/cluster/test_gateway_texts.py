"""Embeddings and reranking over HTTP: the vectors of a real model, in OpenAI's form."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
import uvicorn

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.gateway.app import create_app
from skynet.gateway.clusters import Clusters
from skynet.gateway.config import GatewayConfig
from skynet.gateway.server import listen
from skynet.local.cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

TEXTS = ["The ferry to the island leaves at noon.", "A cat sleeps on the sofa.", "My bank."]


@contextlib.contextmanager
def served(url: str) -> Iterator[str]:
    """A gateway over this cluster in a thread; yields its URL."""
    config = GatewayConfig(port=0)
    listener = listen(config)
    app = create_app(Clusters({"": url}), config)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    run = asyncio.run
    thread = threading.Thread(target=lambda: run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_vectors_and_ranks_over_http(minilm_checkpoint: Checkpoint) -> None:
    # Given a cluster of one stage and two shards, its vectors, and a gateway
    with LocalCluster("minilm", 1, 2, "float32") as running:
        asked = running.client.submit_prompts(TEXTS, task="embed")
        expected = [request.get(timeout=200).embedding for request in asked]
        with served(running.url) as url, httpx2.Client(base_url=url, timeout=200) as http:
            # When they are asked for over HTTP
            (model,) = http.get("/v1/models").json()["data"]
            body = {"model": model["id"], "input": TEXTS}
            embedded = http.post("/v1/embeddings", json=body)
            query = {"query": "When does the boat go?", "documents": TEXTS}
            ranked = http.post("/v1/rerank", json=query)
            refused = http.post("/v1/responses", json={"input": "Hello"})
    # Then they are the same, the ferry is nearest to the boat, and an encoder does not chat
    assert embedded.status_code == 200, embedded.text
    vectors = [each["embedding"] for each in embedded.json()["data"]]
    np.testing.assert_allclose(vectors, expected, atol=1e-6, rtol=0)
    assert ranked.json()["results"][0]["index"] == 0
    assert refused.status_code == 400
    assert "chat template" in refused.json()["error"]["message"]
