"""`submit`, `validate`, `schema`: the commands that take or describe a spec."""

from __future__ import annotations

import json
import sys
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.options import AsJson, Assignments, CodeDirectory, SpecFile
from service.cli.session import exit_with_state, session

if TYPE_CHECKING:
    from service.client import Client, Job, Validation


def submit(
    ctx: typer.Context,
    spec: SpecFile,
    assignments: Assignments = None,
    code: CodeDirectory = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch the job until it has ended.")] = False,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="IDEMPOTENCY_KEY", help="Submitting again with the same key gives the same job."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job."""
    with session(ctx, as_json=as_json) as client:
        job = _submit(client, _spec(client, spec, assignments, code), key, as_json)
        if follow:
            job = _follow(client, job, as_json)
        if as_json:
            from service.cli.output import print_json

            print_json(job.to_json())
        elif not follow:
            _print_submitted(job)
    if follow:
        exit_with_state(job)


def _submit(client: Client, spec: Mapping[str, Any], key: str | None, as_json: bool) -> Job:
    from service.client import ServerUnreachable

    key = key or str(uuid.uuid4())
    try:
        return client.submit(spec, idempotency_key=key)
    except ServerUnreachable as error:
        if error.may_have_arrived and not as_json:
            typer.echo(f"the job may be queued; submit it again safely with --key {key}", err=True)
        raise


def _follow(client: Client, job: Job, as_json: bool) -> Job:
    from service.cli import display, output

    screen = output.console(stderr=as_json)
    screen.print(f"job {job.id}")
    return display.follow(client, job.id, screen)


def _print_submitted(job: Job) -> None:
    from service.cli import output

    screen = output.console()
    screen.print(output.state(job.state), output.clean(job.name), job.id)
    if job.reason:
        screen.print(f"  {output.clean(job.reason)}")
    screen.print(f"  watch it: syncbn logs -f {job.id}")


def validate(
    ctx: typer.Context,
    spec: SpecFile,
    assignments: Assignments = None,
    code: CodeDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Check a spec and show what it would run, with which resources. Queues nothing."""
    with session(ctx, as_json=as_json) as client:
        answer = client.validate(_spec(client, spec, assignments, code))
        if as_json:
            from service.cli.output import print_json

            print_json(answer.to_json())
        else:
            _print_valid(answer)


def _print_valid(answer: Validation) -> None:
    from service.cli import output

    rows = [
        ("name", output.clean(answer.spec.get("name", ""))),
        ("needs", output.total(answer.resources)),
        ("samples per worker", _shares(answer.shares or [])),
        ("starts", _when(answer)),
        ("reason", output.clean(answer.reason or "")),
    ]
    screen = output.console()
    screen.print("valid", style="green")
    screen.print(output.fields(rows))


def _shares(shares: list[int]) -> str:
    """Formats shares as in 86, 85, 85; more than eight as in 86 (64 workers), 85 (64 workers)."""
    if len(shares) <= 8:
        return ", ".join(map(str, shares))
    return ", ".join(f"{size} ({count} workers)" for size, count in Counter(shares).items())


def _when(answer: Validation) -> str:
    if answer.fits_ever is False:
        return "never on this cluster as it is"
    return {True: "now", False: "when there is room", None: "unknown"}[answer.fits_now]


def schema(
    as_json: AsJson = False,  # noqa: ARG001 - always JSON; accepted because every command has it
) -> None:
    """Print the JSON Schema of a spec. Needs no server."""
    from service.cli.output import print_json
    from training.spec import Spec

    print_json(Spec.model_json_schema())


def read_spec(source: str, assignments: list[str] | None) -> Mapping[str, Any]:
    """Returns the spec in the file `source` (- is stdin) with the assignments applied. Raises SpecError.

    Checks only the syntax; the server checks whether the spec is valid.
    """
    from training.spec import load_yaml, override, parse_spec

    data = load_yaml(_text(source))
    if not isinstance(data, Mapping):
        parse_spec(data)  # raises the usual error for a spec that is not a mapping
    data = override(data, assignments or [])
    assert isinstance(data, Mapping)
    _check_json(data)
    return data


def _text(source: str) -> str:
    from training.spec import Problem, SpecError

    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError([Problem(key="", message=f"cannot read {source}: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise SpecError([Problem(key="", message=f"{source} is not text in UTF-8")]) from None


def _check_json(data: Mapping[str, Any]) -> None:
    """Raises SpecError for a value that YAML has and JSON lacks: infinity, a date, a set, a non-text key."""
    from training.spec import Problem, SpecError

    try:
        json.dumps(data, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise SpecError([Problem(key="", message=f"a value that JSON cannot hold: {error}")]) from None


def _spec(client: Client, source: str, assignments: list[str] | None, code: Path | None) -> Mapping[str, Any]:
    data = read_spec(source, assignments)
    if code is None:
        return data
    from service.user_code.pack import pack

    return {**data, "code": client.upload_code(pack(code))}
