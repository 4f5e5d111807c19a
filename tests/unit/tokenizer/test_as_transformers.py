"""Tokenizer classes x settings x texts: ids, streamed text and chats are AutoTokenizer's."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import normalizers

from skynet.checkpoint.gguf import convert_gguf
from skynet.checkpoint.text_files import text_files
from skynet.tokenizer.text import Text
from tests.made_tokenizers import CHAT, KINDS, byte_level, directory

TEXTS = [
    "Hello world, how are you today?",
    "the cat and the fox",
    "Don't shout: THE FOX isn't over the dog , is it ?",
    "  many   spaces \t in\n between  ",
    " leading",
    "trailing ",
    "",
    " ",
    "\n",
    " \n\t ",
    "\n\nparagraphs\n\n\nhere\n",
    "\u200b",
    "numbers 1000, 10000, 100000 and .......",
    "cafe\u0301 is café, u\u0308ber",
    "Vie\u0323\u0302t decomposed, and Việt",
    "\ufb01ne\u00a0\ufb01sh…\u3000Ａ！",
    "a 猫 here, 猫犬 there, 東京",
    "Привет мир, עברית عربى हिन्दी ไทย",
    "emoji 🙂🙃 and é à ß 👩‍👩‍👧",
    ">>fra<< Hello world",
    "  >>fra<< not first",
    "Hello >>fra<< world",
    ">>xyz<< unknown code",
    "the </s> end <pad> and <unk> or <s> too",
    "<s></s><unk>",
    "the</s>end [SEP] x[MASK]y [CLS]",
    "<|endoftext|> and<|im_end|>\nx <|end|>the <|eot|>",
    "▁under▁scored ▁",
    "__fr__ marks and __xx__ marks",
    "<extra_id_0> is a <mask> and a <mask_1>",
    "en_XX fr_XX tokens, eng_Latn deu_Latn",
    "a <start_of_turn>user\nhi<end_of_turn>\n",
    "x <new> y<new>z <New>, <plain>word plain <image>",
    "def f(x):\n    return x  # 🙂\n",
]
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "the </s> fox <s> <|end|>"},
        {"role": "assistant", "content": "猫🙂"},
        {"role": "user", "content": ""},
    ],
]


def added(content: str, **flags: Any) -> dict[str, Any]:
    fields = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, "special": True, **fields, **flags, "__type": "AddedToken"}


NEW, IMAGE = added("<new>"), added("<image>")
TOKENS_OF_THE_CONFIG: dict[str, dict[str, Any]] = {
    "extra list": {"extra_special_tokens": [NEW]},
    "extra named": {"extra_special_tokens": {"image_token": "<image>"}},
    "additional": {"additional_special_tokens": [NEW, "<image>"]},
    "named token": {"image_token": "<image>"},
    "lstrip": {"extra_special_tokens": [added("<new>", lstrip=True)]},
    "rstrip": {"extra_special_tokens": [added("<new>", rstrip=True, normalized=True)]},
    "single word": {"extra_special_tokens": [added("<new>", single_word=True)]},
    "split special": {"split_special_tokens": True},
    "cleans up": {"clean_up_tokenization_spaces": True},
    "template": {"chat_template": CHAT, "extra_special_tokens": [NEW]},
    "templates": {
        "chat_template": [
            {"name": "default", "template": CHAT},
            {"name": "rag", "template": "other"},
        ]
    },
}
NAMED_TEMPLATE = (
    "{{ bos_token }}{{ image_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
)
PREFIX: dict[str, dict[str, Any]] = {
    "prefix space": {"add_prefix_space": True},
    "no prefix space": {"add_prefix_space": False},
}
LEGACY: dict[str, dict[str, Any]] = {
    "legacy": {"legacy": True},
    "not legacy": {"legacy": False},
    "not legacy, new token": {"legacy": False, "extra_special_tokens": [NEW]},
    "ends": {"add_eos_token": True, "add_bos_token": True},
    "no start": {"add_bos_token": False},
    "legacy, no prefix": {"legacy": False, "add_prefix_space": False},
}
BERT: dict[str, dict[str, Any]] = {
    "lower": {"do_lower_case": True},
    "not lower": {"do_lower_case": False},
    "accents": {"do_lower_case": False, "strip_accents": True},
    "lower, keep accents": {"do_lower_case": True, "strip_accents": False},
    "no chinese": {"tokenize_chinese_chars": False},
}
OF_KIND: dict[str, dict[str, dict[str, Any]]] = {
    "gpt2": {**TOKENS_OF_THE_CONFIG, **PREFIX, "starts": {"add_bos_token": True}},
    "qwen2": {**TOKENS_OF_THE_CONFIG, **PREFIX},
    "roberta": {**PREFIX, "mask": {"mask_token": added("<mask>", lstrip=True)}},
    "llama2": {**TOKENS_OF_THE_CONFIG, **LEGACY},
    "llama2-json": {**TOKENS_OF_THE_CONFIG, **LEGACY},
    "llama3": {
        **TOKENS_OF_THE_CONFIG,
        "eot special": {"extra_special_tokens": ["<|eot|>"]},
        "decoder": {"added_tokens_decoder": {"2": added("<|eot|>")}},
        "ordinary": {"added_tokens_decoder": {"2": added("<|eot|>", special=False)}},
        "named template": {
            "extra_special_tokens": {"image_token": "<image>"},
            "chat_template": NAMED_TEMPLATE,
        },
    },
    "gemma": {"split special": {"split_special_tokens": True}},
    "t5": {**TOKENS_OF_THE_CONFIG, **LEGACY},
    "xlm-roberta": TOKENS_OF_THE_CONFIG,
    "camembert": PREFIX,
    "bert": {**TOKENS_OF_THE_CONFIG, **BERT},
    "bert-json": {**BERT, "cleans up": {"clean_up_tokenization_spaces": True}},
    "distilbert": BERT,
    "electra": BERT,
    "marian": TOKENS_OF_THE_CONFIG,
    "marian-separate": {"split special": {"split_special_tokens": True}},
    "m2m100": TOKENS_OF_THE_CONFIG,
    "mbart": {"source": {"src_lang": "de_DE"}},
    "nllb": {"legacy": {"legacy_behaviour": True}, "split special": {"split_special_tokens": True}},
}
CASES = [
    pytest.param(kind, fields, id=f"{kind}-{name}")
    for kind in sorted(KINDS)
    for name, fields in {"plain": {}, **OF_KIND.get(kind, {})}.items()
]


def auto_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Marian recommends another package
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)


def stream(text: Text, ids: list[int]) -> str:
    detokenizer = text.detokenizer()
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


def check(text: Text, tokenizer: Any, prompts: list[str]) -> None:
    """Compare ids and texts; answers are the prompts' tokens, also in other orders."""
    shuffle = random.Random(0).sample
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        assert (prompt, text.encode(prompt)) == (prompt, ids)
        if type(tokenizer).__name__ == "MarianTokenizer":  # answers have their own vocabulary
            ids = tokenizer(text_target=prompt, add_special_tokens=False)["input_ids"]
            assert (prompt, text.encode_inside(prompt)) == (prompt, ids)
        for answer in (ids, ids[::-1], shuffle(ids, len(ids))):
            expected = tokenizer.decode(answer, skip_special_tokens=True)
            assert (prompt, text.decode(answer)) == (prompt, expected)
            if "\ufffd" not in expected:  # see `Detokenizer`
                assert (prompt, stream(text, answer)) == (prompt, expected)


def check_chats(text: Text, tokenizer: Any) -> None:
    assert text.has_chat_template == (tokenizer.chat_template is not None)
    for messages in CHATS if text.has_chat_template else []:
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert text.chat(messages) == rendered


@pytest.mark.parametrize(("kind", "fields"), CASES)
def test_made_tokenizers(tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    # Given a tokenizer of that class with these fields in its tokenizer_config.json
    path = directory(tmp_path, kind, fields)
    text, tokenizer = Text(text_files(path)), auto_tokenizer(path)
    # Then texts and chats are those of Transformers
    check(text, tokenizer, TEXTS)
    check_chats(text, tokenizer)


EMBEDDERS = ["bert", "bert-json", "xlm-roberta", "roberta", "marian", "qwen2"]


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("kind", EMBEDDERS)
def test_texts_to_embed_are_cut_as_by_sentence_transformers(
    tmp_path: Path, kind: str, lower: bool
) -> None:
    # Given a tokenizer, and how sentence-transformers sets it up
    path = directory(tmp_path, kind, {"mask_token": "[MASK]"} if "bert" in kind else {})
    text, tokenizer = Text(text_files(path)), auto_tokenizer(path)
    if lower and kind != "marian":
        backend = tokenizer.backend_tokenizer
        steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = normalizers.Sequence(steps)
    for limit in (2, 3, 9, 500):
        tokenizer.model_max_length = limit
        for prompt in (*TEXTS, "THE FOX " * 20):
            # When / Then
            ids = text.encode_for_embedding(prompt, limit, lower)
            assert (prompt, ids) == (prompt, tokenizer(prompt, truncation=True)["input_ids"])


@pytest.mark.parametrize("name", ["demo", "minilm"])
def test_real_tokenizers(name: str, request: pytest.FixtureRequest) -> None:
    # Given a real model, that of the demo from a GGUF file
    checkpoint = request.getfixturevalue(f"{name}_checkpoint")
    text, tokenizer = Text(checkpoint.text_files()), auto_tokenizer(checkpoint.path)
    # Then
    check(text, tokenizer, [*TEXTS, "a<|im_end|>b", "\n\n\ttabs", "1234567"])
    check_chats(text, tokenizer)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_gguf_files_tokenizer_is_that_of_its_conversion(tmp_path: Path, model: str) -> None:
    # Given a GGUF file, and the tokenizer that Transformers loads from it
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", model)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="tiny.gguf")
    # Then it is that of the directory which the file is converted to
    text = Text(text_files(convert_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")))
    assert text.has_chat_template
    check(text, tokenizer, TEXTS)
    check_chats(text, tokenizer)


def write_gguf(file: Path, model: str) -> None:
    """A Llama of one layer; its tokenizer is byte-level ("gpt2") or of SentencePiece ("llama")."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    parts = json.loads(gguf_tokenizer(model))["model"]
    tokens = sorted(parts["vocab"], key=parts["vocab"].__getitem__)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(pair) for pair in parts["merges"]])
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    special = {"<s>", "</s>", "<unk>"}
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_chat_template(CHAT)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.0.{name}.weight": (8, 8) for name in square}
    shapes |= {f"blk.0.{name}.weight": (8,) for name in ("attn_norm", "ffn_norm")}
    shapes |= {"output_norm.weight": (8,), "token_embd.weight": (len(tokens), 8)}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tokenizer(model: str) -> str:
    """A tokenizer.json with the vocabulary and merges to write."""
    if model == "gpt2":
        return byte_level("<s>", "</s>", "<unk>")
    return KINDS["llama2-json"]()[1]["tokenizer.json"].decode()
