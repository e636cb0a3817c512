"""Takes jobs from the queue to their end: admit → launch → reconcile → finish.

The dispatcher keeps nothing in memory between two rounds. What is to happen is written to the database
before it is done, and what has happened is looked up, so it may die at any moment and start again. A server
that does not answer is not a job that failed: the round goes on without it, the next one asks again.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from service.elastic import GROWS_EVERY, Preempt
from service.endings import Ending, before_launch, ending
from service.errors import Refused, ServiceError, Unavailable
from service.jobs import ACTIVE, Job, State, utc_now
from service.launch import Attempt, Cluster, Phase, Status, submission_id
from service.results import Results, Run, Summary
from service.scheduler import Start, Wait, schedule
from service.settings import Settings
from service.store import Store
from training.failures import without_verdict

log = logging.getLogger(__name__)

RUN_STATUS = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "KILLED"}


class Dispatcher:
    """One of possibly several that serve the same queue."""

    def __init__(self, settings: Settings, store: Store, cluster: Cluster, results: Results) -> None:
        self.settings, self.store, self.cluster, self.results = settings, store, cluster, results

    def run(self, stop: threading.Event, *, seconds_between: float = 0.5) -> None:
        """Works until `stop` is set."""
        while not stop.wait(seconds_between):
            self.round()

    def round(self) -> None:
        """Looks at every job once. Raises nothing: what fails is logged and tried again."""
        for step in (self._reconcile_all, self._admit_all, self._finish_all):
            try:
                step()
            except ServiceError as error:
                log.warning("%s", error)
            except Exception:  # a bug in one round must not end the service of all jobs
                log.exception("a round of the dispatcher failed")

    # Admit and launch

    def _admit_all(self) -> None:
        queue, active = self.store.queue(), self.store.active()
        elastic = [job for job in active if job.elastic]
        if not queue and not elastic:
            return
        now, left = utc_now(), self._seconds_left(elastic)
        try:
            decisions = schedule(queue, active, self.cluster.nodes(), now=now, seconds_left=left)
        except Unavailable as error:
            self.store.note_all((job, f"waits: {error}") for job in queue)
            return
        waiting, running = ({job.id: job for job in jobs} for jobs in (queue, active))
        for decision in decisions:
            if isinstance(decision, Start):
                self._start(waiting[decision.job_id], decision.workers)
            elif isinstance(decision, Preempt):
                self.store.move(running[decision.job_id], State.PREEMPTING, reason=decision.reason)
        self.store.note_all((waiting[d.job_id], d.reason) for d in decisions if isinstance(d, Wait))

    def _start(self, job: Job, workers: int) -> None:
        if job.attempt and not self._is_over(job):
            self.store.note(job, f"waits: attempt {job.attempt} has not ended yet")
            return
        try:
            run = job.run or self._run_for(job)
        except (Unavailable, Refused) as error:
            self.store.note(job, f"waits: {error}")
            return
        reason = f"starting on {workers} worker{'s' if workers != 1 else ''}"
        grows_after = utc_now() + GROWS_EVERY
        number = job.attempt + 1
        if self.store.move(
            job, State.STARTING, attempt=number, workers=workers, grows_after=grows_after, reason=reason
        ):
            self._launch(replace(job, attempt=number, workers=workers, state=State.STARTING), run)

    def _is_over(self, job: Job) -> bool:
        """Whether the last attempt has ended; one that has not is stopped.

        Race closed: a job was paused between the row that named its attempt and the submission, and whoever
        submitted it died before looking again. Resumed, it would run twice.
        """
        status = self.cluster.status(_name(job))
        if status is None or status.ended:
            return True
        self.cluster.stop(_name(job))
        return False

    def _run_for(self, job: Job) -> Run:
        experiment = job.spec["tracking"]["experiment"]
        return self.results.ensure_run(job_id=job.id, name=job.name, experiment=experiment)

    def _launch(self, job: Job, run: Run) -> None:
        """Submits the attempt that the row names; harmless when it was submitted before."""
        if job.run is None:
            # Race closed: two dispatchers each made the job a run. The one that moved the row names its own.
            self.store.set_run(job.id, run.experiment_id, run.run_id)
        self.cluster.submit(self._attempt(job, run))
        # Race closed: while we were about to submit, another dispatcher saw a cancel or a pause, and nothing
        # to stop.
        now = self.store.get(job.id)
        if now.state not in ACTIVE or now.attempt != job.attempt:
            self.cluster.stop(_name(job))

    def _attempt(self, job: Job, run: Run) -> Attempt:
        assert job.workers is not None
        digest = job.spec.get("code")
        order = {
            "spec": job.spec,
            "workers": job.workers,
            "checkpoints": self.settings.checkpoints,
            "name": job.id,
            "storage": self.settings.storage,
            "retries": max(job.spec["retries"] - job.failures, 0),
            "mlflow_uri": self.settings.mlflow_url,
            "run_id": run.run_id,
        }
        return Attempt(
            job_id=job.id,
            number=job.attempt,
            workers=job.workers,
            spec=job.spec,
            environment={"SYNCBN_ATTEMPT": json.dumps(order)},
            code=self.store.get_code(digest) if digest else None,
        )

    # Reconcile

    def _reconcile_all(self) -> None:
        active = self.store.active()
        summaries = self._summaries(active)
        for job in active:
            summary = summaries.get(job.run_id or "", Summary())
            try:
                self._reconcile(job, is_training=summary.progress is not None)
            except ServiceError as error:
                log.warning("job %s: %s", job.id, error)
                if job.state is State.STARTING:
                    self.store.note(job, f"starting: {error}")
            except Exception:  # a bug that one job brings out must not hold up the others
                log.exception("job %s", job.id)

    def _summaries(self, jobs: Iterable[Job]) -> dict[str, Summary]:
        """By run id, where they are known."""
        try:
            return self.results.summaries([run for job in jobs if (run := job.run) is not None])
        except Exception as error:  # what MLflow says is for show: no job may hang on it
            log.warning("%s", error)
            return {}

    def _seconds_left(self, jobs: Iterable[Job]) -> dict[str, float]:
        """What jobs still need, by their ids, where it is known."""
        elastic = list(jobs)
        summaries = self._summaries(elastic) if elastic else {}
        progress = {job.id: summaries.get(job.run_id or "", Summary()).progress for job in elastic}
        return {
            id: known.eta_seconds for id, known in progress.items() if known and known.eta_seconds is not None
        }

    def _reconcile(self, job: Job, *, is_training: bool) -> None:
        status = self.cluster.status(_name(job))
        if status is not None and status.ended:
            self._ended(job, status)
        elif job.stopping:
            if status is None:
                self._come_to(job, before_launch(job))
            else:
                self.cluster.stop(_name(job))  # in every round: Ray forgets a stop that comes too early
        elif status is None:
            # Never submitted (we died before we could) or lost with the head: one id, so one launch.
            self._launch(job, job.run or self._run_for(job))
        elif job.state is State.STARTING and status.phase is Phase.RUNNING and is_training:
            self.store.move(job, State.RUNNING)

    def _ended(self, job: Job, status: Status) -> None:
        output = self.cluster.logs(_name(job))
        # Race closed: another dispatcher stopped it for a cancel that is younger than our look.
        cancelled = self.store.get(job.id).cancel_requested_at is not None
        self._come_to(job, ending(job, status, output, cancelled=cancelled))

    def _come_to(self, job: Job, end: Ending) -> None:
        if not end.state.ended:
            self._archive_log(job)  # before it starts again, and before Ray forgets it
        # Race closed: a pause or a preemption that is younger than our look. The state is no longer what we
        # saw, nothing changes, and the next round takes the attempt's end for what it means by then.
        self.store.move(job, end.state, reason=end.reason, error=end.error, failures=end.failures)

    # Finish

    def _finish_all(self) -> None:
        for job in self.store.unarchived():
            try:
                self._archive_log(job)
                self._end_run(job)
                self.store.mark_archived(job.id)
            except ServiceError as error:
                log.warning("job %s: its log is not archived yet: %s", job.id, error)
            except Exception:  # as above
                log.exception("job %s", job.id)

    def _archive_log(self, job: Job) -> None:
        """The attempt's log becomes an artifact of its run; Ray forgets it with the head."""
        output = self.cluster.logs(_name(job))
        if output and job.run is not None:
            with _refusal_logged(job):
                self.results.upload(job.run, f"logs/attempt-{job.attempt}.log", without_verdict(output))

    def _end_run(self, job: Job) -> None:
        if job.run is not None:
            with _refusal_logged(job):
                self.results.end(job.run, RUN_STATUS[job.state])


def _name(job: Job) -> str:
    """Of the job's latest attempt, in the cluster."""
    return submission_id(job.id, job.attempt)


@contextmanager
def _refusal_logged(job: Job) -> Iterator[None]:
    """Somebody has deleted the run: to ask again would not help, and the job has to go on."""
    try:
        yield
    except Refused as error:
        log.warning("job %s: its run takes nothing more: %s", job.id, error)
