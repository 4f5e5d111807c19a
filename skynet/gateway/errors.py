"""Errors as HTTP answers: one body everywhere, in the form of the API that the path belongs to.

OpenAI's clients read `error.message`, `type`, `param` and `code`, a text; Anthropic's read
`error.type` and `error.message`. `x-should-retry: false` tells clients not to repeat what will fail
again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from skynet import errors
from skynet.errors import SkynetError
from skynet.request.option_table import BY_NAME

MAX_PROBLEMS = 10  # of a body, in one message
MAX_SHOWN = 200  # characters of a value
NO_RETRY = {"x-should-retry": "false"}
MESSAGES_PATH = "/v1/messages"
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An HTTP answer that is an error. What is wrong with a request (4xx) is so when it is sent
    again, and its header says so; a full queue (429) is not.

    status: of HTTP.
    code: one word for programs.
    param: the field of the body that is wrong.
    extra: more fields of the error object.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        fails_again = 400 <= status < 500 and status != 429
        self.headers = {**(NO_RETRY if fails_again else {}), **(headers or {})}
        self.extra = dict(extra or {})

    @property
    def type(self) -> str:
        """The kind of error, a word of OpenAI's."""
        default = "invalid_request_error" if self.status < 500 else "server_error"
        return TYPES.get(self.status, default)

    def body(self, path: str = "") -> dict[str, Any]:
        """The answer's JSON, in the form of the API of `path`."""
        if path.startswith(MESSAGES_PATH):
            default = "invalid_request_error" if self.status < 500 else "api_error"
            kind = ANTHROPIC_TYPES.get(self.status, default)
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
            **self.extra,
        }
        return {"error": error}

    def response(self, path: str = "") -> JSONResponse:
        return JSONResponse(self.body(path), self.status, self.headers)


# The first class that an error is an instance of decides: status, code, whether to try again.
STATUSES: tuple[tuple[type[SkynetError], int, str, bool], ...] = (
    (errors.BadRequest, 400, "invalid_value", False),
    (errors.QueueFull, 429, "queue_full", True),
    (errors.NoModel, 503, "no_model", True),
    (errors.ClusterUnreachable, 503, "cluster_unavailable", True),
    (errors.CommandRefused, 503, "cluster_unavailable", True),
    (errors.RequestTimeout, 504, "timeout", False),
    (errors.RequestCancelled, 499, "request_cancelled", False),
    (errors.RequestLost, 500, "request_lost", True),
    (errors.ShardFailed, 500, "shard_failed", False),
    (errors.NotFinite, 500, "not_finite", False),
    (SkynetError, 500, "internal_error", False),
)
FIRST_WORD = re.compile(r"[a-z_]+")
RETRY_S = 5  # for a cluster that is away


def api_error(error: SkynetError, *, retry_s: int = RETRY_S) -> ApiError:
    """The HTTP answer to a request that failed with this error.

    retry_s: after which a request that cannot be taken now may be sent again.
    """
    _, status, code, again = next(row for row in STATUSES if isinstance(error, row[0]))
    message = str(error) or type(error).__name__
    headers: dict[str, str] = {} if again else dict(NO_RETRY)
    if status in (429, 503):
        headers["retry-after"] = str(retry_s)
    return ApiError(status, message, code=code, param=_param(message), headers=headers)


def _param(message: str) -> str | None:
    """The option that a message of BadRequest begins with."""
    word = FIRST_WORD.match(message)
    name = word.group() if word else ""
    known = name in BY_NAME or name in ("messages", "prompt", "structured_outputs", "tools")
    return name if known else None


def invalid_body(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """The answer to a body that does not fit its schema: a bounded list of what is wrong."""
    shown = [_problem(problem) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        shown.append(f"and {len(problems) - MAX_PROBLEMS} more")
    where = _where(problems[0]) if problems else ""
    return ApiError(
        400,
        "; ".join(shown) or "the body is no JSON object",
        code="invalid_value",
        param=where or None,
    )


def _problem(problem: Mapping[str, Any]) -> str:
    where, text = _where(problem), str(problem.get("msg", "invalid"))[:MAX_SHOWN]
    value = problem.get("input")
    simple = value is None or isinstance(value, str | int | float | bool)
    shown = f", not {value!r:.{MAX_SHOWN}}" if simple and problem.get("type") != "missing" else ""
    return f"{where}: {text}{shown}" if where else f"{text}{shown}"


def _where(problem: Mapping[str, Any]) -> str:
    """The path of a field, as in messages[0].content."""
    path = ""
    for part in problem.get("loc", ())[1:8]:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part!s:.80}"
    return path
