"""The system's Chromium without a window, driven by Playwright."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class OpenPage:
    """A page, and what it did.

    Attributes:
        page: Playwright's.
        said: Messages of its console, and errors of its scripts.
        asked: Addresses that it asked for, its own first.
    """

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser; a test that cannot have one is reported as not run."""
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None or importlib.util.find_spec("playwright") is None:
        missing = "chromium (apt-get install chromium)" if path is None else "playwright"
        pytest.skip(f"not run: {missing} is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Without a sandbox, as root has none; what it opens is a file of ours.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def open_page(browser: Browser, file: Path, *, width: int = 1280, scheme: str = "light") -> OpenPage:
    """Opens a file.

    Args:
        browser: That runs.
        file: An HTML file.
        width: Of the window, in CSS pixels.
        scheme: What the system prefers: light or dark.
    """
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
    )
    opened = OpenPage(page)
    page.on("console", lambda message: opened.said.append(message.text))
    page.on("pageerror", lambda error: opened.said.append(str(error)))
    page.on("request", lambda request: opened.asked.append(request.url))
    page.goto(file.as_uri())
    return opened
