"""What the pods of the manifests may do, who reaches them, and whether they understand their commands."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

import pytest

from tests.deploy.manifests import (
    FOLDER,
    ON_EVERY_NODE,
    Document,
    Pod,
    kustomization,
    of_kind,
    pods,
    values,
    written,
)
from tests.deploy.programs import check_line

USER = 10001  # of the image
SCHEDULER = "syncbn-scheduler"  # deploy/scheduler.sh, in the image


def test_no_container_may_do_more_than_it_needs(all_pods: list[Pod]) -> None:
    for pod in all_pods:
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert {security["runAsUser"], security["runAsGroup"]} == {USER}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False
        assert not pod.spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}
        assert {next(iter(volume.keys() - {"name"})) for volume in pod.spec["volumes"]} <= {
            "emptyDir",
            "persistentVolumeClaim",
        }
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            # Its root is read-only, and this is the image's home.
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_whoever_claims_a_volume_may_use_it(all_pods: list[Pod]) -> None:
    claiming = [
        pod for pod in all_pods if any("persistentVolumeClaim" in each for each in pod.spec["volumes"])
    ]

    assert claiming
    assert {pod.spec["securityContext"].get("fsGroup") for pod in claiming} == {USER}


def test_the_namespace_refuses_other_pods(documents: list[Document]) -> None:
    (namespace,) = of_kind(documents, "Namespace")

    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_manifest_holds_a_secret(documents: list[Document]) -> None:
    assert not of_kind(documents, "Secret")
    assert not any("secretGenerator" in kustomization(folder) for folder in (FOLDER, FOLDER / "base"))
    named = [(each["name"], each) for key, env in values(documents) if key == "env" for each in env]
    named += [pair for document in of_kind(documents, "ConfigMap") for pair in document["data"].items()]
    for name, value in named:
        secret = re.search("TOKEN|KEY|PASSWORD|SECRET|DATABASE|BACKEND", name)
        assert not secret or value.keys() == {"name", "valueFrom"}, name
    texts = [value for _, value in values(documents) if isinstance(value, str)]
    assert not [text for text in texts if re.search(r"://[^/]*@|[0-9a-f]{32}", text)]


# Who reaches whom


def admits(policies: list[Document], source: Pod | None, target: Pod, port: int) -> bool:
    """Kubernetes' rule for ingress: with policies that select the target, one of them must allow it."""

    def selects(selector: dict[str, Any], pod: Pod) -> bool:
        labels: dict[str, str] = selector.get("matchLabels", {})
        return labels.items() <= pod.labels.items()

    def allows(rule: dict[str, Any]) -> bool:
        peers = rule.get("from")
        known = peers is None or (
            source is not None and any(selects(each["podSelector"], source) for each in peers)
        )
        return known and ("ports" not in rule or port in {each["port"] for each in rule["ports"]})

    selecting = [each["spec"] for each in policies if selects(each["spec"]["podSelector"], target)]
    return not selecting or any(allows(rule) for spec in selecting for rule in spec.get("ingress", []))


RAY = ["syncbn-headgroup", "syncbn-cpu", "syncbn-scheduler"]
SOURCES: list[str | None] = [None, "somebody else's", "syncbn-api", "syncbn-mlflow", *RAY]
REACHED: dict[tuple[str, int], list[str] | list[str | None]] = {
    ("syncbn-api", 8000): SOURCES,
    ("syncbn-mlflow", 5000): ["syncbn-api", *RAY],
    ("syncbn-headgroup", 6379): RAY,
    ("syncbn-cpu", 10002): RAY,
    ("syncbn-cpu", 52365): RAY,
    ("syncbn-scheduler", 10002): RAY,
    ("syncbn-scheduler", 52365): RAY,
}
"""Who reaches which port of which pod. None: a pod elsewhere."""


@pytest.mark.parametrize(("target", "port"), REACHED)
def test_who_reaches_whom(documents: list[Document], target: str, port: int) -> None:
    stranger = Pod(name="somebody else's", labels={}, spec={})  # in the same namespace
    by_name = {pod.name: pod for pod in [*pods(documents), stranger]}
    policies = of_kind(documents, "NetworkPolicy")

    reached = [
        source
        for source in SOURCES
        if admits(policies, by_name[source] if source else None, by_name[target], port)
    ]

    assert set(reached) == set(REACHED[target, port])


def test_every_group_of_workers_is_treated_alike(all_pods: list[Pod]) -> None:
    groups = [pod for pod in all_pods if pod.labels.get("ray.io/node-type") == "worker"]

    for pod in groups:
        (container,) = pod.containers
        reference = groups[0].containers[0]
        for key in ("image", "env", "envFrom", "securityContext", "volumeMounts"):
            assert container[key] == reference[key]
        # KubeRay has Ray offer the limits, Kubernetes reserves the requests.
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert pod.spec["securityContext"] == groups[0].spec["securityContext"]
        assert pod.spec["terminationGracePeriodSeconds"] == groups[0].spec["terminationGracePeriodSeconds"]


def test_every_policy_is_about_pods_that_exist(documents: list[Document], all_pods: list[Pod]) -> None:
    policies = of_kind(documents, "NetworkPolicy")
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in [policy["spec"] for policy in policies]
    for policy in policies:
        selectors = [value for key, value in values(policy["spec"]) if key == "podSelector"]
        for labels in (selector.get("matchLabels", {}).items() for selector in selectors):
            assert any(labels <= pod.labels.items() for pod in all_pods), policy["metadata"]["name"]
        own = policy["spec"]["podSelector"].get("matchLabels", {}).items()
        there = {port for pod in all_pods if own <= pod.labels.items() for port in pod.ports}
        assert {
            each["port"] for key, ports in values(policy["spec"]) if key == "ports" for each in ports
        } <= there


# What they run


def ray_groups(documents: list[Document]) -> list[tuple[str, Document]]:
    (cluster,) = of_kind(documents, "RayCluster")
    spec = cluster["spec"]
    return [("head", spec["headGroupSpec"]), *(("worker", group) for group in spec["workerGroupSpecs"])]


def test_ray_knows_the_options_that_it_is_started_with() -> None:
    from ray.scripts.scripts import start

    for node, group in ray_groups(written()):
        # The operator's own, then ours.
        options = {"block": "true", "dashboard-agent-listen-port": "52365", "metrics-export-port": "8080"}
        options |= group["rayStartParams"]
        line = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in options.items()]
        context = start.make_context(
            "start", [*line, "--head" if node == "head" else "--address=syncbn-head-svc:6379"]
        )

        assert context.params["num_cpus"] == (0 if node == "head" else None)


def test_rays_version_is_the_one_that_is_installed(documents: list[Document]) -> None:
    (cluster,) = of_kind(documents, "RayCluster")

    assert cluster["spec"]["rayVersion"] == importlib.metadata.version("ray")


def test_the_operators_probe_needs_no_token() -> None:
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    assert "/api/healthz" in PUBLIC_EXACT_PATHS


def test_every_node_of_ray_leaves_memory_to_the_kernel_and_ends_when_it_is_told(
    documents: list[Document], all_pods: list[Pod]
) -> None:
    (settings,) = (
        each for each in of_kind(documents, "ConfigMap") if each["metadata"]["name"] == "syncbn-ray-settings"
    )
    assert settings["data"].items() >= ON_EVERY_NODE.items()

    nodes = [pod for pod in all_pods if "ray.io/cluster" in pod.labels or pod.name == "syncbn-scheduler"]
    assert len(nodes) >= 3
    for pod in nodes:
        (container,) = pod.spec["containers"]
        read = [source.get("configMapRef", {}).get("name") for source in container["envFrom"]]
        assert "syncbn-ray-settings" in read, pod.name


COMMANDS = [
    each["args"]
    for pod in pods(written())
    for each in pod.containers
    if each.get("args", [SCHEDULER]) != [SCHEDULER]
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_programs_know_the_commands_that_they_are_started_with(command: list[str]) -> None:
    check_line(command)


@pytest.mark.parametrize(
    ("name", "command"),
    [("syncbn-api", ["syncbn", "serve", "--role", "api"]), ("syncbn-scheduler", [SCHEDULER])],
)
def test_the_tables_are_made_before_the_service_starts(
    all_pods: list[Pod], name: str, command: list[str]
) -> None:
    (pod,) = (pod for pod in all_pods if pod.name == name)
    migrate, serve = pod.containers

    assert migrate["args"] == ["syncbn", "migrate"]
    assert serve["args"][: len(command)] == command
    assert migrate["env"][0] in serve["env"]


def test_the_scheduler_is_no_pod_of_the_operators(all_pods: list[Pod]) -> None:
    (scheduler,) = (pod for pod in all_pods if pod.name == "syncbn-scheduler")

    assert not [label for label in scheduler.labels if label.startswith("ray.io/")]
    shared = {mount["mountPath"] for each in scheduler.containers for mount in each["volumeMounts"]}
    assert "/dev/shm" in shared  # the operator gives one to its own pods
