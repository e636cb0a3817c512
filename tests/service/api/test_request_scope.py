"""The id of a request: taken or made, returned, in problem documents and in the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.logs import JsonFormatter
from service.queue.store import Store
from service.settings import Settings
from tests.service.serving import Stage


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.handler.setFormatter(JsonFormatter())
    with caplog.at_level(logging.INFO, "service"):
        yield caplog


@pytest.fixture
def api(stage: Stage, sqlite_store: Store) -> Iterator[httpx.Client]:
    settings = Settings(api_key=SecretStr("top-secret-key"))
    with stage.showing(create_app(settings, sqlite_store, FakeResults())) as client:
        client.headers["Authorization"] = "Bearer top-secret-key"
        yield client


def lines(records: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(line) for line in records.text.splitlines() if line.startswith("{")]


def test_a_given_id_is_returned_and_logged(api: httpx.Client, records: pytest.LogCaptureFixture) -> None:
    response = api.get("/v1/jobs/j0000000000000000000?x=1", headers={"X-Request-Id": "from-proxy:7"})

    assert response.headers["x-request-id"] == response.json()["request_id"] == "from-proxy:7"
    (line,) = (line for line in lines(records) if line["logger"] == "service.api.request_scope")
    assert line["request_id"] == "from-proxy:7"
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/jobs/j0000000000000000000", 404)


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", 'a"b', "ä"])
def test_an_id_that_could_do_harm_is_replaced(api: httpx.Client, given: str) -> None:
    headers = httpx.Headers({"X-Request-Id": given}, encoding="utf-8")
    first, second = (api.get("/v1/jobs", headers=headers).headers["x-request-id"] for _ in range(2))

    assert len(first) == 32
    assert first != second


def test_a_bug_is_answered_with_the_id_under_which_the_log_tells_of_it(
    api: httpx.Client,
    records: pytest.LogCaptureFixture,
    sqlite_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(sqlite_store, "queue_page", broken)

    response = api.get("/v1/queue")

    assert response.status_code == 500
    assert response.headers["x-request-id"] == response.json()["request_id"]
    (line,) = (line for line in lines(records) if "error" in line)
    assert line["request_id"] == response.json()["request_id"]
    assert "a bug" in str(line["error"])


def test_the_log_has_neither_keys_nor_queries(api: httpx.Client, records: pytest.LogCaptureFixture) -> None:
    api.get("/v1/jobs?label=token:top-secret-key")
    api.put("/v1/secrets/TOKEN", json={"value": "top-secret-key"})
    api.get("/v1/jobs", headers={"Authorization": "Bearer top-secret-key2"})

    assert len(lines(records)) >= 3
    assert "top-secret-key" not in records.text
