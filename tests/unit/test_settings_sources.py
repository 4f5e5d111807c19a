"""Where settings come from: the environment before a file before defaults, and unknown names."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from skynet.errors import ConfigurationError
from skynet.settings import Settings, setting_sources, settings


@pytest.fixture(autouse=True)
def _fresh_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("SKYNET_"):
            monkeypatch.delenv(name)
    settings.cache_clear()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file, which is yet to be written."""
    path = tmp_path / "some.toml"
    monkeypatch.setenv("SKYNET_CONFIG", str(path))
    return path


def test_the_environment_wins_over_the_file_and_the_file_over_defaults(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    config.write_text(
        'redis_url = "unix:///file.sock"\nlease_s = 5\ntrace = true\n'
        'exchange_urls = ["redis://a", "redis://b"]\n'
    )
    monkeypatch.setenv("SKYNET_LEASE_S", "7")
    # When
    read = settings()
    # Then
    assert (read.redis_url, read.lease_s, read.trace) == ("unix:///file.sock", 7, True)
    assert read.exchange_urls == ("redis://a", "redis://b")
    assert read.max_waiting == Settings.model_fields["max_waiting"].default
    # And each value's source is known
    sources = setting_sources()
    assert sources["redis_url"] == sources["trace"] == str(config)
    assert (sources["lease_s"], sources["max_waiting"]) == ("environment", "default")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lease = 3", "no such setting: 'lease'; did you mean lease_s?"),
        ("SKYNET_LEASE_S = 3", "no such setting: 'SKYNET_LEASE_S'; did you mean lease_s?"),
        ("[worker]\nlease_s = 3", "no such setting: 'worker'"),
        ('lease_s = "long"', "lease_s=long: Input should be a valid number"),
        ("threads = 0", "threads=0: Input should be greater than or equal to 1"),
        ("lease_s = \nthreads = 1", "line 1"),
        ('redis_url = "http://:secret@host"', "redis_url: "),
        ('exchange_urls = "redis://:secret@host"', "exchange_urls: "),
    ],
)
def test_an_error_names_the_file_and_the_name(config: Path, content: str, message: str) -> None:
    # Given
    config.write_text(content)
    # When
    with pytest.raises(ConfigurationError) as raised:
        settings()
    # Then
    assert str(raised.value).startswith(f"{config}: ")
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_bad_variable_is_not_blamed_on_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("lease_s = 5")
    monkeypatch.setenv("SKYNET_LEASE_S", "-1")
    with pytest.raises(ConfigurationError, match=r"^SKYNET_LEASE_S=-1: "):
        settings()


def test_a_file_that_is_not_there_is_an_error(config: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"some\.toml .*SKYNET_CONFIG.* is missing"):
        settings()


def test_a_list_that_is_not_json_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYNET_EXCHANGE_URLS", "redis://:secret@host")
    with pytest.raises(
        ConfigurationError, match=r"^SKYNET_EXCHANGE_URLS: not a list in JSON"
    ) as no:
        settings()
    assert "secret" not in str(no.value)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("SKYNET_LEASE", "SKYNET_LEASE is no setting of SkyNet; did you mean SKYNET_LEASE_S?"),
        ("skynet_redis_uri", "did you mean SKYNET_REDIS_URL?"),
        ("SKYNET_CONFIGURATION", "did you mean SKYNET_CONFIG?"),
        ("SKYNET_XYZZY", "SKYNET_XYZZY is no setting of SkyNet; docs/settings.md lists"),
    ],
)
def test_an_unknown_variable_is_warned_of_once(
    variable: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given
    monkeypatch.setenv(variable, "3")
    # When the settings are read twice
    settings()
    settings()
    # Then there is one warning, of a logger that an application can filter
    (record,) = caplog.records
    assert (record.levelno, record.name.split(".")[0]) == (logging.WARNING, "skynet")
    assert message in record.getMessage()


def test_variables_that_kubernetes_sets_for_a_service_are_no_misspelt_settings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given services named skynet and skynet-redis
    for service in ("SKYNET", "SKYNET_REDIS"):
        monkeypatch.setenv(f"{service}_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(f"{service}_SERVICE_PORT", "6379")
        monkeypatch.setenv(f"{service}_PORT", "tcp://10.0.0.1:6379")
        monkeypatch.setenv(f"{service}_PORT_6379_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("SKYNET_REDIS_UR", "redis://host")
    # When
    settings()
    # Then
    (record,) = caplog.records
    assert "SKYNET_REDIS_UR is no setting" in record.getMessage()


APPLICATION = """
import logging, warnings
import celery, numpy, redis, pydantic_settings  # their own changes to warnings are not SkyNet's
def state():
    root = logging.getLogger()
    return list(root.handlers), root.level, list(warnings.filters), warnings.showwarning
before = state()
import skynet
client = skynet.Client("unix:///nonexistent")
assert state() == before
assert skynet.settings.settings().lease_s == 3, skynet.settings.settings().lease_s
"""


@pytest.mark.timeout(120)
def test_a_program_reads_no_file_of_its_directory_and_its_logging_stays(tmp_path: Path) -> None:
    # Given a directory with a settings file, and a misspelt variable
    (tmp_path / "skynet.toml").write_text("lease_s = 9")
    # When
    done = subprocess.run(
        [sys.executable, "-c", APPLICATION],
        cwd=tmp_path,
        env={**os.environ, "SKYNET_LEASE": "9", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    # Then the program is told, by logging's last resort alone
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "did you mean SKYNET_LEASE_S?" in done.stderr


@pytest.mark.timeout(120)
def test_a_celery_worker_reads_the_file_that_is_named(tmp_path: Path) -> None:
    # Given a file with a value that cannot work
    (tmp_path / "mine.toml").write_text("lease_s = -1")
    # When
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "skynet", "worker"],
        cwd=tmp_path,
        env={
            **os.environ,
            "SKYNET_CONFIG": "mine.toml",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    # Then
    assert done.returncode != 0
    assert f"ConfigurationError: {tmp_path}/mine.toml: lease_s=-1" in done.stderr


@pytest.mark.timeout(120)
def test_a_celery_worker_says_that_it_does_not_read_its_directorys_file(tmp_path: Path) -> None:
    # Given
    (tmp_path / "skynet.toml").write_text("lease_s = 9")
    # When its logging is set up
    done = subprocess.run(
        [sys.executable, "-c", "import skynet.celery; skynet.celery._setup_logging()"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    # Then
    assert "skynet.toml of this directory is not read: set SKYNET_CONFIG=skynet.toml" in done.stderr
