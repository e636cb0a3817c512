"""The curves of a job: all points, live, in charts that can be zoomed, moved and downloaded."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from service.jobs.job import State
from tests.service.examples import make_spec
from tests.service.live_api import Service
from tests.service.web.conftest import NARROW, WIDE, Console
from tests.service.web.spools import log_points
from training.protocol import Progress

HOSTILE = "<img src=x onerror=alert(1)>"


def begin(service: Service, steps: int = 100, **spec: Any) -> str:
    """A job that trains, with curves of so many steps. Returns its id."""
    job, _ = service.store.create_job(make_spec(training={"max_epochs": 4}, **spec))
    run = service.start_job(job.id)
    log_points(service, job.id, [("train_loss", step, 1 / step) for step in range(1, steps + 1)])
    every = range(steps // 4, steps + 1, steps // 4)
    log_points(service, job.id, [("val_loss", step, 2 / step) for step in every])
    log_points(service, job.id, [("val_accuracy", step, step / steps) for step in every])
    service.report(run, Progress(step=steps, total_steps=2 * steps, epoch=1, eta_seconds=None))
    return job.id


def wait_for_points(page: Page, number: int) -> None:
    page.wait_for_selector(f"[data-part=number]:has-text('{number:,} points of')")


def drawn(page: Page, group: str = "loss") -> list[list[float | None]]:
    """What the chart of a group draws, once it does: the axis, then each curve."""
    found: list[list[float | None]] = page.evaluate(
        """async (group) => {
          const frame = () => new Promise(requestAnimationFrame);
          while (!charts.get(group)?.plot || view.dirty) await frame();
          return charts.get(group).plot.data;
        }""",
        group,
    )
    return found


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_all_metrics_are_drawn_by_groups_and_go_on_live(console: Console, size: tuple[int, int]) -> None:
    service = console.service
    job_id = begin(service)
    console.page.set_viewport_size({"width": size[0], "height": size[1]})
    page = console.open(f"/jobs/{job_id}")
    wait_for_points(page, 108)

    assert page.locator(".chart h3").all_inner_texts() == ["loss", "accuracy"]
    # The values are written when the charts are drawn, a moment later.
    expect(page.locator(".chart[data-group=loss] li")).to_have_text(["train_loss0.01", "val_loss0.02"])
    assert drawn(page)[0] == list(range(1, 101))
    console.check_fits()
    console.check_accessible()

    log_points(service, job_id, [("train_loss", 101, 0.5), (HOSTILE, 101, 7.0)])

    page.wait_for_selector(f"h3:has-text('{HOSTILE}')")
    wait_for_points(page, 110)
    expect(page.locator(".chart[data-group=loss] li")).to_have_text(["train_loss0.5", "val_loss0.02"])


def test_every_control_of_the_charts_works(console: Console, tmp_path: Path) -> None:
    job_id = begin(console.service)
    page = console.open(f"/jobs/{job_id}")
    wait_for_points(page, 108)
    box = page.locator(".chart[data-group=loss] .u-over").bounding_box()
    assert box

    def shown() -> list[float]:
        return list(page.evaluate("view.all()"))

    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    assert page.inner_text(".chart[data-group=loss] .chart-place").startswith("step 5")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60, steps=3)
    page.mouse.up()
    zoomed = shown()
    assert 45 < zoomed[0] < 55
    assert 70 < zoomed[1] < 80
    assert len(drawn(page)[0]) < 40
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert shown()[0] > zoomed[0]
    page.get_by_label("Move to the left").click()
    page.get_by_label("Zoom out").click()
    page.get_by_label("Zoom in").click()
    page.get_by_label("Move to the right").click()
    assert shown() != [1, 100]
    page.get_by_role("button", name="Whole range").click()
    assert shown() == [1, 100]

    page.get_by_label("Along").select_option("epoch")
    assert shown() == [1 / 50, 2]
    page.get_by_label("Along").select_option("time")
    assert shown() == [0, 99]
    page.get_by_label("Logarithmic").check()
    drawn(page)
    assert page.evaluate("charts.get('loss').plot.scales.y.distr") == 3
    page.get_by_label("Smoothing").fill("0.9")
    assert len(drawn(page)) == 5

    page.get_by_text("Charts shown: 2 of 2").click()
    page.get_by_label("accuracy", exact=True).uncheck()
    assert page.locator(".chart:visible h3").all_inner_texts() == ["loss"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    download.value.save_as(tmp_path / "curves.csv")
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert len(rows) == 104
    assert rows[1] == {
        "metric": "train_loss",
        "step": "2",
        "time": "2023-11-14T22:13:22.000Z",
        "value": "0.5",
    }
    page.get_by_role("button", name="Hide all found").click()
    assert not page.locator(".chart:visible").count()
    page.get_by_label("Find").fill("acc")
    page.get_by_role("button", name="Show all found").click()
    assert page.locator(".chart:visible h3").all_inner_texts() == ["accuracy"]


def test_what_is_chosen_is_in_the_url_and_a_reload_keeps_it(console: Console) -> None:
    job_id = begin(console.service)
    page = console.open(f"/jobs/{job_id}")
    wait_for_points(page, 108)
    page.get_by_text("Charts shown: 2 of 2").click()
    page.get_by_label("accuracy", exact=True).uncheck()
    page.get_by_label("Along").select_option("epoch")
    page.get_by_label("Logarithmic").check()
    page.get_by_label("Smoothing").fill("0.6")
    page.get_by_label("Zoom in").click()
    chosen = page.evaluate("view.all()")
    page.wait_for_url("**hide=accuracy**from=**")

    page.reload()
    wait_for_points(page, 108)

    assert page.locator(".chart:visible h3").all_inner_texts() == ["loss"]
    assert page.get_by_label("Along").input_value() == "epoch"
    assert page.get_by_label("Logarithmic").is_checked()
    assert page.inner_text("[data-part=weight]") == "0.60"
    assert page.evaluate("view.all()") == pytest.approx(chosen)
    page.get_by_role("button", name="Whole range").click()
    page.wait_for_url(lambda url: "from=" not in url)


def test_charts_are_moved_and_zoomed_by_keys(console: Console) -> None:
    job_id = begin(console.service)
    page = console.open(f"/jobs/{job_id}")
    wait_for_points(page, 108)
    chart = page.get_by_role("application", name="Chart of loss")
    chart.focus()

    page.keyboard.press("+")
    assert page.evaluate("view.all()") == pytest.approx([25.75, 75.25])
    page.keyboard.press("ArrowRight")
    assert page.evaluate("view.all()") == pytest.approx([38.125, 87.625])
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("-")
    assert page.evaluate("view.all()") == pytest.approx([1, 100])
    page.keyboard.press("+")
    page.keyboard.press("0")
    assert page.evaluate("view.all()") == [1, 100]
    console.check_accessible()


def test_numbers_of_any_size_fit_beside_the_axis(console: Console) -> None:
    page = console.open(f"/jobs/{begin(console.service)}")
    wait_for_points(page, 108)

    texts = page.evaluate("[null, 0, 0.25, 0.1 + 0.2, 1500, 6e16, -1.5e7, 1e-12].map(tickText)")

    assert texts == ["", "0", "0.25", "0.3", "1,500", "6e16", "-1.5e7", "1e-12"]


def test_a_repeated_step_counts_once_and_what_is_not_finite_is_a_gap(console: Console) -> None:
    service = console.service
    job_id = begin(service, 4)
    log_points(service, job_id, [("train_loss", 3, math.nan), ("train_loss", 4, 9.0)])
    log_points(service, job_id, [("train_loss", 5, math.inf), ("train_loss", 6, 1.0)])

    page = console.open(f"/jobs/{job_id}")
    wait_for_points(page, 14)

    xs, train, val = drawn(page)
    assert xs == [1, 2, 3, 4, 5, 6]
    assert train == [1, 0.5, None, 9, None, 1]
    assert val == [2, 1, 2 / 3, 0.5, None, None]


def test_what_the_spool_lacks_comes_from_mlflow(console: Console) -> None:
    service = console.service
    job, _ = service.store.create_job(make_spec())
    run = service.start_job(job.id)
    service.train(run, 3)
    service.results.log(run, "norm/bn1/mean_noise", 1, 0.5)
    console.allow("503")
    console.allow("Failed to load resource")
    service.results.unreachable = True

    page = console.open(f"/jobs/{job.id}")
    page.wait_for_selector("[data-part=news]:has-text('MLflow is not reachable')")
    service.results.unreachable = False
    wait_for_points(page, 6)
    assert page.is_hidden("[data-part=news]")

    log_points(service, job.id, [("train_loss", 4, 0.25)])
    wait_for_points(page, 7)


def test_a_job_without_points_says_so(console: Console) -> None:
    job, _ = console.service.store.create_job(make_spec())
    page = console.open(f"/jobs/{job.id}")
    page.wait_for_selector("text=There are no points yet.")
    assert page.is_hidden("[data-part=tools]")

    run = console.service.start_job(job.id)
    log_points(console.service, job.id, [("train_loss", 1, 1.0)])
    console.service.report(run, Progress(step=1, total_steps=None, epoch=0, eta_seconds=None))

    wait_for_points(page, 1)
    console.service.end_job(job.id, State.SUCCEEDED)
    page.wait_for_selector("#job-header[data-ended=yes]")


def test_a_hundred_thousand_points_move_smoothly_and_lose_no_extreme(
    console: Console, record_property: Callable[[str, object], None]
) -> None:
    service = console.service
    job, _ = service.store.create_job(make_spec())
    service.start_job(job.id)
    for number in range(4):
        log_points(
            service,
            job.id,
            [(f"metric_{number}", step, math.sin(step / 999) + number) for step in range(1, 25_001)],
        )
    log_points(service, job.id, [("train_loss", step, math.sin(step / 500)) for step in range(1, 100_001)])
    log_points(service, job.id, [("train_loss", 43_210, 99.0), ("train_loss", 77_777, -99.0)])

    page = console.open(f"/jobs/{job.id}")
    wait_for_points(page, 200_000)

    xs, ys = drawn(page)
    assert len(xs) <= 4 * 1440
    assert ys[xs.index(43_210)] == 99
    assert ys[xs.index(77_777)] == -99
    assert max(value for value in ys if value is not None) == 99
    frames = page.evaluate(
        """() => new Promise((resolve) => {
          const times = [];
          let number = 0;
          view.zoom(1, 50000);
          const step = (now) => {
            times.push(now);
            if (++number > 90) { resolve(times); return; }
            view.zoom(1 + 500 * number, 50000 + 500 * number);
            requestAnimationFrame(step);
          };
          requestAnimationFrame(step);
        })"""
    )
    gaps = sorted(after - before for before, after in pairwise(frames))
    record_property("frames a second", round(1000 * len(gaps) / sum(gaps)))
    record_property("longest frame, ms", round(gaps[-1]))
    assert page.evaluate("Math.max(...[...charts.values()].map(chart => chart.drawn))") <= 4 * 1440
    assert page.evaluate("view.all()") == [45_001, 95_000]
