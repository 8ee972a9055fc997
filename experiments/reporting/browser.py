"""The report in a headless Chromium: how to find and start one, for the test and for the README's screenshot."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def chromium(executable: str) -> Iterator[Any]:
    """A running browser (playwright's), closed afterwards."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def screenshot(page: Path, image: Path, executable: str, *, width: int = 1180, height: int = 900) -> None:
    """The top of the report as PNG, at twice the resolution, light."""
    with chromium(executable) as browser:
        tab = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=2, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.screenshot(path=str(image))
