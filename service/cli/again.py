"""`extend`, `clone`: new jobs from the spec of an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.options import AsJson, Assignments, Follow, JobId, Key
from service.cli.session import session
from service.cli.submit import submitted

if TYPE_CHECKING:
    from service.client import Job

Checkpoint = Annotated[
    str, typer.Option("--checkpoint", metavar="best|last|STEP", help="Where to go on from.")
]


def extend(
    ctx: typer.Context,
    job: JobId,
    assignments: Assignments = None,
    checkpoint: Checkpoint = "last",
    follow: Follow = False,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a job that has ended, as a new job: syncbn extend ID --set training.max_epochs=20

    The new job has the spec and the code of the old one, with what --set changes, and goes on from its
    checkpoint with the whole state. On as many workers its curve is that of one longer job; the best
    checkpoint is that of its own epochs.
    """

    def extended(job: Job) -> Mapping[str, Any]:
        which = int(checkpoint) if checkpoint.isdecimal() else checkpoint
        return {**job.spec, "start_from": {"job": job.id, "checkpoint": which, "state": "all"}}

    if any(given.startswith("start_from") for given in assignments or []):
        raise typer.BadParameter(
            "an extended job starts from the whole state of the job that it extends, at the --checkpoint "
            "that you choose; to start in another way: syncbn clone ID --set start_from.job=ID",
            param_hint="--set",
        )
    _again(ctx, job, extended, assignments, follow, key, as_json)


def clone(
    ctx: typer.Context,
    job: JobId,
    assignments: Assignments = None,
    follow: Follow = False,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job with the spec and the code of another one: syncbn clone ID --set training.seed=1"""
    _again(ctx, job, lambda job: job.spec, assignments, follow, key, as_json)


def _again(
    ctx: typer.Context,
    job: str,
    spec_of: Callable[[Job], Mapping[str, Any]],
    assignments: list[str] | None,
    follow: bool,
    key: str | None,
    as_json: bool,
) -> None:
    from service.cli.references import job_id
    from service.user_code.source import found_source
    from training.spec import override

    with session(ctx, as_json=as_json) as client:
        spec = override(spec_of(client.job(job_id(client, job))), assignments or [])
        assert isinstance(spec, Mapping)
        # The code is the same, and so is its commit, but this is another submission.
        spec = {**spec, "source": {**(spec.get("source") or {}), **found_source(None)}}
        submitted(client, spec, key, follow=follow, as_json=as_json)
