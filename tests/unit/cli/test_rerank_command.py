"""`skynet rerank`: documents by their scores."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from skynet.cli import text_tasks
from skynet.request.completion import Completion


@pytest.mark.parametrize("as_json", [False, True])
def test_documents_are_printed_best_first(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a model that scores a document by its length
    asked: list[Any] = []

    def complete(pairs: Any, task: str, options: dict[str, Any]) -> list[Completion]:
        asked.append((pairs, task, options))
        return [Completion("", [], 3, "stop", score=len(text) / 8) for _, text in pairs]

    monkeypatch.setattr(text_tasks, "_complete", complete)
    # When
    arguments = ["a query", "one", "three", "--instruction", "Find."] + ["--json"] * as_json
    result = CliRunner().invoke(text_tasks.rerank, arguments)
    # Then
    assert result.exit_code == 0, result.output
    ((pairs, task, options),) = asked
    assert (pairs, task) == ((("a query", "one"), ("a query", "three")), "rerank")
    assert options["instruction"] == "Find."
    if as_json:
        lines = [json.loads(line) for line in result.output.splitlines()]
        assert lines[0] == {"index": 1, "document": "three", "score": 0.625}
    else:
        assert result.output == "0.6250  three\n0.3750  one\n"
