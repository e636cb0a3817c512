from __future__ import annotations

import pytest

from tests.deploy.manifests import Document, Pod, built, needs_kubectl, pods, written

VARIANTS = [
    "as written",
    pytest.param("built", marks=needs_kubectl),
    pytest.param("built with GPUs", marks=needs_kubectl),
]


@pytest.fixture(scope="package", params=VARIANTS)
def documents(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    if request.param == "as written":
        return written()
    return built(tmp_path_factory.mktemp("kustomize"), gpu=request.param == "built with GPUs")


@pytest.fixture
def all_pods(documents: list[Document]) -> list[Pod]:
    return pods(documents)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(
        "not run here: the image's build and the smoke test on containers (make cluster-up cluster-smoke), "
        "which need a container engine"
    )
