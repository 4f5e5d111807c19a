"""The flags of structured output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from skynet import cli
from skynet.cli.options import chosen
from skynet.cli.structured_options import MAX_FILE_BYTES, structured_outputs
from skynet.errors import BadRequest

SCHEMA = '{"type": "object"}'


def given(**flags: Any) -> dict[str, Any]:
    """All flags as click hands them over."""
    return {"json_schema": None, "regex": None, "choice": (), "grammar": None, **flags}


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "it").write_text(SCHEMA)
    return str(tmp_path / "it")


def test_each_flag_is_the_option(path: str) -> None:
    expected = {
        "json_schema": ({"json": SCHEMA}, path),
        "regex": ({"regex": "a+"}, "a+"),
        "choice": ({"choice": ["a", "b"]}, ("a", "b")),
        "grammar": ({"grammar": SCHEMA}, path),
    }
    for flag, (option, value) in expected.items():
        options = given(**{flag: value}, top_k=3)
        assert chosen(options) == {"structured_outputs": option, "top_k": 3}
        assert chosen(options) == chosen(options)  # `skynet run` asks twice
    assert structured_outputs(given(json_schema=f" {SCHEMA}")) == {
        "structured_outputs": {"json": f" {SCHEMA}"}
    }
    assert structured_outputs(given()) == {}


def test_two_flags_and_files_that_cannot_be_read_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="--regex and --choice: give one"):
        structured_outputs(given(regex="a", choice=("b",)))
    with pytest.raises(BadRequest, match=r"--json-schema '.*'?: .*No such file"):
        structured_outputs(given(json_schema=str(tmp_path / "nowhere")))
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(BadRequest, match=r"--grammar .*utf-8"):
        structured_outputs(given(grammar=str(tmp_path / "binary")))


def test_of_a_large_file_no_more_is_read_than_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_text("a" * 10 * MAX_FILE_BYTES)
    option = structured_outputs(given(grammar=str(tmp_path / "large")))
    assert len(option["structured_outputs"]["grammar"]) == MAX_FILE_BYTES


@pytest.mark.parametrize("command", ["run", "generate"])
def test_help_lists_the_flags(command: str) -> None:
    text = CliRunner().invoke(cli.main, [command, "--help"]).output
    for flag in ("--json-schema", "--regex", "--choice", "--grammar"):
        assert flag in text


def test_run_refuses_a_schema_before_a_cluster_is_started() -> None:
    words = ["run", "a prompt", "--json-schema", '{"uniqueItems": true}']
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 1
    assert 'structured_outputs.json: keyword "uniqueItems" is not supported' in result.stderr
