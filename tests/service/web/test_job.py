"""The page of a job: its header, live, and its tabs."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Route, expect

from service.client.local_token import token_file
from service.jobs.expected import ExpectedStart
from service.jobs.job import State
from tests.service.examples import make_spec
from tests.service.live_api import Service
from tests.service.web.conftest import NARROW, WIDE, Console

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_header_says_all_of_the_job_and_is_live(console: Console, size: tuple[int, int]) -> None:
    service = console.service
    spec = make_spec(name="first", labels={"team": HOSTILE}, tracking={"experiment": '"><script>'})
    job, _ = service.store.create_job(spec)
    console.page.set_viewport_size({"width": size[0], "height": size[1]})
    page = console.open(f"/jobs/{job.id}")
    header = page.locator("#job-header")

    assert job.id in header.inner_text()
    assert f"team: {HOSTILE}" in header.inner_text()
    assert '"><script>' in header.inner_text()
    run = service.start_job(job.id)
    page.wait_for_selector("#job-header >> text=running")
    service.train(run, 1)
    page.wait_for_selector("#job-header >> text=step 1 of 4")
    text = header.inner_text()
    assert "25 %" in text
    assert "about 3 s left" in text
    assert "after a start-up of" in text
    assert "val_accuracy 0.25" in text
    assert header.locator("a", has_text="run in MLflow").get_attribute("href") == service.results.url(run)
    console.check_fits()
    console.check_accessible()

    service.end_job(job.id, State.FAILED, {"kind": "error", "type": "ValueError", "message": HOSTILE})
    page.wait_for_selector(f"#job-header .problem:has-text('ValueError: {HOSTILE}')")


def test_a_failure_is_said_in_a_line_and_its_evidence_is_folded(console: Console) -> None:
    service = console.service
    job, _ = service.store.create_job(make_spec(name="wrong"))
    service.start_job(job.id)
    said = "rank 0 failed at step 1: RuntimeError: mat1\nIt failed twice at step 1: no retry."
    evidence = "last lines of the log of rank 0:\n" + "    result = forward_call(*args)\n" * 60 + HOSTILE
    reason = f"{said}\n\n{evidence}"
    assert service.store.move(service.store.get(job.id), State.FAILED, reason=reason)

    page = console.open(f"/jobs/{job.id}")

    assert page.inner_text("#job-header .problem") == said
    expect(page.get_by_role("navigation", name="Parts of this job")).to_be_in_viewport()
    expect(page.locator("#job-header pre")).to_be_hidden()
    page.click("#job-header summary")
    assert page.locator("#job-header pre").inner_text() == evidence
    console.check_fits()
    console.check_accessible()


def test_the_job_that_another_waits_for_is_named_and_linked(console: Console) -> None:
    store = console.service.store
    first, waiting = (store.create_job(make_spec(name=name))[0] for name in ("first", "second"))
    unknown = ExpectedStart(at=None, because=f"the length of job {first.id} is not known")
    store.write_expected([(waiting, unknown)])

    page = console.open(f"/jobs/{waiting.id}")

    expect(page.locator("#job-header")).to_contain_text("no estimate: the length of job first is not known")
    page.get_by_role("link", name="first").click()
    expect(page.locator("#job-header")).to_contain_text(first.id)


@pytest.mark.parametrize("tab", ["", "/files"])
def test_a_job_that_is_deleted_while_its_page_is_open_says_so(console: Console, tab: str) -> None:
    console.allow("status of 404")
    service = console.service
    job, _ = service.store.create_job(make_spec(name="victim"))
    service.start_job(job.id)
    service.end_job(job.id, State.SUCCEEDED)
    page = console.open(f"/jobs/{job.id}{tab}")
    expect(page.get_by_role("button", name="Delete")).to_be_visible()

    service.store.delete_job(job.id)

    expect(page.locator("#job-header .problem")).to_contain_text("This job has been deleted.")
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)
    expect(page.get_by_role("link", name="Clone")).to_have_count(0)


def test_a_page_of_a_job_that_is_deleted_before_its_stream_begins_says_so(console: Console) -> None:
    console.allow("status of 404")
    service = console.service
    job, _ = service.store.create_job(make_spec(name="victim"))
    service.start_job(job.id)
    service.end_job(job.id, State.SUCCEEDED)

    def delete(route: Route) -> None:
        service.store.delete_job(job.id)
        route.continue_()

    for requests in ("**/live/**", "**/data/**"):
        console.page.route(requests, delete)
    page = console.open(f"/jobs/{job.id}")

    expect(page.locator("#job-header .problem")).to_contain_text("This job has been deleted.")
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)
    expect(page.locator("main")).not_to_contain_text("tries again")


def test_a_page_that_comes_back_to_a_deleted_job_does_not_say_that_the_service_is_away(
    console: Console,
) -> None:
    for part in ("Failed to load resource", "ERR_", "htmx:sse:error"):
        console.allow(part)
    service = console.service
    job, _ = service.store.create_job(make_spec(name="victim"))
    page = console.open(f"/jobs/{job.id}/files")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()

    service.server.stop()
    expect(page.locator("#away")).to_contain_text("does not answer")
    service.faults.refuse_with = [404] * 100
    service.server.start()

    expect(page.locator("#away")).to_contain_text("This has been deleted.")


def test_the_header_has_the_weights_as_soon_as_the_job_has_delivered_them(console: Console) -> None:
    service, digest = console.service, "0123456789abcdef" * 4
    job, _ = service.store.create_job(make_spec())
    service.start_job(job.id)
    page = console.open(f"/jobs/{job.id}")
    page.wait_for_selector("#job-header >> text=running")
    assert "Weights" not in page.inner_text("#job-header")

    service.end_job(job.id, State.SUCCEEDED, weights_sha256=digest)

    page.wait_for_selector("#job-header dd:has-text('0123456789ab')")
    assert page.get_attribute("#job-header dd code", "title") == f"SHA-256 {digest}"
    assert digest not in page.inner_text("#job-header")
    console.check_accessible()


def test_pages_that_are_not_there_say_so(service: Service) -> None:
    job, _ = service.store.create_job(make_spec())
    token = token_file(service.server.port).read_text()
    with httpx.Client(
        base_url=service.url, headers={"Authorization": f"Bearer {token}"}, timeout=60
    ) as client:
        assert client.get(f"/jobs/{job.id}").status_code == 200
        for path in (f"/jobs/{job.id}/nothing", "/jobs/j00000000000000000000", "/live/job-j0/tab"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert "<h1>" in answer.text
