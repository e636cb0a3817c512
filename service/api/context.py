"""The collaborators that every route uses. The state of jobs and nodes is in the database."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from service.api.job_watcher import JobWatcher
from service.api.lately import Lately
from service.api.sse import Streams
from service.backends.tracking import Results
from service.queue.lease import SchedulerRow
from service.queue.store import Store
from service.queue.stored_events import EventHorizon
from service.readiness import running_scheduler
from service.settings import Settings
from service.user_code.modules import SharedStamps


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a route gets as `services`. stopping: set when the server is about to end.

    local_token: opens a server without a key in its settings; None if it has one. token_file: where who
    started it finds that. stamps: of the files against which the classes of submitted specs are checked.
    """

    settings: Settings
    store: Store
    results: Results
    job_watcher: JobWatcher
    event_horizon: EventHorizon
    lately: Lately
    streams: Streams
    stopping: threading.Event
    local_token: str | None = field(default=None, repr=False)
    token_file: str = ""
    stamps: SharedStamps = field(default_factory=SharedStamps, repr=False)

    def scheduler(self) -> SchedulerRow:
        """Returns the scheduler's row. Raises Unavailable if none runs, with what to do."""
        return running_scheduler(self.settings, self.store)


async def services_of(request: Request) -> Context:
    """Returns what the routes share. It needs no thread of its own."""
    context: Context = request.app.state.context
    return context


Services = Annotated[Context, Depends(services_of)]
