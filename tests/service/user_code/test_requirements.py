from __future__ import annotations

from pathlib import Path

import pytest

from service.user_code.requirements import requirement_problems
from tests.service.examples import make_spec

READABLE = [
    "humanize",
    "humanize==4.9.0  # a comment",
    "Foo.Bar_baz[extra,other] >= 1, != 1.5 ; python_version < '4'",
    "humanize==4.9.0 --hash=sha256:00",
    "pkg @ https://example.org/pkg-1.0-py3-none-any.whl",
    "./wheels/own-1.0-py3-none-any.whl",
    "own-1.0.tar.gz",
    "git+https://example.org/own.git@main",
    "--extra-index-url https://example.org/simple",
    "humanize == \\",
]
UNREADABLE = ["humanize ==== 4", "humanize 4.9", "monai=1.5.2", "two words", "pkg[extra"]


@pytest.mark.parametrize("line", READABLE)
def test_what_pip_reads_is_accepted(line: str) -> None:
    assert requirement_problems(make_spec(environment={"requirements": [line]}), None) == []


@pytest.mark.parametrize("line", UNREADABLE)
def test_what_pip_cannot_read_is_refused_by_its_line(line: str, tmp_path: Path) -> None:
    (problem,) = requirement_problems(make_spec(environment={"requirements": ["humanize", line]}), None)
    assert problem.key == "environment.requirements.1"
    assert repr(line) in problem.message

    (tmp_path / "requirements.txt").write_text(f"# what we need\n{line}\n")
    spec = make_spec(environment={"requirements": "requirements.txt"})
    (problem,) = requirement_problems(spec, tmp_path)
    assert problem.message.startswith("requirements.txt, line 2: ")
