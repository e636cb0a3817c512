from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.user_code.links import link_problems
from training.spec import Spec, parse_spec

MAIN = """
from lightning.pytorch.cli import LightningCLI

class CLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.batch_size", "model.init_args.batch_size")
        parser.link_arguments("data.classes", "model.classes", apply_on="instantiate")
"""


def make_spec(**init_args: Any) -> Spec:
    return parse_spec(
        {
            "model": {"class_path": "lab.Net", "init_args": init_args},
            "data": {"class_path": "lab.Data", "init_args": {"batch_size": 4, "classes": 9}},
        }
    )


def keys_of(spec: Spec, folder: Path, source: str = MAIN) -> dict[str, str]:
    """The messages of the problems with `source` as the only program, by key."""
    (folder / "main.py").write_text(source)
    return {each.key: each.message for each in link_problems(spec, folder)}


def test_a_linked_argument_that_is_missing_is_named_with_its_value(tmp_path: Path) -> None:
    found = keys_of(make_spec(), tmp_path)

    assert found["model.init_args.batch_size"].endswith("write its value here: 4")
    assert found["model.init_args.batch_size"].startswith("main.py links it to data.batch_size")
    assert found["model.init_args.classes"].endswith("write its value here")  # known only when data is made


def test_a_linked_argument_that_is_given_is_no_problem(tmp_path: Path) -> None:
    assert not keys_of(make_spec(batch_size=4, classes=9), tmp_path)


def test_links_of_several_sources_and_to_nested_classes_are_found(tmp_path: Path) -> None:
    source = """
parser.link_arguments(("data.a", "data.b"), "model.c", compute_fn=add)
parser.link_arguments(target="model.encoder.init_args.width", source="data.classes")
parser.link_arguments("data.classes", "trainer.limit_val_batches")
"""
    keys = ["model.init_args.c", "model.init_args.encoder.init_args.width", "trainer.limit_val_batches"]

    found = keys_of(make_spec(), tmp_path, source)

    assert list(found) == keys
    assert "links it to other arguments" in found[keys[0]]
    assert found[keys[1]].endswith("write its value here: 9")
    encoder = {"class_path": "lab.Encoder", "init_args": {"width": 9}}
    assert list(keys_of(make_spec(c=1, encoder=encoder), tmp_path, source)) == [keys[2]]
    for odd in (3, "", "no path"):
        assert list(keys_of(make_spec(encoder={"class_path": odd}), tmp_path, source)) == keys


def test_files_that_do_not_parse_have_no_links(tmp_path: Path) -> None:
    assert not keys_of(make_spec(), tmp_path, "link_arguments(")


@pytest.mark.parametrize(
    ("net", "keys"),
    [
        ("class Net(L.LightningModule):\n    def __init__(self, width=1): ...", []),
        ("class Net(L.LightningModule):\n    def __init__(self, batch_size=1): ...", ["batch_size"]),
        ("class Net(Base):\n    pass", ["classes"]),
        ("class Net(Base):\n    def __init__(self, batch_size, **kwargs): ...", ["batch_size", "classes"]),
        ("class Net(Base):\n    def __init__(self): ...", []),
        ("class Net(Unknown):\n    pass", ["batch_size", "classes"]),
        ("def Net(batch_size): ...", ["batch_size"]),
        ("class Net(Net, Base, Net): ...", ["classes"]),
    ],
)
@pytest.mark.parametrize("class_path", ["lab.Net", "Net"])
def test_links_to_arguments_of_other_classes_are_those_of_other_programs(
    net: str, keys: list[str], class_path: str, tmp_path: Path
) -> None:
    (tmp_path / "base.py").write_text(
        "class Base(L.LightningModule):\n    def __init__(self, classes=2, **kwargs): ..."
    )
    (tmp_path / "lab.py").write_text(f"from base import Base\n{net}")
    spec = parse_spec({"model": {"class_path": class_path}, "data": {"class_path": "lab.Data"}})

    assert list(keys_of(spec, tmp_path)) == [f"model.init_args.{key}" for key in keys]
