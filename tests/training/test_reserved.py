from __future__ import annotations

import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path

import pytest

from training.reserved import hiding, hiding_among, hiding_in_folder

LAYOUTS = {
    "a module": "{}.py",
    "a compiled module": "{}" + EXTENSION_SUFFIXES[0],
    "a module's bytecode": "{}.pyc",
    "a package": "{}/__init__.py",
    "a compiled package": "{}/__init__" + EXTENSION_SUFFIXES[0],
    "a folder of modules": "{}/part.py",
    "data": "{}.csv",
    "a module with a dot in its name": "{}.part.py",
    "a package further down": "mine/{}/__init__.py",
}


def make(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ["colorsys", "xml", "six", "numpy", "google"])
def test_what_python_would_import_in_place_of_another_is_named(
    tmp_path: Path, layout: str, name: str
) -> None:
    file = layout.format(name)
    make(tmp_path, file)

    found = PathFinder.find_spec(name, [str(tmp_path), *sys.path])

    assert found, "the module itself is installed"
    hidden = found.origin is not None and found.origin.startswith(str(tmp_path))
    assert list(hiding_in_folder(tmp_path)) == ([file.partition("/")[0]] if hidden else [])
    assert hiding_among([file]) == hiding_in_folder(tmp_path)


@pytest.mark.parametrize("file", ["training.py", "sync_bn/net.py", "service/__init__.py", "training/"])
def test_a_package_of_this_project_cannot_be_named_again_not_even_by_a_folder(file: str) -> None:
    ((entry, message),) = hiding_among([file]).items()

    assert entry == file.partition("/")[0]
    assert "this project's own" in message
    assert "rename it" in message


def test_each_is_told_what_it_would_hide(tmp_path: Path) -> None:
    make(tmp_path, "random.py", "yaml/__init__.py", "net.py", "utils/__init__.py", ".git/config")

    found = hiding_in_folder(tmp_path)

    assert found == {
        "random.py": "would hide 'random' of Python's standard library: rename it",
        "yaml": "would hide the installed package 'yaml' (of PyYAML), which training needs: rename it",
    }


def test_what_torch_lightning_and_this_project_import_is_known() -> None:
    needed = {"torch", "lightning", "numpy", "torchmetrics", "typing_extensions", "yaml", "mlflow", "ray"}

    assert hiding(needed).keys() == needed


def test_names_that_only_stand_beside_packages_are_free() -> None:
    names = [
        "tests",
        "docs",
        "examples",
        "example",
        "benchmarks",
        "setup",
        "LICENSE",
        "data",
        "models",
        "net",
    ]

    assert hiding(names) == {}


def test_what_only_developing_this_project_needs_is_free() -> None:
    assert hiding(["pytest", "hypothesis", "moto", "psycopg"]) == {}


def test_nothing_is_imported_to_find_out() -> None:
    code = "import sys; from training.reserved import hiding; hiding(['torch', 'net']); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert not {"torch", "numpy", "lightning", "ray", "mlflow", "pydantic"} & set(output.split())
