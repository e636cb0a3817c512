"""What the machines of a job use, in charts by machine."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from service.jobs.job import State
from tests.service.examples import make_spec
from tests.service.web.conftest import NARROW, WIDE, Console

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_each_machine_has_its_charts(console: Console, size: tuple[int, int]) -> None:
    service = console.service
    job, _ = service.store.create_job(make_spec())
    run = service.start_job(job.id)
    service.train(run, 1)
    for step in range(20):
        for prefix in ("system/", "system/node-1_"):
            service.results.log(run, f"{prefix}cpu_utilization_percentage", step, 3.0 * step)
            for gpu in range(2):
                service.results.log(
                    run, f"{prefix}gpu_{gpu}_memory_usage_megabytes", step, 100.0 * step + gpu
                )
    service.results.log(run, f"system/{HOSTILE}", 0, 1.0)
    service.end_job(job.id, State.SUCCEEDED)
    console.page.set_viewport_size({"width": size[0], "height": size[1]})

    page = console.open(f"/jobs/{job.id}/system")

    page.wait_for_selector("h3:has-text('Machine 2')")
    second = page.locator("[data-machine='1']")
    expect(second.locator("h4")).to_have_text(["CPU utilization (%)", "GPU memory usage (MB)"])
    # The values are written when the charts are drawn, a moment later.
    expect(second.locator(".chart").nth(1).locator("li")).to_have_text(
        [
            "system/node-1_gpu_0_memory_usage_megabytes1900",
            "system/node-1_gpu_1_memory_usage_megabytes1901",
        ]
    )
    expect(page.locator("[data-machine='0'] h4", has_text=HOSTILE)).to_have_count(1)
    console.check_fits()
    console.check_accessible()


def test_without_any_the_page_says_so_and_when_mlflow_is_away(console: Console) -> None:
    service = console.service
    job, _ = service.store.create_job(make_spec())
    service.start_job(job.id)
    page = console.open(f"/jobs/{job.id}/system")
    page.wait_for_selector("text=There are no metrics of the machines yet.")

    console.allow("503")
    service.results.unreachable = True
    other, _ = service.store.create_job(make_spec())
    service.store.move(other, State.STARTING, attempt=1, workers=1)
    service.store.set_run(other.id, "1", "run-9")
    page = console.open(f"/jobs/{other.id}/system")
    page.wait_for_selector("[data-part=news]:has-text('MLflow is not reachable')")
    assert "There are no metrics" not in page.inner_text("#system")
