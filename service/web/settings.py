"""The page of settings: who asks, how the service is, and what an administrator looks after."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.access import sessions
from service.access.caller import Caller, Scope
from service.api.access import caller_or_none
from service.api.context import Context, Services
from service.api.credentials import cookie_of
from service.cleanup.policy import Policy
from service.errors import Unavailable
from service.jobs.job import State
from service.secrets import Secrets
from service.web.health import Examination
from service.web.page import PageRoute, render
from training.versions import own_versions

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_TEXT = r"^[^\x00]*$"
_LISTED = 200
_health = Examination()


@router.get("/settings")
def settings_page(
    request: Request,
    services: Services,
    user: Annotated[str | None, Query(pattern=_TEXT, max_length=200)] = None,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """Shows the settings. user, cursor: which entries of the audit log."""
    caller = caller_or_none(request)
    is_admin = caller is not None and caller.scope is Scope.ADMIN
    own = _of_caller(request, services, caller)
    admin = _of_admin(services, user or None, cursor) if is_admin else {}
    return render(request, "settings.html", versions=_versions(services), **own, **admin)


@router.get("/data/doctor")
def examine_service(services: Services) -> dict[str, Any]:
    """Examines what the service depends on, as `syncbn doctor` does. Blocks for up to some seconds."""
    return _health.of(services.settings)


def _of_caller(request: Request, services: Context, caller: Caller | None) -> dict[str, Any]:
    value = cookie_of(request.headers)
    session = services.store.find_session(sessions.digest(value)) if value else None
    return {
        "session_ends": session.expires_at if session else None,
        "key_ends": session.key.expires_at if session and session.key else None,
        "is_key": caller is not None and caller.user is not None,
    }


def _versions(services: Context) -> list[tuple[str, str, str]]:
    """Returns packages with their versions here and in the scheduler's environment; "" where not known."""
    try:
        row = services.store.scheduler()
    except Unavailable:
        row = None
    here, there = own_versions(), dict(row.versions) if row else {}
    return [(name, here.get(name, ""), there.get(name, "")) for name in {**here, **there}]


def _of_admin(services: Context, user: str | None, cursor: str | None) -> dict[str, Any]:
    keys, webhooks = services.store.list_keys(), services.store.webhooks()
    entries, following = services.store.list_audit(who=user, cursor=cursor, limit=50)
    return {
        "keys": keys[:_LISTED],
        "more_keys": max(len(keys) - _LISTED, 0),
        "now": datetime.now(UTC),
        "scopes": list(Scope),
        "secrets": Secrets.of(services.settings, services.store).entries(),
        "policy": _policy(Policy.of(services.settings)),
        "webhooks": webhooks[:_LISTED],
        "states": list(State),
        "audit": entries,
        "audit_user": user or "",
        "next_cursor": following,
    }


def _policy(policy: Policy) -> list[tuple[str, float | None, str]]:
    """Returns what is removed, after how many days, and the setting that says so."""
    return [
        (what, getattr(policy, field), f"SYNCBN_RETENTION_{field.upper()}_DAYS")
        for field, what in {
            "other_checkpoints": "Checkpoints except the best and the last",
            "checkpoints": "All checkpoints, and what a script has saved",
            "logs": "Logs and exit records",
            "spools": "Metrics that MLflow has, too",
            "code": "Code archives that no later job uses",
        }.items()
    ]
