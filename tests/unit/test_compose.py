"""docker-compose.yml and Dockerfile, as far as they can be checked where no engine runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from dataclasses import asdict
from typing import Any

import pytest
import yaml
from documented import (
    ROOT,
    all_commands,
    check_command,
    code_blocks,
    command_of,
    read,
    shape,
)

from skynet.chords.app import place_of
from skynet.cli.serve import serve
from skynet.settings import Settings
from skynet.store.members import Member
from skynet.wire.keys import ORCHESTRATOR_QUEUE

COMPOSE: dict[str, Any] = yaml.safe_load(read(ROOT / "docker-compose.yml"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MONITORING = ("prometheus", "grafana")
OTHERS = ("redis", *MONITORING)
SKYNET_SERVICES = {name: service for name, service in SERVICES.items() if name not in OTHERS}
DOCKERFILE = read(ROOT / "Dockerfile")
OPERATIONS = read(ROOT / "docs" / "operations.md")
DEPLOYMENT = read(ROOT / "docs" / "deployment.md")

each_skynet_service = pytest.mark.parametrize("name", SKYNET_SERVICES)


def words_of(name: str) -> list[str]:
    """A service's command, its variables replaced by their defaults or their names."""

    def value(match: re.Match[str]) -> str:
        return match[3] if match[2] == ":-" else match[1]

    command = re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, SERVICES[name]["command"])
    return shlex.split(command)


def test_the_services_are_workers_and_what_they_need() -> None:
    ours = {"orchestrator", "worker", "gateway", "flower", "split"}
    assert set(SERVICES) == {*ours, *OTHERS}
    assert str(place_of(words_of("orchestrator")[-1])) == ORCHESTRATOR_QUEUE
    # And by default there is a worker for each place of the model's shape, and a spare
    words = words_of("split")
    stages, shards = (int(words[words.index(name) + 1]) for name in ("--stages", "--shards"))
    assert "-Q" not in words_of("worker")
    assert SERVICES["worker"]["scale"] == stages * shards + 1
    assert f"--scale worker={stages * shards + 1}" in read(ROOT / "docker-compose.yml")


def test_every_service_is_of_the_one_dockerfile_or_redis() -> None:
    assert all(service["build"]["context"] == "." for service in SKYNET_SERVICES.values())
    assert len({service["image"] for service in SKYNET_SERVICES.values()}) == 1
    assert SERVICES["redis"]["image"].startswith("redis:")
    assert "build" not in SERVICES["redis"]


def test_local_models_token_and_proxies_are_passed_to_the_process_that_splits() -> None:
    # Given
    split, passed = SERVICES["split"], {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}
    # Then a model of this machine is mounted, to be read only
    assert "${MODELS_DIR:-./models}:/models:ro" in split["volumes"]
    # And variables without a value are taken from the environment, if they are there
    assert {name for name, value in split["environment"].items() if value is None} == {
        "HF_TOKEN",
        *passed,
    }
    assert set(split["build"]["args"]) == passed
    # And no other process has the token
    assert [n for n, s in SERVICES.items() if "HF_TOKEN" in s.get("environment", {})] == ["split"]


@each_skynet_service
def test_every_command_is_one_that_the_pages_show(name: str) -> None:
    # Given
    pages = (ROOT / "docs" / "operations.md", ROOT / "docs" / "monitoring.md")
    documented = {shape(words) for page in pages for words in all_commands(page)}
    # When
    words = words_of(name)
    # Then
    check_command(words)
    assert shape(words) in documented


def test_redis_persists_its_data_and_evicts_nothing() -> None:
    # Given
    words = words_of("redis")
    options = dict(zip(words[1::2], words[2::2], strict=True))
    # Then
    assert words[0] == "redis-server"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"
    assert options["--requirepass"] == "REDIS_PASSWORD"
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]
    # And the operations page starts one with the same options
    by_hand = next(b for b in code_blocks(OPERATIONS, "sh") if b.startswith("redis-server "))
    assert set(options) <= set(shlex.split(by_hand))


def test_passwords_come_from_the_environment_and_must_be_set() -> None:
    text = read(ROOT / "docker-compose.yml")
    for variable in ("REDIS_PASSWORD", "FLOWER_USER", "FLOWER_PASSWORD", "SKYNET_API_KEYS"):
        uses = re.findall(rf"\$\{{{variable}([^}}]*)\}}", text)
        assert uses
        assert all(use == f":?set {variable}" for use in uses)
        assert f"{variable}=" in DEPLOYMENT


def test_the_section_that_the_comment_names_exists() -> None:
    named = re.findall(r'see "(\w+)" in (\S+\.md)', read(ROOT / "docker-compose.yml"))
    assert named
    assert all(f"\n## {section}\n" in read(ROOT / file) for section, file in named)


def test_nothing_is_published_beyond_this_machine() -> None:
    published = {name: s["ports"] for name, s in SERVICES.items() if "ports" in s}
    assert published == {
        "flower": ["127.0.0.1:5555:5555"],
        "gateway": ["127.0.0.1:8000:8000"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_the_gateway_serves_where_the_others_look_for_it() -> None:
    # Given
    words = words_of("gateway")
    port = words[words.index("--port") + 1]
    # Then
    assert SERVICES["gateway"]["ports"][0].endswith(f":{port}")
    assert f"127.0.0.1:{port}/health" in SERVICES["gateway"]["healthcheck"]["test"][-1]
    # And it has time to end open answers, and the packages that it needs
    drain_s = next(p.default for p in serve.params if p.name == "drain_s")
    assert int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s")) > drain_s
    assert '".[gateway]"' in DOCKERFILE
    # And Prometheus reads its numbers, and those of the cluster once, without a key
    config = yaml.safe_load(read(ROOT / "deploy" / "monitoring" / "prometheus.yml"))
    own, cluster = config["scrape_configs"]
    assert own["metrics_path"] == "/metrics"
    assert own["dns_sd_configs"] == [{"names": ["gateway"], "type": "A", "port": int(port)}]
    assert cluster["metrics_path"] == "/cluster/metrics"
    assert cluster["static_configs"] == [{"targets": [f"gateway:{port}"]}]
    assert "--open-metrics" in words


def test_grafana_finds_prometheus_and_the_board() -> None:
    # Given
    directory = ROOT / "deploy" / "monitoring" / "provisioning"
    (source,) = yaml.safe_load(read(directory / "datasources" / "prometheus.yml"))["datasources"]
    (provider,) = yaml.safe_load(read(directory / "dashboards" / "skynet.yml"))["providers"]
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    # Then
    assert source["url"] == "http://prometheus:9090"
    assert mounts["./docs/grafana"] == provider["options"]["path"]
    assert mounts["./deploy/monitoring/provisioning"] == "/etc/grafana/provisioning"
    board = json.loads(read(ROOT / "docs" / "grafana" / "skynet.json"))
    variable = next(v for v in board["templating"]["list"] if v["type"] == "datasource")
    assert variable["current"] == {"text": source["name"], "value": source["uid"]}
    # And both run only when asked
    assert all(SERVICES[name]["profiles"] == ["monitoring"] for name in MONITORING)


def test_a_worker_listens_for_links_at_its_own_address() -> None:
    # Given the first words of a worker, and a `hostname` that knows two addresses
    *first, script, name = SERVICES["worker"]["entrypoint"]
    own = "hostname() { echo 172.18.0.5 fd00::5; }; "
    # When
    done = subprocess.run(
        [*first, own + script.replace("$$", "$"), name, "env"],
        capture_output=True,
        text=True,
        check=True,
    )
    # Then
    assert "SKYNET_EXCHANGE_LISTEN=172.18.0.5:0" in done.stdout.splitlines()


@each_skynet_service
def test_every_process_finds_redis_and_waits_for_it(name: str) -> None:
    # Given
    service = SKYNET_SERVICES[name]
    url = service["environment"]["SKYNET_REDIS_URL"]
    # Then
    assert url.endswith("@redis:6379/0")
    assert service["depends_on"]["redis"]["condition"] == "service_healthy"
    known = {f"SKYNET_{field.upper()}" for field in Settings.model_fields}
    assert {name for name, value in service["environment"].items() if value is not None} <= known


def test_split_runs_only_when_asked() -> None:
    assert SKYNET_SERVICES["split"]["profiles"] == ["split"]
    assert SKYNET_SERVICES["split"]["restart"] == "no"
    assert [name for name, service in SKYNET_SERVICES.items() if "profiles" in service] == ["split"]


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "split"])
def test_every_long_running_service_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]


@pytest.mark.parametrize("name", ["orchestrator", "worker"])
def test_a_worker_is_healthy_while_it_holds_its_lease(name: str) -> None:
    # Given what the health check looks for in the status
    command = SKYNET_SERVICES[name]["healthcheck"]["test"][1]
    status, _, search = command.partition(" | ")
    check_command(command_of(status))
    wanted = shlex.split(search)[-1].replace("$$HOSTNAME", "3f2a")
    # When it is a member, with or without a place just now, and when another is
    if name == ORCHESTRATOR_QUEUE:
        mine, other = (Member("id", "n", place, "host", 1) for place in (name, "stage7.shard7"))
    else:
        mine, other = (Member("id", "n", "", host, 1) for host in ("3f2a", "3f2a1"))
    # Then
    assert wanted in json.dumps(asdict(mine))
    assert wanted not in json.dumps(asdict(other))


def test_the_image_has_what_it_needs_and_no_root() -> None:
    # Given
    copied = {
        word
        for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    ignored = read(ROOT / ".dockerignore").splitlines()
    project = tomllib.loads(read(ROOT / "pyproject.toml"))
    # Then all that is copied exists, is let through, and is all that the package is made of
    assert all((ROOT / name).exists() for name in copied)
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["skynet*"]
    assert {"skynet", "setup.py", "constraints.txt", project["project"]["readme"]} <= copied
    # And
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["python:3.11-slim"]
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE) == ["skynet"]
    assert "download.pytorch.org/whl/cpu" in DOCKERFILE
    # And the models that `make setup` installs
    packages = re.findall(r"^\w+_PACKAGE := (\S+)", read(ROOT / "Makefile"), re.MULTILINE)
    assert len(packages) == 2
    assert all(f" {package} " in DOCKERFILE for package in packages)
