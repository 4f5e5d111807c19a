"""`response_format` and `structured_outputs`: the grammar that an answer has to follow."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from skynet.gateway.schemas.body import refuse


class JsonSchema(BaseModel):
    """OpenAI's wrapper of a schema. strict: without effect, every schema is enforced."""

    model_config = ConfigDict(extra="allow")

    name: str = Field("", max_length=128)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """type `text`, `json_object`, or `json_schema` with a schema."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def structured_outputs(
    response_format: ResponseFormat | None, given: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The engine's option.

    Raises:
        ApiError: 400, both are given, or no schema.
    """
    if response_format is None or response_format.type == "text":
        return given
    if given:
        raise refuse("structured_outputs", "together with response_format: give one")
    if response_format.type == "json_object":
        extra = response_format.model_extra or {}
        return {"json": extra["schema"]} if extra.get("schema") else {"json_object": True}
    wrapper = response_format.json_schema
    # A client that sends the schema without OpenAI's wrapper is understood, never ignored.
    schema = wrapper.schema_ if wrapper else (response_format.model_extra or {}).get("schema")
    if not isinstance(schema, dict):
        raise refuse(
            "response_format",
            'json_schema: expected {"name": ..., "schema": {...}}',
            "invalid_value",
        )
    return {"json": schema}
