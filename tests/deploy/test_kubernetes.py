"""Whether the manifests are what Kubernetes and KubeRay accept, and whether their parts know one another."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
from cryptography.fernet import Fernet

from service.settings import Settings, names_of
from tests.deploy.manifests import (
    FOLDER,
    GUIDE,
    ROOT,
    Document,
    Pod,
    built,
    fragments_of_the_guide,
    kustomization,
    literals,
    needs_kubectl,
    of_kind,
    one,
    pods,
    secrets_of_the_guide,
    values,
    written,
)
from tests.service.examples import settings_from

KUBERNETES = ["1.30", "1.37"]
RAY_CLUSTER = json.loads((Path(__file__).parent / "raycluster-v1.6.2.json").read_text(encoding="utf-8"))


def check(document: Document, version: str) -> None:
    """Raises for what Kubernetes, or KubeRay, would refuse; keys that it does not know are among it."""
    if document["kind"] != "RayCluster":
        kubernetes_validate.validate(document, version, strict=True)
        return
    jsonschema.Draft202012Validator(RAY_CLUSTER).validate(document)
    common = {"apiVersion": "v1", "kind": "Pod"}
    kubernetes_validate.validate({**common, "metadata": document["metadata"]}, version, strict=True)
    spec = document["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        kubernetes_validate.validate({**common, **group["template"]}, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_all_documents_satisfy_the_schemas(documents: list[Document], version: str) -> None:
    kinds = [document["kind"] for document in documents]
    assert {"RayCluster", "Deployment", "Service", "PersistentVolumeClaim", "NetworkPolicy"} <= set(kinds)

    for document in documents:
        check(document, version)


def head(cluster: Document) -> Document:
    container: Document = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return container


SPOILT: dict[str, Callable[[Document], object]] = {
    "unknown key of KubeRay's": lambda cluster: cluster["spec"]["authOptions"].update(secret="x"),
    "unknown key of a pod": lambda cluster: head(cluster)["securityContext"].update(
        readonlyRootFilesystem=True
    ),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_spoilt_ray_cluster_is_refused(spoil: Callable[[Document], object]) -> None:
    (cluster,) = of_kind(written(), "RayCluster")
    check(cluster, KUBERNETES[-1])
    spoilt = copy.deepcopy(cluster)

    spoil(spoilt)

    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(spoilt, KUBERNETES[-1])


def test_everything_is_in_one_namespace_and_bears_the_services_name(documents: list[Document]) -> None:
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)
    assert all(name.startswith("syncbn") for _, name in names)

    (namespace,) = of_kind(documents, "Namespace")
    assert kustomization(FOLDER)["namespace"] == namespace["metadata"]["name"]
    places = {each["metadata"].get("namespace") for each in documents if each is not namespace}
    assert places in ({None}, {namespace["metadata"]["name"]})


def test_every_image_is_the_one_that_the_kustomization_names(documents: list[Document]) -> None:
    (image,) = kustomization(FOLDER)["images"]
    before, after = {image["name"]}, {f"{image['newName']}:{image['newTag']}"}

    found = {container["image"] for pod in pods(documents) for container in pod.containers}

    built = "namespace" in of_kind(documents, "Service")[0]["metadata"]
    assert found == (after if built else before)


def test_claims_and_settings_that_pods_refer_to_are_there_and_used(documents: list[Document]) -> None:
    referred = {
        "PersistentVolumeClaim": {
            claim["claimName"] for key, claim in values(documents) if key == "persistentVolumeClaim"
        },
        "ConfigMap": {config["name"] for key, config in values(documents) if key == "configMapRef"},
    }
    for kind, names in referred.items():
        assert names == {document["metadata"]["name"] for document in of_kind(documents, kind)}


def test_every_secret_is_one_that_the_guide_creates(documents: list[Document]) -> None:
    told = secrets_of_the_guide()
    keys = [(ref["name"], ref["key"]) for key, ref in values(documents) if key == "secretKeyRef"]
    auth = [options["secretName"] for key, options in values(documents) if key == "authOptions"]
    optional = [ref["name"] for key, ref in values(documents) if key == "secretRef" and ref["optional"]]

    # The operator reads this key of the secret that authOptions names.
    read = {*keys, *((name, "auth_token") for name in auth)}

    assert read == {(name, key) for name in told if name not in optional for key in told[name]}
    assert set(told) == {name for name, _ in read} | set(optional)


def named(documents: list[Document], name: str) -> Pod:
    (found,) = (pod for pod in pods(documents) if pod.name == name)
    return found


def variables(pod: Pod) -> dict[str, Document]:
    return {each["name"]: each for container in pod.containers for each in container.get("env", [])}


def test_the_scheduler_and_ray_have_the_same_token_and_the_api_none(documents: list[Document]) -> None:
    (cluster,) = of_kind(documents, "RayCluster")
    scheduler = variables(named(documents, "syncbn-scheduler"))

    token = scheduler["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": token["name"]}
    assert scheduler["RAY_AUTH_MODE"]["value"] == "token"
    assert token["key"] == "auth_token"
    api = {*variables(named(documents, "syncbn-api")), *settings_of(documents, "syncbn-api")}
    assert not [name for name in api if "RAY" in name]


SERVICE = ("syncbn-api", "syncbn-scheduler")


@pytest.mark.parametrize("name", SERVICE)
def test_the_settings_are_ones_that_the_service_reads(documents: list[Document], name: str) -> None:
    given = dict.fromkeys(variables(named(documents, name)), "secret") | settings_of(documents, name)
    given["SYNCBN_DATABASE_URL"] = database = "postgresql://syncbn:secret@there/syncbn"
    given["SYNCBN_SECRETS_KEY"] = Fernet.generate_key().decode()
    ours = {name: value for name, value in given.items() if name.startswith("SYNCBN_")}

    settings = settings_from(ours)

    known = {name for field in Settings.model_fields for name in names_of(field)}
    assert set(ours) <= known
    assert (settings.storage, settings.database_url) == ("/data/checkpoints", database)


def test_what_the_api_and_the_scheduler_must_agree_on_is_equal(documents: list[Document]) -> None:
    api, scheduler = (settings_of(documents, name) for name in SERVICE)

    for name in ("SYNCBN_STORAGE", "SYNCBN_MLFLOW_URL"):
        assert api[name] == scheduler[name]


def test_runs_are_in_one_folder_for_all_who_write_or_read_them(documents: list[Document]) -> None:
    storage = settings_of(documents, "syncbn-scheduler")["SYNCBN_STORAGE"]
    modes = {
        pod.name: "ro" if mount.get("readOnly") else "rw"
        for pod in pods(documents)
        for each in pod.containers
        for mount in each["volumeMounts"]
        if mount["mountPath"] == storage
    }

    workers = {pod.name for pod in pods(documents) if pod.labels.get("ray.io/node-type") == "worker"}
    assert modes == {"syncbn-api": "ro", "syncbn-scheduler": "rw", **dict.fromkeys(workers, "rw")}


def test_addresses_in_the_settings_are_services_with_that_port(documents: list[Document]) -> None:
    services = {
        document["metadata"]["name"]: {port["port"] for port in document["spec"]["ports"]}
        for document in of_kind(documents, "Service")
    }
    for pod in pods(documents):  # the operator's own service, of the head's ports
        if pod.labels.get("ray.io/node-type") == "head":
            services[f"{pod.labels['ray.io/cluster']}-head-svc"] = pod.ports
    settings = settings_of(documents, "syncbn-scheduler")

    for address in (f"//{settings['SYNCBN_RAY_ADDRESS']}", settings["SYNCBN_MLFLOW_URL"]):
        url = urlsplit(address)
        assert url.port in services[url.hostname or ""]


def test_mlflow_answers_to_the_names_by_which_it_is_called(documents: list[Document]) -> None:
    calls = settings_of(documents, "syncbn-api")
    allowed = settings_of(documents, "syncbn-mlflow")["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")

    for name in ("SYNCBN_MLFLOW_URL", "SYNCBN_MLFLOW_PUBLIC_URL"):
        assert urlsplit(calls[name]).netloc in allowed


def settings_of(documents: list[Document], name: str) -> dict[str, str]:
    (found,) = (each for each in of_kind(documents, "ConfigMap") if each["metadata"]["name"].startswith(name))
    data: dict[str, str] = found["data"]
    return data


def test_services_lead_to_ports_of_pods(documents: list[Document], all_pods: list[Pod]) -> None:
    for service in of_kind(documents, "Service"):
        wanted = service["spec"]["selector"].items()
        (pod,) = (pod for pod in all_pods if wanted <= pod.labels.items())
        named = {
            port["name"]: port["containerPort"] for each in pod.containers for port in each.get("ports", [])
        }
        for port in service["spec"]["ports"]:
            assert named[port["targetPort"]] == port["port"]


def test_what_is_mounted_is_a_volume_and_what_is_a_volume_is_mounted(all_pods: list[Pod]) -> None:
    for pod in all_pods:
        mounted = {mount["name"] for each in pod.containers for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod.spec["volumes"]}


def test_files_of_the_folder_are_all_used_and_the_guides_paths_are_there() -> None:
    used = {FOLDER / "kustomization.yaml"}
    for folder in (FOLDER / "base", FOLDER / "gpu"):
        content = kustomization(folder)
        names = [*content.get("resources", []), *(patch["path"] for patch in content.get("patches", []))]
        used |= {folder / name for name in [*names, "kustomization.yaml"]}
    assert set(FOLDER.rglob("*.yaml")) == used
    assert all(one(path) for path in used if path.name == "kustomization.yaml")


def test_the_guide_names_files_that_are_there() -> None:
    paths = re.findall(r"deploy/[\w./-]*\w", GUIDE.read_text(encoding="utf-8"))

    assert "deploy/kubernetes/kustomization.yaml" in paths
    for path in paths:
        assert (ROOT / path).exists(), path


@needs_kubectl
@pytest.mark.parametrize("number", range(len(fragments_of_the_guide())))
def test_what_the_guide_adds_to_the_kustomization_is_accepted(number: int, tmp_path: Path) -> None:
    fragment = fragments_of_the_guide()[number]

    documents = built(tmp_path, gpu=False, added=fragment)

    for document in documents:
        check(document, KUBERNETES[-1])
    assert documents != built(tmp_path / "without", gpu=False)
    for generator in fragment.get("configMapGenerator", []):
        settings = settings_of(documents, generator["name"])
        assert literals(generator).items() <= settings.items()
        settings_from(settings)
