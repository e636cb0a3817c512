"""Routes /healthz (this process answers) and /readyz (so do those it depends on)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.api.context import Services
from service.api.problems import RETRY_AFTER_S, documented, problem
from service.errors import Unavailable
from service.queue import lease

CHECK_TIMEOUT_S = 3.0

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Check(BaseModel):
    state: Literal["ok", "unavailable"] = "ok"
    message: str = ""


class Readiness(BaseModel):
    status: Literal["ok"] = "ok"
    checks: dict[str, Check]


@router.get("/healthz", summary="Whether this process answers")
async def healthz() -> Health:
    return Health()


@router.get("/readyz", responses=documented(503), response_model=Readiness, summary="Whether jobs can run")
async def readyz(request: Request, services: Services) -> Readiness | JSONResponse:
    """The database, the scheduler, Ray (as the scheduler finds it) and MLflow, all at once; a 503 is a
    problem document with the same `checks`.
    """
    questions: dict[str, Callable[[], object]] = {
        "database": services.store.check,
        "scheduler": lambda: lease.check_heard(services.store.scheduler()),
        "ray": lambda: lease.machines(services.store.scheduler()),
        "mlflow": services.results.check,
    }
    checks: dict[str, Check] = {}
    async with anyio.create_task_group() as group:
        for name, question in questions.items():
            group.start_soon(partial(_ask, name, question, checks))
    bad = [name for name in questions if checks[name].state != "ok"]
    if not bad:
        return Readiness(checks={name: checks[name] for name in questions})
    return problem(
        request.url.path,
        503,
        "Not ready",
        "; ".join(dict.fromkeys(checks[name].message for name in bad)),
        kind="unavailable",
        headers={"Retry-After": str(RETRY_AFTER_S)},
        checks={name: checks[name].model_dump() for name in questions},
    )


async def _ask(name: str, question: Callable[[], object], checks: dict[str, Check]) -> None:
    checks[name] = Check(state="unavailable", message=f"{name}: no answer in {CHECK_TIMEOUT_S:g} s")
    with anyio.move_on_after(CHECK_TIMEOUT_S):
        try:
            await anyio.to_thread.run_sync(question, abandon_on_cancel=True)
            checks[name] = Check()
        except Unavailable as error:
            checks[name] = Check(state="unavailable", message=str(error))
