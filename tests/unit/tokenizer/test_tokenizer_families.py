"""Tokenizers of encoder-decoder families: the ids and texts of Transformers, from what hubs have.

`tests/tokenizers/make.py` wrote down what Transformers says with SentencePiece installed; here
neither that package nor protobuf is needed.
"""

from __future__ import annotations

import json
import logging
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skynet.checkpoint.text_files import text_files
from skynet.errors import BadRequest, CheckpointError
from skynet.tokenizer.charsmap import Charsmap
from skynet.tokenizer.sentencepiece_file import Kind, read_sentencepiece
from skynet.tokenizer.text import Text
from tests.spm import spm

TOKENIZERS = Path(__file__).parents[2] / "tokenizers"
FAMILIES = sorted(file.parent.name for file in TOKENIZERS.glob("*/expected.json"))
# Transformers takes the target's ids for the source's; swaps the two masks.
NOT_AS_TRANSFORMERS = {"marian-separate": "<pad>", "pegasus": "<mask_1>"}
WORDS = [("▁", -2.0), ("▁ab", -1.0), ("a", -3.0), ("b", -3.0), ("c", -3.0)]


@cache
def text_of(family: str) -> Text:
    return Text(text_files(TOKENIZERS / family))


def expected(family: str, kind: str) -> list[Any]:
    cases: list[Any] = json.loads((TOKENIZERS / family / "expected.json").read_text())[kind]
    lost = NOT_AS_TRANSFORMERS.get(family, "\0")
    return [case for case in cases if lost not in case[0] and not changed(family, case[0])]


def changed(family: str, text: str) -> bool:
    """Transformers forgets the normalisation of mBART, which its models were trained with."""
    if family != "mbart":
        return False
    model = read_sentencepiece(TOKENIZERS / family / "sentencepiece.bpe.model")
    return Charsmap(model.charsmap).apply(text) != text


def stream(text: Text, ids: list[int]) -> str:
    detokenizer = text.detokenizer()
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


@pytest.fixture
def marian(tmp_path: Path) -> Path:
    path: Path = shutil.copytree(TOKENIZERS / "marian", tmp_path / "marian")
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_have_the_ids_of_transformers(family: str) -> None:
    cases = expected(family, "prompts")
    assert len(cases) > 15
    for prompt, ids in cases:
        assert (prompt, text_of(family).encode(prompt)) == (prompt, ids)


@pytest.mark.parametrize("family", ["marian", "marian-separate"])
def test_texts_in_answers_have_the_ids_of_transformers(family: str) -> None:
    cases = expected(family, "inside")
    assert len(cases) > 15
    for inside, ids in cases:
        assert (inside, text_of(family).encode_inside(inside)) == (inside, ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_have_the_text_of_transformers_at_once_and_in_pieces(family: str) -> None:
    text = text_of(family)
    for answer, ids in json.loads((TOKENIZERS / family / "expected.json").read_text())["answers"]:
        assert (ids, text.decode(ids)) == (ids, answer)
        assert (ids, stream(text, ids)) == (ids, answer)


@given(family=st.sampled_from(FAMILIES), ids=st.lists(st.integers(0, 260), max_size=30))
def test_pieces_join_to_the_decoding_of_any_ids(family: str, ids: list[int]) -> None:
    assert stream(text_of(family), ids) == text_of(family).decode(ids)


def test_a_piece_that_only_answers_have_is_no_piece_of_a_prompt() -> None:
    # Given a word of vocab.json that the source model would have to spell
    text = text_of("marian")
    word = text.languages.id_of("fra") - 1
    assert text.spell(word) == "qqq"
    # Then
    assert word not in text.encode("the qqq")
    assert text.decode([word]) == "qqq"


def test_a_piece_that_the_vocabulary_lacks_is_unknown(marian: Path) -> None:
    # Given
    vocabulary = json.loads((marian / "vocab.json").read_text())
    del vocabulary["▁the"]
    (marian / "vocab.json").write_text(json.dumps(vocabulary))
    # Then
    assert text_of("marian").encode("the")[0] != vocabulary["<unk>"]
    assert Text(text_files(marian)).encode("the") == [vocabulary["<unk>"], vocabulary["</s>"]]


def test_a_language_code_is_one_token_at_the_start_only() -> None:
    text = text_of("marian")
    code = text.languages.id_of("fra")
    assert text.encode(">>fra<< Hello") == [code, *text.encode("Hello")]
    assert code not in text.encode("Hello >>fra<<")
    assert text.encode(">>xyz<< Hello")[0] == text.encode("東")[-2]  # unknown


def test_a_tokenizer_json_beside_marians_files_is_ignored(marian: Path) -> None:
    (marian / "tokenizer.json").write_text("{}")
    assert text_files(marian) == text_files(TOKENIZERS / "marian")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("source.spm", None, r"cannot read .*source\.spm: No such file"),
        ("target.spm", None, r"cannot read .*target\.spm: No such file"),
        ("source.spm", b"\n\5short", r"source\.spm is truncated or not a SentencePiece model"),
        ("vocab.json", None, r"vocab\.json is missing"),
        ("vocab.json", b"{", r"vocab\.json is not JSON"),
        ("vocab.json", b'{"a": "b"}', r"vocab\.json holds ids that are not integers"),
        ("vocab.json", b'{"a": 0}', "unk_token '<unk>' is not in the vocabulary"),
    ],
)
def test_damaged_files_are_named(
    marian: Path, name: str, content: bytes | None, problem: str
) -> None:
    (marian / name).unlink()
    if content is not None:
        (marian / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        text_files(marian)


def test_two_vocabularies_need_both(marian: Path) -> None:
    (marian / "tokenizer_config.json").write_text('{"separate_vocabs": true}')
    with pytest.raises(CheckpointError, match=r"target_vocab\.json is missing"):
        text_files(marian)


def test_an_unsupported_tokenizer_leaves_the_model_usable_by_ids(
    marian: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a SentencePiece model of another kind: 3, whole words
    (marian / "source.spm").write_bytes(spm(WORDS, model_type=3))
    # When
    with caplog.at_level(logging.WARNING):
        files = text_files(marian)
    # Then
    assert files == {}
    assert "staged without a tokenizer" in caplog.text
    assert "source.spm: model_type 3 is not supported" in caplog.text
    with pytest.raises(BadRequest, match="send token ids"):
        Text(files).encode("ab")


def test_bytes_and_added_tokens_of_a_marian_tokenizer(marian: Path) -> None:
    # Given a source model with byte pieces, and a token that was added after training
    pieces = [*WORDS, ("<0xC3>", 0.0, Kind.BYTE), ("<0xA9>", 0.0, Kind.BYTE)]
    (marian / "source.spm").write_bytes(spm(pieces, byte_fallback=True))
    tokens = ["</s>", "<unk>", *(entry[0] for entry in pieces), "<pad>"]
    (marian / "vocab.json").write_text(json.dumps({t: n for n, t in enumerate(tokens)}))
    added = {str(len(tokens)): {"content": "<sep>", "special": False}}
    (marian / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    # Then
    text = Text(text_files(marian))
    ids = text.encode("ab<sep>é")
    assert ids == [3, len(tokens), 2, 7, 8, 0]
    assert text.decode(ids) == stream(text, ids) == "ab<sep> é"


def save(tokenizer: Any, path: Path) -> Any:
    """The tokenizer as Transformers reads it again."""
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(path)
    return AutoTokenizer.from_pretrained(path)


def byte_level_files(path: Path) -> None:
    from tokenizers import pre_tokenizers

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += ["th", "the", "Ġthe", "<mask>"]
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps({t: n for n, t in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n")
    (path / "config.json").write_text('{"model_type": "bart"}')


@pytest.mark.parametrize("prompt", ["the café on the <mask> moon", "", "  two  spaces\n"])
def test_barts_older_files_give_the_ids_of_transformers(tmp_path: Path, prompt: str) -> None:
    from transformers import AutoTokenizer

    byte_level_files(tmp_path / "bart")
    text, reference = (
        Text(text_files(tmp_path / "bart")),
        AutoTokenizer.from_pretrained(tmp_path / "bart"),
    )
    ids = text.encode(prompt)
    assert ids == reference(prompt).input_ids
    assert text.decode(ids) == stream(text, ids) == reference.decode(ids, skip_special_tokens=True)


def nllb(**options: Any) -> Any:
    from transformers import NllbTokenizer

    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdef", "ab", "▁ab"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return NllbTokenizer(vocab=vocabulary, merges=[("a", "b"), ("▁", "ab")], **options)


@pytest.mark.parametrize(
    "options", [{}, {"src_lang": "fra_Latn"}, {"legacy_behaviour": True, "src_lang": "deu_Latn"}]
)
def test_a_tokenizer_json_of_an_older_order_names_the_language_as_transformers(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    # Given a tokenizer.json as those of NLLB were published: the language comes last
    reference = save(nllb(**options), tmp_path)
    file = tmp_path / "tokenizer.json"
    saved = json.loads(file.read_text())
    older = nllb(legacy_behaviour=True).backend_tokenizer.post_processor.__getstate__()
    file.write_text(json.dumps({**saved, "post_processor": json.loads(older)}))
    # Then
    assert Text(text_files(tmp_path)).encode("ab cab") == reference("ab cab").input_ids


def test_a_tokenizer_json_that_fits_is_staged_as_it_is(tmp_path: Path) -> None:
    save(nllb(src_lang="fra_Latn"), tmp_path)
    assert text_files(tmp_path)["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    # And so is an invalid one: loading it names the error
    (tmp_path / "tokenizer.json").write_text("[]")
    assert text_files(tmp_path)["tokenizer.json"] == b"[]"


@pytest.mark.parametrize("family", ["mbart50", "t5", "pegasus"])
def test_a_tokenizer_of_a_sentencepiece_model_equals_that_of_transformers(
    tmp_path: Path, family: str
) -> None:
    # Given Transformers' tokenizer over the same pieces, written as it saves one
    files = text_files(TOKENIZERS / family)
    shutil.copytree(TOKENIZERS / family, tmp_path / "with")
    (tmp_path / "with" / "tokenizer.json").write_bytes(files["tokenizer.json"])
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tmp_path / "with")
    # Then
    for prompt, _ in expected(family, "prompts"):
        assert (prompt, text_of(family).encode(prompt)) == (prompt, reference(prompt).input_ids)


def test_a_model_that_only_transformers_converts_says_what_to_install(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a Llama's SentencePiece model, and neither sentencepiece nor tiktoken
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with caplog.at_level(logging.WARNING):
        assert text_files(tmp_path) == {}
    assert "staged without a tokenizer" in caplog.text
    assert "pip install sentencepiece protobuf" in caplog.text


def test_spaces_before_punctuation_go_where_the_tokenizer_wants_it(marian: Path) -> None:
    # Given
    tokens = ["</s>", "<unk>", "▁ab", "▁.", "▁n", "'", "t", "▁", "<pad>"]
    (marian / "vocab.json").write_text(json.dumps({t: n for n, t in enumerate(tokens)}))
    ids = [2, 3, 2, 4, 5, 6, 2, 0]
    assert stream(Text(text_files(marian)), ids) == "ab . ab n't ab"
    # When
    config = {"clean_up_tokenization_spaces": True}
    (marian / "tokenizer_config.json").write_text(json.dumps(config))
    text = Text(text_files(marian))
    # Then
    assert text.decode(ids) == stream(text, ids) == "ab. abn't ab"


def test_bpe_keeps_its_spaces_whatever_the_config_says(tmp_path: Path) -> None:
    byte_level_files(tmp_path / "bart")
    config = {"clean_up_tokenization_spaces": True}
    (tmp_path / "bart" / "tokenizer_config.json").write_text(json.dumps(config))
    assert "decoding.json" not in text_files(tmp_path / "bart")
