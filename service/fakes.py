"""A cluster and a tracking server in memory, for tests: what the real ones promise, without their weight.

The contract tests run over these and the real ones alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.errors import Refused, Unavailable
from service.launch import Attempt, Node, Phase, Status
from service.results import Point, Progress, Run, Summary, is_detail

_ENDINGS = {"FINISHED", "FAILED", "KILLED"}


class FakeCluster:
    """A cluster whose attempts do what the test says: `attempts`, `statuses`, `printed` by submission id."""

    def __init__(self, nodes: Sequence[Node] | None = None) -> None:
        one = Node(id="node-1", address="127.0.0.1", cpus=4, gpus=0)
        self.machines = [one] if nodes is None else list(nodes)
        self.attempts: dict[str, Attempt] = {}
        self.statuses: dict[str, Status] = {}
        self.printed: dict[str, str] = {}
        self.stopped: list[str] = []
        self.unreachable = False

    # What a test does to it

    def set_phase(self, submission_id: str, phase: Phase, message: str = "") -> None:
        self.statuses[submission_id] = Status(phase=phase, message=message)

    def print(self, submission_id: str, text: str) -> None:
        self.printed[submission_id] = self.printed.get(submission_id, "") + text

    def lose(self, submission_id: str) -> None:
        """The head was lost, and with it all that it knew of the attempt."""
        for known in (self.attempts, self.statuses, self.printed):
            known.pop(submission_id, None)

    # The protocol

    def submit(self, attempt: Attempt) -> None:
        self._answer()
        self.attempts.setdefault(attempt.submission_id, attempt)
        self.statuses.setdefault(attempt.submission_id, Status(phase=Phase.PENDING))

    def status(self, submission_id: str) -> Status | None:
        self._answer()
        return self.statuses.get(submission_id)

    def stop(self, submission_id: str) -> None:
        self._answer()
        self.stopped.append(submission_id)
        status = self.statuses.get(submission_id)
        if status and not status.ended:
            self.set_phase(submission_id, Phase.STOPPED)

    def logs(self, submission_id: str) -> str:
        self._answer()
        return self.printed.get(submission_id, "")

    def nodes(self) -> list[Node]:
        self._answer()
        return list(self.machines)

    def _answer(self) -> None:
        if self.unreachable:
            raise Unavailable("Ray", "the test made it so")


class FakeResults:
    """A tracking server in memory: `jobs`, `points`, `endings`, `artifacts` by run id."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.points: dict[str, list[Point]] = {}
        self.progress: dict[str, Progress] = {}
        self.endings: dict[str, str] = {}
        self.artifacts: dict[str, dict[str, str]] = {}
        self.unreachable = False
        self._runs: dict[str, Run] = {}
        self.deleted_experiments: set[str] = set()
        self._experiments: dict[str, str] = {}

    # What a test does to it

    def log(self, run: Run, name: str, step: int, value: float) -> None:
        points = self.points[run.run_id]
        points.append(Point(name=name, step=step, value=value, timestamp=1_700_000_000_000 + len(points)))

    # The protocol

    def check(self) -> None:
        self._answer()

    def url(self, run: Run) -> str:
        return f"http://mlflow.invalid/#/experiments/{run.experiment_id}/runs/{run.run_id}"

    def ensure_run(self, *, job_id: str, name: str, experiment: str) -> Run:  # noqa: ARG002
        self._answer()
        return self._runs.get(job_id) or self._new_run(job_id, experiment)

    def _new_run(self, job_id: str, experiment: str) -> Run:
        experiment_id = self._experiments.setdefault(experiment, str(len(self._experiments) + 1))
        if experiment_id in self.deleted_experiments:
            raise Refused(f"MLflow's experiment {experiment!r} is deleted")
        run = Run(experiment_id=experiment_id, run_id=f"run-{len(self.jobs) + 1}")
        self._runs[job_id] = run
        self.jobs[run.run_id] = job_id
        self.points[run.run_id] = []
        self.artifacts[run.run_id] = {}
        return run

    def summaries(self, runs: Iterable[Run]) -> dict[str, Summary]:
        self._answer()
        return {run.run_id: self._summary(run) for run in runs if run.run_id in self.jobs}

    def _summary(self, run: Run) -> Summary:
        ordered = sorted(self.points[run.run_id], key=lambda point: point.step)
        metrics = {point.name: point.value for point in ordered if _is_wanted(point.name, None)}
        return Summary(progress=self.progress.get(run.run_id), metrics=metrics)

    def history(self, run: Run, names: Iterable[str] | None = None) -> list[Point]:
        self._known(run)
        wanted = None if names is None else set(names)
        return sorted(
            (point for point in self.points[run.run_id] if _is_wanted(point.name, wanted)),
            key=lambda point: (point.name, point.step),
        )

    def end(self, run: Run, status: str) -> None:
        self._known(run)
        assert status in _ENDINGS, status
        self.endings[run.run_id] = status

    def upload(self, run: Run, path: str, text: str) -> None:
        self._known(run)
        self.artifacts[run.run_id][path] = text.encode(errors="replace").decode()

    def download(self, run: Run, path: str) -> str | None:
        self._known(run)
        return self.artifacts[run.run_id].get(path)

    def _known(self, run: Run) -> None:
        self._answer()
        if run.run_id not in self.jobs:
            raise Refused(f"MLflow knows no run {run.run_id!r}")

    def _answer(self) -> None:
        if self.unreachable:
            raise Unavailable("MLflow", "the test made it so")


def _is_wanted(name: str, wanted: set[str] | None) -> bool:
    return not is_detail(name) if wanted is None else name in wanted
