"""Which Python `make setup` takes, among those on PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "python.sh"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKS = f'exec "{sys.executable}" "$@"'
DOES_NOT_START = 'echo "pyenv: python: command not found" >&2; exit 127'
HAS_NO_VENV = f'exec "{sys.executable}" -c "${{2//ensurepip/no_such_module}}"'


def on_path(folder: Path, pythons: dict[str, str]) -> str:
    """A PATH that has these alone: DIRECTORY/NAME, and what that does."""
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "make", "sed", "sort"):
        (tools / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is not installed"))
    for name, does in pythons.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\n{does}\n")
        path.chmod(0o755)
    return ":".join([*sorted({str((folder / name).parent) for name in pythons}), str(tools)])


def run(command: list[str], path: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path}
    environment.pop("MAKEFLAGS", None)  # of a `make test` that runs this
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"a/python3.11": WORKS, "a/python3.12": WORKS}, "a/python3.12"),
        ({"b/python3.12": WORKS, "a/python3.11": WORKS}, "b/python3.12"),
        ({"a/python3.12": WORKS, "b/python3.12": WORKS}, "a/python3.12"),
        ({"a/python3.9": WORKS, "a/python3.11": WORKS, "a/python3.99": WORKS}, "a/python3.11"),
        ({"a/python3.13": DOES_NOT_START, "b/python3.12": WORKS}, "b/python3.12"),
        ({"a/python3.12": DOES_NOT_START, "b c/python3.12": WORKS}, "b c/python3.12"),
        ({"a/python3.13": HAS_NO_VENV, "a/python3.11": WORKS}, "a/python3.11"),
    ],
)
def test_the_newest_python_that_will_do_is_taken(tmp_path: Path, pythons: dict[str, str], taken: str) -> None:
    done = run([str(SCRIPT)], on_path(tmp_path, pythons))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / taken}\n"


def test_without_one_it_is_said_which_are_wanted_and_what_is_missing(tmp_path: Path) -> None:
    path = on_path(tmp_path, {"a/python3.9": WORKS, "a/python3.12": HAS_NO_VENV})

    for command in ([str(SCRIPT)], ["make", "-n", f"VENV={tmp_path / 'new'}", "setup"]):
        done = run(command, path)
        assert done.returncode
        assert "wheels for Python 3.14 3.13 3.12 3.11 " in done.stderr
        assert "make setup PYTHON=/path/to/python" in done.stderr
        assert f"python3.X-venv): {tmp_path}/a/python3.12\n" in done.stderr
        assert "-m venv" not in done.stdout


def test_pip_refuses_every_python_that_is_not_named() -> None:
    named = sorted(int(found) for found in re.findall(r"Python :: 3\.(\d+)", str(PROJECT["classifiers"])))

    assert PROJECT["requires-python"] == f">=3.{named[0]},<3.{named[-1] + 1}"
    assert named == list(range(named[0], named[-1] + 1))


def test_torchs_index_is_asked_for_torch_alone_and_its_size_is_said_first() -> None:
    index = "https://example.org/cpu"
    command = ["make", "-n", "-W", "constraints.txt", "setup", "PYTHON=python", f"TORCH_INDEX={index}"]

    lines = run(command, os.environ["PATH"]).stdout.splitlines()

    said = next(number for number, line in enumerate(lines) if "about to download" in line)
    (asked,) = (number for number, line in enumerate(lines) if "--index-url" in line)
    rest = next(number for number, line in enumerate(lines) if ".[dev]" in line)
    assert said < asked < rest
    assert f"--index-url '{index}' \"$(grep '^torch==' constraints.txt)\"" in lines[asked]
    assert not any(
        "--index-url" in line for line in run([*command[:-1]], os.environ["PATH"]).stdout.splitlines()
    )


def test_every_pinned_package_takes_every_python_that_is_named() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines) if pin}
    versions = [f"{version}.0" for version in re.findall(r"Python :: (3\.\d+)", str(PROJECT["classifiers"]))]
    wanted = {
        found.name: found.metadata["Requires-Python"]
        for found in distributions()
        if pins.get(canonicalize_name(found.name)) == found.version and "Requires-Python" in found.metadata
    }

    assert len(wanted) > 100
    refused = {
        (name, version)
        for name, specifier in wanted.items()
        for version in versions
        if version not in SpecifierSet(specifier)
    }
    assert refused == set()
