"""`skynet check` of encoder-decoders with damaged weights in SkyNet: place, sum and shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checking import check_damaged, first, larger
from click.testing import CliRunner
from seq2seq import make_translator

from skynet.checkpoint.fetch import CheckpointFetch
from skynet.cli import main
from skynet.planning.ranges import Range

CROSS = "attention to the encoder"
# Of 3 layers of the encoder and 2 of the decoder the first stage has the encoder's.
FIRST = ["stage0.shard0", "stage0.shard1"]
LAST = ["stage1.shard0", "stage1.shard1"]
EMBEDDINGS = ["encoder embedding", "decoder embedding"]
TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("family", "tensor", "second", "place", "what", "shards"),
    [
        (
            "bart",
            "model.encoder.layers.1.self_attn.q_proj.weight",
            True,
            "encoder layer 1",
            "attention",
            FIRST[1:],
        ),
        ("mbart", "model.encoder.layers.2.fc1.bias", False, "encoder layer 2", "MLP", FIRST[:1]),
        (
            "marian",
            "model.encoder.layers.0.final_layer_norm.weight",
            None,
            "encoder layer 0",
            "output",
            FIRST,
        ),
        ("m2m_100", "model.encoder.layer_norm.bias", None, "encoder output", "output", LAST),
        (
            "bart",
            "model.decoder.embed_positions.weight",
            None,
            "decoder embedding",
            "output",
            LAST,
        ),
        (
            "t5",
            "decoder.block.0.layer.0.SelfAttention.v.weight",
            True,
            "decoder layer 0",
            "attention",
            LAST[1:],
        ),
        (
            "pegasus",
            "model.decoder.layers.1.encoder_attn.k_proj.weight",
            True,
            "decoder layer 1",
            CROSS,
            LAST[1:],
        ),
        (
            "mt5",
            "decoder.block.1.layer.1.EncDecAttention.v.weight",
            False,
            "decoder layer 1",
            CROSS,
            LAST[:1],
        ),
        (
            "bart",
            "model.decoder.layers.0.encoder_attn.out_proj.weight",
            True,
            "decoder layer 0",
            CROSS,
            LAST[1:],
        ),
        (
            "marian",
            "model.decoder.layers.0.encoder_attn.out_proj.bias",
            None,
            "decoder layer 0",
            "MLP",
            LAST,
        ),
        (
            "mt5",
            "decoder.block.0.layer.2.DenseReluDense.wi_0.weight",
            True,
            "decoder layer 0",
            "MLP",
            LAST[1:],
        ),
        ("mbart", "final_logits_bias", True, "head", "logits", LAST[1:]),
        ("t5", "lm_head.weight", False, "head", "logits", LAST[:1]),
        ("t5", "decoder.final_layer_norm.weight", None, "head", "logits", LAST),
    ],
)
def test_damage_is_reported_where_it_is(
    tmp_path: Path,
    family: str,
    tensor: str,
    second: bool | None,
    place: str,
    what: str,
    shards: list[str],
) -> None:
    # Given
    make_translator(family, {}, tmp_path)
    # When
    report = check_damaged(tmp_path, larger(tensor, second))
    # Then nothing else differs: the next layers got correct inputs
    assert first(report) == (place, what, shards)
    assert [place.name for place in report.differing] == [place]


@pytest.mark.parametrize(
    ("side", "shards", "layers"), [("encoder", FIRST, 3), ("decoder", LAST, 2)]
)
def test_relative_positions_are_reported_in_every_layer_of_their_stack(
    tmp_path: Path, side: str, shards: list[str], layers: int
) -> None:
    # Given the first heads' column of the table, which every shard has whole
    make_translator("t5", {}, tmp_path)
    table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

    def damage(name: str, region: Range, raw: torch.Tensor) -> torch.Tensor:
        if name == table:
            raw[:, 0] *= 2
        return raw

    # When
    report = check_damaged(tmp_path, damage)
    # Then
    assert first(report) == (f"{side} layer 0", "attention", shards[:1])
    assert [place.name for place in report.differing] == [
        f"{side} layer {layer}" for layer in range(layers)
    ]


@pytest.mark.parametrize(
    ("family", "fields", "tensor", "places"),
    [
        ("t5", {}, "shared.weight", EMBEDDINGS),
        ("t5", {"own_head": False}, "shared.weight", [*EMBEDDINGS, "head"]),
        ("bart", TIED, "model.shared.weight", [*EMBEDDINGS, "head"]),
        ("marian", TIED, "model.shared.weight", [*EMBEDDINGS, "head"]),
    ],
)
def test_a_shared_embedding_is_reported_wherever_it_is_used(
    tmp_path: Path, family: str, fields: dict[str, Any], tensor: str, places: list[str]
) -> None:
    # Given rows of the second shard's vocabulary
    make_translator(family, fields, tmp_path)
    # When
    report = check_damaged(tmp_path, larger(tensor, True))
    # Then
    assert first(report) == ("encoder embedding", "rows of tokens", FIRST[1:])
    assert [place.name for place in report.differing] == places
    for place in report.differing[1:]:
        assert [place.address(one) for one in place.beyond(report.limit)] == LAST[1:]


def test_the_command_reports_the_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    make_translator("bart", {}, tmp_path)
    name = "model.decoder.layers.1.encoder_attn.v_proj.weight"
    damage, right = larger(name, True), CheckpointFetch.__call__
    monkeypatch.setattr(
        CheckpointFetch,
        "__call__",
        lambda self, name, region: damage(name, region, right(self, name, region)),
    )
    # When
    result = CliRunner().invoke(main, ["check", str(tmp_path)])
    # Then
    assert result.exit_code == 1
    assert f"DIFFERS first in decoder layer 1, {CROSS}" in result.stdout
    assert "stage1.shard1" in result.stdout
