"""Chromium of the system's packages, driven by Playwright; it may talk to one server alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENCE_S = 60
"""How long a test waits for the browser: the other tests may leave it little of the machine."""


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A headless browser while the block lasts; skips the test where none is installed.

    While it is there, Playwright runs a loop of its own, and asyncio.run cannot be used in this process.
    """
    # The shell has no windows, whose own pages cost a third of the time.
    names = "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("Chromium is not installed: apt-get install chromium-headless-shell")
    expect.set_options(timeout=1000 * PATIENCE_S)
    with sync_playwright() as playwright:
        # --no-sandbox: Chromium refuses to run as root otherwise, as in a container.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def complaints_of(page: Page, url: str) -> list[str]:
    """Returns what the browser complains of from now on, as it grows, and requests to other servers."""
    complaints: list[str] = []
    host = urlsplit(url).netloc
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: (
            None
            if urlsplit(request.url).netloc in {host, ""}
            else complaints.append(f"a request to {request.url}")
        ),
    )
    return complaints
