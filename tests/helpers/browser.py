"""A real Chromium without a window, driven by Playwright; tests of pages are skipped where there is none."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The browser. Skips the test where Playwright or the browser is missing, fails it where one has to be there."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None or importlib.util.find_spec("playwright") is None:
        reason = "needs Chromium (Debian: apt-get install chromium) and playwright (make install)"
        if os.environ.get("PATCHSIEVE_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # As root, as in containers, there is no sandbox; the pages are our own.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
