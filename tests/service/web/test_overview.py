"""The first page: what runs, what waits and why, what has ended, the machines; live."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect

from service.jobs.expected import ExpectedStart
from service.jobs.job import State
from tests.service.examples import make_spec
from tests.service.web.conftest import NARROW, WIDE, Console


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_it_shows_everything_and_fits(console: Console, size: tuple[int, int]) -> None:
    service = console.service
    running, _ = service.store.create_job(make_spec(name="first"))
    run = service.start_job(running.id)
    service.train(run, 1)
    waiting, _ = service.store.create_job(make_spec(name="second"))
    service.store.note(waiting, "needs 2 workers of 1 CPU; 0 CPUs free")
    later = datetime.now(UTC) + timedelta(minutes=12, seconds=5)
    because = f"when job {running.id} ends"
    service.store.write_expected([(waiting, ExpectedStart(at=later, because=because))])
    ended, _ = service.store.create_job(make_spec(name="third"))
    service.start_job(ended.id)
    service.end_job(ended.id, State.FAILED)
    console.page.set_viewport_size({"width": size[0], "height": size[1]})

    page = console.open("/")

    expect(page.locator(f"#running-{running.id}")).to_contain_text(
        "25 %"
    )  # as soon as the service has seen it
    expect(page.locator(f"#waiting-{waiting.id}")).to_contain_text("needs 2 workers of 1 CPU; 0 CPUs free")
    expect(page.locator(f"#waiting-{waiting.id}")).to_contain_text("in about 12 min, when job first ends")
    cause = page.get_by_role("row", name="second").get_by_role("link", name="first")
    assert cause.get_attribute("href") == f"jobs/{running.id}"
    expect(page.locator(f"#ended-{ended.id}")).to_contain_text("failed")
    assert "127.0.0.1" in page.inner_text("section[aria-labelledby=machines-title]")
    for cell in page.locator("#waiting td, #ended td, #running td").all():
        place = cell.bounding_box()
        assert place is None or place["x"] + place["width"] <= size[0]  # also without scrolling a table
    console.check_fits()
    console.check_accessible()


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_it_says_who_uses_what(console: Console, size: tuple[int, int]) -> None:
    service, name = console.service, "<b>ada & co</b>"
    for user, gpus in ((name, 2), ("bob", 1), (name, 2), (None, 0)):
        spec = make_spec(resources={"workers": 1, "gpus_per_worker": gpus, "cpus_per_worker": 1.5})
        job, _ = service.store.create_job(spec, user=user)
        service.start_job(job.id)  # on two workers
    console.page.set_viewport_size({"width": size[0], "height": size[1]})

    page = console.open("/")

    rows = page.locator("#users tbody tr")
    expected = [(name, 2, 4, 6, 8), ("bob", 1, 2, 3, 2), ("without a user", 1, 2, 3, 0)]
    expect(rows).to_have_text(["\t".join(map(str, row)) for row in expected], use_inner_text=True)
    console.check_fits()
    console.check_accessible()
    rows.first.get_by_role("link").click()
    page.wait_for_url("**/jobs?state=running&user=*")
    expect(page.locator("tbody tr")).to_have_count(2)


def test_a_failure_stays_in_view_whatever_has_ended_since(console: Console) -> None:
    service = console.service
    old, _ = service.store.create_job(make_spec(name="old"))
    service.start_job(old.id)
    failed, _ = service.store.create_job(make_spec(name="wrong"))
    service.start_job(failed.id)
    reason = "rank 0 failed at step 1: RuntimeError: mat1\n\nlast lines of the log of rank 0:\n  File x"
    assert service.store.move(service.store.get(failed.id), State.FAILED, reason=reason)
    for number in range(13):
        job, _ = service.store.create_job(make_spec(name=f"later-{number}"))
        service.start_job(job.id)
        service.end_job(job.id, State.SUCCEEDED)
    service.end_job(old.id, State.SUCCEEDED)  # the last to end, and the first to be submitted

    page = console.open("/")

    row = page.locator(f"#failed-{failed.id}")
    expect(row).to_contain_text("RuntimeError: mat1")
    expect(row).not_to_contain_text("last lines")
    expect(page.locator("#ended tbody tr").first).to_contain_text("old")
    console.check_accessible()


def test_without_failures_there_is_no_section_of_them_until_one_comes(console: Console) -> None:
    job, _ = console.service.store.create_job(make_spec(name="first"))
    console.service.start_job(job.id)
    page = console.open("/")
    expect(page.locator("#failed")).to_be_hidden()

    console.service.end_job(job.id, State.FAILED, {"kind": "error", "type": "ValueError", "message": "no"})

    expect(page.locator(f"#failed-{job.id}")).to_be_visible()


def test_it_follows_without_a_reload(console: Console) -> None:
    page = console.open("/")
    page.wait_for_selector("text=Nothing waits.")

    job, _ = console.service.store.create_job(make_spec(name="later"))

    page.wait_for_selector(f"#waiting-{job.id}")
    assert page.get_attribute(f"#waiting-{job.id} a", "href") == f"jobs/{job.id}"  # under any prefix
    run = console.service.start_job(job.id)
    page.wait_for_selector(f"#running-{job.id}")
    console.service.train(run, 3)
    page.wait_for_selector(f"#running-{job.id} >> text=75 %")


def test_it_says_that_the_service_was_away_and_comes_back(console: Console) -> None:
    for part in ("Failed to load resource", "ERR_", "htmx:sse:error"):
        console.allow(part)
    page = console.open("/")
    page.wait_for_selector("text=Nothing waits.")

    console.service.server.stop()
    page.wait_for_selector("#away:has-text('does not answer')")
    console.service.server.start()

    page.wait_for_selector("#away:has-text('was away for')")
    job, _ = console.service.store.create_job(make_spec(name="afterwards"))
    page.wait_for_selector(f"#waiting-{job.id}")
    assert "does not answer" not in page.inner_text("#away")
