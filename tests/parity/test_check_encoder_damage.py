"""`skynet check` of encoders with damaged weights in SkyNet: it names the layer and shard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checking import check_damaged, first, larger
from click.testing import CliRunner
from references import save_random_encoder

from skynet.checkpoint.fetch import CheckpointFetch
from skynet.cli import main

MASKED, CLASSIFIER = "ForMaskedLM", "ForSequenceClassification"
SECOND, BOTH = ["stage1.shard1"], ["stage1.shard0", "stage1.shard1"]


@pytest.mark.parametrize(
    ("family", "head", "tensor", "second", "place", "what", "shards"),
    [
        (
            "bert",
            "Model",
            "bert.encoder.layer.2.attention.self.query.weight",
            True,
            "layer 2",
            "attention",
            SECOND,
        ),
        (
            "modernbert",
            MASKED,
            "model.layers.1.mlp.Wo.weight",
            False,
            "layer 1",
            "MLP",
            ["stage0.shard0"],
        ),
        (
            "roberta",
            CLASSIFIER,
            "roberta.encoder.layer.3.attention.output.LayerNorm.bias",
            None,
            "layer 3",
            "MLP",
            BOTH,
        ),
        (
            "distilbert",
            "Model",
            "distilbert.transformer.layer.2.output_layer_norm.weight",
            None,
            "layer 2",
            "output",
            BOTH,
        ),
        (
            "electra",
            "Model",
            "electra.embeddings.word_embeddings.weight",
            True,
            "embedding",
            "rows of tokens",
            ["stage0.shard1"],
        ),
        (
            "electra",
            CLASSIFIER,
            "electra.embeddings_project.weight",
            None,
            "embedding",
            "output",
            ["stage0.shard0", "stage0.shard1"],
        ),
        ("bert", MASKED, "cls.predictions.decoder.bias", True, "head", "logits", SECOND),
        (
            "bert",
            MASKED,
            "cls.predictions.transform.dense.weight",
            None,
            "head",
            "logits",
            BOTH,
        ),
        ("bert", CLASSIFIER, "bert.pooler.dense.weight", None, "head", "class logits", ["stage1"]),
        (
            "roberta",
            CLASSIFIER,
            "classifier.out_proj.bias",
            None,
            "head",
            "class logits",
            ["stage1"],
        ),
        (
            "modernbert",
            "Model",
            "model.final_norm.weight",
            None,
            "last hidden states",
            "output",
            ["stage1"],
        ),
    ],
)
def test_damage_is_reported_where_it_is(
    tmp_path: Path,
    family: str,
    head: str,
    tensor: str,
    second: bool | None,
    place: str,
    what: str,
    shards: list[str],
) -> None:
    # Given
    save_random_encoder(family, head, {}, tmp_path)
    # When
    report = check_damaged(tmp_path, larger(tensor, second))
    # Then nothing else differs: the next layers got correct inputs
    assert first(report) == (place, what, shards)
    assert [place.name for place in report.differing] == [place]


def test_a_tied_embedding_is_reported_twice(tmp_path: Path) -> None:
    # Given rows of the second shard's vocabulary
    save_random_encoder("bert", MASKED, {}, tmp_path)
    # When
    report = check_damaged(tmp_path, larger("bert.embeddings.word_embeddings.weight", True))
    # Then
    assert first(report) == ("embedding", "rows of tokens", ["stage0.shard1"])
    head = report.differing[-1]
    assert [place.name for place in report.differing] == ["embedding", "head"]
    assert [head.address(one) for one in head.beyond(report.limit)] == SECOND


def test_the_command_reports_the_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    save_random_encoder("bert", CLASSIFIER, {}, tmp_path)
    words = ["check", str(tmp_path), "--shards", "3"]
    # When
    equal = CliRunner().invoke(main, [*words, "--json"])
    damage, right = larger("classifier.weight", None), CheckpointFetch.__call__
    monkeypatch.setattr(
        CheckpointFetch,
        "__call__",
        lambda self, name, region: damage(name, region, right(self, name, region)),
    )
    differs = CliRunner().invoke(main, words)
    # Then
    assert equal.exit_code == 0
    report = json.loads(equal.stdout)
    assert report["equal"]
    assert report["answer"]["what"] == "label"
    assert report["answer"]["skynet"] == report["answer"]["transformers"]
    assert report["answer"]["relative"] < report["limit"]
    assert differs.exit_code == 1
    assert "DIFFERS first in head, class logits" in differs.stdout
    assert "Every shard" not in differs.stdout
