"""Smoke test of the cluster that `make cluster-up` starts: runs jobs and takes parts of the cluster away.

    make cluster-smoke     SYNCBN_URL, SYNCBN_API_KEY, MLFLOW_URL, COMPOSE from the environment

Runs one spec five times through the published API: undisturbed, with a worker's container killed, and with
the scheduler's, the API's and the database's container restarted. All runs must end with the same losses, bit
for bit. Prints a table; the exit code is 0 if every check passes.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from service.client import Client, Job, RequestError, ServerUnreachable

WORKERS = 2
SPEC: dict[str, Any] = {
    "name": "smoke",
    "model": {"class_path": "training.models.ConvNet", "init_args": {"widths": [16, 32]}},
    "data": {"class_path": "training.data.Digits"},
    "training": {"global_batch_size": 64, "max_steps": 400, "checkpoint": {"every_steps": 20}},
    "resources": {"workers": WORKERS, "cpus_per_worker": 1},
    "retries": 5,
    "tracking": {"experiment": "smoke"},
}

SERVICES = {"the scheduler": "scheduler", "the API": "api", "the database": "postgres"}

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check."""

    what: str
    found: str
    good: bool
    seconds: float


@dataclass(kw_only=True)
class Smoke:
    """The checks.

    kill_worker: kills the container or process that runs one of the ranks. restart: restarts a service. Both
    block until that is done. disturb_at: first step of a job at which they are called. seconds: timeout of
    each wait.
    """

    client: Client
    mlflow_url: str
    kill_worker: Callable[[], object]
    restart: Callable[[str], object]
    spec: Mapping[str, Any] = field(default_factory=SPEC.copy)
    disturb_at: int = 60
    seconds: float = 600.0
    checks: list[Check] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every check so far has passed."""
        return all(check.good for check in self.checks)

    def run(self) -> None:
        """Runs all checks; continues after a failed one."""
        self.ask_without_key()
        first = self.undisturbed()
        others = [self.killed(), *(self.restarted(what, name) for what, name in SERVICES.items())]
        if first is not None:
            self.compare(first, filter(None, others))

    def ask_without_key(self) -> None:
        self._check("a request without a key", self._refused_without_key)

    def undisturbed(self) -> Job | None:
        """Runs the spec and checks its ranks' logs, its MLflow run and its model."""
        job = self._job("a job on two workers")
        if job is not None:
            self._check("  each in its own container", lambda: self._places(job))
            self._check("  its run in MLflow", lambda: self._run_in_mlflow(job))
            self._check("  its model, loaded from there", lambda: self._model_in_mlflow(job))
        return job

    def killed(self) -> Job | None:
        """Runs the spec, kills a worker, and checks that the job continues from a checkpoint."""
        job = self._job("a worker's container is killed", self.kill_worker)
        if job is not None:
            self._check("  the job continues from a checkpoint", lambda: self._resumed(job))
        return job

    def restarted(self, what: str, name: str) -> Job | None:
        """Runs the spec, restarts the service `name`, and checks that training was not interrupted."""
        job = self._job(f"{what} is restarted", partial(self.restart, name))
        if job is not None:
            self._check("  the job keeps training", lambda: self._trained_on(job))
        return job

    def compare(self, first: Job, others: Iterable[Job]) -> None:
        """Checks that the losses of `others` are bitwise equal to those of `first`."""
        for job in others:
            self._check(f"  losses of {job.id}", partial(self._same_losses, first, job))

    def table(self) -> Table:
        """Returns the results as a table."""
        table = Table("CHECK", "", "FOUND", "S", box=None)
        for check in self.checks:
            table.add_row(check.what, "ok" if check.good else "FAILED", check.found, f"{check.seconds:.0f}")
        return table

    def _check(self, what: str, look: Callable[[], str]) -> None:
        begun, good = time.monotonic(), True
        print(f"{what} …", flush=True)
        try:
            found = look()
        except Exception as error:
            found, good = f"{type(error).__name__}: {error}", False
        print(f"    {found}", flush=True)
        self.checks.append(Check(what=what, found=found, good=good, seconds=time.monotonic() - begun))

    def _job(self, what: str, disturb: Callable[[], object] | None = None) -> Job | None:
        """Submits the spec, calls `disturb` during training and waits. Returns None unless it succeeded."""
        done: list[Job] = []

        def follow() -> str:
            job = self.client.submit(self.spec)
            if disturb is not None:
                step = self._disturbed(job, disturb)
            job = self.client.wait(job.id, timeout=self.seconds)
            _expect(job.state == "succeeded", f"{job.id} {job.state}: {job.reason}")
            done.append(job)
            return f"{job.id} succeeded" + (f"; disturbed at step {step}" if disturb else "")

        self._check(what, follow)
        return done[0] if done else None

    def _disturbed(self, job: Job, disturb: Callable[[], object]) -> int:
        def step() -> int:
            seen = self.client.job(job.id)
            _expect(not seen.ended, f"{job.id} {seen.state} before it could be disturbed: {seen.reason}")
            reached = seen.progress.step if seen.progress else 0
            return reached if reached >= self.disturb_at else 0

        reached = self._until(step, f"{job.id} did not reach step {self.disturb_at}")
        disturb()
        self._until(self._is_ready, "not ready after a part of the cluster was taken away")
        return reached

    def _is_ready(self) -> bool:
        with suppress(ServerUnreachable):
            return self.client.ready()
        return False

    def _until(self, look: Callable[[], Found], otherwise: str) -> Found:
        """Polls `look` until its result is true, and returns it. Raises TimeoutError after `seconds`."""
        deadline = time.monotonic() + self.seconds
        while not (found := look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{otherwise}, in {self.seconds:g} s")
            time.sleep(0.5)
        return found

    def _refused_without_key(self) -> str:
        with Client(self.client.url) as anonymous:
            try:
                list(anonymous.jobs(limit=1))
            except RequestError as error:
                _expect(error.status == 401, f"HTTP {error.status}: {error}")
                return "refused"
        raise AssertionError(f"{self.client.url} lists its jobs without a key")

    def _places(self, job: Job) -> str:
        """Reads each rank's host and address from the first line of its log."""
        found = []
        for rank in range(WORKERS):
            log = self.client.logs(job.id, rank=rank)
            where = re.search(rf"^rank {rank} of {WORKERS} on (\S+) \((\S+)\)$", log, re.MULTILINE)
            _expect(where is not None, f"the log of rank {rank} begins with {log.partition(chr(10))[0]!r}")
            assert where is not None
            found.append((where[1], where[2]))
        hosts, addresses = zip(*found, strict=True)
        _expect(len(set(hosts)) == len(set(addresses)) == WORKERS, f"hosts: {hosts}, addresses: {addresses}")
        return " and ".join(addresses)

    def _resumed(self, job: Job) -> str:
        steps = self._checkpoints(job)
        _expect(bool(steps) and steps[-1] > 0, "its log mentions no checkpoint")
        return f"of step {steps[-1]}"

    def _trained_on(self, job: Job) -> str:
        _expect(job.attempt == 1, f"it took {job.attempt} attempts")
        _expect(not self._checkpoints(job), "its log says that it continued from a checkpoint")
        return "in its first attempt, without a restart"

    def _checkpoints(self, job: Job) -> list[int]:
        """Returns the steps of the checkpoints from which the job's starts continued."""
        found = re.findall(r"going on from the checkpoint of step (\d+)", self.client.logs(job.id, rank=0))
        return [int(step) for step in found]

    def _same_losses(self, first: Job, other: Job) -> str:
        expected, found = (
            [(point.step, point.value) for point in self.client.metrics(job.id, ["train_loss"])]
            for job in (first, other)
        )
        steps = self.spec["training"]["max_steps"]
        _expect([step for step, _ in found] == list(range(1, steps + 1)), "not every step once")
        differ = [step for (step, loss), (_, before) in zip(found, expected, strict=True) if loss != before]
        _expect(not differ, f"differ from {first.id} at steps {differ[:5]}")
        return f"{steps} steps, each once, equal to the last bit"

    def _run_in_mlflow(self, job: Job) -> str:
        run_id = _run_id(job)
        with self._mlflow() as mlflow:
            run = mlflow.get_run(run_id)
            _expect(run.info.status == "FINISHED", run.info.status)
            names = [file.path for file in mlflow.list_artifacts(run_id)]
            _expect("curves.png" in names, f"artifacts: {names}")
            return f"{run.info.status}; {', '.join(names)}"

    def _model_in_mlflow(self, job: Job) -> str:
        """Loads the model and tests it here; its accuracy must equal the run's `test_accuracy`."""
        run_id = _run_id(job)
        import torch
        from torch.utils.data import DataLoader

        from training.data import Digits

        with self._mlflow():
            from mlflow.pytorch import load_model

            model = load_model(f"runs:/{run_id}/model").eval()
        data = Digits()
        data.setup("test")
        images, labels = next(iter(DataLoader(data.test, batch_size=1000)))
        with torch.no_grad():
            accuracy = float((model(images).argmax(1) == labels).double().mean())
        logged = job.metrics["test_accuracy"]
        _expect(
            logged is not None and abs(accuracy - logged) < 1e-6,
            f"accuracy {accuracy}; the run says {logged}",
        )
        return f"test accuracy {accuracy:.4f}, as the run says"

    @contextmanager
    def _mlflow(self) -> Iterator[Any]:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        mlflow.set_tracking_uri(self.mlflow_url)
        yield mlflow.MlflowClient(self.mlflow_url)


class Compose:
    """The containers of a project, controlled through Compose's command line."""

    def __init__(self, command: str) -> None:
        self.command = shlex.split(command)

    def kill_worker(self) -> None:
        """Kills the first worker's container with SIGKILL and starts it again."""
        containers = self._run(*self.command, "ps", "-q", "ray-worker").split()
        _expect(bool(containers), "no container of ray-worker")
        self._run("docker", "kill", containers[0])
        # Docker's restart policy does not apply to a container killed by hand, so start it again here.
        self._run("docker", "start", containers[0])

    def restart(self, service: str) -> None:
        """Restarts a service's container."""
        self._run(*self.command, "restart", service)

    def _run(self, *words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        _expect(done.returncode == 0, f"{shlex.join(words)}: {done.stderr.strip()}")
        return done.stdout


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def _run_id(job: Job) -> str:
    _expect(job.mlflow is not None, "the job has no run")
    assert job.mlflow is not None
    return job.mlflow.run_id


def main() -> int:
    """Runs the checks against the cluster that the environment names; returns the exit code."""
    compose = Compose(os.environ.get("COMPOSE", "docker compose"))
    url = os.environ.get("SYNCBN_URL") or f"http://127.0.0.1:{os.environ.get('PORT', '8000')}"
    mlflow_url = os.environ.get("MLFLOW_URL") or f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}"
    with Client(url, os.environ["SYNCBN_API_KEY"]) as client:
        smoke = Smoke(
            client=client, mlflow_url=mlflow_url, kill_worker=compose.kill_worker, restart=compose.restart
        )
        smoke.run()
    Console(width=None if sys.stdout.isatty() else 150).print(smoke.table())
    return 0 if smoke.good else 1


if __name__ == "__main__":
    sys.exit(main())
