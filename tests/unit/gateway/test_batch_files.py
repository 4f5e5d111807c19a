"""Files of batches: what their lines must be, what survives a crash, who sees them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from skynet.errors import BadRequest
from skynet.gateway.batch.batches import Batches
from skynet.gateway.batch.files import Files
from skynet.gateway.batch.lines import MAX_LINE_BYTES, answered_ids, check_requests
from skynet.gateway.errors import ApiError

URL = "/v1/chat/completions"


def line(custom_id: Any = "a", **fields: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": {}, **fields})


def checked(directory: Path, *lines: str) -> int:
    path = directory / "requests.jsonl"
    path.write_text("\n".join(lines))
    return check_requests(path, frozenset({URL}))


def test_requests_are_counted_and_empty_lines_are_none(tmp_path: Path) -> None:
    assert checked(tmp_path, line("a"), "", line("b")) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1: no JSON"),
        (["[" * 100_000], "line 1: no JSON"),
        (["[]"], "line 1: expected"),
        ([line(), line(body=[])], "line 2: expected"),
        ([line(custom_id=5)], "line 1: custom_id 5"),
        ([line(custom_id="x" * 600)], "line 1: custom_id"),
        ([line(url="/v1/other")], "line 1: 'POST' '/v1/other'"),
        ([line(method="GET")], "line 1: 'GET'"),
        ([line("a"), line("b"), line("a")], "line 3: custom_id 'a' is not unique"),
        ([""], "no requests"),
        (["x" * (MAX_LINE_BYTES + 1)], "line 1: longer than"),
    ],
)
def test_a_line_that_cannot_be_sent_is_named(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(BadRequest, match=r"requests\.jsonl") as caught:
        checked(tmp_path, *lines)
    assert message in str(caught.value)


def test_a_line_that_was_cut_is_removed_from_the_answers(tmp_path: Path) -> None:
    # Given
    path = tmp_path / "answers"
    whole = '{"custom_id": "a"}\n{"custom_id": "b"}\n'
    for cut in ('{"custom_id": "c"', '{"custom_id": "c"}', "\x00\x00"):
        path.write_text(whole + cut)
        # When / Then
        assert answered_ids(path) == {"a", "b"}
        assert path.read_text() == whole
    assert answered_ids(tmp_path / "missing") == set()


def test_another_file_is_not_taken_for_answers(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nare mine\n")
    with pytest.raises(BadRequest, match=r"notes\.txt"):
        answered_ids(path)
    assert path.read_text() == "my notes\nare mine\n"


def test_files_are_their_owners_and_bounded(tmp_path: Path) -> None:
    # Given
    files = Files(tmp_path / "files", 2000)
    stored = files.add(io.BytesIO(b"x" * 1000), "a.jsonl", "batch", "ann")
    # When / Then
    assert files.get(stored.id, "ann") == files.get(stored.id, None) == stored
    assert stored.bytes == 1000
    assert [each.id for each in files.all("ann")] == [stored.id]
    assert files.all("bob") == []
    for name in (stored.id, "file-" + "0" * 32, "../../etc/passwd", ""):
        with pytest.raises(ApiError, match="no file"):
            files.get(name, "bob")
    with pytest.raises(ApiError) as caught:
        files.add(io.BytesIO(b"x" * 1000), "b.jsonl", "batch", "ann")
    assert caught.value.status == 413
    # Then what did not fit is not there, and a deleted one leaves room
    assert {path.suffix for path in (tmp_path / "files").iterdir()} == {".json", ".jsonl"}
    files.delete(stored.id)
    assert files.used_bytes() == 0


@pytest.mark.parametrize(
    ("endpoint", "window", "param"),
    [
        ("/v1/other", "24h", "endpoint"),
        (URL, "soon", "completion_window"),
        (URL, "0h", "completion_window"),
        (URL, "99999h", "completion_window"),
    ],
)
def test_a_batch_that_cannot_be_run_is_refused(
    tmp_path: Path, endpoint: str, window: str, param: str
) -> None:
    batches = Batches(tmp_path, 10_000)
    stored = batches.files.add(io.BytesIO(b"x"), "a.jsonl", "batch", "")
    with pytest.raises(ApiError) as caught:
        batches.create(endpoint, stored.id, window, "", {})
    assert caught.value.param == param


def test_a_batch_is_its_owners_and_has_one_runner(tmp_path: Path) -> None:
    # Given
    batches = Batches(tmp_path, 10_000)
    stored = batches.files.add(io.BytesIO(b"x"), "a.jsonl", "batch", "ann")
    batch = batches.create(URL, stored.id, "2h", "ann", {"a": "b"})
    # When / Then
    assert batch.expires_at - batch.created_at == 7200
    assert batches.get(batch.id, "ann") == batch
    assert batches.all("bob") == []
    for owner in ("bob", ""):
        with pytest.raises(ApiError, match="no batch"):
            batches.get(batch.id, owner)
    with pytest.raises(ApiError, match="no file"):
        batches.create(URL, stored.id, "2h", "bob", {})
    with batches.lock(batch) as first, Batches(tmp_path, 10_000).lock(batch) as second:
        assert (first, second) == (True, False)
    assert batches.cancel(batch).status == "cancelling"
    assert batches.get(batch.id, "ann").status == "cancelling"
