"""The parameters of a request's address: those that a route does not know are refused."""

from __future__ import annotations

import difflib

from fastapi import Request, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute

from service.access.rules import SAFE_METHODS
from service.errors import Refused
from training.spec import MAX_PROBLEMS, Problem


async def check_parameters(request: Request) -> None:
    """Raises Refused if the address has a parameter that the route does not know.

    Ignored, a misspelt filter would list every job, and `retry?from_scratch=true`, which belongs in the body,
    would go on from the last checkpoint.
    """
    given = list(dict.fromkeys(request.query_params))
    if not given:
        return
    route: APIRoute = request.scope["route"]
    fields = get_flat_params(route.dependant)
    known = [field.alias for field in fields if isinstance(field.field_info, params.Query)]
    if not known and request.method in SAFE_METHODS:
        return  # nothing could have been meant
    if unknown := [name for name in given if name not in known]:
        problems = [Problem(key=name, message=_unknown(name, known)) for name in unknown[:MAX_PROBLEMS]]
        raise Refused("the address has a parameter that is not known", problems)


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if close:
        return f"unknown parameter; did you mean {close[0]}?"
    return f"unknown parameter; known here: {', '.join(known) or 'none'}"
