from __future__ import annotations

from pathlib import Path
from typing import Any

from service.user_code.class_paths import takes_argument
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


def test_a_linked_argument_that_is_missing_is_named_with_its_value() -> None:
    found = {each.key: each.message for each in link_problems(make_spec(), [("main.py", MAIN)])}

    assert found["model.init_args.batch_size"].endswith("write its value here: 4")
    assert found["model.init_args.batch_size"].startswith("main.py links it to data.batch_size")
    assert found["model.init_args.classes"].endswith("write its value here")  # known only when data is made


def test_a_linked_argument_that_is_given_is_no_problem() -> None:
    assert not link_problems(make_spec(batch_size=4, classes=9), [("main.py", MAIN)])


def test_links_of_several_sources_and_to_nested_classes_are_found() -> None:
    source = """
parser.link_arguments(("data.a", "data.b"), "model.c", compute_fn=add)
parser.link_arguments(target="model.encoder.init_args.width", source="data.classes")
parser.link_arguments("data.classes", "trainer.limit_val_batches")
"""
    keys = ["model.init_args.c", "model.init_args.encoder.init_args.width", "trainer.limit_val_batches"]

    found = {each.key: each.message for each in link_problems(make_spec(), [("main.py", source)])}

    assert list(found) == keys
    assert "links it to other arguments" in found[keys[0]]
    assert found[keys[1]].endswith("write its value here: 9")
    encoder = {"class_path": "lab.Encoder", "init_args": {"width": 9}}
    assert [each.key for each in link_problems(make_spec(c=1, encoder=encoder), [("main.py", source)])] == [
        keys[2]
    ]


def test_files_that_do_not_parse_have_no_links() -> None:
    assert not link_problems(make_spec(), [("main.py", "link_arguments(")])


def test_a_link_to_an_argument_that_the_class_does_not_take_is_another_programs() -> None:
    files = [("main.py", MAIN)]

    assert link_problems(make_spec(), files)
    assert not link_problems(make_spec(), files, lambda _path, _name: False)


def test_whether_a_class_takes_an_argument_is_read_from_its_source(tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text(
        "class Net:\n    def __init__(self, a): ...\nclass Any:\n    def __init__(self, **kwargs): ..."
    )
    takes = takes_argument(tmp_path)

    assert [
        takes("lab.Net", "a"),
        takes("lab.Net", "b"),
        takes("lab.Any", "b"),
        takes("lab.Unknown", "b"),
    ] == [
        True,
        False,
        True,
        True,
    ]
