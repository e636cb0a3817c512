"""Which checks there are for a service, and where its settings come from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.doctor import api, database, machine, mlflow, ray, scheduler, storage
from service.doctor.finding import Check, Finding
from service.embedded.stack import runs_on, settings_of
from service.errors import Refused
from service.queue import condition
from service.settings import Settings

DATA_DIR = Path("syncbn-data")


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What to examine. described: for people. up: whether `syncbn up` runs on the folder."""

    settings: Settings
    described: str
    up: bool = False
    folder: Path | None = None


def patient(data_dir: Path | None) -> Patient:
    """Returns the service of a data folder of `syncbn up`, or that of the environment.

    data_dir: None for the folder where `up` keeps its data by default, if it is here and the environment
    names no database. Raises Refused if `up` has never run on the folder.
    """
    by_default = data_dir is None and not os.environ.get("SYNCBN_DATABASE_URL")
    folder = data_dir or (DATA_DIR if by_default and (DATA_DIR / "stack.json").exists() else None)
    if folder is None:
        return Patient(settings=Settings.from_env(), described="the service that SYNCBN_* variables name")
    folder = folder.resolve()
    settings = settings_of(folder)
    if settings is None:
        raise Refused(f"`syncbn up` has never run on {folder}: name its --data-dir")
    up = runs_on(folder)
    state = "runs" if up else "does not run"
    return Patient(
        settings=settings, described=f"`syncbn up` on {folder}, which {state}", up=up, folder=folder
    )


def checks(subject: Patient, url: str, api_key: str | None, seconds: float) -> list[Check]:
    """Returns the checks. seconds: how long each may take."""
    settings = subject.settings
    path = condition.sqlite_file(settings.database_url)
    folders = [Path(settings.storage), *([path.parent] if path else []), Path("/tmp")]
    return [
        Check(about="API", run=partial(api.check, url, api_key, expected=subject.up), seconds=seconds),
        Check(about="database", run=partial(database.check, settings.database_url), seconds=seconds),
        Check(about="scheduler", run=partial(scheduler.check, settings.database_url), seconds=seconds),
        Check(about="Ray", run=partial(_ray, settings, seconds), seconds=seconds + 2.0),
        Check(about="MLflow", run=partial(mlflow.check, settings.mlflow_url), seconds=seconds),
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


def _ray(settings: Settings, seconds: float) -> Iterator[Finding]:
    row = scheduler.row_of(settings.database_url)
    yield from ray.check(settings, row.queue if row else "", seconds=seconds)
