"""Files of tied models: with a head that differs, with copies, with one of both.

Transformers decides what a file means: it ties tensors that are equal or missing, and no others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Checkpoint, cluster_of, last_logits
from model_families import ENCODERS
from references import save_random_encoder, save_random_model
from safetensors.torch import load_file, save_file
from seq2seq import TEXTS, decoder_logits, encode, make_translator

from skynet.architecture.tensors import staged_tensors
from skynet.check import check_model
from skynet.checkpoint import checkpoint as opening
from skynet.wire.step import Row, TextTask

STAGE = 99
PROMPT = [5, 6, 7, 100, 2, 9, 11, 3]
Tensors = dict[str, torch.Tensor]
Tied = Iterable[tuple[str, str]]  # another name, and that which save_pretrained gives the tensor


def differing(tensors: Tensors, tied: Tied) -> Tensors:
    """Every name has a tensor, and no two are alike."""
    made = {
        name: tensors[source] + 0.3 * torch.randn_like(tensors[source]) for name, source in tied
    }
    return tensors | made


def copied(tensors: Tensors, tied: Tied) -> Tensors:
    """Every name has a tensor, and all are alike."""
    return tensors | {name: tensors[source].clone() for name, source in tied}


def renamed(tensors: Tensors, tied: Tied) -> Tensors:
    """Each tied tensor has the last of its possible names, and no other."""
    kept = {source: name for name, source in tied}
    return {kept.get(name, name): tensor for name, tensor in tensors.items()}


FILES = [differing, copied, renamed]
Rewrite = Callable[[Tensors, Tied], Tensors]


def rewritten(directory: Path, model: Any, rewrite: Rewrite) -> tuple[Any, Checkpoint]:
    """Transformers' model of the changed file, and SkyNet's checkpoint of it."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tied = model.all_tied_weights_keys.items()
    save_file(rewrite(tensors, tied), file, metadata={"format": "pt"})
    model_of_file, loading_info = type(model).from_pretrained(directory, output_loading_info=True)
    assert not loading_info["missing_keys"]
    checkpoint = Checkpoint(directory)
    # Tied tensors are staged once, unless they differ.
    count = len(tensors) + (len(tied) if rewrite is differing else 0)
    assert len(staged_tensors(checkpoint.arch)) <= count
    return model_of_file.eval(), checkpoint


@pytest.mark.parametrize("rewrite", FILES)
@pytest.mark.parametrize("family", ["bloom", "falcon", "gpt2", "llama", "opt", "arcee", "glm"])
def test_a_decoder(family: str, rewrite: Rewrite, tmp_path: Path) -> None:
    # Given a file of a tied model
    fields: dict[str, Any] = {"tie_word_embeddings": True}
    fields |= {"word_embed_proj_dim": 28} if family == "opt" else {}
    model, _ = save_random_model(family, fields, tmp_path)
    transformers_model, checkpoint = rewritten(tmp_path, model, rewrite)
    # When it runs split
    cluster = cluster_of(checkpoint, 1, 2)
    try:
        logits = last_logits(cluster, checkpoint.arch, PROMPT, STAGE)
    finally:
        cluster.close()
    # Then the logits are those of Transformers
    with torch.no_grad():
        expected = transformers_model(torch.tensor([PROMPT])).logits[0, -1].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert checkpoint.arch.tied == (rewrite is not differing)


@pytest.mark.parametrize("rewrite", FILES)
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder(family: str, rewrite: Rewrite, tmp_path: Path) -> None:
    # Given a file of a masked language model, whose bias may be tied too
    model = save_random_encoder(family, "ForMaskedLM", {}, tmp_path).model
    transformers_model, checkpoint = rewritten(tmp_path, model, rewrite)
    # When a masked token is predicted, split
    row = Row(0, 0, tuple(PROMPT), len(PROMPT), text_task=TextTask("fill-mask", positions=(3,)))
    cluster = cluster_of(checkpoint, 1, 2)
    try:
        candidates = cluster.step([row], STAGE)[0]
    finally:
        cluster.close()
    # Then the logits are those of Transformers
    with torch.no_grad():
        expected = transformers_model(torch.tensor([PROMPT])).logits[0, 3].numpy()
    for part in candidates:
        np.testing.assert_allclose(part.logits, expected[part.ids], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rewrite", FILES)
@pytest.mark.parametrize("family", ["bart", "m2m_100", "marian", "mt5", "pegasus", "t5"])
def test_an_encoder_decoder(family: str, rewrite: Rewrite, tmp_path: Path) -> None:
    # Given a file of a model that ties three tables and the head
    model = make_translator(
        family, {"tie_word_embeddings": True, "own_head": False}, tmp_path
    ).model
    transformers_model, checkpoint = rewritten(tmp_path, model, rewrite)
    # When it runs split
    text, tokens = TEXTS[0], [7, 100, 3]
    cluster = cluster_of(checkpoint, 2, 2)
    try:
        encode(cluster, [text], STAGE)
        predicted = decoder_logits(cluster, 0, len(text), tokens, STAGE)
    finally:
        cluster.close()
    # Then the logits are those of Transformers
    with torch.no_grad():
        given = torch.tensor([tokens])
        expected = (
            transformers_model(torch.tensor([text]), decoder_input_ids=given).logits[0, -1].numpy()
        )
    np.testing.assert_allclose(predicted[-1], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "arcee"])
def test_a_check_reads_the_head_that_the_file_has(
    monkeypatch: pytest.MonkeyPatch, family: str, tmp_path: Path
) -> None:
    # Given a tied model whose head differs
    model, _ = save_random_model(family, {"tie_word_embeddings": True}, tmp_path)
    rewritten(tmp_path, model, differing)
    # When / Then both sides use it
    report = check_model(str(tmp_path), 1, 2)
    assert report.equal, "\n".join(report.lines())
    # When SkyNet takes it for a copy / Then the check reports the head
    monkeypatch.setattr(opening, "same_bytes", lambda one, other: True)
    report = check_model(str(tmp_path), 1, 2)
    assert [place.name for place in report.differing] == ["head"]


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_an_encoder_that_is_not_tied(family: str, tmp_path: Path) -> None:
    # Given a masked language model with an untied head
    model = save_random_encoder(family, "ForMaskedLM", {"tie_word_embeddings": False}, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    # When / Then
    report = check_model(str(tmp_path), 1, 2)
    assert report.equal, "\n".join(report.lines())
    assert not model.checkpoint.arch.tied
