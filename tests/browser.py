"""A real browser for tests that look at pages, and pages that remember whatever went wrong in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Set where these tests must not be skipped, as in CI.
REQUIRED = "REQUIRE_BROWSER"


def chromium() -> str:
    """The path of a Chromium; without one the test is skipped, or fails where `REQUIRE_BROWSER` is set."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    why = "no Chromium on PATH: as root, `apt-get install chromium`; `make test` does so where it may"
    return pytest.fail(why) if os.environ.get(REQUIRED) else pytest.skip(why)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium without a profile."""
    path = chromium()
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright isn't installed: pip install --group dev"
    )
    with playwright.sync_playwright() as started:
        # Root has no sandbox.
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@dataclass
class Looked:
    """A page, and what it complained of or asked for while it was open."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ask(self, script: str) -> Any:
        """The value of JavaScript in the page."""
        return self.page.evaluate(script)


@contextmanager
def look(
    browser: Browser,
    page_at: Path | str,
    *,
    width: int = 1440,
    scheme: str = "light",
    scripts: bool = True,
    touch: bool = False,
) -> Iterator[Looked]:
    """Open a file of this disk or an address, wait until it is drawn, if it has `scripts` that draw any, and close it again; `touch`: on a telephone."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
        has_touch=touch,
        is_mobile=touch,
    )
    page = context.new_page()
    looked = Looked(page)
    page.on("console", lambda message: looked.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: looked.complaints.append(f"error: {error}"))
    page.on(
        "dialog", lambda dialog: (looked.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss())
    )
    page.on("request", lambda request: looked.requests.append(request.url))
    page.goto(page_at if isinstance(page_at, str) else page_at.as_uri())
    # Figures draw themselves once they know their width: two frames later at the latest.
    if scripts:
        # A function that is waited for would be evaluated, which a strict policy forbids.
        page.wait_for_selector("html[data-shown=yes]", state="attached")
    settle(page)
    yield looked
    context.close()


def settle(page: Page) -> None:
    """Let the page lay itself out, and draw what that asks for."""
    page.evaluate(
        "new Promise(done => { let n = 4; const next = () => --n ? requestAnimationFrame(next) : done(); next(); })"
    )
