"""Which checks there are for a service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.doctor import api, database, machine, mlflow, ray, scheduler, storage
from service.doctor.finding import Check, Finding
from service.queue import condition
from service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What to examine. described: for people. up: whether `syncbn up` runs on the folder."""

    settings: Settings
    described: str
    up: bool = False
    folder: Path | None = None


def checks(subject: Patient, url: str, api_key: str | None, seconds: float) -> list[Check]:
    """Returns the checks. seconds: how long each may take."""
    api_check = partial(api.check, url, api_key, expected=subject.up)
    return [Check(about="API", run=api_check, seconds=seconds), *parts(subject.settings, seconds)]


def parts(settings: Settings, seconds: float) -> list[Check]:
    """Returns the checks of everything but the API. seconds: how long each may take."""
    path = condition.sqlite_file(settings.database_url)
    folders = [Path(settings.storage), *([path.parent] if path else []), Path("/tmp")]
    return [
        Check(about="database", run=partial(database.check, settings.database_url), seconds=seconds),
        Check(about="scheduler", run=partial(scheduler.check, settings), seconds=seconds),
        Check(about="Ray", run=partial(_ray, settings, seconds), seconds=seconds + 2.0),
        Check(about="MLflow", run=partial(_mlflow, settings), seconds=seconds),
        Check(
            about="storage",
            run=partial(storage.check, settings.storage, settings.checkpoints),
            seconds=seconds,
        ),
        Check(about="disk", run=partial(machine.disks, folders), seconds=seconds),
        Check(about="shared memory", run=machine.shared_memory, seconds=seconds),
        Check(about="files", run=machine.files, seconds=seconds),
        Check(about="network", run=machine.network, seconds=seconds),
    ]


def _mlflow(settings: Settings) -> Iterator[Finding]:
    how_to_start = settings.how_to_start("mlflow", mlflow.HOW_TO_START)
    return mlflow.check(settings.mlflow_url, how_to_start=how_to_start)


def _ray(settings: Settings, seconds: float) -> Iterator[Finding]:
    row = scheduler.row_of(settings.database_url)
    yield from ray.check(settings, row.queue if row else "", seconds=seconds)
