"""A served model: prompts to token ids and options, and the prompts that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import letters, save_tokenizer, staged_text
from model_families import encoder_config, tiny_config
from tokenizers import Tokenizer, models, pre_tokenizers

from skynet.checkpoint.text_files import text_files
from skynet.client.served_model import ServedModel
from skynet.errors import BadRequest
from skynet.models.registry import load_architecture
from skynet.request.generation_config import generation_defaults
from skynet.request.text_tasks import TextTasks
from skynet.store.targets import Target
from skynet.tokenizer.text import Text
from tests.made_tokenizers import directory

TARGET = Target("0123", "tiny-model", "float32", "auto", 4, 32)


def served(path: Path, config: dict[str, Any], **embedding: Any) -> ServedModel:
    files, arch = text_files(path), load_architecture(config)
    text = Text(files)
    return ServedModel(text, generation_defaults(files), TextTasks(arch, embedding or None))


@pytest.fixture
def llama(tmp_path: Path) -> ServedModel:
    save_tokenizer(tmp_path, chat_template="{{ messages[0].content }}")
    return served(tmp_path, tiny_config("llama").to_dict())


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("option", "flag"), [("source_language", "--from"), ("target_language", "--to")]
)
def test_a_language_is_refused_by_a_model_without_languages(
    llama: ServedModel, option: str, flag: str, raw: bool
) -> None:
    # When a language is asked for, in the chat template or not / Then option and model are named
    prompt = letters([5, 6])
    assert llama.encode(prompt, "generate", raw, {}, TARGET)[0] == [5, 6]
    for given in (prompt, [{"role": "user", "content": prompt}], [5, 6]):
        with pytest.raises(BadRequest, match=rf"{option} 'de' \({flag}\): tiny-model has no"):
            llama.encode(given, "generate", raw, {option: "de"}, TARGET)


def test_structured_output_needs_a_tokenizer_of_the_tokenizers_library(
    llama: ServedModel, tmp_path: Path
) -> None:
    # Given
    options = {"structured_outputs": {"choice": ["a"]}, "max_tokens": 3}
    _, checked = llama.encode([5, 6], "generate", True, options, TARGET)
    assert checked.structured_outputs == '{"choice": ["a"]}'
    # When a model has no tokenizer / Then
    bare = served(tmp_path / "bare", tiny_config("llama").to_dict())
    with pytest.raises(BadRequest, match="structured_outputs: tiny-model has no tokenizer"):
        bare.encode([5, 6], "generate", True, options, TARGET)


@pytest.mark.parametrize("prompt", [" ", "\n", " \n\t "])
def test_white_space_alone_is_a_prompt(tmp_path: Path, prompt: str) -> None:
    # Given a tokenizer that makes tokens of white space, and one that makes none
    config = {**tiny_config("llama").to_dict(), "vocab_size": 1000}
    gpt2 = served(directory(tmp_path / "gpt2", "gpt2", {}), config)
    marian = served(directory(tmp_path / "t5", "t5", {"add_eos_token": False}), config)
    # When / Then it is what the tokenizer makes of it, as in Transformers
    ids, _ = gpt2.encode(prompt, "generate", True, {}, TARGET)
    assert ids == gpt2.text.encode(prompt) != []
    assert marian.text.encode(prompt) == marian.encode(prompt, "generate", True, {}, TARGET)[0]
    with pytest.raises(BadRequest, match="prompt: empty"):
        gpt2.encode("", "generate", True, {}, TARGET)


def test_a_prompt_of_no_tokens_is_refused() -> None:
    # Given a tokenizer that drops white space and puts nothing around a prompt
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    arch = load_architecture(tiny_config("llama").to_dict())
    model = ServedModel(staged_text(words), generation_defaults({}), TextTasks(arch))
    with pytest.raises(BadRequest, match="the tokenizer makes no tokens of it"):
        model.encode("\n", "generate", True, {}, TARGET)


def test_a_text_to_embed_is_cut_and_lower_cased(tmp_path: Path) -> None:
    # Given an encoder whose files limit texts to 6 tokens in lower case
    path = directory(tmp_path, "bert", {"do_lower_case": False})
    config = {**encoder_config("bert", "ForMaskedLM"), "vocab_size": 1000}
    settings = {"pooling": "mean", "max_tokens": 6, "do_lower_case": True}
    model, plain = served(path, config, **settings), served(path, config, pooling="mean")
    # When a longer text is embedded
    text = "The Fox And The Dog And The Cat"
    ids, _ = model.encode(text, "embed", False, {}, TARGET)
    # Then its beginning is, with the tokens around it
    whole = plain.text.encode(text.lower())
    assert ids == [*whole[:5], whole[-1]]
    # And token ids are taken as they are, as are texts for a model without such files
    assert model.encode(whole, "embed", False, {}, TARGET)[0] == whole
    assert plain.encode(text, "embed", False, {}, TARGET)[0] == plain.text.encode(text)


def test_the_options_of_a_chat_are_no_options_of_the_request(tmp_path: Path) -> None:
    # Given a template that reads tools
    save_tokenizer(tmp_path, chat_template="{{ messages[0].content }}{{ tools[0].name }}")
    model = served(tmp_path, tiny_config("llama").to_dict())
    messages = [{"role": "user", "content": letters([5, 6])}]
    given = {"tools": [{"name": letters([7])}], "continue_final_message": None, "max_tokens": 3}
    # When
    ids, options = model.encode(messages, "generate", True, given, TARGET)
    # Then
    assert ids == [5, 6, 7]
    assert options.max_tokens == 3
    with pytest.raises(BadRequest, match="tools: only chat messages"):
        model.encode(letters([5, 6]), "generate", True, given, TARGET)
