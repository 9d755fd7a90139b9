"""Headless Chromium for the page's tests: found on the machine, never downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
#: Pictures of the page that a test run leaves behind; no reference, only for looking at.
SCREENS = ROOT / "out" / "screens"

#: Finds what is wrong on any screen: names, contrast, landmarks, widths.
CHECKS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")
Open = Callable[..., Page]
#: What a loaded machine may take for what a page does at once; nothing is shown by it being over.
PATIENT_MS = 30_000
expect.set_options(timeout=PATIENT_MS)

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGS = (
    "--no-sandbox",  # containers of CI have no user namespaces
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium_path() -> str:
    """The browser's path: ``CHATD_CHROMIUM`` or the first known name on PATH; skips without one, fails in CI."""
    named = os.environ.get("CHATD_CHROMIUM")
    found = named or next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        reason = "no Chromium on this machine (set CHATD_CHROMIUM to the path of one)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser.

    Keep it no longer than one test module: while it lives, Playwright's own event loop runs in this thread, and
    an asynchronous test of another module could not start one.
    """
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGS))
        try:
            yield browser
        finally:
            browser.close()


def run(page: Page, head: str, body: str) -> Any:
    """What a function of these two parts returns inside the page."""
    return page.evaluate(f"async () => {{ {head} {body} }}")


def live(page: Page) -> None:
    """Wait until the page's line is open."""
    expect(page.locator("status-line.is-live")).to_be_visible()
