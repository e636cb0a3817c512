"""Requests that no honest client sends: each is refused by its key, before anything is stored."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.errors import Refused
from service.jobs.job import State
from service.queue.store import Store
from service.settings import Settings
from service.user_code.check import check_archive
from service.user_code.class_paths import MAX_CLASSES
from tests.service.examples import make_data, make_spec
from tests.service.serving import Stage
from tests.service.user_code.test_check import make_archive

JSON, YAML = "application/json", "application/yaml"
METRIC = {"class_path": "torchmetrics.classification.MulticlassAccuracy"}
RELU = {"class_path": "torch.nn.ReLU"}


@pytest.fixture
def api(stage: Stage, sqlite_store: Store) -> Iterator[httpx.Client]:
    with stage.showing(create_app(Settings(), sqlite_store, FakeResults())) as client:
        yield client


def keys(response: httpx.Response) -> list[str]:
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return [error["key"] for error in response.json()["errors"]]


def nested(levels: int) -> Any:
    return json.loads('{"a":' * levels + "1" + "}" * levels)


# Specs


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optimizer": {"init_args": nested(253)}}, "optimizer"),
        ({"labels": {f"l{n}": "" for n in range(20_000)}}, "labels"),
        ({"labels": {"k" * 201: ""}}, "labels." + "k" * 201),
        ({"labels": {"k": "v" * 2_001}}, "labels.k"),
        ({"metrics": {f"m{n}": METRIC for n in range(1_000)}}, "metrics"),
        ({"metrics": {"m" * 201: METRIC}}, "metrics." + "m" * 201),
        ({"trainer": {"callbacks": ["RichModelSummary"] * 1_000}}, f"trainer.callbacks.{MAX_CLASSES - 4}"),
        (
            {"model": {"class_path": "training.models.ConvNet", "init_args": {"widths": [RELU] * 1_000}}},
            f"model.init_args.widths.{MAX_CLASSES - 4}",
        ),
        ({"tracking": {"register_as": "a/b"}}, "tracking.register_as"),
    ],
)
def test_a_spec_of_too_much_is_refused_by_its_key(
    api: httpx.Client, sqlite_store: Store, changes: dict[str, Any], key: str
) -> None:
    assert keys(api.post("/v1/jobs", json=make_data(**changes))) == [key]
    assert sqlite_store.list_jobs()[0] == []


@pytest.mark.parametrize(
    "body",
    [
        *('priority: !!int ""', 'priority: !!int "_"', 'priority: !!int "-"', 'priority: !!int "1:"'),
        *("name: !!bool abc", "name: !!timestamp abc", 'name: !!float ""', "name: !!int [1]"),
        *("name: !!set [a]", "name: !!map abc", "name: !!omap x", "name: !!pairs x", "name: !!seq abc"),
        *('name: !!binary "é"', "!!python/object:os.system x: 1", "!!str [a]: 1", "%TAG ! x"),
    ],
)
def test_yaml_whose_tags_do_not_fit_is_refused_with_its_line(api: httpx.Client, body: str) -> None:
    response = api.post("/v1/jobs", content=body, headers={"content-type": YAML})

    assert keys(response) == [""]
    assert "line 1" in response.json()["detail"]


@pytest.mark.parametrize("place", ['{"\\ud800": "\\ud800"}', '{"model": {"init_args": {"a": ["\\ud800"]}}}'])
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(api: httpx.Client, place: str) -> None:
    assert keys(api.post("/v1/jobs", content=place, headers={"content-type": JSON}))


def test_aliases_are_counted_by_what_they_stand_for(api: httpx.Client) -> None:
    scalar = "a: &a " + "x" * 500_000
    for aliases in (10, 150_000):
        response = api.post("/v1/jobs", content=f"{scalar}\nb: [{','.join(['*a'] * aliases)}]")

        assert keys(response) == [""]
        assert "aliases" in response.json()["detail"]


def test_a_job_of_an_earlier_version_that_is_nested_too_deeply_is_shown_without_its_depths(
    api: httpx.Client, sqlite_store: Store
) -> None:
    spec = make_spec(optimizer={"init_args": nested(253)})
    job, _ = sqlite_store.create_job(spec)
    sqlite_store.create_job(make_spec())

    items = api.get("/v1/jobs").raise_for_status().json()["items"]

    assert len(items) == 2
    assert "nested too deeply" in json.dumps(items[1]["spec"]["optimizer"])
    assert api.get(f"/v1/jobs/{job.id}").json() == items[1]
    for path in ("/v1/queue", "/v1/cluster"):
        assert api.get(path).status_code in {200, 503}


# Sweeps


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"grid": {f"optimizer.init_args.a{n}": [1] for n in range(20_000)}}, "grid"),
        ({"grid": {"optimizer.init_args" + ".a" * 10_000: [1]}}, "grid"),
        ({"grid": {"optimizer.init_args" + ".a" * 200: [1]}}, ""),
        ({"grid": {"priority": list(range(1_001))}}, "grid.priority"),
        ({"random": {"count": 1, "space": {f"labels.a{n}": ["1"] for n in range(20_000)}}}, "random.space"),
        ({"repeat": list(range(1_001))}, "repeat"),
    ],
)
def test_a_sweep_of_too_much_is_refused_by_its_key(
    api: httpx.Client, sqlite_store: Store, changes: dict[str, Any], key: str
) -> None:
    found = keys(api.post("/v1/sweeps", json={"spec": make_data(), **changes}))

    assert [each for each in found if each == key or each.startswith(f"{key}.")], found
    assert sqlite_store.list_sweeps()[0] == []


# Archives


def patched(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    at = data.rindex(signature) + offset
    return data[:at] + value + data[at + len(value) :]


ARCHIVE = make_archive({"abc.py": b""})
DIRECTORY, END = b"PK\x01\x02", b"PK\x05\x06"


@pytest.mark.parametrize(
    "data",
    [
        patched(patched(ARCHIVE, DIRECTORY, 9, b"\x08"), DIRECTORY, 46, b"ab\xff"),  # UTF-8 by its flag
        patched(ARCHIVE, DIRECTORY, 6, b"\xc8"),  # version needed
        patched(ARCHIVE, END, 16, struct.pack("<I", 10)),  # offset of the directory
        patched(ARCHIVE, END, 16, struct.pack("<I", 10**9)),
        patched(ARCHIVE, END, 12, struct.pack("<I", 10**9)),  # its size
        patched(ARCHIVE, DIRECTORY, 42, struct.pack("<I", 2**31)),  # offset of the entry
        patched(ARCHIVE, DIRECTORY, 10, b"\x63"),  # method
    ],
)
def test_a_zip_with_a_false_directory_is_refused(api: httpx.Client, data: bytes) -> None:
    assert keys(api.post("/v1/code", content=data))[0].startswith("code")


def test_a_zip_with_any_bytes_changed_is_accepted_or_refused() -> None:
    whole, draw = make_archive({"a.py": b"x = 1\n" * 50, "é/b.py": b"", "d/e.py": b"y"}), random.Random(0)
    for _ in range(1_000):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with suppress(Refused):
            check_archive(bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]), 10_000)


def test_a_directory_of_a_million_entries_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_archive({"a": b""}) + DIRECTORY * 1_000_000
    monkeypatch.setattr("zipfile.ZipFile", pytest.fail)

    with pytest.raises(Refused):
        check_archive(data, 10_000)


# Bodies that are not wanted


def routes_with_body(app: Any) -> list[tuple[str, str]]:
    return [
        (method.upper(), path.replace("{name}", "report.md" if "report" in path else "TOKEN_A"))
        for path, operations in app.openapi()["paths"].items()
        for method in operations
        if method in {"post", "put", "patch", "delete"}
    ]


class Unread:
    """Calls an ASGI application with a body that must not be read; keeps the status and the content type."""

    def __init__(self, app: Any, method: str, path: str) -> None:
        self.app, self.reads, self.status, self.kind = app, 0, 0, b""
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }

    async def receive(self) -> dict[str, Any]:
        self.reads += 1
        return {"type": "http.request", "body": b" " * 2**16, "more_body": True}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.kind = message["status"], dict(message["headers"])[b"content-type"]

    async def call(self) -> None:
        await self.app(self.scope, self.receive, self.send)


@pytest.mark.anyio
async def test_without_the_key_no_byte_of_any_body_is_read(sqlite_store: Store) -> None:
    app = create_app(Settings(api_key=SecretStr("key")), sqlite_store, FakeResults())
    for method, path in routes_with_body(app):
        call = Unread(app, method, path)

        await call.call()

        assert (call.status, call.reads, call.kind) == (401, 0, b"application/problem+json"), path


@pytest.mark.anyio
async def test_a_body_without_an_end_is_not_read_to_it(sqlite_store: Store) -> None:
    app = create_app(Settings(max_code_bytes=2**20), sqlite_store, FakeResults())
    for method, path in routes_with_body(app):
        call = Unread(app, method, path)

        await call.call()

        assert call.reads * 2**16 <= 2**26, path
        assert call.status in {404, 413, 415, 422} or not call.reads, path


# Queries, and what they do not say


def test_two_values_of_one_label_are_two_conditions(api: httpx.Client, sqlite_store: Store) -> None:
    sqlite_store.create_job(make_spec(labels={"k": "2"}))

    def found(*labels: str) -> int:
        return len(api.get("/v1/jobs", params={"label": list(labels)}).json()["items"])

    assert (found("k:2"), found("k:1", "k:2"), found("k:2", "k:2")) == (1, 0, 1)


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ({"label": ["a:b"] * 101}, "label"),
        ({"label": "a:" + "b" * 3_000}, "label.0"),
        ({"state": ["queued"] * 21}, "state"),
        *(({name: "x" * 501}, name) for name in ("name", "experiment", "id", "sweep", "cursor")),
    ],
)
def test_a_query_of_too_much_is_refused(api: httpx.Client, query: dict[str, Any], key: str) -> None:
    assert keys(api.get("/v1/jobs", params=query)) == [key]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"labels": {"a:b": "x"}}, "labels.a:b"),
        ({"labels": {"": "x"}}, "labels"),
        ({"resources": {"gpus_per_worker": 1.5}}, "resources.gpus_per_worker"),
        ({"resources": {"gpus_per_worker": 1e-300}}, "resources.gpus_per_worker"),
        ({"resources": {"cpus_per_worker": 1e-5}}, "resources.cpus_per_worker"),
    ],
)
def test_what_could_never_be_found_or_start_is_refused(
    api: httpx.Client, changes: dict[str, Any], key: str
) -> None:
    spec = {"model": {"class_path": "training.models.MLP"}, "data": {"class_path": "training.data.Digits"}}

    for path in ("/v1/jobs", "/v1/jobs/validate"):
        assert keys(api.post(path, json=spec | changes)) == [key]


def test_head_is_get_without_a_body_on_every_route(api: httpx.Client, sqlite_store: Store) -> None:
    job, _ = sqlite_store.create_job(make_spec())
    for path, operations in api.get("/openapi.json").json()["paths"].items():
        if "get" in operations and not path.endswith("/events"):
            path = path.replace("{job_id}", job.id)
            got, head = api.get(path), api.head(path)

            assert (head.status_code, head.content) == (got.status_code, b""), path
            assert head.headers["content-type"] == got.headers["content-type"]


def test_head_of_a_stream_without_an_end_ends(api: httpx.Client, sqlite_store: Store) -> None:
    job, _ = sqlite_store.create_job(make_spec())

    for path in (f"/v1/jobs/{job.id}/events", f"/v1/jobs/{job.id}/logs?follow=true"):
        head = api.head(path)
        assert head.headers["content-type"].startswith("text/event-stream")
        assert sqlite_store.get(job.id).state is State.QUEUED
    assert api.post("/v1/jobs", json=make_data()).status_code == 201  # on the same connection


@pytest.mark.parametrize(
    ("method", "path", "key", "hint"),
    [
        ("GET", "/v1/jobs?stat=failed", "stat", "did you mean state?"),
        ("GET", "/v1/jobs?State=failed", "State", "did you mean state?"),
        ("GET", "/v1/events?state=failed", "state", "known here: name, experiment, label, sweep, after"),
        ("POST", "/v1/jobs/{}/retry?from_scratch=true", "from_scratch", "known here: none"),
        ("DELETE", "/v1/jobs/{}?with_runs=true", "with_runs", "did you mean with_run?"),
    ],
)
def test_a_parameter_that_the_route_does_not_know_is_refused(
    api: httpx.Client, sqlite_store: Store, method: str, path: str, key: str, hint: str
) -> None:
    job = sqlite_store.create_job(make_spec())[0]

    answer = api.request(method, path.format(job.id))

    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"key": key, "message": f"unknown parameter; {hint}"}]
