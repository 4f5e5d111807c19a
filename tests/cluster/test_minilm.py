"""A real model for embeddings: its vectors, and a search with them, are those of Transformers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import transformers

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.local.cluster import LocalCluster
from skynet.tokenizer.text import Text

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

WHO = ("A cat", "The old gardener", "My bank", "A red bicycle", "The ferry to the island", "She")
WHAT = ("sleeps", "waters the roses", "raised its fees", "was stolen", "leaves at noon", "sings")
WHERE = (
    "",
    " on the sofa",
    " behind the church",
    " without telling anybody, as it had done every year since the war",
    " in Lisbon",
    " because of the storm",
    " again",
)
SENTENCES = [f"{who} {what}{where}." for who, what, where in product(WHO, WHAT, WHERE)]
QUERIES = ["When does the boat go?", "pets at rest", "costs of an account", "theft"]
TOLERANCE = 1e-5


def reference(checkpoint: Checkpoint, texts: list[str]) -> np.ndarray:
    """(texts, 384): Transformers, each text alone, the mean of its tokens, length 1."""
    text = Text(checkpoint.text_files())
    model = transformers.AutoModel.from_pretrained(checkpoint.path, dtype=torch.float32).eval()
    vectors = []
    with torch.inference_mode():
        for each in texts:
            states = model(torch.tensor([text.encode(each)])).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy())
    return np.stack(vectors)


def test_vectors_and_search(minilm_checkpoint: Checkpoint) -> None:
    # Given a few hundred sentences, some queries, and their vectors by Transformers
    texts = SENTENCES + QUERIES
    assert len(texts) == 256
    expected = reference(minilm_checkpoint, texts)
    # When a cluster of 2 stages x 2 shards embeds all at once
    with LocalCluster("minilm", 2, 2, "float32", num_slots=64) as running:
        asked = running.client.submit_prompts(texts, task="embed")
        vectors = np.array([request.get(timeout=200).embedding for request in asked], np.float32)
    # Then all vectors are those of Transformers
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE, rtol=0)
    # And every query finds the sentences in the same order, but for those as near as rounding
    count = len(SENTENCES)
    for vector, query in zip(vectors[count:], expected[count:], strict=True):
        order = np.argsort(-(vectors[:count] @ vector), kind="stable")
        nearness = expected[:count] @ query
        assert order[0] == np.argmax(nearness)
        assert (np.diff(nearness[order]) < TOLERANCE).all()
    # And a search makes sense
    best = [SENTENCES[int(np.argmax(vectors[:count] @ vector))] for vector in vectors[count:]]
    assert "ferry" in best[0]
    assert "cat sleeps" in best[1]
    assert "fees" in best[2]
    assert "stolen" in best[3]
