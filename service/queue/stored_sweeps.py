"""Sweeps in the database, and the commands on all jobs of one.

A sweep and its jobs are inserted in one transaction, and a command changes them in one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    exc,
    exists,
    func,
    insert,
    select,
    update,
)

from service.errors import Conflict, KeyReused, NotFound
from service.jobs.job import ENDED, Job, State, new_job, utc_now
from service.jobs.sweep import SWEEP_PREFIX, Sweep, SweepJob, SweepLimits, SweepState, is_sweep_id
from service.queue import audit_rows, commands, cursors, database, filters
from service.queue.commands import Command
from service.queue.rows import NOT_DELETED, insert_jobs, without_source
from service.queue.tables import jobs, sweeps
from service.queue.writes import Writes
from training.spec.sweep import SweepPoint

_HAS_UNENDED = exists().where(jobs.c.sweep_id == sweeps.c.id, jobs.c.state.not_in(ENDED))


_COMPARED = 100
"""How many of the latest sweeps an unknown id is compared with."""


_SWEEP_JOBS = select(*(jobs.c[field.name] for field in fields(SweepJob)))


class StoredSweeps(Writes):
    """The stored sweeps. Every method raises `Unavailable` as `Store`'s methods do."""

    def create_sweep(
        self, sweep: Sweep, points: Iterable[SweepPoint], *, idempotency_key: str | None = None
    ) -> tuple[Sweep, bool]:
        """Stores a sweep, queues a job for each point, and returns the sweep with True.

        If the key was used before for the same sweep, returns that sweep and False.
        Raises KeyReused if the key was used for another one.
        """
        new = [_job_of_point(sweep, point) for point in points]
        row = {column.name: getattr(sweep, column.name, None) for column in sweeps.columns}
        try:
            with self._writing() as connection:
                connection.execute(insert(sweeps).values({**row, "idempotency_key": idempotency_key}))
                insert_jobs(connection, new)
                audit_rows.record(connection, f"/v1/sweeps/{sweep.id}")
        except exc.IntegrityError:
            # Race closed: two requests with one key. The unique constraint lets one insert through.
            if idempotency_key is None:
                raise
            return self._sweep_with_key(idempotency_key, sweep), False
        return sweep, True

    def get_sweep(self, sweep_id: str) -> Sweep:
        """Returns the sweep. Raises NotFound, which names a recent one with a similar id."""
        if not is_sweep_id(sweep_id):
            raise NotFound(f"no sweep {sweep_id!r}: ids look like s1k0w1qk530wdg8e15q54")
        found = self._sweeps(select(sweeps).where(sweeps.c.id == sweep_id))
        if not found:
            raise NotFound(f"no sweep {sweep_id!r}{self._did_you_mean(sweep_id)}")
        return found[0]

    def _did_you_mean(self, sweep_id: str) -> str:
        query = select(sweeps.c.id).order_by(sweeps.c.id.desc()).limit(_COMPARED)
        with database.reading(self._engine) as connection:
            recent = list(connection.execute(query).scalars())
        close = get_close_matches(sweep_id, recent, n=1, cutoff=0.8)
        return f"; did you mean {close[0]}?" if close else ""

    def list_sweeps(
        self,
        *,
        id_prefix: str | None = None,
        name: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[Sweep], str | None]:
        """Returns a page of sweeps, newest first, and the cursor of the next page (None: this is the last).

        id_prefix, name: as in `Filters`. Raises Refused for a bad cursor.
        """
        query = select(sweeps).order_by(sweeps.c.id.desc()).limit(limit + 1)
        if id_prefix:
            query = query.where(*filters.begins(sweeps.c.id, id_prefix))
        if name is not None:
            query = query.where(filters.named(sweeps.c.name, name))
        if cursor is not None:
            query = query.where(sweeps.c.id < cursors.decode(cursor, SWEEP_PREFIX))
        found = self._sweeps(query)
        return found[:limit], cursors.encode(found[limit - 1].id) if len(found) > limit else None

    def jobs_of_sweep(self, sweep_id: str) -> list[SweepJob]:
        """Returns the jobs of a sweep that are not deleted, in order of its points."""
        query = _SWEEP_JOBS.where(jobs.c.sweep_id == sweep_id, NOT_DELETED).order_by(jobs.c.point)
        with database.reading(self._engine) as connection:
            rows = connection.execute(query)
            return [SweepJob(**{**row._mapping, "state": State(row.state)}) for row in rows]

    def states_of_sweeps(self, sweep_ids: Collection[str]) -> dict[str, Counter[State]]:
        """Returns how many jobs of each sweep have which state; deleted ones do not count."""
        counts: dict[str, Counter[State]] = {sweep_id: Counter() for sweep_id in sweep_ids}
        query = (
            select(jobs.c.sweep_id, jobs.c.state, func.count())
            .where(jobs.c.sweep_id.in_(sweep_ids), NOT_DELETED)
            .group_by(jobs.c.sweep_id, jobs.c.state)
        )
        if sweep_ids:
            with database.reading(self._engine) as connection:
                for sweep_id, state, count in connection.execute(query):
                    counts[sweep_id][State(state)] = count
        return counts

    def sweep_limits(self, waiting: Iterable[Job]) -> dict[str, SweepLimits]:
        """Returns what the sweeps of these jobs allow the scheduler, by their ids."""
        sweep_ids = {job.sweep_id for job in waiting if job.sweep_id is not None}
        if not sweep_ids:
            return {}
        query = select(sweeps.c.id, sweeps.c.max_running, sweeps.c.paused_at).where(
            sweeps.c.id.in_(sweep_ids)
        )
        with database.reading(self._engine) as connection:
            return {
                row.id: SweepLimits(max_running=row.max_running, paused=row.paused_at is not None)
                for row in connection.execute(query)
            }

    def cancel_sweep(self, sweep_id: str, *, by: str = "") -> Sweep:
        """Cancels all its jobs that have not ended: those that wait at once, others soon. Idempotent.

        Raises NotFound; Conflict if it has succeeded or failed.
        """
        changes = {"cancel_requested_at": func.coalesce(sweeps.c.cancel_requested_at, utc_now())}
        self._command(
            sweep_id, commands.cancel("its sweep was cancelled", by=by), {**changes, "paused_at": None}
        )
        sweep = self.get_sweep(sweep_id)
        state = self._state(sweep)
        if sweep.cancel_requested_at is None and state is not SweepState.CANCELLED:
            raise Conflict(f"sweep {sweep_id} has {state} already")
        return sweep

    def pause_sweep(self, sweep_id: str, *, by: str = "") -> Sweep:
        """Pauses all its jobs that have not ended, and lets none of them start. Idempotent.

        Raises NotFound; Conflict if it has ended or is being cancelled.
        """
        changes = {"paused_at": func.coalesce(sweeps.c.paused_at, utc_now())}
        self._command(
            sweep_id,
            commands.pause(f"sweep {sweep_id} is paused", by=by),
            changes,
            [sweeps.c.cancel_requested_at.is_(None)],
        )
        return self._unended(sweep_id, "there is nothing to pause")

    def resume_sweep(self, sweep_id: str, *, by: str = "") -> Sweep:
        """Puts the paused jobs of a paused sweep back into the queue. Idempotent.

        Raises NotFound; Conflict if it has ended, is being cancelled, or if jobs are still pausing.
        """
        sweep = self._unended(sweep_id, "there is nothing to resume")
        if sweep.paused_at is None:
            return sweep
        pausing = exists().where(jobs.c.sweep_id == sweep_id, jobs.c.state == State.PAUSING)
        guards = [sweeps.c.paused_at.is_not(None), ~pausing]
        self._command(sweep_id, commands.resume(by=by), {"paused_at": None}, guards)
        sweep = self.get_sweep(sweep_id)
        if sweep.paused_at is not None:
            raise Conflict(
                f"jobs of sweep {sweep_id} are still pausing, they save checkpoints: resume it again once "
                "they are paused"
            )
        return sweep

    def set_sweep_experiment(self, sweep_id: str, experiment_id: str) -> None:
        """Notes where a run is about to be created for the sweep. Does nothing if the sweep has one."""
        guards = [sweeps.c.id == sweep_id, sweeps.c.run_id.is_(None)]
        self._update_sweep(guards, {"experiment_id": experiment_id})

    def set_sweep_run(self, sweep_id: str, experiment_id: str, run_id: str) -> None:
        """Links the sweep to its run. Does nothing if the sweep has one."""
        # Race closed: two schedulers, one of which does not know yet that the other has taken over.
        guards = [sweeps.c.id == sweep_id, sweeps.c.run_id.is_(None)]
        self._update_sweep(guards, {"experiment_id": experiment_id, "run_id": run_id})

    def unarchived_sweeps(self) -> list[tuple[Sweep, SweepState]]:
        """Returns the sweeps whose jobs have all ended and whose run's end status is not written yet."""
        found = self._sweeps(select(sweeps).where(sweeps.c.archived_at.is_(None), ~_HAS_UNENDED))
        states = self.states_of_sweeps([sweep.id for sweep in found])
        return [(sweep, sweep.state(states[sweep.id])) for sweep in found]

    def mark_sweep_archived(self, sweep_id: str) -> None:
        """Notes that the end status is in the tracking server. Idempotent: the first time is kept."""
        guards = [sweeps.c.id == sweep_id, sweeps.c.archived_at.is_(None)]
        self._update_sweep(guards, {"archived_at": utc_now()})

    # Statements

    def _command(
        self,
        sweep_id: str,
        command: Command,
        changes: Mapping[str, Any],
        guards: Sequence[ColumnElement[bool]] = (),
    ) -> None:
        """Changes the sweep if it has not ended and passes the guards, and then its jobs that pass theirs."""
        with self._writing() as connection:
            _lock_jobs(connection, sweep_id)
            statement = update(sweeps).where(sweeps.c.id == sweep_id, _HAS_UNENDED, *guards).values(changes)
            if connection.execute(statement).rowcount:
                mine = update(jobs).where(jobs.c.sweep_id == sweep_id, *command.guards)
                connection.execute(mine.values(command.values))
                audit_rows.record(connection)

    def _unended(self, sweep_id: str, consequence: str) -> Sweep:
        sweep = self.get_sweep(sweep_id)
        if (state := self._state(sweep)) not in {SweepState.RUNNING, SweepState.PAUSED}:
            was = "was" if state is SweepState.CANCELLED else "has"
            raise Conflict(f"sweep {sweep_id} {was} {state} already: {consequence}")
        if sweep.cancel_requested_at is not None:
            raise Conflict(f"sweep {sweep_id} is being cancelled: {consequence}")
        return sweep

    def _state(self, sweep: Sweep) -> SweepState:
        return sweep.state(self.states_of_sweeps([sweep.id])[sweep.id])

    def _sweep_with_key(self, idempotency_key: str, requested: Sweep) -> Sweep:
        (existing,) = self._sweeps(select(sweeps).where(sweeps.c.idempotency_key == idempotency_key))
        if existing.user != requested.user:
            raise KeyReused("this Idempotency-Key was used by another user; use a new key")
        if _request(existing) != _request(requested):
            raise KeyReused(
                f"this Idempotency-Key made sweep {existing.id}, which is another one; use a new key for a "
                "new sweep"
            )
        return existing

    def _sweeps(self, query: Select[Any]) -> list[Sweep]:
        with database.reading(self._engine) as connection:
            return [_sweep_of(row) for row in connection.execute(query)]

    def _update_sweep(self, guards: Sequence[ColumnElement[bool]], values: Mapping[str, Any]) -> None:
        with self._writing() as connection:
            connection.execute(update(sweeps).where(*guards).values(values))


def _job_of_point(sweep: Sweep, point: SweepPoint) -> Job:
    # Ids sort by creation time, so that jobs of one priority start in order of their points.
    job = new_job(
        point.spec, created_at=sweep.created_at + timedelta(microseconds=point.number), user=sweep.user
    )
    return replace(job, sweep_id=sweep.id, point=point.number)


def _sweep_of(row: Row[Any]) -> Sweep:
    values = dict(row._mapping)
    del values["idempotency_key"]
    return Sweep(**values)


def _request(sweep: Sweep) -> dict[str, Any]:
    return {**sweep.document, "name": sweep.name, "spec": without_source(sweep.document["spec"])}


def _lock_jobs(connection: Connection, sweep_id: str) -> None:
    """Locks the sweep's jobs in order of their ids, as every other writer does: so none waits in a circle."""
    mine = select(jobs.c.id).where(jobs.c.sweep_id == sweep_id)
    connection.execute(mine.order_by(jobs.c.id).with_for_update()).all()
