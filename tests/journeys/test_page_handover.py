"""Handing over on the page in headless Chromium: giving, taking, refusing, and what both sides see of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from protocols import frames as f
from protocols.errors import ErrorCode
from tests.fakes.fake_chatd import FakeChatd
from tests.journeys.page_browser import CHECKS, SCREENS, Open, live

pytest_plugins = ("tests.journeys.page_fixtures",)
pytestmark = [pytest.mark.browser, pytest.mark.heavy]

ME, MENDES, ALVES = "dr.santos.cardio", "dr.mendes.cardio", "enf.alves"
POTASSIUM = "Potassium 6.9 mmol/L, bed 4: ECG and treatment"
NEWS = "Bed 7: NEWS2 8, please see the patient"
PAIN = "Bed 9: chest pain again"


def iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def holder(user_id: str, answer: str = "accept") -> f.AlertHolder:
    return f.AlertHolder(user_id=user_id, answer=answer, at=iso(datetime.now(UTC)))


def offer(giver: str, taker: str) -> f.AlertHandover:
    now = datetime.now(UTC)
    return f.AlertHandover(from_=giver, to=taker, at=iso(now), until=iso(now + timedelta(minutes=25)))


def held(fake: FakeChatd, alert_id: str, text: str, by: str = ME, **fields: Any) -> None:
    """An alert that somebody has; nothing rings."""
    told = {"alert_id": alert_id, "content": text, "priority": "high", "from_": "service:laboratory"}
    fake.alert(**{**told, "state": "in_progress", "who": (holder(by),), "patient_id": "7823", **fields})


def event(fake: FakeChatd, alert_id: str, name: str, about: f.AlertHandover, **fields: Any) -> None:
    now = iso(datetime.now(UTC))
    fake.update_alert(
        **{"alert_id": alert_id, "state": "in_progress", "event": name, "handover": about, "timestamp": now, **fields}
    )


def dialog(page: Page) -> Any:
    """The hand-over, opened as a person does: the bar of alerts, then the button below the list."""
    page.locator("alert-strip button").click()
    page.locator("[data-key=list-hand-over]").click()
    opened = page.locator("handover-dialog")
    expect(opened.locator("dialog[open]")).to_be_visible()
    return opened


def shoot(page: Page, name: str) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENS / f"handover-{name}.png")
    assert page.evaluate(CHECKS) == [], name
    small = page.evaluate(
        """() => [...document.querySelectorAll("handover-dialog .button, handover-dialog select, .handover-tick")]
            .filter((one) => one.getBoundingClientRect().height < 44).map((one) => one.textContent)"""
    )
    assert small == [], name


def hands(fake: FakeChatd) -> list[tuple[str, str, str | None]]:
    """What the page has sent about hand-overs, receipts and answers left out."""
    said = {"hand_over", "take_over", "refuse_handover", "revoke_handover"}
    return [(one.answer, one.alert_id, one.colleague) for one in fake.of(f.AlertResponse) if one.answer in said]


@pytest.mark.parametrize(
    ("width", "scheme", "lang"),
    [
        (320, "light", "pt-PT"),
        (320, "dark", "en-GB"),
        (390, "light", "en-GB"),
        (390, "dark", "pt-PT"),
        (1280, "light", "pt-PT"),
    ],
)
def test_handover_screens_pass_their_checks(
    open_phone: Open, fake: FakeChatd, width: int, scheme: str, lang: str
) -> None:
    """Giving and being asked: names, contrast, targets of 44 px, in both languages and at a phone's width."""
    page = open_phone(width=width, lang=lang, scheme=scheme)
    live(page)
    mark = f"{lang[:2]}-{scheme}-{width}"
    held(fake, "al-1", POTASSIUM)
    held(fake, "al-2", NEWS, priority="critical")
    held(fake, "al-3", PAIN)
    expect(page.locator("alert-strip")).to_contain_text("NEWS2 8")
    opened = dialog(page)
    expect(opened.locator("select")).to_be_visible()
    shoot(page, f"{mark}-1-give")
    opened.locator("select").select_option(MENDES)
    opened.locator("[data-key=tick-al-3]").uncheck()
    opened.locator("[data-key=handover-go]").click()
    expect(opened.locator("[data-key=revoke-al-1]")).to_be_visible()
    event(fake, "al-2", "handover_refused", offer(ME, MENDES), by=MENDES, who=(holder(ME),))
    taken = offer(ME, MENDES)
    event(fake, "al-1", "handed_over", taken, by=MENDES, who=(holder(MENDES), holder(ME, "handed_over")))
    expect(opened.locator(".handover-taken")).to_be_visible()
    shoot(page, f"{mark}-2-states")
    event(fake, "al-3", "handover_offered", offer(ME, ALVES), by=ME, who=(holder(ME),), handovers=(offer(ME, ALVES),))
    held(
        fake, "al-4", "STEMI, cath lab 2: consent missing", by=ALVES, priority="critical", handovers=(offer(ALVES, ME),)
    )
    expect(opened.locator("[data-key=take_over-al-4-enf\\.alves]")).to_be_visible()
    opened.locator(".dialog").evaluate("(one) => { one.scrollTop = 0; }")
    shoot(page, f"{mark}-3-asked")
    page.keyboard.press("Escape")
    expect(page.locator("handover-dialog")).to_have_count(0)
    shoot(page, f"{mark}-4-list")
    page.keyboard.press("Escape")
    expect(page.locator("alert-strip .mark").first).to_be_visible()
    shoot(page, f"{mark}-5-page")


def test_handover_gives_what_is_ticked_and_says_where_each_stands(open_phone: Open, fake: FakeChatd) -> None:
    """Each row is a command of its own; it is the giver's, and says so, until the colleague has taken it."""
    page = open_phone()
    live(page)
    held(fake, "al-1", POTASSIUM)
    held(fake, "al-2", NEWS)
    held(fake, "al-3", "Not mine", by=ALVES)
    expect(page.locator("alert-strip .alert-more")).to_have_text("+2")
    opened = dialog(page)
    expect(opened.locator(".handover-row")).to_have_count(2)
    expect(opened.get_by_role("button", name="Ask to take over: 2")).to_be_disabled()
    assert opened.locator("option").all_inner_texts() == [
        "Choose a colleague",
        "dr.mendes.cardio · Physician",
        "enf.alves · Nurse, Charge nurse · In a procedure",
        "dr.rocha.cardio · Cardiologist · no phone heard now",
    ]
    opened.get_by_label("To").select_option(MENDES)
    opened.get_by_role("checkbox", name=NEWS).uncheck()
    opened.get_by_role("button", name="Ask to take over: 1").click()
    row = opened.locator(".handover-row", has_text=POTASSIUM)
    expect(row).to_contain_text("dr.mendes.cardio is asked, until")
    expect(row).to_contain_text("Still yours.")
    assert hands(fake) == [("hand_over", "al-1", MENDES)]
    given = offer(ME, MENDES)
    event(fake, "al-1", "handed_over", given, by=MENDES, who=(holder(MENDES), holder(ME, "handed_over")))
    expect(row).to_contain_text("dr.mendes.cardio has taken it over")
    expect(page.locator("[data-live=polite]")).to_contain_text(f"dr.mendes.cardio has taken over: {POTASSIUM}")
    expect(opened.locator(".handover-row")).to_have_count(2)


def test_handover_that_is_refused_or_runs_out_is_said_aloud(open_phone: Open, fake: FakeChatd) -> None:
    """It is still the giver's: said to a screen reader at once, shown on the row, and it can be offered again."""
    page = open_phone()
    live(page)
    held(fake, "al-1", POTASSIUM)
    expect(page.locator("alert-strip")).to_contain_text(POTASSIUM)
    opened = dialog(page)
    opened.get_by_label("To").select_option(MENDES)
    opened.get_by_role("button", name="Ask to take over: 1").click()
    expect(opened).to_contain_text("is asked")
    event(fake, "al-1", "handover_refused", offer(ME, MENDES), by=MENDES, who=(holder(ME),))
    expect(opened).to_contain_text("dr.mendes.cardio has refused. Still yours.")
    expect(page.locator("[data-live=assertive]")).to_contain_text("has refused, it is still yours")
    opened.get_by_label("To").select_option(ALVES)
    opened.get_by_role("button", name="Ask to take over: 1").click()
    expect(opened).to_contain_text("enf.alves is asked")
    event(fake, "al-1", "handover_lapsed", offer(ME, ALVES), who=(holder(ME),))
    expect(opened).to_contain_text("enf.alves did not take it in time. Still yours.")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator(".note-place .banner-critical")).to_contain_text("it is still yours")
    assert hands(fake) == [("hand_over", "al-1", MENDES), ("hand_over", "al-1", ALVES)]


def test_handover_is_withdrawn(open_phone: Open, fake: FakeChatd) -> None:
    """The giver withdraws with one press; the row can be ticked again."""
    page = open_phone()
    live(page)
    held(fake, "al-1", POTASSIUM)
    opened = dialog(page)
    opened.get_by_label("To").select_option(MENDES)
    opened.get_by_role("button", name="Ask to take over: 1").click()
    opened.get_by_role("button", name=f"Withdraw: {POTASSIUM}").click()
    expect(opened).to_contain_text("Withdrawn. Still yours.")
    expect(opened.get_by_role("checkbox", name=POTASSIUM)).to_be_checked()
    assert [answer for answer, _, _ in hands(fake)] == ["hand_over", "revoke_handover"]


def test_successor_takes_each_by_itself(open_phone: Open, fake: FakeChatd) -> None:
    """The bar counts what one is asked for; each is taken or refused alone, and what was taken is then one's own."""
    page = open_phone()
    live(page)
    held(fake, "al-1", POTASSIUM, by=MENDES, handovers=(offer(MENDES, ME),))
    held(fake, "al-2", NEWS, by=MENDES)
    event(fake, "al-2", "handover_offered", offer(MENDES, ME), by=MENDES, who=(holder(MENDES),),
          handovers=(offer(MENDES, ME),))  # fmt: skip
    expect(page.locator("alert-strip")).to_contain_text("To take over: 2")
    expect(page.locator("[data-live=polite]")).to_contain_text(f"dr.mendes.cardio asks you to take over: {NEWS}")
    expect(page.locator(".sheet[open]")).to_have_count(0)
    page.locator("alert-strip button").click()
    page.locator("[data-key=list-asked]").click()
    opened = page.locator("handover-dialog")
    expect(opened).to_contain_text("You have nothing open to hand over.")
    opened.get_by_role("button", name=f"Refuse: {NEWS}").click()
    opened.get_by_role("button", name=f"Take over: {POTASSIUM}").click()
    expect(opened.get_by_role("heading", name="You are asked to take over")).to_have_count(0)
    expect(opened.locator(".handover-row", has_text=POTASSIUM)).to_contain_text("You have it")
    assert sorted(hands(fake)) == [("refuse_handover", "al-2", MENDES), ("take_over", "al-1", MENDES)]
    page.keyboard.press("Escape")
    page.locator(".alert-row", has_text=POTASSIUM).click()
    expect(page.locator(".sheet")).to_contain_text("Has it: You")
    expect(page.locator(".sheet").get_by_role("button", name="Done")).to_be_visible()


def test_handover_that_ended_meanwhile_says_why(open_phone: Open, fake: FakeChatd) -> None:
    """A refusal stands on its row; nothing is shown as taken over."""
    page = open_phone()
    live(page)
    held(fake, "al-1", POTASSIUM, by=MENDES, handovers=(offer(MENDES, ME),))
    opened = dialog(page)
    fake.error_next = ErrorCode.HANDOVER_ENDED
    opened.get_by_role("button", name="Take over").click()
    expect(opened.get_by_role("alert")).to_contain_text("This hand-over is no longer open")
    expect(opened).not_to_contain_text("You have it")


def test_handover_waits_for_the_line_under_one_id(open_phone: Open, fake: FakeChatd) -> None:
    """Without a line the row says that it is not sent; with the line the same command goes out again."""
    page = open_phone()
    live(page)
    held(fake, "al-1", POTASSIUM)
    opened = dialog(page)
    opened.get_by_label("To").select_option(MENDES)
    fake.answers_alerts = False
    opened.get_by_role("button", name="Ask to take over: 1").click()
    expect(opened).to_contain_text("Being sent")
    fake.refuse = True
    fake.drop()
    expect(opened).to_contain_text("Not sent, retrying")
    fake.answers_alerts, fake.refuse = True, False
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(opened).to_contain_text("dr.mendes.cardio is asked")
    sent = [one for one in fake.of(f.AlertResponse) if one.answer == "hand_over"]
    assert len(sent) == 2
    assert sent[0] == sent[1]


def test_handover_of_a_proposed_action_goes_on_as_an_alert(open_phone: Open, fake: FakeChatd) -> None:
    """The chip says that it was handed over, and the alert that it has become stands among the giver's own."""
    page = open_phone()
    live(page)
    page.locator("patient-banner [data-key=choose]").click()
    page.locator("patient-dialog .patient-row", has_text="João Silva").first.click()
    expect(page.locator("patient-banner")).to_contain_text("João Silva")
    page.locator("#composer-field").fill("Analyze ECG results")
    page.keyboard.press("Enter")
    expect(page.locator(".chip", has_text="Schedule Cath Lab")).to_be_visible()
    opened = dialog(page)
    opened.get_by_label("To").select_option(MENDES)
    opened.get_by_role("checkbox", name="Notify ICU").uncheck()
    opened.get_by_role("button", name="Ask to take over: 1").click()
    expect(opened.locator(".handover-row", has_text="Handed over: Schedule Cath Lab")).to_contain_text("is asked")
    (sent,) = fake.of(f.ActionCommand)
    assert (sent.step, sent.colleague) == ("hand_over", MENDES)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator(".chip-settled", has_text="Schedule Cath Lab")).to_contain_text("handed over")
