"""A real browser for the tests: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium without a window. Raises FileNotFoundError where it is not installed."""
    from playwright.sync_api import sync_playwright  # late: only these tests need it

    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise FileNotFoundError("no Chromium: run `make test-browser`, or tests/browser/install.sh")
    with sync_playwright() as playwright:
        # As root, and in containers, the sandbox is not to be had; the pages are our own
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
