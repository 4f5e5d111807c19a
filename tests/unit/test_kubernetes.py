"""The manifests of deploy/kubernetes: valid for Kubernetes' API, and true of SkyNet."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from documented import ROOT, check_command, command_of, read

from skynet.cli.serve import serve
from skynet.settings import Settings, split_address
from skynet.store.members import Member
from skynet.wire import keys
from skynet.worker.runtime import LEAVE_S

KUBERNETES = "1.37"
DIRECTORY = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("base", "keda")
KEDA_SCHEMAS: dict[str, Any] = json.loads(read(Path(__file__).parent / "keda_schema.json"))
# Beside SkyNet's settings: of the manifests themselves, of redis-cli and of Hugging Face.
OTHER_VARIABLES = {"REDIS_PASSWORD", "REDISCLI_AUTH", "HF_TOKEN", "HF_HOME", "POD_IP"}
Object = dict[str, Any]


def objects(overlay: str) -> list[Object]:
    """The objects in the files that a kustomization lists."""
    kustomization = yaml.safe_load(read(DIRECTORY / overlay / "kustomization.yaml"))
    files = [name for name in kustomization["resources"] if name.endswith(".yaml")]
    texts = [read(DIRECTORY / overlay / name) for name in files]
    return [document for text in texts for document in yaml.safe_load_all(text)]


OBJECTS = [document for overlay in OVERLAYS for document in objects(overlay)]
WORKLOADS = {d["metadata"]["name"]: d for d in OBJECTS if "template" in d.get("spec", {})}
PODS = {name: workload["spec"]["template"] for name, workload in WORKLOADS.items()}
CONTAINERS = {name: pod["spec"]["containers"][0] for name, pod in PODS.items()}
OURS = [name for name, container in CONTAINERS.items() if container["image"] == "skynet"]

each_pod = pytest.mark.parametrize("name", PODS)
each_of_ours = pytest.mark.parametrize("name", OURS)


def of_kind(kind: str) -> list[Object]:
    return [document for document in OBJECTS if document["kind"] == kind]


def validate(document: Object) -> None:
    """Against the schema of its kind; unknown fields are errors."""
    if document["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(document, KEDA_SCHEMAS[document["kind"]])
        return
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def is_named(document: Object) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


@pytest.mark.parametrize("document", OBJECTS, ids=is_named)
def test_every_object_is_valid(document: Object) -> None:
    validate(document)
    assert "namespace" not in document["metadata"]


@pytest.mark.parametrize("path", sorted(DIRECTORY.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_file_is_listed(path: Path) -> None:
    kustomization = yaml.safe_load(read(path.parent / "kustomization.yaml"))
    assert path.name in [*kustomization["resources"], "kustomization.yaml"]


def test_a_wrong_field_is_detected() -> None:
    deployment, *_ = of_kind("Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        validate({**deployment, "spec": {**deployment["spec"], "replica": 2}})
    (scaled,) = of_kind("ScaledObject")
    with pytest.raises(jsonschema.ValidationError):
        validate({**scaled, "spec": {**scaled["spec"], "maxReplicas": 2}})


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_valid_objects(overlay: str) -> None:
    # When
    done = subprocess.run(
        ["kubectl", "kustomize", str(DIRECTORY / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    built = list(yaml.safe_load_all(done.stdout))
    # Then
    for document in built:
        validate(document)
    names = {is_named(document) for document in built}
    assert {is_named(document) for document in objects(overlay)} <= names
    pods = [d["spec"]["template"] for d in built if "template" in d.get("spec", {})]
    assert {p["metadata"]["labels"]["app.kubernetes.io/part-of"] for p in pods} == {"skynet"}
    images = {c["image"] for pod in pods for c in pod["spec"]["containers"]}
    assert "skynet" not in images
    # And KEDA reads Redis in the namespace of the objects, and alone sets the number of workers
    if overlay == "keda":
        (scaled,) = (document for document in built if document["kind"] == "ScaledObject")
        namespace, address = scaled["metadata"]["namespace"], scaled["spec"]["triggers"][0]
        assert address["metadata"]["address"] == f"skynet-redis.{namespace}.svc:6379"
        (worker,) = (d for d in built if is_named(d) == "StatefulSet-skynet-worker")
        assert "replicas" not in worker["spec"]


def test_there_are_workers_orchestrators_redis_and_a_job() -> None:
    kinds = {name: workload["kind"] for name, workload in WORKLOADS.items()}
    assert kinds == {
        "skynet-redis": "StatefulSet",
        "skynet-orchestrator": "Deployment",
        "skynet-worker": "StatefulSet",
        "skynet-gateway": "Deployment",
        "skynet-split": "Job",
    }
    assert WORKLOADS["skynet-orchestrator"]["spec"]["replicas"] == 2


@each_of_ours
def test_every_command_is_a_command_of_skynet(name: str) -> None:
    check_command(CONTAINERS[name]["command"])


@each_pod
def test_every_variable_is_a_known_one(name: str) -> None:
    known = {f"SKYNET_{field.upper()}" for field in Settings.model_fields} | OTHER_VARIABLES
    variables = [variable["name"] for variable in CONTAINERS[name]["env"]]
    assert set(variables) <= known
    # And one that refers to another stands after it
    for index, variable in enumerate(CONTAINERS[name]["env"]):
        for referred in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
            assert referred in variables[:index]
    # And Kubernetes adds none of its own
    assert PODS[name]["spec"]["enableServiceLinks"] is False


@each_of_ours
def test_every_process_uses_the_service_of_redis_with_its_password(name: str) -> None:
    (service,) = [d for d in of_kind("Service") if d["metadata"]["name"] == "skynet-redis"]
    values = {variable["name"]: variable for variable in CONTAINERS[name]["env"]}
    port = service["spec"]["ports"][0]["port"]
    assert values["SKYNET_REDIS_URL"]["value"] == (
        f"redis://:$(REDIS_PASSWORD)@skynet-redis:{port}/0"
    )
    secret = values["REDIS_PASSWORD"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "skynet-redis", "key": "password"}


def test_redis_persists_its_data_evicts_nothing_and_has_a_password() -> None:
    redis = CONTAINERS["skynet-redis"]
    options = dict(zip(redis["args"][1::2], redis["args"][2::2], strict=True))
    assert options == {
        "--maxmemory-policy": "noeviction",
        "--appendonly": "yes",
        "--requirepass": "$(REDIS_PASSWORD)",
    }
    (claim,) = WORKLOADS["skynet-redis"]["spec"]["volumeClaimTemplates"]
    (mount,) = redis["volumeMounts"]
    assert (mount["name"], mount["mountPath"]) == (claim["metadata"]["name"], "/data")


@each_pod
def test_no_process_is_root_or_may_become_it(name: str) -> None:
    pod, container = PODS[name]["spec"], CONTAINERS[name]["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    if name in OURS:  # the user of the image
        uid = re.search(r"--uid (\d+)", read(ROOT / "Dockerfile"))
        assert uid is not None
        assert pod["securityContext"]["runAsUser"] == int(uid[1])


@each_pod
def test_every_container_has_a_memory_limit(name: str) -> None:
    assert CONTAINERS[name]["resources"]["limits"]["memory"]
    assert set(CONTAINERS[name]["resources"]["requests"]) == {"cpu", "memory"}


def test_a_worker_has_as_many_threads_as_cores() -> None:
    worker = CONTAINERS["skynet-worker"]
    values = {variable["name"]: variable for variable in worker["env"]}
    assert values["SKYNET_THREADS"]["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    assert worker["resources"]["limits"]["cpu"].isdigit()


@pytest.mark.parametrize("name", ["skynet-worker", "skynet-orchestrator"])
def test_a_process_is_ready_while_it_is_a_member_and_has_time_to_leave(name: str) -> None:
    # Given what the probe looks for in the status
    shell, option, script = CONTAINERS[name]["readinessProbe"]["exec"]["command"]
    status, _, search = script.partition(" | ")
    # When the pod is a member, and when another is
    wanted = shlex.split(search)[-1].replace("$HOSTNAME", "pod-1")
    mine, other = (json.dumps(asdict(Member("id", "n", "", h, 1))) for h in ("pod-1", "pod-10"))
    # Then
    assert (shell, option) == ("sh", "-c")
    check_command(command_of(status))
    assert wanted in mine
    assert wanted not in other
    assert "livenessProbe" not in CONTAINERS[name]
    assert PODS[name]["spec"]["terminationGracePeriodSeconds"] > LEAVE_S


def test_workers_link_by_the_address_of_their_pod() -> None:
    # Given
    values = {variable["name"]: variable for variable in CONTAINERS["skynet-worker"]["env"]}
    host, port = split_address(values["SKYNET_EXCHANGE_LISTEN"]["value"])
    # Then
    assert host == "$(POD_IP)"
    assert values["POD_IP"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    # And the network lets workers through, in both directions, and nobody else
    (policy,) = [p for p in of_kind("NetworkPolicy") if p["metadata"]["name"] == "skynet-exchange"]
    peers = {"podSelector": policy["spec"]["podSelector"]}
    assert policy["spec"]["ingress"] == [{"from": [peers], "ports": [{"port": port}]}]
    assert policy["spec"]["egress"] == [{"to": [peers], "ports": [{"port": port}]}]


def test_the_gateway_can_be_reached_where_it_listens() -> None:
    # Given
    gateway = CONTAINERS["skynet-gateway"]
    words = gateway["command"]
    port = int(words[words.index("--port") + 1])
    (service,) = [d for d in of_kind("Service") if d["metadata"]["name"] == "skynet-gateway"]
    (policy,) = [p for p in of_kind("NetworkPolicy") if p["metadata"]["name"] == "skynet-gateway"]
    # Then
    assert gateway["ports"] == [{"name": "http", "containerPort": port}]
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    assert policy["spec"]["ingress"] == [{"ports": [{"port": port}]}]
    assert gateway["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    # And has time to end open answers, and keys from a secret
    drain_s = next(p.default for p in serve.params if p.name == "drain_s")
    assert PODS["skynet-gateway"]["spec"]["terminationGracePeriodSeconds"] > drain_s
    (keys_,) = [v for v in gateway["env"] if v["name"] == "SKYNET_API_KEYS"]
    assert keys_["valueFrom"]["secretKeyRef"] == {"name": "skynet-gateway", "key": "api-keys"}


def test_every_selector_selects_pods() -> None:
    labels = [pod["metadata"]["labels"] for pod in PODS.values()]
    selectors = [d["spec"]["selector"].get("matchLabels") for d in of_kind("PodDisruptionBudget")]
    selectors += [service["spec"]["selector"] for service in of_kind("Service")]
    policies = [policy["spec"]["podSelector"] for policy in of_kind("NetworkPolicy")]
    selectors += [policy["matchLabels"] for policy in policies if "matchLabels" in policy]
    assert len(selectors) == 11
    for selector in selectors:
        assert any(selector.items() <= pod.items() for pod in labels)
    (expression,) = [p["matchExpressions"][0] for p in policies if "matchExpressions" in p]
    names = {pod["app.kubernetes.io/name"] for pod in labels}
    assert set(expression["values"]) < names


def test_keda_scales_the_workers_by_the_unfinished_requests() -> None:
    # Given
    (scaled,) = of_kind("ScaledObject")
    (authentication,) = of_kind("TriggerAuthentication")
    (trigger,) = scaled["spec"]["triggers"]
    target = scaled["spec"]["scaleTargetRef"]
    # Then
    assert (target["kind"], target["name"]) == ("StatefulSet", "skynet-worker")
    assert trigger["metadata"]["listName"] == keys.open_requests_key()
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    (secret,) = authentication["spec"]["secretTargetRef"]
    assert secret == {"parameter": "password", "name": "skynet-redis", "key": "password"}
