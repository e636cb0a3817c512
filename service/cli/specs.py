"""Reads a spec as the commands take it: files, overrides, variables of the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from service.cli.scripts import check_arguments, check_options, is_script, script_document
from service.cli.spec_files import read_file, with_content

if TYPE_CHECKING:
    from training.spec import Spec


class SpecCommand(TyperCommand):
    """A command that also takes overrides in LightningCLI's form: --trainer.max_epochs=5, --model.lr 0.1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Gives the overrides to the hidden option --override, whatever their names are."""
        from training.spec.layers import is_override

        check_options(args, {name for option in self.get_params(ctx) for name in option.opts})
        words: list[str] = []
        given = iter(args)
        for word in given:
            if word == "--":
                words += [word, *given]
            elif is_override(word):
                name, equals, value = word[2:].partition("=")
                if not equals and (value := next(given, "--")).startswith("--"):
                    raise typer.BadParameter(f"--{name} needs a value, as in --{name}=1", ctx=ctx)
                words += ["--override", f"{name}={value}"]
            else:
                words.append(word)
        return super().parse_args(ctx, words)


def read_document(
    source: str | None,
    assignments: list[str] | None,
    configs: list[Path] | None = None,
    overrides: list[str] | None = None,
    arguments: list[str] | None = None,
    code: Path | None = None,
) -> Mapping[str, Any]:
    """Returns the spec in the file `source` (- is stdin), with `configs` over it and the overrides applied.

    A source that is a script, in the folder `code`, becomes the spec that runs it with these `arguments`.

    Variables in it are those of this process. Checks only the syntax; whoever gets it checks whether the spec
    is valid. Raises SpecError.
    """
    from training.spec import Problem, SpecError, load_yaml, override, parse_spec
    from training.spec.layers import is_lightnings, merged, overridden, resolved

    files = [*([source] if source is not None else []), *map(str, configs or ())]
    if not files:
        raise SpecError([Problem(key="", message="name a file with a spec, or give --config FILE")])
    check_arguments(source, arguments or ())
    if is_script(source) and code is not None:
        data: Any = script_document(files[0], arguments or (), code)
    else:
        data = read_file(files[0])
    for file in files[1:]:
        data = merged(data, read_file(file))
    if not isinstance(data, Mapping):
        parse_spec(data)  # raises the usual error for a spec that is not a mapping
    pairs = [each.partition("=") for each in overrides or []]
    data = overridden(data, with_content([(name, load_yaml(value)) for name, _, value in pairs]))
    data = override(data, assignments or [])
    if is_lightnings(data):
        data = resolved(data, os.environ)
    _check_json(data)
    assert isinstance(data, Mapping)
    return data


def with_source(document: Mapping[str, Any], code: Path | None) -> Mapping[str, Any]:
    """Returns the spec with its `source`: the keys that it gives, and what can be found for others.

    code: the code directory, whose commit counts unless the spec gives one; None: there is none.
    """
    from service.user_code.source import found_source

    given = document.get("source") or {}
    if not isinstance(given, Mapping):
        return document  # refused by whoever checks the spec
    found = found_source(None if "commit" in given else code)
    return {**document, "source": {**found, **given}}


def read_spec(
    source: str | None,
    assignments: list[str] | None,
    configs: list[Path] | None,
    overrides: list[str] | None,
    code: Path | None,
    arguments: list[str] | None = None,
) -> Spec:
    """Returns the spec that `read_document` reads, for a run on this machine; prints what is to be noted.

    Raises SpecError.
    """
    from service.user_code.imports import missing_imports
    from service.user_code.links import link_problems
    from service.user_code.loggers import left_out_loggers
    from service.user_code.requirements import requirement_problems
    from service.user_code.schedulers import scheduler_problems
    from service.user_code.scripts import problems_in_folder
    from training import spec as specs
    from training.spec.layers import is_lightnings

    document = read_document(source, assignments, configs, overrides, arguments, code)
    document = with_source(document, code or Path.cwd())
    spec, notes = specs.read_spec(document)
    folder = code or Path.cwd()
    if problems := problems_in_folder(spec, folder):
        raise specs.SpecError(problems)
    problems, more = missing_imports(spec, folder)
    problems += [*requirement_problems(spec, folder), *scheduler_problems(spec, folder)]
    print_notes([*notes, *more, *left_out_loggers(spec, folder)])
    if spec.script is None and (code is not None or is_lightnings(document)):
        problems += link_problems(spec, folder)
    if problems:
        raise specs.SpecError(problems)
    return spec


def print_notes(notes: list[str]) -> None:
    """Prints notes on standard error, such as what becomes of arguments of Lightning."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _check_json(data: Any) -> None:
    """Raises SpecError for a value that YAML has and JSON lacks: infinity, a set, bytes."""
    from training.spec import Problem, SpecError

    try:
        json.dumps(data, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise SpecError([Problem(key="", message=f"a value that JSON cannot hold: {error}")]) from None
