"""When a page first paints, and what a browser loads for it."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from statistics import median

from playwright.sync_api import BrowserContext, sync_playwright

from benchmarks.console.tables import Shown
from benchmarks.queue.api import Api

_PAINT = """() => new Promise(found => {
  const look = () => {
    const entry = performance.getEntriesByName('first-contentful-paint')[0];
    entry ? found(entry.startTime) : requestAnimationFrame(look);
  };
  look();
})"""


def pages(shown: Shown) -> Mapping[str, str]:
    """Returns the paths of the pages that are measured, by their names."""
    job, large = shown.busy[0], f"jobs/{shown.large}"
    compared = "&".join(f"job={each}" for each in shown.busy[:20])
    return {
        "overview": "",
        "jobs": "jobs",
        "jobs, one state": "jobs?state=failed",
        "jobs, by name": "jobs?name=name-7*",
        "jobs, by label": "jobs?label=team:team-3",
        "jobs, the longest ended": "jobs?order=ended",
        "a job": f"jobs/{job}",
        "a job, 300 metrics and 100,000 points": large,
        "its logs, a million lines": f"{large}/logs",
        "its attempts": f"{large}/attempts",
        "its files": f"{large}/files",
        "its spec": f"{large}/spec",
        "its normalisation": f"{large}/normalisation",
        "its system": f"{large}/system",
        "sweeps": "sweeps",
        "a sweep of 1,000 jobs": f"sweeps/{shown.large_sweep}",
        "compare": "compare",
        "compare 20 jobs": f"compare?{compared}",
        "compare with the job of 300 metrics": f"compare?job={job}&job={shown.large}",
        "submit": "submit",
        "settings": "settings",
    }


def measured(running: Api, paths: Mapping[str, str], paints: int) -> Iterator[tuple[str, float, float]]:
    """Yields the name of each page, its first paint in ms and the kilobytes of its files."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, page in paths.items():
            context = browser.new_context()
            context.new_page().goto(f"{running.url}/sign-in?token={running.key}")
            address = f"{running.url}/{page}"
            size = _size(context, address)
            yield name, median(_paint(context, address) for _ in range(paints)), size / 1000
            context.close()
        browser.close()


def _size(context: BrowserContext, address: str) -> int:
    """Returns the bytes of the page and its files, packed."""
    page, answers = context.new_page(), []
    page.on("response", lambda answer: answers.append(answer))
    page.goto(address)
    page.wait_for_load_state("load")
    total = 0
    for answer in answers:
        if "/live/" not in answer.url and "/v1/" not in answer.url and "/data/" not in answer.url:
            with suppress(Exception):  # a redirect has no body
                total += len(gzip.compress(answer.body()))
    page.close()
    return total


def _paint(context: BrowserContext, address: str) -> float:
    page = context.new_page()
    page.goto(address)
    took = float(page.evaluate(_PAINT))
    page.close()
    return took
