"""Takes jobs from the queue to their end: admit → launch → reconcile → finish.

The dispatcher keeps nothing in memory between two rounds. What is to happen is written to the database
before it is done, and what has happened is looked up, so it may die at any moment and start again. A server
that does not answer is not a job that failed: the round goes on without it, the next one asks again.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from service.errors import Refused, ServiceError, Unavailable
from service.jobs import ACTIVE, Job, State
from service.launch import Attempt, Cluster, Phase, Status, submission_id
from service.results import Results, Run
from service.scheduler import Start, schedule
from service.settings import Settings
from service.store import Store
from training.failures import Verdict, read_verdict, without_verdict

log = logging.getLogger(__name__)

TAIL_LINES = 30
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
        queue = self.store.queue()
        if not queue:
            return
        try:
            decisions = schedule(queue, self.store.active(), self.cluster.nodes())
        except Unavailable as error:
            for job in queue:
                self.store.note(job, f"waits: {error}")
            return
        jobs = {job.id: job for job in queue}
        for decision in decisions:
            job = jobs[decision.job_id]
            if isinstance(decision, Start):
                self._start(job, decision.workers)
            else:
                self.store.note(job, decision.reason)

    def _start(self, job: Job, workers: int) -> None:
        try:
            run = job.run or self._run_for(job)
        except (Unavailable, Refused) as error:
            self.store.note(job, f"waits: {error}")
            return
        reason = f"starting on {workers} worker{'s' if workers != 1 else ''}"
        if self.store.move(job, State.STARTING, attempt=job.attempt + 1, workers=workers, reason=reason):
            self._launch(replace(job, attempt=job.attempt + 1, workers=workers, state=State.STARTING), run)

    def _run_for(self, job: Job) -> Run:
        experiment = job.spec["tracking"]["experiment"]
        return self.results.ensure_run(job_id=job.id, name=job.name, experiment=experiment)

    def _launch(self, job: Job, run: Run) -> None:
        """Submits the attempt that the row names; harmless when it was submitted before."""
        if job.run is None:
            # Race closed: two dispatchers each made the job a run. The one that moved the row names its own.
            self.store.set_run(job.id, run.experiment_id, run.run_id)
        self.cluster.submit(self._attempt(job, run))
        # Race closed: while we were about to submit, another dispatcher saw a cancel and nothing to stop.
        now = self.store.get(job.id)
        if now.state not in ACTIVE or now.attempt != job.attempt:
            self.cluster.stop(submission_id(job.id, job.attempt))

    def _attempt(self, job: Job, run: Run) -> Attempt:
        assert job.workers is not None
        digest = job.spec.get("code")
        order = {
            "spec": job.spec,
            "workers": job.workers,
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
        training = self._training({job.id: job.run for job in active if job.run is not None})
        for job in active:
            try:
                self._reconcile(job, job.id in training)
            except ServiceError as error:
                log.warning("job %s: %s", job.id, error)
                if job.state is State.STARTING:
                    self.store.note(job, f"starting: {error}")
            except Exception:  # a bug that one job brings out must not hold up the others
                log.exception("job %s", job.id)

    def _training(self, runs: dict[str, Run]) -> set[str]:
        """The jobs that have made a step."""
        try:
            summaries = self.results.summaries(runs.values())
        except Exception as error:  # what MLflow says is for show: no job may hang on it
            log.warning("%s", error)
            return set()
        made = {run_id for run_id, summary in summaries.items() if summary.progress is not None}
        return {job_id for job_id, run in runs.items() if run.run_id in made}

    def _reconcile(self, job: Job, is_training: bool) -> None:
        name = submission_id(job.id, job.attempt)
        status = self.cluster.status(name)
        if status is not None and status.ended:
            self._ended(job, status)
        elif job.cancel_requested_at is not None:
            if status is None:
                self.store.move(job, State.CANCELLED, reason="cancelled before it started")
            else:
                self.cluster.stop(name)  # again in every round: Ray forgets a stop that comes too early
        elif status is None:
            # Never submitted (we died before we could) or lost with the head: one id, so one launch.
            self._launch(job, job.run or self._run_for(job))
        elif job.state is State.STARTING and status.phase is Phase.RUNNING and is_training:
            self.store.move(job, State.RUNNING)

    def _ended(self, job: Job, status: Status) -> None:
        if status.phase is Phase.SUCCEEDED:
            self.store.move(job, State.SUCCEEDED)
        elif self.store.get(job.id).cancel_requested_at is not None:
            # Race closed: another dispatcher stopped it for a cancel that is younger than our look.
            self.store.move(job, State.CANCELLED, reason="cancelled while it ran")
        else:
            self._failed(job, status)

    def _failed(self, job: Job, status: Status) -> None:
        output = self.cluster.logs(submission_id(job.id, job.attempt))
        verdict = _verdict(output)
        if verdict is None and job.failures < job.spec["retries"]:
            self._archive_log(job)
            lost = job.failures + 1
            reason = (
                f"attempt {job.attempt} was lost; retry {lost} of {job.spec['retries']} from its checkpoint"
            )
            self.store.move(job, State.QUEUED, failures=lost, reason=reason)
            return
        verdict = verdict or _no_verdict(status)
        tail = _tail(output)
        error = {key: verdict[key] for key in ("type", "message", "rank")} | {"log_tail": tail}
        where = "" if verdict["rank"] is None else f" on rank {verdict['rank']}"
        reason = f"{verdict['type']}{where}: {verdict['message']}\n\nlast lines of the log:\n{tail}"
        self.store.move(job, State.FAILED, reason=reason, error=error)

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
        output = self.cluster.logs(submission_id(job.id, job.attempt))
        if output and job.run is not None:
            with _refusal_logged(job):
                self.results.upload(job.run, f"logs/attempt-{job.attempt}.log", without_verdict(output))

    def _end_run(self, job: Job) -> None:
        if job.run is not None:
            with _refusal_logged(job):
                self.results.end(job.run, RUN_STATUS[job.state])


@contextmanager
def _refusal_logged(job: Job) -> Iterator[None]:
    """Somebody has deleted the run: to ask again would not help, and the job has to go on."""
    try:
        yield
    except Refused as error:
        log.warning("job %s: its run takes nothing more: %s", job.id, error)


def _verdict(output: str) -> Verdict | None:
    """None also for what only looks like one: a log may be torn, and users' code prints what it likes."""
    try:
        verdict = read_verdict(output)
    except ValueError:
        return None
    return verdict if isinstance(verdict, dict) and verdict.keys() >= Verdict.__required_keys__ else None


def _no_verdict(status: Status) -> Verdict:
    said = status.message.partition("\n")[0][:200]
    message = f"the attempt's driver ended without a word and no retries are left. {said}".rstrip()
    return {"type": "AttemptLost", "message": message, "rank": None}


def _tail(output: str) -> str:
    """The last lines before the verdict; what comes after it are Ray's farewells."""
    said, _, _ = f"\n{output}".partition("\nsyncbn-verdict ")
    return "\n".join(said.strip("\n").rstrip().splitlines()[-TAIL_LINES:])
