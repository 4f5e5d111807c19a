"""Text: the same ids and words as Transformers, in pieces that never show half a character."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoints import staged_text
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.errors import BadRequest, CheckpointError
from skynet.tokenizer import staged_tokenizer
from skynet.tokenizer.staged_tokenizer import FILE
from skynet.tokenizer.stop_strings import StopStrings
from skynet.tokenizer.text import Text

CORPUS = [
    "the capital of France is Paris",
    "größer, 東京 and 🙂🙃 emoji",
    "for x in range(10):\n  y",
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "  {% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "{% if message.role == 'skip' %}{% continue %}{% endif %}"
    "[{{ message.role }}]{{ message | tojson }}{% endfor %}"
    "{% generation %}{{ 'G' }}{% endgeneration %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE as GPT-2's, with a start token that it puts before every prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.add_tokens([AddedToken("<plain>", special=False)])
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """A BPE as Llama 2's: spaces as "▁", byte tokens for unknown characters."""
    words = ["<s>", "</s>", "<unk>", "▁", *"abcdefghij,.", "▁a", "▁b", "ab", "▁ab"]
    tokens = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    return tokenizer


BYTE_LEVEL, BYTE_FALLBACK = byte_level_tokenizer(), byte_fallback_tokenizer()


BYTE_LEVEL_TEXT, BYTE_FALLBACK_TEXT = staged_text(BYTE_LEVEL), staged_text(BYTE_FALLBACK)


def stream(text: Text, ids: list[int], skip_special_tokens: bool = True) -> list[str]:
    detokenizer = text.detokenizer(skip_special_tokens)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


def test_a_prompt_gets_the_special_tokens_around_it_and_its_decoding_has_none() -> None:
    ids = BYTE_LEVEL_TEXT.encode("the capital")
    assert ids[0] == 0
    assert BYTE_LEVEL_TEXT.decode(ids) == "the capital"


def test_padding_and_truncation_saved_with_a_tokenizer_are_ignored() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    assert staged_text(tokenizer).encode("the capital of") == BYTE_LEVEL_TEXT.encode(
        "the capital of"
    )


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() + 3), max_size=60))
def test_pieces_join_to_the_decoding_of_any_byte_level_ids(ids: list[int]) -> None:
    pieces = stream(BYTE_LEVEL_TEXT, ids)
    assert "".join(pieces) == BYTE_LEVEL_TEXT.decode(ids)


@given(TEXTS)
def test_pieces_of_real_text_never_hold_half_a_character(text: str) -> None:
    ids = BYTE_LEVEL_TEXT.encode(text)
    pieces = stream(BYTE_LEVEL_TEXT, ids)
    assert "".join(pieces) == text
    assert all(piece == "" or "\ufffd" in text or "\ufffd" not in piece for piece in pieces)


@given(TEXTS)
def test_pieces_join_with_byte_fallback_and_leading_spaces(text: str) -> None:
    ids = BYTE_FALLBACK_TEXT.encode(text)
    assert "".join(stream(BYTE_FALLBACK_TEXT, ids)) == BYTE_FALLBACK_TEXT.decode(ids)


@given(st.lists(st.integers(0, 19), max_size=30))
def test_pieces_join_for_any_words_and_special_tokens(ids: list[int]) -> None:
    assert "".join(stream(BYTE_FALLBACK_TEXT, ids)) == BYTE_FALLBACK_TEXT.decode(ids)


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() + 3), max_size=60))
def test_pieces_with_special_tokens_join_to_the_decoding_with_them(ids: list[int]) -> None:
    # Given any ids, special ones among them / Then their text is where they are
    joined = "".join(stream(BYTE_LEVEL_TEXT, ids, skip_special_tokens=False))
    assert joined == BYTE_LEVEL_TEXT.decode(ids, skip_special_tokens=False)
    assert ("<s>" in joined) >= (0 in ids)


@given(st.lists(st.integers(0, 19), max_size=30))
def test_pieces_of_words_with_special_tokens_join(ids: list[int]) -> None:
    joined = "".join(stream(BYTE_FALLBACK_TEXT, ids, skip_special_tokens=False))
    assert joined == BYTE_FALLBACK_TEXT.decode(ids, skip_special_tokens=False)


def test_a_character_comes_out_when_its_last_byte_does() -> None:
    ids = [BYTE_FALLBACK.token_to_id(f"<0x{byte:02X}>") for byte in "🙂é".encode()]
    assert stream(BYTE_FALLBACK_TEXT, ids) == ["", "", "", "🙂", "", "é", ""]


def test_invalid_bytes_are_released() -> None:
    # Given an endless run of bytes that continue nothing, as a model gone astray makes it
    broken = BYTE_LEVEL.token_to_id(pre_tokenizers.ByteLevel(False).pre_tokenize_str("é")[0][0][1])
    ids = [broken] * 200
    detokenizer = BYTE_LEVEL_TEXT.detokenizer()
    # Then the window in which tokens are decoded stays short
    pieces, widest = [], 0
    for token_id in ids:
        pieces.append(detokenizer.push(token_id))
        widest = max(widest, len(detokenizer._window))
    pieces.append(detokenizer.flush())
    assert "".join(pieces) == BYTE_LEVEL_TEXT.decode(ids)
    assert widest < 20


def test_a_long_answer_is_decoded_in_short_windows() -> None:
    detokenizer = BYTE_LEVEL_TEXT.detokenizer()
    for token_id in BYTE_LEVEL_TEXT.encode("größer, 東京 🙂 " * 30):
        detokenizer.push(token_id)
        assert len(detokenizer._window) <= 12


def test_a_model_without_a_tokenizer_speaks_ids_only() -> None:
    text = Text({})
    assert not text.has_tokenizer
    assert stream(text, [1, 2, 3]) == ["", "", "", ""]
    with pytest.raises(BadRequest, match="no tokenizer; send token ids"):
        text.encode("hello")
    with pytest.raises(BadRequest, match="no tokenizer"):
        text.decode([1])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{}", "tokenizers library cannot read it"),
        (b"\xff", "cannot be read"),
        (b'{"format": 4}', r"cannot be read \(format: .*split the model again"),
        (b'{"backend": 7}', r"cannot be read \(backend: .*split the model again"),
        (b'{"chat_template": ["x"]}', r"cannot be read \(chat_template"),
        (b'{"code": "x"}', r"cannot be read \(code: Extra inputs"),
        (b'{"pieces": {"vocabulary": {"a": -1}, "unknown": "a"}}', "pieces.vocabulary.a"),
        (b'{"pieces": {"vocabulary": {"a": 0}, "unknown": "b"}}', "'b' is not in the vocabulary"),
        (b'{"pieces": {"vocabulary": {"a": 0}, "unknown": "a"}}', "source.spm is missing"),
    ],
)
def test_a_staged_tokenizer_that_cannot_be_read_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        Text({FILE: content})


def test_a_staged_tokenizer_that_is_too_large_is_not_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staged_tokenizer, "MAX_BYTES", 10)
    with pytest.raises(CheckpointError, match="has 17 bytes, at most 10 are read"):
        Text({FILE: b'{"class_name":""}'})


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(BadRequest, match="prompt"):
        BYTE_LEVEL_TEXT.encode("half a pair: \ud800")
    with pytest.raises(BadRequest, match="expected text, got int"):
        BYTE_LEVEL_TEXT.encode(3)  # type: ignore[arg-type]


def test_a_chat_is_rendered_and_gets_no_second_start_token() -> None:
    text = staged_text(BYTE_LEVEL, chat_template=TEMPLATE, special_tokens={"bos_token": "<s>"})
    ids = text.chat([{"role": "user", "content": "<ö>"}, {"role": "skip", "content": ""}])
    expected = '<s>[user]{"role": "user", "content": "<ö>"}G[assistant]'
    assert ids == BYTE_LEVEL.encode(expected, add_special_tokens=False).ids
    assert ids.count(0) == 1


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("hello", "expected a list"),
        ([], "at least one"),
        (["hello"], r"messages\[0\]: expected"),
        ([{"role": "user"}], r"messages\[0\]\.content: expected text, got NoneType"),
        ([{"role": 1, "content": "x"}], r"messages\[0\]\.role: expected text, got int"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": "x", "image": b"x"}], r"messages\[0\]: not of JSON's types"),
        ([{"role": "tool", "content": "x"}], "no tools"),
    ],
)
def test_messages_that_cannot_be_answered_are_refused(messages: Any, problem: str) -> None:
    text = staged_text(BYTE_LEVEL, chat_template=TEMPLATE)
    with pytest.raises(BadRequest, match=problem):
        text.chat(messages)


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ dict.mro() }}",
        "{% set fields = namespace(__class__=1) %}",
        "{% set fields = namespace() %}{% set fields._x = 1 %}",
    ],
)
def test_a_broken_or_unsafe_template_is_refused(template: str) -> None:
    text = staged_text(BYTE_LEVEL, chat_template=template)
    with pytest.raises(BadRequest, match="chat template refuses"):
        text.chat([{"role": "user", "content": "x"}])


def test_a_chat_needs_a_template() -> None:
    assert not BYTE_LEVEL_TEXT.has_chat_template
    with pytest.raises(BadRequest, match="no chat template; send a prompt"):
        BYTE_LEVEL_TEXT.chat([{"role": "user", "content": "x"}])


@pytest.fixture(scope="module")
def demo(demo_checkpoint: Checkpoint) -> Text:
    return Text(demo_checkpoint.text_files())


@given(st.lists(st.integers(0, 49151), max_size=20))
def test_any_ids_of_the_demo_model_stream_as_they_decode(demo: Text, ids: list[int]) -> None:
    assert "".join(stream(demo, ids)) == demo.decode(ids)


def run_stops(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    checker, emitted, stopped = StopStrings(stops), "", False
    for piece in pieces:
        out, stopped = checker.push(piece)
        emitted += out
    return emitted + checker.flush(), stopped


def first_stop(stops: list[str], text: str) -> tuple[str, bool]:
    """The definition: the shortest beginning of the text that ends with a stop text."""
    for stop_at in range(len(text) + 1):
        hits = [stop for stop in stops if text[:stop_at].endswith(stop)]
        if hits:
            return text[: stop_at - len(max(hits, key=len))], True
    return text, False


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("ab", max_size=4), max_size=8),
)
def test_stop_texts_are_matched_wherever_pieces_are_cut(
    stops: list[str], pieces: list[str]
) -> None:
    assert run_stops(stops, pieces) == first_stop(stops, "".join(pieces))


def test_only_a_possible_start_of_a_stop_text_is_held_back() -> None:
    checker = StopStrings(["\nUser:", "###"])
    assert checker.push("Hello\nUs") == ("Hello", False)
    assert checker.push("eful #") == ("\nUseful ", False)
    assert checker.matched == ""
    assert checker.push("##x") == ("", True)
    assert checker.push("more") == ("", True)
    assert checker.flush() == ""
    assert checker.matched == "###"


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(BadRequest, match="stop"):
        StopStrings(["x", ""])
