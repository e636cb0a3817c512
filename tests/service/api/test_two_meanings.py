"""Requests that could be read in two ways: a key or a header twice, a body that is compressed."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator

import httpx
import pytest

from service.api.app import create_app
from service.api.single_headers import SINGLE
from service.backends.memory_tracking import FakeResults
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_data, make_spec
from tests.service.serving import Stage

JSON = "application/json"


@pytest.fixture
def api(stage: Stage, sqlite_store: Store) -> Iterator[httpx.Client]:
    with stage.showing(create_app(Settings(), sqlite_store, FakeResults())) as client:
        yield client


def posted(api: httpx.Client, headers: list[tuple[str, str]]) -> tuple[int, str | None, str]:
    """Submits a job, with its own headers where `headers` has none of that name. httpx sends no two Hosts."""
    body = json.dumps(make_data())
    names = {name.lower() for name, _ in headers}
    own = {"Host": "localhost", "Authorization": api.headers["authorization"], "Content-Type": JSON}
    connection = http.client.HTTPConnection(api.base_url.host, api.base_url.port or 80, timeout=60)
    try:
        connection.putrequest("POST", "/v1/jobs", skip_host=True)
        for name, value in [*headers, *((each, own[each]) for each in own if each.lower() not in names)]:
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body.encode())
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read().decode()
    finally:
        connection.close()


def test_a_key_that_occurs_twice_is_refused_by_every_route_that_reads_json(
    api: httpx.Client, sqlite_store: Store
) -> None:
    job, _ = sqlite_store.create_job(make_spec(resources={"workers": {"min": 1, "max": 4}}))
    for path, operations in api.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            if JSON not in content:
                continue
            example = content[JSON]["example"]
            key, value = next(iter(example.items()))
            twice = f"{json.dumps(example)[:-1]}, {json.dumps(key)}: {json.dumps(value)}}}"

            answer = api.request(
                method, path.replace("{job_id}", job.id), content=twice, headers={"content-type": JSON}
            )

            assert answer.status_code == 422, path
            said = f"the key {key!r} occurs twice in one mapping; keep one of them"
            assert answer.json()["errors"] == [{"key": "", "message": said}], path
    assert [each.wanted_workers for each in sqlite_store.list_jobs()[0]] == [job.wanted_workers]


def test_a_compressed_body_is_refused_by_every_route_that_reads_one(
    api: httpx.Client, sqlite_store: Store
) -> None:
    job, _ = sqlite_store.create_job(make_spec())
    seen = 0
    for path, operations in api.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            if "requestBody" not in operation:
                continue
            (kind, *_) = operation["requestBody"]["content"]
            path = path.replace("{job_id}", job.id).replace("{name}", "report.md")
            for coding, status in (("gzip", 415), ("identity, br", 415), ("identity", None), ("", None)):
                headers = {"content-type": kind, "content-encoding": coding}
                answer = api.request(method, path, content=gzip.compress(b"{}"), headers=headers)

                assert (answer.status_code == 415) is (status == 415), (path, coding, answer.text)
                assert answer.headers["content-type"] == "application/problem+json"
                if status:
                    assert answer.headers["accept-encoding"] == "identity"
                    assert "without this header" in answer.json()["detail"]
            assert "415" in operation["responses"], path
            seen += 1
    assert seen > 8


def test_a_header_that_may_come_once_is_refused_if_it_comes_twice(
    api: httpx.Client, sqlite_store: Store
) -> None:
    pages = {"Host": "localhost", "Origin": "http://localhost"}  # what would be served if it came once
    for name in SINGLE:
        first = pages.get(name, "one")
        for second in ("two", first):
            status, kind, text = posted(api, [(name, first), (name, second)])

            assert (status, kind) == (400, "application/problem+json"), name
            assert json.loads(text)["detail"].startswith(f"the request has the header {name} more than once")
    assert sqlite_store.list_jobs()[0] == []


def test_every_documented_header_is_among_those_that_may_come_once(api: httpx.Client) -> None:
    document = api.get("/openapi.json").json()
    named = {
        parameter["name"].lower()
        for operations in document["paths"].values()
        for operation in operations.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "header"
    }

    assert named
    assert named <= {name.lower() for name in SINGLE}
    assert all("400" in each["responses"] for item in document["paths"].values() for each in item.values())
