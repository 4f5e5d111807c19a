"""Which tokenizers are staged, and the errors of those that are not."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2

from skynet.checkpoint import transformers_tokenizer
from skynet.checkpoint.text_files import text_files
from skynet.errors import BadRequest, CheckpointError, UnsupportedModel
from skynet.tokenizer.staged_tokenizer import FILE, read_staged_tokenizer
from skynet.tokenizer.text import Text
from tests.made_tokenizers import directory


def test_a_directory_without_a_tokenizer_has_no_files_of_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert text_files(tmp_path) == {}


def test_code_of_the_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    # Given a tokenizer whose class is in the checkpoint, as for `trust_remote_code`
    auto_map = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    directory(tmp_path, "characters", {"auto_map": auto_map, "tokenizer_class": "OwnTokenizer"})
    ran = tmp_path / "ran"
    code = (
        f"open({str(ran)!r}, 'w')\nfrom transformers import PreTrainedTokenizer as OwnTokenizer\n"
    )
    (tmp_path / "tokenization_own.py").write_text(code)
    (tmp_path / "config.json").write_text('{"model_type": "own_model"}')
    # When it is read / Then
    with pytest.raises(UnsupportedModel, match=r"tokenizer_config\.json: .*code of the checkpoint"):
        text_files(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("qwen2", "tokenizer.json", b'{"version": '),
        ("gpt2", "vocab.json", b"[}"),
        ("gpt2", "tokenizer_config.json", b"\xff"),
        ("llama2", "tokenizer.model", b"text"),
        ("marian", "source.spm", b"text"),
    ],
)
def test_a_damaged_file_ends_the_split(
    tmp_path: Path, kind: str, name: str, content: bytes
) -> None:
    directory(tmp_path, kind, {})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot load the tokenizer: .*; download its files"):
        text_files(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("t5", "spiece.model"), ("marian", "target.spm"), ("llama2", "tokenizer.model")],
)
def test_a_truncated_sentencepiece_model_is_named(tmp_path: Path, kind: str, name: str) -> None:
    # Given a model cut off at the end of a piece, or of everything: valid messages both
    directory(tmp_path, kind, {})
    model = sentencepiece_model_pb2.ModelProto.FromString((tmp_path / name).read_bytes())
    model.ClearField("trainer_spec")
    for content in (model.SerializeToString(), b""):
        (tmp_path / name).write_bytes(content)
        # When / Then
        with pytest.raises(CheckpointError, match=f"{re.escape(name)} is truncated"):
            text_files(tmp_path)


def test_a_vocabulary_without_its_unknown_token_is_named(tmp_path: Path) -> None:
    directory(tmp_path, "m2m100", {})
    (tmp_path / "vocab.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"vocab\.json lacks the unk_token '<unk>'"):
        text_files(tmp_path)


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    directory(tmp_path, "qwen2", {})
    (tmp_path / "tokenizer.json").write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: Transformers cannot load"):
        text_files(tmp_path)


def test_a_tokenizer_in_python_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a CTRL: Transformers has no fast form of its tokenizer
    (tmp_path / "config.json").write_text('{"model_type": "ctrl"}')
    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    # When / Then
    with caplog.at_level(logging.WARNING):
        assert text_files(tmp_path) == {}
    assert "a CTRLTokenizer: Transformers has no fast form of it" in caplog.text
    assert "prompts must be token ids" in caplog.text


def test_a_tokenizer_that_adds_python_steps_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a class that changes texts after its backend
    directory(tmp_path, "qwen2", {})
    tokenizer = transformers_tokenizer._load(tmp_path)
    shouting = type("Shouting", (type(tokenizer),), {"_decode": lambda *_, **__: "!"})
    tokenizer.__class__ = shouting
    monkeypatch.setattr(transformers_tokenizer, "_load", lambda _: tokenizer)
    # When / Then it is not staged with other texts
    assert text_files(tmp_path) == {}
    assert "a Shouting: it splits or joins 'The quick brown fox" in caplog.text


def test_a_text_that_asks_for_infilling_is_refused(tmp_path: Path) -> None:
    # Given a Code Llama, which reorders texts around a marker
    directory(tmp_path, "llama2", {"tokenizer_class": "CodeLlamaTokenizer"})
    text = Text(text_files(tmp_path))
    # When / Then
    assert text.encode("def f(x):")
    with pytest.raises(BadRequest, match="<FILL_ME> asks for infilling, which is not supported"):
        text.encode("def f(x):\n    <FILL_ME>\n    return x")


def test_the_named_files_are_staged(tmp_path: Path) -> None:
    # Given a tokenizer as on the hub / When it is staged
    files = text_files(directory(tmp_path / "a", "marian", {}))
    # Then its SentencePiece models are staged as they are
    assert files["source.spm"] == (tmp_path / "a" / "source.spm").read_bytes()
    assert files["target.spm"] == (tmp_path / "a" / "target.spm").read_bytes()
    # And nothing that is not its own
    assert set(files) == {FILE, "source.spm", "target.spm"}
    staged = read_staged_tokenizer(text_files(directory(tmp_path / "b", "llama3", {})))
    assert staged is not None
    assert staged.special_tokens == {"bos_token": "<|begin|>", "eos_token": "<|end|>"}


def test_a_chat_template_file_takes_precedence(tmp_path: Path) -> None:
    directory(tmp_path, "qwen2", {"chat_template": "of the config"})
    assert _template(tmp_path) == "of the config"
    (tmp_path / "chat_template.jinja").write_text("of the file")
    assert _template(tmp_path) == "of the file"
    # Of several by name, none of which is the default, there is none
    (tmp_path / "chat_template.jinja").unlink()
    directory(tmp_path, "qwen2", {"chat_template": [{"name": "rag", "template": "other"}]})
    assert _template(tmp_path) is None


def _template(path: Path) -> Any:
    return json.loads(text_files(path)[FILE])["chat_template"]


def test_a_tokenizer_is_loaded_again_only_when_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a tokenizer that was staged once
    path, cache = directory(tmp_path / "model", "marian", {}), tmp_path / "cache"
    first = text_files(path, cache)
    loaded: list[Path] = []
    load = transformers_tokenizer._load
    monkeypatch.setattr(
        transformers_tokenizer, "_load", lambda path: loaded.append(path) or load(path)
    )
    # When it is staged again / Then Transformers is not asked
    assert text_files(path, cache) == first
    assert loaded == []
    # Unless a file changes, or what is cached is damaged
    directory(path, "marian", {"chat_template": "x"})
    assert text_files(path, cache) != first
    for entry in (cache / "tokenizers").iterdir():
        entry.write_bytes(b"\xc1")
    assert json.loads(text_files(path, cache)[FILE])["chat_template"] == "x"
    assert len(loaded) == 2
