"""The requirements of a spec, read without installing anything: a list, or a file of the user's code."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from training.spec import Problem, Spec
from training.spec.environment import line_problem

KEY = "environment.requirements"
_OPTIONS = re.compile(r"\s(?:#|--?[A-Za-z])")
"""What may follow the name and the version: a comment, options such as --hash."""
_NOT_BY_NAME = (".whl", ".gz", ".zip", "\\")  # a file; a line that goes on in the next one
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def requirement_problems(spec: Spec, code: bytes | Path | None) -> list[Problem]:
    """Returns what is wrong with the requirements. Of those in the spec, only their syntax is checked here.

    code: the archive of the uploaded code, or a folder in its place; None if there is none.
    """
    given = spec.environment.requirements
    if not isinstance(given, str):
        return [
            Problem(key=f"{KEY}.{position}", message=why)
            for position, line in enumerate(given)
            if (why := _syntax_problem(line))
        ]
    lines = _lines(given, code)
    if lines is None:
        message = f"{given} is not a text file in the uploaded code; give --code with the folder that has it"
        return [Problem(key=KEY, message=message)]
    return [
        Problem(key=KEY, message=f"{given}, line {number}: {why}")
        for number, line in enumerate(lines, start=1)
        if (why := line_problem(line, in_file=True) or _syntax_problem(line))
    ]


def _syntax_problem(line: str) -> str | None:
    """Returns why pip would not read a line that names a package; None for options, paths and URLs."""
    text = _OPTIONS.split(line, maxsplit=1)[0].strip()
    if not _NAME.match(text) or text.endswith(_NOT_BY_NAME) or "/" in text.partition("@")[0]:
        return None
    try:
        Requirement(text)
    except InvalidRequirement as error:
        why = str(error).partition("\n")[0]
        return f"{text!r} is not a requirement that pip can read: {why}; write, for example, monai==1.5.2"
    return None


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
