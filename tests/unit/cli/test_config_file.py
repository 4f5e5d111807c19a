"""The settings file of the command line, and `skynet settings`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from skynet import cli
from skynet.local.cluster import ClusterOptions
from skynet.settings import settings


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which the commands run; no settings in the environment."""
    for name in list(os.environ):
        if name.startswith("SKYNET_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SKYNET_CONFIG", "set, so that it is restored")
    monkeypatch.delenv("SKYNET_CONFIG")
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    return tmp_path


def skynet(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(cli.main, words, env=environment)


def shown(*words: str, **environment: str) -> dict[str, Any]:
    """`skynet settings --json`, as a new process would print it."""
    settings.cache_clear()
    os.environ.pop("SKYNET_CONFIG", None)
    result = skynet(*words, "settings", "--json", **environment)
    assert result.exit_code == 0, result.output
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def test_the_directorys_file_is_read_unless_another_is_named(directory: Path) -> None:
    # Given
    (directory / "skynet.toml").write_text("lease_s = 5\nmax_waiting = 7\n")
    (directory / "other.toml").write_text("lease_s = 6\n")
    # When / Then
    found = shown()
    assert found["file"] == str(directory / "skynet.toml")
    assert found["settings"]["lease_s"] == {"value": 5.0, "source": found["file"]}
    assert shown(SKYNET_LEASE_S="8")["settings"]["lease_s"] == {
        "value": 8.0,
        "source": "environment",
    }
    named = shown("--config", "other.toml")
    assert named["settings"]["lease_s"]["value"] == 6
    assert named["settings"]["max_waiting"]["source"] == "default"
    assert shown(SKYNET_CONFIG="other.toml")["settings"]["lease_s"]["value"] == 6
    assert shown("--config", "skynet.toml", SKYNET_CONFIG="other.toml")["file"] == found["file"]
    # And an empty name reads none
    assert shown(SKYNET_CONFIG="")["file"] is None
    assert shown("--config", "")["file"] is None


def test_workers_of_a_local_cluster_are_told_the_files_path(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a name relative to this directory, and workers that run in another
    (directory / "other.toml").write_text("lease_s = 6\n")
    monkeypatch.setenv("SKYNET_CONFIG", "other.toml")
    options = ClusterOptions(False, False, 0, 1, 0, False, 1, {})
    # When / Then
    assert options.variables("unix:///x")["SKYNET_CONFIG"] == str(directory / "other.toml")


def test_a_file_that_others_can_write_is_not_read_by_itself(directory: Path) -> None:
    # Given
    file = directory / "skynet.toml"
    file.write_text('redis_url = "redis://elsewhere"\n')
    file.chmod(0o666)
    # When / Then
    result = skynet("status")
    assert result.exit_code == 1
    assert f"{file} can be written by another user" in result.stderr
    assert "--config" in result.stderr
    assert shown("--config", "skynet.toml")["file"] == str(file)


def test_an_unknown_name_in_the_file_is_one_line(directory: Path) -> None:
    (directory / "skynet.toml").write_text("lease = 5\n")
    result = skynet("status")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "did you mean lease_s?" in result.stderr


def test_settings_are_shown_with_their_sources_and_without_passwords(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given
    (directory / "skynet.toml").write_text('exchange_urls = ["redis://:secret@a"]\n')
    # When
    result = skynet("settings", SKYNET_REDIS_URL="redis://:secret@host", SKYNET_LEASE="9")
    # Then
    assert result.exit_code == 0
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert lines["SKYNET_REDIS_URL"] == ["redis://:***@host", "environment"]
    assert lines["SKYNET_EXCHANGE_URLS"] == ["['redis://:***@a']", str(directory / "skynet.toml")]
    assert lines["SKYNET_THREADS"] == ["unset", "default"]
    assert "secret" not in result.output
    assert "did you mean SKYNET_LEASE_S?" in caplog.text
