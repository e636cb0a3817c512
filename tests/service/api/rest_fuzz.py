"""Requests drawn from the OpenAPI document, sent to the real app in memory; every answer must be documented.

    python -m tests.service.api.rest_fuzz [EXAMPLES] [SEED]

sends EXAMPLES requests (500) to each route with a key, and as many without one. It prints each route, and the
first wrong answer of each: a server error, one that the document does not have, or an error that is not a
problem document.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from hypothesis import strategies as st
from pydantic import SecretStr
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.jobs.job import State
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_spec
from tests.service.live_api import SECRETS_KEY, find_ray
from training.protocol import log_file

KEY = "a key of tests"
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


@dataclass(frozen=True, kw_only=True)
class Fuzzed:
    """The app, and ids that exist in it: without them nearly every answer would be a 404."""

    app: Any
    store: Store
    known: dict[str, str]

    def paths(self) -> list[tuple[str, str]]:
        """Returns each path and method of the document."""
        return [
            (path, method.upper())
            for path, routes in self.app.openapi()["paths"].items()
            for method in routes
        ]

    def check(self, path: str, method: str, *, with_key: bool, examples: int, seed: int) -> None:
        """Sends requests to one route. Raises for the first wrong answer."""
        find_ray(self.store)  # a scheduler that has been silent is away
        headers = {"Authorization": f"Bearer {KEY}"} if with_key else {}
        schema = schemathesis.openapi.from_asgi(
            "/openapi.json", self.app, headers={"Authorization": f"Bearer {KEY}"}
        )

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=schema[path][method].as_strategy(), known=st.booleans())
        def send(case: Any, known: bool) -> None:
            if known:
                case.path_parameters |= {
                    name: value for name, value in self.known.items() if name in case.path_parameters
                }
            case.headers.pop("Authorization", None)
            response = case.call(headers=headers, timeout=600)
            case.validate_response(response, checks=CHECKS)
            if response.status_code >= 400:
                kind = response.headers["content-type"][0]
                assert kind == "application/problem+json", (response.status_code, kind)
                assert response.json()["status"] == response.status_code

        send()


@contextmanager
def fuzzed(store: Store, folder: Path) -> Iterator[Fuzzed]:
    """Yields the app over `store`, with a job that has ended and left a log."""
    results = FakeResults()
    job, _ = store.create_job(make_spec())
    run = results.ensure_run(job_id=job.id, name="", experiment="default")
    store.set_run(job.id, run.experiment_id, run.run_id)
    store.move(store.get(job.id), State.STARTING, attempt=1, workers=1)
    store.move(store.get(job.id), State.FAILED)
    log = log_file(folder / job.id, 1, 0)
    log.parent.mkdir(parents=True)
    log.write_text("a line\n")
    settings = Settings(
        api_key=SecretStr(KEY), storage=str(folder), secrets_key=SECRETS_KEY, max_code_bytes=100_000
    )
    stopping = threading.Event()
    stopping.set()  # streams that would not end, end at once
    app = create_app(settings, store, results, stopping=stopping)
    yield Fuzzed(app=app, store=store, known={"job_id": job.id, "which": "last"})


def main(examples: int = 500, seed: int = 0) -> int:
    """Checks every route of a new service; returns how many have answered wrongly."""
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        store = Store(f"sqlite:///{name}/jobs.db")
        store.migrate()
        with fuzzed(store, Path(name) / "runs") as target:
            for path, method in target.paths():
                for with_key in (False, True):
                    print(method, path, "with the key" if with_key else "without a key", flush=True)  # noqa: T201
                    try:
                        target.check(path, method, with_key=with_key, examples=examples, seed=seed)
                    except Exception:
                        wrong += 1
                        traceback.print_exc(limit=0)
        store.close()
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:])), 1))
