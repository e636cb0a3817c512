"""A tracking server in memory, for tests.

The contract tests run against this one and the real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from service.errors import Refused, Unavailable
from service.jobs.job import Run
from service.log_files import open_log
from training.metric_names import is_detail
from training.protocol import JOB_TAG, SWEEP_TAG, Point

_ENDINGS = {"FINISHED", "FAILED", "KILLED"}


class FakeResults:
    """A tracking server in memory. `jobs`, `points`, `endings`, `artifacts`, `tags` are keyed by run id.

    deleted: the ids of deleted runs.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.points: dict[str, list[Point]] = {}
        self.endings: dict[str, str] = {}
        self.artifacts: dict[str, dict[str, str]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.deleted: set[str] = set()
        self.unreachable = False
        self._runs: dict[str, Run] = {}
        self.deleted_experiments: set[str] = set()
        self._experiments: dict[str, str] = {}

    # Called by tests

    def log(self, run: Run, name: str, step: int, value: float) -> None:
        """Adds a point of a metric."""
        points = self.points[run.run_id]
        points.append(Point(name=name, step=step, value=value, timestamp=1_700_000_000_000 + len(points)))

    # The protocol

    def check(self) -> None:
        self._answer()

    def url(self, run: Run) -> str:
        return f"http://mlflow.invalid/#/experiments/{run.experiment_id}/runs/{run.run_id}"

    def ensure_experiment(self, name: str) -> str:
        self._answer()
        experiment_id = self._experiments.setdefault(name, str(len(self._experiments) + 1))
        if experiment_id in self.deleted_experiments:
            raise Refused(f"MLflow's experiment {name!r} is deleted")
        return experiment_id

    def ensure_run(
        self,
        *,
        job_id: str,
        name: str,  # noqa: ARG002
        experiment: str,
        tags: Mapping[str, str] | None = None,
        tag: str = JOB_TAG,  # noqa: ARG002
    ) -> Run:
        self._answer()
        if job_id not in self._runs:
            self.tags[self._new_run(job_id, experiment).run_id] = dict(tags or {})
        return self._runs[job_id]

    def _new_run(self, job_id: str, experiment: str) -> Run:
        experiment_id = self.ensure_experiment(experiment)
        run = Run(experiment_id=experiment_id, run_id=f"run-{len(self.jobs) + 1}")
        self._runs[job_id] = run
        self.jobs[run.run_id] = job_id
        self.points[run.run_id] = []
        self.artifacts[run.run_id] = {}
        return run

    def open_runs(self, job_id: str, experiment_id: str, tag: str = JOB_TAG) -> list[Run]:  # noqa: ARG002
        self._answer()
        return [
            Run(experiment_id=experiment_id, run_id=run_id)
            for run_id, of in self.jobs.items()
            if of == job_id and run_id not in self.endings
        ]

    def names(self, run: Run) -> list[str]:
        self._known(run)
        return sorted({point.name for point in self.points[run.run_id]})

    def history(self, run: Run, names: Iterable[str] | None = None) -> list[Point]:
        self._known(run)
        wanted = None if names is None else set(names)
        return sorted(
            (point for point in self.points[run.run_id] if _is_wanted(point.name, wanted)),
            key=lambda point: (point.name, point.step),
        )

    def end(self, run: Run, status: str) -> None:
        self._changeable(run)
        assert status in _ENDINGS, status
        self.endings[run.run_id] = status

    def reopen(self, run: Run) -> None:
        self._changeable(run)
        self.endings.pop(run.run_id, None)

    def set_tag(self, run: Run, key: str, value: str) -> None:
        self._changeable(run)
        self.tags.setdefault(run.run_id, {})[key] = value
        if key in {JOB_TAG, SWEEP_TAG}:
            self._forget(run)
            self._runs[value], self.jobs[run.run_id] = run, value

    def delete(self, run: Run) -> None:
        self._known(run)
        self.deleted.add(run.run_id)
        self._forget(run)

    def _forget(self, run: Run) -> None:
        """`ensure_run` does not find it any more."""
        self._runs = {job_id: known for job_id, known in self._runs.items() if known != run}

    def upload(self, run: Run, path: str, text: str) -> None:
        self._known(run)
        self.artifacts[run.run_id][path] = text.encode(errors="replace").decode()

    def upload_file(self, run: Run, path: str, file: Path) -> None:
        with open_log(file) as content:
            self.upload(run, path, content.read().decode(errors="replace"))

    def download(self, run: Run, path: str) -> str | None:
        self._known(run)
        return self.artifacts[run.run_id].get(path)

    def _known(self, run: Run) -> None:
        self._answer()
        if run.run_id not in self.jobs:
            raise Refused(f"MLflow knows no run {run.run_id!r}")

    def _changeable(self, run: Run) -> None:
        self._known(run)
        if run.run_id in self.deleted:
            raise Refused(f"MLflow's run {run.run_id!r} is deleted")

    def _answer(self) -> None:
        if self.unreachable:
            raise Unavailable("MLflow", "the test made it so")


def _is_wanted(name: str, wanted: set[str] | None) -> bool:
    return not is_detail(name) if wanted is None else name in wanted
