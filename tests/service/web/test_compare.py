"""Comparing jobs: which are compared, in what they differ, and their curves over each other."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import expect

from service.jobs.job import Job, State
from tests.service.live_api import Service
from tests.service.web.conftest import NARROW, WIDE, Console
from tests.service.web.spools import log_points
from tests.service.web.test_jobs import MARKUP, create, visitor

__all__ = ["visitor"]


def ran(service: Service, *, lr: float, seed: int, scale: float = 1.0, **changes: object) -> Job:
    """A job that has run 20 steps: loss scale/step, accuracy step/20 · scale."""
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": lr}}
    job = create(service, optimizer=optimizer, training={"seed": seed}, **changes)
    run = service.start_job(job.id)
    for step in range(1, 21):
        service.results.log(run, "train_loss", step, scale / step)
        service.results.log(run, "val_accuracy", step, scale * step / 20)
    points = service.results.points[run.run_id]
    log_points(service, job.id, [(point.name, point.step, point.value) for point in points])
    service.train(run, 0, total=20)
    return job


def query(*jobs: Job) -> str:
    return "&".join(f"job={job.id}" for job in jobs)


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_jobs_that_differ_in_their_seed_are_one_line_with_a_band(
    console: Console, size: tuple[int, int]
) -> None:
    service = console.service
    jobs = [ran(service, lr=0.1, seed=seed, scale=1 - seed / 10, name=MARKUP) for seed in range(3)]
    other = ran(service, lr=0.01, seed=0, scale=0.5, name="other")
    for job, digest in zip((*jobs, other), "abba", strict=True):
        service.end_job(job.id, State.SUCCEEDED, weights_sha256=digest * 64)
    console.page.set_viewport_size({"width": size[0], "height": size[1]})

    page = console.open(f"/compare?{query(*jobs, other)}")

    page.wait_for_selector("#chart[data-points='40']")  # two lines of 20 points
    assert page.locator("#legend .mark").count() == 2
    assert page.locator("tr[data-group='1']").count() == 3
    # As soon as the service has seen how the jobs ended.
    expect(page.locator("#compare-jobs td:has-text('same weights')")).to_have_count(1)
    parameters = page.inner_text("section[aria-labelledby=parameters-title]")
    assert "optimizer.init_args.lr" in parameters
    assert "0, 1, 2" in parameters
    metrics = page.locator("#compare-metrics tr:has-text('val_accuracy') td")
    expect(metrics).to_have_text(["0.9 ± 0.1 (3)", "0.5"])  # as soon as the service has seen them
    assert page.get_attribute("#compare-metrics tr:has-text('val_accuracy') td.best", "title") == "The best"
    assert page.locator("#compare-metrics tr:has-text('train_loss') td").nth(1).get_attribute("title")
    console.check_fits()
    console.check_accessible()

    page.click("text=Show each job for itself")
    page.wait_for_selector("#chart[data-points='80']")


def test_a_mean_ends_where_the_first_seed_does(console: Console) -> None:
    service = console.service
    jobs = [ran(service, lr=0.1, seed=seed) for seed in range(2)]
    for step in range(21, 31):
        log_points(service, jobs[1].id, [("train_loss", step, 1.0)])

    page = console.open(f"/compare?{query(*jobs)}&metric=train_loss")

    page.wait_for_selector("#chart[data-points='20']")
    assert page.evaluate("overlay.lines[0].curve.x.at(-1)") == 20
    assert page.evaluate("[...overlay.lines[0].rest.x]") == list(range(20, 31))
    assert page.evaluate("overlay._shown()") == [1, 30]
    page.get_by_role("application").focus()
    page.keyboard.press("+")
    assert page.evaluate("overlay._shown()") == pytest.approx([8.25, 22.75])
    console.check_accessible()


def test_the_jobs_say_whether_they_have_the_same_weights(service: Service, visitor: httpx.Client) -> None:
    first, second = "0123456789abcdef" * 4, "f" * 64
    jobs = [create(service, name="trained") for _ in range(4)]
    for job, digest in zip(jobs[1:], (first, first, second), strict=True):
        service.start_job(job.id)
        service.end_job(job.id, State.SUCCEEDED, weights_sha256=digest)

    rows = visitor.get(f"/compare?{query(*jobs)}").text.split('<tr id="compared-')[1:]

    cells = [row.split("<td>")[5].partition("</td>")[0] for row in rows]
    assert cells == [
        "",
        f'<code title="SHA-256 {first}">0123456789ab</code>',
        f'<code title="SHA-256 {first}">0123456789ab</code> same weights',
        f'<code title="SHA-256 {second}">ffffffffffff</code> other weights',
    ]


def test_curves_are_chosen_smoothed_zoomed_and_followed(console: Console) -> None:
    service = console.service
    first, second = ran(service, lr=0.1, seed=0), ran(service, lr=0.01, seed=0)
    service.end_job(second.id, State.SUCCEEDED)
    page = console.open(f"/compare?{query(first, second)}&metric=train_loss")
    page.wait_for_selector("#chart[data-points='40']")
    assert page.input_value("#metric") == "train_loss"

    page.select_option("#metric", "val_accuracy")
    page.wait_for_url("**&metric=val_accuracy")
    page.check("#log")
    page.select_option("#axis", "time")
    page.select_option("#axis", "step")
    page.locator("#smoothing").fill("0.5")
    assert page.inner_text("output[for=smoothing]") == "0.5"
    last = "overlay.lines[0].curve.y.at(-1)"
    assert page.evaluate(last) < 0.99
    page.locator("#smoothing").fill("0")
    assert page.evaluate(last) == 1

    box = page.locator("#chart .u-over").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.up()
    low, high = page.evaluate("overlay._shown()")
    assert 5 < low < 6.5
    assert 10 < high < 11
    page.click("#whole")
    assert page.evaluate("overlay._shown()") == [1, 20]

    run = service.store.get(first.id).run
    assert run
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    def log_point(step: int) -> bool:
        """Returns whether the stream has brought it: the page has not asked."""
        asked.clear()
        log_points(service, first.id, [("val_accuracy", step, 0.25)])
        service.train(run, 1)
        page.wait_for_selector(f"#chart[data-points='{20 + step}']")
        return not asked

    # Seconds after it was opened the page asks once more, for what has come while it was reading.
    in_a_row = 0
    for step in range(21, 61):
        in_a_row = in_a_row + 1 if log_point(step) else 0
        if in_a_row == 4:
            break
    assert in_a_row == 4


def test_jobs_are_added_by_id_and_name_and_removed(console: Console) -> None:
    service = console.service
    first, second = create(service, name="first"), create(service, name=MARKUP)
    page = console.open("/compare")
    assert "Nothing to compare yet" in page.inner_text("main")
    console.check_accessible()

    page.fill("#add", first.id[:-2])
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#compared-{first.id}")
    expect(page.locator("main")).to_contain_text("Add another job")
    page.fill("#add", MARKUP)
    page.click("button:has-text('Add')")
    page.wait_for_selector(f"#compared-{second.id}")
    assert page.get_attribute(f"#compared-{second.id} th", "title") == MARKUP
    page.click(f"#compared-{first.id} a:has-text('Remove')")
    page.wait_for_selector(f"#compared-{first.id}", state="detached")
    assert page.inner_text("h1") == "Compare 1 job"


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("nobody", "there is no job with the id or name &#39;nobody&#39;"),
        ("j", "more than one id begins with"),
        ("%00", "a name has no NUL in it"),
    ],
)
def test_what_cannot_be_added_is_said_beside_the_field(
    service: Service, visitor: httpx.Client, added: str, said: str
) -> None:
    job = create(service, name="first")
    create(service, name="second")

    answer = visitor.get(f"/compare?job={job.id}&add={added}")

    assert said in answer.text
    assert f'id="compared-{job.id}"' in answer.text


def test_what_is_not_there_is_left_out_in_a_sentence(service: Service, visitor: httpx.Client) -> None:
    jobs = [create(service, name=f"job-{number}") for number in range(21)]
    service.store.request_cancel(jobs[0].id)
    service.store.delete_job(jobs[0].id)

    answer = visitor.get(f"/compare?{query(*jobs)}&job=<b>")

    assert f"There is no job {jobs[0].id}." in answer.text
    assert "Only the first 20 of 22 jobs are compared." in answer.text
    assert answer.text.count('id="compared-') == 19
    assert "<b>" not in answer.text
