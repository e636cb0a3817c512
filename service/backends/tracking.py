"""The tracking server's protocol: a run for each job and sweep, the history of its metrics, its artifacts.

`service.backends.mlflow.MlflowRest` is the real one, `service.backends.memory_tracking.FakeResults` is for
tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from service.jobs.job import Run
from training.protocol import JOB_TAG, Point


class Results(Protocol):
    """A tracking server as the service uses it.

    Every method that calls the server raises `Unavailable` if it does not answer, and `Refused` if it refuses
    the request.
    """

    def check(self) -> None:
        """Raises unless the server answers."""

    def url(self, run: Run) -> str:
        """Returns the URL of the run's page in a browser. Does not call the server."""

    def ensure_experiment(self, name: str) -> str:
        """Returns the id of the experiment; creates it if there is none. Idempotent."""

    def ensure_run(
        self,
        *,
        job_id: str,
        name: str,
        experiment: str,
        tags: Mapping[str, str] | None = None,
        tag: str = JOB_TAG,
    ) -> Run:
        """Returns the job's run; creates it with these tags if there is none. Idempotent.

        tag: the tag that holds the id; SWEEP_TAG for a sweep, whose id is then `job_id`.
        """

    def open_runs(self, job_id: str, experiment_id: str, tag: str = JOB_TAG) -> list[Run]:
        """Returns the job's runs in the experiment that are not ended, at most ten. tag: as above."""

    def names(self, run: Run) -> list[str]:
        """Returns the names of all metrics of the run, those of the machine and of single layers too."""

    def history(self, run: Run, names: Iterable[str] | None = None) -> list[Point]:
        """Returns all points of the named metrics, sorted by name and step.

        names: None means all metrics except those of the machine and of single layers (`is_detail`).
        """

    def end(self, run: Run, status: str) -> None:
        """Sets the run's end status: FINISHED, FAILED or KILLED."""

    def reopen(self, run: Run) -> None:
        """Sets the run's status to RUNNING, because its job goes on."""

    def set_tag(self, run: Run, key: str, value: str) -> None:
        """Sets a tag of the run. `ensure_run` does not find a run by an id that its tag no longer holds."""

    def delete(self, run: Run) -> None:
        """Deletes the run, in MLflow so that `mlflow gc` removes it. Idempotent."""

    def upload(self, run: Run, path: str, text: str) -> None:
        """Stores `text` as an artifact of the run, replacing what was at `path`."""

    def upload_file(self, run: Run, path: str, file: Path) -> None:
        """Does the same for a file of any size, without holding it in memory.

        Raises OSError, also if `file` is a symbolic link.
        """

    def download(self, run: Run, path: str) -> str | None:
        """Returns the artifact's text; None if there is none."""
