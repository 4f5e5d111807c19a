"""The page in a real Chromium, over a cluster of real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from processes import wait_for
from redis_servers import free_port

from skynet.checkpoint.demo import demo_checkpoint_path
from skynet.client.status import cluster_status
from skynet.gateway.app import create_app
from skynet.gateway.clusters import Clusters
from skynet.gateway.config import GatewayConfig
from skynet.local.cluster import LocalCluster

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
AXE = "axe-core@4.14.1"
WAIT_MS = 60_000
PLACE = "stage1.shard0"

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """2 stages x 2 shards of smollm2, and a spare."""
    demo_checkpoint_path()
    with LocalCluster("smollm2", 2, 2, spares=1, threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def base(cluster: LocalCluster) -> Iterator[str]:
    """The URL of a gateway of that cluster, without keys."""
    port = free_port()
    app = create_app(Clusters({"": cluster.url}), GatewayConfig(port=port))
    options: Any = {"host": "127.0.0.1", "port": port, "log_level": "error"}
    server = uvicorn.Server(uvicorn.Config(app, **options, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for("the gateway", lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


class Complaints:
    """What a page must not do: break the policy, ask another origin, or raise an error."""

    def __init__(self, page: Any, base: str) -> None:
        self.found: list[str] = []
        page.on("console", lambda message: self._console(message))
        page.on("pageerror", lambda error: self.found.append(f"error: {error}"))
        page.on("request", lambda request: self._request(request.url, base))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.found.append(f"{message.type}: {message.text}")

    def _request(self, url: str, base: str) -> None:
        if not url.startswith((f"{base}/", "data:")):
            self.found.append(f"foreign request: {url}")


@pytest.fixture
def page(base: str) -> Iterator[Any]:
    """A page at 1440 pixels, whose complaints fail the test."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(WAIT_MS)
        complaints = Complaints(page, base)
        yield page
        browser.close()
    assert complaints.found == []


def test_the_grid_equals_the_status(page: Any, base: str, cluster: LocalCluster) -> None:
    # Given / When
    page.goto(f"{base}/")
    page.wait_for_selector("td[data-state=ready] >> nth=3")
    status = json.loads(json.dumps(cluster_status(cluster.client.redis, cluster.url)))
    # Then each cell has the host, the process and the state of its member
    shown = page.evaluate(
        "[...document.querySelectorAll('td[data-address]')].map(cell => ({...cell.dataset}))"
    )
    places = [shard["address"] for stage in status["plan"]["stages"] for shard in stage["shards"]]
    by_place = {member["address"]: member for member in status["members"]}
    assert sorted(cell["address"] for cell in shown) == sorted(places)
    for cell in shown:
        member = by_place[cell["address"]]
        assert cell["host"] == member["host"]
        assert cell["pid"] == str(member["pid"])
        assert cell["state"] == member["state"] == "ready"
    assert "Serving SmolLM2" in page.inner_text(".sentence")
    # and the worker without a place is beside the grid, with its reason
    (other,) = (member for member in status["members"] if not member["address"])
    beside = page.inner_text("table.beside")
    assert f"pid {other['pid']}" in beside
    assert "spare: takes the place" in beside or "which another worker has" in beside


@pytest.mark.parametrize("width", [1440, 900, 360])
@pytest.mark.parametrize("view", ["cluster", "chat", "connect"])
def test_no_view_is_wider_than_the_window(page: Any, base: str, view: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{base}/#{view}")
    page.wait_for_selector("main .card")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_everything(page: Any, base: str) -> None:
    # Given the page without a mouse
    page.goto(f"{base}/")
    page.wait_for_selector("table.grid")
    # When Tab is pressed through it
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent.trim().slice(0, 20)"))
    # Then it reaches the views, the key, the tables and the actions
    for word in ("To the content", "Chat", "Key", "Rebalance …", "Verify"):
        assert word in seen
    # and a dialog is opened and closed with keys
    page.focus("button:has-text('Rebalance')")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")


def test_a_chat_goes_on_when_a_worker_is_killed(
    page: Any, base: str, cluster: LocalCluster
) -> None:
    # Given an undisturbed answer
    question, tokens = "Tell me a story about a river.", "120"

    def ask() -> None:
        page.goto(f"{base}/#chat")
        page.reload()
        page.wait_for_selector("#model option", state="attached")
        page.fill("#max-tokens", tokens)
        page.fill("#prompt", question)
        page.keyboard.press("Enter")

    def answer() -> str:
        page.wait_for_selector(".assistant[data-busy=false]")
        return str(page.inner_text(".assistant .markdown"))

    ask()
    expected = answer()
    # When a worker is killed in the middle of the same answer
    ask()
    page.wait_for_selector(".markdown")
    # The policy forbids what Playwright's `wait_for_function` does in the page.
    wait_for("some text", lambda: len(page.inner_text(".markdown")) > 40)
    assert page.get_attribute(".assistant", "data-busy") == "true"
    before = cluster_status(cluster.client.redis, cluster.url)
    os.kill(next(m["pid"] for m in before["members"] if m["address"] == PLACE), signal.SIGKILL)
    # Then the text goes on to the same end, under another plan
    assert answer() == expected
    after = cluster_status(cluster.client.redis, cluster.url)
    assert after["plan"]["epoch"] > before["plan"]["epoch"]
    assert not page.query_selector(".assistant .problem")


def test_axe_finds_nothing_serious(page: Any, base: str, tmp_path: Path) -> None:
    axe = axe_source(tmp_path)
    for view in ("cluster", "chat", "connect"):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(f"{base}/#{view}")
            page.wait_for_selector("main .card")
            page.evaluate(axe)
            found = page.evaluate("axe.run().then(result => result.violations)")
            serious = [
                (item["id"], [node["target"] for node in item["nodes"]][:3])
                for item in found
                if item["impact"] in ("serious", "critical")
            ]
            assert serious == [], (view, scheme)


def axe_source(directory: Path) -> str:
    """axe-core from npm, or skip."""
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", AXE],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot be used: {error}")
    if done.returncode:
        pytest.skip(f"npm did not answer: {done.stderr.strip()[-200:]}")
    with tarfile.open(directory / done.stdout.split()[-1]) as package:
        file = package.extractfile("package/axe.min.js")
        assert file is not None
        return file.read().decode()
