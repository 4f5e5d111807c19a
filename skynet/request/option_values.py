"""The value of one option, checked by its row in the option table.

Limits that involve several options are `skynet/request/options.py`'s. numpy's integers and floats
are numbers like Python's; bool is none.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from skynet.errors import BadRequest
from skynet.request.option_table import BY_NAME, MAX_INTEGER, Kind, Option, decimal
from skynet.request.structured import structured_text

MAX_SHOWN = 80  # characters of a value in an error


def check_value(option: Option, value: Any, vocab_size: int = MAX_INTEGER + 1) -> Any:
    """The value as records hold it: numbers as floats, lists as tuples.

    Raises:
        BadRequest: names the option, its value and its limits.
    """
    name, max_id = option.name, vocab_size - 1
    match option.kind:
        case Kind.INTEGER:
            return check_integer(name, value, int(option.minimum), int(option.maximum))
        case Kind.NUMBER:
            return _number(option, value)
        case Kind.FLAG:
            return check_flag(name, value)
        case Kind.CHOICE:
            if any(type(value) is type(each) and value == each for each in option.choices):
                return value
        case Kind.TOKEN_ID:
            return check_integer(name, value, 0, max_id)
        case Kind.TOKEN_IDS:
            return _token_ids(option, value, max_id)
        case Kind.TOKEN_ID_OR_IDS:
            one = isinstance(value, numbers.Integral)
            return _token_ids(option, (value,) if one else value, max_id)
        case Kind.TOKEN_ID_LISTS:
            return _token_id_lists(option, value, max_id)
        case Kind.TOKEN_BIASES:
            return _token_biases(option, value, max_id)
        case Kind.TEXT:
            if isinstance(value, str) and 1 <= len(value) <= (option.max_length or len(value)):
                return value
        case Kind.TEXTS:
            return _texts(option, value)
        case Kind.GRAMMAR:
            return structured_text(value)
    raise BadRequest(f"{name} {shown(value)}: {option.values}")


def check_integer(name: str, value: Any, minimum: int, maximum: int = MAX_INTEGER) -> int:
    """The value, if it is an integer from `minimum` to `maximum`; raises BadRequest."""
    if is_integer(value) and minimum <= value <= maximum:
        return int(value)
    raise BadRequest(f"{name} {shown(value)}: a whole number from {minimum} to {maximum}")


def check_flag(name: str, value: Any) -> bool:
    """The value, if it is a bool; raises BadRequest."""
    if isinstance(value, bool):
        return value
    raise BadRequest(f"{name} {shown(value)}: True or False")


def check_wait(value: Any) -> float | None:
    """The `timeout` of a call that waits: seconds, 0 or more, or None; raises BadRequest."""
    if value is None:
        return None
    maximum = BY_NAME["timeout"].maximum
    seconds = _finite("timeout", value)
    if not 0 <= seconds <= maximum:
        raise BadRequest(f"timeout {shown(value)}: seconds from 0 to {decimal(maximum)}, or None")
    return seconds


def is_integer(value: Any) -> bool:
    """Whether a value is a Python or numpy integer, and no bool."""
    return type(value) is int or (
        isinstance(value, numbers.Integral) and not isinstance(value, bool)
    )


def shown(value: Any) -> str:
    """A value for an error, as the caller wrote it, at most 80 characters."""
    try:
        # str() of a numpy scalar is its shortest decimal, repr() has its type's name.
        text = str(value) if isinstance(value, numbers.Number) else repr(value)
    except ValueError:  # Python converts no integers of more than 4300 digits
        return f"of {value.bit_length()} bits" if is_integer(value) else type(value).__name__
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _number(option: Option, value: Any) -> float:
    number = _finite(option.name, value)
    within = option.minimum <= number <= option.maximum
    if option.above_minimum and number == option.minimum:
        within = False
    if not within and not (option.or_zero and number == 0):
        raise BadRequest(f"{option.name} {shown(value)}: {option.values}")
    return number


def _finite(name: str, value: Any) -> float:
    """The value as a float: of a numpy.float32 the number that it is printed as."""
    try:
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            number = float(str(value))
            if math.isfinite(number):
                return number
    except ValueError:  # a fraction, or an integer of more than 4300 digits
        pass
    raise BadRequest(f"{name} {shown(value)}: a finite number")


def _token_ids(option: Option, value: Any, max_id: int) -> tuple[int, ...]:
    if not _is_list(value) or len(value) > option.max_items:
        raise BadRequest(f"{option.name} {shown(value)}: {option.values}")
    return tuple(check_integer(option.name, item, 0, max_id) for item in value)


def _token_id_lists(option: Option, value: Any, max_id: int) -> tuple[tuple[int, ...], ...]:
    if not _is_list(value) or len(value) > option.max_items:
        raise BadRequest(f"{option.name} {shown(value)}: {option.values}")
    for item in value:
        if not _is_list(item) or not 1 <= len(item) <= option.max_item_length:
            raise BadRequest(f"{option.name} {shown(item)}: {option.values}")
    return tuple(
        tuple(check_integer(option.name, token_id, 0, max_id) for token_id in item)
        for item in value
    )


def _token_biases(option: Option, value: Any, max_id: int) -> tuple[tuple[int, float], ...]:
    """Of a mapping, whose keys JSON makes texts, or of the pairs that a record has."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not _is_list(pairs) or len(pairs) > option.max_items:
        raise BadRequest(f"{option.name} {shown(value)}: {option.values}")
    biases: dict[int, float] = {}
    for pair in pairs:
        if not _is_list(pair) or len(pair) != 2:
            raise BadRequest(f"{option.name} {shown(pair)}: {option.values}")
        token, bias = pair
        if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 11:
            token = int(token)
        token = check_integer(option.name, token, 0, max_id)
        if token in biases:
            raise BadRequest(f"{option.name}: token {token} has two biases, give one")
        biases[token] = _number(option, bias)
    return tuple(biases.items())


def _texts(option: Option, value: Any) -> tuple[str, ...]:
    texts: Sequence[Any] = (value,) if isinstance(value, str) else value
    if not _is_list(texts) or len(texts) > option.max_items:
        raise BadRequest(f"{option.name} {shown(value)}: {option.values}")
    longest = option.max_item_length
    for text in texts:
        if not isinstance(text, str) or not 1 <= len(text) <= longest:
            raise BadRequest(f"{option.name} {shown(text)}: a text of 1 to {longest} characters")
    return tuple(texts)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
