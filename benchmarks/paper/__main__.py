"""Runs experiments of Ioffe & Szegedy (2015): `python -m benchmarks.paper NAME … [--quick] [--page-only]`.

Queues an experiment's jobs, waits for them, reads their runs from MLflow and writes docs/explanation/paper.
With SYNCBN_URL it uses that service; otherwise it starts one on build/paper, stops it at the end, and keeps
the folder, from which --page-only draws again. The exit code is 0, or 130 when interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import machine
from benchmarks.__main__ import parser, run
from benchmarks.paper import page, queue
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.list import EXPERIMENTS
from benchmarks.paper.points import EXPERIMENT
from benchmarks.paper.runs import Missing, read
from benchmarks.progress import progress
from benchmarks.servers import embedded_stack, mlflow_server
from service.client import Client

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "paper"
PAGES, IMAGES = ROOT / "docs" / "explanation" / "paper", ROOT / "docs" / "images" / "paper"
QUICK = FOLDER / "quick"


def main(arguments: Sequence[str]) -> int:
    given = parser(
        "python -m benchmarks.paper", {name: each.title for name, each in EXPERIMENTS.items()}, repeats=False
    )
    given.add_argument("--page-only", action="store_true", help="draw again from MLflow; trains nothing")
    given.add_argument("--output", type=Path, metavar="DIR", help="write page and figures there")
    given.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="change all jobs, as data.init_args.root=DIR",
    )
    asked = given.parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks.paper", *arguments])
    experiments = [EXPERIMENTS[name] for name in asked.names or EXPERIMENTS]
    with _mlflow_only() if asked.page_only else _service() as (url, mlflow):
        for experiment in experiments:
            _report(experiment, url, mlflow, asked, command)
    return 0


def _report(
    experiment: Experiment, url: str | None, mlflow: str | None, asked: argparse.Namespace, command: str
) -> None:
    plans = experiment.plans(quick=asked.quick, settings=asked.settings)
    points = [point for plan in plans for point in plan.points()]
    if url is not None:
        with Client(url) as client, progress(experiment.name, len(points)) as shown:
            facts = ", ".join(f"{name} {value}" for name, value in machine.describe().items())
            jobs = queue.run(client, plans, shown)
            mlflow = mlflow or queue.mlflow_of(jobs)
            queue.until_in_mlflow(mlflow, jobs)
            queue.describe(mlflow, jobs, points, machine=facts, command=command)
    assert mlflow is not None
    try:
        runs = read(mlflow, points, experiment.metrics)
    except Missing as missing:
        sys.exit(f"{missing} of {experiment.name}; leave --page-only out, to train them")
    pages, images = folders(quick=asked.quick, output=asked.output)
    for file in page.write(experiment, runs, pages / f"{experiment.name}.md", images):
        print(f"written: {file}")


def folders(*, quick: bool, output: Path | None) -> tuple[Path, Path]:
    """Returns the folders of pages and of figures. A quick run does not replace the full one's page."""
    here = output or (QUICK if quick else None)
    return (here, here) if here else (PAGES, IMAGES)


@contextmanager
def _service() -> Iterator[tuple[str | None, str | None]]:
    """Yields the addresses of the API and of MLflow; of a service that is given, MLflow's is not known."""
    if url := os.environ.get("SYNCBN_URL"):
        yield url, os.environ.get("MLFLOW_TRACKING_URI")
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with embedded_stack(ROOT, folder=FOLDER) as stack:
        yield stack.api_url, stack.mlflow_url


@contextmanager
def _mlflow_only() -> Iterator[tuple[None, str | None]]:
    """Yields MLflow's address: MLFLOW_TRACKING_URI, that of the jobs of SYNCBN_URL, or one on build/paper."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        yield None, uri
    elif url := os.environ.get("SYNCBN_URL"):
        with Client(url) as client:
            jobs = list(client.jobs(experiment=EXPERIMENT, limit=1))
        if not jobs:
            sys.exit(f"{url} has no job of these experiments; leave --page-only out")
        yield None, queue.mlflow_of(jobs)
    elif not FOLDER.is_dir():
        sys.exit(f"{FOLDER} does not exist: nothing has been trained; leave --page-only out")
    else:
        with mlflow_server(FOLDER) as uri:
            yield None, uri


if __name__ == "__main__":
    run(main)
