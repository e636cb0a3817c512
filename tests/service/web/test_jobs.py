"""The list of jobs: filters, orders and pages in the URL; live rows; what is done with those selected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from playwright.sync_api import expect

from service.client.local_token import token_file
from service.jobs.job import Job, State, new_job, utc_now
from service.queue import database
from service.queue.rows import insert_jobs
from tests.service.examples import make_spec
from tests.service.live_api import Service
from tests.service.web.conftest import NARROW, WIDE, Console
from training.protocol import Progress

MARKUP = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def create(service: Service, **changes: object) -> Job:
    return service.store.create_job(make_spec(**changes))[0]


@pytest.fixture
def visitor(service: Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {token_file(service.server.port).read_text()}"}
    with httpx.Client(base_url=service.url, trust_env=False, headers=headers, timeout=60) as visitor:
        yield visitor


def rows(text: str) -> list[str]:
    """The ids of the jobs on a page."""
    return [part.partition('"')[0] for part in text.split('<tr id="job-')[1:]]


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_it_shows_jobs_whatever_their_names_and_fits(console: Console, size: tuple[int, int]) -> None:
    service = console.service
    job = create(service, name=MARKUP, tracking={"experiment": MARKUP}, labels={"team": MARKUP})
    service.train(service.start_job(job.id), 1)
    service.store.note(create(service), MARKUP)
    console.page.set_viewport_size({"width": size[0], "height": size[1]})

    page = console.open(f"/jobs?label=team:{MARKUP}&name=*&since=1d&state=running&state=queued")

    assert page.inner_text("h1") == "Jobs 1"
    assert page.get_attribute(f"#job-{job.id} th", "title") == MARKUP
    expect(page.locator(f"#job-{job.id}")).to_contain_text("25 %")
    console.check_fits()
    console.check_accessible()
    console.open("/jobs")
    page.check(f"#job-{job.id} input")
    console.check_fits()
    console.check_accessible()


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_reason_is_read_without_scrolling_sideways(console: Console, size: tuple[int, int]) -> None:
    service = console.service
    job = create(service, name="waits")
    service.store.note(job, "needs 8 CPUs (8 workers of 1 CPU); the whole cluster has 2")
    page = console.page
    page.set_viewport_size({"width": size[0], "height": size[1]})
    console.open("/jobs")

    place = page.locator(f"#job-{job.id} .reason").bounding_box()

    assert place is not None
    assert place["x"] + place["width"] <= size[0]
    service.start_job(job.id)
    service.end_job(job.id, State.FAILED, {"kind": "error", "type": "ValueError", "message": "label 11"})
    page.wait_for_selector(f"#job-{job.id} .reason:has-text('label 11')")


def test_what_a_program_prints_for_a_terminal_is_plain_text_on_the_pages(
    service: Service, visitor: httpx.Client
) -> None:
    job, _ = service.store.create_job(make_spec(name="turned \u202earound"))
    service.start_job(job.id)
    message = "bad \x1b[31mshape\x1b[0m\x07" + "x" * 500
    failure = {"kind": "user_error", "type": "ValueError", "message": message}
    reason = f"rank 0 failed: {message}"
    assert service.store.move(service.store.get(job.id), State.FAILED, reason=reason, error=failure)

    pages = {
        path: visitor.get(path).text for path in ("/", "/jobs", f"/jobs/{job.id}", f"/jobs/{job.id}/attempts")
    }

    for path, text in pages.items():
        assert "turned around" in text, path
        assert "bad shapexxx" in text, path
        assert not {"\x1b", "\x07", "\u202e"} & set(text), path
    assert "x" * 500 in pages[f"/jobs/{job.id}"]
    assert "x" * 300 not in pages["/jobs"]
    assert "x…" in pages["/jobs"]


def test_the_metric_shown_is_the_one_that_chooses_the_best_checkpoint(console: Console) -> None:
    service = console.service
    job = create(service)
    run = service.start_job(job.id)
    for name, value in (("val_accuracy", 0.9), ("test_loss", 0.3), ("val_loss", math.inf)):
        service.results.log(run, name, 1, value)
    service.report(run, Progress(step=1, total_steps=4, epoch=0, eta_seconds=None))

    page = console.open("/jobs")

    # As soon as the service has seen it.
    expect(page.locator(f"#job-{job.id}")).to_contain_text("val_loss not finite")


def test_the_job_that_took_longest_is_one_click_away(console: Console) -> None:
    service = console.service
    for name, seconds in {"short": 1, "longest": 7200}.items():
        job_id = create(service, name=name).id
        service.start_job(job_id)
        started = service.store.get(job_id).started_at
        assert started is not None
        end = started + timedelta(seconds=seconds)
        assert service.store.move(service.store.get(job_id), State.SUCCEEDED, finished_at=end)
    create(service, name="waits")
    page = console.open("/jobs")

    page.get_by_role("columnheader", name="Took").get_by_role("link").click()

    expect(page.locator(".list tbody tr")).to_have_count(2)
    assert page.locator(".list tbody th").all_inner_texts() == ["longest", "short"]
    page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    expect(page.get_by_role("cell", name="2 h")).to_be_visible()
    console.check_fits()


def test_a_part_of_a_name_leads_to_the_job(console: Console) -> None:
    job = create(console.service, name="unet3d-fold2")
    page = console.open("/jobs")
    page.get_by_label("Name").fill("fold")
    page.get_by_role("button", name="Filter").click()

    page.get_by_role("link", name="find those that contain “fold”").click()

    page.wait_for_selector(f"#job-{job.id}")
    assert page.get_by_label("Name").input_value() == "*fold*"


def test_rows_are_live_and_newer_jobs_are_offered(console: Console) -> None:
    service = console.service
    job = create(service)
    page = console.open("/jobs")
    page.check(f"#job-{job.id} input")

    run = service.start_job(job.id)
    service.train(run, 3)
    newer = create(service, name="newer")

    page.wait_for_selector(f"#job-{job.id} >> text=75 %")
    assert page.is_checked(f"#job-{job.id} input")  # also after its row was replaced
    assert page.get_attribute(f"#job-{job.id} a", "href") == f"jobs/{job.id}"
    page.wait_for_selector("#newer:has-text('1 newer job.')")
    page.click("#newer a")
    page.wait_for_selector(f"#job-{newer.id}")


def test_selected_jobs_are_commanded_together(console: Console) -> None:
    console.allow("status of 409")
    service = console.service
    jobs = [create(service, name=f"job-{number}") for number in range(6)]
    service.start_job(jobs[0].id)
    service.end_job(jobs[0].id, State.SUCCEEDED)
    page = console.open("/jobs")

    page.click(f"#job-{jobs[5].id} input")
    page.click(f"#job-{jobs[2].id} input", modifiers=["Shift"])
    assert page.inner_text(".selected-count") == "4 jobs selected"
    page.click("[data-do=pause]")
    page.wait_for_selector(".notice:has-text('4 paused')")
    assert [service.store.get(job.id).state for job in jobs[2:]] == [State.PAUSED] * 4

    page.check("[data-select-all]")
    page.click("[data-do=resume]")
    page.wait_for_selector(f".notice.failed:has-text('5 resumed, 1 refused: job-0: job {jobs[0].id}')")
    assert page.inner_text(".selected-count") == "1 job selected"  # the one that refused

    page.uncheck(f"#job-{jobs[0].id} input")
    page.wait_for_selector("#selection", state="hidden")
    page.check(f"#job-{jobs[1].id} input")
    page.check(f"#job-{jobs[2].id} input")
    page.click("[data-do=cancel]")
    page.click("dialog button:has-text('Cancel 2 jobs')")
    page.wait_for_selector(".notice:has-text('2 cancelled')")
    page.wait_for_selector(f"#job-{jobs[2].id} >> text=cancelled")
    assert service.store.get(jobs[1].id).state is State.CANCELLED

    page.check(f"#job-{jobs[1].id} input")
    page.click("[data-do=delete]")
    page.click("dialog button:has-text('Back')")
    assert service.store.get(jobs[1].id).deleted_at is None
    page.click("[data-do=delete]")
    page.click("dialog button:has-text('Delete 1 job')")
    page.wait_for_selector(".notice:has-text('1 deleted')")
    page.wait_for_selector(f"#job-{jobs[1].id}", state="detached")
    assert jobs[1].id not in {job.id for job in service.store.list_jobs()[0]}

    page.check(f"#job-{jobs[3].id} input")
    assert page.is_disabled("[data-do=compare]")
    page.check(f"#job-{jobs[4].id} input")
    page.click("[data-do=compare]")
    page.wait_for_url(f"**/compare?job={jobs[3].id}&job={jobs[4].id}")


def test_back_from_a_filtered_list_the_form_says_what_is_listed(console: Console) -> None:
    create(console.service, name="digits-1")
    page = console.open("/jobs")
    page.check("input[value=failed]")
    page.press("#filter-name", "Enter")
    page.wait_for_url("**/jobs?state=failed")
    expect(page.locator("input[value=failed]")).to_be_checked()

    page.go_back()

    page.wait_for_url("**/jobs")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("input[value=failed]")).not_to_be_checked()


def test_the_form_makes_a_short_url(console: Console) -> None:
    create(console.service, name="digits-1")
    page = console.open("/jobs")

    page.fill("#filter-name", "digits-*")
    page.check("input[value=queued]")
    page.keyboard.press("Enter")

    page.wait_for_url("**/jobs?name=digits-*&state=queued")
    assert page.inner_text("h1") == "Jobs 1"
    page.click("text=Clear the filters")
    page.wait_for_url("**/jobs")


def test_filters_choose_jobs(service: Service, visitor: httpx.Client) -> None:
    spec = {"name": "digits-1", "labels": {"team": "a", "kind": "x"}, "tracking": {"experiment": "e"}}
    wanted = service.store.create_job(make_spec(**spec), user="ada")[0].id
    create(service, name="other")

    def ids(query: str) -> list[str]:
        return rows(visitor.get(f"/jobs?{query}").text)

    for query in (
        "name=digits-*",
        "label=team:a&label=kind%3Dx&label=",
        "experiment=e",
        "user=ada",
        "name=digits-1&state=queued&state=failed&since=2h&sweep=",
    ):
        assert ids(query) == [wanted]
    assert ids("state=running") == ids("since=2999-01-01") == ids("sweep=s1k0w1qk530wdg8e15q54") == []
    assert len(ids("since=2026-01-01")) == 2


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("since=soon", "write an age"),
        ("label=team", "write KEY:VALUE"),
        ("state=lost", "there is no state"),
        ("order=luck", "There is no order"),
        ("name=%00", "none of them NUL"),
        ("after=x", "This is no page of this list"),
        ("before=x&order=ended", "This is no page of this list"),
        ("after=x&order=longest", "This is no page of this list"),
    ],
)
def test_a_filter_that_cannot_be_read_is_named(visitor: httpx.Client, query: str, said: str) -> None:
    answer = visitor.get(f"/jobs?{query}")

    assert answer.status_code == 422
    assert said in answer.text


@pytest.mark.parametrize("order", ["newest", "oldest", "name", "ended"])
def test_pages_lead_forth_and_back(service: Service, visitor: httpx.Client, order: str) -> None:
    jobs = [create(service, name=f"job-{number % 7}") for number in range(60)]
    for job in jobs:
        service.store.request_cancel(job.id)
    first = visitor.get(f"/jobs?order={order}")
    assert 'rel="prev"' not in first.text

    second = visitor.get("/jobs" + _link(first.text, "next"))

    assert len(rows(first.text)) == 50
    assert {*rows(first.text), *rows(second.text)} == {job.id for job in jobs}
    assert 'rel="next"' not in second.text
    assert rows(visitor.get("/jobs" + _link(second.text, "prev")).text) == rows(first.text)


def _link(text: str, rel: str) -> str:
    return text.partition(f'rel="{rel}" href="')[2].partition('"')[0].replace("&amp;", "&")


def test_many_jobs_are_counted_where_that_is_cheap(service: Service, visitor: httpx.Client) -> None:
    spec = make_spec(name="many")
    with database.writing(service.store._engine) as connection:
        insert_jobs(connection, [new_job(spec, created_at=utc_now()) for _ in range(1_200)])

    assert 'class="count">1,200<' in visitor.get("/jobs").text
    assert 'class="count">1,200<' in visitor.get("/jobs?state=queued").text
    assert 'class="count">1,000+<' in visitor.get("/jobs?name=*").text


def test_it_says_what_to_do_where_there_are_no_jobs(service: Service, visitor: httpx.Client) -> None:
    assert "There are no jobs here." in visitor.get("/jobs").text
    create(service)
    assert "No job matches." in visitor.get("/jobs?state=failed").text
