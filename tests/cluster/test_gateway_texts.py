"""Embeddings and reranking over HTTP: the vectors of a real model, in OpenAI's form."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
import uvicorn
from checkpoints import letters, save_tokenizer
from references import save_random_encoder

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


def test_a_cross_encoder_ranks(tmp_path: Path) -> None:
    # Given BERT with one label and token types, and Transformers' scores of pairs of texts
    fields = {"num_labels": 1, "type_vocab_size": 2}
    model = save_random_encoder("bert", "ForSequenceClassification", fields, tmp_path)
    save_tokenizer(tmp_path, model_input_names=["input_ids", "token_type_ids"])
    query, documents = [5, 6, 7], [[9, 8, 130, 11], [12, 99], [44]]
    expected = []
    for document in documents:
        ids = torch.tensor([query + document])
        types = torch.tensor([[0] * len(query) + [1] * len(document)])
        with torch.no_grad():
            logits = model.model(ids, token_type_ids=types).logits
        expected.append(float(logits[0, 0].sigmoid()))
    # When a cluster of two shards scores them, in Python and over HTTP
    texts = [letters(document) for document in documents]
    with LocalCluster(str(tmp_path), 1, 2, "float32") as running:
        pairs = [(letters(query), text) for text in texts]
        asked = running.client.submit_prompts(pairs, task="rerank")
        scores = [request.get(timeout=200).score for request in asked]
        with served(running.url) as url, httpx2.Client(base_url=url, timeout=200) as http:
            body = {"query": letters(query), "documents": texts}
            ranked = http.post("/v1/rerank", json=body)
    # Then
    np.testing.assert_allclose(np.array(scores, float), expected, atol=1e-5, rtol=0)
    assert ranked.status_code == 200, ranked.text
    order = [each["index"] for each in ranked.json()["results"]]
    assert order == sorted(range(3), key=lambda index: -expected[index])


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
