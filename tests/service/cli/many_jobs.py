"""Jobs of all kinds in the database, with names and reasons that try a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

from service.jobs.job import Job, State, new_job, utc_now
from service.queue import database
from service.queue.rows import insert_jobs
from tests.service.examples import make_spec
from training.protocol import Progress
from training.spec import Spec

NAMES = (
    "digits",
    "fashion-resnet18-with-a-very-long-name-that-ends-in-its-number-" + "x" * 120 + "-12",
    "日本語の名前がとても長いので端末の幅に収まらないことがある",
    "e\u0301" * 40,
    "👩\u200d👩\u200d👧👍🏽☺️🇩🇪 emoji " * 6,
    "control\x1b[2J\x07\x9b1mname\r\n\tend",
    "\u202egnirts desrever",
    "[bold]markup[/bold] :smile:",
    "한글과 조합 \u1112\u1161\u11ab" * 5,
    "",
)
REASON = ("RuntimeError: a tensor of shape (3, 4) does not fit\x1b[31m into 日本 " * 40)[
    :2000
] + "\nand\nmore"
AGES = (3, 70, 3_700, 90_000, 86_400 * 40, 86_400 * 800)
WORKERS = (1, 2, 64, 1024)


def put(url: str, made: Iterable[Job]) -> None:
    """Writes the jobs into the database at this address."""
    engine = database.make_engine(url)
    with engine.begin() as connection:
        insert_jobs(connection, list(made))
    engine.dispose()


@cache
def _spec(workers: int) -> Spec:
    return make_spec(training={"global_batch_size": 1024}, resources={"workers": workers})


def job(number: int, **changes: Any) -> Job:
    """Returns a job of one kind or another: that of this number is always the same but for its times."""
    age = AGES[number % len(AGES)]
    created = utc_now() - timedelta(seconds=age, milliseconds=number)
    state = list(State)[number % len(State)]
    spec = _spec(WORKERS[number % len(WORKERS)])
    made = replace(
        new_job(spec, created_at=created),
        name=NAMES[number % len(NAMES)],
        state=state,
        reason="" if number % 3 == 0 else REASON if number % 3 == 1 else "needs 4 CPUs: 2 are free",
    )
    if state not in (State.QUEUED, State.STARTING):
        made = replace(
            made,
            started_at=created + timedelta(seconds=1),
            finished_at=created + timedelta(seconds=age / 2) if state.ended else None,
            attempt=1,
            workers=WORKERS[number % len(WORKERS)],
            progress=Progress(
                step=10**number % 10**9,
                total_steps=10**9,
                epoch=3,
                eta_seconds=None,
                metrics={"val_accuracy": 0.25, "train_loss": 1e-9, "val_a_metric_of_a_long_name": -1234567.0},
            ),
        )
    return replace(made, **changes)
