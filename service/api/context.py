"""What every route works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.launch import Cluster
from service.results import Results
from service.settings import Settings
from service.store import Store


@dataclass(frozen=True, kw_only=True)
class Context:
    settings: Settings
    store: Store
    cluster: Cluster
    results: Results


def _of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Services = Annotated[Context, Depends(_of)]
