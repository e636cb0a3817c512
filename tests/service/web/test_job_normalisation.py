"""The normalisation of a job: heat maps, one layer, and what follows for norm.kind."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from playwright.sync_api import Position

from service.client.local_token import token_file
from tests.service.examples import make_spec
from tests.service.live_api import Service
from tests.service.web.conftest import NARROW, WIDE, Console
from tests.service.web.spools import log_points
from training.noise_rule import global_noise, reason

HOSTILE = "<img src=x onerror=alert(1)>"


def observed(service: Service, **spec: Any) -> str:
    """A job on two workers with three observed layers. Returns its id."""
    norm = {"kind": "sync_batch_norm", "observe_every": 10}
    job, _ = service.store.create_job(make_spec(norm=norm, training={"global_batch_size": 64}, **spec))
    service.start_job(job.id)
    layers = {"bn1": 0.02, "layer1.0.bn2": 0.1, HOSTILE: 0.9}
    log_points(
        service,
        job.id,
        [
            (f"norm/{layer}/{measure}", step, value * factor)
            for step in range(10, 310, 10)
            for layer, value in layers.items()
            for measure, factor in {"mean_noise": 1, "var_noise": 2, "mean_drift": 3, "dead": 0}.items()
        ],
    )
    return job.id


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_layers_are_shown_as_a_map_a_curve_a_table_and_in_words(
    console: Console, size: tuple[int, int]
) -> None:
    job_id = observed(console.service)
    console.page.set_viewport_size({"width": size[0], "height": size[1]})
    page = console.open(f"/jobs/{job_id}/normalisation")
    page.wait_for_selector("[data-part=words] p")

    batch_noise = global_noise(0.1, 0.5)
    assert page.locator("[data-part=words] p").last.inner_text() == reason(0.1, batch_noise)
    heat_map = page.locator("[data-part=noise] canvas")
    box = heat_map.bounding_box()
    assert box
    second, last = (Position(x=box["width"] - 3, y=box["height"] * part) for part in (0.5, 0.9))
    heat_map.hover(position=second)
    assert page.inner_text("[data-part=noise] .chart-place") == "layer1.0.bn2, step 300: 0.1"
    heat_map.click(position=last)
    page.wait_for_selector(f"[data-part=charts] h3:has-text('{HOSTILE}: noise')")
    page.locator("[data-part=layer]").select_option("bn1")
    page.wait_for_selector("[data-part=charts] li:has-text('norm/bn1/mean_noise')")
    page.get_by_label("Error of").select_option("var")
    heat_map.hover(position=second)
    assert page.inner_text("[data-part=noise] .chart-place") == "layer1.0.bn2, step 300: 0.2"
    page.get_by_text("All layers as a table").click()
    assert page.locator("[data-part=rows] tr").first.inner_text().split("\t")[:4] == [
        "bn1",
        "0.02",
        "0.04",
        "0.06",
    ]
    console.check_fits()
    console.check_accessible()


def test_a_job_that_is_not_observed_says_how_to(console: Console) -> None:
    job, _ = console.service.store.create_job(make_spec(norm={"kind": "group_norm"}))
    page = console.open(f"/jobs/{job.id}/normalisation")

    assert "observe_every: 20" in page.inner_text("#normalisation")
    console.check_accessible()


def test_nothing_follows_where_the_share_of_a_worker_says_nothing(service: Service) -> None:
    def words(noise: str, workers: int, **norm: Any) -> tuple[int, str]:
        norm = {"kind": "sync_batch_norm", "observe_every": 1, **norm}
        job, _ = service.store.create_job(make_spec(norm=norm, training={"global_batch_size": 64}))
        service.start_job(job.id, workers=workers)
        token = token_file(service.server.port).read_text()
        answer = httpx.get(
            f"{service.url}/data/jobs/{job.id}/noise?noise={noise}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )
        return answer.status_code, answer.text

    assert "With one worker" in words("0", 1)[1]
    assert "it is not known" in words("0.1", 2, group="node")[1]
    assert words("nan", 2)[0] == 422
    assert "group_norm" in words("0.5", 4)[1]
