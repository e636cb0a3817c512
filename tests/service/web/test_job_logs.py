"""The tab of the logs: pages of a long log, live, the search."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Page, expect

from service.client.local_token import token_file
from service.jobs.job import Job, Removed, State
from service.queue.tables import jobs
from tests.service.examples import make_spec
from tests.service.live_api import Service
from tests.service.web.conftest import NARROW, WIDE, Console
from training.protocol import log_file

HOSTILE = ("<img src=x onerror=alert(1)>", '"><script>alert(1)</script>')
MANY = 200_000


def running(service: Service) -> Job:
    job, _ = service.store.create_job(make_spec(name="net"))
    service.start_job(job.id)
    service.storage.mkdir(exist_ok=True)
    return service.store.get(job.id)


def write(service: Service, job: Job, text: str, *, rank: int = 0, attempt: int = 1) -> None:
    path = log_file(service.storage / job.id, attempt, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def count(page: Page) -> int:
    return page.locator("#log .line[data-at]").count()


AT_THE_BOTTOM = "(log => log.scrollHeight - log.scrollTop - log.clientHeight < 3)"


def at_the_bottom(page: Page) -> bool:
    return bool(page.locator("#log").evaluate(AT_THE_BOTTOM))


def wait_for_the_bottom(page: Page) -> None:
    """The page goes there once it has asked whether there is more."""
    page.wait_for_function(f"{AT_THE_BOTTOM}(document.getElementById('log'))")


def test_new_lines_come_with_the_stream_and_many_are_fetched(console: Console) -> None:
    job = running(console.service)
    write(console.service, job, "first\n")
    page = console.open(f"/jobs/{job.id}/logs")
    page.wait_for_selector("#log-where:has-text('100 %')")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    def print_line(number: int) -> bool:
        """Returns whether the page has asked for it."""
        asked.clear()
        console.service.print(job.id, f"line {number}\n")
        page.wait_for_selector(f"#log .line:has-text('line {number}')")
        return bool(asked)

    first = next(number for number in range(100, 200) if not print_line(number))  # the stream has begun
    assert not any(print_line(number) for number in range(first + 1, first + 4))
    console.service.print(job.id, "".join(f"many {i:060}\n" for i in range(1500)))
    page.wait_for_selector(f"#log .line:has-text('many {1499:060}')")
    assert asked

    assert page.locator("#log .line[data-at]").first.inner_text() == "first"
    console.service.print(job.id, "after\n")
    page.wait_for_selector("#log .line:has-text('after')")
    texts = page.locator("#log .line[data-at]").all_inner_texts()
    assert texts == [
        "first",
        *(f"line {number}" for number in range(100, first + 4)),
        *(f"many {i:060}" for i in range(1500)),
        "after",
    ]


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_it_follows_shows_text_as_text_and_lets_choose_a_rank(
    console: Console, size: tuple[int, int]
) -> None:
    service = console.service
    job = running(service)
    console.page.set_viewport_size({"width": size[0], "height": size[1]})
    page = console.open(f"/jobs/{job.id}/logs")
    page.wait_for_selector("text=Nothing has been printed in attempt 1.")

    service.print(job.id, "\x1b[31mred\x1b[0m\n" + "\n".join(HOSTILE) + "\n" + "x" * 5000 + "\n")

    page.wait_for_selector("#log >> text=red")
    page.wait_for_load_state()  # it has been loaded again
    assert page.locator("#log .line").all_inner_texts()[:3] == ["red", *HOSTILE]
    console.check_fits()
    console.check_accessible()
    service.print(job.id, "".join(f"line {i}\n" for i in range(500)) + " 10 %\r 20 %")
    page.wait_for_selector("#log-rest:has-text('20 %')")
    assert page.inner_text("#log-rest") == " 20 %"
    wait_for_the_bottom(page)

    page.locator("#log").hover()
    page.mouse.wheel(0, -400)
    page.wait_for_selector("#log-follow:not(:checked)")
    service.print(job.id, "\nlater\n")
    page.wait_for_selector("#log .line:has-text('later')", state="attached")
    assert not at_the_bottom(page)
    page.click("#log-bottom")
    page.wait_for_selector("#log-follow:checked")
    page.uncheck("#log-wrap")
    assert page.locator("#log").evaluate("log => log.scrollWidth > log.clientWidth")

    write(service, job, "of rank 1\n", rank=1)
    page.wait_for_selector("#log-rank option:has-text('1 (10 bytes)')", state="attached")
    page.select_option("#log-rank", "1")
    page.wait_for_selector("#log >> text=of rank 1")
    service.end_job(job.id, State.SUCCEEDED)
    page.wait_for_selector("#log-follow", state="hidden")


def test_a_long_log_is_read_in_pages_and_searched(console: Console) -> None:
    service = console.service
    job = running(service)
    write(service, job, "".join(f"step {i} loss 0.5 {'-' * (i % 40)}\n" for i in range(MANY)))
    service.end_job(job.id, State.SUCCEEDED)
    page = console.open(f"/jobs/{job.id}/logs")

    page.wait_for_selector(f"#log >> text=step {MANY - 1}")
    wait_for_the_bottom(page)
    for _ in range(8):
        before = page.locator("#log .line").first.get_attribute("data-at")
        page.locator("#log").evaluate("log => log.scrollTo(0, 0)")
        page.wait_for_function(
            "before => document.querySelector('#log .line').dataset.at !== before", arg=before
        )
    assert count(page) <= 5000

    page.click("#log-top")
    page.wait_for_selector("#log >> text=step 0 loss")
    assert page.inner_text("#log-where").startswith("0 % of ")

    page.fill("#log-text", "STEP 150000 ")
    page.press("#log-text", "Enter")
    page.wait_for_selector(".hit mark:has-text('step 150000 ')")
    assert "Found at 7" in page.inner_text("#log-status")

    page.fill("#log-text", r"^step 1\d99\b")
    page.check("#log-regex")
    page.click("#log-previous")
    page.wait_for_selector(".hit:has-text('step 1999 ')")
    page.click("#log-previous")
    page.wait_for_selector(".hit:has-text('step 1899 ')")
    page.press("#log-text", "Enter")
    page.wait_for_selector(".hit:has-text('step 1999 ')")
    page.press("#log-text", "Enter")
    page.wait_for_selector(".hit:has-text('step 1099 ')")
    assert "from the top again" in page.inner_text("#log-status")

    console.allow("422")
    page.fill("#log-text", "(")
    page.press("#log-text", "Enter")
    page.wait_for_selector("#log-status:has-text('not a regular expression')")
    page.fill("#log-text", "nowhere")
    page.press("#log-text", "Enter")
    page.wait_for_selector("#log-status:has-text('No line matches.')")

    page.locator("#log-position").fill("0")
    page.wait_for_selector("#log >> text=step 0 loss")
    page.press("#log", "End")
    page.wait_for_selector(f"#log >> text=step {MANY - 1}")
    with page.expect_download() as download:
        page.click("text=Download >> nth=0")
    assert download.value.suggested_filename == f"{job.id}-attempt-1-rank-0.log"
    assert download.value.path().stat().st_size > MANY * 20


def test_whoever_follows_gets_the_log_of_the_next_attempt(console: Console) -> None:
    service, store = console.service, console.service.store
    job = running(service)
    service.print(job.id, "of the first\n")
    page = console.open(f"/jobs/{job.id}/logs")
    page.wait_for_selector("#log >> text=of the first")

    assert store.move(store.get(job.id), State.QUEUED)
    assert store.move(store.get(job.id), State.STARTING, attempt=2, workers=2)
    write(service, job, "of the second\n", attempt=2)

    page.wait_for_selector("#log >> text=of the second")
    page.wait_for_load_state()  # a choice before its scripts run would be lost
    page.select_option("#log-attempt", "1")
    page.wait_for_selector("#log >> text=of the first")


def open_logs(service: Service, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token_file(service.server.port).read_text()}"}
    return httpx.get(f"{service.url}/{path}", headers=headers, trust_env=False, timeout=60)


def test_where_there_is_no_log_a_sentence_says_why(service: Service) -> None:
    waiting, _ = service.store.create_job(make_spec(name="net"))
    assert "has not started yet" in open_logs(service, f"jobs/{waiting.id}/logs").text
    job = running(service)
    assert "Nothing has been printed in attempt 1" in open_logs(service, f"jobs/{job.id}/logs").text
    service.storage.rmdir()
    assert "The logs cannot be read now" in open_logs(service, f"jobs/{job.id}/logs").text
    service.print(job.id, "text\n")
    assert "Rank 5 has no log in attempt 1" in open_logs(service, f"jobs/{job.id}/logs?rank=5").text
    assert open_logs(service, f"jobs/{job.id}/logs?attempt=2").status_code == 404

    service.end_job(job.id, State.SUCCEEDED)
    assert service.store._update([jobs.c.id == job.id], {"removed": int(Removed.LOGS)})
    page = open_logs(service, f"jobs/{job.id}/logs").text
    assert "Retention has removed the logs" in page
    assert "/artifacts" in page
    assert open_logs(service, f"data/jobs/{job.id}/log?attempt=1&rank=0&after=0").status_code == 404


def test_the_log_of_an_older_version_comes_from_mlflow(service: Service) -> None:
    job = running(service)
    run = job.run
    assert run
    service.end_job(job.id, State.SUCCEEDED)
    assert service.store._update([jobs.c.id == job.id], {"start": 0})
    service.results.upload(run, "logs/attempt-1.log", "from before\n")

    assert "from before" in open_logs(service, f"jobs/{job.id}/logs").text
    page = open_logs(service, f"data/jobs/{job.id}/log?attempt=1&after=0").json()
    assert [line["text"] for line in page["lines"]] == ["from before"]


def test_odd_questions_get_an_answer(service: Service) -> None:
    job = running(service)
    service.print(job.id, "text\nmore\n")

    for query, status in {
        "attempt=1&rank=0": 422,
        "attempt=1&rank=0&after=-1": 422,
        "attempt=1&rank=0&after=99999999999": 200,
        "attempt=1&rank=0&before=3": 200,
        "attempt=1&after=0": 404,
        "attempt=1&rank=9&after=0": 404,
        "attempt=0&rank=0&after=0": 422,
    }.items():
        answer = open_logs(service, f"data/jobs/{job.id}/log?{query}")
        assert (query, answer.status_code) == (query, status)


def test_all_ranks_are_followed_in_one_view(console: Console) -> None:
    service = console.service
    job = running(service)
    write(service, job, "".join(f"early {i}\n" for i in range(300)))
    write(service, job, f"\x1b[31m{HOSTILE[0]}\x1b[0m\n", rank=1)
    page = console.open(f"/jobs/{job.id}/logs")
    page.get_by_label("Rank", exact=True).select_option("all")
    lines = page.locator("#log-all .line")

    expect(lines.filter(has_text="rank 0 early")).to_have_count(200)
    expect(lines.last).to_have_text(f"rank 1 {HOSTILE[0]}")
    service.print(job.id, "later\n")
    expect(lines.last).to_have_text("rank 0 later")
    page.get_by_label("Only lines with").fill("RANK 1")
    expect(lines.filter(visible=True)).to_have_count(1)
    console.check_fits()
    console.check_accessible()


def test_a_page_in_the_background_holds_no_connection(console: Console) -> None:
    """A browser has six for all its tabs: with six logs in the background no page would open any more."""
    service = console.service
    job = running(service)
    write(service, job, "another rank\n", rank=1)
    for view, lines in ("0", "#log .line[data-at]"), ("all", "#log-all .line"):
        service.print(job.id, f"early of {view}\n")
        page = console.open(f"/jobs/{job.id}/logs?rank={view}")
        shown = page.locator(lines)
        expect(shown.filter(has_text=f"early of {view}")).to_have_count(1)
        service.print(job.id, f"seen by {view}\n")
        expect(shown.filter(has_text=f"seen by {view}")).to_have_count(1)  # the stream has begun

        with page.expect_event("requestfailed", lambda request: "log" in request.url):
            show(page, "hidden")
        service.print(job.id, f"unseen by {view}\n")
        show(page, "visible")

        expect(shown.filter(has_text=f"unseen by {view}")).to_have_count(1)
        expect(shown.filter(has_text=f"early of {view}")).to_have_count(1)


def show(page: Page, state: str) -> None:
    """Has the page believe that its tab is visible, or hidden."""
    page.evaluate(
        """state => {
            Object.defineProperty(document, "hidden", { value: state === "hidden", configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        state,
    )
