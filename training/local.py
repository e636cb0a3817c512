"""`syncbn train`: one spec without the service, on a Ray that lives as long as the run."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from training.failures import BuildError, RankFailed, TrainingError
from training.folder import RunFolder
from training.spec import Spec

RESULTS = ("metrics.jsonl", "model.pt", "curves.png", "norm_noise.png")
OUR_PACKAGES = ("sync_bn", "training", "service")


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
        with local_ray(folder), _mlflow_run(spec) as (uri, run_id):
            _run(spec, workers, output, uri, run_id)
    except BuildError as error:
        return _complain(error, 2)
    except TrainingError as error:
        return _complain(error, 1)
    _say(f"done: {', '.join(str(output / name) for name in RESULTS if (output / name).exists())}")
    return 0


def _run(spec: Spec, workers: int, output: Path, uri: str | None, run_id: str | None) -> None:
    from training.run import run
    from training.worker import Destination

    run(
        spec,
        workers=workers,
        destination=Destination(output=str(output), mlflow_uri=uri, run_id=run_id),
        folder=RunFolder(path=output / "run"),
        retries=spec.retries,
    )


def _workers_that_fit(spec: Spec) -> int:
    resources = spec.resources
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fit = int(cpus / resources.cpus_per_worker + 1e-9)
    if fit < resources.min_workers:
        need = resources.min_workers * resources.cpus_per_worker
        raise BuildError(
            "resources.workers",
            f"{resources.min_workers} workers of {resources.cpus_per_worker:g} CPU need {need:g} CPUs, this "
            f"machine has {cpus}; ask for fewer workers, or for a fraction in resources.cpus_per_worker",
        )
    return min(fit, resources.max_workers)


def code_folder(code: Path | None) -> Path | None:
    if code is None:
        return None
    if not code.is_dir():
        raise BuildError("--code", f"{code} is no folder")
    for name in OUR_PACKAGES:
        if (code / name).is_dir() or (code / f"{name}.py").exists():
            raise BuildError("--code", f"{code / name} would hide this project's own {name}; rename it")
    return code.resolve()


def fresh(output: Path) -> Path:
    """The output folder without what an earlier run left in it."""
    output.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / "run", ignore_errors=True)
    return output.resolve()


@contextlib.contextmanager
def local_ray(code: Path | None) -> Iterator[None]:
    """A Ray of our own on loopback, ended with the context."""
    # Ray listens on all interfaces, whatever it is told: it must ask for a token.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    # Its own servers of metrics would listen there too, without one; this is no port, so they stay off.
    os.environ.update(AUTOSCALER_METRIC_PORT="99999", DASHBOARD_METRIC_PORT="99999")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    import ray

    from training.run import WORKER_ENVIRONMENT

    variables = WORKER_ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
    if code is not None:
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    _say("starting Ray")
    ray.init(
        address="local",
        runtime_env={"env_vars": variables},
        dashboard_host="127.0.0.1",
        include_dashboard=True,  # Ray Train asks it about its own actors and complains where it is not
        object_store_memory=200 * 2**20,
        logging_level="warning",
        _system_config={"enable_metrics_collection": False},
    )
    try:
        yield
    finally:
        ray.shutdown()


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


def _complain(error: TrainingError, code: int) -> int:
    if isinstance(error, RankFailed):
        print(error.trace, file=sys.stderr)  # noqa: T201
    print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    return code


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
