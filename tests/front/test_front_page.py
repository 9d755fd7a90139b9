"""The page over https through nginx in a real browser: it loads, signs in, asks, and is answered over wss."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.front.front_nginx import Front
from tests.journeys.page_browser import _ARGS, chromium_path

pytestmark = [pytest.mark.front, pytest.mark.browser]


@pytest.fixture
def page(front: Front) -> Iterator[Page]:
    """The page in a browser that trusts this server's one key; its console and its requests stay without an error."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(),
            args=[*_ARGS, f"--ignore-certificate-errors-spki-list={front.authority.spki}"],
        )
        context = browser.new_context(viewport={"width": 390, "height": 844}, locale="en-GB", reduced_motion="reduce")
        opened = context.new_page()
        opened.set_default_timeout(20_000)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        opened.on("response", lambda got: complaints.append(f"{got.status} {got.url}") if got.status >= 400 else None)
        opened.goto(front.url)
        yield opened
        context.close()
        browser.close()
    assert complaints == []


def test_page_asks_over_wss(front: Front, page: Page) -> None:
    """The page signs in, opens a record, asks, and shows the answer; its socket is a wss one of the same name."""
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.locator("chatd-sign-in button[type=submit]").click()
    expect(page.locator("status-line.is-live")).to_be_visible()
    page.locator("patient-banner [data-key=choose]").click()
    page.locator("patient-dialog .patient-row", has_text="João Silva").first.click()
    expect(page.locator("patient-banner")).to_contain_text("João Silva")
    page.locator("#composer-field").fill("Analyze João Silva's ECG results")
    page.keyboard.press("Enter")
    expect(page.locator("answer-bubble .notice")).to_have_count(1)
    assert len(sockets) == 1
    assert sockets[0].startswith(f"wss://{front.host}/chat/")
    assert "?" not in sockets[0]
