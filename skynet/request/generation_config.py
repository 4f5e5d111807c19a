"""What a model's generation_config.json says: taken over as defaults of requests, or refused.

Every setting is honoured, without effect here, or refused by name when it would change answers.
Knows no Redis; how a request uses the defaults is `skynet/request/options.py`'s.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skynet.errors import UnsupportedModel

logger = logging.getLogger(__name__)

FILE = "generation_config.json"

# Defaults of every request, under the same name.
ALWAYS = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "renormalize_logits",
    "decoder_start_token_id",
)
# Defaults of requests that sample; they do not switch sampling on.
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
# Which change what is sampled, in ways that are not there: by the value that changes nothing.
UNKNOWN_SAMPLING = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None}
# Which change any answer, in ways that are not there: by the value that changes nothing.
UNKNOWN = {
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
ELSEWHERE = (
    "eos_token_id",
    "bos_token_id",
    "max_new_tokens",
    "max_length",
    "min_length",
    "stop_strings",
)
# Of assistants, caches, outputs and files: they do not change the text of one answer.
_OTHERS = """
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
WITHOUT_EFFECT = frozenset(_OTHERS.split())


@dataclass(frozen=True)
class GenerationDefaults:
    """What a request has that says nothing else.

    always: by option name. A decoder of an encoder-decoder may begin with `bos_token_id`, if the
        file has no `decoder_start_token_id`.
    sampling: the same, for requests that sample.
    not_sampled: settings that keep a request from being sampled, by name.
    max_new_tokens, max_length, min_length: tokens; lengths count prompt and answer.
    """

    always: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    not_sampled: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int = 0


def generation_defaults(files: Mapping[str, bytes]) -> GenerationDefaults:
    """From a model's text files; without a generation config there are no defaults.

    Raises:
        UnsupportedModel: a setting that is not there, or no JSON object; names it.
    """
    found = _settings(files.get(FILE, b""))
    for name, neutral in UNKNOWN.items():
        if name in found and found[name] != neutral:
            raise UnsupportedModel(
                f"{FILE}: {name} {found[name]!r:.80} would change answers, and is not supported; "
                "take it out of the file to do without it"
            )
    not_sampled = {
        name: found[name]
        for name, neutral in UNKNOWN_SAMPLING.items()
        if name in found and found[name] != neutral
    }
    known = {*ALWAYS, *SAMPLING, *UNKNOWN, *UNKNOWN_SAMPLING, *ELSEWHERE} | WITHOUT_EFFECT
    ignored = sorted([*not_sampled, *(found.keys() - known)])
    if ignored:
        logger.info("%s: %s: not used for greedy answers", FILE, ", ".join(ignored))
    always = {name: found[name] for name in ALWAYS if name in found}
    if "stop_strings" in found:
        always["stop"] = found["stop_strings"]
    if "bos_token_id" in found:
        always.setdefault("decoder_start_token_id", found["bos_token_id"])
    if isinstance(always.get("forced_eos_token_id"), int):
        always["forced_eos_token_id"] = [always["forced_eos_token_id"]]
    return GenerationDefaults(
        always,
        {name: found[name] for name in SAMPLING if name in found},
        not_sampled,
        _length(found, "max_new_tokens"),
        _length(found, "max_length"),
        _length(found, "min_length") or 0,
    )


def legacy_file(config: Mapping[str, Any]) -> bytes | None:
    """What a config.json of before generation configs sets of them, as such a file."""
    known = {*ALWAYS, *SAMPLING, *UNKNOWN, *UNKNOWN_SAMPLING, *ELSEWHERE}
    found = {name: value for name, value in config.items() if name in known and value is not None}
    return json.dumps(found, sort_keys=True).encode() if found else None


def _settings(content: bytes) -> dict[str, Any]:
    """What the file sets: null is nothing."""
    try:
        found = json.loads(content or b"{}")
    except ValueError as error:
        raise UnsupportedModel(f"{FILE} is not JSON: {error}; download it again") from error
    if not isinstance(found, dict):
        raise UnsupportedModel(f"{FILE} holds a {type(found).__name__}, expected an object")
    return {name: value for name, value in found.items() if value is not None}


def _length(found: Mapping[str, Any], name: str) -> int | None:
    value = found.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise UnsupportedModel(f"{FILE}: {name} {value!r:.80} is no number of tokens")
    return value or None
