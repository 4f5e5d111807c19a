"""JSON types of a tool's parameters, for families that write arguments as text between marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skynet.gateway.parsing.tools import Tool

KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def types_of(schema: Any, root: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON types of a parameter; none if its schema does not say."""
    schema = _resolved(schema, root)
    declared = schema.get("type")
    if declared is not None:
        return (declared,) if isinstance(declared, str) else tuple(declared)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            kinds = [kind for choice in schema[union] for kind in types_of(choice, root)]
            return tuple(dict.fromkeys(kinds))
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return tuple(dict.fromkeys(KINDS.get(type(value), "object") for value in values))


def raw_texts(schema: Any, root: Mapping[str, Any]) -> list[str]:
    """The texts that a parameter may be, if it is one of constants that are texts."""
    schema = _resolved(schema, root)
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return list(values) if all(isinstance(value, str) and value for value in values) else []


def with_types(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools with the type of each parameter, as Transformers' parser casts by it."""
    return [{**tool, "function": _with_types(tool["function"])} for tool in tools]


def _with_types(function: Mapping[str, Any]) -> dict[str, Any]:
    root = function.get("parameters") or {}
    properties = {
        name: {"type": list(types)} if (types := types_of(schema, root)) else schema
        for name, schema in (root.get("properties") or {}).items()
    }
    return {**function, "parameters": {**root, "properties": properties}}


def _resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that `$ref` points to; {} if there is none."""
    for _ in range(8):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = root
        for part in reference[2:].split("/"):
            schema = schema.get(part, {}) if isinstance(schema, Mapping) else {}
    return schema if isinstance(schema, Mapping) else {}
