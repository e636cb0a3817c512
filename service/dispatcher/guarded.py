"""MLflow and the cluster as a scheduler may use them: only while it holds the lease.

What is left: a process that is suspended between the check and its request sends the request when it goes on,
however late. None of these requests does harm then:

- A run that is created twice: the row names one, because `set_run` is guarded by the lease, and whoever
  archives the job ends the other. If the job has been archived before the run was there, the one that was
  suspended ends it. Known limitation: it does not do so for the run of a sweep.
- A run's end status or a file that is written twice: the job has ended, so its status and its logs are the
  same whoever writes them.
- An order to an agent carries the scheduler's number, and the agent refuses it.
- A placement group that is created for a start: its name is the attempt's. Ray refuses the name if the
  successor has placed that attempt, and the successor frees a group without an active job.
- A placement group that is removed: its attempt's job has ended or moved on in the database before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from service.backends.cluster import Cluster, Launch, Node, Status
from service.backends.tracking import Results
from service.dispatcher.held_lease import HeldLease
from service.dispatcher.runs import END_STATUS
from service.errors import NotFound, Unavailable
from service.jobs.job import Run, State
from training.protocol import JOB_TAG, Point, Superseded


class GuardedResults:
    """The tracking server; each write first reads the lease. Implements `Results`.

    A write raises Superseded if another scheduler holds the lease.
    """

    def __init__(self, results: Results, lease: HeldLease) -> None:
        self._results, self._lease = results, lease

    def check(self) -> None:
        self._results.check()

    def url(self, run: Run) -> str:
        return self._results.url(run)

    def ensure_experiment(self, name: str) -> str:
        self._lease.check()
        return self._results.ensure_experiment(name)

    def ensure_run(
        self,
        *,
        job_id: str,
        name: str,
        experiment: str,
        tags: Mapping[str, str] | None = None,
        tag: str = JOB_TAG,
    ) -> Run:
        self._lease.check()
        run = self._results.ensure_run(job_id=job_id, name=name, experiment=experiment, tags=tags, tag=tag)
        try:
            with suppress(Unavailable):  # then nobody has taken over yet
                self._lease.check()
        except Superseded:
            if tag == JOB_TAG:
                self._end_if_late(job_id, run)
            raise
        return run

    def _end_if_late(self, job_id: str, run: Run) -> None:
        # Race closed: the successor archived a cancelled job before this run of it was there.
        try:
            job = self._lease.store.get(job_id)
            late = job.state.ended and job.run != run
        except NotFound:
            late = True
        if late:
            self._results.end(run, END_STATUS[State.CANCELLED])

    def open_runs(self, job_id: str, experiment_id: str, tag: str = JOB_TAG) -> list[Run]:
        return self._results.open_runs(job_id, experiment_id, tag)

    def names(self, run: Run) -> list[str]:
        return self._results.names(run)

    def history(self, run: Run, names: Iterable[str] | None = None) -> list[Point]:
        return self._results.history(run, names)

    def end(self, run: Run, status: str) -> None:
        self._lease.check()
        self._results.end(run, status)

    def reopen(self, run: Run) -> None:
        self._lease.check()
        self._results.reopen(run)

    def set_tag(self, run: Run, key: str, value: str) -> None:
        self._lease.check()
        self._results.set_tag(run, key, value)

    def delete(self, run: Run) -> None:
        self._lease.check()
        self._results.delete(run)

    def upload(self, run: Run, path: str, text: str) -> None:
        self._lease.check()
        self._results.upload(run, path, text)

    def upload_file(self, run: Run, path: str, file: Path) -> None:
        self._lease.check()
        self._results.upload_file(run, path, file)

    def download(self, run: Run, path: str) -> str | None:
        return self._results.download(run, path)


class GuardedCluster:
    """The cluster; each order first checks the age of this scheduler's last heartbeat. Implements `Cluster`.

    An order raises Unavailable while the lease is not renewed.
    """

    def __init__(self, cluster: Cluster, lease: HeldLease) -> None:
        self._cluster, self._lease = cluster, lease

    def nodes(self) -> list[Node]:
        return self._cluster.nodes()

    def attempts(self) -> Mapping[str, Status]:
        return self._cluster.attempts()

    def launch(self, launch: Launch) -> None:
        self._lease.check_beat()
        self._cluster.launch(launch)

    def stop(self, name: str, *, seconds: float) -> None:
        self._lease.check_beat()
        self._cluster.stop(name, seconds=seconds)

    def end(self, name: str) -> None:
        self._lease.check_beat()
        self._cluster.end(name)

    def release(self, name: str) -> None:
        self._lease.check_beat()
        self._cluster.release(name)

    def wait(self, seconds: float) -> None:
        self._cluster.wait(seconds)

    def wake(self) -> None:
        self._cluster.wake()
