"""A model's generation_config.json: settings become defaults of requests, or are refused.

Every setting is honoured, without effect here, or refused by name if it would change answers.
Knows no Redis; requests apply the defaults in `skynet/request/options.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skynet.errors import UnsupportedModel
from skynet.request.option_table import OPTIONS

logger = logging.getLogger(__name__)

FILE = "generation_config.json"

# Field -> option: defaults of every request.
ALWAYS = {o.config_field: o.name for o in OPTIONS if o.config_field and not o.samples_only}
# Field -> option: defaults of requests that sample; they do not switch sampling on.
SAMPLING = {o.config_field: o.name for o in OPTIONS if o.samples_only}
LENGTHS = ("max_new_tokens", "max_length", "min_length")
SPECIAL_TOKENS = ("eos_token_id", "bos_token_id")
# Unsupported sampling settings and their neutral values.
UNSUPPORTED_SAMPLING = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
}
# Unsupported settings that change any answer, and their neutral values.
UNSUPPORTED = {
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "sequence_bias": None,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "token_healing": False,
    "max_time": None,
}
HONOURED_OR_REFUSED = frozenset(
    [*ALWAYS, *SAMPLING, *LENGTHS, *SPECIAL_TOKENS, *UNSUPPORTED_SAMPLING, *UNSUPPORTED]
)
# Of assistants, caches, outputs and files: they do not change the text of an answer.
_WITHOUT_EFFECT = """
do_sample num_return_sequences
remove_invalid_values use_cache cache_implementation cache_config
max_cache_len output_attentions output_hidden_states output_scores output_logits
return_dict_in_generate pad_token_id is_assistant
num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind
target_lookbehind assistant_ensemble_weight speculation_type use_mtp compile_config
disable_compile low_memory prefill_chunk_size continuous_batching_config transformers_version
_from_model_config _commit_hash
"""
WITHOUT_EFFECT = frozenset(_WITHOUT_EFFECT.split())


@dataclass(frozen=True)
class GenerationDefaults:
    """The model's defaults of request options.

    always: by option name. Without `decoder_start_token_id` in the file, an encoder-decoder's
        answer may begin after `bos_token_id`.
    sampling: by option name, for requests that sample.
    unsupported_sampling: settings, by name, for which requests that sample are refused.
    max_new_tokens, max_length, min_length: tokens; the last two count prompt and answer.
    """

    always: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    unsupported_sampling: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int = 0


def generation_defaults(files: Mapping[str, bytes]) -> GenerationDefaults:
    """The defaults in a model's text files; none without a generation_config.json.

    Raises:
        UnsupportedModel: an unsupported setting, which it names, or the file is no JSON object.
    """
    settings = _settings(files.get(FILE, b""))
    for name, value in _other_than_neutral(settings, UNSUPPORTED).items():
        raise UnsupportedModel(
            f"{FILE}: {name} {value!r:.80} would change answers, and is not supported; take it "
            "out of the file to do without it"
        )
    unsupported_sampling = _other_than_neutral(settings, UNSUPPORTED_SAMPLING)
    unknown = settings.keys() - HONOURED_OR_REFUSED - WITHOUT_EFFECT
    if unused := sorted([*unknown, *unsupported_sampling]):
        logger.info("%s: %s: not used for greedy answers", FILE, ", ".join(unused))
    always = {option: settings[name] for name, option in ALWAYS.items() if name in settings}
    if "bos_token_id" in settings:
        always.setdefault("decoder_start_token_id", settings["bos_token_id"])
    if isinstance(always.get("forced_eos_token_id"), int):
        always["forced_eos_token_id"] = [always["forced_eos_token_id"]]
    return GenerationDefaults(
        always,
        {option: settings[name] for name, option in SAMPLING.items() if name in settings},
        unsupported_sampling,
        _length(settings, "max_new_tokens"),
        _length(settings, "max_length"),
        _length(settings, "min_length") or 0,
    )


def legacy_file(config: Mapping[str, Any]) -> bytes | None:
    """A generation_config.json of the generation settings in an old model's config.json."""
    settings = {
        name: value
        for name, value in config.items()
        if name in HONOURED_OR_REFUSED and value is not None
    }
    return json.dumps(settings, sort_keys=True).encode() if settings else None


def end_ids(config: Mapping[str, Any], files: Mapping[str, bytes]) -> frozenset[int]:
    """End-of-sequence ids: of the file if there is one, as in Transformers, else of the config.

    Raises:
        UnsupportedModel: the file is no JSON object, or an id is no number.
    """
    eos = (_settings(files[FILE]) if FILE in files else config).get("eos_token_id")
    ids = [item for item in (eos if isinstance(eos, list) else [eos]) if item is not None]
    if not all(type(item) is int for item in ids):
        raise UnsupportedModel(f"eos_token_id {eos!r:.80} is not a token id, or a list of them")
    return frozenset(ids)


def _settings(content: bytes) -> dict[str, Any]:
    """The file's settings that are not null."""
    try:
        settings = json.loads(content or b"{}")
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{FILE} is not JSON: {error}; download it again") from error
    if not isinstance(settings, dict):
        raise UnsupportedModel(f"{FILE} holds a {type(settings).__name__}, expected an object")
    return {name: value for name, value in settings.items() if value is not None}


def _other_than_neutral(settings: Mapping[str, Any], neutral: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: settings[name]
        for name, value in neutral.items()
        if name in settings and settings[name] != value
    }


def _length(settings: Mapping[str, Any], name: str) -> int | None:
    value = settings.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise UnsupportedModel(f"{FILE}: {name} {value!r:.80} is not a number of tokens")
    return value or None
