"""Fixtures of the page's tests: a browser, a double of the server, and pages that are watched for errors.

A test file takes them with ``pytest_plugins = ("tests.journeys.page_fixtures",)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.fakes.fake_chatd import FakeChatd
from tests.journeys.page_browser import PATIENT_MS, Open, chromium

#: What a browser writes by itself: of a line that is refused, and of a server that is no demo.
_EXPECTED = ("WebSocket connection to", "status of 404")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def fake() -> Iterator[FakeChatd]:
    double = FakeChatd()
    double.start()
    yield double
    double.stop()


@pytest.fixture
def open_page(browser: Browser, fake: FakeChatd) -> Iterator[Open]:
    """Opens the page; at the end no error stands in its console and every frame it sent was in the agreed form."""
    contexts, complaints = [], []

    def open_it(
        path: str = "",
        *,
        width: int = 1280,
        height: int = 800,
        lang: str = "en-GB",
        scheme: Any = "light",
        **more: Any,
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            locale=lang,
            color_scheme=scheme,
            reduced_motion="reduce",
            **more,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENT_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(fake.url + path)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert [text for text in complaints if not any(part in text for part in _EXPECTED)] == []
    assert fake.invalid == []


@pytest.fixture
def open_phone(open_page: Open) -> Open:
    """Opens the page at a phone's width and signs in as the first of the demo's staff."""

    def open_it(path: str = "", *, width: int = 390, height: int = 844, **more: Any) -> Page:
        page = open_page(path, width=width, height=height, **more)
        page.locator("chatd-sign-in button[type=submit]").click()
        return page

    return open_it


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """A page of the double's origin, from which modules can be imported."""
    double = FakeChatd()
    double.start()
    try:
        opened = browser.new_page()
        opened.goto(double.url)
        yield opened
        opened.close()
    finally:
        double.stop()
