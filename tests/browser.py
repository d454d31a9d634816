"""A browser of this machine, and pictures of what it shows.

Set UNIOVSEG_CHROMIUM to a browser that is not on PATH, and UNIOVSEG_SCREENSHOTS to a folder where pictures are to be kept.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A Chromium without a window; skips the test where there is none."""
    names = (os.environ.get("UNIOVSEG_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for path in (shutil.which(name) for name in names if name) if path), None)
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH, and UNIOVSEG_CHROMIUM names none")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def snap(page: Page, name: str, folder: Path) -> None:
    """Keep a screenshot of the whole page where UNIOVSEG_SCREENSHOTS says, else in `folder`."""
    folder = Path(os.environ.get("UNIOVSEG_SCREENSHOTS") or folder)
    folder.mkdir(parents=True, exist_ok=True)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=folder / f"{name}.png", full_page=True)
