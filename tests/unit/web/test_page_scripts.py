"""The page's scripts that need no browser, in Node: patches, server-sent events, requests."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from skynet.gateway.cluster.json_patch import diff

STATIC = Path(__file__).parents[3] / "skynet" / "web" / "static"
NODE = shutil.which("node") or ""

pytestmark = pytest.mark.skipif(not NODE, reason="Node is not installed")


def run(script: str, given: Any, directory: Path) -> Any:
    """The JSON that a module's default function makes of `given`."""
    for path in STATIC.glob("*.js"):
        shutil.copy(path, directory / path.name)
    (directory / "package.json").write_text('{"type": "module"}')
    (directory / "main.js").write_text(
        f"{script}\nconst given = JSON.parse(await new Response(process.stdin).text());\n"
        "console.log(JSON.stringify(await main(given)));\n"
    )
    done = subprocess.run(
        [NODE, "main.js"],
        cwd=directory,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def some_json(chance: random.Random, depth: int = 3) -> Any:
    kind = chance.randrange(8 if depth else 5)
    if kind < 5:
        return (None, True, chance.randint(-3, 3), chance.random(), "a/b~c")[kind]
    if kind == 5:
        return [some_json(chance, depth - 1) for _ in range(chance.randrange(4))]
    names = ("a", "b/c", "~", "", "0", "é")
    return {name: some_json(chance, depth - 1) for name in chance.sample(names, 3)}


def test_patches_turn_one_document_into_the_other_and_leave_it_alone(tmp_path: Path) -> None:
    # Given many pairs of documents, and the gateway's patches between them
    chance = random.Random(7)
    pairs = [({"x": some_json(chance)}, {"x": some_json(chance), "y": 1}) for _ in range(300)]
    cases = [{"before": a, "after": b, "patch": list(diff(a, b))} for a, b in pairs]
    script = """
    import { patched } from "./live.js";
    const main = (cases) => cases.map(({ before, patch }) => {
      const text = JSON.stringify(before);
      return { made: patched(before, patch), kept: JSON.stringify(before) === text };
    });
    """
    # When the page applies them / Then
    made = run(script, cases, tmp_path)
    assert [case["made"] for case in made] == [after for _, after in pairs]
    assert all(case["kept"] for case in made)


def test_events_are_read_however_the_bytes_are_cut(tmp_path: Path) -> None:
    # Given a stream with comments, two lines of data, each end of line and a split character
    text = (
        ': recovering\n\nevent: patch\r\ndata: {"a":\r\ndata: "é"}\r\nid: 7\r\n\r\n'
        "data:no space\n\nid: 8\n\nretry\ndata: [DONE]\n\n"
    )
    script = """
    import { events } from "./sse.js";
    async function read(bytes, size) {
      const parts = [];
      for (let at = 0; at < bytes.length; at += size) parts.push(bytes.slice(at, at + size));
      const body = new ReadableStream({ start(out) { parts.forEach((part) => out.enqueue(part)); out.close(); } });
      const found = [];
      for await (const event of events({ body })) found.push(event);
      return found;
    }
    const main = ({ text }) => {
      const bytes = new TextEncoder().encode(text);
      return Promise.all([1, 2, 3, 5, 7, 64, 4096].map((size) => read(bytes, size)));
    };
    """  # noqa: E501
    # When it is read in pieces of each size / Then
    expected = [
        {"comment": "recovering"},
        {"event": "patch", "data": '{"a":\n"é"}', "id": "7"},
        {"event": "message", "data": "no space"},
        {"event": "message", "data": "[DONE]", "retry": ""},
    ]
    assert run(script, {"text": text}, tmp_path) == [expected] * 7


def test_the_chat_sends_only_what_is_set(tmp_path: Path) -> None:
    script = """
    import { asCurl, asPython, body } from "./completion.js";
    const main = ({ settings, turns }) => {
      const sent = body(settings, turns);
      const base = "http://here/v1";
      return { sent, curl: asCurl(sent, base), python: asPython(sent, base) };
    };
    """
    empty = {
        "model": "m",
        "system": "",
        "temperature": "",
        "seed": "",
        "maxTokens": "",
        "stop": "",
        "schema": "",
        "logprobs": False,
    }
    turns = [{"role": "user", "text": "it's"}]
    # Given settings that are all empty / Then only the messages are sent
    made = run(script, {"settings": empty, "turns": turns}, tmp_path)
    message = {"role": "user", "content": "it's"}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    assert made["sent"] == {"model": "m", "messages": [message], **streamed}
    assert "'\\''" in made["curl"]  # an apostrophe does not end the shell's text
    # Given all of them / Then each has its field
    full = {
        **empty,
        "system": "short",
        "temperature": "0",
        "seed": "3",
        "maxTokens": "9",
        "stop": "a\n\nb",
        "schema": '{"type": "object", "additionalProperties": false}',
        "logprobs": True,
    }
    made = run(script, {"settings": full, "turns": turns}, tmp_path)
    sent = made["sent"]
    assert sent["messages"][0] == {"role": "system", "content": "short"}
    assert (sent["temperature"], sent["seed"], sent["max_completion_tokens"]) == (0, 3, 9)
    assert sent["stop"] == ["a", "b"]
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 5)
    assert sent["response_format"]["json_schema"]["schema"]["additionalProperties"] is False
    compile(made["python"], "copied", "exec")
    assert '"additionalProperties": False' in made["python"]
