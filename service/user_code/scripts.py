"""Checks that the script of a spec is in the user's code and is valid Python, without running it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath

from service.user_code.modules import parse
from training.reserved import hiding_among, hiding_in_folder
from training.spec import Problem, Spec

_KEY = "script.path"
_SHOWN = 10


def problems_in_archive(spec: Spec, archive: bytes | None) -> list[Problem]:
    """Returns what is wrong with the spec's script in the uploaded code; None: no code was uploaded."""
    if spec.script is None:
        return []
    if archive is None:
        message = f"no code is uploaded, so there is no {spec.script.path}; give its folder with --code"
        return [Problem(key=_KEY, message=message)]
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        names = files.namelist()
        if spec.script.path not in names:
            return [_missing(spec.script.path, names, "the uploaded code")]
        beside = PurePosixPath(spec.script.path).parent
        paths = [
            name.removeprefix(f"{beside}/") for name in names if PurePosixPath(name).is_relative_to(beside)
        ]
        hiding = hiding_among(paths) if beside.name else {}  # those at the top are checked with the archive
        return [*_syntax(spec.script.path, files.read(spec.script.path)), *_hiding(beside, hiding)]


def problems_in_folder(spec: Spec, folder: Path) -> list[Problem]:
    """Returns what is wrong with the spec's script in a folder of this machine."""
    if spec.script is None:
        return []
    path = folder / spec.script.path
    if not path.is_file():
        return [_missing(spec.script.path, _files_near(folder, spec.script.path), str(folder))]
    beside = PurePosixPath(spec.script.path).parent
    return [
        *_syntax(spec.script.path, path.read_bytes()),
        *_hiding(beside, hiding_in_folder(path.parent)),
    ]


def _hiding(folder: PurePosixPath, problems: Mapping[str, str]) -> list[Problem]:
    """The script's folder is first on the import path."""
    return [Problem(key=_KEY, message=f"{folder / name} {why}") for name, why in problems.items()]


def _files_near(folder: Path, path: str) -> Iterator[str]:
    """Yields the Python files at the top of the folder and beside the path, since a tree may be large."""
    for place in dict.fromkeys([folder, (folder / path).parent]):
        yield from (str(file.relative_to(folder)) for file in sorted(place.glob("*.py")))


def _missing(path: str, files: Iterable[str], where: str) -> Problem:
    # Those of the same name first, then those at the top.
    name = PurePosixPath(path).name
    known = sorted(
        (file for file in files if file.endswith(".py")),
        key=lambda file: (PurePosixPath(file).name != name, file.count("/"), file),
    )
    shown = list(islice(known, _SHOWN))
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    there = f"its Python files: {', '.join(shown)}{more}" if shown else "it has no Python files"
    return Problem(key=_KEY, message=f"there is no {path} in {where}; {there}")


def _syntax(path: str, source: bytes) -> list[Problem]:
    try:
        parse(source)
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}" if error.lineno else path
        return [Problem(key=_KEY, message=f"{where}: {error.msg}")]
    except ValueError as error:  # a NUL in the source
        return [Problem(key=_KEY, message=f"{path}: {error}")]
    return []
