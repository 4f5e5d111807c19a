"""JSON from Redis and from files: parsed within limits, and as the type that is expected.

Whoever can write to Redis can write nonsense: a reader gets a checked value, or one error that
names the source.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from skynet.errors import IncompatibleVersion, SkynetError, WireError

T = TypeVar("T")

# Fields of dataclasses that `read_json` reads. Python's integers have no limit; floats and Redis's
# integers have.
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]
Amount = Annotated[float, Field(ge=0, le=1e18)]

# For the attribute `__pydantic_config__` of a dataclass: unknown fields are refused, not ignored.
NO_OTHER_FIELDS = ConfigDict(extra="forbid")


def read_json(kind: type[T], text: str | bytes, what: str, *, unknown: str = "") -> T:
    """JSON as a value of `kind`, such as a dataclass. No type is converted to another.

    what: names the source in the error.
    unknown: of a record that a later version may have written: what fields that this version does
        not know mean, and what to do. It follows their names in the error.

    Raises:
        IncompatibleVersion: there are such fields, with `unknown`.
        WireError: not JSON, nested too deeply, or a field has a wrong type or an impossible value.
    """
    try:
        value: T = _adapter(cast(Any, kind)).validate_json(text, strict=True)
        return value
    except ValidationError as error:
        if unknown and (names := _unknown_fields(error)):
            raise IncompatibleVersion(f"{', '.join(names):.200}{unknown}") from None
        raise WireError(f"{what} cannot be read: {_first(error)}") from None


def write_json(kind: type[T], value: T) -> bytes:
    """A value as JSON for `read_json`; quicker than `json.dumps` of a dataclass."""
    return _adapter(cast(Any, kind)).dump_json(value)


def parse_json(text: str | bytes, what: str, error: type[SkynetError] = WireError) -> Any:
    """JSON of any form.

    Raises:
        error: not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{what} cannot be read: {problem}") from None


def parse_object(
    text: str | bytes, what: str, error: type[SkynetError] = WireError
) -> dict[str, Any]:
    """A JSON object.

    Raises:
        error: not JSON, nested too deeply, or another form.
    """
    value = parse_json(text, what, error)
    if not isinstance(value, dict):
        raise error(f"{what} cannot be read: {value!r:.40} is no object")
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _unknown_fields(error: ValidationError) -> list[str]:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return sorted(
        str(problem["loc"][0])
        for problem in problems
        if problem["type"] == "unexpected_keyword_argument" and len(problem["loc"]) == 1
    )


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = "".join(f"{part}: " for part in first["loc"][-1:])
    has_value = first["type"] not in ("missing", "json_invalid")
    return where + first["msg"] + (f", not {first['input']!r:.40}" if has_value else "")
