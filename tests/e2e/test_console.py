"""The console on the real stack: a job is submitted, watched, steered and found again in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml
from playwright.sync_api import Browser, expect

from tests.browser import complaints_of, running_browser
from tests.e2e.stack import Stack, digits

MINUTE = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


def test_a_job_is_submitted_watched_and_steered(stack: Stack, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(2 * MINUTE)
    complaints = complaints_of(page, stack.url)
    link = re.search(r"console (http\S+)", (stack.folder / "up.log").read_text())
    assert link
    page.goto(link[1])
    page.wait_for_selector("h1:has-text('Overview')")

    training = {"global_batch_size": 64, "max_steps": 1_000_000}
    spec = digits(name="by-console", training=training, norm={"observe_every": 20})
    page.get_by_role("link", name="Submit", exact=True).click()
    page.fill("#spec", yaml.safe_dump(spec, sort_keys=False))
    page.wait_for_selector("#verdict:has-text('The spec is valid.')")
    page.click("#go")
    page.wait_for_url(re.compile(r"/jobs/j[0-9a-z]{20}$"))
    job_id = page.url.rpartition("/")[2]

    page.wait_for_selector("#job-header[data-state=running]")
    page.wait_for_selector("#job-header[data-step]:not([data-step='0'])")
    page.wait_for_selector(".chart h3:has-text('loss')")
    page.get_by_role("link", name="Logs", exact=True).click()
    page.wait_for_selector("text=training")
    page.get_by_role("link", name="Normalisation", exact=True).click()
    page.wait_for_selector("main canvas")
    page.wait_for_selector("option[value='features.1']", state="attached")

    page.get_by_role("button", name="Pause", exact=True).click()
    page.wait_for_selector("#job-header[data-state=paused]")
    page.get_by_role("button", name="Resume", exact=True).click()
    page.wait_for_selector("#job-header[data-state=running][data-attempt='2']")
    page.get_by_role("link", name="Files", exact=True).click()
    page.wait_for_selector("h2:has-text('Checkpoints')")
    page.wait_for_load_state()  # a click before its scripts run would be lost
    assert page.locator("main a[href*='/checkpoints/']").count() >= 1
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.locator("dialog[open]").get_by_role("button", name="Cancel", exact=True).click()
    page.wait_for_selector("#job-header[data-state=cancelled]")
    page.get_by_role("link", name="Attempts", exact=True).click()
    page.wait_for_selector("#attempt-1")
    expect(page.locator("tr[id^=attempt-]")).to_have_count(2)

    page.get_by_role("link", name="Overview", exact=True).click()
    page.wait_for_selector(f"#ended-{job_id} >> text=cancelled")
    assert "by-console" in page.inner_text("#timeline")
    page.get_by_role("link", name="Settings", exact=True).click()
    page.wait_for_selector("text=MLflow")
    context.close()
    assert not complaints
