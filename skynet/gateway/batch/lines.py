"""The lines of a batch: OpenAI's request lines in, its answer lines out.

A file is read line by line, so that its size is of the disk's, not of memory's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skynet.errors import BadRequest

MAX_LINE_BYTES = 4 * 2**20
MAX_LINES = 1_000_000
MAX_CUSTOM_ID = 512
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class RequestLine:
    """One request. custom_id: the user's, unique in the file. url: the path of the API."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]

    def answer(self, status: int, body: dict[str, Any], request_id: str = "") -> dict[str, Any]:
        """The line of its answer, also one with an error of HTTP."""
        response = {"status_code": status, "request_id": request_id, "body": body}
        return {**self._head(), "response": response, "error": None}

    def failure(self, code: str, message: str) -> dict[str, Any]:
        """The line of a request that was not sent."""
        return {**self._head(), "response": None, "error": {"code": code, "message": message}}

    def _head(self) -> dict[str, Any]:
        return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": self.custom_id}


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that are not empty.

    Raises:
        BadRequest: a line is longer than MAX_LINE_BYTES; or there are more than MAX_LINES.
    """
    with path.open("rb") as file:
        for number in range(1, MAX_LINES + 2):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise BadRequest(f"{path.name}, line {number}: longer than {MAX_LINE_BYTES} bytes")
            if number > MAX_LINES:
                raise BadRequest(f"{path.name}: more than {MAX_LINES} lines")
            yield line.strip()


def requests_of(path: Path, urls: frozenset[str]) -> Iterator[RequestLine]:
    """The requests of a file, in order.

    urls: those that a line may have.

    Raises:
        BadRequest: names the line and what is wrong with it.
    """
    for number, line in enumerate(read_lines(path), 1):
        if line:
            yield _request(line, number, path.name, urls)


def _request(line: bytes, number: int, name: str, urls: frozenset[str]) -> RequestLine:
    where = f"{name}, line {number}"
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{where}: no JSON: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("body"), dict):
        raise BadRequest(
            f'{where}: expected {{"custom_id": ..., "method": "POST", "url": ..., "body": {{...}}}}'
        )
    custom_id, url = fields.get("custom_id"), fields.get("url")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        raise BadRequest(f"{where}: custom_id {custom_id!r:.80}: a text of 1 to {MAX_CUSTOM_ID}")
    if fields.get("method", "POST") != "POST" or url not in urls:
        raise BadRequest(
            f"{where}: {fields.get('method')!r:.20} {url!r:.80}: expected POST and one of "
            f"{', '.join(sorted(urls))}"
        )
    return RequestLine(number, custom_id, url, fields["body"])


def check_requests(path: Path, urls: frozenset[str]) -> int:
    """The number of requests in a file, all of which can be sent.

    Raises:
        BadRequest: a line cannot be, or two have the same custom_id.
    """
    if not path.is_file():
        raise BadRequest(f"{path}: no such file of requests")
    seen: set[str] = set()
    for request in requests_of(path, urls):
        if request.custom_id in seen:
            raise BadRequest(
                f"{path.name}, line {request.number}: custom_id {request.custom_id!r:.80} is not "
                "unique"
            )
        seen.add(request.custom_id)
    if not seen:
        raise BadRequest(f"{path.name}: no requests in it")
    return len(seen)


def answered_ids(path: Path) -> set[str]:
    """The custom_ids that a file of answers has. A last line that was cut is removed."""
    if not path.exists():
        return set()
    ids, whole = set(), 0
    with path.open("rb+") as file:
        for line in file:
            try:
                ids.add(json.loads(line)["custom_id"])
            except (ValueError, KeyError, TypeError):
                if line.endswith(b"\n"):
                    raise BadRequest(f"{path}: a line is no answer of a batch") from None
                break
            if not line.endswith(b"\n"):
                ids.discard(json.loads(line)["custom_id"])
                break
            whole += len(line)
        file.truncate(whole)
    return ids
