"""A script on the command line: `syncbn train train.py -- --lr 0.1` in place of a spec."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import typer

_SUFFIX = ".py"


def is_script(source: str | None) -> bool:
    """Returns whether what a command got as its SPEC is a script."""
    return source is not None and source.endswith(_SUFFIX)


def code_of(source: str | None, code: Path | None) -> Path | None:
    """Returns the folder of the user's code: by default that of the script, if there is one."""
    return Path(str(source)).parent if code is None and is_script(source) else code


def script_document(source: str, arguments: Sequence[str], code: Path) -> Mapping[str, Any]:
    """Returns the spec of a script with these arguments. Raises SpecError if it is not within `code`."""
    from training.spec import Problem, SpecError

    path, folder = Path(source).absolute(), code.absolute()
    if not path.is_file():
        raise SpecError([Problem(key="", message=f"cannot read {source}: there is no such file")])
    if not path.is_relative_to(folder):
        message = f"{source} is not in the folder of the code, {code}; give one that contains it with --code"
        raise SpecError([Problem(key="", message=message)])
    return {"script": {"path": path.relative_to(folder).as_posix(), "args": list(arguments)}}


def check_arguments(source: str | None, arguments: Sequence[str]) -> None:
    """Raises BadParameter for arguments of a script without a script."""
    if arguments and not is_script(source):
        raise typer.BadParameter(
            f"only a script (a {_SUFFIX} file) takes further arguments; in a spec they are script.args",
            param_hint=repr(arguments[0]),
        )


def check_options(words: Sequence[str], known: Collection[str]) -> None:
    """Raises BadParameter if an option that is not of the command, but of the script, has no -- before it.

    words: the command line. known: the options of the command.
    """
    own = [*takewhile(lambda word: word != "--", words)]
    script = next(filter(is_script, own), None)
    for word in own if script else ():
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise typer.BadParameter(
                f"if it is an argument of the script, write -- before it: {script} -- {word}", param_hint=name
            )
