"""Routes /healthz (this process answers) and /readyz (its dependencies answer too)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service import readiness
from service.api.access import known
from service.api.context import Services
from service.api.problems import RETRY_AFTER_S, documented, problem
from service.errors import Unavailable
from service.queue.store import Store

_running: WeakKeyDictionary[Store, set[str]] = WeakKeyDictionary()
"""Checks whose thread still waits. No second one is started beside it: what hangs costs one thread."""

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The answer of a process that is alive."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """Whether one dependency answers; `message` says why not."""

    state: Literal["ok", "unavailable"] = "ok"
    message: str = ""


class Readiness(BaseModel):
    """The answer when every dependency answers; `checks` has one entry for each, for callers with a key."""

    status: Literal["ok"] = "ok"
    checks: dict[str, Check] = {}


@router.get("/healthz", summary="Whether this process answers")
async def healthz() -> Health:
    """Answers without asking any dependency."""
    return Health()


@router.get("/readyz", responses=documented(503), response_model=Readiness, summary="Whether jobs can run")
async def readyz(request: Request, services: Services) -> Readiness | JSONResponse:
    """Checks database, scheduler, Ray (as the scheduler reports it), MLflow and free disk space concurrently.

    A 503 is a problem document with the same `checks`. Without a key the answer is the status alone.
    """
    probes = readiness.probes(services.settings, services.store, services.results)
    checks: dict[str, Check] = {}
    running = _running.setdefault(services.store, set())
    async with anyio.create_task_group() as group:
        for name, probe in probes.items():
            group.start_soon(partial(_run_check, name, probe, checks, running))
    failed = [name for name in probes if checks[name].state != "ok"]
    if not known(request):
        return _bare(request, ready=not failed)
    if not failed:
        return Readiness(checks={name: checks[name] for name in probes})
    return problem(
        request.url.path,
        503,
        "Not ready",
        "; ".join(dict.fromkeys(checks[name].message for name in failed)),
        kind="unavailable",
        headers={"Retry-After": str(RETRY_AFTER_S)},
        checks={name: checks[name].model_dump() for name in probes},
    )


def _bare(request: Request, *, ready: bool) -> Readiness | JSONResponse:
    """Returns the answer for everybody: what does not answer, and why, is nobody else's business."""
    if ready:
        return Readiness()
    detail, headers = "not ready; with an API key this says why", {"Retry-After": str(RETRY_AFTER_S)}
    return problem(request.url.path, 503, "Not ready", detail, kind="unavailable", headers=headers)


async def _run_check(
    name: str, probe: Callable[[], object], checks: dict[str, Check], running: set[str]
) -> None:
    seconds = readiness.DEADLINE_SECONDS
    checks[name] = Check(state="unavailable", message=f"{name}: no answer in {seconds:g} s")
    if name in running:
        return

    def run() -> None:
        running.add(name)
        try:
            probe()
        finally:
            running.discard(name)

    with anyio.move_on_after(seconds):
        try:
            await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
            checks[name] = Check()
        except Unavailable as error:
            checks[name] = Check(state="unavailable", message=str(error))
