"""Serves the page at `/` and its files at `/static/`, with types, caching and security headers.

Everything comes from the wheel. The policy allows no inline script or style, no other origin, and
no HTML from strings (trusted types).
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, HTTPException, Request, Response

# Paths that need no key: the page itself holds no data.
OPEN_PATHS = ("/", "/static/")

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
SECURITY_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class WebFile:
    """One file of the page. etag: changes with its content."""

    content: bytes
    packed: bytes  # gzip
    media_type: str
    etag: str

    @classmethod
    def of(cls, name: str, content: bytes) -> WebFile:
        digest = hashlib.sha256(content).hexdigest()[:32]
        media_type = TYPES[name[name.rindex(".") :]]
        return cls(content, gzip.compress(content, mtime=0), media_type, f'"{digest}"')


@cache
def web_files() -> Mapping[str, WebFile]:
    """The files by their path below `/static/`; licences and checksums are not served."""
    return dict(_files_in(files("skynet.web") / "static", ""))


def _files_in(folder: Traversable, prefix: str) -> list[tuple[str, WebFile]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _files_in(entry, f"{prefix}{entry.name}/")
        elif any(entry.name.endswith(ending) for ending in TYPES):
            name = f"{prefix}{entry.name}"
            found.append((name, WebFile.of(name, entry.read_bytes())))
    return found


def page_router() -> APIRouter:
    """The routes `/` and `/static/...`, to be included without a prefix."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return _respond(request, web_files()["index.html"])

    @router.api_route("/static/{path:path}", methods=["GET", "HEAD"])
    async def asset(request: Request, path: str) -> Response:
        file = web_files().get(path)
        if file is None:
            raise HTTPException(404, f"the page has no file {path!r:.80}")
        return _respond(request, file)

    return router


def _respond(request: Request, file: WebFile) -> Response:
    # no-cache: a copy is used only after the server has said that it is still the newest.
    headers = {
        **SECURITY_HEADERS,
        "etag": file.etag,
        "cache-control": "no-cache",
        "vary": "accept-encoding",
    }
    known = [
        tag.strip().removeprefix("W/")
        for tag in request.headers.get("if-none-match", "").split(",")
    ]
    if file.etag in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    content = file.content
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["content-encoding"] = file.packed, "gzip"
    return Response(content, media_type=file.media_type, headers=headers)
