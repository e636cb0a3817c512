"""`submit`, `validate`, `schema`: from a spec file to a job."""

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
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay and watch until it has ended.")
    ] = False,
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
            typer.echo(f"the job may be queued; with --key {key} it can be submitted again safely", err=True)
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
    """Check a spec: what would run, where, how big. Queues nothing."""
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
        ("takes", output.total(answer.resources)),
        ("samples of each worker", _shares(answer.shares or [])),
        ("starts", _when(answer)),
        ("reason", output.clean(answer.reason or "")),
    ]
    screen = output.console()
    screen.print("valid", style="green")
    screen.print(output.fields(rows))


def _shares(shares: list[int]) -> str:
    """86, 85, 85; where there are many: 86 (64 workers), 85 (64 workers)."""
    if len(shares) <= 8:
        return ", ".join(map(str, shares))
    return ", ".join(f"{size} ({count} workers)" for size, count in Counter(shares).items())


def _when(answer: Validation) -> str:
    if answer.fits_ever is False:
        return "never on this cluster as it is"
    return {True: "now", False: "when there is room", None: "unknown"}[answer.fits_now]


def schema(
    as_json: AsJson = False,  # noqa: ARG001 - it is JSON either way; scripts may ask for it as everywhere
) -> None:
    """Print the JSON Schema of a spec. Needs no server."""
    from service.cli.output import print_json
    from training.spec import Spec

    print_json(Spec.model_json_schema())


def read_spec(source: str, assignments: list[str] | None) -> Mapping[str, Any]:
    """The spec in the file `source` (- is stdin) with each assignment applied. Raises SpecError.

    Only its syntax is checked here: whether it is a valid spec is the server's to say.
    """
    from training.spec import load_yaml, override, parse_spec

    data = load_yaml(_text(source))
    if not isinstance(data, Mapping):
        parse_spec(data)  # raises, in the words used everywhere
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
    """YAML holds things that JSON does not: infinities, dates, sets, keys of any kind."""
    from training.spec import Problem, SpecError

    try:
        json.dumps(data, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise SpecError([Problem(key="", message=f"a value that JSON has not: {error}")]) from None


def _spec(client: Client, source: str, assignments: list[str] | None, code: Path | None) -> Mapping[str, Any]:
    data = read_spec(source, assignments)
    if code is None:
        return data
    from service.user_code.pack import pack

    return {**data, "code": client.upload_code(pack(code))}
