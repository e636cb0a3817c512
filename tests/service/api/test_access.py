from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_data
from tests.service.live_api import find_ray
from tests.service.serving import Stage


@pytest.fixture
def open_api(stage: Stage, sqlite_store: Store) -> Iterator[httpx.Client]:
    with stage.showing(create_app(Settings(), sqlite_store, FakeResults())) as client:
        yield client


@pytest.fixture
def locked_api(stage: Stage, sqlite_store: Store) -> Iterator[httpx.Client]:
    find_ray(sqlite_store)
    settings = Settings(api_key=SecretStr("kéy"))
    with stage.showing(create_app(settings, sqlite_store, FakeResults())) as client:
        yield client


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer nope", "Basic kéy"])
def test_without_the_key_v1_is_closed(locked_api: httpx.Client, given: str | None) -> None:
    headers = httpx.Headers({"Authorization": given} if given is not None else {}, encoding="utf-8")
    for method, path in (
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("POST", "/v1/code"),
        ("GET", "/v1/queue"),
    ):
        response = locked_api.request(method, path, headers=headers)

        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"
        assert "kéy" not in response.text


def test_with_the_key_v1_is_open_under_any_name(locked_api: httpx.Client) -> None:
    headers = httpx.Headers({"Authorization": "Bearer kéy", "Host": "training.example.com"}, encoding="utf-8")

    assert locked_api.get("/v1/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json"])
def test_health_and_documentation_need_no_key(locked_api: httpx.Client, path: str) -> None:
    assert locked_api.get(path).status_code == 200


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
