"""The options of a request, checked before anything is written.

One option's limits are its row's, in `skynet/request/option_table.py`; here are the model's
defaults and the limits that involve several options, the prompt or the cluster.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from skynet.errors import BadRequest
from skynet.request.generation_config import FILE, GenerationDefaults
from skynet.request.option_table import BY_NAME, KNOWN, OPTIONS
from skynet.request.option_values import check_integer, check_value, is_integer, shown
from skynet.request.prompts import check_token_ids
from skynet.request.record import Options, Record
from skynet.request.structured import check_grammar
from skynet.request.text_tasks import check_text_task

DEFAULT_MAX_TOKENS = BY_NAME["max_tokens"].default
LANGUAGES = ("source_language", "target_language")  # of a text to translate: part of its prompt


# The tokens of a text of `bad_words` may be more than an item of `bad_words_ids` may have.
RECORDED = {"bad_words_ids": replace(BY_NAME["bad_words_ids"], max_item_length=2048)}


@dataclass(frozen=True)
class Limits:
    """The limits of a cluster and its model.

    slot_tokens: longest prompt and answer together.
    num_slots: sequences, or beams, that run at once.
    has_encoder: the model is an encoder-decoder.
    """

    slot_tokens: int
    vocab_size: int = 2**31
    num_slots: int = int(BY_NAME["num_beams"].maximum)
    has_encoder: bool = False


def check_options(
    given: Mapping[str, Any],
    prompt_length: int,
    limits: Limits,
    defaults: GenerationDefaults | None = None,
    encode: Callable[[str], list[int]] | None = None,
) -> Options:
    """Options from keyword arguments; missing or None is the model's default, or SkyNet's.

    A request that samples without a seed is given one, so that it can be replayed.

    prompt_length: tokens before the answer; 1 where an encoder reads the prompt.
    encode: token ids of a text, for `bad_words`.

    Raises:
        BadRequest: names the option, its value and its limit.
    """
    unknown = sorted(set(given) - set(KNOWN))
    if unknown:
        raise BadRequest(f"unknown option {', '.join(unknown)}; known are {', '.join(KNOWN)}")
    defaults = defaults or GenerationDefaults()
    given = {name: value for name, value in given.items() if value is not None}
    max_tokens = _max_tokens(given.get("max_tokens"), prompt_length, limits, defaults)
    samples = _samples(given, defaults)
    values = {**defaults.always, **(defaults.sampling if samples else {}), **given}
    if samples:
        values.setdefault("temperature", 1.0)
        values.setdefault("seed", secrets.randbits(63))
    values["max_tokens"] = max_tokens
    values["min_new_tokens"] = _min_new_tokens(given, defaults, max_tokens, prompt_length)
    values["decoder_start_token_id"] = _decoder_start(given, values, limits.has_encoder)
    checked = {
        option.name: check_value(option, values[option.name], limits.vocab_size)
        for option in OPTIONS
        if values.get(option.name) is not None
    }
    checked["bad_words_ids"] = _bad_words(checked, encode)
    _check_num_beams(checked, limits.num_slots, by_default="num_beams" not in given)
    options = _recorded(checked)
    _check_forced(options)
    _check_beams(options)
    _check_structured(options, limits.has_encoder)
    if options.structured_outputs is not None:
        check_grammar(options.structured_outputs)
    _check_prompt_logprobs(options)
    return options


def _recorded(checked: Mapping[str, Any]) -> Options:
    """The record's options; those of a beam search have their defaults without one."""
    has_beams = checked.get("num_beams", 1) > 1
    return Options(
        **{
            option.name: checked[option.name]
            for option in OPTIONS
            if option.recorded and option.name in checked and (has_beams or not option.beams_only)
        }
    )


def check_record(record: Record, prompt_vocab_size: int, vocab_size: int) -> None:
    """Refuse a record whose tokens or options no client of this version writes.

    Raises:
        BadRequest: names the prompt's token or the option, its value and its limit.
    """
    check_token_ids(record.prompt, prompt_vocab_size)
    options = record.options
    if not record.prompt:
        raise BadRequest("prompt: empty")
    if options.read is not None:
        check_text_task(options.read, len(record.prompt))
        return
    for option in OPTIONS:
        value = getattr(options, option.name, None)
        if value is not None:
            check_value(RECORDED.get(option.name, option), value, vocab_size)
    _check_beams(options)
    _check_structured(options, options.decoder_start_token_id is not None)
    _check_prompt_logprobs(options)


def check_priority(value: Any) -> int:
    """A request's priority, 0 to 9; as in AMQP and Celery's other brokers, the highest goes first.

    Raises:
        BadRequest: it is not an integer in that range.
    """
    priority: int = check_value(BY_NAME["priority"], value)
    return priority


def check_samples(value: Any, options: Options) -> int:
    """The number of answers to one prompt, 1 to 16.

    Raises:
        BadRequest: it is not an integer in that range, or the request is a beam search.
    """
    count: int = check_value(BY_NAME["n"], value)
    if count > 1 and options.num_beams > 1:
        raise BadRequest(
            f"n {count} with num_beams {options.num_beams}: ask once, the best hypotheses are in "
            "the completion's beams"
        )
    return count


def _max_tokens(
    value: Any, prompt_length: int, limits: Limits, defaults: GenerationDefaults
) -> int:
    room = limits.slot_tokens - prompt_length
    if room < (0 if is_integer(value) and value == 0 else 1):
        raise BadRequest(
            f"the prompt has {prompt_length} tokens, the cluster holds {limits.slot_tokens} for "
            "prompt and answer together: shorten it, or split the model again with more "
            "--slot-tokens"
        )
    if value is None:
        value = min(room, defaults.max_new_tokens or DEFAULT_MAX_TOKENS)
        if defaults.max_length and not defaults.max_new_tokens:
            left = defaults.max_length - prompt_length
            # An encoder-decoder's max_length limits its answer, a decoder's the model's positions.
            maximum = room if limits.has_encoder else value
            value = min(maximum, left) if left > 0 else value
    max_tokens: int = check_value(BY_NAME["max_tokens"], value)
    if max_tokens == -1:
        return room
    if max_tokens > room:
        raise BadRequest(
            f"max_tokens {max_tokens}: {prompt_length} tokens of prompt leave room for {room} of "
            f"the cluster's {limits.slot_tokens}"
        )
    return max_tokens


def _min_new_tokens(
    given: Mapping[str, Any], defaults: GenerationDefaults, max_tokens: int, prompt_length: int
) -> int:
    name = "min_new_tokens"
    if name in given:
        return check_integer(name, given[name], 0, max_tokens)
    # The model's minimum may exceed this answer's maximum: no end token then.
    minimum = defaults.always.get(name, max(0, defaults.min_length - prompt_length))
    return min(check_integer(name, minimum, 0), max_tokens)


def _samples(given: Mapping[str, Any], defaults: GenerationDefaults) -> bool:
    """Whether tokens are sampled; else the likeliest is taken."""
    temperature = given.get("temperature")
    hot = temperature is not None and check_value(BY_NAME["temperature"], temperature) > 0
    samples: bool = check_value(BY_NAME["do_sample"], given.get("do_sample", hot))
    if samples != hot and temperature is not None:
        raise BadRequest(f"do_sample {samples}, temperature {shown(temperature)}: they contradict")
    if samples and defaults.unsupported_sampling:
        settings = ", ".join(
            f"{name} {value}" for name, value in defaults.unsupported_sampling.items()
        )
        raise BadRequest(
            f"this model cannot be sampled: its {FILE} has {settings}, which is not supported; "
            "ask with temperature 0, or split the model without it"
        )
    return samples


def _decoder_start(
    given: Mapping[str, Any], values: Mapping[str, Any], has_encoder: bool
) -> Any | None:
    """The token before an encoder-decoder's answer; None for a decoder-only model."""
    name = "decoder_start_token_id"
    if not has_encoder:
        if name in given:
            raise BadRequest(
                f"{name} {shown(given[name])}: this model has no encoder, leave it out"
            )
        return None
    if name not in values:
        raise BadRequest(f"{name}: the model names none, so the request must")
    return values[name]


def _bad_words(
    checked: Mapping[str, Any], encode: Callable[[str], list[int]] | None
) -> tuple[tuple[int, ...], ...]:
    """`bad_words_ids`, and the ids of `bad_words` at a text's start and after a space."""
    option = BY_NAME["bad_words_ids"]
    words = list(checked.get("bad_words_ids", ()))
    if encode is not None:
        for text in checked.get("bad_words", ()):
            words += [tuple(encode(text)), tuple(encode(f" {text}"))]
    if len(words) > option.max_items or not all(words):
        raise BadRequest(f"bad_words: {len(words)} with bad_words_ids, expected {option.values}")
    return tuple(dict.fromkeys(words))


def _check_num_beams(checked: Mapping[str, Any], num_slots: int, by_default: bool) -> None:
    count = checked.get("num_beams", 1)
    if count > num_slots:
        origin = ", the model's default" if by_default else ""
        raise BadRequest(
            f"num_beams {count}{origin}: each takes a slot, and the cluster has {num_slots}; ask "
            "for fewer, or split the model with more --slots"
        )


def _check_beams(options: Options) -> None:
    """Refuse options that a beam search does not support."""
    if options.num_beams == 1:
        return
    unsupported = {
        "sampling": options.temperature > 0,
        "stop": bool(options.stop),
        "stop_token_ids": bool(options.stop_token_ids),
        "logprobs": options.logprobs is not None,
        "prompt_logprobs": options.prompt_logprobs is not None,
    }
    for name, is_set in unsupported.items():
        if is_set:
            raise BadRequest(
                f"num_beams {options.num_beams} with {name} is not supported: leave that out, or "
                "ask with num_beams 1"
            )


def _check_structured(options: Options, has_encoder: bool) -> None:
    """Refuse options that would break a grammar, and models and modes that do not support one."""
    if options.structured_outputs is None:
        return
    if has_encoder:
        raise BadRequest("structured_outputs: not supported by encoder-decoder models")
    unsupported = {
        "num_beams": options.num_beams > 1,
        "ignore_eos": options.ignore_eos,
        "min_new_tokens": options.min_new_tokens > 0,
        "forced_bos_token_id": options.forced_bos_token_id is not None,
        "forced_eos_token_id": bool(options.forced_eos_token_id),
    }
    for name, is_set in unsupported.items():
        if is_set:
            raise BadRequest(
                f"structured_outputs with {name} {shown(getattr(options, name))} is not "
                "supported: the grammar decides how an answer begins and ends"
            )


def _check_prompt_logprobs(options: Options) -> None:
    """Refuse them of an encoder's prompt, and an answer of no token without them."""
    name, count = "prompt_logprobs", options.prompt_logprobs
    if options.max_tokens < 1 and (count is None or options.max_tokens):
        raise BadRequest(
            f"max_tokens {options.max_tokens}: 1 or more, -1 to the end of the context, or 0 with "
            f"{name}"
        )
    if count is not None and options.decoder_start_token_id is not None:
        raise BadRequest(
            f"{name} {count}: an encoder reads the prompt of this model, and gives its tokens no "
            "probabilities; leave it out"
        )


def _check_forced(options: Options) -> None:
    bos = options.forced_bos_token_id
    forced: dict[str, tuple[int, ...]] = {}
    forced["forced_bos_token_id"] = () if bos is None else (bos,)
    forced["forced_eos_token_id"] = options.forced_eos_token_id
    for name, ids in forced.items():
        if ids and set(ids) <= set(options.suppress_tokens):
            raise BadRequest(f"{name} {ids}: suppress_tokens leaves none of them")
