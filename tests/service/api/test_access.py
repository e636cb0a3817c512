"""Who is let in: by key, scope, owner and rate; what browsers may; what the audit log says of it."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.types import Message

from service.access.caller import Scope
from service.access.keys import id_in, new_key
from service.access.limits import Limits
from service.access.rules import RULES
from service.api import access, sse
from service.api import refusals as api_refusals
from service.api.app import create_app
from service.api.browser_guard import SECURITY_HEADERS
from service.backends.memory_tracking import FakeResults
from service.jobs.job import utc_now
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_data, make_spec
from tests.service.live_api import find_ray
from tests.service.serving import Stage

Keys = Callable[..., str]
CLOSED = {key: rule.scope for key, rule in RULES.items() if rule.scope is not None}


@pytest.fixture
def open_api(stage: Stage, sqlite_store: Store) -> Iterator[httpx.Client]:
    """Without a key in its settings. The client sends the token."""
    with stage.showing(create_app(Settings(), sqlite_store, FakeResults())) as client:
        yield client


@pytest.fixture
def locked(sqlite_store: Store) -> FastAPI:
    find_ray(sqlite_store)
    return create_app(Settings(api_key=SecretStr("kéy")), sqlite_store, FakeResults())


@pytest.fixture
def locked_api(stage: Stage, locked: FastAPI) -> Iterator[httpx.Client]:
    """With a key in its settings. The client sends none."""
    with stage.showing(locked) as client:
        yield client


@pytest.fixture
def make(sqlite_store: Store) -> Keys:
    """make(user, scope) makes a key and returns its text; `days` until it ends; `revoked`: it has."""

    def key(user: str = "ada", scope: str = "submit", *, days: int = 1, revoked: bool = False) -> str:
        expires_at = utc_now() + timedelta(days=days)
        made, text = new_key(user, Scope(scope), created_by="root", now=utc_now(), expires_at=expires_at)
        sqlite_store.add_key(made)
        if revoked:
            sqlite_store.revoke_key(made.id)
        return text

    return key


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@dataclass
class Answer:
    """Of the app, called without a server in between. read: whether it asked for the body."""

    read: bool = False
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def ask(app: FastAPI, route: str, key: str | None) -> Answer:
    return asyncio.run(answer_of(app, route, key))


async def answer_of(app: FastAPI, route: str, key: str | None, address: str = "127.0.0.1") -> Answer:
    method, _, declared = route.partition(" ")
    path = re.sub(r"\{\w+(:path)?\}", "none", declared)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    if key is not None:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    answer = Answer()

    async def receive() -> Message:
        if answer.read:
            return {"type": "http.disconnect"}
        answer.read = True
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": (address, 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return answer


# Every route


def test_the_table_has_every_route_and_no_other(locked: FastAPI) -> None:
    declared = {
        re.sub(r"\{(\w+):path\}", r"{\1}", route)
        for route in RULES
        if route not in {"GET /docs", "GET /openapi.json"}
    }

    paths = locked.openapi()["paths"]
    assert declared == {f"{method.upper()} {path}" for path, item in paths.items() for method in item}


def test_each_route_is_open_to_its_scope_alone(locked: FastAPI, make: Keys) -> None:
    """Who is refused is refused before the body is read."""
    by_scope = {scope: make("ada", scope) for scope in Scope}
    unknown = {
        None,
        "",
        "nonsense",
        by_scope[Scope.ADMIN][:-1] + "!",
        by_scope[Scope.ADMIN][:-43] + 43 * "A",
        make("ada", "admin", days=-1),
        make("ada", "admin", revoked=True),
    }

    async def ask_all() -> None:
        for route, needed in CLOSED.items():
            too_small = {key for scope, key in by_scope.items() if not scope.includes(needed)}
            for key in unknown | too_small:
                answer = await answer_of(locked, route, key)

                assert (answer.status, answer.read) == (403 if key in too_small else 401, False), route
                assert answer.headers["content-type"] == "application/problem+json"
                assert ("www-authenticate" in answer.headers) is (answer.status == 401)
                assert json.loads(answer.body)["status"] == answer.status
                assert "kéy" not in answer.body.decode()
            for key in {"kéy", *by_scope.values()} - too_small:
                assert (await answer_of(locked, route, key)).status not in {0, 401, 403, 429}, route

    asyncio.run(ask_all())


@pytest.mark.parametrize("route", ["GET /healthz", "GET /readyz"])
def test_health_needs_no_key(locked: FastAPI, route: str) -> None:
    assert ask(locked, route, None).status in {200, 503}


def test_why_it_is_not_ready_is_told_to_holders_of_a_key_alone(stage: Stage, sqlite_store: Store) -> None:
    with stage.showing(create_app(Settings(), sqlite_store, FakeResults())) as client:
        known = client.get("/readyz")
        stranger = httpx.get(f"{stage.url}/readyz", trust_env=False, timeout=60)

    assert (known.status_code, stranger.status_code) == (503, 503)
    assert known.json()["checks"]["scheduler"]["state"] == "unavailable"
    assert "checks" not in stranger.json()
    assert "scheduler" not in stranger.text


def test_a_route_that_does_not_exist_is_not_found_by_holders_of_a_key_alone(
    locked: FastAPI, make: Keys
) -> None:
    assert ask(locked, "GET /v1/nothing", None).status == 401
    assert ask(locked, "GET /v1/nothing", make("ada", "read")).status == 404
    assert ask(locked, "POST /healthz", make("ada", "read")).status == 405


def test_a_route_that_the_table_lacks_needs_admin(locked: FastAPI, make: Keys) -> None:
    @locked.post("/v1/new")
    def new() -> str:
        return "done"

    assert ask(locked, "POST /v1/new", make("ada", "submit")).status == 403
    assert ask(locked, "POST /v1/new", make("ada", "admin")).status == 200


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer nope", "Basic kéy", f"Basic {4 * 'a'}"])
def test_other_ways_to_say_it_are_refused(locked_api: httpx.Client, given: str) -> None:
    headers = httpx.Headers({"Authorization": given}, encoding="utf-8")

    assert locked_api.get("/v1/jobs", headers=headers).status_code == 401


def test_with_the_key_v1_is_open_under_any_name(locked_api: httpx.Client) -> None:
    headers = httpx.Headers({"Authorization": "Bearer kéy", "Host": "training.example.com"}, encoding="utf-8")

    assert locked_api.get("/v1/jobs", headers=headers).status_code == 200


def test_a_key_that_opens_nothing_is_told_so_and_where_to_get_one(
    stage: Stage, sqlite_store: Store, make: Keys
) -> None:
    real = make("ada")
    unknown = ["nonsense", f"{real[:-43]}{43 * 'A'}", f"syncbn_{12 * '0'}_{43 * 'A'}"]
    for settings in (Settings(), Settings(api_key=SecretStr("kéy"))):
        app = create_app(settings, sqlite_store, FakeResults(), token_file="/somewhere/token")
        with stage.showing(app) as client:
            (said,) = {client.get("/v1/jobs", headers=bearer(key)).json()["detail"] for key in unknown}

            assert "opens nothing here: it is unknown, was revoked or has expired" in said
            assert "`syncbn keys create`" in said
            assert "no SYNCBN_API_KEY" not in said
            assert ("/somewhere/token" in said) is (settings.api_key is None)
            for key in (make("ada", revoked=True), make("ada", days=-1)):
                assert f"the key {key[7:19]} " in client.get("/v1/jobs", headers=bearer(key)).json()["detail"]


# Users


def test_a_key_gives_its_user_to_jobs_and_steers_those_alone(
    locked_api: httpx.Client, make: Keys, sqlite_store: Store
) -> None:
    ada, bob, root = make("ada"), make("bob"), make("eve", "admin")
    job = locked_api.post("/v1/jobs", json=make_data(), headers=bearer(ada)).json()

    assert job["user"] == "ada"
    refused = locked_api.post(f"/v1/jobs/{job['id']}/cancel", headers=bearer(bob))
    assert refused.status_code == 403
    assert "is of ada" in refused.json()["detail"]
    assert locked_api.get(f"/v1/jobs/{job['id']}", headers=bearer(bob)).status_code == 200
    assert locked_api.post(f"/v1/jobs/{job['id']}/pause", headers=bearer(ada)).status_code == 202
    assert locked_api.post(f"/v1/jobs/{job['id']}/resume", headers=bearer(root)).status_code == 202
    sqlite_store.create_job(make_spec())
    listed = locked_api.get("/v1/jobs", params={"user": "ada"}, headers=bearer(bob)).json()["items"]
    assert [each["id"] for each in listed] == [job["id"]]


def test_a_job_of_no_user_is_steered_by_admins_alone(
    locked_api: httpx.Client, make: Keys, sqlite_store: Store
) -> None:
    job, _ = sqlite_store.create_job(make_spec())

    refused = locked_api.post(f"/v1/jobs/{job.id}/cancel", headers=bearer(make("ada")))
    assert refused.status_code == 403
    assert "of no user" in refused.json()["detail"]
    absent = locked_api.post(f"/v1/jobs/j{20 * '0'}/cancel", headers=bearer(make("ada")))
    assert absent.status_code == 404


def test_a_sweep_and_its_jobs_are_of_the_user_of_the_key(locked_api: httpx.Client, make: Keys) -> None:
    ada, bob = make("ada"), make("bob")
    body = {"spec": make_data(), "repeat": 2}
    sweep = locked_api.post("/v1/sweeps", json=body, headers=bearer(ada)).json()

    assert sweep["user"] == "ada"
    jobs = locked_api.get("/v1/jobs", params={"user": "ada"}, headers=bearer(bob)).json()["items"]
    assert len(jobs) == 2
    for command, key, status in (("cancel", bob, 403), ("pause", ada, 202), ("cancel", ada, 202)):
        answer = locked_api.post(f"/v1/sweeps/{sweep['id']}/{command}", headers=bearer(key))
        assert answer.status_code == status


# Keys


def test_a_key_is_made_shown_once_used_and_revoked(locked_api: httpx.Client, make: Keys) -> None:
    admin = bearer(make("root", "admin"))
    body = {"user": "ada", "scope": "submit", "expires_at": (utc_now() + timedelta(days=1)).isoformat()}

    answer = locked_api.post("/v1/keys", json=body, headers=admin)

    assert answer.status_code == 201
    made = answer.json()
    assert made["key"].startswith(f"syncbn_{made['id']}_")
    assert locked_api.get("/v1/jobs", headers=bearer(made["key"])).status_code == 200
    listed = locked_api.get("/v1/keys", headers=admin)
    assert made["key"][-20:] not in listed.text
    (used,) = (key for key in listed.json()["items"] if key["id"] == made["id"])
    assert used["last_used_at"] is not None
    assert used["created_by"] == "root"
    assert locked_api.post(f"/v1/keys/{made['id']}/revoke", headers=admin).status_code == 200
    refused = locked_api.get("/v1/jobs", headers=bearer(made["key"]))
    assert refused.status_code == 401
    assert "was revoked" in refused.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/events?after=0", "/v1/jobs/{}/events", "/v1/jobs/{}/logs?follow=true"])
def test_a_stream_ends_with_the_key_that_opened_it(
    path: str,
    locked_api: httpx.Client,
    make: Keys,
    sqlite_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.1)
    job = sqlite_store.create_job(make_spec())[0]
    key, admin = make("ada", "read"), make("root", "admin")
    with locked_api.stream("GET", path.format(job.id), headers=bearer(key)) as stream:
        parts = stream.iter_text()
        while "still here" not in next(parts):
            pass
        for change in (f"/v1/keys/{id_in(key)}/revoke", f"/v1/jobs/{job.id}/cancel"):
            assert locked_api.post(change, headers=bearer(admin)).is_success

        rest = "".join(parts)  # to its end

    assert "cancelled" not in rest


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"user": "a b"}, "user"),
        ({"user": ""}, "user"),
        ({"user": "ada\n"}, "user"),
        ({"user": "scheduler"}, "user"),
        ({"scope": "root"}, "scope"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2101-01-01T00:00:00"}, "expires_at"),
        ({"other": 1}, "other"),
    ],
)
def test_what_is_no_key_is_refused_by_name(open_api: httpx.Client, changes: dict[str, Any], key: str) -> None:
    answer = open_api.post("/v1/keys", json={"user": "ada", "scope": "read", **changes})

    assert answer.status_code == 422
    assert [problem["key"] for problem in answer.json()["errors"]] == [key]


# Limits


def test_who_asks_too_often_is_told_when_to_ask_again(
    stage: Stage, sqlite_store: Store, make: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "Limits", partial(Limits, clock=lambda: 0.0))
    settings = Settings(requests_per_second=1)
    ada, bob = make("ada", "read"), make("bob", "read")
    with stage.showing(create_app(settings, sqlite_store, FakeResults())) as client:
        statuses = [client.get("/v1/jobs", headers=bearer(ada)).status_code for _ in range(10)]
        refused = client.get("/v1/jobs", headers=bearer(ada))
        other = client.get("/v1/jobs", headers=bearer(bob))

    assert statuses == [200] * 10
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert int(refused.headers["retry-after"]) >= 1
    assert other.status_code == 200


# The token


def test_without_a_key_the_token_is_asked_for_and_the_refusal_says_where_it_is(
    stage: Stage, sqlite_store: Store
) -> None:
    app = create_app(
        Settings(), sqlite_store, FakeResults(), local_token="secret", token_file="/somewhere/token"
    )
    with stage.showing(app) as client:
        refused = client.get("/v1/jobs", headers={"Authorization": ""})
        opened = client.get("/v1/jobs")

    assert (refused.status_code, opened.status_code) == (401, 200)
    assert '"Authorization: Bearer $(cat /somewhere/token)"' in refused.json()["detail"]
    assert "secret" not in refused.text


def test_without_a_key_in_the_settings_the_stored_ones_open(open_api: httpx.Client, make: Keys) -> None:
    assert open_api.get("/v1/jobs", headers=bearer(make("ada", "read"))).status_code == 200


# The audit log


def test_every_request_that_was_to_change_something_is_in_the_log(
    locked_api: httpx.Client, make: Keys
) -> None:
    ada, bob, root = bearer(make("ada")), bearer(make("bob")), bearer(make("root", "admin"))
    job = locked_api.post("/v1/jobs", json=make_data(), headers=ada | {"Idempotency-Key": "k"}).json()["id"]
    locked_api.post("/v1/jobs", json=make_data(), headers=ada | {"Idempotency-Key": "k"})
    locked_api.post("/v1/jobs", json={"model": 1}, headers=ada)
    locked_api.post("/v1/jobs/validate", json=make_data(), headers=ada)
    locked_api.post(f"/v1/jobs/{job}/cancel", headers=bob)
    locked_api.post(f"/v1/jobs/{job}/cancel", headers=ada)
    locked_api.put("/v1/secrets/TOKEN", content="hush", headers=root)

    entries = locked_api.get("/v1/audit", headers=root).json()["items"]

    assert [(each["who"], each["about"], each["result"], each["status"]) for each in entries] == [
        ("root", "/v1/secrets/TOKEN", "refused", 422),
        ("ada", f"/v1/jobs/{job}/cancel", "done", None),
        ("bob", f"/v1/jobs/{job}/cancel", "refused", 403),
        ("ada", "/v1/jobs", "refused", 422),
        ("ada", f"/v1/jobs/{job}", "done", 201),
        ("ada", f"/v1/jobs/{job}", "done", None),
    ]
    assert entries[1]["action"] == "POST /v1/jobs/{job_id}/cancel"
    assert entries[1]["address"] == "127.0.0.1"
    assert "hush" not in json.dumps(entries)


Request = tuple[str, str | None, str]
"""A route, a key and an address."""


class Minute:
    """Ends when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.over = anyio.Event()
        monkeypatch.setattr(api_refusals, "_the_time_is_over", self.over.wait)


def refusals(
    app: FastAPI, root: str, requests: Sequence[Request], *, until: int, minute: Minute | None = None
) -> list[dict[str, Any]]:
    """The refusals in the log, oldest first, once there are `until` after the requests and the minute."""

    async def play() -> list[dict[str, Any]]:
        for route, key, address in requests:
            await answer_of(app, route, key, address)
        if minute is not None:
            minute.over.set()
        with anyio.fail_after(60):
            while True:
                answer = await answer_of(app, "GET /v1/audit", root)
                found = [each for each in json.loads(answer.body)["items"] if each["status"]]
                if len(found) >= until:
                    return found[::-1]
                await anyio.sleep(0.01)

    return asyncio.run(play())


def test_refusals_at_the_door_are_in_the_log_the_first_at_once(locked: FastAPI, make: Keys) -> None:
    ada, old, root = make("ada", "read"), make("bob", days=-1), make("root", "admin")
    requests: list[Request] = [
        ("GET /v1/jobs", None, "10.0.0.1"),
        ("POST /v1/jobs", ada, "10.0.0.2"),
        ("GET /v1/queue", old, "10.0.0.3"),
        ("GET /v1/jobs", None, "10.0.0.1"),
    ]

    found = refusals(locked, root, requests, until=3)

    seen = {(each["address"], each["who"], each["action"], each["status"], each["count"]) for each in found}
    assert seen == {
        ("10.0.0.1", "", "GET /v1/jobs", 401, 1),
        ("10.0.0.2", "ada", "POST /v1/jobs", 403, 1),
        ("10.0.0.3", "", "GET /v1/queue", 401, 1),
    }
    (expired,) = (each for each in found if each["address"] == "10.0.0.3")
    assert expired["credential"] == id_in(old)
    assert not any(key[-20:] in json.dumps(found) for key in (ada, old))


def test_repeated_refusals_share_an_entry_that_counts_them(
    locked: FastAPI, make: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    minute = Minute(monkeypatch)
    wrong = [("GET /v1/jobs", "nonsense", "10.0.0.1")] * 29 + [("GET /v1/queue", "nonsense", "10.0.0.1")]

    first, second = refusals(locked, make("root", "admin"), wrong, until=2, minute=minute)

    assert (first["count"], first["about"]) == (1, "/v1/jobs")
    assert (second["count"], second["about"]) == (29, "/v1/queue")


def test_strangers_from_many_addresses_add_few_entries(
    locked: FastAPI, make: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    minute, most = Minute(monkeypatch), api_refusals.MOST_AT_ONCE
    strangers = [("GET /v1/jobs", None, f"10.0.{number // 250}.{number % 250}") for number in range(500)]

    found = refusals(locked, make("root", "admin"), strangers, until=most + 2, minute=minute)

    assert sum(each["count"] for each in found) == 500
    assert sorted(each["count"] for each in found if each["address"] == "several") == [1, 499 - most]
    assert len(found) == most + 2


def test_who_asks_too_often_is_in_the_log(
    sqlite_store: Store, make: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "Limits", partial(Limits, clock=lambda: 0.0))
    app = create_app(Settings(requests_per_second=1), sqlite_store, FakeResults())
    requests = [("GET /v1/jobs", make("ada", "read"), "10.0.0.1")] * 11

    (found,) = refusals(app, make("root", "admin"), requests, until=1)

    assert (found["who"], found["status"]) == ("ada", 429)


def test_a_refusal_does_not_wait_for_the_log(
    locked: FastAPI, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(sqlite_store, "add_audit", lambda *_: released.wait(60))
    try:
        assert ask(locked, "GET /v1/jobs", None).status == 401
    finally:
        released.set()


def test_the_log_is_paged(locked_api: httpx.Client, make: Keys) -> None:
    ada, root = bearer(make("ada")), bearer(make("root", "admin"))
    for number in range(3):
        locked_api.post(f"/v1/jobs/none-{number}/cancel", headers=ada)

    first = locked_api.get("/v1/audit", params={"limit": 2, "user": "ada"}, headers=root).json()
    rest = {"limit": 2, "user": "ada", "cursor": first["next_cursor"]}
    second = locked_api.get("/v1/audit", params=rest, headers=root).json()

    found = [each["about"] for each in [*first["items"], *second["items"]]]
    assert found == [f"/v1/jobs/none-{number}/cancel" for number in (2, 1, 0)]
    assert second["next_cursor"] is None


# Browsers


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "[::1]:8000", "127.9.9.9:1"])
def test_without_a_key_this_machine_is_served(open_api: httpx.Client, host: str) -> None:
    assert open_api.get("/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.com", "127.0.0.1.evil.com", "localhost.evil.com", "10.0.0.1", "", "[", "0.0.0.0", "a@localhost"],
)
def test_without_a_key_other_names_are_refused(open_api: httpx.Client, host: str) -> None:
    response = open_api.get("/v1/jobs", headers={"Host": host})

    assert response.status_code == 403
    assert response.headers["content-type"] == "application/problem+json"
    assert "SYNCBN_API_KEY" in response.json()["detail"]


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "http://127.0.0.1:1"])
def test_pages_from_elsewhere_may_not_change_anything(open_api: httpx.Client, origin: str) -> None:
    headers = {"Origin": origin}

    assert open_api.post("/v1/jobs", json=make_data(), headers=headers).status_code == 403
    assert open_api.get("/v1/jobs", headers=headers).json()["items"] == []


def test_pages_of_the_service_itself_may(open_api: httpx.Client) -> None:
    own = str(open_api.base_url).rstrip("/")

    assert open_api.post("/v1/jobs", json=make_data(), headers={"Origin": own}).status_code == 201


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/healthz", {}), ("/v1/jobs", {}), ("/v1/jobs", {"Host": "evil.com"}), ("/none", {})],
)
def test_every_answer_has_the_headers_that_protect_browsers(
    open_api: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    answer = open_api.get(path, headers=headers | {"Origin": "http://evil.com"})

    assert {name.lower() for name in SECURITY_HEADERS} <= {name.lower() for name in answer.headers}
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_no_page_from_elsewhere_gets_a_permission(open_api: httpx.Client) -> None:
    asked = {"Origin": "http://evil.com", "Access-Control-Request-Method": "POST"}
    answer = open_api.options("/v1/jobs", headers=asked)

    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_a_browser_asks_for_the_key_of_the_documentation_and_of_nothing_else(
    locked: FastAPI, locked_api: httpx.Client, path: str
) -> None:
    locked.openapi_schema = {"info": {"title": "short"}, "paths": {}}
    password = {"Authorization": "Basic " + base64.b64encode("me:kéy".encode()).decode()}

    assert locked_api.get(path).headers["www-authenticate"].startswith("Basic")
    assert locked_api.get(path, headers=password).status_code == 200
    assert locked_api.get("/v1/jobs", headers=password).status_code == 401


def test_the_documentation_shows_every_route_and_loads_nothing(locked: FastAPI) -> None:
    page = ask(locked, "GET /docs", "kéy")
    text = page.body.decode()

    assert page.status == 200
    for route in RULES:
        if route not in {"GET /docs", "GET /openapi.json"}:
            assert re.sub(r":path\}", "}", route) in text
    assert not re.search(r"<script|src=|<link|https?://[^<]*\.(js|css)", text)
    assert "default-src 'none'; style-src 'sha256-" in page.headers["content-security-policy"]
