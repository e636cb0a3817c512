"""Runs specs on this machine without the service, with a host agent in this process.

`syncbn train` and `syncbn verify` use it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Self

import psutil

from training.errors import BuildError, RunFailed, TrainingError
from training.host.agent import HostAgent
from training.host.environment import user_variables
from training.host.own_folder import own_folder
from training.host.sources import check_kept, checkpoint_source
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
from training.spec import Spec, shown_memory
from training.spec.environment import secret_problem
from training.tracking.run_tags import source_tags

RESULTS = ("metrics.jsonl", "model.pt", "curves.png", "norm_noise.png")
_POLL_SECONDS = 0.2  # between reads of the log
_NAME = "local"


def train_locally(spec: Spec, *, code: Path | None, output: Path) -> int:
    """Runs `spec` and writes metrics.jsonl, model.pt and figures to `output`. Blocks until the end.

    code: a folder with modules for the spec's class paths. If MLFLOW_TRACKING_URI is set, also tracks the run
    there. Prints progress and errors. Returns the exit code: 0, 1 if the training failed, 2 if it could not
    start.
    """
    try:
        workers = _workers_that_fit(spec)
        own_secrets(spec)
        folder = code_folder(code)
        check_kept(checkpoint_source(spec), output)
        output = prepare_output(output)
        with LocalHost(folder) as machine, _mlflow_run(spec) as (uri, run_id):
            machine.run(spec, workers=workers, output=output, mlflow_uri=uri, run_id=run_id)
    except BuildError as error:
        return _print_error(error, output, 2)
    except TrainingError as error:
        return _print_error(error, output, 1)
    made = [output / name for name in RESULTS if (output / name).exists()]
    _print(f"done: {', '.join(map(str, made))}" if made else "done")
    return 0


@dataclass(kw_only=True)
class _Run:
    """The retries of a run: their limit, the last failure and the reasons so far."""

    retries: int
    before: Failure | None = None
    restarts: list[str] = field(default_factory=list)

    def restart(self, exits: tuple[ExitRecord, ...]) -> str:
        """Counts a restart and returns the text to print. Raises RunFailed if the run must not restart."""
        failure = cause(exits)
        if failure is None:
            raise RunFailed(exits[0], "")
        final = is_final(failure, self.before)
        if final is not None:
            raise RunFailed(failure, final)
        if len(self.restarts) == self.retries:
            raise RunFailed(failure, f"no retries left ({self.retries} used)" if self.retries else "")
        self.before = Failure.of(failure)
        self.restarts.append(failure.headline)
        used = f"{len(self.restarts)} of {self.retries} retries used"
        where = " from the last checkpoint" * failure.counts_steps
        return f"{failure.headline}\nstarting again{where} ({used})"


class LocalHost:
    """Runs specs on this machine, one after another. A context manager: on exit no process is left.

    code: the working directory of the ranks and first entry of their import path; None: the current one.
    """

    def __init__(self, code: Path | None) -> None:
        self._code = code
        self._agent = HostAgent(own_folder(), environment=user_variables(os.environ), on_cluster=False)
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
    ) -> str | None:
        """Runs `spec` and blocks until it has finished. After a failure restarts from the last checkpoint.

        workers: the number of ranks. output: the folder for results; run files go to `output`/run.
        curves_only, last_bit: see Order. retries: None: those of the spec. show: print the output of rank 0.
        Returns the SHA-256 of the delivered weights (`training.model.weights`); None if there is none. Raises
        RunFailed if the run fails for good.
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
            start_from=checkpoint_source(spec),
            curves_only=curves_only,
            last_bit=last_bit,
            seconds_left=spec.time_limit.run,
            variables=spec.environment.variables,
            secrets=own_secrets(spec),
        )
        with _printing(log_file(order.folder, order.number, 0), show=show):
            while True:
                began = monotonic()
                exits = self._start(order, start=len(run.restarts) + 1, restarts=tuple(run.restarts))
                if finished(exits, workers):
                    return next(each.weights_sha256 for each in exits if each.rank == 0)
                reason = run.restart(exits)
                if order.seconds_left is not None:
                    left = order.seconds_left - (monotonic() - began)
                    order = replace(order, seconds_left=max(left, 1.0))
                if show:
                    _print(reason)

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
    """Returns an assignment for each rank, with its own GPUs; with a fraction, ranks share them in order."""
    assignments = []
    for rank in range(workers):
        first = int(rank * gpus_per_worker + 1e-9)
        count = max(int(gpus_per_worker), 1) if gpus_per_worker else 0
        gpus = tuple(str(first + number) for number in range(count))
        assignments.append(RankAssignment(rank=rank, local_rank=rank, node_rank=0, gpus=gpus))
    return tuple(assignments)


@contextlib.contextmanager
def _printing(log: Path, *, show: bool) -> Iterator[None]:
    """Prints everything that is appended to a log until the context ends."""
    if not show:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(log, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(log: Path, done: threading.Event) -> None:
    offset = 0
    while True:
        ended = done.wait(_POLL_SECONDS)
        with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
            file.seek(offset)
            while block := file.read(2**16):
                offset += len(block)
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
        if ended:
            return


def own_secrets(spec: Spec) -> dict[str, str]:
    """Returns the secrets of `spec` from this process's environment. Raises BuildError if one is missing."""
    for name in spec.environment.secrets:
        value = os.environ.get(name)
        if value is None:
            raise BuildError(
                "environment.secrets",
                f"{name} is not set; a run on this machine takes secrets from its own environment: set the "
                "variable before the command",
            )
        if why := secret_problem(value):
            raise BuildError("environment.secrets", f"{name} {why}")
    return {name: os.environ[name] for name in spec.environment.secrets}


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
    workers, memory = min(fit, resources.max_workers), resources.memory_per_worker
    if memory is not None:
        there = psutil.virtual_memory().total
        if there < resources.min_workers * memory:
            raise BuildError(
                "resources.memory_per_worker",
                f"{resources.min_workers} workers of {shown_memory(memory)} need "
                f"{shown_memory(resources.min_workers * memory)}, this machine has {shown_memory(there)}",
            )
        workers = min(workers, there // memory)
    return workers


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def code_folder(code: Path | None) -> Path | None:
    """Returns `code` as an absolute path. Raises BuildError if it is no folder or hides a reserved module."""
    if code is None:
        return None
    if not code.is_dir():
        raise BuildError("--code", f"{code} is not a folder")
    for name, why in hiding_in_folder(code).items():
        raise BuildError("--code", f"{code / name} {why}")
    return code.resolve()


def prepare_output(output: Path) -> Path:
    """Creates the output folder, deletes results of an earlier run, and returns its absolute path.

    Raises BuildError if it cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            (output / name).unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        why = f"{output} cannot be used: {error.strerror}; name a folder that can be written"
        raise BuildError("--output", why) from None
    shutil.rmtree(output / "run", ignore_errors=True)
    return output.resolve()


@contextlib.contextmanager
def _mlflow_run(spec: Spec) -> Iterator[tuple[str | None, str | None]]:
    """Creates a run on the server of MLFLOW_TRACKING_URI and sets its final status when the context ends.

    Yields the server's URI and the run's id, or None twice if the variable is not set.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        yield None, None
        return
    from mlflow import MlflowClient

    from training.tracking.mlflow_run import experiment_id

    client = MlflowClient(tracking_uri=uri)
    experiment = experiment_id(client, spec.tracking.experiment)
    tags = source_tags(spec.model_dump(mode="json"), "LOCAL")
    run_id = client.create_run(experiment, run_name=spec.name, tags=tags).info.run_id
    status = "FAILED"
    try:
        yield uri, run_id
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, status)


def _print_error(error: TrainingError, output: Path, code: int) -> int:
    if isinstance(error, RunFailed) and error.record.rank:  # rank 0's log has been printed already
        rank = error.record.rank
        log = log_file(output / "run", 1, rank)
        print(f"the end of rank {rank}'s log, {log}:", file=sys.stderr)  # noqa: T201
        print(error.record.log_tail.rstrip("\n") or "(empty)", file=sys.stderr)  # noqa: T201
    print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    return code


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201
