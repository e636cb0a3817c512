"""What the shell offers for an argument: ids and names that the server knows. Silent if it does not answer.

`syncbn --install-completion` sets it up for the shell of the user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from service.client import Client, Job, Sweep

_SECONDS = 1.0
_WORD = re.compile(r"\w[\w.,@%+=/-]*")  # what no shell divides or replaces
_OFFERED = 50
_STATES = (
    *("queued", "starting", "running", "pausing", "paused", "preempting"),
    *("succeeded", "failed", "cancelled"),
)

Offer = list[tuple[str, str]]


def job(ctx: typer.Context, incomplete: str) -> Offer:
    """Returns jobs whose id or name begins so, newest first, each with its state."""
    return _asked(ctx, lambda client: _jobs(client, incomplete))


def sweep(ctx: typer.Context, incomplete: str) -> Offer:
    """Returns sweeps whose id or name begins so, newest first, each with its state."""
    return _asked(ctx, lambda client: _sweeps(client, incomplete))


def job_or_sweep(ctx: typer.Context, incomplete: str) -> Offer:
    """Returns jobs and sweeps whose id or name begins so."""
    return _asked(ctx, lambda client: [*_jobs(client, incomplete), *_sweeps(client, incomplete)])


def state(incomplete: str) -> list[str]:
    """Returns the states of a job, also for the last one of several with commas between them."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _STATES if name.startswith(last)]


def _jobs(client: Client, begin: str) -> Iterator[tuple[str, str]]:
    def found(**filters: str | None) -> Iterator[Job]:
        return client.jobs(**filters, limit=_OFFERED)  # type: ignore[arg-type]

    yield from _offered(begin, found)


def _sweeps(client: Client, begin: str) -> Iterator[tuple[str, str]]:
    def found(**filters: str | None) -> Iterator[Sweep]:
        return client.sweeps(**filters, limit=_OFFERED)

    yield from _offered(begin, found)


def _offered(begin: str, found: Callable[..., Iterable[Job | Sweep]]) -> Iterator[tuple[str, str]]:
    """Yields ids that begin so, and the names that do, if one job or sweep alone has them."""
    from service.cli.output import clean

    for each in found(id_prefix=begin or None):
        if each.id.startswith(begin):
            yield each.id, f"{each.state} {clean(each.name)}"
    names: dict[str, list[Job | Sweep]] = {}
    for each in found(name=f"{_escaped(begin)}*") if begin else ():
        names.setdefault(each.name, []).append(each)
    for name, several in names.items():
        if len(several) == 1 and _WORD.fullmatch(name):
            yield name, f"{several[0].state} {several[0].id}"


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "*?\\" else char for char in text)


def _asked(ctx: typer.Context, ask: Callable[[Client], Iterable[tuple[str, str]]]) -> Offer:
    from service.client import Client, ClientError

    given = ctx.find_root().params
    try:
        with Client(given["url"], given.get("api_key"), _SECONDS, retry_seconds=0) as client:
            return list(ask(client))
    except ClientError:
        return []
