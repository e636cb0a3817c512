"""What every route works with. What jobs do and what there is of machines stands in the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.api.job_watcher import JobWatcher
from service.backends.tracking import Results
from service.queue.store import Store
from service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Context:
    settings: Settings
    store: Store
    results: Results
    job_watcher: JobWatcher


def _of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Services = Annotated[Context, Depends(_of)]
