from __future__ import annotations

from pathlib import Path

import pytest

from service.user_code.class_paths import class_path_problems
from service.user_code.imports import missing_imports
from service.user_code.requirements import requirement_problems
from tests.service.examples import make_spec
from tests.service.user_code.test_check import make_archive
from training.spec import Environment, parse_spec

FILES = {
    "nets/__init__.py": "from nets.blocks import Block\nimport absent_in_package",
    "nets/blocks.py": "import os, torch\nimport absent_below.part as part\nfrom . import more",
    "nets/more.py": "from absent_from import name\nimport sync_bn, training.models",
    "nets/unet.py": """
import json, winreg, helper
from typing import TYPE_CHECKING
import typing
if TYPE_CHECKING:
    import absent_for_types
if typing.TYPE_CHECKING:
    import absent_for_types_too
else:
    import absent_at_run_time
if __name__ == "__main__":
    import absent_in_main
try:
    import absent_with_fallback
except ImportError:
    import absent_fallback
try:
    import absent_tuple
except (ValueError, ModuleNotFoundError):
    absent_tuple = None
try:
    import absent_in_try
finally:
    import absent_finally
import contextlib
with contextlib.suppress(ImportError):
    import absent_suppressed
if json:
    import absent_under_condition
class UNet:
    import absent_in_class
    def forward(self):
        import absent_in_function
        import lazy
""",
    "helper.py": "import nets.unet\n",  # a cycle
    "lazy.py": "import absent_lazily",
    "not_reached.py": "import absent_elsewhere",
    "broken.py": "import (",
}
FAIL = {
    "absent_in_package": "nets",
    "absent_below": "nets.blocks",
    "absent_from": "nets.more",
    "absent_at_run_time": "nets.unet",
    "absent_in_try": "nets.unet",
    "absent_finally": "nets.unet",
    "absent_in_class": "nets.unet",
}
MAY_FAIL = {
    "absent_under_condition": "nets.unet",
    "absent_in_function": "nets.unet",
    "absent_lazily": "lazy",
}
FILE_OF = {"nets": "nets/__init__.py", "lazy": "lazy.py"}


def sentences(expected: dict[str, str]) -> set[str]:
    """The sentence on each missing module, by the module of the user's that imports it."""
    found = set()
    for name, module in expected.items():
        text = FILES[FILE_OF.get(module) or f"{module.replace('.', '/')}.py"]
        line = next(number for number, each in enumerate(text.splitlines(), 1) if name in each)
        found.add(
            f"module {module} (line {line}) imports {name}, which is neither in the code nor installed where "
            "jobs run"
        )
    return found


@pytest.mark.parametrize("packed", [True, False])
def test_only_imports_that_certainly_fail_are_problems_and_those_that_may_are_notes(
    tmp_path: Path, packed: bool
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    code = make_archive({name: text.encode() for name, text in FILES.items()}) if packed else tmp_path
    nested = {"class_path": "broken.Thing"}
    spec = make_spec(model={"class_path": "nets.unet.UNet", "init_args": {"part": nested}})

    problems, notes = missing_imports(spec, code)

    assert {problem.key for problem in problems} == {"environment.requirements"}
    assert {problem.message.partition(";")[0] for problem in problems} == sentences(FAIL)
    assert {note.partition(";")[0] for note in notes} == sentences(MAY_FAIL)

    requirements = [f"{name.replace('_', '-')}>=1" for name in list(FAIL)[1:]]
    with_some = spec.model_copy(update={"environment": Environment(requirements=requirements)})
    problems, notes = missing_imports(with_some, code)
    assert problems == []
    assert {note.partition(";")[0] for note in notes} == sentences({"absent_in_package": "nets"} | MAY_FAIL)


def test_requirements_may_bring_a_class_and_change_none_of_the_users_or_the_services() -> None:
    archive = make_archive({"mine.py": b"class Net:\n    def __init__(self, width): ...\n"})
    paths = {"absent.Net": False, "monai.Nothing": False, "mine.Other": True, "training.models.Nothing": True}

    for path, is_problem in paths.items():
        spec = make_spec(model={"class_path": path}, environment={"requirements": ["absent"]})
        assert bool(class_path_problems(spec, archive)) is is_problem, path
    without = make_spec(model={"class_path": "absent.Net"})
    (problem,) = class_path_problems(without, archive)
    assert "environment.requirements" in problem.message


def test_a_file_of_requirements_is_one_of_the_code() -> None:
    archive = make_archive({"r.txt": b"# comment\n\nmonai\n-r more.txt\nhttps://x:y@z/a.whl\n"})
    spec = make_spec(environment={"requirements": "r.txt"})

    (problem,) = requirement_problems(spec, archive)
    assert "r.txt, line 5: has a password" in problem.message
    for code in (None, make_archive({"other.txt": b""})):
        (problem,) = requirement_problems(spec, code)
        assert "is not a text file in the uploaded code" in problem.message


def test_the_imports_of_a_script_are_followed_too() -> None:
    archive = make_archive(
        {"train.py": b"import lazily", "lazily.py": b"import absent", "tools/run.py": b"import absent"}
    )

    problems, _ = missing_imports(parse_spec({"script": {"path": "train.py"}}), archive)
    elsewhere, _ = missing_imports(parse_spec({"script": {"path": "tools/run.py"}}), archive)

    assert [problem.message.partition(",")[0] for problem in problems] == [
        "module lazily (line 1) imports absent"
    ]
    assert elsewhere == []  # it may have modules beside itself
