"""DeBERTa-v2 and v3: BERT with disentangled attention to contents and distances.

`share_att_key` other than true: other projections of distances than of contents;
`relative_attention` other than true; `embedding_size` other than the hidden size
"""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Disentangled
from skynet.architecture.weight import Weight
from skynet.errors import UnsupportedModel
from skynet.models import bert
from skynet.models.encoder import CLASSIFIER, MASKED_LM, encoder, head_of

MODEL_TYPE = "deberta-v2"

DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "relative_attention": False,
    "share_att_key": False,
    "norm_rel_ebd": "none",
    "position_biased_input": True,
    "pooler_hidden_act": "gelu",
}
REFUSED: dict[str, Any] = {"conv_kernel_size": 0, "legacy": True}

LAYER = "deberta.encoder.layer.{layer}."
PRODUCTS = {
    "q": Weight("q", LAYER + "attention.self.query_proj", "column", "heads", bias=True),
    "k": Weight("k", LAYER + "attention.self.key_proj", "column", "kv_heads", bias=True),
    "v": Weight("v", LAYER + "attention.self.value_proj", "column", "kv_heads", bias=True),
}
TABLE = Weight("distances", "deberta.encoder.rel_embeddings", "replicated", "distances")
TABLE_NORM = Weight(
    "distances_norm", "deberta.encoder.LayerNorm", "replicated", "hidden", bias=True
)
LABELS = (
    Weight("label_dense", "pooler.dense", "replicated", "hidden", bias=True),
    Weight("label_out", "classifier", "replicated", "labels", bias=True),
)


def architecture(config: read.Config) -> Architecture:
    """A `deberta-v2` config as an Architecture."""
    config = DEFAULTS | dict(config)
    hidden = read.size(config, "hidden_size")
    head_dim = read.head_dim(config, "hidden_size", "num_attention_heads")
    read.refuse(config, relative_attention=True, share_att_key=True, embedding_size=hidden)
    read.refuse(config, attention_head_size=head_dim, pooler_hidden_size=hidden)
    kind = _distances(config)
    heads = {MASKED_LM: bert.HEAD, CLASSIFIER: LABELS, "": ()}
    return encoder(
        config,
        _weights(config) + heads[head_of(config)],
        "deberta.",
        norm_eps=float(config["layer_norm_eps"]),
        token_types=config["type_vocab_size"],
        learned_positions=bool(config["position_biased_input"]),
        attention_scale=(head_dim * (1 + kind.to_keys + kind.to_queries)) ** -0.5,
        disentangled=kind,
        head_activation=read.activation(config, "hidden_act"),
        label_activation=read.activation(config, "pooler_hidden_act"),
    )


def _distances(config: read.Config) -> Disentangled:
    kinds = config.get("pos_att_type") or []
    if isinstance(kinds, str):
        kinds = [kind.strip() for kind in kinds.lower().split("|")]
    unknown = sorted({str(kind) for kind in kinds} - {"c2p", "p2c"})
    if unknown:
        raise UnsupportedModel(f"pos_att_type {unknown} are not supported")
    positions, buckets = (
        config.get(field) or -1 for field in ("max_relative_positions", "position_buckets")
    )
    positions = positions if positions > 0 else read.size(config, "max_position_embeddings")
    in_buckets = buckets > 0
    if in_buckets and not 4 <= buckets < positions:
        raise UnsupportedModel(
            f"position_buckets={buckets} is not supported: expected 4 or more, and fewer than the "
            f"{positions} relative positions"
        )
    return Disentangled(
        span=buckets if in_buckets else positions,
        max_distance=positions if in_buckets else None,
        to_keys="c2p" in kinds,
        to_queries="p2c" in kinds,
    )


def _weights(config: read.Config) -> tuple[Weight, ...]:
    absent = set()
    if not config["position_biased_input"]:
        absent.add("positions")
    if not config["type_vocab_size"]:
        absent.add("token_types")
    weights = (w for w in bert.base("deberta.") if w.role not in absent)
    norms = [kind.strip() for kind in str(config["norm_rel_ebd"]).lower().split("|")]
    table = (TABLE, TABLE_NORM) if "layer_norm" in norms else (TABLE,)
    return (*(PRODUCTS.get(weight.role, weight) for weight in weights), *table)
