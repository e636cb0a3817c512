"""The parts that the service needs so that jobs can run, and how to ask each whether it is there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from service.backends.tracking import Results
from service.disk_space import check_space, places_of
from service.queue import lease
from service.queue.lease import SchedulerRow
from service.queue.store import Store
from service.settings import Settings

DEADLINE_SECONDS = 3.0
"""A part that has not answered by then is not there."""


def probes(settings: Settings, store: Store, results: Results) -> dict[str, Callable[[], object]]:
    """Returns a probe for each part by its name. A probe blocks, and raises Unavailable.

    /readyz and the figure syncbn_up both ask these, so that they agree.
    """
    scheduler = partial(running_scheduler, settings, store)
    return {
        "database": store.check,
        "scheduler": scheduler,
        "ray": lambda: lease.machines(scheduler()),
        "mlflow": results.check,
        "storage": partial(check_space, places_of(settings)),
    }


def running_scheduler(settings: Settings, store: Store) -> SchedulerRow:
    """Returns the scheduler's row. Raises Unavailable if none runs, with what to do."""
    how_to_start = settings.how_to_start("scheduler", lease.HOW_TO_START)
    return lease.check_heard(store.scheduler(), how_to_start)
