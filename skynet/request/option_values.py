"""The value of one option, checked by its row in the option table.

Limits that involve several options are `skynet/request/options.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from skynet.errors import BadRequest
from skynet.request.option_table import MAX_INTEGER, Kind, Option


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
            if isinstance(value, bool):
                return value
        case Kind.CHOICE:
            if any(type(value) is type(each) and value == each for each in option.choices):
                return value
        case Kind.TOKEN_ID:
            return check_integer(name, value, 0, max_id)
        case Kind.TOKEN_IDS:
            return _token_ids(option, value, max_id)
        case Kind.TOKEN_ID_OR_IDS:
            return _token_ids(option, (value,) if isinstance(value, int) else value, max_id)
        case Kind.TOKEN_ID_LISTS:
            return _token_id_lists(option, value, max_id)
        case Kind.TEXT:
            return value  # of a language: checked with the model's tokenizer
        case Kind.TEXTS:
            return _texts(option, value)
    raise BadRequest(f"{name} {value!r:.80}: {option.values}")


def check_integer(name: str, value: Any, minimum: int, maximum: int = MAX_INTEGER) -> int:
    """The value, if it is an integer from `minimum` to `maximum`; raises BadRequest."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise BadRequest(f"{name} {value!r:.80}: a whole number from {minimum} to {maximum}")
    return value


def _number(option: Option, value: Any) -> float:
    number = _finite(option.name, value)
    within = option.minimum <= number <= option.maximum
    if option.above_minimum and number == option.minimum:
        within = False
    if not within and not (option.or_zero and number == 0):
        raise BadRequest(f"{option.name} {number}: {option.values}")
    return number


def _finite(name: str, value: Any) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond the range of floats
        pass
    raise BadRequest(f"{name} {value!r:.80}: a finite number")


def _token_ids(option: Option, value: Any, max_id: int) -> tuple[int, ...]:
    if not _is_list(value) or len(value) > option.max_items:
        raise BadRequest(f"{option.name} {value!r:.80}: {option.values}")
    return tuple(check_integer(option.name, item, 0, max_id) for item in value)


def _token_id_lists(option: Option, value: Any, max_id: int) -> tuple[tuple[int, ...], ...]:
    if not _is_list(value) or len(value) > option.max_items:
        raise BadRequest(f"{option.name} {value!r:.80}: {option.values}")
    for item in value:
        if not _is_list(item) or not 1 <= len(item) <= option.max_item_length:
            raise BadRequest(f"{option.name} {item!r:.80}: {option.values}")
    return tuple(
        tuple(check_integer(option.name, token_id, 0, max_id) for token_id in item)
        for item in value
    )


def _texts(option: Option, value: Any) -> tuple[str, ...]:
    texts: Sequence[Any] = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or len(texts) > option.max_items:
        raise BadRequest(f"{option.name}: {option.values}")
    longest = option.max_item_length
    for text in texts:
        if not isinstance(text, str) or not 1 <= len(text) <= longest:
            raise BadRequest(f"{option.name} {text!r:.80}: a text of 1 to {longest} characters")
    return tuple(texts)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
