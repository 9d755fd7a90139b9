"""Alerts on the page in headless Chromium: the sheet, the list, raising one, presence, and the wall board."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Page, expect

from protocols import frames as f
from protocols.errors import ErrorCode
from tests.fakes.fake_chatd import OPTIONS, TEAM, FakeChatd
from tests.journeys.page_browser import CHECKS, SCREENS, Open, live

pytest_plugins = ("tests.journeys.page_fixtures",)
pytestmark = [pytest.mark.browser, pytest.mark.heavy]

ME = "dr.santos.cardio"
TEXT = "Cardiac arrest, room 4"


@pytest.fixture
def page(open_phone: Open) -> Page:
    """A signed-in physician's phone."""
    opened = open_phone()
    live(opened)
    return opened


def sheet(page: Page) -> Any:
    """The alert sheet, once its presses count."""
    expect(page.locator(".sheet[open]:not([data-guarded])")).to_be_visible()
    return page.locator(".sheet")


def answers(fake: FakeChatd) -> list[str]:
    return [one.answer for one in fake.of(f.AlertResponse)]


def reconnect(page: Page, fake: FakeChatd) -> None:
    fake.refuse = False
    page.evaluate("dispatchEvent(new Event('online'))")
    live(page)


def shoot(page: Page, name: str) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENS / f"alerts-{name}.png")
    assert page.evaluate(CHECKS) == [], name


def iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- the sheet ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "scheme", "lang"),
    [
        (320, "light", "pt-PT"),
        (320, "dark", "en-GB"),
        (390, "light", "en-GB"),
        (1280, "light", "en-GB"),
        (1280, "dark", "pt-PT"),
        (1600, "light", "pt-PT"),
    ],
)
def test_alert_screens_pass_their_checks(open_phone: Open, fake: FakeChatd, width: int, scheme: str, lang: str) -> None:
    """Sheet, reasons, team, list, raising and presence have names, contrast and targets, and fit their width."""
    page = open_phone(width=width, lang=lang, scheme=scheme)
    live(page)
    mark = f"{lang[:2]}-{scheme}-{width}"
    late = iso(datetime.now(UTC) - timedelta(minutes=7))
    soon = iso(datetime.now(UTC) + timedelta(seconds=95))
    fake.alert(
        alert_id="al-1",
        priority="critical",
        content="Potassium 7.1 mmol/L, bed 12: ECG and treatment now",
        from_="service:laboratory",
        patient_id="7823",
        raised_at=late,
        next_escalation_at=soon,
        options=OPTIONS,
    )
    sheet(page)
    shoot(page, f"{mark}-1-sheet")
    page.locator("[data-key=sheet-decline]").click()
    expect(page.locator("[data-key=sheet-why-in_procedure]")).to_be_visible()
    shoot(page, f"{mark}-2-reasons")
    page.locator("[data-key=sheet-back]").wait_for()
    sheet(page)
    page.locator("[data-key=sheet-back]").click()
    expect(page.locator("[data-key=sheet-accept]")).to_be_visible()
    sheet(page)
    page.locator("[data-key=eta-5]").click()
    page.locator("[data-key=sheet-accept]").click()
    expect(page.locator("[data-key=sheet-done]")).to_be_visible()
    shoot(page, f"{mark}-3-accepted")
    team = (f.AlertSlot(**{**f_fields(TEAM[0]), "by": "enf.alves", "eta_at": soon}), *TEAM[1:])
    fake.alert(
        alert_id="al-2", priority="critical", content="STEMI, cath lab 2", from_="dr.lopes.emergency", slots=team
    )
    expect(page.locator(".sheet .slot")).to_have_count(4)
    sheet(page)
    shoot(page, f"{mark}-4-team")
    page.keyboard.press("Escape")
    expect(page.locator(".sheet[open]")).to_have_count(0)
    fake.alert(alert_id="al-3", priority="high", content="Bed 7: NEWS2 8", to=f.AlertTarget(role="charge_nurse"))
    fake.alert(alert_id="al-4", priority="low", content="Round at 11", drill=True, to=f.AlertTarget(user="enf.alves"))
    page.locator("alert-strip button").click()
    expect(page.locator("alert-list .alert-row")).to_have_count(4)
    shoot(page, f"{mark}-5-list")
    page.keyboard.press("Escape")
    page.locator("[data-key=raise]").click()
    page.locator("[data-key=raise-text]").fill("Second pair of hands, room 3")
    shoot(page, f"{mark}-6-raise")
    page.locator("[data-key=raise-go]").click()
    expect(page.locator("raise-dialog .reach")).to_be_visible()
    shoot(page, f"{mark}-7-reach")
    page.locator("[data-key=raise-close]").click()
    page.locator("[data-key=presence]").click()
    page.locator("input[value=in_procedure]").check()
    shoot(page, f"{mark}-8-presence")


def f_fields(slot: f.AlertSlot) -> dict[str, Any]:
    return {name: getattr(slot, name) for name in slot.__struct_fields__}


def test_alert_comes_up_is_told_and_accepted(page: Page, fake: FakeChatd) -> None:
    """It stands over the page as an alert dialog, receipts go out once, the answer is mine when the log says so."""
    fake.alert(alert_id="al-1", priority="critical", content=TEXT, from_="enf.alves", patient_id="7823")
    shown = sheet(page)
    expect(page.get_by_role("alertdialog", name="Critical alert")).to_be_visible()
    expect(shown).to_contain_text("João Silva · Record 7823")
    expect(shown).to_contain_text("from enf.alves")
    expect(shown).to_contain_text("Nobody has it")
    assert page.title() == "(1) chatd"
    shown.get_by_role("button", name="5 min", exact=True).click()
    shown.get_by_role("button", name="Accept").click()
    expect(shown).to_contain_text("You accepted")
    expect(shown).to_contain_text("Has it: You (there at")
    assert answers(fake) == ["delivered", "displayed", "accept"]
    assert fake.of(f.AlertResponse)[-1].eta_min == 5
    sheet(page).get_by_role("button", name="Done").click()
    expect(page.locator(".sheet[open]")).to_have_count(0)
    assert answers(fake)[-1] == "done"
    expect(page.locator("alert-strip")).to_contain_text("No open alerts")
    assert page.title() == "chatd"


def test_alert_takes_no_press_that_was_meant_for_what_was_there_before(page: Page, fake: FakeChatd) -> None:
    """A press in the moment after the sheet has come up answers nothing, and no key does; a later one counts."""
    page.locator("#composer-field").focus()
    page.evaluate(
        """() => new MutationObserver((_, watching) => {
            const button = document.querySelector("[data-key=sheet-accept]");
            if (!button) return;
            watching.disconnect();
            button.click();
        }).observe(document.body, { childList: true, subtree: true })"""
    )
    fake.alert(alert_id="al-1", priority="critical", content=TEXT)
    expect(page.locator(".sheet-title")).to_be_focused()  # and not an answer
    shown = sheet(page)
    assert "accept" not in answers(fake)
    shown.get_by_role("button", name="Accept").click()
    expect(shown).to_contain_text("You accepted")


def test_alert_sheet_stands_still_under_a_finger(page: Page, fake: FakeChatd) -> None:
    """While a finger is down nothing is drawn again: the press counts for the button it began on."""
    fake.alert(alert_id="al-1", priority="high", content="Bed 7: NEWS2 8")
    shown = sheet(page)
    shown.get_by_role("button", name="Accept").hover()
    page.mouse.down()
    fake.alert(alert_id="al-2", priority="critical", content=TEXT)
    expect(page.locator("alert-strip")).to_contain_text(TEXT)
    expect(shown.locator(".sheet-text")).to_have_text("Bed 7: NEWS2 8")
    page.mouse.up()
    expect(shown.locator(".sheet-text")).to_have_text(TEXT)
    assert [(one.answer, one.alert_id) for one in fake.of(f.AlertResponse) if one.answer == "accept"] == [
        ("accept", "al-1")
    ]


def test_alert_bar_moves_nothing(page: Page, fake: FakeChatd) -> None:
    """The bar above the conversation has one height, with and without alerts."""
    before = page.locator(".chat").bounding_box()
    fake.alert(alert_id="al-1", priority="high", content="x " * 400, to=f.AlertTarget(role="charge_nurse"))
    expect(page.locator("alert-strip .alert-high")).to_be_visible()
    assert page.locator(".chat").bounding_box() == before
    expect(page.locator(".sheet[open]")).to_have_count(0)  # it calls somebody else
    assert answers(fake) == []


def test_alert_taken_by_another_closes_the_sheet_and_says_who(page: Page, fake: FakeChatd) -> None:
    """Somebody else's acceptance ends it on this phone, with their name."""
    fake.alert(alert_id="al-1", priority="critical", content=TEXT)
    sheet(page)
    fake.update_alert(
        alert_id="al-1",
        state="in_progress",
        event="accepted",
        by="enf.alves",
        who=(f.AlertHolder(user_id="enf.alves", answer="accept", at=iso(datetime.now(UTC))),),
    )
    expect(page.locator(".sheet[open]")).to_have_count(0)
    expect(page.locator(".note-place")).to_contain_text("enf.alves has it")
    expect(page.locator("[data-live=polite]")).to_contain_text("enf.alves has the alert")
    page.locator("alert-strip button").click()
    expect(page.locator("alert-list")).to_contain_text("Has it: enf.alves")


def test_alert_is_declined_with_a_canned_reason(page: Page, fake: FakeChatd) -> None:
    """Decline offers the alert's own reasons; the chosen one goes out, and the sheet is gone."""
    fake.alert(alert_id="al-1", priority="high", content=TEXT, options=OPTIONS)
    sheet(page).get_by_role("button", name="Decline").click()
    # The reasons are there, and only then their guard is over.
    expect(page.get_by_role("button", name="In a procedure")).to_be_visible()
    sheet(page).get_by_role("button", name="In a procedure").click()
    expect(page.locator(".sheet[open]")).to_have_count(0)
    sent = fake.of(f.AlertResponse)[-1]
    assert (sent.answer, sent.reason) == ("decline", "in_procedure")
    # A repeat does not ring whoever has declined; a later step that calls them does.
    fake.alert(alert_id="al-1", priority="high", content=TEXT, event="repeated", who=(holder(ME, "decline"),))
    expect(page.locator("alert-strip")).to_contain_text(TEXT)
    expect(page.locator(".sheet[open]")).to_have_count(0)
    fake.alert(
        alert_id="al-1",
        priority="high",
        content=TEXT,
        event="escalated",
        to=f.AlertTarget(department="cardiology"),
        who=(holder(ME, "decline"),),
    )
    expect(page.locator(".sheet[open]")).to_contain_text("Escalated to Cardiology")


def holder(user_id: str, answer: str) -> f.AlertHolder:
    return f.AlertHolder(user_id=user_id, answer=answer, at=iso(datetime.now(UTC)))


def test_alert_team_offers_the_places_of_ones_own_role(page: Page, fake: FakeChatd) -> None:
    """Only empty places that this person's role may take are offered; the others stay to be filled."""
    fake.alert(alert_id="al-1", priority="critical", content="STEMI", slots=TEAM)
    shown = sheet(page)
    expect(shown).to_contain_text("0 of 4 places")
    takes = shown.get_by_role("button", name="Take:")
    assert takes.all_inner_texts() == ["Take: Operator", "Take: Anaesthesia", "Take: Runner"]
    takes.first.click()
    expect(shown).to_contain_text("1 of 4 places")
    assert fake.of(f.AlertResponse)[-1].slot == "operator"
    # A team that is not whole is not sent home by one of its members.
    expect(shown.get_by_role("button", name="Done")).to_have_count(0)
    expect(shown.get_by_role("button", name="Give it back")).to_be_visible()


def test_alert_answer_waits_for_the_line_under_one_id(page: Page, fake: FakeChatd) -> None:
    """Without a line the answer says that it is not sent; with the line it goes out again under its id."""
    fake.alert(alert_id="al-1", priority="critical", content=TEXT)
    shown = sheet(page)
    fake.answers_alerts = False
    shown.get_by_role("button", name="Accept").click()
    expect(shown).to_contain_text("Sending your answer")
    fake.refuse = True
    fake.drop()
    expect(shown).to_contain_text("Not sent, retrying")
    fake.answers_alerts = True
    reconnect(page, fake)
    expect(shown).to_contain_text("You accepted")
    accepts = [one for one in fake.of(f.AlertResponse) if one.answer == "accept"]
    assert len(accepts) == 2
    assert accepts[0] == accepts[1]


def test_alert_receipt_of_another_does_not_confirm_mine(page: Page, fake: FakeChatd) -> None:
    """An update about others leaves my answer on its way: a lost line sends it again."""
    fake.alert(alert_id="al-1", priority="critical", content=TEXT)
    shown = sheet(page)
    fake.answers_alerts = False
    shown.get_by_role("button", name="Accept").click()
    expect(shown).to_contain_text("Sending your answer")
    fake.update_alert(alert_id="al-1", state="delivering", event="receipts", counts=f.AlertCounts(delivered=3))
    fake.answers_alerts = True
    fake.drop()
    expect(shown).to_contain_text("You accepted")


def test_alert_answer_refused_says_why_and_can_be_given_again(page: Page, fake: FakeChatd) -> None:
    """A refusal stands beside the buttons, which come back."""
    fake.alert(alert_id="al-1", priority="critical", content="STEMI", slots=TEAM)
    shown = sheet(page)
    fake.error_next = ErrorCode.SLOT_TAKEN
    shown.get_by_role("button", name="Take: Operator").click()
    expect(shown.locator(".sheet-buttons .banner-critical")).to_contain_text("Somebody else has this place")
    sheet(page).get_by_role("button", name="Take: Runner").click()
    expect(shown).to_contain_text("1 of 4 places")


def test_alert_missed_while_away_comes_late_and_says_so(page: Page, fake: FakeChatd) -> None:
    """An alert of seven minutes ago that comes by replay names its age and when it was received."""
    fake.refuse = True
    fake.drop()
    expect(page.locator("status-line.is-offline")).to_be_visible()
    fake.alert(
        alert_id="al-1", priority="critical", content=TEXT, raised_at=iso(datetime.now(UTC) - timedelta(minutes=7))
    )
    reconnect(page, fake)
    shown = sheet(page)
    expect(shown).to_contain_text("7 min ago")
    expect(shown).to_contain_text("Received late")


def test_alerts_too_far_back_come_with_the_snapshot(page: Page, fake: FakeChatd) -> None:
    """A phone below the log's beginning gets the open alerts in place of what it knew."""
    fake.alert(alert_id="al-1", priority="high", content="closed meanwhile")
    sheet(page)
    fake.refuse = True
    fake.drop()
    fake.update_alert(alert_id="al-1", state="resolved", event="resolved")
    fake.alert(alert_id="al-2", priority="critical", content=TEXT)
    fake.forget_alerts(4)
    reconnect(page, fake)
    expect(page.locator(".sheet .sheet-text")).to_have_text(TEXT)
    page.locator(".sheet:not([data-guarded])").wait_for()
    page.keyboard.press("Escape")
    page.locator("alert-strip button").click()
    expect(page.locator("alert-list .alert-row")).to_have_count(1)


def test_alert_to_tell_only_is_seen(page: Page, fake: FakeChatd) -> None:
    """What nobody has to take is marked as seen, and offers no arrival."""
    fake.alert(alert_id="al-1", priority="low", content="CT is free again", requires_action=False)
    shown = sheet(page)
    expect(shown.locator(".eta")).to_have_count(0)
    shown.get_by_role("button", name="Seen").click()
    expect(page.locator(".sheet[open]")).to_have_count(0)
    page.locator("alert-strip button").click()
    expect(page.locator("alert-list .alert-row")).to_contain_text("You have seen it")


def test_alert_by_keyboard_alone(page: Page, fake: FakeChatd) -> None:
    """Tab goes through the answers inside the sheet, Enter gives one, Esc puts it into the list."""
    page.locator("#composer-field").focus()
    fake.alert(alert_id="al-1", priority="critical", content=TEXT)
    shown = sheet(page)
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.dataset.key ?? ''"))
        if seen[-1] == "sheet-accept":
            break
    assert seen[-1] == "sheet-accept", seen
    page.keyboard.press("Enter")
    expect(shown).to_contain_text("You accepted")
    sheet(page)
    page.keyboard.press("Escape")
    expect(page.locator(".sheet[open]")).to_have_count(0)
    expect(page.locator("#composer-field")).to_be_focused()


# --- raising and presence -----------------------------------------------------------------------------------


def test_raise_says_whom_it_reaches_and_never_sent_before_accepted(page: Page, fake: FakeChatd) -> None:
    """Until the server has it the dialog says so; then it counts who is reached, and who covers for whom."""
    page.locator("patient-banner [data-key=choose]").click()
    page.locator("patient-dialog .patient-row", has_text="João Silva").first.click()
    expect(page.locator("patient-banner")).to_contain_text("João Silva")
    fake.answers_alerts = False
    page.locator("[data-key=raise]").click()
    dialog = page.locator("raise-dialog")
    expect(dialog).to_contain_text("About João Silva · Record 7823")
    dialog.get_by_label("A role", exact=True).first.check()
    dialog.locator("input[name=role]").fill("charge_nurse")
    dialog.get_by_label("Critical").check()
    dialog.locator("textarea").fill(TEXT)
    dialog.get_by_role("button", name="Raise alert").click()
    expect(dialog).to_contain_text("not yet with the server")
    fake.refuse = True
    fake.drop()
    expect(dialog).to_contain_text("Not sent, retrying")
    fake.answers_alerts = True
    reconnect(page, fake)
    expect(dialog).to_contain_text("Raised: the server has it.")
    expect(dialog).to_contain_text("2 online, 1 by push, 2 cannot be reached")
    expect(dialog).to_contain_text("dr.lima.cardio: covered by dr.mendes.cardio")
    expect(dialog).to_contain_text("dr.faria.cardio: cannot be reached, nobody covers")
    first, again = fake.of(f.AlertRaise)
    assert first == again
    assert (first.to.role, first.priority, first.patient_id, first.requires_action) == (
        "charge_nurse",
        "critical",
        "7823",
        True,
    )


def test_raised_alert_is_stood_down_by_who_raised_it(page: Page, fake: FakeChatd) -> None:
    """One's own alert does not ring; it can be opened from the list and stood down."""
    page.locator("[data-key=raise]").click()
    page.locator("raise-dialog textarea").fill(TEXT)
    page.locator("[data-key=raise-go]").click()
    page.locator("[data-key=raise-close]").click()
    expect(page.locator("alert-strip")).to_contain_text(TEXT)
    expect(page.locator(".sheet[open]")).to_have_count(0)
    page.locator("alert-strip button").click()
    page.locator("alert-list .alert-row").click()
    sheet(page).get_by_role("button", name="Stand down").click()
    expect(page.locator(".sheet[open]")).to_have_count(0)
    assert answers(fake) == ["stand_down"]


def test_alert_that_leaves_lets_no_tap_fall_through(page: Page, fake: FakeChatd) -> None:
    """A tap and an Enter meant for an alert that another has just taken send nothing that stood below it."""
    page.locator("#composer-field").fill("half a question")
    fake.alert(alert_id="al-1", priority="critical", content=TEXT)
    sheet(page)
    page.evaluate(
        """() => {
            const dialog = document.querySelector(".sheet");
            window.tapped = new Promise((resolve) => new MutationObserver(() => {
                if (dialog.open) return;
                const box = document.querySelector("chat-composer .send").getBoundingClientRect();
                const below = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
                const key = new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true });
                document.querySelector("#composer-field").dispatchEvent(key);
                resolve([Boolean(below?.closest("chat-composer")), key.defaultPrevented]);
            }).observe(dialog, { attributes: true, attributeFilter: ["open"] }));
        }"""
    )
    fake.update_alert(
        alert_id="al-1", state="in_progress", event="accepted", by="enf.alves", who=(holder("enf.alves", "accept"),)
    )
    assert page.evaluate("window.tapped") == [False, True]
    assert fake.of(f.UserMessage) == []
    expect(page.locator("#composer-field")).to_have_value("half a question")


def test_raise_that_reaches_nobody_says_telephone(page: Page, fake: FakeChatd) -> None:
    """An alert that no phone gets now is not shown as a success."""
    fake.reach = f.Reach(unreachable=("enf.alves",))
    page.locator("[data-key=raise]").click()
    page.locator("raise-dialog textarea").fill(TEXT)
    page.locator("[data-key=raise-go]").click()
    expect(page.locator("raise-dialog .banner-critical")).to_contain_text("Use the telephone")


def test_presence_is_set_with_its_end_and_delegate(page: Page, fake: FakeChatd) -> None:
    """A state, how long, and who covers go out; the button then says what the server knows."""
    page.locator("[data-key=presence]").click()
    dialog = page.locator("presence-dialog")
    dialog.get_by_label("In a procedure").check()
    dialog.get_by_label("Until").select_option("60")
    dialog.get_by_label("Who covers for you").fill("dr.mendes.cardio")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="Presence: In a procedure")).to_be_visible()
    (sent,) = fake.of(f.PresenceSet)
    assert (sent.state, sent.delegate_to) == ("in_procedure", "dr.mendes.cardio")
    left = datetime.fromisoformat(sent.until) - datetime.now(UTC)
    assert timedelta(minutes=58) < left <= timedelta(minutes=61)


@pytest.mark.parametrize(
    ("lang", "until_label", "until_text", "delegate_label", "save", "busy", "covered"),
    [
        (
            "en-GB",
            "Until",
            r"^until .*\d\d:\d\d",
            "Who covers for you",
            "Save",
            "Busy",
            "dr.mendes.cardio covers for you",
        ),
        ("pt-PT", "Até", r"^até .*\d\d:\d\d", "Quem o substitui", "Guardar", "Ocupado", "dr.mendes.cardio substitui-o"),
    ],
)
def test_presence_that_is_saved_again_keeps_its_end_and_delegate(
    open_phone: Open,
    fake: FakeChatd,
    lang: str,
    until_label: str,
    until_text: str,
    delegate_label: str,
    save: str,
    busy: str,
    covered: str,
) -> None:
    """The form begins with what is known, so whoever changes one thing loses no other; an end can be taken back."""
    until = iso(datetime.now(UTC) + timedelta(hours=1))
    fake.presence = f.OwnPresence(state="in_procedure", until=until, delegate_to="dr.mendes.cardio", is_accepted=True)
    page = open_phone(lang=lang)
    live(page)
    page.locator("[data-key=presence]").click()
    dialog = page.locator("presence-dialog")
    expect(dialog.get_by_label(until_label).locator("option:checked")).to_have_text(re.compile(until_text))
    expect(dialog.get_by_label(delegate_label)).to_have_value("dr.mendes.cardio")
    shoot(page, f"presence-prefilled-{lang}")
    dialog.get_by_label(busy).check()
    dialog.get_by_role("button", name=save).click()
    expect(dialog).to_have_count(0)
    expect(page.locator("[data-key=presence]")).to_have_attribute("title", re.compile(rf"^{busy} · .* · {covered}$"))
    page.locator("[data-key=presence]").click()
    dialog.get_by_label(until_label).select_option("")
    dialog.get_by_label(delegate_label).fill("")
    dialog.get_by_role("button", name=save).click()
    expect(dialog).to_have_count(0)
    first, second = fake.of(f.PresenceSet)
    assert (first.state, first.until, first.delegate_to) == ("busy", until, "dr.mendes.cardio")
    assert (second.state, second.until, second.delegate_to) == ("busy", None, None)


@pytest.mark.parametrize(
    ("lang", "state", "asked", "covered"),
    [
        ("en-GB", "In a procedure", "dr.mendes.cardio is asked to cover", "dr.mendes.cardio covers for you"),
        ("pt-PT", "Em procedimento", "substituição pedida a dr.mendes.cardio", "dr.mendes.cardio substitui-o"),
    ],
)
def test_own_presence_is_shown_again_after_a_reload(
    open_phone: Open, fake: FakeChatd, lang: str, state: str, asked: str, covered: str
) -> None:
    """What one is available for is known on a page that has just begun, with who stands in and since they accepted."""
    until = datetime.now(UTC) + timedelta(hours=1)
    fake.presence = f.OwnPresence(state="in_procedure", until=iso(until), delegate_to="dr.mendes.cardio")
    page = open_phone(lang=lang)
    live(page)
    button = page.locator("[data-key=presence]")
    expect(button).to_contain_text(state)
    expect(button).to_have_attribute("title", re.compile(rf"^{state} · .*\d\d:\d\d.* · {asked}$"))
    fake.presence = msgspec.structs.replace(fake.presence, is_accepted=True)
    fake.drop()
    reconnect(page, fake)
    expect(button).to_have_attribute("title", re.compile(rf" · {covered}$"))
    button.click()
    expect(page.locator("presence-dialog")).to_contain_text(covered)
    expect(page.get_by_role("radio", name=state)).to_be_checked()
    shoot(page, f"presence-again-{lang}")
    # A server that does not know it now takes back nothing.
    page.keyboard.press("Escape")
    fake.presence = None
    fake.drop()
    reconnect(page, fake)
    expect(button).to_contain_text(state)


# --- the wall board -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [(320, 640, "light"), (390, 844, "dark"), (1280, 720, "light"), (1280, 720, "dark"), (1600, 900, "light")],
)
def test_board_shows_critical_alerts_at_every_size(
    open_phone: Open, fake: FakeChatd, width: int, height: int, scheme: str
) -> None:
    """Twenty alerts: each critical one is whole inside the window, what does not fit is counted, nothing scrolls."""
    soon = iso(datetime.now(UTC) + timedelta(seconds=200))
    team = tuple(
        f.AlertSlot(**{**f_fields(one), "by": f"person.{one.id}", "eta_at": soon}) if one.id != "runner" else one
        for one in TEAM
    )
    page = open_phone("#board", width=width, height=height, scheme=scheme)
    expect(page.locator("wall-board")).to_contain_text("No open alerts")
    expect(page.locator("wall-board")).to_contain_text("last word")
    shoot(page, f"board-{scheme}-{width}-1-empty")
    fake.alert(alert_id="al-team", priority="critical", content="STEMI, cath lab 2", slots=team, patient_id="7823")
    fake.alert(alert_id="al-crit", priority="critical", content=TEXT, next_escalation_at=soon)
    expect(page.locator(".board-card")).to_have_count(2)
    expect(page.locator(".board-card", has_text="STEMI")).to_contain_text("3 of 4 places, 3 with time of arrival")
    shoot(page, f"board-{scheme}-{width}-2-two")
    for n in range(18):
        priority = ("high", "normal", "low")[n % 3]
        fake.alert(alert_id=f"al-{n}", priority=priority, content=f"Bed {n}: a sentence that is not short at all")
    expect(page.locator(".board-card")).to_have_count(20)
    shoot(page, f"board-{scheme}-{width}-3-many")
    for card in page.locator(".board-card.alert-critical").all():
        expect(card).to_be_in_viewport(ratio=0.99)
    hidden = page.locator(".board-card[hidden]").count()
    if hidden:
        expect(page.locator(".board-left")).to_contain_text(f"and {hidden} more")
    assert page.evaluate("document.querySelector('.board-list').scrollHeight") <= page.evaluate(
        "document.querySelector('.board-list').clientHeight + 1"
    )
    hello = fake.of(f.Hello)[0]
    assert hello.channel == "board"
    assert answers(fake) == []  # a wall is nobody
    assert "João" not in page.content()


def test_board_says_when_it_last_heard(open_phone: Open, fake: FakeChatd) -> None:
    """Without a line the board says since when, in large letters, and keeps what it knew."""
    page = open_phone("board", width=1280)
    fake.alert(alert_id="al-1", priority="critical", content=TEXT)
    expect(page.locator(".board-card")).to_have_count(1)
    fake.refuse = True
    fake.drop()
    expect(page.locator(".board-silent")).to_contain_text("NO CONNECTION since")
    expect(page.locator(".board-card")).to_contain_text(TEXT)
    shoot(page, "board-silent")
