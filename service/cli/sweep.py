"""`sweep`, `sweeps`: several jobs from one spec, with other values for some of its keys."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

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
from service.cli.session import exit_with_state, session
from service.cli.specs import print_notes
from service.cli.submit import read_and_upload
from service.cli.sweep_options import Grid, MaxRunning, Random, Repeat, Seed, Space, plan

if TYPE_CHECKING:
    from service.cli.tables import Cell
    from service.client import Client, Sweep, SweepValidation


def sweep(
    ctx: typer.Context,
    spec: SpecFile = None,
    arguments: ScriptArguments = None,
    grid: Grid = None,
    random: Random = None,
    space: Space = None,
    seed: Seed = None,
    repeat: Repeat = None,
    max_running: MaxRunning = None,
    name: Annotated[
        str | None, typer.Option(help="Its jobs are NAME-1, NAME-2 and so on; default: that of the spec.")
    ] = None,
    configs: Configs = None,
    overrides: Overrides = None,
    assignments: Assignments = None,
    code: CodeDirectory = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show the points; queue nothing.")
    ] = False,
    follow: Follow = False,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job for each of several values: syncbn sweep spec.yaml --grid optimizer.init_args.lr=0.1,0.01

    The points are grid × random × repeat; points with the same spec are one job. A spec may give the same in
    a section `sweep`, with the keys grid, random, repeat and max_running; options win.
    """
    with session(ctx, as_json=as_json) as client:
        document = dict(read_and_upload(client, spec, assignments, configs, overrides, code, arguments))
        section = _section(document.pop("sweep", None))
        options = plan(section, grid, random, space, seed, repeat, max_running)
        body = {**options, "spec": document, **({} if name is None else {"name": name})}
        if dry_run:
            _print_planned(client.validate_sweep(body), as_json=as_json)
            return
        sweep = _submitted(client, body, key, as_json)
        if follow:
            sweep = _followed(client, sweep, as_json)
        _print(sweep, as_json=as_json, hint=not follow)
    if follow:
        exit_with_state(sweep)


def _section(value: object) -> Mapping[str, Any]:
    from training.spec import Problem, SpecError

    if value is not None and not isinstance(value, Mapping):
        message = "should be a mapping with grid, random, repeat or max_running"
        raise SpecError([Problem(key="sweep", message=message)])
    return value or {}


def _submitted(client: Client, body: Mapping[str, Any], key: str | None, as_json: bool) -> Sweep:
    from service.client import ServerUnreachable

    key = key or str(uuid.uuid4())
    try:
        return client.submit_sweep(body, idempotency_key=key)
    except ServerUnreachable as error:
        if error.may_have_arrived and not as_json:
            typer.echo(f"the sweep may be queued; submit it again safely with --key {key}", err=True)
        raise


def _followed(client: Client, sweep: Sweep, as_json: bool) -> Sweep:
    """Prints how many jobs have which state, whenever that changes, until all have ended."""
    from service.cli import output
    from service.cli.sweep_text import counts

    screen, last = output.console(stderr=as_json), ""
    screen.print(f"sweep {sweep.id}")
    try:
        for now in client.follow_sweep(sweep.id):
            sweep = now
            if (line := counts(now)) != last:
                screen.print(line)
                last = line
    except KeyboardInterrupt:
        screen.print(f"\nno longer watching; the sweep continues: syncbn show {sweep.id}")
        raise
    return sweep


def _print(sweep: Sweep, *, as_json: bool, hint: bool) -> None:
    from service.cli import output
    from service.cli.sweep_text import print_sweep

    if as_json:
        output.print_json(sweep.to_json())
        return
    screen = output.console()
    print_sweep(sweep, screen)
    if hint:
        screen.print(f"\nwatch it: syncbn show {sweep.id}; afterwards: syncbn report {sweep.id}")


def _print_planned(answer: SweepValidation, *, as_json: bool) -> None:
    from service.cli import output
    from service.cli.sweep_text import print_planned

    if as_json:
        output.print_json(answer.to_json())
        return
    print_notes(answer.notes)
    screen = output.console()
    print_planned(answer.points, screen)
    screen.print(f"{len(answer.points)} jobs; nothing was queued")


def sweeps(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List sweeps, newest first. `syncbn show ID` shows one with its points."""
    from service.cli import output
    from service.cli.references import short_ids
    from service.cli.sweep_text import counts
    from service.cli.tables import Column, Cut
    from service.cli.times import age, date

    with session(ctx, as_json=as_json) as client:
        found = list(client.sweeps(limit=limit))
    if as_json:
        output.print_json([each.to_json() for each in found])
        return
    screen = output.console()
    if not found:
        screen.print("no sweeps")
        return
    short = short_ids((each.id for each in found), screen)
    rows: list[list[Cell]] = [
        [
            short(each.id),
            output.clean(each.name),
            output.state(each.state),
            counts(each),
            age(each.created_at),
            date(each.created_at),
        ]
        for each in found
    ]
    columns = [
        Column(name="ID", worth=6),
        Column(name="NAME", worth=4, least=12, cut=Cut.MIDDLE),
        Column(name="STATE", worth=5),
        Column(name="JOBS", worth=3, least=20),
        Column(name="AGE", worth=2),
        Column(name="CREATED", worth=1),
    ]
    screen.print(output.table(columns, rows))
