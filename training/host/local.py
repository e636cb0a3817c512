"""`syncbn train` and `verify`: specs on this machine, without the service: a host agent in this process."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from training.errors import BuildError, RunFailed, TrainingError
from training.host.agent import HostAgent
from training.host.environment import of_the_user
from training.host.own_folder import own_folder
from training.protocol import (
    ExitRecord,
    Failure,
    Order,
    RankAssignment,
    attempt_name,
    cause,
    finished,
    is_final,
    log_file,
)
from training.reserved import hiding_in_folder
from training.spec import Spec

RESULTS = ("metrics.jsonl", "model.pt", "curves.png", "norm_noise.png")
_POLL_SECONDS = 0.2  # of the log, while ranks print
_NAME = "local"


def train_locally(spec: Spec, *, code: Path | None, output: Path) -> int:
    """Runs `spec` and writes `output`/metrics.jsonl, model.pt and figures; blocks until the end.

    `code`: a folder whose modules class paths may name. With MLFLOW_TRACKING_URI set, the run is tracked
    there too. Prints what happens; returns the exit code: 0, 1 when the training failed, 2 when it could not
    begin.
    """
    try:
        workers = _workers_that_fit(spec)
        folder = code_folder(code)
        output = fresh(output)
        with LocalHost(folder) as machine, _mlflow_run(spec) as (uri, run_id):
            machine.run(spec, workers=workers, output=output, mlflow_uri=uri, run_id=run_id)
    except BuildError as error:
        return _complain(error, output, 2)
    except TrainingError as error:
        return _complain(error, output, 1)
    _say(f"done: {', '.join(str(output / name) for name in RESULTS if (output / name).exists())}")
    return 0


@dataclass(kw_only=True)
class _Run:
    """What of a run outlives its starts."""

    retries: int
    before: Failure | None = None
    restarts: list[str] = field(default_factory=list)

    def restart(self, exits: tuple[ExitRecord, ...]) -> str:
        """What is said of another start. Raises RunFailed where there is to be none."""
        failure = cause(exits)
        if failure is None:
            raise RunFailed(_without_a_word(exits), "")
        again = is_final(failure, self.before)
        if again is not None:
            raise RunFailed(failure, again)
        if len(self.restarts) == self.retries:
            raise RunFailed(failure, f"retries: {self.retries} are used up" if self.retries else "")
        self.before = Failure.of(failure)
        self.restarts.append(failure.headline)
        used = f"{len(self.restarts)} of {self.retries} retries used"
        return f"{failure.headline}\nstarting again from the last checkpoint ({used})"


class LocalHost:
    """This machine, for runs one after the other; use it as a context, which leaves nothing behind.

    code: a folder that comes first on the path of ranks, and in which they work.
    """

    def __init__(self, code: Path | None) -> None:
        self._code = code
        self._agent = HostAgent(own_folder(), environment=of_the_user(os.environ), on_cluster=False)
        self._runs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._agent.close()

    def run(
        self,
        spec: Spec,
        *,
        workers: int,
        output: Path,
        mlflow_uri: str | None = None,
        run_id: str | None = None,
        curves_only: bool = False,
        last_bit: bool = False,
        retries: int | None = None,
        show: bool = True,
    ) -> None:
        """Blocks until the run has come to its end; what fails is started again from the last checkpoint.

        show: prints what rank 0 prints. Raises RunFailed.
        """
        self._runs += 1
        run = _Run(retries=spec.retries if retries is None else retries)
        order = Order(
            attempt=attempt_name(_NAME, self._runs),
            spec=spec.model_dump(mode="json"),
            ranks=_assignments(workers, spec.resources.gpus_per_worker),
            world_size=workers,
            folder=str(output / "run"),
            code_folder=str(self._code or Path.cwd()),
            mlflow_uri=mlflow_uri,
            run_id=run_id,
            output=str(output),
            curves_only=curves_only,
            last_bit=last_bit,
        )
        with _shown(log_file(order.folder, order.number, 0), show=show):
            while True:
                exits = self._start(order, start=len(run.restarts) + 1, restarts=tuple(run.restarts))
                if finished(exits, workers):
                    return
                said = run.restart(exits)
                if show:
                    _say(said)

    def _start(self, order: Order, *, start: int, restarts: tuple[str, ...]) -> tuple[ExitRecord, ...]:
        self._agent.launch(replace(order, start=start, restarts=restarts))
        seen = -1
        try:
            while True:
                news = self._agent.news(seen, 10.0)
                seen = news.version
                (status,) = (each for each in news.starts if each.attempt == order.attempt)
                if status.start == start and status.ended:
                    return status.exits
        finally:
            self._agent.end(order.attempt)


def _assignments(workers: int, gpus_per_worker: float) -> tuple[RankAssignment, ...]:
    """Each rank with GPUs of its own; fractions share them in order."""
    assignments = []
    for rank in range(workers):
        first = int(rank * gpus_per_worker + 1e-9)
        count = max(int(gpus_per_worker), 1) if gpus_per_worker else 0
        gpus = tuple(str(first + number) for number in range(count))
        assignments.append(RankAssignment(rank=rank, local_rank=rank, node_rank=0, gpus=gpus))
    return tuple(assignments)


def _without_a_word(exits: tuple[ExitRecord, ...]) -> ExitRecord:
    return exits[0]


@contextlib.contextmanager
def _shown(log: Path, *, show: bool) -> Iterator[None]:
    """Prints what is appended to a log until the context ends, all of it."""
    if not show:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_follow, args=(log, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _follow(log: Path, over: threading.Event) -> None:
    offset = 0
    while True:
        ended = over.wait(_POLL_SECONDS)
        with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
            file.seek(offset)
            while block := file.read(2**16):
                offset += len(block)
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
        if ended:
            return


def _workers_that_fit(spec: Spec) -> int:
    resources = spec.resources
    cpus = usable_cpus()
    fit = int(cpus / resources.cpus_per_worker + 1e-9)
    if fit < resources.min_workers:
        need = resources.min_workers * resources.cpus_per_worker
        raise BuildError(
            "resources.workers",
            f"{resources.min_workers} workers of {resources.cpus_per_worker:g} CPU need {need:g} CPUs, this "
            f"machine has {cpus}; ask for fewer workers, or for a fraction in resources.cpus_per_worker",
        )
    return min(fit, resources.max_workers)


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def code_folder(code: Path | None) -> Path | None:
    """The folder, if its modules may come before all others. Raises BuildError."""
    if code is None:
        return None
    if not code.is_dir():
        raise BuildError("--code", f"{code} is not a folder")
    for name, why in hiding_in_folder(code).items():
        raise BuildError("--code", f"{code / name} {why}")
    return code.resolve()


def fresh(output: Path) -> Path:
    """The output folder without what an earlier run left in it."""
    output.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / "run", ignore_errors=True)
    return output.resolve()


@contextlib.contextmanager
def _mlflow_run(spec: Spec) -> Iterator[tuple[str | None, str | None]]:
    """A new run where MLFLOW_TRACKING_URI says, ended with the status that the context ends with."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        yield None, None
        return
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(spec.tracking.experiment)
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment(spec.tracking.experiment)
    )
    run_id = client.create_run(experiment_id, run_name=spec.name).info.run_id
    status = "FAILED"
    try:
        yield uri, run_id
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, status)


def _complain(error: TrainingError, output: Path, code: int) -> int:
    if isinstance(error, RunFailed) and error.record.rank:  # rank 0's log has been shown
        rank = error.record.rank
        log = log_file(output / "run", 1, rank)
        print(f"the end of rank {rank}'s log, {log}:", file=sys.stderr)  # noqa: T201
        print(error.record.log_tail.rstrip("\n") or "(empty)", file=sys.stderr)  # noqa: T201
    print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    return code


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
