"""`submit`, `validate`, `schema`: the commands that take or describe a spec."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from service.cli.options import (
    AsJson,
    Assignments,
    CodeDirectory,
    Configs,
    Follow,
    Key,
    Overrides,
    ScriptArguments,
    SpecFile,
)
from service.cli.scripts import code_of
from service.cli.session import exit_with_state, session
from service.cli.specs import print_notes, read_document, with_source

if TYPE_CHECKING:
    from service.client import Client, Job, Validation


def submit(
    ctx: typer.Context,
    spec: SpecFile = None,
    arguments: ScriptArguments = None,
    configs: Configs = None,
    overrides: Overrides = None,
    assignments: Assignments = None,
    code: CodeDirectory = None,
    follow: Follow = False,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job."""
    with session(ctx, as_json=as_json) as client:
        document = read_and_upload(client, spec, assignments, configs, overrides, code, arguments)
        submitted(client, document, key, follow=follow, as_json=as_json)


def submitted(
    client: Client, document: Mapping[str, Any], key: str | None, *, follow: bool, as_json: bool
) -> None:
    """Queues a job and prints it; with `follow`, watches it and exits with the code of its end."""
    job = _submit(client, document, key, as_json)
    print_notes(_notes(client, document))
    if follow:
        job = _follow(client, job, as_json)
    if as_json:
        from service.cli.output import print_json

        print_json(job.to_json())
    elif not follow:
        _print_submitted(job)
    if follow:
        exit_with_state(job)


def _notes(client: Client, document: Mapping[str, Any]) -> list[str]:
    """Returns the server's notes on a spec that it has accepted: it knows what is installed for jobs."""
    from service.client import ClientError

    try:
        return client.validate(document).notes
    except ClientError:  # the job is queued, whatever has happened since
        return []


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
    spec: SpecFile = None,
    arguments: ScriptArguments = None,
    configs: Configs = None,
    overrides: Overrides = None,
    assignments: Assignments = None,
    code: CodeDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Check a spec and show what it would run, with which resources. Queues nothing."""
    with session(ctx, as_json=as_json) as client:
        answer = client.validate(
            read_and_upload(client, spec, assignments, configs, overrides, code, arguments)
        )
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
        *(("note", output.clean(note)) for note in answer.notes),
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
    from service.cli.expected import expected

    if answer.fits_ever is False:
        return "never on this cluster as it is"
    if answer.fits_now is False:
        return expected(answer.expected_start) or "when there is room"
    return "now" if answer.fits_now else "unknown"


def schema(
    as_json: AsJson = False,  # noqa: ARG001 - always JSON; accepted because every command has it
) -> None:
    """Print the JSON Schema of a spec. Needs no server."""
    from service.cli.output import print_json
    from training.spec import Spec

    print_json(Spec.model_json_schema())


def read_and_upload(
    client: Client,
    source: str | None,
    assignments: list[str] | None,
    configs: list[Path] | None,
    overrides: list[str] | None,
    code: Path | None,
    arguments: list[str] | None,
) -> Mapping[str, Any]:
    """Returns the spec as it is sent to the service; uploads the code first, if there is any."""
    code = code_of(source, code)
    data = with_source(read_document(source, assignments, configs, overrides, arguments, code), code)
    if code is None:
        return data
    from service.user_code.pack import pack

    return {**data, "code": client.upload_code(pack(code))}
