"""Signing in and out, and what a session allows."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, expect

from service.access.caller import Scope
from service.access.keys import new_key
from service.client.local_token import token_file
from service.jobs.job import utc_now
from tests.browser import PATIENCE_S
from tests.service.live_api import Service

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def visitor(service: Service) -> Iterator[httpx.Client]:
    """A browser without a session."""
    with httpx.Client(base_url=service.url, headers=BROWSER, trust_env=False, timeout=60) as visitor:
        yield visitor


def token_of(service: Service) -> str:
    return token_file(service.server.port).read_text()


def sign_in(visitor: httpx.Client, key: str) -> httpx.Response:
    return visitor.post("/sign-in", data={"key": key, "next": "jobs?state=failed"})


def make_key(service: Service, scope: Scope, user: str = "ada") -> tuple[str, str]:
    key, text = new_key(user, scope, created_by="a test", now=utc_now())
    service.store.add_key(key)
    return key.id, text


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("/", "sign-in?next="),
        ("/jobs?state=failed", "sign-in?next=jobs%3Fstate%3Dfailed"),
        ("/jobs/j1/logs", "../../sign-in?next=jobs%2Fj1%2Flogs"),
    ],
)
def test_a_page_asks_who_is_not_signed_in_to_sign_in(visitor: httpx.Client, path: str, to: str) -> None:
    answer = visitor.get(path)

    assert (answer.status_code, answer.headers["location"]) == (303, to)


def test_a_client_that_is_no_browser_is_told_what_is_missing(service: Service) -> None:
    answer = httpx.get(f"{service.url}/", trust_env=False, timeout=60)

    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")


def test_a_key_makes_a_session_that_no_script_and_no_other_site_can_use(
    visitor: httpx.Client, service: Service
) -> None:
    _, text = make_key(service, Scope.READ)
    answer = sign_in(visitor, text)

    assert 'content="0; url=jobs?state=failed"' in answer.text
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert text not in cookie
    assert "ada" in visitor.get("/").text


def test_the_session_ends_with_its_key(visitor: httpx.Client, service: Service) -> None:
    key_id, text = make_key(service, Scope.READ)
    sign_in(visitor, text)
    assert visitor.get("/").status_code == 200

    admin = {"Authorization": f"Bearer {token_of(service)}"}
    httpx.post(
        f"{service.url}/v1/keys/{key_id}/revoke", headers=admin, trust_env=False, timeout=60
    ).raise_for_status()

    assert visitor.get("/").status_code == 303
    assert visitor.get("/v1/jobs").status_code == 401


def test_a_session_does_what_its_key_may_with_the_token_against_forgery_alone(
    visitor: httpx.Client, service: Service
) -> None:
    _, text = make_key(service, Scope.SUBMIT)
    sign_in(visitor, text)
    token = visitor.get("/").text.partition('name="forgery-token" content="')[2].partition('"')[0]
    spec = {"model": {"class_path": "training.models.MLP"}, "data": {"class_path": "training.data.Digits"}}

    assert visitor.get("/v1/jobs").status_code == 200
    forged = visitor.post("/v1/jobs", json=spec)
    assert (forged.status_code, "X-CSRF-Token" in forged.json()["detail"]) == (403, True)
    assert visitor.post("/v1/jobs", json=spec, headers={"X-CSRF-Token": token[::-1]}).status_code == 403
    made = visitor.post("/v1/jobs", json=spec, headers={"X-CSRF-Token": token})
    assert (made.status_code, made.json()["user"]) == (201, "ada")
    assert visitor.put("/v1/secrets/A", content="b", headers={"X-CSRF-Token": token}).status_code == 403


def test_signing_out_ends_the_session_on_the_server(visitor: httpx.Client, service: Service) -> None:
    sign_in(visitor, token_of(service))
    cookies = dict(visitor.cookies)
    token = visitor.get("/").text.partition('name="forgery-token" content="')[2].partition('"')[0]

    assert visitor.post("/sign-out", headers={"X-CSRF-Token": token}).status_code == 204

    assert (
        httpx.get(
            f"{service.url}/", cookies=cookies, headers=BROWSER, trust_env=False, timeout=60
        ).status_code
        == 303
    )


def test_a_wrong_key_is_refused_in_a_sentence_and_makes_no_session(visitor: httpx.Client) -> None:
    answer = sign_in(visitor, "nonsense")

    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "Not a valid key" in answer.text


def test_the_link_of_up_signs_in_again_and_again(service: Service) -> None:
    for _ in range(2):
        with httpx.Client(base_url=service.url, headers=BROWSER, trust_env=False, timeout=60) as visitor:
            assert visitor.get("/sign-in", params={"token": token_of(service)}).status_code == 200
            assert visitor.get("/").status_code == 200


@pytest.mark.parametrize("wanted", ["//evil.example/", "https://evil.example/", "/\\evil.example", "../../x"])
def test_nobody_is_sent_elsewhere_after_signing_in(
    visitor: httpx.Client, service: Service, wanted: str
) -> None:
    answer = visitor.post("/sign-in", data={"key": token_of(service), "next": wanted})

    assert "evil" not in answer.text
    assert "../.." not in answer.text


def test_signing_in_is_in_the_audit_log(visitor: httpx.Client, service: Service) -> None:
    key_id, text = make_key(service, Scope.READ)
    sign_in(visitor, text)

    entries = service.store.list_audit(limit=5)[0]
    assert [(entry.who, entry.credential, entry.action) for entry in entries] == [
        ("ada", key_id, "POST /sign-in")
    ]


def test_a_wrong_key_is_in_the_audit_log_and_a_visit_is_not(visitor: httpx.Client, service: Service) -> None:
    for path in ("/", "/sign-in"):
        assert visitor.get(path).status_code in {200, 303}
    assert sign_in(visitor, "wrong").status_code == 401
    deadline = time.monotonic() + 60
    while not (entries := service.store.list_audit()[0]):
        assert time.monotonic() < deadline, "no entry"
        time.sleep(0.01)

    assert [(each.who, each.about, each.status) for each in entries] == [("", "/sign-in", 401)]


def test_a_browser_signs_in_with_a_key_and_comes_to_the_page_that_it_wanted(
    browser: Browser, service: Service
) -> None:
    _, text = make_key(service, Scope.READ)
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    page.goto(f"{service.url}/jobs?state=failed")
    page.get_by_label("API key").fill(text)
    page.get_by_role("button", name="Sign in").click()

    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    assert page.url == f"{service.url}/jobs?state=failed"
    expect(page.get_by_text("ada")).to_be_visible()
    page.close()
