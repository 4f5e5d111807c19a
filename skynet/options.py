"""What a request may ask for, checked before anything is written."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from skynet.errors import BadRequest
from skynet.store.requests import Options

DEFAULT_MAX_TOKENS = 128
MOST_PRIORITY = 9
MAX_STOPS = 16
LEAST_TEMPERATURE = 1e-3  # below, logits overflow
MAX_STOP_CHARACTERS = 256
KNOWN = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "stop",
    "ignore_eos",
)


def check_options(given: Mapping[str, Any], prompt_length: int, slot_tokens: int) -> Options:
    """Options from keyword arguments, with defaults for what is missing or None.

    A request that samples without a seed is given one, so that it can be replayed.

    Raises:
        BadRequest: names the option, its value and its limit.
    """
    unknown = sorted(set(given) - set(KNOWN))
    if unknown:
        raise BadRequest(f"unknown option {', '.join(unknown)}; known are {', '.join(KNOWN)}")
    chosen = {name: value for name, value in given.items() if value is not None}
    room = slot_tokens - prompt_length
    if room < 1:
        raise BadRequest(
            f"the prompt has {prompt_length} tokens, the cluster holds {slot_tokens} for prompt "
            "and answer together: shorten it, or split the model again with more --slot-tokens"
        )
    max_tokens = _whole("max_tokens", chosen.get("max_tokens", min(DEFAULT_MAX_TOKENS, room)), 1)
    if max_tokens > room:
        raise BadRequest(
            f"max_tokens {max_tokens}: {prompt_length} tokens of prompt leave room for {room} of "
            f"the cluster's {slot_tokens}"
        )
    temperature = _number("temperature", chosen.get("temperature", 0.0))
    if temperature != 0 and not LEAST_TEMPERATURE <= temperature <= 100:
        raise BadRequest(f"temperature {temperature}: 0 (greedy), or {LEAST_TEMPERATURE} to 100")
    top_p = _number("top_p", chosen.get("top_p", 1.0))
    if not 0 < top_p <= 1:
        raise BadRequest(f"top_p {top_p}: more than 0, at most 1")
    seed = chosen.get("seed")
    if seed is None:
        seed = secrets.randbits(63) if temperature > 0 else None
    return Options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=_whole("top_k", chosen.get("top_k", 0), 0),
        top_p=top_p,
        seed=None if seed is None else _whole("seed", seed, 0, 2**64 - 1),
        stop=_stops(chosen.get("stop", ())),
        ignore_eos=_flag("ignore_eos", chosen.get("ignore_eos", False)),
    )


def check_priority(value: Any) -> int:
    """A request's priority, 0 to 9; as in AMQP and Celery's other brokers, the highest goes first.

    Raises:
        BadRequest: it is none of these.
    """
    return _whole("priority", value, 0, MOST_PRIORITY)


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
    stops: Sequence[Any] = (value,) if isinstance(value, str) else value
    if not isinstance(stops, Sequence) or len(stops) > MAX_STOPS:
        raise BadRequest(f"stop: a text or up to {MAX_STOPS} texts")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise BadRequest(f"stop {stop!r:.80}: a text of 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(stops)
