"""Pairs of texts and prompts of texts: their token ids, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from checkpoints import save_tokenizer
from model_families import encoder_config, tiny_config
from sentence_models import save_modules
from torch import nn

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.pooling_config import embedding_json
from skynet.checkpoint.text_files import text_files
from skynet.errors import BadRequest, CheckpointError
from skynet.models.registry import load_architecture
from skynet.request.input_encoder import InputEncoder
from skynet.request.prompts import EncodedText
from skynet.request.reranker import INSTRUCTION, PREFIX, QUESTION, SUFFIX, Reranker
from skynet.request.text_tasks import TextTasks, check_text_task
from skynet.tokenizer.text import Text
from tests.made_tokenizers import directory

BERT = load_architecture(encoder_config("bert", "ForSequenceClassification", num_labels=1))
PAIR = ("the cat and the fox", "  Hello world, how are you today? ")
KINDS = ["bert", "bert-json", "xlm-roberta", "roberta", "qwen2"]


def tokenizer_of(tmp_path: Path, kind: str) -> tuple[Text, Any]:
    from transformers import AutoTokenizer

    path = directory(tmp_path, kind, {"mask_token": "[MASK]"} if "bert" in kind else {})
    return Text(text_files(path)), AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_split_as_by_transformers(tmp_path: Path, kind: str) -> None:
    # Given
    text, tokenizer = tokenizer_of(tmp_path, kind)
    pairs = [PAIR, PAIR[::-1], ("the fox " * 9, "a cat"), ("a cat", "the fox " * 9)]
    for limit in (8, 9, 10, 13, 500):
        for pair in pairs:
            # When
            ids, types = text.encode_pair(pair, limit)
            # Then
            expected = tokenizer(*pair, truncation="longest_first", max_length=limit)
            assert ids == expected["input_ids"]
            assert types == expected.get("token_type_ids", [])


def encoder(tmp_path: Path, **settings: Any) -> tuple[InputEncoder, Any]:
    text, tokenizer = tokenizer_of(tmp_path, "bert")
    return InputEncoder(text, BERT, settings), tokenizer


def test_a_pair_is_stripped_and_cut_as_by_a_cross_encoder(tmp_path: Path) -> None:
    # Given
    inputs, tokenizer = encoder(tmp_path, max_tokens=9)
    # When
    encoded = inputs.encode(PAIR, "rerank", {})
    # Then
    stripped = [part.strip() for part in PAIR]
    expected = tokenizer(*stripped, truncation="longest_first", max_length=9)
    assert list(encoded.ids) == expected["input_ids"]
    assert list(encoded.types) == expected["token_type_ids"]
    # And a pair to classify is whole
    whole = inputs.encode(list(PAIR), "classify", {})  # type: ignore[arg-type]
    assert list(whole.ids) == tokenizer(*PAIR)["input_ids"]


def test_token_types_reach_the_record_and_are_checked(tmp_path: Path) -> None:
    # Given
    inputs, _ = encoder(tmp_path)
    encoded = inputs.encode(PAIR, "rerank", {})
    # When
    options = TextTasks(BERT).check("rerank", {}, encoded, 64)
    # Then
    assert options.read is not None
    fields = json.loads(options.to_json())["read"]
    assert check_text_task(fields, len(encoded.ids)).types == encoded.types
    for change in ({"types": [0]}, {"types": [256] * len(encoded.ids)}, {"tokens": [1]}):
        with pytest.raises(BadRequest, match="no client writes it"):
            check_text_task(fields | change, len(encoded.ids))


@pytest.mark.parametrize(
    ("given", "task", "options", "message"),
    [
        ("one text", "rerank", {}, "takes a pair of texts"),
        (PAIR, "embed", {}, "takes one text"),
        (("", "b"), "rerank", {}, "empty"),
        (PAIR, "rerank", {"instruction": "x"}, "trained without"),
        ("a text", "embed", {"prompt_name": "passage"}, "the model's prompts are query"),
    ],
)
def test_other_inputs_are_refused(
    tmp_path: Path, given: Any, task: str, options: dict[str, Any], message: str
) -> None:
    inputs, _ = encoder(tmp_path, prompts={"query": "query: "})
    with pytest.raises(BadRequest, match=message):
        inputs.encode(given, task, dict(options))


def test_prompts_come_before_texts(tmp_path: Path) -> None:
    # Given a default prompt, whose tokens are left out of the pooling
    settings = {"prompts": {"query": "the fox ", "none": ""}, "default_prompt_name": "query"}
    inputs, tokenizer = encoder(tmp_path, include_prompt=False, do_lower_case=True, **settings)
    # When / Then it is put before, and its tokens are counted without the last special one
    encoded = inputs.encode(" THE CAT ", "embed", {})
    assert list(encoded.ids) == tokenizer("the fox  the cat")["input_ids"]
    assert encoded.skip == len(tokenizer("the fox")["input_ids"]) - 1
    plain = list(tokenizer("the cat")["input_ids"])
    for name in ("none", ""):
        asked = inputs.encode("the cat", "embed", {"prompt_name": name})
        assert (list(asked.ids), asked.skip) == (plain, 0)


def test_a_decoder_is_asked_a_question(tmp_path: Path) -> None:
    # Given a reranker whose tokenizer knows all characters
    text, tokenizer = tokenizer_of(tmp_path, "qwen2")
    reranker = Reranker(500, (1, 2))
    # When
    ids = reranker.encode(("cat?", "A {fox}"), None, text)
    # Then it is the published text, of which the question is cut
    whole = PREFIX + QUESTION.format(INSTRUCTION, "cat?", "A {fox}") + SUFFIX
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer(whole)["input_ids"])
    around = [len(tokenizer(part)["input_ids"]) for part in (PREFIX, SUFFIX)]
    short = Reranker(sum(around) + 3, (1, 2)).encode(("cat?", "A fox"), "Find.", text)
    assert len(short) == sum(around) + 3
    assert short[-around[1] :] == tokenizer(SUFFIX)["input_ids"]


@pytest.mark.parametrize(("name", "ranks"), [("Qwen3-Reranker-0.6B", True), ("Qwen3-0.6B", False)])
def test_a_reranker_is_known_by_its_name(tmp_path: Path, name: str, ranks: bool) -> None:
    # Given a Qwen3 with a tokenizer of one letter a token, yes and no among them
    path = tmp_path / name
    config = tiny_config("qwen3")
    transformers.Qwen3ForCausalLM(config).save_pretrained(path)
    save_tokenizer(path)
    backend = json.loads((path / "tokenizer.json").read_text())
    vocabulary = backend["model"]["vocab"]
    backend["added_tokens"] = [
        {"id": len(vocabulary) + n, "content": word, "special": False}
        | {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for n, word in enumerate(("yes", "no"))
    ]
    (path / "tokenizer.json").write_text(json.dumps(backend))
    # When
    checkpoint = Checkpoint(path, name, tmp_path / "cache")
    files = checkpoint.text_files()
    tasks = TextTasks.of(load_architecture(checkpoint.config), files, Text(files))
    # Then
    assert tasks.tasks() == (("generate", "rerank") if ranks else ("generate",))
    if tasks.reranker is not None:
        assert tasks.reranker.answers == (len(vocabulary), len(vocabulary) + 1)


def test_a_decoder_ranks_by_two_tokens() -> None:
    # Given
    llama = load_architecture(tiny_config("llama").to_dict())
    tasks = TextTasks(llama, reranker=Reranker(500, (7, 8)))
    # When
    options = tasks.check("rerank", {}, EncodedText((1, 2, 3)), 8)
    # Then
    task = check_text_task(options.read or {}, 3)
    assert (task.positions, task.tokens, task.is_vector) == ((2,), (7, 8), False)
    assert tasks.tasks() == ("generate", "rerank")


def test_an_activation_that_is_not_known_is_refused() -> None:
    config = encoder_config("bert", "ForSequenceClassification", num_labels=1)
    config["sentence_transformers"] = {"activation_fn": "my.Own"}
    with pytest.raises(BadRequest, match="activation Own"):
        TextTasks(load_architecture(config)).check_task("rerank")


def test_several_labels_do_not_rank() -> None:
    config = encoder_config("bert", "ForSequenceClassification", num_labels=3)
    with pytest.raises(BadRequest, match="head of one label"):
        TextTasks(load_architecture(config)).check_task("rerank")


def test_files_name_prompts_and_poolings(tmp_path: Path) -> None:
    # Given
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    save_modules(tmp_path, pooling | {"include_prompt": False}, [], False)
    file = tmp_path / "config_sentence_transformers.json"
    file.write_text('{"prompts": {"query": "query: "}, "default_prompt_name": "query"}')
    # When
    settings = json.loads(embedding_json(tmp_path) or b"")
    # Then poolings are joined in the order of the module
    assert settings == {
        "pooling": "cls+mean",
        "include_prompt": False,
        "normalize": False,
        "prompts": {"query": "query: "},
        "default_prompt_name": "query",
    }
    for wrong in ('{"prompts": {"query": 1}}', '{"prompts": {}, "default_prompt_name": "x"}'):
        file.write_text(wrong)
        with pytest.raises(CheckpointError, match="prompt"):
            embedding_json(tmp_path)


def test_dense_is_never_read_from_a_pickle(tmp_path: Path) -> None:
    # Given a module with its weights in another file
    modules = [nn.Sequential(nn.Linear(4, 4), nn.Tanh())]
    save_modules(tmp_path, {"pooling_mode_mean_tokens": True}, modules, False)
    assert "refused" not in json.loads(embedding_json(tmp_path) or b"")
    (tmp_path / "2_Dense" / "model.safetensors").rename(tmp_path / "2_Dense/pytorch_model.bin")
    # When / Then
    refused = json.loads(embedding_json(tmp_path) or b"")["refused"]
    assert "2_Dense/model.safetensors" in refused
    assert "pickle" in refused


def test_a_pooling_that_dense_does_not_take_is_refused() -> None:
    # Given
    module = {"name": "2_Dense.linear", "in": 48, "out": 7, "bias": True, "activation": "Tanh"}
    config = encoder_config("bert", "Model") | {"skynet_modules": {"dense": [module], "head": True}}
    tasks = TextTasks(load_architecture(config), {"pooling": "mean"})
    assert tasks.embedding_size == 7
    # When / Then
    with pytest.raises(BadRequest, match="vector of 96 numbers, the model's module Dense takes 48"):
        tasks.check("embed", {"pooling": "cls+mean"}, EncodedText((1,)), 8)
