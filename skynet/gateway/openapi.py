"""The OpenAPI document: FastAPI's, with the gateway's errors, streams and keys.

FastAPI describes an invalid body as 422 with a body of its own; here it is 400 with the body that
all errors have.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from skynet.gateway.errors import MESSAGES_PATH
from skynet.gateway.middleware.guard import OPEN_PATHS

TEXT_OR_NULL = {"type": ["string", "null"]}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": TEXT_OR_NULL,
                "code": TEXT_OR_NULL,
            },
        }
    },
}
ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
NOT_READY = {
    "type": "object",
    "required": ["status", "reasons"],
    "properties": {
        "status": {"const": "not ready"},
        "reasons": {"type": "array", "items": {"type": "string"}},
    },
}
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def describe_api(app: FastAPI) -> None:
    """Make `/openapi.json` describe what the gateway answers."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    parts = made.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= {"Error": ERROR, "AnthropicError": ANTHROPIC_ERROR, "NotReady": NOT_READY}
    parts["securitySchemes"] = KEYS
    for path, operations in made["paths"].items():
        for operation in operations.values():
            _complete(path, operation, schemas)
    return made


def _complete(path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Add what FastAPI does not know of an operation."""
    answers = operation["responses"]
    answers.pop("422", None)
    error = "AnthropicError" if path.startswith(MESSAGES_PATH) else "Error"
    answers["4XX"] = _answer("the request is at fault", error)
    answers["5XX"] = _answer("the cluster or the gateway is", error)
    if path == "/ready":
        answers["503"] = _answer("no cluster runs its model", "NotReady")
    if _may_stream(operation, schemas):
        answers["200"]["content"]["text/event-stream"] = {}
    if path not in OPEN_PATHS:
        operation["security"] = [{name: []} for name in KEYS]


def _answer(description: str, schema: str) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"description": description, "content": {"application/json": content}}


def _may_stream(operation: dict[str, Any], schemas: dict[str, Any]) -> bool:
    """Whether it has the field or the parameter `stream`."""
    if any(each["name"] == "stream" for each in operation.get("parameters", ())):
        return True
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    name = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
    return "stream" in schemas.get(name, {}).get("properties", {})
