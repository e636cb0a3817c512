"""Which service `syncbn doctor` examines: that of a data folder of `up`, or that of the environment."""

from __future__ import annotations

import os
from pathlib import Path

from service.doctor.diagnosis import Patient
from service.embedded.stack import runs_on, settings_of
from service.errors import Refused
from service.settings import Settings

DATA_DIR = Path("syncbn-data")


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
