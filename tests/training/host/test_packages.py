"""Requirements that pip really installs, from wheels that are made on the fly, and ranks that import them."""

from __future__ import annotations

import fcntl
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.training.host.test_agent import until
from tests.training.host.test_environment import logs_of, spec_of
from tests.training.host.wheels import make_wheel, versions_of
from training.errors import BuildError, RunFailed
from training.host import packages
from training.host.agent import HostAgent
from training.host.environment import user_variables
from training.host.local import LocalHost, prepare_output
from training.host.packages import Cancelled, Installation, PackageFolder, requirement_lines
from training.protocol import Exit, Order, RankAssignment, finished, log_file

NETS = """
import subprocess, sys
from importlib.metadata import version
from torch import nn
import demo

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        print("imports demo", demo.version, version("demo"), flush=True)
        child = "import demo; print('child imports', demo.version)"
        subprocess.run([sys.executable, "-c", child], check=True)
"""

REQUIRED: dict[str, list[str] | str] = {
    "1.0": ["demo==1.0"],
    "2.0": "requirements.txt",
    "again": ["demo==1.0"],
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, and a cache of environments of its own."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("SYNCBN_ENVIRONMENTS", str(tmp_path / "environments"))
    return folder


@pytest.fixture
def folder(index: Path, tmp_path: Path) -> PackageFolder:
    versions_of(index, "demo", "1.0", "2.0")
    return PackageFolder(tmp_path / "environments", os.environ)


def order_of(requirements: list[str] | str, folder: Path, **keys: Any) -> Order:
    spec = spec_of(environment={"requirements": requirements}).model_dump(mode="json")
    return Order(attempt="job-1", spec=spec, ranks=(), world_size=2, folder=str(folder), **keys)


def test_each_run_imports_the_version_that_it_requires(index: Path, tmp_path: Path) -> None:
    versions_of(index, "demo", "1.0", "2.0")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "nets.py").write_text(NETS)
    (tmp_path / "code" / "requirements.txt").write_text("# what it needs\ndemo==2.0\n")
    outputs = {}
    with LocalHost(tmp_path / "code") as machine:
        for name, required in {
            "1.0": ["demo==1.0"],
            "2.0": "requirements.txt",
            "again": ["demo==1.0"],
        }.items():
            outputs[name] = prepare_output(tmp_path / name)
            spec = spec_of(environment={"requirements": required})
            machine.run(spec, workers=2, output=outputs[name], curves_only=True, show=False)

    for name, output in outputs.items():
        version, said = {"again": "1.0"}.get(name, name), logs_of(output)
        assert said.count(f"imports demo {version} {version}\n") == 2
        assert said.count(f"child imports {version}\n") == 2
        assert ("pip: Successfully installed demo-" in said) == (name != "again")
    assert logs_of(outputs["1.0"]).index("pip: ") < logs_of(outputs["1.0"]).index("imports demo")


def test_what_the_workers_need_is_not_replaced_and_pip_is_quoted(index: Path, tmp_path: Path) -> None:
    versions_of(index, "torch", "1.0")
    make_wheel(index, "old", "1.0", {"old.py": ""}, requires=("torch<2",))
    output = prepare_output(tmp_path / "output")
    spec = spec_of(environment={"requirements": ["old"]})

    with LocalHost(tmp_path) as machine, pytest.raises(RunFailed) as failed:
        machine.run(spec, workers=2, output=output, curves_only=True, show=False)

    record = failed.value.record
    assert record.type == "BuildError"
    assert "environment.requirements: pip could not install them on" in record.message
    assert "old 1.0 depends on torch<2" in record.message
    assert "Require the installed version" in record.message
    assert "old 1.0 depends on torch<2" in logs_of(output)


def test_two_that_need_the_same_at_once_install_it_once(folder: PackageFolder, tmp_path: Path) -> None:
    said: list[str] = []
    provided = []

    def provide() -> None:
        provided.append(folder.provide(order_of(["demo"], tmp_path), tmp_path, Installation(said.append)))

    threads = [threading.Thread(target=provide) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({each.packages for each in provided}) == 1
    assert (provided[0].packages / "demo").is_dir()
    assert sum("Successfully installed demo-2.0" in line for line in said) == 1
    for each in provided:
        each.release()


@pytest.fixture
def slow(index: Path) -> str:
    """A requirement whose installation does not end: building it sleeps."""
    package = index.parent / "slow"
    package.mkdir()
    backend = "import time\ndef build_wheel(*_):\n    print('asleep', flush=True)\n    time.sleep(3336)\n"
    (package / "backend.py").write_text(backend)
    project = '[project]\nname = "slow"\nversion = "1"\n'
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (package / "pyproject.toml").write_text(project + build)
    return str(package)


def test_a_cancelled_installation_ends_pip_and_leaves_nothing_half_done(
    folder: PackageFolder, tmp_path: Path, slow: str
) -> None:
    begun = threading.Event()
    installation = Installation(lambda line: begun.set() if "slow" in line else None)
    errors: list[Exception] = []
    before = set(psutil.Process().children(recursive=True))

    def provide() -> None:
        try:
            folder.provide(order_of(["demo", slow], tmp_path), tmp_path, installation)
        except Cancelled as error:
            errors.append(error)

    thread = threading.Thread(target=provide)
    thread.start()
    assert begun.wait(60)
    installation.cancel()
    thread.join(60)

    assert errors
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [each for each in left if each.status() != psutil.STATUS_ZOMBIE]
    assert not list((tmp_path / "environments").glob("*/installed"))


def test_an_agent_forks_nothing_before_the_launch_and_ends_what_it_prepares(
    index: Path, tmp_path: Path, slow: str
) -> None:
    versions_of(index, "demo", "1.0")
    (tmp_path / "nets.py").write_text(NETS)
    agent = HostAgent(tmp_path / "agent", user_variables(os.environ), on_cluster=False)
    ranks = tuple(RankAssignment(rank=rank, local_rank=rank, node_rank=0) for rank in (0, 1))
    keys: dict[str, Any] = {"ranks": ranks, "code_folder": str(tmp_path), "curves_only": True}
    given = replace(order_of(["demo"], tmp_path / "run"), **keys)

    agent.prepare(given)
    assert until(agent, "job-1", lambda status: status.prepared or bool(status.exits)).prepared
    assert "imports demo" not in log_file(given.folder, 1, 0).read_text()
    agent.launch(given)
    assert finished(until(agent, "job-1").exits, 2)

    endless = replace(order_of([slow], tmp_path / "run"), attempt="job-2", **keys)
    agent.prepare(endless)
    until(agent, "job-2", lambda status: "installing requirements on" in status.installing)
    agent.stop("job-2", seconds=100)
    assert {record.kind for record in until(agent, "job-2").exits} == {Exit.ENDED}
    agent.close()


def test_the_least_recently_used_are_removed_and_none_in_use(
    folder: PackageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "MAX_ENVIRONMENTS", 1)
    root = tmp_path / "environments"
    for age, name in enumerate(("in use", "old", "older", "interrupted")):
        (root / name).mkdir(parents=True)
        if name != "interrupted":
            (root / name / "installed").write_text("0")
            os.utime(root / name / "installed", (10_000 - age, 10_000 - age))
    with (root / "in use.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        used = folder.provide(order_of(["demo==1.0"], tmp_path), tmp_path, Installation(str))

    assert {path.name for path in root.iterdir() if path.is_dir()} == {
        "in use",
        used.packages.parents[2].name,
    }
    used.release()


def test_packages_that_hide_a_module_are_refused(folder: PackageFolder, index: Path, tmp_path: Path) -> None:
    make_wheel(index, "hides", "1", {"training/__init__.py": "", "json.py": ""})

    with pytest.raises(BuildError, match=r"they install json\.py, which would hide 'json'"):
        folder.provide(order_of(["hides"], tmp_path), tmp_path, Installation(str))


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "cannot be read in the code"), ("demo\n-e .\n", "line 2: an editable")],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str | None, why: str) -> None:
    if content is not None:
        (tmp_path / "requirements.txt").write_text(content)

    with pytest.raises(BuildError, match=why):
        requirement_lines(order_of("requirements.txt", tmp_path), tmp_path)
