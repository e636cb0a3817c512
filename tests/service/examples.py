"""Specs, jobs and settings for tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

from service.jobs.job import Job, State, new_job
from service.settings import Settings
from training.spec import Spec, parse_spec

_START = datetime(2026, 1, 1, tzinfo=UTC)
_seconds = itertools.count()


def settings_from(variables: Mapping[str, str]) -> Settings:
    """The settings of a process whose environment is this and nothing else."""
    with mock.patch.dict(os.environ, variables, clear=True):
        return Settings.from_env()


def make_data(**changes: Any) -> dict[str, Any]:
    """The shortest spec, as a user would write it, and changes to it."""
    return {
        "model": {"class_path": "training.models.ConvNet"},
        "data": {"class_path": "training.data.Digits"},
        **changes,
    }


def make_spec(**changes: Any) -> Spec:
    return parse_spec(make_data(**changes))


def make_job(
    workers: int | dict[str, int] = 1,
    *,
    cpus: float = 1,
    gpus: float = 0,
    priority: int = 0,
    state: State = State.QUEUED,
    granted: int | None = None,
    group: int | str = "world",
    **resources: Any,
) -> Job:
    """A job of so many workers, younger than those made before."""
    spec = make_spec(
        resources={"workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": gpus, **resources},
        priority=priority,
        training={"global_batch_size": 4096},
        norm={"group": group},
    )
    job = new_job(spec, created_at=_START + timedelta(seconds=next(_seconds)))
    return replace(job, state=state, workers=granted, attempt=int(state is not State.QUEUED))
