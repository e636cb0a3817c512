"""deploy/kubernetes as the tests see it: the documents, and the pods that come of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
GUIDE = ROOT / "docs" / "how-to" / "kubernetes.md"

# Ray's own settings for a node on which ranks run below a host agent; Compose's nodes have them, too.
ON_EVERY_NODE = {
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_worker_niceness": "0",
}

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which builds the manifests, is not installed"
)

Document = dict[str, Any]


def kustomization(folder: Path) -> Document:
    content: Document = one(folder / "kustomization.yaml")
    return content


def one(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def written() -> list[Document]:
    """The files as they are, the ConfigMaps that kustomize makes, and the group of gpu/ added."""
    base = kustomization(FOLDER / "base")
    documents = [document for name in base["resources"] for document in _all(FOLDER / "base" / name)]
    documents += [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        for name, data in _settings(base, kustomization(FOLDER)).items()
    ]
    (cluster,) = of_kind(documents, "RayCluster")
    for patch in kustomization(FOLDER / "gpu")["patches"]:
        for operation in one(FOLDER / "gpu" / patch["path"]):
            assert (operation["op"], operation["path"]) == ("add", "/spec/workerGroupSpecs/-")
            cluster["spec"]["workerGroupSpecs"].append(operation["value"])
    return documents


def built(scratch: Path, *, gpu: bool = False, added: Document | None = None) -> list[Document]:
    """What kubectl would send. `gpu`: with the line that the guide says; `added`: to kustomization.yaml."""
    copy = shutil.copytree(FOLDER, scratch / "kubernetes")
    path = copy / "kustomization.yaml"
    text = path.read_text(encoding="utf-8")
    if gpu:
        assert "# components: [gpu]" in text
        text = text.replace("# components: [gpu]", "components: [gpu]")
    path.write_text(yaml.safe_dump(_joined(yaml.safe_load(text), added or {})), encoding="utf-8")
    command = ["kubectl", "kustomize", str(copy)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return list(yaml.safe_load_all(output))


def _joined(content: Document, added: Document) -> Document:
    """The lists of one after those of the other; settings of one name together, as an editor would do it."""
    joined = {**content, **{key: content.get(key, []) + items for key, items in added.items()}}
    generators: dict[str, Document] = {}
    for generator in joined["configMapGenerator"]:
        known = generators.setdefault(generator["name"], {**generator, "literals": []})
        together = literals(known) | literals(generator)
        known["literals"] = [f"{name}={value}" for name, value in together.items()]
    return {**joined, "configMapGenerator": list(generators.values())}


def literals(generator: Document) -> dict[str, str]:
    return dict(literal.split("=", 1) for literal in generator["literals"])


def of_kind(documents: Iterable[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


@dataclass(frozen=True, kw_only=True)
class Pod:
    name: str
    labels: Mapping[str, str]
    spec: Document

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> set[int]:
        return {port["containerPort"] for each in self.containers for port in each.get("ports", [])}


def pods(documents: Iterable[Document]) -> list[Pod]:
    """One of each kind. Those of the RayCluster have the labels that the operator gives them."""
    found = [
        Pod(
            name=document["metadata"]["name"],
            labels=document["spec"]["template"]["metadata"]["labels"],
            spec=document["spec"]["template"]["spec"],
        )
        for document in of_kind(documents, "Deployment")
    ]
    for document in of_kind(documents, "RayCluster"):
        spec, cluster = document["spec"], document["metadata"]["name"]
        found.append(_ray(cluster, "head", "headgroup", spec["headGroupSpec"]))
        found += [_ray(cluster, "worker", each["groupName"], each) for each in spec["workerGroupSpecs"]]
    return found


def values(anything: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    if isinstance(anything, dict):
        for key, value in anything.items():
            yield key, value
            yield from values(value)
    elif isinstance(anything, list):
        for item in anything:
            yield from values(item)


def fragments_of_the_guide() -> list[Document]:
    """What the guide would have one add to kustomization.yaml."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [yaml.safe_load(block) for block in blocks]


def secrets_of_the_guide() -> dict[str, set[str]]:
    """The secrets that the guide's commands create, and their keys."""
    text = GUIDE.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"create secret generic (\S+)(.*)", text)
    return {name: set(re.findall(r"--from-literal=([A-Za-z_]+)=", rest)) for name, rest in commands}


def _ray(cluster: str, node: str, group: str, spec: Document) -> Pod:
    labels = {"ray.io/cluster": cluster, "ray.io/node-type": node, "ray.io/group": group}
    return Pod(name=f"{cluster}-{group}", labels=labels, spec=spec["template"]["spec"])


def _all(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def _settings(*kustomizations: Document) -> dict[str, dict[str, str]]:
    settings: dict[str, dict[str, str]] = {}
    for each in kustomizations:
        for generator in each["configMapGenerator"]:
            settings.setdefault(generator["name"], {}).update(literals(generator))
    return settings
