"""The requirements of a spec, read without installing anything: a list, or a file of the user's code."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

from training.spec import Problem, Spec
from training.spec.environment import line_problem

KEY = "environment.requirements"
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def requirement_problems(spec: Spec, code: bytes | Path | None) -> list[Problem]:
    """Returns what is wrong with the requirements in a file; those in the spec were checked with it.

    code: the archive of the uploaded code, or a folder in its place; None if there is none.
    """
    given = spec.environment.requirements
    if not isinstance(given, str):
        return []
    lines = _lines(given, code)
    if lines is None:
        message = f"{given} is not a text file in the uploaded code; give --code with the folder that has it"
        return [Problem(key=KEY, message=message)]
    return [
        Problem(key=KEY, message=f"{given}, line {number}: {why}")
        for number, line in enumerate(lines, start=1)
        if (why := line_problem(line, in_file=True))
    ]


def required_names(spec: Spec, code: bytes | Path | None) -> set[str]:
    """Returns the names of the required packages, as names of modules are written: a-b as a_b."""
    given = spec.environment.requirements
    lines = (_lines(given, code) or []) if isinstance(given, str) else given
    return {re.sub(r"[-.]", "_", match[1]).lower() for line in lines if (match := _NAME.match(line))}


def _lines(name: str, code: bytes | Path | None) -> list[str] | None:
    try:
        if isinstance(code, Path):
            return (code / name).read_text(encoding="utf-8").splitlines()
        if code is None:
            return None
        with zipfile.ZipFile(io.BytesIO(code)) as files:
            return files.read(name).decode().splitlines()
    except (OSError, KeyError, UnicodeDecodeError):
        return None
