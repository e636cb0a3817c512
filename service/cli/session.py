"""Opens the client for a command and turns errors into messages and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from service.cli.options import Connection, ExitCode

if TYPE_CHECKING:
    from service.client import Client, Job, Sweep


@contextmanager
def session(ctx: typer.Context, *, as_json: bool = False) -> Iterator[Client]:
    """Yields a client of the server that the global options name; reports errors as `reporting` does."""
    with reporting(as_json=as_json):
        from service.client import Client
        from service.user_code.source import user_name

        connection: Connection = ctx.obj
        with Client(connection.url, connection.api_key, user=user_name()) as client:
            yield client


@contextmanager
def reporting(*, as_json: bool = False) -> Iterator[None]:
    """Reports expected errors on stderr, as text or as a problem document, and exits with their code.

    Other exceptions are bugs and pass through.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except Exception as error:
        problem = problem_document(error)
        if problem is None:
            raise
        report(problem, as_json=as_json)
        raise typer.Exit(exit_code(error)) from None


def report(problem: dict[str, Any], *, as_json: bool) -> None:
    """Prints a problem document on stderr, as text or as JSON."""
    if as_json:
        typer.echo(json.dumps(problem), err=True)
        return
    errors = problem.get("errors", [])
    repeated = errors and all(item.get("message", "") in problem["detail"] for item in errors)
    headline = problem["title"] if repeated else problem["detail"]
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {headline}", err=True)
    for item in errors:
        typer.echo("  " + ": ".join(filter(None, [item.get("key"), item.get("message")])), err=True)


def problem_document(error: Exception) -> dict[str, Any] | None:
    """Returns the error as a problem document (RFC 9457); None if it is not an expected error."""
    from service.client import ClientError, RequestError
    from service.user_code.pack import PackError
    from training.spec import SpecError

    if isinstance(error, RequestError):
        return {**error.document, "detail": error.detail, "errors": [e.to_json() for e in error.errors]}
    if isinstance(error, SpecError):
        keys = [{"key": problem.key, "message": problem.message} for problem in error.problems]
        return _document("Invalid spec", "the spec cannot be used") | {"errors": keys}
    if isinstance(error, PackError):
        return _document("Invalid code directory", str(error))
    if isinstance(error, ClientError):
        return _document(type(error).__name__, str(error))
    return None


def _document(title: str, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "title": title, "detail": detail}


def exit_code(error: Exception) -> ExitCode:
    """Returns the exit code for an expected error."""
    from service import client

    if isinstance(error, client.NotFound):
        return ExitCode.NO_SUCH_JOB
    if isinstance(error, client.WaitTimeout):
        return ExitCode.TIMED_OUT
    if isinstance(error, client.ServerUnreachable | client.UnexpectedAnswer):
        return ExitCode.UNREACHABLE
    if isinstance(error, client.RequestError) and error.status >= 500:
        return ExitCode.UNREACHABLE
    return ExitCode.REFUSED


def exit_with_state(job: Job | Sweep) -> None:
    """Exits with the code for the state in which the job or sweep ended."""
    codes = {"succeeded": ExitCode.OK, "cancelled": ExitCode.JOB_CANCELLED}
    raise typer.Exit(codes.get(job.state, ExitCode.JOB_FAILED))
