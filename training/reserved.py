"""Names that a user's own modules may not have, because the user's folder comes first on the import path.

A file `random.py` or a package `numpy` in it would be imported wherever torch, Lightning or this project asks
for theirs. Light: the API process imports this module, too.
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
"""What distributions install beside their packages by mistake; nobody imports it from there."""

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


def hiding(names: Iterable[str]) -> dict[str, str]:
    """Those of these top-level modules that would hide another one, each with what is wrong with it."""
    return {name: hidden for name in sorted(set(names)) if (hidden := _hidden_by(name))}


def hiding_in_folder(path: Path) -> dict[str, str]:
    """As `hiding`, by the name of the file or folder that lies in `path` and has to be renamed."""
    return hiding_among(_top_level(path))


def hiding_among(paths: Iterable[str]) -> dict[str, str]:
    """As `hiding_in_folder`, for the files of a tree, each by its path in it; a folder's ends with a slash.

    A folder without `__init__.py` hides no module of others: Python goes on to look for a regular one. It
    may not have the name of a package of this project all the same, since class paths would be ambiguous.
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
    """As much of the tree as decides what can be imported from it by a name without dots."""
    for entry in folder.iterdir():
        if not entry.is_dir():
            yield entry.name
        elif entry.name.isidentifier():
            yield f"{entry.name}/"
            # Asked for by name: a folder of data may hold millions of files.
            initial = (f"__init__{suffix}" for suffix in all_suffixes())
            yield from (f"{entry.name}/{file}" for file in initial if (entry / file).is_file())


def _module_name(file: str) -> str:
    """What the file is imported as, "" if it is not a module. Compiled ones have a tag before the suffix."""
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
    """Top-level modules of all that this project requires, each with the distribution that it belongs to."""
    return {
        name: distribution.name
        for distribution in reversed(_requirements())
        for name in _modules_of(distribution)
        if name.isidentifier() and not _NOT_FOR_IMPORT.fullmatch(name)
    }


def _requirements() -> list[metadata.Distribution]:
    """The distribution of this project and all that it needs, as far as they are installed.

    Of a requirement's marker the extra alone counts: what is for another system is not installed here.
    """
    found: dict[str, metadata.Distribution] = {}
    extras: dict[str, set[str]] = {}
    waiting = [(_DISTRIBUTION, frozenset[str]())]
    while waiting:
        name, wanted = waiting.pop()
        if name in found and wanted <= extras[name]:
            continue
        try:
            found[name] = found.get(name) or metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        extras.setdefault(name, set()).update(wanted)
        waiting += _required(found[name].requires or [], extras[name])
    return list(found.values())


def _required(requirements: Iterable[str], extras: set[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Name and extras of each that applies with these extras."""
    for requirement in requirements:
        what, _, marker = requirement.partition(";")
        only_for = {_normal(extra) for extra in _EXTRA.findall(marker)}
        if (match := _REQUIREMENT.match(what)) and (not only_for or only_for & extras):
            asked = (match[2] or "").split(",")
            yield _normal(match[1]), frozenset(_normal(extra.strip()) for extra in asked if extra.strip())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _modules_of(distribution: metadata.Distribution) -> set[str]:
    """Those that it declares or, where it declares none, those that it has installed."""
    if declared := distribution.read_text("top_level.txt"):
        return set(declared.split())
    files = distribution.files or []
    return {file.parts[0] if len(file.parts) > 1 else _module_name(file.name) for file in files}
