"""The scope that each route requires: one table. A route that is not in it requires admin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from service.access.caller import Scope

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Rule:
    """What a route requires.

    scope: None for everybody, without a key. changes: whether it changes anything, which the audit log has
    to say. page: whether it is for people, whose browser is shown where to sign in.
    """

    scope: Scope | None
    changes: bool = False
    page: bool = False


_OPEN = Rule(None)
_READ = Rule(Scope.READ)
_SUBMIT = Rule(Scope.SUBMIT, changes=True)
_ADMIN = Rule(Scope.ADMIN, changes=True)
_PAGE = Rule(Scope.READ, page=True)

RULES: Mapping[str, Rule] = {
    "GET /healthz": _OPEN,
    "GET /readyz": _OPEN,
    "GET /docs": _READ,
    "GET /openapi.json": _READ,
    "GET /metrics": _READ,
    "GET /v1/version": _READ,
    "GET /v1/jobs": _READ,
    "POST /v1/jobs": _SUBMIT,
    "POST /v1/jobs/validate": _READ,
    "GET /v1/jobs/{job_id}": _READ,
    "POST /v1/jobs/{job_id}/cancel": _SUBMIT,
    "POST /v1/jobs/{job_id}/pause": _SUBMIT,
    "POST /v1/jobs/{job_id}/resume": _SUBMIT,
    "POST /v1/jobs/{job_id}/resize": _SUBMIT,
    "POST /v1/jobs/{job_id}/retry": _SUBMIT,
    "POST /v1/jobs/{job_id}/priority": _SUBMIT,
    "DELETE /v1/jobs/{job_id}": _SUBMIT,
    "GET /v1/jobs/{job_id}/metrics": _READ,
    "GET /v1/jobs/{job_id}/logs": _READ,
    "GET /v1/jobs/{job_id}/events": _READ,
    "GET /v1/jobs/{job_id}/checkpoints": _READ,
    "GET /v1/jobs/{job_id}/checkpoints/{which}": _READ,
    "GET /v1/jobs/{job_id}/files": _READ,
    "GET /v1/jobs/{job_id}/files/{path:path}": _READ,
    "GET /v1/events": _READ,
    "GET /v1/sweeps": _READ,
    "POST /v1/sweeps": _SUBMIT,
    "POST /v1/sweeps/validate": _READ,
    "GET /v1/sweeps/{sweep_id}": _READ,
    "POST /v1/sweeps/{sweep_id}/cancel": _SUBMIT,
    "POST /v1/sweeps/{sweep_id}/pause": _SUBMIT,
    "POST /v1/sweeps/{sweep_id}/resume": _SUBMIT,
    "PUT /v1/sweeps/{sweep_id}/report/{name}": _SUBMIT,
    "POST /v1/code": _SUBMIT,
    "GET /v1/secrets": _READ,
    # Any job may name any secret, so one user's value must not become another's.
    "PUT /v1/secrets/{name}": _ADMIN,
    "DELETE /v1/secrets/{name}": _ADMIN,
    "GET /v1/queue": _READ,
    "GET /v1/cluster": _READ,
    "GET /v1/cleanup": _READ,
    "POST /v1/cleanup": _ADMIN,
    # What is sent to an address, and where it is, is the operator's to decide.
    "GET /v1/webhooks": Rule(Scope.ADMIN),
    "POST /v1/webhooks": _ADMIN,
    "DELETE /v1/webhooks/{webhook_id}": _ADMIN,
    "POST /v1/webhooks/{webhook_id}/test": _ADMIN,
    "GET /v1/webhooks/{webhook_id}/deliveries": Rule(Scope.ADMIN),
    "GET /v1/keys": Rule(Scope.ADMIN),
    "POST /v1/keys": _ADMIN,
    "POST /v1/keys/{key_id}/revoke": _ADMIN,
    "GET /v1/audit": Rule(Scope.ADMIN),
}
"""By method and path as the route declares it.

A rule with submit and the id of a job or sweep in its path also requires that this is of the caller's user,
unless the key has admin.
"""

PAGES: Mapping[str, Rule] = {
    "GET /": _PAGE,
    "GET /jobs": _PAGE,
    "GET /jobs/{job_id}": _PAGE,
    "GET /jobs/{job_id}/{tab}": _PAGE,
    "GET /compare": _PAGE,
    "GET /sweeps": _PAGE,
    "GET /sweeps/{sweep_id}": _PAGE,
    "GET /submit": _PAGE,
    "GET /settings": _PAGE,
    "GET /sign-in": _OPEN,
    "POST /sign-in": _OPEN,
    "POST /sign-out": Rule(Scope.READ, changes=True),
    "GET /static/{name}": _OPEN,
    "GET /live/{what:path}": _READ,
    "GET /data/{what:path}": _READ,
}
"""The same of the console (service.web)."""


def _pattern(key: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w+(?::path)?\})", key)
    return re.compile("".join(map(_part, parts)), re.DOTALL)


def _part(text: str) -> str:
    if not text.startswith("{"):
        return re.escape(text)
    return ".*" if text.endswith(":path}") else "[^/]+"


_ALL = {**RULES, **PAGES}
_PATTERNS = [(_pattern(key), key) for key in _ALL]
_LITERAL = frozenset(key for key in _ALL if "{" not in key)


def rule_of(method: str, path: str) -> tuple[str, Rule] | None:
    """Returns the key and the value in RULES or PAGES of a request's method and path; None if it has none.

    HEAD has the rule of GET.
    """
    wanted = f"{'GET' if method == 'HEAD' else method} {path}"
    if wanted in _LITERAL:
        return wanted, _ALL[wanted]
    for expression, key in _PATTERNS:
        if expression.fullmatch(wanted):
            return key, _ALL[key]
    return None


def unlisted(method: str) -> Rule:
    """Returns the rule of a route that the tables lack."""
    return Rule(Scope.ADMIN, changes=method not in SAFE_METHODS)
