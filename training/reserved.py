"""The check for names that user modules must not have: the user's folder is first on the import path.

A file `random.py` or a package `numpy` in that folder would be imported by torch, Lightning or this project
instead of the real one. This module must stay light, because the API process imports it too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from importlib.machinery import BYTECODE_SUFFIXES, SOURCE_SUFFIXES, all_suffixes
from pathlib import Path, PurePosixPath

from training.protocol import RESERVED_PACKAGES

_DISTRIBUTION = "syncbn"
_SUFFIXES = (*SOURCE_SUFFIXES, *BYTECODE_SUFFIXES)
_COMPILED = ".so"
_NOT_FOR_IMPORT = re.compile("__pycache__|benchmarks?|docs?|examples?|scripts?|setup|tests?")
"""Names that distributions install at top level by mistake; nobody imports them from there."""

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


def hiding(names: Iterable[str]) -> dict[str, str]:
    """Returns the problem of each top-level module in `names` that would hide another one, by name."""
    return {name: problem for name in sorted(set(names)) if (problem := _hidden_by(name))}


def hiding_in_folder(path: Path) -> dict[str, str]:
    """As `hiding`, for the modules in the folder `path`; by the name of the file or folder to rename."""
    return hiding_among(_top_level(path))


def hiding_among(paths: Iterable[str]) -> dict[str, str]:
    """As `hiding_in_folder`, for a tree given by relative paths; those of folders end with a slash.

    A folder without `__init__.py` hides no other module, because Python prefers a regular one. It still must
    not have the name of a package of this project, since class paths would be ambiguous.
    """
    modules = {}
    for path in paths:
        first, *rest = PurePosixPath(path).parts
        if not rest and not path.endswith("/"):
            modules[first] = _module_name(first)
        elif first in RESERVED_PACKAGES or (len(rest) == 1 and _module_name(rest[0]) == "__init__"):
            modules[first] = first
    problems = hiding(modules.values())
    return {entry: problems[name] for entry, name in sorted(modules.items()) if name in problems}


def _top_level(folder: Path) -> Iterator[str]:
    """Yields the paths in `folder` that decide which top-level modules can be imported from it."""
    for entry in folder.iterdir():
        if not entry.is_dir():
            yield entry.name
        elif entry.name.isidentifier():
            yield f"{entry.name}/"
            # Looked up by name instead of listed: a data folder may hold millions of files.
            initial = (f"__init__{suffix}" for suffix in all_suffixes())
            yield from (f"{entry.name}/{file}" for file in initial if (entry / file).is_file())


def _module_name(file: str) -> str:
    """Returns the module name of a file, "" if it is not a module. Compiled ones have a tag before .so."""
    if file.endswith(_COMPILED):
        return file.partition(".")[0]
    return next((file.removesuffix(suffix) for suffix in _SUFFIXES if file.endswith(suffix)), "")


def _hidden_by(name: str) -> str:
    if name in RESERVED_PACKAGES:
        return f"would hide this project's own package {name!r}: rename it"
    if name in sys.stdlib_module_names:
        return f"would hide {name!r} of Python's standard library: rename it"
    if distribution := _installed().get(name):
        return (
            f"would hide the installed package {name!r} (of {distribution}), which training needs: rename it"
        )
    return ""


@cache
def _installed() -> dict[str, str]:
    """Returns the top-level modules of this project's requirements, each with its distribution's name."""
    return {
        name: distribution.name
        for distribution in reversed(own_distributions())
        for name in _modules_of(distribution)
        if name.isidentifier() and not _NOT_FOR_IMPORT.fullmatch(name)
    }


def own_distributions() -> list[metadata.Distribution]:
    """Returns the installed distributions of this project and of all its direct and indirect requirements.

    Of a requirement's marker only the extra is read: a requirement for another system is not installed here.
    """
    distributions: dict[str, metadata.Distribution] = {}
    extras: dict[str, set[str]] = {}
    pending = [(_DISTRIBUTION, frozenset[str]())]
    while pending:
        name, wanted = pending.pop()
        if name in distributions and wanted <= extras[name]:
            continue
        try:
            distributions[name] = distributions.get(name) or metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        extras.setdefault(name, set()).update(wanted)
        pending += _required(distributions[name].requires or [], extras[name])
    return list(distributions.values())


def _required(requirements: Iterable[str], extras: set[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yields name and extras of each requirement that applies with the extras `extras`."""
    for requirement in requirements:
        what, _, marker = requirement.partition(";")
        only_for = {_normalized(extra) for extra in _EXTRA.findall(marker)}
        if (match := _REQUIREMENT.match(what)) and (not only_for or only_for & extras):
            wanted = (match[2] or "").split(",")
            yield (
                _normalized(match[1]),
                frozenset(_normalized(extra.strip()) for extra in wanted if extra.strip()),
            )


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _modules_of(distribution: metadata.Distribution) -> set[str]:
    """Returns the top-level modules that a distribution declares or, if it declares none, has installed."""
    if declared := distribution.read_text("top_level.txt"):
        return set(declared.split())
    files = distribution.files or []
    return {file.parts[0] if len(file.parts) > 1 else _module_name(file.name) for file in files}
