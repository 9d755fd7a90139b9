"""Stories of the page in headless Chromium against the dev double; its screens are kept under ``out/screens``."""

from __future__ import annotations

import re

import msgspec
import pytest
from playwright.sync_api import Page, expect

from protocols import frames as f
from protocols.errors import CloseCode, ErrorCode
from tests.fakes.fake_chatd import FakeChatd, canned_facts, canned_reply
from tests.journeys.page_browser import CHECKS, SCREENS, Open, live

pytest_plugins = ("tests.journeys.page_fixtures",)
pytestmark = [pytest.mark.browser, pytest.mark.heavy]

QUESTION = "Analyze João Silva's ECG results"


def sign_in(page: Page) -> None:
    page.locator("chatd-sign-in button[type=submit]").click()
    live(page)


def choose(page: Page, name: str = "João Silva") -> None:
    banner = page.locator("patient-banner")
    banner.locator("[data-key=choose]").click()
    page.locator("patient-dialog .patient-row", has_text=name).first.click()
    expect(banner).to_contain_text(name)


def ask(page: Page, text: str = QUESTION) -> None:
    page.locator("#composer-field").fill(text)
    page.keyboard.press("Enter")


def answered(page: Page, count: int = 1) -> None:
    expect(page.locator("answer-bubble .notice")).to_have_count(count)


def shoot(page: Page, name: str) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENS / f"{name}.png")


# --- the main story -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en-GB", "pt-PT"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_page_shows_and_passes_its_checks(open_page: Open, fake: FakeChatd, width: int, scheme: str, lang: str) -> None:
    """Every screen has names, contrast and landmarks and fits its width, in both languages and both themes."""
    page = open_page(width=width, lang=lang, scheme=scheme)
    mark = f"{lang[:2]}-{scheme}-{width}"

    def check(screen: str) -> None:
        shoot(page, f"{mark}-{screen}")
        assert page.evaluate(CHECKS) == [], screen

    expect(page.locator("input[name=staff]").first).to_be_visible()
    check("1-sign-in")
    sign_in(page)
    expect(page.locator(".empty .chip").first).to_be_visible()
    check("2-empty")
    page.locator("patient-banner [data-key=choose]").click()
    expect(page.locator("patient-dialog .patient-row").first).to_be_visible()
    check("3-patients")
    page.keyboard.press("Escape")
    choose(page)
    fake.hold_answers = True
    ask(page)
    expect(page.locator("facts-card")).to_be_visible()
    fake.queue(3, 12_000)
    expect(page.locator("answer-bubble .pending")).to_contain_text("3")
    fake.delta(0, "findings", "ST elevation V2-V6 in the report")
    expect(page.locator(".stream")).to_be_visible()
    check("4-facts")
    page.locator("message-list").evaluate("(list) => { list.scrollTop = list.scrollHeight; }")
    check("5-stream")
    fake.release()
    answered(page)
    page.locator("message-list").evaluate("(list) => { list.scrollTop = list.scrollHeight; }")
    check("6-answer")
    page.locator("answer-bubble .chip").nth(1).click()
    expect(page.locator("action-dialog input[name=second]")).to_be_visible()
    check("7-action")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    page.locator("answer-bubble .action .icon-button").first.click()
    expect(page.locator("dismiss-dialog input").first).to_be_visible()
    check("8-dismiss")
    page.keyboard.press("Escape")
    page.locator("facts-card .source").click()
    expect(page.locator("citation-dialog blockquote")).to_be_visible()
    check("9-protocol")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    fake.alert(alert_id="al-1", priority="critical", content="Cardiac arrest, bed 4", from_="service:icu")
    expect(page.locator("alert-sheet dialog")).to_be_visible()
    expect(page.locator(".sheet[data-guarded]")).to_have_count(0)  # no press counts before
    check("b-alert-sheet")
    page.keyboard.press("Escape")
    expect(page.locator("alert-strip .alert-critical")).to_be_visible()
    fake.refuse = True
    fake.drop()
    expect(page.locator("status-line.is-offline")).to_be_visible()
    ask(page, "Second question")
    check("a-offline-alert")


def test_question_in_the_promised_order(open_page: Open, fake: FakeChatd) -> None:
    """Red flags, allergies, values with unit, flag and time, protocol, then the answer with its sources."""
    page = open_page()
    sign_in(page)
    choose(page)
    ask(page)
    answered(page)
    card = page.locator("facts-card")
    parts = card.locator("h4").all_inner_texts()
    assert parts[:5] == ["Red flags: escalate", "Allergies", "Safety checks", "Abnormal values", "Scores"]
    row = card.locator("tr", has_text="Troponin I")
    expect(row).to_contain_text("45 ng/mL")
    expect(row).to_contain_text("critically high")
    expect(row).to_contain_text("< 0.04")
    expect(row).to_contain_text("rising")
    expect(row.locator("time")).to_have_attribute("datetime", "2026-01-15T06:10:00.000Z")
    expect(card.locator("tr", has_text="Glucose")).to_contain_text("unit missing")
    expect(card.locator("tr", has_text="Glucose")).to_contain_text("time unknown")
    expect(card).to_contain_text("the ECG tracing itself is not available")
    expect(card).to_contain_text("Superseded by: ACS guideline 2025")
    # The beginning of a long exchange stays in sight: its red flags are not scrolled away.
    expect(card.locator(".part-red")).to_be_in_viewport()
    bubble = page.locator("answer-bubble")
    expect(bubble.locator(".headline")).to_contain_text("anterior STEMI pattern")
    expect(bubble.locator(".notice")).to_contain_text("Made by AI")
    expect(bubble.locator(".notice")).to_contain_text("verify")
    expect(page.locator(".ticks-answered")).to_have_attribute("aria-label", "Answered")
    sent = fake.of(f.UserMessage)[0]
    assert (sent.patient_id, sent.department, sent.user_id) == ("7823", "cardiology", "dr.santos.cardio")


def test_reader_at_the_end_is_not_moved(open_page: Open) -> None:
    """Who has read on to the proposals stays there while an action changes the bubble."""
    page = open_page(width=360)
    sign_in(page)
    choose(page)
    ask(page)
    answered(page)
    page.locator("message-list").evaluate("(list) => { list.scrollTop = list.scrollHeight; }")
    before = page.locator("message-list").evaluate("(list) => list.scrollTop")
    page.get_by_role("button", name="Schedule Cath Lab", exact=True).click()
    page.locator("action-dialog [data-key=confirm]").click()
    expect(page.locator(".chip-settled")).to_be_in_viewport()
    assert page.locator("message-list").evaluate("(list) => list.scrollTop") >= before


def test_citation_opens_the_quoted_protocol_and_the_chart_item(open_page: Open) -> None:
    """A mark in the text opens its source; Esc closes it and gives the focus back."""
    page = open_page()
    sign_in(page)
    choose(page)
    ask(page)
    answered(page)
    mark = page.locator(".recommendations .cite")
    mark.click()
    dialog = page.locator("citation-dialog")
    expect(dialog).to_contain_text("Primary PCI within 120 minutes of diagnosis.")
    expect(dialog).to_contain_text("2023")
    expect(dialog).to_contain_text("Superseded by: ACS guideline 2025")
    expect(dialog).to_contain_text("Not approved by a named clinician")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(mark).to_be_focused()
    page.locator("answer-bubble .cite", has_text="[2]").click()
    expect(dialog).to_contain_text("Troponin I 45 ng/mL (high), 06:10")
    expect(dialog).to_contain_text("Observation/trop-1")


def test_action_needs_two_steps(open_page: Open, fake: FakeChatd) -> None:
    """Prepare shows what will happen, confirm spends the token, and the chip says what became of it."""
    page = open_page()
    sign_in(page)
    choose(page)
    ask(page)
    answered(page)
    page.get_by_role("button", name="Schedule Cath Lab", exact=True).click()
    dialog = page.locator("action-dialog")
    expect(dialog).to_contain_text("coronary angiography, urgent, for João Silva")
    expect(dialog).to_contain_text("Record 7823")
    assert [one.step for one in fake.of(f.ActionCommand)] == ["prepare"]
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_have_count(0)
    expect(page.locator(".chip-settled")).to_contain_text("confirmed, Dr. Santos")
    prepare, confirm = fake.of(f.ActionCommand)
    assert confirm.step == "confirm"
    assert confirm.confirm_token == f"ct-{prepare.client_msg_id}"
    assert confirm.client_msg_id != prepare.client_msg_id
    assert confirm.confirm_token not in page.content()


def test_action_with_second_identifier(open_page: Open, fake: FakeChatd) -> None:
    """A wrong second identifier is said in the dialog and can be corrected there."""
    page = open_page()
    sign_in(page)
    choose(page)
    ask(page)
    answered(page)
    page.get_by_role("button", name="Notify ICU", exact=True).click()
    dialog = page.locator("action-dialog")
    field = dialog.locator("input[name=second]")
    expect(field).to_be_focused()
    field.fill("1900-01-01")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("second identifier")
    dialog.locator("input[name=second]").fill("1958-11-02")
    page.keyboard.press("Enter")
    expect(page.locator(".chip-settled")).to_contain_text("Notify ICU")
    assert [one.second_identifier for one in fake.of(f.ActionCommand)] == [None, "1900-01-01", "1958-11-02"]


def test_action_is_dismissed_with_a_reason(open_page: Open, fake: FakeChatd) -> None:
    """A proposal is dismissed with a code, and shows as dismissed."""
    page = open_page()
    sign_in(page)
    choose(page)
    ask(page)
    answered(page)
    page.get_by_role("button", name="Dismiss Schedule Cath Lab").click()
    page.get_by_label("Already done or ordered").check()
    page.locator("dismiss-dialog").get_by_role("button", name="Dismiss", exact=True).click()
    expect(page.locator(".chip-settled")).to_contain_text("dismissed")
    assert [(one.step, one.reason) for one in fake.of(f.ActionCommand)] == [("dismiss", "already_done")]


# --- the line -----------------------------------------------------------------------------------------------


def test_lost_line_resumes_without_loss_or_repeat(open_page: Open, fake: FakeChatd) -> None:
    """A question asked offline goes out when the line is back; the answer of the one before comes by replay."""
    page = open_page()
    sign_in(page)
    choose(page)
    fake.hold_answers = True
    ask(page, "first question")
    expect(page.locator("facts-card")).to_have_count(1)
    fake.refuse = True
    fake.drop()
    expect(page.locator("status-line.is-offline")).to_contain_text("Offline since")
    fake.release()  # the answer is finished while nobody listens
    ask(page, "second question")
    expect(page.locator(".ticks-waiting")).to_have_count(1)
    fake.refuse = False
    page.evaluate("dispatchEvent(new Event('online'))")  # the network is back: no need to wait for the next attempt
    expect(page.locator("status-line.is-live")).to_be_visible()
    answered(page, 2)
    expect(page.locator("facts-card")).to_have_count(2)
    expect(page.locator(".from-me .prose")).to_have_text(["first question", "second question"])
    hello = fake.of(f.Hello)[-1]
    assert hello.resume is not None
    assert hello.resume.seq == 2  # the context and the facts
    assert len({one.client_msg_id for one in fake.of(f.UserMessage)}) == len(fake.of(f.UserMessage)) == 2


@pytest.mark.parametrize(("has_touch", "kind"), [(True, "phone"), (False, "computer")])
def test_page_says_whether_it_is_carried(open_page: Open, fake: FakeChatd, has_touch: bool, kind: str) -> None:
    """What a finger works is a phone, whose place no computer of the same person takes."""
    sign_in(open_page(has_touch=has_touch, is_mobile=has_touch))
    assert [hello.device_kind for hello in fake.of(f.Hello)] == [kind]


def test_lost_session_sends_the_unanswered_question_again(open_page: Open, fake: FakeChatd) -> None:
    """A server without memory gets the accepted question again under its id, and the reader is told."""
    page = open_page()
    sign_in(page)
    fake.hold_answers = True
    ask(page, "What is critical?")
    expect(page.locator("facts-card")).to_have_count(1)
    fake.hold_answers = False
    fake.forget()
    answered(page)
    first, again = fake.of(f.UserMessage)
    assert again == first
    expect(page.locator(".divider-warning")).to_contain_text("loaded again")
    expect(page.locator("answer-bubble")).to_have_count(1)


def test_stop_ends_in_a_cancelled_answer(open_page: Open, fake: FakeChatd) -> None:
    """Stop is a message: the answer says that it was stopped and offers no action."""
    page = open_page()
    sign_in(page)
    fake.hold_answers = True
    ask(page, "What is critical?")
    expect(page.locator("facts-card")).to_have_count(1)  # nothing moves below a person's finger any more
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("answer-bubble .banner")).to_contain_text("Stopped")
    expect(page.locator("answer-bubble .chip")).to_have_count(0)
    assert fake.of(f.Cancel)[0].client_msg_id == fake.of(f.UserMessage)[0].client_msg_id


def test_stop_is_heard_while_text_streams(open_page: Open, fake: FakeChatd) -> None:
    """A tap on Stop counts although words arrive between the finger's down and up."""
    page = open_page()
    sign_in(page)
    fake.hold_answers = True
    ask(page, "What is critical?")
    expect(page.locator("facts-card")).to_have_count(1)
    fake.delta(0, "findings", "ST elevation")
    expect(page.locator("answer-bubble .stream")).to_contain_text("ST elevation")
    page.get_by_role("button", name="Stop").hover()
    page.mouse.down()
    fake.delta(1, "findings", " V2-V6")
    expect(page.locator("answer-bubble .stream")).to_contain_text("ST elevation V2-V6")
    page.mouse.up()
    expect(page.locator("answer-bubble .banner")).to_contain_text("Stopped")


def test_answer_begun_again_drops_the_words_before(open_page: Open, fake: FakeChatd) -> None:
    """Words of an attempt that broke off are not shown together with those of the next one."""
    page = open_page()
    sign_in(page)
    fake.hold_answers = True
    ask(page, "What is critical?")
    expect(page.locator("facts-card")).to_have_count(1)
    fake.delta(0, "findings", "half a sen")
    expect(page.locator("answer-bubble .stream")).to_contain_text("half a sen")
    fake.delta(1, "headline", "Again", attempt=2)
    expect(page.locator("answer-bubble .stream")).to_have_text(re.compile("Again"))
    expect(page.locator("answer-bubble")).not_to_contain_text("half a sen")
    expect(page.locator("answer-bubble")).to_contain_text("written again")


def test_queue_states_are_told_in_words(open_page: Open, fake: FakeChatd) -> None:
    """Place and time, silence, a lost worker and a new start are told, and Stop is the same button all the while."""
    page = open_page()
    sign_in(page)
    fake.hold_answers = True
    ask(page, "What is critical?")
    expect(page.locator("facts-card")).to_have_count(1)
    bubble = page.locator("answer-bubble")
    stop = page.get_by_role("button", name="Stop").element_handle()
    fake.queue(3, 12_000)
    expect(bubble).to_contain_text("Position 3 in the queue, about 12 s")
    fake.queue(0, None, "running")
    expect(bubble).not_to_contain_text("Position")
    fake.delta(0, "findings", "void words")
    fake.queue(0, None, "stalled")
    expect(bubble).to_contain_text("The model is silent; still trying")
    SCREENS.mkdir(parents=True, exist_ok=True)
    bubble.screenshot(path=SCREENS / "queue-stalled.png")
    fake.delta(1, "findings", " and more")
    expect(bubble).not_to_contain_text("silent")
    fake.queue(0, None, "restarted")
    expect(bubble).to_contain_text("The model was lost; waiting for another")
    expect(bubble).not_to_contain_text("void words")
    fake.queue(1, None)
    expect(bubble).to_contain_text("Position 1 in the queue")
    fake.delta(2, "findings", "written anew", attempt=2)
    expect(bubble.locator(".stream")).to_contain_text("written anew")
    expect(bubble).to_contain_text("written again")
    assert stop.evaluate("button => button.isConnected")


def test_mode_is_told_in_the_status_line_while_the_page_stands(open_page: Open, fake: FakeChatd) -> None:
    """The status line follows the model as it goes and comes back; an answer from facts does not change it."""
    page = open_page()
    sign_in(page)
    line = page.locator("status-line")
    expect(line).to_contain_text("Model ready")
    fake.set_mode("facts_only")
    expect(line).to_contain_text("Facts only")
    fake.set_mode("normal")
    expect(line).to_contain_text("Model ready")
    fake.reply_of = lambda frame: msgspec.structs.replace(
        canned_reply(frame, "facts_only"), status="degraded", finish_reason="queue_full"
    )
    ask(page, "What is critical?")
    expect(page.locator("answer-bubble .banner")).to_contain_text("no place for this question")
    expect(line).to_contain_text("Model ready")


def test_incomplete_and_shared_answers_say_so(open_page: Open, fake: FakeChatd) -> None:
    """An answer that was cut short, and one in words written for a colleague, are marked; the model is named."""
    page = open_page()
    sign_in(page)
    fake.reply_of = lambda frame: msgspec.structs.replace(
        canned_reply(frame, "normal"), status="incomplete", finish_reason="length", is_shared=True
    )
    ask(page, "What is critical?")
    bubble = page.locator("answer-bubble")
    expect(bubble.locator(".banner")).to_contain_text("Incomplete")
    expect(bubble).to_contain_text("same question of a colleague")
    expect(bubble).to_contain_text("Model scripted-1")


def test_session_timeout_clears_the_screen(open_page: Open, fake: FakeChatd) -> None:
    """After a time-out nothing of the patient is left on the page, in its stores or in its address."""
    page = open_page()
    sign_in(page)
    choose(page)
    ask(page)
    answered(page)
    fake.goaway(CloseCode.SESSION_TIMEOUT, 0)
    expect(page.locator("chatd-sign-in")).to_contain_text("timed out")
    assert "João" not in page.content()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert page.url == fake.url
    sign_in(page)
    expect(page.locator("patient-banner")).to_contain_text("No patient open")


def test_sign_out_shreds_the_session(open_page: Open, fake: FakeChatd) -> None:
    """Signing out says so to the server and shows the sign-in again."""
    page = open_page()
    sign_in(page)
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("chatd-sign-in")).to_contain_text("signed out")
    expect(page.locator("input[name=staff]").first).to_be_visible()
    assert len(fake.of(f.SessionEnd)) == 1


def test_token_field_where_there_is_no_demo(open_page: Open, fake: FakeChatd) -> None:
    """Without a demo the page takes a token, and keeps it out of its text and its address."""
    fake.demo = False
    page = open_page()
    page.get_by_label("Access token").fill("token.cardiology.dr.santos.cardio")
    page.get_by_label("User").fill("dr.santos.cardio")
    page.get_by_label("Department").fill("cardiology")
    sign_in(page)
    assert fake.of(f.Hello)[0].token == "token.cardiology.dr.santos.cardio"
    assert "token." not in page.content() + page.url


# --- patients -----------------------------------------------------------------------------------------------


def test_second_identifier_opens_the_right_namesake(open_page: Open, fake: FakeChatd) -> None:
    """Of two patients with one name, the record opens only with the birth date, and the banner says whose it is."""
    page = open_page()
    sign_in(page)
    page.locator("patient-banner [data-key=choose]").click()
    rows = page.locator("patient-dialog .patient-row", has_text="Ana Costa")
    expect(rows.first).to_contain_text("same name")
    rows.first.click()
    field = page.locator("patient-dialog input[name=second]")
    field.fill("2000-01-01")
    page.keyboard.press("Enter")
    expect(page.locator("patient-dialog").get_by_role("alert")).to_contain_text("second identifier")
    page.locator("patient-dialog input[name=second]").fill("1944-03-09")
    page.keyboard.press("Enter")
    banner = page.locator("patient-banner")
    expect(banner).to_contain_text("Deceased")
    expect(banner).to_contain_text("Allergies not recorded")
    shoot(page, "x-deceased")
    assert page.evaluate(CHECKS) == []


def test_switching_patient_blocks_the_other_ones_actions(open_page: Open) -> None:
    """After a switch the banner's colour and words change and the first patient's proposals cannot be chosen."""
    page = open_page()
    sign_in(page)
    choose(page)
    ask(page)
    answered(page)
    before = page.locator("patient-banner").get_attribute("class")
    page.locator(".side .patient-row", has_text="Fernandes").click()
    expect(page.locator("patient-banner")).to_contain_text("Maria João Fernandes")
    assert page.locator("patient-banner").get_attribute("class") != before
    expect(page.locator(".divider")).to_have_count(2)
    expect(page.locator("answer-bubble .actions")).to_contain_text("Another patient is open")
    for chip in page.locator("answer-bubble .chip").all():
        expect(chip).to_be_disabled()
    expect(page.locator("answer-bubble .about")).to_contain_text("João Silva · Record 7823")


def test_answer_about_another_patient_is_not_shown(open_page: Open, fake: FakeChatd) -> None:
    """Whoever mixed them up: facts and answer about another record than asked about stay hidden, with a warning."""
    fake.facts_of = lambda frame: msgspec.structs.replace(canned_facts(frame), patient_id="7900")
    fake.reply_of = lambda frame: msgspec.structs.replace(canned_reply(frame, "normal"), patient_id="7900")
    page = open_page()
    sign_in(page)
    choose(page)
    ask(page)
    warning = page.locator(".warning-row .banner-critical")
    expect(warning).to_contain_text("asked about record 7823, answered about record 7900")
    expect(page.locator("facts-card")).to_have_count(0)
    expect(page.locator("answer-bubble .notice")).to_have_count(0)


def test_question_that_names_a_patient_opens_the_record_first(open_page: Open, fake: FakeChatd) -> None:
    """With no record open, a whole name in the question opens that record, and the question is about it."""
    page = open_page()
    sign_in(page)
    expect(page.locator(".side .patient-row").first).to_be_visible()
    ask(page, "analyze joao silva's ECG")
    answered(page)
    assert fake.of(f.ContextSet)[0].patient_id == "7823"
    assert fake.of(f.UserMessage)[0].patient_id == "7823"
    expect(page.locator("patient-banner")).to_contain_text("João Silva")


def test_question_that_names_two_patients_asks_which(open_page: Open, fake: FakeChatd) -> None:
    """A name that two patients have opens nobody; closing the choice gives the question back."""
    page = open_page()
    sign_in(page)
    expect(page.locator(".side .patient-row").first).to_be_visible()
    ask(page, "Ana Costa, potassium?")
    expect(page.locator("patient-dialog .patient-row")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.locator("#composer-field")).to_have_value("Ana Costa, potassium?")
    assert fake.of(f.UserMessage) == []


def test_stale_value_warns_and_blocks(open_page: Open, fake: FakeChatd) -> None:
    """An answer whose value was replaced says so, and its proposals can no longer be chosen."""
    page = open_page()
    sign_in(page)
    choose(page)
    ask(page)
    answered(page)
    fake.stale(f"resp-{fake.of(f.UserMessage)[0].client_msg_id}")
    expect(page.locator("answer-bubble .banner-warning")).to_contain_text("Troponin I")
    expect(page.locator("answer-bubble .chip").first).to_be_disabled()


# --- errors, alerts, language, hostile text -----------------------------------------------------------------


def test_error_stands_beside_its_message_with_retry(open_page: Open, fake: FakeChatd) -> None:
    """A refused question says why in the reader's language, and asking again works."""
    page = open_page(lang="pt-PT")
    sign_in(page)
    fake.error_next = ErrorCode.RATE_LIMITED
    ask(page, "Que resultados são críticos?")
    expect(page.locator(".failure")).to_contain_text("Demasiadas perguntas num minuto")
    page.get_by_role("button", name="Perguntar de novo").click()
    answered(page)
    expect(page.locator(".failure")).to_have_count(0)
    expect(page.locator(".from-me")).to_have_count(1)
    first, again = fake.of(f.UserMessage)
    assert first.client_msg_id != again.client_msg_id


def test_language_switch_keeps_everything(open_page: Open, fake: FakeChatd) -> None:
    """Switching the language changes the texts, keeps bubbles and draft, and goes out with the next question."""
    page = open_page()
    sign_in(page)
    choose(page)
    ask(page)
    answered(page)
    page.locator("#composer-field").fill("rascunho")
    page.locator("[data-key=lang]").click()
    expect(page.locator("html")).to_have_attribute("lang", "pt-PT")
    expect(page.locator("facts-card")).to_contain_text("Sinais de alarme")
    expect(page.locator("answer-bubble .notice")).to_have_count(1)
    expect(page.locator("#composer-field")).to_have_value("rascunho")
    page.locator("#composer-field").focus()
    page.keyboard.press("Enter")
    answered(page, 2)
    assert [one.lang for one in fake.of(f.UserMessage)] == ["en-GB", "pt-PT"]


def test_keyboard_alone_from_sign_in_to_confirm(open_page: Open, fake: FakeChatd) -> None:
    """Without a mouse: sign in, open a record, ask, go to the proposal, confirm it; the focus is always visible."""
    page = open_page()
    expect(page.locator("input[name=staff]").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("status-line.is-live")).to_be_visible()
    expect(page.locator("#composer-field")).to_be_focused()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    answered(page)
    target = page.locator("answer-bubble .chip").first
    for _ in range(60):
        page.keyboard.press("Shift+Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        focused = page.evaluate("document.activeElement.className + ' ' + document.activeElement.localName")
        assert outline != "none" or "search" in focused, focused
        if target.evaluate("(chip) => chip === document.activeElement"):
            break
    expect(target).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("action-dialog [data-key=confirm]")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".chip-settled")).to_contain_text("confirmed")


def test_shift_enter_and_length_limit(open_page: Open, fake: FakeChatd) -> None:
    """Shift+Enter starts a line; a message over the server's limit stays in the field and says why."""
    page = open_page()
    sign_in(page)
    field = page.locator("#composer-field")
    field.fill("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    expect(field).to_have_value("a\nb")
    field.fill("x" * 4001)
    expect(page.locator(".count")).to_contain_text("4001 of 4000")
    page.keyboard.press("Enter")
    expect(field).to_have_value(re.compile("^x{4001}$"))
    assert fake.of(f.UserMessage) == []


HOSTILE = (
    '<img src=x onerror="document.title=1"><script>document.title=2</script>',
    "Z" + "\u0300\u0301\u0302\u0303\u0304\u0305" * 60 + "algo",
    "\u202emirrored\u202c name",
    "W" * 3000,
    "a\u0000b\u0007c" + "\U0001f9ea" * 20,
)


@pytest.mark.parametrize("text", HOSTILE, ids=["markup", "zalgo", "bidi", "long", "control"])
def test_hostile_text_stays_text_inside_its_bubble(open_page: Open, fake: FakeChatd, text: str) -> None:
    """Markup is shown as it is written, stacked marks and endless words stay inside, at a phone's width."""

    def facts(frame: f.UserMessage) -> f.Facts:
        fact = f.Fact(
            kind="value",
            name=text,
            text=text,
            value=1.5,
            unit=text[:40],
            flag="H",
            range=text[:40],
            ref="Observation/x",
        )
        return msgspec.structs.replace(canned_facts(frame), facts=(fact,), missing=(text,))

    fake.facts_of = facts
    page = open_page(width=360)
    sign_in(page)
    ask(page, text)
    answered(page)
    assert page.title() == "chatd"
    assert page.locator("message-list img, message-list script").count() == 0
    faults = page.evaluate(CHECKS)
    assert faults == []
    shoot(page, f"x-hostile-{HOSTILE.index(text)}")
