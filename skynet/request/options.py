"""What a request may ask for, checked before anything is written."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from skynet.errors import BadRequest
from skynet.request.generation_config import FILE, GenerationDefaults
from skynet.request.record import Options

DEFAULT_MAX_TOKENS = 128
MAX_PRIORITY = 9
MAX_SAMPLES = 16
MAX_LOGPROBS = 20
MAX_STOPS = 16
MIN_TEMPERATURE = 1e-3  # below, logits overflow
MAX_TEMPERATURE = 100
MAX_STOP_CHARACTERS = 256
MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS, MAX_SUPPRESSED = 1024, 64, 4096
MAX_BEAMS = 64
MAX_LENGTH_PENALTY = 10.0
KNOWN = (
    "max_tokens",
    "temperature",
    "do_sample",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "stop",
    "ignore_eos",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "bad_words",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "logprobs",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "renormalize_logits",
    "decoder_start_token_id",
    "source_language",
    "target_language",
)
LANGUAGES = ("source_language", "target_language")  # of a text to translate: part of its prompt


def check_options(
    given: Mapping[str, Any],
    prompt_length: int,
    slot_tokens: int,
    defaults: GenerationDefaults | None = None,
    vocab_size: int = 2**31,
    encode: Callable[[str], list[int]] | None = None,
    *,
    num_slots: int = MAX_BEAMS,
    has_encoder: bool = False,
) -> Options:
    """Options from keyword arguments; what is missing or None is the model's default, or SkyNet's.

    A request that samples without a seed is given one, so that it can be replayed.

    prompt_length: tokens before the answer; 1 where an encoder reads the prompt.
    encode: token ids of a text, for `bad_words`.
    num_slots: how many sequences, or beams, the cluster holds at once.
    has_encoder: the model is an encoder-decoder.

    Raises:
        BadRequest: names the option, its value and its limit.
    """
    unknown = sorted(set(given) - set(KNOWN))
    if unknown:
        raise BadRequest(f"unknown option {', '.join(unknown)}; known are {', '.join(KNOWN)}")
    defaults = defaults or GenerationDefaults()
    own = {name: value for name, value in given.items() if value is not None}
    max_tokens = _max_tokens(
        own.get("max_tokens"), prompt_length, slot_tokens, defaults, has_encoder
    )
    samples = _samples(own, defaults)
    chosen = {**defaults.always, **(defaults.sampling if samples else {}), **own}
    temperature = _temperature(chosen.get("temperature", 1.0)) if samples else 0.0
    seed = chosen.get("seed")
    if seed is None:
        seed = secrets.randbits(63) if samples else None
    max_id = vocab_size - 1
    bos = chosen.get("forced_bos_token_id")
    found = Options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=_whole("top_k", chosen.get("top_k", 0), 0),
        top_p=_share("top_p", chosen.get("top_p", 1.0), zero=False),
        seed=None if seed is None else _whole("seed", seed, 0, 2**64 - 1),
        stop=_stops(chosen.get("stop", ())),
        ignore_eos=_flag("ignore_eos", chosen.get("ignore_eos", False)),
        min_p=_share("min_p", chosen.get("min_p", 0.0), zero=True),
        repetition_penalty=_penalty(chosen.get("repetition_penalty", 1.0)),
        no_repeat_ngram_size=_whole(
            "no_repeat_ngram_size", chosen.get("no_repeat_ngram_size", 0), 0
        ),
        min_new_tokens=_min_new_tokens(own, defaults, max_tokens, prompt_length),
        bad_words_ids=_bad_words(chosen, max_id, encode),
        suppress_tokens=_ids("suppress_tokens", chosen.get("suppress_tokens", ()), max_id),
        begin_suppress_tokens=_ids(
            "begin_suppress_tokens", chosen.get("begin_suppress_tokens", ()), max_id
        ),
        forced_bos_token_id=None if bos is None else _whole("forced_bos_token_id", bos, 0, max_id),
        forced_eos_token_id=_ids(
            "forced_eos_token_id", _one_or_more(chosen.get("forced_eos_token_id", ())), max_id
        ),
        logprobs=None
        if chosen.get("logprobs") is None
        else _whole("logprobs", chosen["logprobs"], 0, MAX_LOGPROBS),
        decoder_start_token_id=_decoder_start(own, chosen, max_id, has_encoder),
        **_beams(own, chosen, num_slots),
    )
    _check_forced(found)
    _check_beams(found)
    return found


def _decoder_start(
    own: Mapping[str, Any], chosen: Mapping[str, Any], max_id: int, has_encoder: bool
) -> int | None:
    """What an encoder-decoder's answer begins after; None of a decoder alone."""
    name = "decoder_start_token_id"
    if not has_encoder:
        if name in own:
            raise BadRequest(f"{name} {own[name]!r:.80}: this model has no encoder, leave it out")
        return None
    if name not in chosen:
        raise BadRequest(f"{name}: the model names none, so the request must")
    return _whole(name, chosen[name], 0, max_id)


def _beams(own: Mapping[str, Any], chosen: Mapping[str, Any], num_slots: int) -> dict[str, Any]:
    """The options of a beam search; one beam has none."""
    count = _whole("num_beams", chosen.get("num_beams", 1), 1, MAX_BEAMS)
    if count > num_slots:
        whose = "" if "num_beams" in own else ", the model's own default"
        raise BadRequest(
            f"num_beams {count}{whose}: each takes a slot, and the cluster has {num_slots}; ask "
            "for fewer, or split the model with more --slots"
        )
    penalty = _number("length_penalty", chosen.get("length_penalty", 1.0))
    if abs(penalty) > MAX_LENGTH_PENALTY:
        raise BadRequest(
            f"length_penalty {penalty}: {-MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}"
        )
    early = chosen.get("early_stopping", False)
    if not isinstance(early, bool) and early != "never":
        raise BadRequest(f"early_stopping {early!r:.80}: True, False or 'never'")
    renormalize = _flag("renormalize_logits", chosen.get("renormalize_logits", False))
    if count == 1:  # which token is the likeliest does not depend on any of these
        return {}
    return {
        "num_beams": count,
        "length_penalty": penalty,
        "early_stopping": early,
        "renormalize_logits": renormalize,
    }


def _check_beams(options: Options) -> None:
    """Refuse what beams are not searched with."""
    if options.num_beams == 1:
        return
    other = {
        "sampling": options.temperature > 0,
        "stop": bool(options.stop),
        "logprobs": options.logprobs is not None,
    }
    for name, asked in other.items():
        if asked:
            raise BadRequest(
                f"num_beams {options.num_beams} with {name} is not supported: leave that out, or "
                "ask with num_beams 1"
            )


def _check_forced(options: Options) -> None:
    bos = options.forced_bos_token_id
    forced: dict[str, tuple[int, ...]] = {}
    forced["forced_bos_token_id"] = () if bos is None else (bos,)
    forced["forced_eos_token_id"] = options.forced_eos_token_id
    for name, ids in forced.items():
        if ids and set(ids) <= set(options.suppress_tokens):
            raise BadRequest(f"{name} {ids}: suppress_tokens leaves none of them")


def check_priority(value: Any) -> int:
    """A request's priority, 0 to 9; as in AMQP and Celery's other brokers, the highest goes first.

    Raises:
        BadRequest: it is none of these.
    """
    return _whole("priority", value, 0, MAX_PRIORITY)


def check_samples(value: Any, options: Options) -> int:
    """How many answers to one prompt, 1 to 16.

    Raises:
        BadRequest: it is none of these, or there are beams.
    """
    count = _whole("n", value, 1, MAX_SAMPLES)
    if count > 1 and options.num_beams > 1:
        raise BadRequest(
            f"n {count} with num_beams {options.num_beams}: ask once, the best hypotheses are in "
            "the completion's beams"
        )
    return count


def _max_tokens(
    value: Any,
    prompt_length: int,
    slot_tokens: int,
    defaults: GenerationDefaults,
    has_encoder: bool,
) -> int:
    room = slot_tokens - prompt_length
    if room < 1:
        raise BadRequest(
            f"the prompt has {prompt_length} tokens, the cluster holds {slot_tokens} for prompt "
            "and answer together: shorten it, or split the model again with more --slot-tokens"
        )
    if value is None:
        value = min(room, defaults.max_new_tokens or DEFAULT_MAX_TOKENS)
        if defaults.max_length and not defaults.max_new_tokens:
            left = defaults.max_length - prompt_length
            # Of an encoder-decoder it is about the answer, of others about the model's positions.
            most = room if has_encoder else value
            value = min(most, left) if left > 0 else value
    max_tokens = _whole("max_tokens", value, 1)
    if max_tokens > room:
        raise BadRequest(
            f"max_tokens {max_tokens}: {prompt_length} tokens of prompt leave room for {room} of "
            f"the cluster's {slot_tokens}"
        )
    return max_tokens


def _min_new_tokens(
    own: Mapping[str, Any], defaults: GenerationDefaults, max_tokens: int, prompt_length: int
) -> int:
    if "min_new_tokens" in own:
        return _whole("min_new_tokens", own["min_new_tokens"], 0, max_tokens)
    # What the model asks for may be longer than this answer: no end token then.
    least = defaults.always.get("min_new_tokens", max(0, defaults.min_length - prompt_length))
    return min(_whole("min_new_tokens", least, 0), max_tokens)


def _samples(own: Mapping[str, Any], defaults: GenerationDefaults) -> bool:
    """Is a token drawn, or the likeliest taken?"""
    temperature = own.get("temperature")
    hot = temperature is not None and _temperature(temperature) > 0
    samples = _flag("do_sample", own.get("do_sample", hot))
    if samples != hot and temperature is not None:
        raise BadRequest(f"do_sample {samples}, temperature {temperature}: they contradict")
    if samples and defaults.not_sampled:
        names = ", ".join(f"{name} {value}" for name, value in defaults.not_sampled.items())
        raise BadRequest(
            f"this model cannot be sampled: its {FILE} has {names}, which is not supported; "
            "ask with temperature 0, or split the model without it"
        )
    return samples


def _temperature(value: Any) -> float:
    temperature = _number("temperature", value)
    if temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise BadRequest(
            f"temperature {temperature}: 0 (greedy), or {MIN_TEMPERATURE} to {MAX_TEMPERATURE}"
        )
    return temperature


def _penalty(value: Any) -> float:
    penalty = _number("repetition_penalty", value)
    if not 0.01 <= penalty <= 100:
        raise BadRequest(f"repetition_penalty {penalty}: 0.01 to 100, 1 is off")
    return penalty


def _share(name: str, value: Any, *, zero: bool) -> float:
    share = _number(name, value)
    if not 0 <= share <= 1 or (share == 0 and not zero):
        raise BadRequest(f"{name} {share}: {'at least' if zero else 'more than'} 0, at most 1")
    return share


def _bad_words(
    chosen: Mapping[str, Any], max_id: int, encode: Callable[[str], list[int]] | None
) -> tuple[tuple[int, ...], ...]:
    """`bad_words_ids`, and `bad_words` as a tokenizer splits them at a text's start or in it."""
    words = chosen.get("bad_words_ids", ())
    if not isinstance(words, Sequence) or isinstance(words, (str, bytes)):
        raise BadRequest("bad_words_ids: a list of lists of token ids")
    found = [_ids("bad_words_ids", word, max_id, MAX_BAD_WORD_TOKENS) for word in words]
    for text in _texts("bad_words", chosen.get("bad_words", ()), MAX_BAD_WORDS):
        if encode is not None:
            found += [tuple(encode(text)), tuple(encode(f" {text}"))]
    if len(found) > 2 * MAX_BAD_WORDS or not all(found):
        raise BadRequest(f"bad_words_ids: up to {2 * MAX_BAD_WORDS} of one token or more")
    return tuple(dict.fromkeys(found))


def _ids(name: str, value: Any, max_id: int, most: int = MAX_SUPPRESSED) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) > most:
        raise BadRequest(f"{name} {value!r:.80}: up to {most} token ids")
    return tuple(_whole(name, item, 0, max_id) for item in value)


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


def _whole(name: str, value: Any, least: int, most: int = 2**31 - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadRequest(f"{name} {value!r:.80}: a whole number from {least} to {most}")
    return value


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number that no float is near to
        pass
    raise BadRequest(f"{name} {value!r:.80}: a finite number")


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{name} {value!r}: True or False")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    return _texts("stop", value, MAX_STOPS)


def _texts(name: str, value: Any, most: int) -> tuple[str, ...]:
    texts: Sequence[Any] = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or len(texts) > most:
        raise BadRequest(f"{name}: a text or up to {most} texts")
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
            raise BadRequest(
                f"{name} {text!r:.80}: a text of 1 to {MAX_STOP_CHARACTERS} characters"
            )
    return tuple(texts)
