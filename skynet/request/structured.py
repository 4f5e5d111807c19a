"""The option `structured_outputs`: a JSON schema, regular expression, choice or grammar that an
answer follows. Checks its form, and with llguidance that it compiles; knows no tokenizer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skynet.errors import BadRequest

if TYPE_CHECKING:
    from llguidance import LLParserLimits

NAME = "structured_outputs"
KINDS = ("json", "json_object", "regex", "choice", "grammar")
JSON_KINDS = KINDS[:2]
MAX_BYTES = 2**16  # of the option as JSON text
MAX_DEPTH = 64  # of a schema's JSON
MAX_CHOICES = 1024
MAX_ALL_OF = 8  # intersections of patterns take llguidance seconds, whatever its limits
MAX_MESSAGE = 400  # characters of llguidance's messages
MAX_SEARCH_S = 0.5  # for the part of a schema that cannot be compiled
INSTALL = "install it with `pip install llguidance`"

# Keys of a schema whose values are schemas by name, and those whose values are not schemas.
NAMED = ("properties", "patternProperties", "$defs", "definitions")
DATA = ("enum", "const", "default", "examples")
UNKNOWN_KEYWORDS = re.compile(r"Unimplemented keys: (\[.*?\])")
# Without a tokenizer it cannot tell whether `<|im_start|>` is a token; the orchestrator can.
ALLOWED_WARNING = "no tokenizer - can't validate"


def structured_text(value: Any) -> str:
    """The option as JSON text, as records hold it; of a mapping, or of such a text.

    Raises:
        BadRequest: it is not one of `KINDS`, too large or too deep; names the part.
    """
    fields = _object(value, NAME) if isinstance(value, str) else value
    if not isinstance(fields, Mapping):
        raise _refused(f"a mapping with one of {', '.join(KINDS)} is expected, got {value!r:.80}")
    given = {key: field for key, field in fields.items() if field is not None}
    unknown = sorted(str(key) for key in given if key not in (*KINDS, "whitespace"))
    if unknown:
        raise _refused(f"unknown key {', '.join(unknown)[:80]}; known: {', '.join(KINDS)}")
    kinds = [kind for kind in KINDS if kind in given]
    if len(kinds) != 1:
        raise _refused(f"exactly one of {', '.join(KINDS)}; got {' and '.join(kinds) or 'none'}")
    (kind,) = kinds
    checked = {kind: _checked(kind, given[kind])}
    if "whitespace" in given:
        checked["whitespace"] = _whitespace(kind, given["whitespace"])
    try:
        text = json.dumps(checked, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise _refused(f"cannot be written as JSON: {error}", kind) from None
    if size > MAX_BYTES:
        raise _refused(f"{size} bytes, the limit is {MAX_BYTES}", kind)
    return text


def grammar_of(text: str) -> str:
    """llguidance's form of a checked option.

    Raises:
        BadRequest: a grammar in GBNF that cannot be converted, or llguidance is not installed.
    """
    llguidance = _llguidance()
    make, fields = llguidance.LLMatcher, json.loads(text)
    match next(kind for kind in KINDS if kind in fields):
        case "json":
            return _of_schema(fields["json"], fields.get("whitespace", False))
        case "json_object":
            return _of_schema({"type": "object"}, fields.get("whitespace", False))
        case "regex":
            return str(make.grammar_from_regex(fields["regex"]))
        case "choice":
            return str(make.grammar_from_regex(_choice(fields["choice"])))
    try:
        return str(llguidance.grammar_from("grammar", fields["grammar"]))
    except (ValueError, RecursionError) as error:
        raise _refused(f"{error!s:.{MAX_MESSAGE}}", "grammar") from None


def check_grammar(text: str) -> None:
    """Compile a checked option without a tokenizer.

    Raises:
        BadRequest: names the path in the schema, or the place in the grammar, and the problem.
    """
    problem = _problem(grammar_of(text))
    if not problem:
        return
    fields = json.loads(text)
    kind = next(kind for kind in KINDS if kind in fields)
    if kind == "json":
        path = _place(fields["json"], problem, fields.get("whitespace", False))
        where, what = "".join(f".{part}" for part in path), _without_jargon(problem)
        raise _refused(what, f"{kind}{where}")
    raise _refused(problem, kind)


def parser_limits() -> LLParserLimits:
    """Limits on compiling a grammar, and on each step with it: about half a second, 40 MB."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=200_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise _refused(f"needs the package llguidance: {INSTALL} ({error})") from None
    return llguidance


def _refused(problem: str, where: str = "") -> BadRequest:
    return BadRequest(f"{NAME}{'.' if where else ''}{where}: {problem}")


def _checked(kind: str, value: Any) -> Any:
    """The value of one kind."""
    if kind == "json":
        schema = _object(value, f"{NAME}.json") if isinstance(value, str) else value
        if not isinstance(schema, Mapping):
            raise _refused(f"a JSON schema, an object, is expected, got {value!r:.80}", kind)
        _check_depth(schema)
        return schema
    if kind == "json_object" and value is not True:
        raise _refused(f"True is expected, got {value!r:.80}", kind)
    if kind == "choice":
        return _choices(value)
    if kind in ("regex", "grammar") and not (isinstance(value, str) and value):
        raise _refused(f"a text is expected, got {value!r:.80}", kind)
    return value


def _choices(value: Any) -> list[str]:
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
    if not is_list or not 1 <= len(value) <= MAX_CHOICES:
        raise _refused(f"1 to {MAX_CHOICES} texts are expected, got {value!r:.80}", "choice")
    for text in value:
        if not isinstance(text, str) or not text:
            raise _refused(f"a text that is not empty is expected, got {text!r:.80}", "choice")
    return list(value)


def _whitespace(kind: str, value: Any) -> bool:
    if kind not in JSON_KINDS:
        raise _refused(f"goes with {' or '.join(JSON_KINDS)}, not with {kind}", "whitespace")
    if not isinstance(value, bool):
        raise _refused(f"True or False, got {value!r:.80}", "whitespace")
    return value


def _object(text: str, name: str) -> Any:
    if len(text) > MAX_BYTES:
        raise BadRequest(f"{name}: {len(text)} characters, the limit is {MAX_BYTES} bytes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{name}: not JSON: {error}") from None


def _check_depth(schema: Any) -> None:
    """Refuse objects and lists nested in more than `MAX_DEPTH` others, and long `allOf`."""
    level = [schema]
    for _ in range(MAX_DEPTH):
        longest = max((len(_children(_all_of(value))) for value in level), default=0)
        if longest > MAX_ALL_OF:
            raise _refused(f"allOf of {longest} schemas, the limit is {MAX_ALL_OF}", "json")
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise _refused(f"nested more than {MAX_DEPTH} deep", "json")


def _all_of(value: Any) -> Any:
    return value.get("allOf") if isinstance(value, Mapping) else None


def _children(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []


def _of_schema(schema: Any, whitespace: bool) -> str:
    # "x-guidance" in a schema could ask llguidance to skip keywords: these settings override it.
    settings = {"whitespace_flexible": whitespace, "lenient": False, "coerce_one_of": False}
    llguidance = _llguidance()
    return str(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=settings))


def _choice(texts: Sequence[str]) -> str:
    """A regular expression for one of the texts; its escapes have one meaning in Lark, too."""
    return "|".join(
        "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)
        for text in texts
    )


def _problem(grammar: str) -> str:
    """Why a grammar cannot be used, or ""; what it would ignore is a problem, too."""
    matcher = _llguidance().LLMatcher
    is_error, messages = matcher.validate_grammar_with_warnings(grammar, limits=parser_limits())
    if not is_error:
        messages = [message for message in messages if not message.startswith(ALLOWED_WARNING)]
    return " ".join(str(messages[0]).split())[:MAX_MESSAGE] if messages else ""


def _without_jargon(problem: str) -> str:
    found = UNKNOWN_KEYWORDS.search(problem)
    return f"keyword {found[1][1:-1]} is not supported" if found else problem


def _place(schema: Mapping[str, Any], problem: str, whitespace: bool) -> tuple[str, ...]:
    """The path of the innermost subschema that has the problem alone, without references."""
    innermost: tuple[str, ...] = ()
    give_up = time.monotonic() + MAX_SEARCH_S
    for path, part in _subschemas(schema, ()):
        if time.monotonic() > give_up:
            break
        is_within = path[: len(innermost)] == innermost
        if is_within and _problem(_of_schema(_without_references(part), whitespace)) == problem:
            innermost = path
    return innermost


def _without_references(schema: Any) -> Any:
    """The schema with `{}`, which allows anything, for each `$ref`."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("$ref"), str):
            return {}
        return {key: _without_references(value) for key, value in schema.items()}
    return [_without_references(part) for part in schema] if isinstance(schema, list) else schema


def _subschemas(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The schemas in a schema with their paths, each before those within it."""
    if isinstance(schema, Mapping):
        yield path, schema
        for key, value in schema.items():
            if key in NAMED and isinstance(value, Mapping):
                for name, part in value.items():
                    yield from _subschemas(part, (*path, key, str(name)))
            elif key not in DATA:
                yield from _subschemas(value, (*path, str(key)))
    elif isinstance(schema, (list, tuple)):
        for index, part in enumerate(schema):
            yield from _subschemas(part, (*path, str(index)))
