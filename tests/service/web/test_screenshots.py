"""The pictures of the guide to the console: each page with a story in it, at 1,440 pixels.

`SYNCBN_SCREENSHOTS=1 python -m pytest tests/service/web/test_screenshots.py` draws docs/images/console anew.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from service.jobs.job import Job, State
from tests.service.examples import make_spec
from tests.service.live_api import Service
from tests.service.web.conftest import Console
from tests.service.web.spools import log_points
from training.protocol import Progress

ROOT = Path(__file__).parents[3]
PICTURES = ROOT / "docs" / "images" / "console"
DRAWS = bool(os.environ.get("SYNCBN_SCREENSHOTS"))
PAGES = {
    "overview": ("/", "#timeline"),
    "jobs": ("/jobs", "table"),
    "job": ("/jobs/{job}", ".chart"),
    "logs": ("/jobs/{job}/logs", "text=epoch 3"),
    "spec": ("/jobs/{job}/spec", "text=global_batch_size"),
    "normalisation": ("/jobs/{job}/normalisation", "main canvas"),
    "compare": ("/compare?job={job}&job={other}&metric=train_loss", "#chart[data-points]"),
    "submit": ("/submit?template=fashion_resnet18", "#verdict:has-text('The spec is valid.')"),
    "settings": ("/settings", "text=Versions"),
    "rest": ("/docs", "h1"),
}


def trained(service: Service, name: str, rate: float, *, steps: int, seed: int) -> Job:
    """A job that has run some steps, with curves as real ones look."""
    spec = make_spec(
        name=name, norm={"kind": "sync_batch_norm", "observe_every": 20}, labels={"team": "vision"}
    )
    job, _ = service.store.create_job(spec)
    run = service.start_job(job.id)
    points = []
    for step in range(1, steps + 1):
        wobble = math.sin(step * (7 + seed)) * 0.05
        points.append(
            ("train_loss", step, 2.3 * math.exp(-rate * step) + 0.12 + wobble * math.exp(-rate * step))
        )
        if step % 20 == 0:
            points.append(("val_accuracy", step, 0.96 - 0.86 * math.exp(-1.3 * rate * step)))
            for depth, layer in enumerate(
                ("bn1", "layer1.0.bn1", "layer2.0.bn2", "layer3.1.bn1", "layer4.1.bn2")
            ):
                noise = 0.05 * (1 + depth) * (1 + 0.3 * math.sin(step / 40 + depth))
                points.append((f"norm/{layer}/mean_noise", step, noise))
                points.append((f"norm/{layer}/var_noise", step, 1.4 * noise))
                points.append((f"norm/{layer}/mean_drift", step, 0.3 / (1 + step / 60)))
                points.append((f"norm/{layer}/var_drift", step, 0.4 / (1 + step / 60)))
    log_points(service, job.id, points)
    for name_, step, value in points[-4:]:
        service.results.log(run, name_, step, value)
    left = float(400 - steps)
    service.report(run, Progress(step=steps, total_steps=400, epoch=steps // 80, eta_seconds=left))
    for epoch in range(1, 6):
        service.print(
            job.id, f"epoch {epoch}: train_loss {2.3 / epoch:.4f}, val_accuracy {1 - 0.8 / epoch:.3f}\n"
        )
    return service.store.get(job.id)


def story(service: Service) -> dict[str, str]:
    job = trained(service, "fashion-resnet18", 0.012, steps=300, seed=1)
    other = trained(service, "fashion-resnet18-slow", 0.006, steps=300, seed=2)
    for number in range(4):
        waits, _ = service.store.create_job(make_spec(name=f"unet3d-fold{number}"))
        service.store.note(
            waits, "needs 2 workers of 1 CPU; 0 CPUs free" + (f"; {number} jobs ahead" if number else "")
        )
    failed = trained(service, "yolo-small", 0.01, steps=40, seed=3)
    error = {
        "kind": "out_of_memory",
        "type": "MemoryError",
        "message": "memory ran out",
        "rank": 1,
        "log_tail": "",
    }
    service.end_job(failed.id, State.FAILED, error=error)
    done = trained(service, "digits-baseline", 0.02, steps=400, seed=4)
    service.end_job(done.id, State.SUCCEEDED)
    return {"job": job.id, "other": other.id}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_of_the_guide_is_there_and_accessible(console: Console, scheme: str) -> None:
    ids = story(console.service)
    console.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    for name, (path, sign) in PAGES.items():
        page = console.open(path.format(**ids))
        page.wait_for_selector(sign)
        console.check_accessible()
        if DRAWS and scheme == "light":
            PICTURES.mkdir(exist_ok=True)
            page.screenshot(path=PICTURES / f"{name}.png")
        assert (PICTURES / f"{name}.png").exists()
