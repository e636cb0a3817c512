"""Sweeps: the list, and the page of one: its points as a table and as parallel coordinates; its commands."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from service.jobs.job import State, utc_now
from service.jobs.sweep import Sweep, new_sweep
from tests.service.examples import make_data
from tests.service.live_api import Service
from tests.service.web.conftest import NARROW, WIDE, Console
from tests.service.web.test_jobs import MARKUP, visitor
from training.spec.sweep import SweepPlan, expanded

__all__ = ["visitor"]


def submitted(service: Service, name: str = "lr", grid: dict[str, list[Any]] | None = None) -> Sweep:
    """A sweep over a rate and a name of a data set, if nothing else is asked for."""
    plan = SweepPlan(
        grid=grid
        or {"optimizer.init_args.lr": [0.1, 0.01, 0.001], "data.init_args.root": ["/data/a", MARKUP]}
    )
    data = make_data(name=name, optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}})
    points, _ = expanded(data, plan, name=name)
    sweep = new_sweep(name, data, plan, points, created_at=utc_now(), user="ada")
    return service.store.create_sweep(sweep, points)[0]


def run_point(service: Service, sweep: Sweep, number: int, accuracy: float, end: State | None = None) -> str:
    job = service.store.jobs_of_sweep(sweep.id)[number - 1]
    run = service.start_job(job.id)
    service.results.log(run, "val_accuracy", 1, accuracy)
    service.train(run, 0)
    if end is not None:
        service.end_job(job.id, end)
    return job.id


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_sweep_is_a_table_of_points_with_the_best_marked(console: Console, size: tuple[int, int]) -> None:
    service = console.service
    sweep = submitted(service, name=MARKUP[:100])
    run_point(service, sweep, 1, 0.5, State.SUCCEEDED)
    run_point(service, sweep, 3, 0.9)
    run_point(service, sweep, 6, 0.99, State.FAILED)  # no result, whatever it reached
    console.page.set_viewport_size({"width": size[0], "height": size[1]})

    page = console.open("/sweeps?name=*")
    assert "2 of 6" in page.inner_text(f"#sweep-{sweep.id}")
    console.check_fits()
    console.check_accessible()
    page.click(f"#sweep-{sweep.id} a")

    page.wait_for_selector("td.best")
    assert page.inner_text("h1") == MARKUP[:100]
    assert "Best val_accuracy so far: 0.9, point 3, lr = 0.01, root = /data/a" in page.inner_text("#sweep")
    assert page.locator("td.best").all_inner_texts() == ["0.9"]
    assert page.get_attribute("#point-2 td:nth-child(4)", "title") == MARKUP
    assert page.locator("#parallel .axis .heading").count() == 3
    assert page.locator("#parallel path.line").count() == 6
    console.check_fits()
    console.check_accessible()


def test_points_are_sorted_brushed_followed_and_compared(console: Console) -> None:
    service = console.service
    sweep = submitted(service)
    accuracies = {number: number / 10 + 0.05 for number in range(1, 5)}  # none is also a rate
    jobs = [run_point(service, sweep, number, accuracy) for number, accuracy in accuracies.items()]
    page = console.open(f"/sweeps/{sweep.id}")
    for number, accuracy in accuracies.items():  # as soon as the service has seen them
        expect(page.locator(f"#point-{number}")).to_contain_text(f"{accuracy:.2f}")

    def order() -> list[str]:
        return page.locator("#points tbody tr:visible td:nth-child(2)").all_inner_texts()

    page.click("th[data-metric=val_accuracy] button")
    assert order() == ["1", "2", "3", "4", "5", "6"]
    page.click("th[data-metric=val_accuracy] button")
    assert order() == ["4", "3", "2", "1", "5", "6"]  # those without a value stay last

    service.end_job(jobs[0], State.SUCCEEDED)
    page.wait_for_selector("#point-1 .state-succeeded")
    page.wait_for_selector("#sweep >> text=1 of 6")
    assert page.get_attribute("#point-1 a", "href") == f"../jobs/{jobs[0]}"
    assert order() == ["4", "3", "2", "1", "5", "6"]

    axis = page.locator("rect.brush[data-axis='metric val_accuracy']").bounding_box()
    assert axis
    middle = axis["x"] + axis["width"] / 2
    page.mouse.move(middle, axis["y"] + 2)
    page.mouse.down()
    page.mouse.move(middle, axis["y"] + axis["height"] * 0.75)
    page.mouse.up()
    assert page.inner_text("#parallel-count") == "3 of 6 points chosen"
    assert order() == ["4", "3", "2"]
    assert page.locator("path.line.faint").count() == 3
    page.check("[data-select-all]")
    assert page.inner_text(".selected-count") == "3 jobs selected"
    page.click("#parallel-clear")
    assert len(order()) == 6
    page.click("[data-do=compare]")
    page.wait_for_url(f"**/compare?job={jobs[3]}&job={jobs[2]}&job={jobs[1]}")


def test_a_metric_that_comes_later_gets_a_column(console: Console) -> None:
    service = console.service
    sweep = submitted(service, grid={"training.seed": [0, 1, 2]})
    page = console.open(f"/sweeps/{sweep.id}")
    header = page.locator("#points thead th")
    page.click("#points thead th[data-key] button")
    page.click("#points thead th[data-key] button")
    page.check("#point-2 input")
    expect(header).not_to_contain_text(["val_accuracy"])

    run_point(service, sweep, 2, 0.75)

    expect(page.locator("#points thead th[data-metric]")).to_have_text("val_accuracy")
    column = header.evaluate_all("heads => heads.findIndex(head => head.dataset.metric) + 1")
    expect(page.locator(f"#point-2 :is(td, th):nth-child({column + 1})")).to_have_text("0.75")
    cells = page.locator("#points tbody tr").evaluate_all("rows => rows.map(row => row.cells.length)")
    assert cells == [header.count() + 1] * 3
    expect(page.locator("td.best")).to_have_text("0.75")
    expect(page.locator("#points th[data-key]")).to_have_attribute("aria-sort", "descending")
    expect(page.locator("#point-2 input")).to_be_checked()
    expect(page.locator("#parallel-metric option")).to_have_text("val_accuracy")
    page.click("th[data-metric=val_accuracy] button")
    expect(page.locator("#points tbody tr").first).to_have_id("point-2")


def test_a_sweep_is_paused_resumed_and_cancelled(console: Console) -> None:
    service = console.service
    sweep = submitted(service, grid={"training.seed": list(range(60))})
    page = console.open(f"/sweeps/{sweep.id}")

    page.click("button:has-text('Pause')")
    page.wait_for_selector("#sweep .state-paused")
    page.wait_for_selector("#point-60 .state-paused")  # all points are fetched if the stream lacks some
    page.click("button:has-text('Resume')")
    page.wait_for_selector("#point-1 .state-queued")
    page.click("button:has-text('Cancel the sweep')")
    assert "Its 60 jobs that have not ended will stop." in page.inner_text("dialog")
    page.click("dialog button:has-text('Cancel the sweep')")
    page.wait_for_selector("#sweep .state-cancelled")
    page.wait_for_selector("#point-1 .state-cancelled")
    page.wait_for_selector("#point-60 .state-cancelled")
    assert page.locator("button:has-text('Cancel the sweep')").count() == 0
    assert {job.state for job in service.store.jobs_of_sweep(sweep.id)} == {State.CANCELLED}


def test_sweeps_are_found_by_name_and_in_pages(service: Service, visitor: httpx.Client) -> None:
    made = [submitted(service, name=f"sweep-{number}", grid={"training.seed": [0]}) for number in range(21)]

    first = visitor.get("/sweeps").text
    older = visitor.get("/sweeps" + first.partition('rel="next" href="')[2].partition('"')[0]).text

    assert first.count('<tr id="sweep-') == 20
    assert f'id="sweep-{made[0].id}"' in older
    assert visitor.get("/sweeps?name=sweep-1?").text.count('<tr id="sweep-') == 10
    assert "No sweep matches." in visitor.get("/sweeps?name=none").text
    assert visitor.get("/sweeps/s1k0w1qk530wdg8e15q54").status_code == 404
    assert visitor.get("/live/sweeps/s1k0w1qk530wdg8e15q54").status_code == 404


def test_a_point_whose_job_was_deleted_stays_in_the_table(service: Service, visitor: httpx.Client) -> None:
    sweep = submitted(service)
    job = service.store.jobs_of_sweep(sweep.id)[0]
    service.store.request_cancel(job.id)
    service.store.delete_job(job.id)

    text = visitor.get(f"/sweeps/{sweep.id}").text

    assert 'id="point-1" data-state="deleted"' in text
    assert f'value="{job.id}"' not in text
