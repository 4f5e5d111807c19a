"""Settings of a generation_config.json are honoured, without effect, or refused by name."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from transformers import GenerationConfig

from skynet.errors import BadRequest, UnsupportedModel
from skynet.models.registry import load_architecture
from skynet.request.generation_config import (
    HONOURED_OR_REFUSED,
    UNSUPPORTED,
    WITHOUT_EFFECT,
    GenerationDefaults,
    generation_defaults,
    legacy_file,
)
from skynet.request.options import DEFAULT_MAX_TOKENS, Limits, check_options
from skynet.request.record import Options
from skynet.staging.stager import check_generation_config

SLOT = 1000
VOCAB = 50
DECODER = Limits(SLOT, VOCAB, has_encoder=True)
ARCH = load_architecture(
    {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": VOCAB,
    }
)


def defaults_of(**fields: Any) -> GenerationDefaults:
    return generation_defaults({"generation_config.json": json.dumps(fields).encode()})


def options_of(defaults: GenerationDefaults, prompt_length: int = 10, **given: Any) -> Options:
    return check_options(given, prompt_length, Limits(SLOT, VOCAB), defaults)


def test_every_setting_of_transformers_has_its_place() -> None:
    # Given all settings that Transformers knows
    settings = set(GenerationConfig().__dict__)
    # Then each is honoured, refused or without effect
    assert settings <= HONOURED_OR_REFUSED | WITHOUT_EFFECT


def test_no_file_and_an_empty_one_set_nothing() -> None:
    assert generation_defaults({}) == GenerationDefaults() == defaults_of()
    assert options_of(defaults_of(repetition_penalty=None)) == Options()


def test_settings_of_the_file_are_defaults_of_requests() -> None:
    # Given a config with all that decides tokens
    defaults = defaults_of(
        repetition_penalty=1.2,
        no_repeat_ngram_size=3,
        min_new_tokens=2,
        bad_words_ids=[[1], [2, 3]],
        suppress_tokens=[4],
        begin_suppress_tokens=[5],
        forced_bos_token_id=6,
        forced_eos_token_id=7,
        stop_strings=["END"],
        max_new_tokens=40,
    )
    # When a request says nothing / Then it has them
    assert options_of(defaults) == Options(
        max_tokens=40,
        stop=("END",),
        repetition_penalty=1.2,
        no_repeat_ngram_size=3,
        min_new_tokens=2,
        bad_words_ids=((1,), (2, 3)),
        suppress_tokens=(4,),
        begin_suppress_tokens=(5,),
        forced_bos_token_id=6,
        forced_eos_token_id=(7,),
    )
    # And options of the request go before
    given = {"repetition_penalty": 1.0, "bad_words_ids": [], "stop": [], "max_tokens": 5}
    chosen = options_of(defaults, **given, min_new_tokens=0)
    assert (chosen.repetition_penalty, chosen.bad_words_ids, chosen.stop) == (1.0, (), ())
    assert (chosen.max_tokens, chosen.min_new_tokens) == (5, 0)


def test_the_file_does_not_switch_sampling_on() -> None:
    # Given a config as many chat models have it
    defaults = defaults_of(do_sample=True, temperature=0.6, top_k=20, top_p=0.9, min_p=0.1)
    # Then a request is greedy unless it says otherwise
    assert options_of(defaults) == Options()
    assert options_of(defaults, do_sample=False) == Options()
    # And one that samples has the rest of it
    warm = options_of(defaults, temperature=0.8, seed=1)
    assert (warm.temperature, warm.top_k, warm.top_p, warm.min_p) == (0.8, 20, 0.9, 0.1)
    sampled = options_of(defaults, do_sample=True, top_k=0)
    assert (sampled.temperature, sampled.top_k, sampled.top_p) == (0.6, 0, 0.9)
    assert sampled.seed is not None
    assert options_of(GenerationDefaults(), do_sample=True).temperature == 1.0


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_do_sample_and_temperature_must_agree(temperature: float) -> None:
    with pytest.raises(BadRequest, match=rf"do_sample {not temperature}, temperature"):
        options_of(GenerationDefaults(), do_sample=not temperature, temperature=temperature)


@pytest.mark.parametrize(
    ("fields", "prompt_length", "max_tokens", "min_new_tokens"),
    [
        ({"max_length": 60}, 10, 50, 0),
        ({"max_length": 4096}, 10, DEFAULT_MAX_TOKENS, 0),
        ({"max_length": 60}, 70, DEFAULT_MAX_TOKENS, 0),  # Transformers could not answer at all
        ({"max_length": 60, "max_new_tokens": 90}, 10, 90, 0),
        ({"max_new_tokens": 5000}, 10, SLOT - 10, 0),
        ({"min_length": 15}, 10, DEFAULT_MAX_TOKENS, 5),
        ({"min_length": 5}, 10, DEFAULT_MAX_TOKENS, 0),
        ({"min_length": 15, "min_new_tokens": 2}, 10, DEFAULT_MAX_TOKENS, 2),
        ({"min_new_tokens": 50, "max_new_tokens": 20}, 10, 20, 20),
    ],
    ids=str,
)
def test_lengths(
    fields: dict[str, Any], prompt_length: int, max_tokens: int, min_new_tokens: int
) -> None:
    options = options_of(defaults_of(**fields), prompt_length)
    assert (options.max_tokens, options.min_new_tokens) == (max_tokens, min_new_tokens)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beam_groups", 2),
        ("diversity_penalty", 0.5),
        ("guidance_scale", 1.5),
        ("penalty_alpha", 0.6),
        ("sequence_bias", [[[1], 2.0]]),
        ("exponential_decay_length_penalty", [5, 1.1]),
        ("watermarking_config", {"bias": 2.0}),
        ("token_healing", True),
    ],
)
def test_settings_that_change_answers_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedModel, match=rf"generation_config\.json: {name} .*support"):
        defaults_of(**{name: value})
    assert defaults_of(**{name: UNSUPPORTED[name]}) == GenerationDefaults()


def test_settings_that_change_samples_only_are_refused_for_sampled_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a config with an unsupported filter and an unknown setting
    with caplog.at_level(logging.INFO):
        defaults = defaults_of(typical_p=0.9, eta_cutoff=0.0, chat_format="chatml", use_cache=True)
    # Then greedy requests are answered, and the log names the unused settings
    assert options_of(defaults) == Options()
    assert "chat_format, typical_p: not used" in caplog.text
    with pytest.raises(BadRequest, match=r"cannot be sampled: .* typical_p 0\.9"):
        options_of(defaults, temperature=0.5)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"max_length": "x"}', b'{"min_length": -1}'], ids=repr
)
def test_a_broken_file_is_refused(content: bytes) -> None:
    with pytest.raises(UnsupportedModel, match=r"generation_config\.json"):
        generation_defaults({"generation_config.json": content})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty 0"),
        ({"suppress_tokens": [VOCAB]}, "suppress_tokens 50"),
        ({"num_beams": 2, "renormalize_logits": 3}, "renormalize_logits"),
        ({"suppress_tokens": [1], "forced_eos_token_id": 1}, "forced_eos_token_id"),
    ],
    ids=str,
)
def test_values_that_no_request_could_have_are_refused_before_staging(
    fields: dict[str, Any], message: str
) -> None:
    files = {"generation_config.json": json.dumps(fields).encode()}
    with pytest.raises(UnsupportedModel, match=rf"generation_config\.json: .*{message}"):
        check_generation_config(files, ARCH)


@pytest.mark.parametrize("fields", [{"top_p": 0.0}, {"temperature": 1e-6}, {"top_k": -1}], ids=str)
def test_settings_for_sampling_only_do_not_refuse_greedy_requests(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    # Given settings that greedy answers do not use
    (name,) = fields
    # When the model is staged / Then the log names them
    check_generation_config({"generation_config.json": json.dumps(fields).encode()}, ARCH)
    assert f"{name} {fields[name]}" in caplog.text
    # And greedy requests are answered
    defaults = defaults_of(**fields)
    assert options_of(defaults) == Options()
    with pytest.raises(BadRequest, match=name):
        options_of(defaults, do_sample=True)


def test_beams_of_the_model_are_the_default_and_a_sample_has_none() -> None:
    # Given a config as summarisers have it
    defaults = defaults_of(
        num_beams=4,
        length_penalty=2.0,
        early_stopping=True,
        renormalize_logits=True,
        max_length=142,
    )
    # Then requests search as it says, or say otherwise
    options = options_of(defaults)
    assert (options.num_beams, options.length_penalty, options.early_stopping) == (4, 2.0, True)
    assert options.renormalize_logits
    assert options_of(defaults, num_beams=1) == Options()
    with pytest.raises(BadRequest, match="num_beams 4, the model's default: each takes"):
        check_options({}, 10, Limits(SLOT, VOCAB, num_slots=3), defaults)
    with pytest.raises(BadRequest, match="num_beams 4 with sampling"):
        options_of(defaults, temperature=0.5)
    # And the model is staged, though a sample has to say so
    content = json.dumps({"num_beams": 4, "top_p": 0.9}).encode()
    check_generation_config({"generation_config.json": content}, ARCH)


def test_an_encoder_decoder_begins_as_its_config_says() -> None:
    # Given a start token, or a token that stands in for it, or neither
    def start(**fields: Any) -> int | None:
        options = check_options({}, 1, DECODER, defaults_of(**fields))
        return options.decoder_start_token_id

    # Then
    assert start(decoder_start_token_id=2, bos_token_id=0) == 2
    assert start(bos_token_id=0) == 0
    with pytest.raises(BadRequest, match="decoder_start_token_id: the model names none"):
        start()
    assert options_of(defaults_of(bos_token_id=3)).decoder_start_token_id is None


def test_the_longest_answer_of_an_encoder_decoder_is_its_config_s() -> None:
    # Given a length that counts the decoder's start
    defaults = defaults_of(decoder_start_token_id=2, max_length=300)
    # When / Then
    assert check_options({}, 1, DECODER, defaults).max_tokens == 299
    assert check_options({}, 1, Limits(50, VOCAB, has_encoder=True), defaults).max_tokens == 49


def test_generation_settings_in_an_old_config_are_read() -> None:
    # Given a config.json with settings among the model's sizes
    content = legacy_file({"d_model": 8, "num_beams": 3, "forced_eos_token_id": 2, "top_k": None})
    assert content is not None
    # When / Then
    defaults = generation_defaults({"generation_config.json": content})
    assert defaults.always == {"num_beams": 3, "forced_eos_token_id": [2]}
    assert legacy_file({"d_model": 8}) is None
