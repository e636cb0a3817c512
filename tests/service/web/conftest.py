"""The console in a real browser, which may talk to the service alone and must not complain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from service.client.local_token import token_file
from tests.browser import PATIENCE_S, complaints_of, running_browser
from tests.service.live_api import Service

AXE = Path(__file__).parent / "axe-4.14.1.min.js"
WIDE, NARROW = (1440, 900), (360, 740)


@pytest.fixture(scope="package")
def browser(full_run: None) -> Iterator[Browser]:  # noqa: ARG001
    """It ends with this package, so that other tests can use asyncio.run."""
    with running_browser() as browser:
        yield browser


@dataclass
class Console:
    """The console of a service, and a page of a browser that is signed in.

    complaints: messages of the browser's console, failed requests and requests to others. allowed: parts of
    complaints that the test expects.
    """

    service: Service
    page: Page
    complaints: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def open(self, path: str = "") -> Page:
        self.page.goto(f"{self.service.url}/{path.removeprefix('/')}")
        return self.page

    def allow(self, part: str) -> None:
        self.allowed.append(part)

    def check_accessible(self) -> None:
        """Fails for what axe-core finds wrong with the page as it is."""
        self.page.evaluate(AXE.read_text())
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        # Returns what is wrong alone: of all else, axe looks at one element of each rule.
        options = json.dumps({"runOnly": {"type": "tag", "values": tags}, "resultTypes": ["violations"]})
        found = self.page.evaluate(f"axe.run(document, {options}).then(result => result.violations)")
        assert not [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]

    def check_fits(self) -> None:
        """Fails if the page has to be scrolled sideways."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def check_quiet(self) -> None:
        """Fails for what the browser complained of."""
        wrong = [text for text in self.complaints if not any(part in text for part in self.allowed)]
        assert not wrong


@pytest.fixture
def console(browser: Browser, service: Service) -> Iterator[Console]:
    """A signed-in page of 1,440 pixels."""
    context = browser.new_context(viewport={"width": WIDE[0], "height": WIDE[1]}, locale="en-GB")
    context.set_default_timeout(1000 * PATIENCE_S)
    page = context.new_page()
    console = Console(service, page)
    console.complaints = complaints_of(page, service.url)
    token = token_file(service.server.port).read_text()
    page.goto(f"{service.url}/sign-in?token={token}")
    page.wait_for_selector("h1:has-text('Overview')")
    yield console
    context.close()
    console.check_quiet()
