"""The units of deploy/systemd: known options, real commands, and time to hand a place over."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from documented import ROOT, check_command, read

from skynet.chords.app import place_of
from skynet.settings import Settings
from skynet.worker.runtime import LEAVE_S

DIRECTORY = ROOT / "deploy" / "systemd"
COMMON = DIRECTORY / "skynet-.service.d" / "common.conf"
SERVICES = sorted(DIRECTORY.glob("*.service"))
UNITS = [*SERVICES, COMMON, DIRECTORY / "skynet.target"]
PREFIX = "/opt/skynet/bin/"
KNOWN = {
    "Unit": {"After", "Description", "PartOf", "StartLimitIntervalSec", "Wants"},
    "Install": {"WantedBy"},
    "Service": {
        *("CacheDirectory", "CacheDirectoryMode", "CapabilityBoundingSet", "DynamicUser"),
        *("Environment", "EnvironmentFile", "ExecStart", "KillMode", "LockPersonality"),
        *("NoNewPrivileges", "PrivateDevices", "PrivateTmp", "ProtectClock"),
        *("ProtectControlGroups", "ProtectHome", "ProtectHostname", "ProtectKernelLogs"),
        *("ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "ProtectSystem"),
        *("Restart", "RestartSec", "RestrictAddressFamilies", "RestrictNamespaces"),
        *("RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures"),
        *("SystemCallErrorNumber", "SystemCallFilter", "TimeoutStopSec", "UMask", "User"),
        "WorkingDirectory",
    },
}

each_unit = pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)


def options(path: Path) -> list[tuple[str, str, str]]:
    """(section, option, value) of a unit; any other line is an error."""
    found, section = [], ""
    for line in read(path).splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.removeprefix("[").removesuffix("]")
            continue
        name, separator, value = line.partition("=")
        assert (separator, name.isalpha()) == ("=", True), line
        found.append((section, name, value))
    return found


def service_options(path: Path) -> dict[str, str]:
    """The options of a service's own section, those of all SkyNet units included."""
    every = [*options(COMMON), *options(path)]
    return {name: value for section, name, value in every if section == "Service"}


@each_unit
def test_every_option_is_known_and_given_once(path: Path) -> None:
    named = [(section, name) for section, name, _ in options(path)]
    assert len(named) == len(set(named))
    assert [pair for pair in named if pair[1] not in KNOWN[pair[0]]] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    # Given the units, with a command that is installed here
    shutil.copytree(DIRECTORY, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*.service"):
        text = re.sub(rf"{PREFIX}\w+", str(shutil.which("true")), path.read_text())
        path.write_text(text)
    units = [str(path) for path in sorted(tmp_path.glob("skynet*.[st]*"))]
    # When / Then
    done = subprocess.run(
        ["systemd-analyze", "verify", *(unit for unit in units if Path(unit).is_file())],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert (done.returncode, complaints) == (0, [])


def test_there_is_a_unit_for_each_kind_of_process() -> None:
    names = [path.name for path in SERVICES]
    assert names == [
        "skynet-elastic-worker@.service",
        "skynet-gateway.service",
        "skynet-orchestrator.service",
        "skynet-worker@.service",
    ]


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_every_service_runs_a_command_that_exists(path: Path) -> None:
    # Given
    command = service_options(path)["ExecStart"].replace("%i", "stage0.shard1")
    # When
    words = shlex.split(command.removeprefix(PREFIX))
    # Then
    assert command.startswith(PREFIX)
    check_command(words)
    queues = words[words.index("-Q") + 1] if "-Q" in words else None
    assert str(place_of(queues)) in ("orchestrator", "stage0.shard1", "None")
    # And starts and stops with the others
    every = [*options(COMMON), *options(path)]
    assert ("Unit", "PartOf", "skynet.target") in every
    assert ("Install", "WantedBy", "skynet.target") in every


def test_a_service_is_restricted_and_has_time_to_leave() -> None:
    # Given
    service = {name: value for section, name, value in options(COMMON) if section == "Service"}
    # Then
    for name in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "DynamicUser"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert float(service["TimeoutStopSec"]) > LEAVE_S
    assert service["Restart"] == "on-failure"


def test_settings_come_from_a_file_that_others_cannot_read() -> None:
    # Given
    example = read(DIRECTORY / "skynet.env.example")
    file = service_options(COMMON)["EnvironmentFile"]
    # Then
    assert f"install -D -m 0600 deploy/systemd/skynet.env.example {file}" in example
    named = re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)
    known = {f"SKYNET_{field.upper()}" for field in Settings.model_fields}
    assert set(named) <= known
    assert "SKYNET_REDIS_URL" in named
    environment = service_options(SERVICES[0])["Environment"].split()
    assert {item.partition("=")[0] for item in environment} - known == {"PYTHONUNBUFFERED"}
