"""The actions in the header of a job: each takes effect, and who may do none is told why."""

from __future__ import annotations

import json

import httpx
import pytest
from playwright.sync_api import Page

from service.access.caller import Scope
from service.access.keys import new_key
from service.jobs.job import State, utc_now
from tests.service.examples import make_spec
from tests.service.live_api import Service
from tests.service.saved import save_checkpoints
from tests.service.web.conftest import Console

HOSTILE = "<img src=x onerror=alert(1)>"


def submit(page: Page, name: str) -> None:
    page.click(f"#dialog-{name} [type=submit]")


def test_every_action_takes_effect(console: Console) -> None:
    service, store = console.service, console.service.store
    spec = make_spec(name=HOSTILE, resources={"workers": {"min": 1, "max": 4}}, training={"max_epochs": 3})
    job, _ = store.create_job(spec)
    page = console.open(f"/jobs/{job.id}/attempts")

    page.click("button:has-text('Pause')")
    page.wait_for_selector("#job-header >> text=paused")
    page.click("button:has-text('Resume')")
    page.wait_for_selector("#job-header .state:has-text('queued')")
    page.click("button:has-text('Priority…')")
    page.fill("#priority-value", "7")
    submit(page, "priority")
    page.wait_for_selector("#dialog-priority", state="hidden")
    assert store.get(job.id).priority == 7
    page.click("button:has-text('Resize…')")
    assert page.input_value("#resize-workers") == "4"
    console.check_accessible()
    page.fill("#resize-workers", "3")
    submit(page, "resize")
    page.wait_for_selector("#dialog-resize", state="hidden")
    assert store.get(job.id).wanted_workers == 3

    page.click("button:has-text('Cancel')")
    page.wait_for_selector(f"dialog[open]:has-text({json.dumps(HOSTILE)})")
    page.click("dialog[open] button:has-text('Back')")
    page.click("button:has-text('Cancel')")
    page.click("dialog[open] button:has-text('Cancel')")
    page.wait_for_selector("#job-header >> text=cancelled")
    assert page.locator("button:has-text('Pause')").count() == 0
    page.click("button:has-text('Retry…')")
    page.check("#dialog-retry input")
    submit(page, "retry")
    page.wait_for_selector("#job-header .state:has-text('queued')")
    assert store.get(job.id).from_scratch

    store.begin_again(job.id)
    service.start_job(job.id)
    save_checkpoints(service.storage / job.id, {10: 0.5})
    service.end_job(job.id, State.SUCCEEDED)
    page.click("button:has-text('Extend…')")
    page.fill("#extend-length", "8")
    submit(page, "extend")
    page.wait_for_function("id => !location.pathname.includes(id)", arg=job.id)
    extended = store.list_jobs(limit=1)[0][0]
    assert page.url.endswith(f"/jobs/{extended.id}")
    assert extended.spec["training"]["max_epochs"] == 8
    assert (extended.spec["start_from"]["job"], extended.spec["start_from"]["state"]) == (job.id, "all")

    console.open(f"/jobs/{job.id}")
    assert page.locator("a:has-text('Clone')").get_attribute("href") == f"../submit?clone={job.id}"
    page.click("button:has-text('Delete…')")
    assert HOSTILE in page.inner_text("#dialog-delete")
    console.allow("409")
    submit(page, "delete")
    page.wait_for_selector("#dialog-delete .problem:has-text('starts from its checkpoints')")
    store.request_cancel(extended.id)
    page.check("#dialog-delete input")
    submit(page, "delete")
    page.wait_for_selector("h1:has-text('Jobs')")
    assert job.id not in {each.id for each in store.list_jobs()[0]}


@pytest.mark.parametrize(
    ("user", "scope", "said"),
    [
        ("bob", Scope.READ, "Your key has the scope read: it shows jobs, and changes none."),
        ("bob", Scope.SUBMIT, "This job is of ada. Your key changes jobs of bob alone"),
        ("ada", Scope.SUBMIT, ""),
    ],
)
def test_who_may_change_nothing_is_told_why(service: Service, user: str, scope: Scope, said: str) -> None:
    job, _ = service.store.create_job(make_spec(), user="ada")
    key, text = new_key(user, scope, created_by="a test", now=utc_now())
    service.store.add_key(key)
    headers = {"Authorization": f"Bearer {text}"}
    page = httpx.get(f"{service.url}/jobs/{job.id}", headers=headers, trust_env=False, timeout=60).text

    assert said in page
    assert ('data-action="cancel"' in page) == (not said)
    assert ("?clone=" in page) == (scope is Scope.SUBMIT)
