"""The page's files: whole, as published, and served with a policy that leaves nothing open."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import tarfile
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from skynet.web.page import OPEN_PATHS, POLICY, page_router, web_files

STATIC = Path(__file__).parents[3] / "skynet" / "web" / "static"
VENDOR = STATIC / "vendor"
SOURCES = json.loads((VENDOR / "sources.json").read_text())
OWN_SCRIPTS = sorted(STATIC.glob("*.js"))
MAX_LINES = 250


def client() -> httpx2.AsyncClient:
    app = FastAPI()
    app.include_router(page_router())
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here")


async def get(path: str, method: str = "GET", **headers: str) -> httpx2.Response:
    async with client() as http:
        return await http.request(method, path, headers=headers)


def fetch(path: str, method: str = "GET", **headers: str) -> httpx2.Response:
    import asyncio

    return asyncio.run(get(path, method, **headers))


@pytest.mark.parametrize("name", SOURCES)
def test_vendored_files_are_those_that_were_published(name: str) -> None:
    assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == SOURCES[name]["sha256"]


def test_every_vendored_file_has_a_source_and_a_licence() -> None:
    others = {path.name for path in VENDOR.iterdir()} - set(SOURCES) - {"sources.json"}
    assert others == {f"LICENSE.{name}" for name in ("htm", "preact", "uplot", "marked")}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", SOURCES)
def test_vendored_files_equal_the_packages(name: str, tmp_path: Path) -> None:
    source = SOURCES[name]
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", source["package"]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot be used: {error}")
    if done.returncode:
        pytest.skip(f"npm did not answer: {done.stderr.strip()[-200:]}")
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as package:
        published = package.extractfile(f"package/{source['path']}")
        assert published is not None
        assert published.read() == (VENDOR / name).read_bytes()


def test_the_policy_allows_this_origin_only() -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    values = set(" ".join(rules.values()).split())
    assert values <= {"'none'", "'self'", "'script'", "data:"}
    assert "data:" not in rules["script-src"]


@pytest.mark.parametrize(
    "path", ["/", "/static/app.js", "/static/style.css", "/static/vendor/marked.js"]
)
def test_every_file_has_the_security_headers(path: str) -> None:
    headers = fetch(path).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"


def test_files_have_their_types_and_are_compressed_on_demand() -> None:
    packed, plain = (
        fetch("/static/app.js"),
        fetch("/static/app.js", **{"accept-encoding": "identity"}),
    )
    assert packed.headers["content-type"] == "text/javascript; charset=utf-8"
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert plain.content == (STATIC / "app.js").read_bytes() == packed.content
    assert gzip.decompress(web_files()["app.js"].packed) == plain.content
    assert fetch("/").headers["content-type"] == "text/html; charset=utf-8"
    assert fetch("/", "HEAD").status_code == 200


def test_an_unchanged_file_is_not_sent_again() -> None:
    first = fetch("/static/style.css")
    assert first.headers["cache-control"] == "no-cache"
    again = fetch("/static/style.css", **{"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == POLICY
    assert fetch("/static/style.css", **{"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/none.js",
        "/static/../page.py",
        "/static/%2e%2e/page.py",
        "/static/vendor/sources.json",
    ],
)
def test_nothing_else_is_served(path: str) -> None:
    assert fetch(path).status_code == 404


def test_the_html_has_no_inline_script_or_style() -> None:
    text = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)
    for tag in re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL):
        assert tag == ""
    assert not re.search(r"(?:src|href)=\"(?!/static/)", text)


@pytest.mark.parametrize("path", OWN_SCRIPTS, ids=lambda path: path.name)
def test_own_scripts_make_no_html_from_strings_and_ask_no_other_origin(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|new Function", text)
    assert not re.search(r"(?:fetch|call|import)\(\s*[\"'`]https?:", text)
    assert len(text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", OWN_SCRIPTS, ids=lambda path: path.name)
def test_every_import_is_a_file_of_the_page(path: Path) -> None:
    for name in re.findall(r"from \"\./([^\"]+)\"", path.read_text()):
        assert name in web_files()


def test_every_class_of_a_script_has_a_style() -> None:
    style = (STATIC / "style.css").read_text()
    used = {
        name
        for path in OWN_SCRIPTS
        for names in re.findall(r" class=\"([^\"$]+)\"", path.read_text())
        for name in names.split()
    }
    known = set(re.findall(r"\.([a-z][a-z0-9-]*)", style))
    assert used - known <= {"what", "plain", "chat", "turns"} | known


def test_the_paths_without_a_key_are_those_of_the_page() -> None:
    router = page_router()
    paths = {getattr(route, "path", "") for route in router.routes}
    assert all(any(path.startswith(open_path) for open_path in OPEN_PATHS) for path in paths)
