"""The page of settings: who asks, health, and what administrators look after."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import expect

from service.access.caller import Scope
from service.access.keys import new_key
from service.client.local_token import token_file
from service.jobs.job import State, utc_now
from service.secrets import Secrets
from tests.service.examples import make_spec
from tests.service.live_api import SECRETS_KEY, FaultyApp, LiveServer, Service, live_service
from tests.service.web.conftest import NARROW, WIDE, Console
from training.protocol import log_file

HOSTILE = '"><img src=x onerror=alert(1)>'


@pytest.fixture
def service(live_server: LiveServer[FaultyApp], tmp_path: Path) -> Iterator[Service]:
    """It keeps no logs of ended jobs."""
    with live_service(live_server, tmp_path, retention_logs_days=0) as service:
        yield service


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_everything_is_there_and_fits(console: Console, size: tuple[int, int]) -> None:
    store = console.service.store
    key, _ = new_key("ada", Scope.READ, created_by=HOSTILE, now=utc_now(), expires_at=utc_now())
    store.add_key(key)
    Secrets(store, SECRETS_KEY, {}).put("TOKEN", "hidden value")
    console.page.set_viewport_size({"width": size[0], "height": size[1]})

    page = console.open("/settings")

    page.wait_for_selector("#findings li.fault >> text=MLflow")  # there is none at its address
    assert "→" in page.inner_text("#findings")
    text = page.inner_text("main")
    for each in ("token of this machine", "ends", "syncbn", "TOKEN", "SYNCBN_RETENTION_LOGS_DAYS", "never"):
        assert each in text
    assert "hidden value" not in page.content()
    assert "expired" in page.inner_text(f"#key-{key.id}")
    console.check_fits()
    console.check_accessible()


def test_a_key_is_shown_once_and_revoked(console: Console) -> None:
    page = console.open("/settings")
    page.fill("#key-user", "grace")
    page.select_option("#key-scope", "read")
    page.fill("#key-ends", "2999-12-31")
    page.click("text=Make a key")
    page.wait_for_selector("#new-key >> text=shown only now")
    text = page.inner_text("#new-key code")
    answer = httpx.get(
        f"{console.service.url}/v1/jobs",
        headers={"Authorization": f"Bearer {text}"},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 200

    page.click("#new-key >> text=Copy")
    with page.expect_navigation():  # a click before its scripts run would be lost
        page.click("#new-key >> text=I have it")

    [key] = console.service.store.list_keys()
    page.wait_for_selector(f"#key-{key.id} >> text=2999-12-31")
    assert (key.user, key.scope) == ("grace", Scope.READ)
    assert text not in page.content()
    page.click(f"#key-{key.id} >> text=Revoke")
    page.click("dialog >> text=Revoke >> nth=-1")
    expect(page.locator(".notice")).to_have_text("The key is revoked.")  # the page's scripts run again
    expect(page.locator(f"#key-{key.id}")).to_contain_text("revoked")
    assert console.service.store.list_keys()[0].revoked_at is not None

    console.allow("422")
    page.fill("#key-user", "no spaces, please")
    page.click("text=Make a key")
    page.wait_for_selector("#make-key .problem")


def test_secrets_are_set_and_deleted(console: Console) -> None:
    store = console.service.store
    page = console.open("/settings")
    page.fill("#secret-name", "HF_TOKEN")
    page.fill("#secret-value", " a value ")
    page.click("text=Set a secret")
    page.wait_for_selector("#secret-HF_TOKEN")
    page.wait_for_selector(".notice:has-text('is set')")
    assert Secrets(store, SECRETS_KEY, {}).values(["HF_TOKEN"]) == {"HF_TOKEN": " a value "}

    page.click("#secret-HF_TOKEN >> text=Delete")
    page.click("dialog >> text=Delete >> nth=-1")

    page.wait_for_selector("text=There are no secrets.")
    assert not store.secret_names()


def test_retention_says_what_would_go_and_removes_it(console: Console) -> None:
    service = console.service
    page = console.open("/settings")
    page.click("#plan-cleanup")
    page.wait_for_selector("#cleanup:has-text('Nothing')")
    assert not page.is_visible("#clean-up")

    job, _ = service.store.create_job(make_spec(name="old"))
    service.start_job(job.id)
    service.print(job.id, "x" * 2048)
    service.end_job(job.id, State.SUCCEEDED)
    assert service.store.mark_archived(service.store.get(job.id))
    page.click("#plan-cleanup")
    page.wait_for_selector("#cleanup:has-text('Would go: 1 thing')")
    page.click("#clean-up")
    page.click("dialog >> text=Remove >> nth=-1")

    page.wait_for_selector("#cleanup:has-text('Removed: 1 thing')")
    assert not log_file(service.storage / job.id, 1, 0).exists()


def test_webhooks_are_added_tested_and_removed(console: Console) -> None:
    store, address = console.service.store, f"http://{urlsplit(console.service.url).netloc}/nothing"
    page = console.open("/settings")
    page.fill("#webhook-url", address)
    page.fill("#webhook-labels", f"team: a, x:{HOSTILE}")
    page.check("#add-webhook [value=failed]")
    page.click("text=Add a webhook")
    page.wait_for_selector("#new-webhook code:has-text('whsec_')")
    with page.expect_navigation():  # a click before its scripts run would be lost
        page.click("#new-webhook >> text=I have it")
    [webhook] = store.webhooks()
    assert (webhook.url, [*webhook.states], webhook.labels) == (
        address,
        [State.FAILED],
        {"team": "a", "x": HOSTILE},
    )

    row = f"#webhook-{webhook.id}"
    page.wait_for_selector(row)
    page.click(f"{row} >> text=Deliveries")
    page.wait_for_selector("#deliveries >> text=Nothing was sent yet")
    page.click(f"{row} >> text=Test")
    page.wait_for_selector(".notice:has-text('on its way')")
    page.click(f"{row} >> text=Deliveries")
    page.wait_for_selector("#deliveries >> text=webhook.test")
    console.check_accessible()
    page.click(f"{row} >> text=Remove")
    page.click("dialog >> text=Remove >> nth=-1")
    page.wait_for_selector("text=There are no webhooks.")
    assert not store.webhooks()


def test_the_audit_log_is_filtered_and_has_pages(console: Console) -> None:
    store = console.service.store
    key, text = new_key("ada", Scope.SUBMIT, created_by="a test", now=utc_now() - timedelta(days=1))
    store.add_key(key)
    with httpx.Client(
        base_url=console.service.url, headers={"Authorization": f"Bearer {text}"}, trust_env=False, timeout=60
    ) as client:
        for number in range(60):
            client.post(f"/v1/jobs/{number}/cancel")
    page = console.open("/settings")

    page.fill("#audit-user", "ada")
    page.click("section[aria-labelledby=audit] >> text=Show")

    page.wait_for_selector("text=of all users")
    rows = page.locator("section[aria-labelledby=audit] tbody tr")
    expect(rows).to_have_count(50)
    expect(rows.first).to_contain_text("/v1/jobs/59/cancel")
    page.click("text=Older entries")
    page.wait_for_selector("section[aria-labelledby=audit] tbody code:has-text('/v1/jobs/0/cancel')")
    expect(rows).to_have_count(10)


def test_others_see_themselves_and_the_service(service: Service) -> None:
    key, text = new_key("ada", Scope.SUBMIT, created_by="a test", now=utc_now())
    service.store.add_key(key)
    with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as visitor:
        visitor.post("/sign-in", data={"key": text})
        page = visitor.get("/settings").text
        assert "ada" in page
        assert key.id in page
        assert "for administrators" in page
        assert "make-key" not in page
        assert 'id="audit"' not in page


@pytest.mark.parametrize("query", ["cursor=nonsense", "user=%00"])
def test_what_makes_no_sense_is_a_sentence(service: Service, query: str) -> None:
    headers = {"Authorization": f"Bearer {token_file(service.server.port).read_text()}"}
    answer = httpx.get(f"{service.url}/settings?{query}", headers=headers, trust_env=False, timeout=60)

    assert answer.status_code == 422
    assert 'class="problem"' in answer.text
