"""Configs as Transformers writes them, old and new, and the refusal of unsupported options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_families import (
    ENCODER_DECODERS,
    ENCODER_HEADS,
    ENCODERS,
    FAMILIES,
    NEVER_TIED,
    encoder_config,
    encoder_decoder_config,
    short_config,
    tiny_config,
)
from safetensors import safe_open

from skynet.architecture.tensors import resolve_names, staged_tensors
from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models.registry import KNOWN, checkpoint_dtype, load_architecture, settled

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 131,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "vocab_size": 131,
    "n_positions": 64,
}
# What files call a head, or an embedding, whose module has another name in Transformers.
HEADS = {"gpt_neox": "embed_out.weight"}
EMBEDS = {"exaone": "transformer.wte.weight"}
GPT_NEO = [[["global"], 1], [["local"], 2]]
SLIDING: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


DEBERTA_REFUSED: dict[str, Any] = {
    "attention_head_size": 4,
    "conv_kernel_size": 3,
    "embedding_size": 24,
    "legacy": False,
    "pooler_hidden_size": 24,
    "position_buckets": 3,
    "relative_attention": False,
    "share_att_key": False,
}


def differ(one: str, other: str) -> bool:
    """Of a file whose tensors are all different."""
    return False


def config(family: str, **fields: Any) -> dict[str, Any]:
    return (
        (GPT2 if family in ("gpt2", "gpt_bigcode", "gptj", "bloom") else LLAMA)
        | {"model_type": family}
        | fields
    )


def tiny(family: str, **fields: Any) -> dict[str, Any]:
    """A config as Transformers writes it, then changed."""
    return {**tiny_config(family).to_dict(), **fields}


def one_by_one(directory: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's tensors, by name; experts that are packed are one by one."""
    checkpoint = open_checkpoint(str(directory), directory)
    packed = set(checkpoint.packed.stored.values())
    return {name: info.shape for name, info in checkpoint.tensors.items() if name not in packed}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_staged_tensors_are_the_checkpoints(
    family: str, biased: bool, tied: bool, tmp_path: Path
) -> None:
    # Given a checkpoint that Transformers writes
    tied = tied and family not in NEVER_TIED
    fields = {"attention_bias": biased, "mlp_bias": biased, "tie_word_embeddings": tied}
    made = short_config(family, **fields)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(tmp_path)
    expected = one_by_one(tmp_path)
    # When SkyNet reads its architecture from its config and the tensors of the file
    written = json.loads((tmp_path / "config.json").read_text())
    arch = load_architecture(settled(written, expected, differ))
    staged, names_in_file = staged_tensors(arch), resolve_names(arch, expected)
    # Then it needs the same tensors in the same shapes, each once
    assert {names_in_file[tensor.name]: tensor.shape for tensor in staged} == expected
    assert len(staged) == len(expected)


@pytest.mark.parametrize("head", ENCODER_HEADS)
@pytest.mark.parametrize("family", ENCODERS)
def test_tensors_of_encoders_are_the_checkpoints(family: str, head: str, tmp_path: Path) -> None:
    # Given a checkpoint that Transformers writes, with one of three heads
    name, kind, sizes = ENCODERS[family]
    getattr(transformers, name + head)(kind(**sizes)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        names = list(file.keys())
        present = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    # When SkyNet reads its architecture from its config and the tensors of the file
    written = json.loads((tmp_path / "config.json").read_text())
    arch = load_architecture(settled(written, present, differ))
    # Then all tensors are needed, in their shapes, but for the pooler of a model without a head
    names_in_file = resolve_names(arch, present)
    needed = {names_in_file[tensor.name]: tensor.shape for tensor in staged_tensors(arch)}
    unused = {"pooler.dense.weight", "pooler.dense.bias"} if head == "Model" else set()
    assert needed == {name: shape for name, shape in present.items() if name not in unused}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_tensors_of_encoder_decoders_are_the_checkpoints(
    family: str, tied: bool, tmp_path: Path
) -> None:
    # Given a checkpoint that Transformers writes, its tables in one or each for itself
    made = encoder_decoder_config(family, tie_word_embeddings=tied)
    model = transformers.AutoModelForSeq2SeqLM.from_config(made)
    if not tied and family in ("t5", "mt5"):  # as T5 1.1 has a head, which no config asks for
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        names = list(file.keys())
        present = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    # When SkyNet reads its architecture from its config and the tensors of the file
    written = json.loads((tmp_path / "config.json").read_text())
    arch = load_architecture(settled(written, present, differ))
    # Then all tensors are needed, each once, in their shapes
    names_in_file = resolve_names(arch, present)
    needed = {names_in_file[tensor.name]: tensor.shape for tensor in staged_tensors(arch)}
    unused = set() if tied or family in ("t5", "mt5") else {"model.shared.weight"}
    assert needed == {name: shape for name, shape in present.items() if name not in unused}
    assert len(names_in_file) == len(needed)
    assert arch.tied == tied


def test_a_table_may_have_any_name_that_is_tied_to_it() -> None:
    # Given a file that has the embedding as its head, as Transformers may write it
    config = encoder_decoder_config("bart", tie_word_embeddings=True).to_dict()
    names = [tensor.name for tensor in staged_tensors(load_architecture(config))]
    tables = {n for n in names if n.endswith(("embed_tokens.weight", "shared.weight"))}
    present = [name for name in names if name not in tables]
    # When / Then
    arch = load_architecture(settled(config, present, differ))
    assert resolve_names(arch, present)["model.shared.weight"] == "lm_head.weight"
    # And one that has none is not complete
    present.remove("lm_head.weight")
    with pytest.raises(CheckpointError, match=r"lacks 1 of .*model\.shared\.weight"):
        resolve_names(load_architecture(settled(config, present, differ)), present)


def present_in(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors, by name."""
    with safe_open(file, framework="np") as opened:
        names = list(opened.keys())
        return {name: tuple(opened.get_slice(name).get_shape()) for name in names}


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(NEVER_TIED)))
def test_a_tied_head_is_used_where_it_differs(family: str, tmp_path: Path) -> None:
    # Given a config that ties the head, and a file that has one nevertheless
    made = short_config(family, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_config(made)
    model.save_pretrained(tmp_path)
    (tied,), embed = set(model.all_tied_weights_keys), model.get_input_embeddings()
    head = HEADS.get(family, tied)
    written = json.loads((tmp_path / "config.json").read_text())
    present = one_by_one(tmp_path)
    both = present | {head: tuple(embed.weight.shape)}
    # When it differs / Then it is staged beside the embedding
    arch = load_architecture(settled(written, both, differ))
    assert not arch.tied
    assert {t.name: t.shape for t in staged_tensors(arch)} == both
    # When it is a copy / Then it is not
    arch = load_architecture(settled(written, both, lambda one, other: head in (one, other)))
    assert arch.tied
    assert {t.name: t.shape for t in staged_tensors(arch)} == present
    # When it is all there is / Then it is both
    (name,) = set(model.all_tied_weights_keys.values())
    alone = both.keys() - {EMBEDS.get(family, name)}
    arch = load_architecture(settled(written, alone, differ))
    assert arch.tied
    assert set(resolve_names(arch, alone).values()) == alone


@pytest.mark.parametrize("family", ENCODERS)
def test_a_tied_head_of_an_encoder_may_have_any_of_its_names(family: str, tmp_path: Path) -> None:
    # Given what Transformers ties of a masked language model: the product, and mostly its bias
    name, kind, sizes = ENCODERS[family]
    model = getattr(transformers, name + "ForMaskedLM")(kind(**sizes))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    names = set(present_in(tmp_path / "model.safetensors"))
    both = names | model.all_tied_weights_keys.keys()
    # When the file has the tied tensors under the other names, or both
    for present in (both - set(model.all_tied_weights_keys.values()), both):
        copied = load_architecture(settled(written, present, lambda one, other: True))
        # Then every tensor is resolved, once
        assert copied.tied
        assert set(resolve_names(copied, present)) == {t.name for t in staged_tensors(copied)}
    # And of both the head's are used, which may differ
    arch = load_architecture(settled(written, both, differ))
    names_in_file = set(resolve_names(arch, both).values())
    assert names_in_file >= model.all_tied_weights_keys.keys()
    assert not arch.tied


def test_copies_of_a_table_are_staged_once() -> None:
    # Given a file that has the table of an encoder-decoder under each of its names
    config = encoder_decoder_config("bart", tie_word_embeddings=True).to_dict()
    names = [tensor.name for tensor in staged_tensors(load_architecture(config))]
    names.append("model.shared.weight")
    tables = {n for n in names if n.endswith(("embed_tokens.weight", "shared.weight"))}
    tables.add("lm_head.weight")
    assert len(tables) == 4
    for present in (names, sorted({*names} - {"model.shared.weight"})):
        # When they are all alike
        arch = load_architecture(settled(config, present, lambda one, other: True))
        # Then one of them is staged, whether that is the shared one or not
        names_in_file = resolve_names(arch, present)
        assert len(tables & set(names_in_file.values())) == 1
        assert arch.tied
    # When the decoder's differs, and the head is a copy of the shared one
    arch = load_architecture(
        settled(config, names, lambda one, other: "decoder" not in one + other)
    )
    # Then the head is unchanged
    staged = {tensor.name for tensor in staged_tensors(arch)} & tables
    assert staged == tables - {"model.encoder.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("m2m_100", {"pad_token_id": 0}, "m2m_100 with pad_token_id=0"),
        ("marian", {"d_model": 45, "encoder_attention_heads": 3}, "d_model=45 with sinusoidal"),
        ("t5", {"feed_forward_proj": "gated-selu"}, "feed_forward_proj='selu' is not supported"),
        ("t5", {"feed_forward_proj": "wide-relu"}, "feed_forward_proj='wide-relu'"),
        ("t5", {"is_encoder_decoder": False}, "t5 with is_encoder_decoder=False"),
        ("bart", {"is_decoder": True}, "bart with is_decoder=True"),
        ("bart", {"encoder_attention_heads": 5}, "d_model=48 is not a multiple"),
    ],
)
def test_unsupported_options_of_encoder_decoders_are_refused(
    family: str, fields: dict[str, Any], message: str
) -> None:
    # Given a config that asks for it / When / Then it is refused by name
    config = encoder_decoder_config(family).to_dict() | fields
    config.pop("dense_act_fn", None)
    with pytest.raises(UnsupportedModel, match=message):
        load_architecture(config)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},
        {"tie_word_embeddings": False, "scale_decoder_outputs": True},
        {"scale_decoder_outputs": None},
    ],
)
def test_t5_scales_its_logits_as_transformers_does(fields: dict[str, Any]) -> None:
    # Given a config.json that says so, or leaves it to the tie
    written = transformers.T5Config(d_model=64).to_dict()
    for name in ("tie_word_embeddings", "scale_decoder_outputs"):
        written.pop(name)
    # When Transformers and SkyNet read it
    t5_config = transformers.T5Config.from_dict(written | fields)
    arch = load_architecture(written | fields)
    # Then
    assert arch.logit_scale == (1 / 8 if t5_config.scale_decoder_outputs else 1)


@pytest.mark.parametrize(
    ("family", "fields", "error", "message"),
    [
        ("bamba", {"mamba_n_heads": 5}, CheckpointError, "5 Mamba heads of 16 channels are not 96"),
        ("bamba", {"mamba_n_groups": 4}, UnsupportedModel, "6 Mamba heads cannot share 4 groups"),
        (
            "falcon_h1",
            {"attention_bias": True, "attention_in_multiplier": 0.5},
            UnsupportedModel,
            "attention_bias=True and attention_in_multiplier=0.5",
        ),
        ("nemotron_h", {"layers_block_type": ["loop"]}, CheckpointError, "types ['loop']"),
        (
            "nemotron_h",
            {"moe_latent_size": 8, "mlp_bias": True},
            UnsupportedModel,
            "nemotron_h with mlp_bias=True",
        ),
    ],
)
def test_unsupported_options_of_hybrids_are_refused(
    family: str, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    # Given a config that asks for it / When / Then it is refused by name
    config = tiny_config(family).to_dict() | fields
    with pytest.raises(error, match=re.escape(message)):
        load_architecture(config)


def test_every_family_has_a_tiny_configuration() -> None:
    encoders = (kind.model_type for _, kind, _ in ENCODERS.values())
    assert {*FAMILIES, *encoders, *ENCODER_DECODERS} == set(KNOWN)


def test_norms_may_be_named_gamma_and_beta() -> None:
    # Given a checkpoint whose norms have gamma and beta
    arch = load_architecture(encoder_config("bert", "ForMaskedLM"))
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    names = [tensor.name for tensor in staged_tensors(arch)]
    for new, older in old.items():
        names = [name.replace(new, older) for name in names]
    # When / Then
    names_in_file = resolve_names(arch, names)
    assert names_in_file["bert.embeddings.LayerNorm.weight"] == "bert.embeddings.LayerNorm.gamma"
    assert names_in_file["bert.encoder.layer.0.output.LayerNorm.bias"].endswith("LayerNorm.beta")


@pytest.mark.parametrize(
    ("fields", "labels", "score"),
    [
        ({"id2label": {"1": "good", "0": "bad"}}, ("bad", "good"), "softmax"),
        ({"id2label": {"0": "much"}}, ("much",), "sigmoid"),
        (
            {"id2label": {"0": "much"}, "problem_type": "single_label_classification"},
            ("much",),
            "sigmoid",
        ),
        (
            {"id2label": {0: "a", 1: "b"}, "problem_type": "multi_label_classification"},
            ("a", "b"),
            "sigmoid",
        ),
        ({"id2label": {"0": "stars"}, "problem_type": "regression"}, ("stars",), "none"),
    ],
)
def test_labels_of_a_classifier(
    fields: dict[str, Any], labels: tuple[str, ...], score: str
) -> None:
    # When
    given = encoder_config("bert", "ForSequenceClassification") | fields
    arch = load_architecture(given)
    # Then
    assert (arch.labels, arch.label_score) == (labels, score)
    assert arch.tasks == ("embed", "classify")


def test_axes_follow_the_cut() -> None:
    # Given a fused, transposed family
    axes = {tensor.name: tensor.axis for tensor in staged_tensors(load_architecture(GPT2))}
    # Then a Conv1D is cut along its outputs in dim 1, or its inputs in dim 0
    assert axes["transformer.h.0.attn.c_attn.weight"] == 1
    assert axes["transformer.h.0.attn.c_proj.weight"] == 0
    assert axes["transformer.wte.weight"] == 0
    # And a Linear the other way around
    axes = {tensor.name: tensor.axis for tensor in staged_tensors(load_architecture(LLAMA))}
    assert axes["model.layers.2.self_attn.q_proj.weight"] == 0
    assert axes["model.layers.2.mlp.down_proj.weight"] == 1


def test_names_without_prefix_are_resolved() -> None:
    # Given GPT-2's names as on the hub, with buffers that no layer needs
    arch = load_architecture(GPT2)
    staged = [tensor.name for tensor in staged_tensors(arch)]
    available = [name.removeprefix("transformer.") for name in staged] + ["h.0.attn.bias"]
    # When they are resolved
    names = resolve_names(arch, available)
    # Then each staged tensor has one in the file
    assert names["transformer.h.1.ln_1.bias"] == "h.1.ln_1.bias"
    assert sorted(names) == sorted(staged)


def test_missing_tensors_are_named() -> None:
    # Given a checkpoint without one tensor
    arch = load_architecture(LLAMA)
    available = {tensor.name for tensor in staged_tensors(arch)} - {"model.norm.weight"}
    # When / Then the error names it
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 30 tensors.*: model\.norm\.weight;"):
        resolve_names(arch, available)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported; known: .*gpt2"),
        ({}, "None is not supported"),
        (config("llama", hidden_act="relu6"), "hidden_act='relu6'"),
        (config("llama", partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        (config("llama", quantization_config={"quant_method": "gptq"}), "gptq"),
        (config("llama", rope_scaling={"type": "shortrope"}), "'shortrope'"),
        (config("llama", rope_scaling={"rope_type": "default", "mrope_section": [1]}), "mrope"),
        (config("llama", num_key_value_heads=4), "6 query heads cannot share 4"),
        (config("llama", head_dim=7), "rope on 7 dimensions"),
        (config("gpt2", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse"),
        (config("gpt2", reorder_and_upcast_attn=True), "reorder_and_upcast_attn"),
        (config("gpt2", add_cross_attention=True), "add_cross_attention"),
        (config("mistral", layer_types=["full_attention"] * 3), "mistral with layer_types"),
        (config("qwen2", layer_types=["linear_attention"] * 3), "linear_attention"),
        (config("qwen3", layer_types=["sliding_attention"] * 3), "no sliding_window is in use"),
        (config("phi3", rope_scaling={"type": "linear", "factor": 2.0}), "phi3 with rope type"),
        (config("phi3", partial_rotary_factor=0.4), "rope on 3 dimensions of a head"),
        (config("qwen3_moe", decoder_sparse_step=2), "decoder_sparse_step=2"),
        (config("qwen3_moe", mlp_only_layers=[0]), r"mlp_only_layers=\[0\]"),
        (config("deepseek_v2", topk_method="best"), "topk_method='best'"),
        (config("deepseek_v2", norm_topk_prob=True), "norm_topk_prob=True"),
        (config("deepseek_v3") | {"scoring_func": "softmax"}, "scoring_func='softmax'"),
        (config("deepseek_v3", num_experts_per_tok=5), "with 4 experts in the topk_group=2"),
        (config("deepseek_v3", num_key_value_heads=3), "num_key_value_heads=3"),
        (config("glm4_moe_lite") | {"mlp_layer_types": ["mixed"] * 4}, "mlp_layer_types"),
        (
            config("mistral4") | {"rope_parameters": {"rope_type": "default"}},
            "mistral4 with rope",
        ),
        (config("qwen3_next", attn_output_gate=False), "attn_output_gate=False"),
        (config("qwen3_5_text", linear_num_key_heads=3), "32 value heads cannot share 3 key heads"),
        (config("olmo_hybrid", layer_types=["mamba"] * 3), r"layer_types \['mamba'\]"),
        (config("gpt_oss", hidden_act="gelu"), "hidden_act='gelu'"),
        (config("aria_text", hidden_act="gelu"), "hidden_act='gelu'"),
        (
            config("llama4_text", layer_types=["sliding_attention"] * 3),
            r"layer_types \['sliding_attention'\]",
        ),
        (
            config("llama4_text", rope_parameters={"rope_type": "yarn", "factor": 4.0}),
            "rope 'yarn' scales queries and keys before use_qk_norm=True",
        ),
        (config("gptj", tie_word_embeddings=True), "tie_word_embeddings=True"),
        (config("phi", tie_word_embeddings=True), "tie_word_embeddings=True"),
        (config("gptj", n_embd=49), "n_embd=49 is not a multiple of n_head=6"),
        (config("falcon", new_decoder_architecture=True, parallel_attn=False), "parallel_attn"),
        (config("falcon", num_ln_in_parallel_attn=2), "num_ln_in_parallel_attn=2"),
        (config("falcon", multi_query=False, num_kv_heads=2), "falcon with num_kv_heads=2"),
        (config("bloom", slow_but_exact=True, pretraining_tp=4), "slow_but_exact=True"),
        (config("bloom", apply_residual_connection_post_layernorm=True), "apply_residual"),
        (config("opt", ffn_dim=80, layer_norm_elementwise_affine=False), "elementwise_affine"),
        (config("cohere2", use_qk_norm=True), "use_qk_norm=True"),
        (config("gemma", use_bidirectional_attention=True), "use_bidirectional_attention=True"),
        (config("gemma2", final_logit_softcapping=-1), "final_logit_softcapping=-1"),
        (config("gemma3_text", attn_logit_softcapping=50.0), "attn_logit_softcapping=50"),
        (config("gemma3_text", rope_scaling={"type": "mystery"}), "rope type 'mystery'"),
        (config("gemma4_text", use_bidirectional_attention="all"), "attention='all'"),
        (config("gemma4_text", vocab_size_per_layer_input=7), "vocab_size_per_layer_input=7"),
        (config("gemma4_text", num_kv_shared_layers=2, num_hidden_layers=2), "no earlier layer"),
        (
            config("gemma4_text", per_layer_config={"00": {"intermediate_size": 9}}),
            r"per_layer_config with \['intermediate_size'\]",
        ),
        (encoder_config("bert", "Model", is_decoder=True), "bert with is_decoder=True"),
        (config("gpt_bigcode", add_cross_attention=True), "gpt_bigcode with add_cross_attention"),
        (tiny("gpt_neo", attention_layers=["global", "wide"] * 2), r"attention_layers \['wide'\]"),
        (tiny("codegen", n_head=6), "codegen with n_head=6: not a multiple of 4"),
        (tiny("codegen", tie_word_embeddings=True), "codegen with tie_word_embeddings=True"),
        (tiny("dbrx", rope_parameters={"rope_theta": 5e5}), r"attn_config rope_theta=10000\.0"),
        (tiny("dbrx", ffn_config={"moe_normalize_expert_weights": 2}), "expert_weights=2 is not"),
        (tiny("mpt", expansion_ratio=3), "mpt with expansion_ratio=3"),
        (tiny("mpt", no_bias=False), "mpt with no_bias=False"),
        (tiny("mpt", norm_type="rmsnorm"), "mpt with norm_type='rmsnorm'"),
        (tiny("mpt", logit_scale="inv_sqrt_d_model"), "mpt with logit_scale='inv_sqrt_d_model'"),
        (tiny("mpt", attn_config={"alibi": False}), "mpt attn_config with alibi=False"),
        (tiny("mpt", attn_config={"alibi_bias_max": 16}), "attn_config with alibi_bias_max=16"),
        (tiny("mpt", attn_config={"qk_ln": True}), "mpt attn_config with qk_ln=True"),
        (tiny("mpt", attn_config={"clip_qkv": -1}), "clip_qkv=-1"),
        *(
            (encoder_config("deberta-v2", "Model") | {field: value}, f"{field}={value!r}")
            for field, value in DEBERTA_REFUSED.items()
        ),
        (
            encoder_config("deberta-v2", "Model") | {"pos_att_type": "c2p|p2p"},
            r"pos_att_type \['p2p'\] are not supported",
        ),
        (
            encoder_config("nomic_bert", "Model") | {"num_experts": 8},
            "nomic_bert with num_experts=8",
        ),
        (
            encoder_config("nomic_bert", "Model") | {"rotary_scaling_factor": 2.0},
            "nomic_bert with rotary_scaling_factor=2.0",
        ),
        (encoder_config("nomic_bert", "Model", head_dim=12), "nomic_bert with head_dim=12"),
        (
            encoder_config("mpnet", "Model") | {"relative_attention_num_buckets": 16},
            "mpnet with relative_attention_num_buckets=16",
        ),
        (
            encoder_config("bert", "Model") | {"position_embedding_type": "relative_key"},
            "position_embedding_type='relative_key'",
        ),
        (
            encoder_config("modernbert", "Model") | {"classifier_pooling": "max"},
            "classifier_pooling='max'",
        ),
        (
            encoder_config("modernbert", "Model") | {"rope_scaling": {"type": "linear"}},
            "modernbert with rope_scaling",
        ),
    ],
)
def test_unsupported_options_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    # When / Then
    with pytest.raises(UnsupportedModel, match=message):
        load_architecture(given)


@pytest.mark.parametrize(
    "given",
    [
        config("llama", pretraining_tp=2),
        tiny_config("bloom", pretraining_tp=4).to_dict(),
        tiny_config("bloom", slow_but_exact=True, pretraining_tp=1).to_dict(),
        tiny_config("bloom", slow_but_exact=True).to_dict(),
        encoder_config("modernbert", "ForMaskedLM") | {"position_embedding_type": "sans_pos"},
        encoder_config("bert", "Model") | {"tie_word_embeddings": False},
    ],
)
def test_options_without_effect_are_accepted(given: dict[str, Any]) -> None:
    # When / Then nothing is raised
    load_architecture(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "llama"}, "hidden_size is None"),
        (config("llama", num_hidden_layers=0), "num_hidden_layers is 0"),
        (config("llama", rope_scaling={"type": "linear"}), "factor=None"),
        (config("qwen2", layer_types=["full_attention"]), "1 layer_types for 3 layers"),
        (config("gemma2", layer_types=["full_attention"]), "1 layer_types for 3 layers"),
        (tiny("gpt_neo", attention_layers=["local"]), "1 attention_layers for 4 layers"),
        (
            tiny("gpt_neo", attention_layers=None, attention_types=[[["local"], 10**12], [[], 9]]),
            "1000000000000 attention_layers for 4 layers",
        ),
        (encoder_config("mpnet", "Model", max_position_embeddings=2), "2 positions, the first 2"),
        (config("mixtral", num_local_experts=1), "num_experts_per_tok is 2 of num_local_experts=1"),
        (config("deepseek_v3", n_group=4), "n_group=4 does not divide n_routed_experts=6"),
        (config("glm4_moe_lite") | {"mlp_layer_types": ["dense"]}, "1 mlp_layer_types"),
        (config("smollm3", no_rope_layers=[1]), "1 no_rope_layers for 3 layers"),
        (config("phi3", rope_scaling={"type": "su"}), "short_factor=None, expected a list of 4"),
        (
            encoder_config("roberta", "Model", pad_token_id=47),
            "48 positions, the first 48",
        ),
        (encoder_config("roberta", "Model") | {"pad_token_id": None}, "pad_token_id is None"),
    ],
)
def test_broken_configs_are_refused_by_field(given: dict[str, Any], message: str) -> None:
    # When / Then
    with pytest.raises(CheckpointError, match=message):
        load_architecture(given)


@pytest.mark.parametrize(
    ("family", "fields", "windows"),
    [
        ("llama", {"sliding_window": 8}, (None, None, None)),
        ("mistral", {"sliding_window": 8}, (8, 8, 8)),
        ("mistral", {"sliding_window": None}, (None, None, None)),
        ("mistral", {}, (4096, 4096, 4096)),
        ("qwen2", {"sliding_window": 8, "max_window_layers": 1}, (None, None, None)),
        ("qwen2", SLIDING, (None, None, 8)),
        (
            "gpt_neo",
            {"num_layers": 3, "num_heads": 6, "attention_types": GPT_NEO, "window_size": 9},
            (None, 9, 9),
        ),
        ("qwen3", SLIDING | {"max_window_layers": 9}, (None, None, None)),
        (
            "qwen3",
            SLIDING | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            (8, None, 8),
        ),
    ],
)
def test_windows(family: str, fields: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    # When / Then each layer's window is what Transformers uses
    assert load_architecture(config(family, **fields)).windows == windows


def test_longrope_has_other_divisors_beyond_the_pretraining_context() -> None:
    # Given Phi-3.5's kind of rope
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    fields = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    # When / Then
    arch = load_architecture(config("phi3", rope_scaling=rope, **fields))
    assert (arch.max_positions, arch.rope_switch) == (131072, 4096)
    assert arch.rope_kinds[0].divisors == (1.0,) * 4
    assert arch.rope_kinds[0].long_divisors == (2.0,) * 4
    assert load_architecture(config("phi3")).rope_switch == 0
    # And the same divisors for all lengths need no switch, in any family
    same = rope | {"long_factor": [1.0] * 4}
    assert load_architecture(config("llama", rope_scaling=same, **fields)).rope_switch == 0


@pytest.mark.parametrize(
    ("family", "fields", "thetas"),
    [
        ("smollm3", {"no_rope_layer_interval": 2}, [2e6, None, 2e6]),
        ("smollm3", {"no_rope_layers": [0, 1, 0], "rope_theta": 5.0}, [None, 5.0, None]),
        ("gemma3_text", {"sliding_window_pattern": 3}, [1e4, 1e4, 1e6]),
        (
            "gemma3_text",
            {"layer_types": ["full_attention"] * 3, "rope_theta": 7.0},
            [7.0, 7.0, 7.0],
        ),
    ],
)
def test_ropes_by_layer(family: str, fields: dict[str, Any], thetas: list[float | None]) -> None:
    # When / Then each layer has the rope that Transformers gives it
    ropes = load_architecture(config(family, **fields)).ropes
    assert [rope and rope.theta for rope in ropes] == thetas


def test_old_and_new_rope_fields_mean_the_same() -> None:
    # Given one rope, as Transformers 4 and as 5 write it
    old = config("llama", rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    new = config("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    # When / Then both are read alike
    assert load_architecture(old) == load_architecture(new)


LLAMA3: dict[str, Any] = {"type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = "original_max_position_embeddings"


@pytest.mark.parametrize(
    ("rope", "original", "positions"),
    [
        ({"type": "dynamic", "factor": 2.0}, 64, 128),
        ({"type": "linear", "factor": 4.0}, 64, 64),
        ({"type": "yarn", "factor": 4.0, ORIGINAL: 64}, 64, 256),  # as Qwen2.5's card says
        ({"type": "yarn", "factor": 4.0, ORIGINAL: 16}, 16, 64),
        ({"type": "yarn", "factor": 2.0, ORIGINAL: 16}, 16, 64),
        ({**LLAMA3, "factor": 32.0, ORIGINAL: 4}, 4, 64),  # as Llama 3.2
    ],
)
def test_a_stretched_rope_allows_longer_sequences(
    rope: dict[str, Any], original: int, positions: int
) -> None:
    # When / Then the positions are the stretched ones where the config's, 64, are not
    arch = load_architecture(config("llama", rope_scaling=rope))
    (rope,) = arch.rope_kinds
    assert (arch.max_positions, rope.original_positions) == (positions, original)


def test_the_positions_of_gemma_3_are_stretched_ones() -> None:
    # When / Then
    arch = load_architecture(config("gemma3_text", rope_scaling={"type": "linear", "factor": 8.0}))
    assert arch.max_positions == 64


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": "float16"}, "float16"), ({}, "float32")],
)
def test_checkpoint_dtype(fields: dict[str, Any], name: str) -> None:
    # When / Then new and old field are read
    assert checkpoint_dtype(fields) == name
