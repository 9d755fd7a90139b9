"""The page against the real chatd: sign in, ask, see the facts, confirm an action, lose the network, resume."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.fakes.relay import Relay
from tests.journeys.page_browser import SCREENS, chromium
from tests.server import Hospital

pytestmark = pytest.mark.browser

QUESTION = "Analyze João Silva's ECG results"


@pytest.fixture
def network(place: Hospital) -> Iterator[Relay]:
    """The network between the page and chatd, to be cut."""
    with Relay(place.url) as relay:
        yield relay


@pytest.fixture
def page(network: Relay) -> Iterator[Page]:
    """The page at a phone's width, with an error-free console at the end."""
    complaints: list[str] = []
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 390, "height": 844}, locale="en-GB", reduced_motion="reduce")
        opened = context.new_page()
        opened.set_default_timeout(15_000)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(network.url)
        yield opened
        context.close()
    assert complaints == []


def shoot(page: Page, name: str) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENS / f"real-{name}.png")


def begin(page: Page) -> None:
    """Sign in as the first of the demo's staff, open João Silva's record and ask."""
    page.locator("chatd-sign-in button[type=submit]").click()
    expect(page.locator("status-line.is-live")).to_be_visible()
    page.locator("patient-banner [data-key=choose]").click()
    page.locator("patient-dialog .patient-row", has_text="João Silva").first.click()
    expect(page.locator("patient-banner")).to_contain_text("João Silva")
    ask(page, QUESTION)


def ask(page: Page, text: str) -> None:
    page.locator("#composer-field").fill(text)
    page.keyboard.press("Enter")


def answered(page: Page, count: int) -> None:
    expect(page.locator("answer-bubble .notice")).to_have_count(count)


def test_page_answers_joao_silva(page: Page) -> None:
    """The page shows troponin with its time, the ECG findings, the allergy, the quoted protocol and what is missing."""
    shoot(page, "1-sign-in")
    begin(page)
    answered(page, 1)
    card = page.locator("facts-card")
    expect(card).to_contain_text("Troponin I")
    expect(card).to_contain_text(re.compile(r"45\s*ng/mL"))
    expect(card).to_contain_text("V2-V6")
    expect(card).to_contain_text("Penicillin")
    expect(card).to_contain_text("tracing itself is not available")
    expect(page.locator("answer-bubble .chip", has_text="Schedule Cath Lab")).to_be_visible()
    shoot(page, "2-facts")
    page.locator("message-list").evaluate("(list) => { list.scrollTop = list.scrollHeight; }")
    shoot(page, "3-answer")
    page.locator("facts-card .source").first.click()
    quote = page.locator("citation-dialog")
    expect(quote).to_contain_text("STEMI")
    expect(quote).to_contain_text("2025")
    shoot(page, "4-protocol")


def test_page_confirms_an_action_in_two_steps(page: Page) -> None:
    """A chip is prepared, shown with what it will do, confirmed, and then stands as confirmed."""
    begin(page)
    answered(page, 1)
    page.locator("answer-bubble .chip", has_text="Schedule Cath Lab").click()
    dialog = page.locator("action-dialog")
    expect(dialog).to_contain_text("Schedule Cath Lab")
    if dialog.locator("input[name=second]").count():
        dialog.locator("input[name=second]").fill("1959-01-15")
    shoot(page, "5-prepare")
    dialog.locator("button[type=submit]").click()
    expect(page.locator("answer-bubble .action", has_text="Schedule Cath Lab")).to_contain_text(
        re.compile("confirmed|draft", re.IGNORECASE)
    )
    shoot(page, "6-confirmed")


def test_page_resumes_after_a_lost_network(page: Page, network: Relay) -> None:
    """Without a network the page says so; with it the question that was typed meanwhile is answered, once."""
    begin(page)
    answered(page, 1)
    network.cut()
    expect(page.locator("status-line.is-live")).to_have_count(0)
    ask(page, "Allergies?")
    shoot(page, "7-offline")
    network.mend()
    expect(page.locator("status-line.is-live")).to_be_visible(timeout=30_000)
    answered(page, 2)
    expect(page.locator("facts-card")).to_have_count(2)
    shoot(page, "8-resumed")


def test_page_raises_an_alert_that_a_colleague_accepts(page: Page, network: Relay) -> None:
    """Raised on one phone it comes up on another; the acceptance is on both, with its name and time of arrival."""
    begin(page)
    assert page.context.browser is not None
    other = page.context.browser.new_page(viewport={"width": 390, "height": 844}, locale="en-GB")
    other.set_default_timeout(15_000)
    other.goto(network.url)
    other.locator("input[value='nurse.almeida.cardio']").check()
    other.locator("chatd-sign-in button[type=submit]").click()
    expect(other.locator("status-line.is-live")).to_be_visible()
    page.locator("[data-key=raise]").click()
    page.locator("raise-dialog textarea").fill("Second pair of hands, room 3")
    page.locator("[data-key=raise-go]").click()
    expect(page.locator("raise-dialog")).to_contain_text("Raised: the server has it.")
    expect(page.locator("raise-dialog .reach")).to_contain_text("online")
    shoot(page, "8-raised")
    page.locator("[data-key=raise-close]").click()
    sheet = other.locator(".sheet[open]:not([data-guarded])")
    expect(sheet).to_contain_text("Second pair of hands, room 3")
    expect(sheet).to_contain_text("Record")
    sheet.get_by_role("button", name="5 min", exact=True).click()
    sheet.get_by_role("button", name="Accept").click()
    expect(other.locator(".sheet")).to_contain_text("You accepted")
    shoot(other, "9-accepted")
    page.locator("alert-strip button").click()
    expect(page.locator("alert-list .alert-row")).to_contain_text("Has it: nurse.almeida.cardio (there at")
    other.close()


def test_emergency_access_tells_the_other_department(page: Page, place: Hospital) -> None:
    """A record of intensive care opens for a cardiologist who gives a reason; that department has an alert."""
    page.locator("chatd-sign-in button[type=submit]").click()
    expect(page.locator("status-line.is-live")).to_be_visible()
    page.locator("patient-banner [data-key=choose]").click()
    page.locator("patient-dialog [data-key=emergency]").click()
    dialog = page.locator("patient-dialog")
    dialog.locator("input[name=record]").fill("3318")
    dialog.locator("textarea[name=reason]").fill("x")
    page.locator("[data-key=emergency-go]").click()
    expect(dialog.get_by_role("alert")).to_contain_text("at least 8")
    shoot(page, "7-emergency")
    dialog.locator("textarea[name=reason]").fill("Unconscious in our cath lab")
    page.locator("[data-key=emergency-go]").click()
    expect(page.locator("patient-banner")).to_contain_text("Fernando Moreira")
    expect(page.locator("patient-banner")).to_contain_text("3318")
    told = place.run("audit", "report", "--data-dir", "DIR", "--user", "dr.santos.cardio").stdout
    assert "break_glass\tok" in told
    assert "\ticu\talert.raised\tok" in told
    assert "Unconscious" not in told


def test_emergency_access_to_no_record_keeps_what_was_written(page: Page) -> None:
    """A number that nobody has is told, and number and reason stand in the form to be put right."""
    page.locator("chatd-sign-in button[type=submit]").click()
    expect(page.locator("status-line.is-live")).to_be_visible()
    page.locator("patient-banner [data-key=choose]").click()
    page.locator("patient-dialog [data-key=emergency]").click()
    dialog = page.locator("patient-dialog")
    dialog.locator("input[name=record]").fill("9999999")
    dialog.locator("textarea[name=reason]").fill("Unconscious in our cath lab")
    page.locator("[data-key=emergency-go]").click()
    expect(dialog.get_by_role("alert")).to_be_visible()
    expect(dialog.locator("input[name=record]")).to_have_value("9999999")
    expect(dialog.locator("textarea[name=reason]")).to_have_value("Unconscious in our cath lab")
