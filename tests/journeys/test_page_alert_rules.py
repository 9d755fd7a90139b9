"""The page's alert rules (cursor, receipts, outbox, the book of alerts, the board's plan) inside headless Chromium."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Page

from chatd.alerts.model import CLOSED, NOTIFYING
from protocols.frames import SystemNotification
from tests.journeys.page_browser import run
from tests.journeys.test_page_rules import LIVE

pytest_plugins = ("tests.journeys.page_fixtures",)
pytestmark = pytest.mark.browser

BOOK = """
    const { AlertBook, CLOSED, RINGING, boardPlan, confirms } = await import("/web/alerts.js");
    const book = new AlertBook();
    book.me = { user_id: "me", roles: ["physician"], department: "cardiology" };
    let seq = 0;
    const raised = (id, more = {}) => ({ type: "system_notification", alert_id: id, alert_seq: ++seq, event: "raised",
        state: "delivering", department: "cardiology", priority: "high", content: "x", requires_action: true,
        from: "other", raised_at: "2026-01-15T07:00:00.000Z", ...more });
    const update = (id, more = {}) => ({ type: "alert_update", alert_id: id, alert_seq: ++seq, state: "delivering",
        event: "receipts", by: "", counts: {}, who: [], slots: [], ...more });
    const has = (user_id, answer = "accept", more = {}) => ({ user_id, answer, at: "", ...more });
    const NOW = Date.parse("2026-01-15T07:00:10.000Z");
    const hear = (frame) => frame.type === "alert_update" ? book.updated(frame) : book.notified(frame, NOW);
"""

ALERTS = (
    LIVE
    + """
    const answer = (id, more = {}) => ({ type: "alert_response", client_msg_id: id, alert_id: "al-1",
        answer: "accept", ...more });
    const raise = (id) => ({ type: "alert_raise", client_msg_id: id, to: { department: "c" }, priority: "high",
        content: "x" });
    const again = (session, now) => { session.closed(1006, now); session.tick(session.wakeAt());
        session.opened(now + 1000); return session.received(welcome({ resumed: true, alert_seq: 9,
            user: { user_id: "me" } }), now + 1010); };
    const kinds = (effects) => effects.filter((one) => one.do === "outgoing").map((one) => [one.id, one.status]);
    const known = () => { const session = live(); session.userId = "me"; return session; };
"""
)


# --- the log's cursor ---------------------------------------------------------------------------------------


def test_alert_log_gap_reconnects_and_a_repeat_is_dropped(page: Page) -> None:
    """A number left out closes the line and asks from the cursor; one that is known is not shown again."""
    result = run(
        page,
        ALERTS,
        """const session = live();
        const alert = (alert_seq) => ({ type: "system_notification", alert_id: `a-${alert_seq}`, alert_seq });
        const next = done(session.received(alert(3), 40));
        const repeat = done(session.received(alert(3), 50));
        const hole = done(session.received(alert(5), 60));
        session.tick(session.wakeAt());
        return [next, repeat, hole, sent(session.opened(5000))[0].resume.alert_seq];""",
    )
    assert result == [["deliver"], [], ["close", "line"], 3]


def test_alert_log_that_is_shorter_than_known_is_begun_anew(page: Page) -> None:
    """A server whose alert log ends before our cursor is not resumed from: its next alerts would look old."""
    effects, resume = run(
        page,
        ALERTS,
        """const session = live();
        session.closed(1006, 50); session.tick(session.wakeAt()); session.opened(900);
        const effects = done(session.received(welcome({ resumed: true, alert_seq: 1 }), 910));
        session.tick(session.wakeAt());
        return [effects, sent(session.opened(5000))[0].resume ?? null];""",
    )
    assert effects == ["close", "line"]
    assert resume is None


# --- receipts and the outbox --------------------------------------------------------------------------------


def test_receipts_go_out_once_and_again_on_a_new_line(page: Page) -> None:
    """Each receipt is told once per line under one id, waits for a line, and stops with its alert."""
    result = run(
        page,
        ALERTS,
        """const session = known();
        const first = sent(session.receipt("al-1", "delivered"));
        const twice = sent(session.receipt("al-1", "delivered"));
        session.closed(1006, 50);
        const offline = sent(session.receipt("al-1", "displayed"));
        session.tick(session.wakeAt()); session.opened(900);
        const resent = sent(session.received(welcome({ resumed: true }), 910));
        session.received({ type: "alert_update", alert_id: "al-1", alert_seq: 3, state: "resolved" }, 920);
        return { first, twice, offline, same: resent[0].client_msg_id === first[0].client_msg_id,
            answers: resent.map((one) => one.answer), after: sent(again(session, 930)) };""",
    )
    assert [one["answer"] for one in result["first"]] == ["delivered"]
    assert result["twice"] == result["offline"] == result["after"] == []
    assert result["same"]
    assert result["answers"] == ["delivered", "displayed"]


def test_answer_is_settled_by_its_own_confirmation_only(page: Page) -> None:
    """Others' events leave an answer on its way; the log's word on this person, or the end of the alert, settles it."""
    result = run(
        page,
        ALERTS,
        """const session = known();
        session.submit(answer("m-1"), 40);
        const update = (alert_seq, more) => session.received({ type: "alert_update", alert_id: "al-1", alert_seq,
            state: "delivering", ...more }, 50);
        const others = kinds(update(3, { who: [{ user_id: "you", answer: "accept" }] }));
        const held = session.outbox.size;
        const resent = sent(again(session, 60)).map((one) => one.client_msg_id);
        const mine = kinds(update(4, { who: [{ user_id: "me", answer: "accept" }] }));
        session.submit(answer("m-2", { answer: "decline" }), 2000);
        const closed = kinds(update(5, { state: "resolved", event: "resolved" }));
        return { others, held, resent, mine, closed, left: session.outbox.size };""",
    )
    assert result == {
        "others": [],
        "held": 1,
        "resent": ["m-1"],
        "mine": [["m-1", "accepted"]],
        "closed": [["m-2", "failed"]],
        "left": 0,
    }


def test_answer_that_is_refused_for_now_is_tried_again(page: Page) -> None:
    """A passing refusal of an alert command is retried with backoff under its id; a final one fails."""
    result = run(
        page,
        ALERTS,
        """const session = known();
        const error = (code, retryable) => ({ type: "error", code, retryable, client_msg_id: "m-1" });
        session.submit(answer("m-1"), 40);
        const refused = kinds(session.received(error("internal", true), 100));
        const at = session.wakeAt();
        const early = sent(session.tick(at - 1)), late = sent(session.tick(at)).map((one) => one.client_msg_id);
        const final = kinds(session.received(error("alert_closed", false), at + 10));
        return { refused, wait: at - 100, early, late, final };""",
    )
    assert result["refused"] == [["m-1", "retrying"]]
    assert 500 <= result["wait"] <= 1000
    assert result["early"] == []
    assert result["late"] == ["m-1"]
    assert result["final"] == [["m-1", "failed"]]


def test_alert_that_waited_five_minutes_asks_before_it_is_sent(page: Page) -> None:
    """What could not be raised in time may be over: it goes out only when the person says so again."""
    result = run(
        page,
        ALERTS,
        """const session = known();
        session.closed(1006, 50);
        session.submit(raise("m-1"), 60);
        const back = again(session, 400_000);
        const held = sent(back).length, said = kinds(back);
        const anyway = sent(session.sendAnyway("m-1", 402_000)).map((one) => one.client_msg_id);
        const [accepted] = session.received({ type: "accepted", client_msg_id: "m-1", alert_id: "al-9",
            reach: { online: ["a"] } }, 403_000);
        return { held, said, anyway, accepted, left: session.outbox.size };""",
    )
    assert result["held"] == 0
    assert result["said"] == [["m-1", "old"]]
    assert result["anyway"] == ["m-1"]
    assert result["accepted"]["alertId"] == "al-9"
    assert result["accepted"]["reach"] == {"online": ["a"]}
    assert result["left"] == 0


def test_withdrawn_alert_says_whether_it_may_have_arrived(page: Page) -> None:
    """One that never left is gone; one that left once may stand on the server all the same."""
    result = run(
        page,
        ALERTS,
        """const idle = make();
        idle.start(0); idle.submit(raise("m-1"), 0);
        const session = known();
        session.submit(raise("m-2"), 40);
        return [idle.withdraw("m-1"), session.withdraw("m-2"), session.withdraw("m-2")];""",
    )
    assert result == [
        [{"do": "outgoing", "id": "m-1", "status": "withdrawn", "unsure": False}],
        [{"do": "outgoing", "id": "m-2", "status": "withdrawn", "unsure": True}],
        [],
    ]


def test_waiting_questions_never_keep_an_alert_out(page: Page) -> None:
    """With the outbox full of questions an alert and an answer are still taken."""
    result = run(
        page,
        ALERTS,
        """const session = make();
        session.start(0);
        for (let n = 0; n < 64; n += 1) session.submit(question(`q-${n}`), 0);
        return [session.submit(question("q-64"), 0), session.submit(raise("m-1"), 0), session.submit(answer("m-2"),
            0)].map((effects) => effects[0].status);""",
    )
    assert result == ["failed", "waiting", "waiting"]


# --- the book -----------------------------------------------------------------------------------------------


def test_book_knows_the_servers_words(page: Page) -> None:
    """Closed states and ringing events are the server's."""
    closed, ringing = run(page, BOOK, "return [[...CLOSED], [...RINGING]]")
    assert set(closed) >= CLOSED
    assert set(ringing) == NOTIFYING - CLOSED - {"joined"}


@pytest.mark.parametrize(
    ("more", "rings"),
    [
        ({}, True),
        ({"to": {"department": "cardiology"}}, True),
        ({"to": {"department": "surgery"}}, False),
        ({"to": {"role": "physician"}}, True),
        ({"to": {"role": "nurse"}}, False),
        ({"to": {"role": "nurse"}, "also": [{"user": "me"}]}, True),
        ({"to": {"user": "me"}}, True),
        ({"to": {"user": "you"}}, False),
        ({"from": "me"}, False),
        ({"event": "joined"}, False),
        ({"state": "resolved", "event": "resolved"}, False),
        ({"state": "in_progress", "who": [{"user_id": "you", "answer": "accept", "at": ""}]}, False),
        ({"event": "repeated", "who": [{"user_id": "me", "answer": "decline", "at": ""}]}, False),
        (
            {
                "event": "escalated",
                "to": {"department": "cardiology"},
                "who": [{"user_id": "me", "answer": "decline", "at": ""}],
            },
            True,
        ),
    ],
)
def test_book_rings_whom_the_alert_names(page: Page, more: dict[str, Any], rings: bool) -> None:
    """To the department, a role or the person, in this step or an earlier one; never its raiser, never who declined."""
    assert run(page, BOOK, f"return hear(raised('al-1', {_js(more)})).rings") is rings


def _js(value: Any) -> str:
    return json.dumps(value)


def test_book_counts_an_answer_only_when_the_log_or_the_server_has_it(page: Page) -> None:
    """An answer on its way is nobody's yet; a second one is refused meanwhile; the log's word always wins."""
    result = run(
        page,
        BOOK,
        """hear(raised("al-1"));
        const alert = book.alerts.get("al-1");
        const seen = [book.answer("al-1", { id: "m-1", answer: "accept" }, NOW), book.answer("al-1", { id: "m-2",
            answer: "decline" }, NOW), book.mine(alert)?.answer ?? null];
        book.outgoing({ id: "m-1", status: "sent" });
        book.outgoing({ id: "m-1", status: "accepted" });
        seen.push(book.mine(alert).answer, book.needsMe(alert));
        hear(update("al-1", { state: "in_progress", event: "accepted", by: "me", who: [has("me")] }));
        seen.push(book.mine(alert).answer, book.pending.size);
        // Twice reminded and silent: it is mine no longer, and rings.
        seen.push(hear(raised("al-1", { event: "repeated", who: [] })).rings, book.mine(alert));
        return seen;""",
    )
    assert result == [True, False, None, "accept", False, "accept", 0, True, None]


def test_book_says_who_took_what_was_on_the_screen(page: Page) -> None:
    """Another's acceptance ends it here with a name; of a team only when its last place is filled."""
    result = run(
        page,
        BOOK,
        """const slots = (...by) => by.map((who, n) => ({ id: `s-${n}`, label: "S", by: who }));
        hear(raised("al-1")); hear(raised("al-2", { slots: slots(null, null) }));
        const one = hear(update("al-1", { state: "in_progress", by: "you", who: [has("you")] })).taken;
        const half = hear(update("al-2", { by: "you", slots: slots("you", null) })).taken;
        const due = book.due().map((alert) => alert.key);
        const full = hear(update("al-2", { state: "in_progress", by: "they", slots: slots("you", "they") })).taken;
        return [one, half, due, full, book.due().length, book.places(book.alerts.get("al-2"))];""",
    )
    assert result == ["you", None, ["al-2"], "they", 0, {"filled": 2, "total": 2, "withEta": 0}]


def test_book_keeps_the_sheet_until_something_more_urgent_comes(page: Page) -> None:
    """An equal alert waits behind the one being read; a more urgent one comes first; an accepted one can be read on."""
    result = run(
        page,
        BOOK,
        """const shown = [];
        const look = (key) => { const alert = book.sheet(key); shown.push(alert?.key ?? null); return alert?.key; };
        hear(raised("al-1")); let key = look(null);
        hear(raised("al-2", { raised_at: "2026-01-15T06:00:00.000Z" })); key = look(key);
        hear(raised("al-3", { priority: "critical" })); key = look(key);
        book.later("al-3"); key = look(key);
        book.answer("al-2", { id: "m-1", answer: "accept" }, NOW); book.open("al-2"); key = look(key);
        book.outgoing({ id: "m-1", status: "accepted" }); key = look(key);
        book.later("al-1"); look(key);
        return shown;""",
    )
    assert result == ["al-1", "al-1", "al-3", "al-2", "al-2", "al-1", "al-2"]


def test_book_snapshot_replaces_and_keeps_answers_on_their_way(page: Page) -> None:
    """What the snapshot lacks is gone, what came after the welcome stays, and an unconfirmed answer too.

    A snapshot that had to do without the alerts takes nothing away."""
    result = run(
        page,
        BOOK,
        """hear(raised("old")); hear(raised("kept"));
        book.answer("kept", { id: "m-1", answer: "accept" }, NOW);
        book.restart();
        hear(raised("fresh"));
        const wanted = book.replace([raised("kept"), raised("new")], NOW).map((alert) => alert.key);
        const listed = book.list().map((alert) => alert.key).sort(), waiting = book.pending.size;
        book.restart(); book.replace([], NOW); const blind = [book.list().length, book.pending.size];
        book.snapshotWasBlind();
        return [wanted, listed, waiting, blind, book.list().length, book.pending.size];""",
    )
    assert result == [["kept", "new"], ["fresh", "kept", "new"], 1, [0, 0], 3, 1]


def test_book_says_late_after_a_minute(page: Page) -> None:
    """Received more than 60 s after it was raised, by the server's clock, it is late; at 60 s it is not."""
    result = run(
        page,
        BOOK,
        """const at = Date.parse("2026-01-15T07:00:00.000Z");
        return [[60_000, 0], [60_001, 0], [0, 60_001], [120_000, -60_000]].map(([now, offset], n) =>
            book.isLate(book.notified(raised(`al-${n}`), at + now, offset).alert));""",
    )
    assert result == [False, True, True, False]


def test_book_fits_every_notification_of_the_contract(page: Page) -> None:
    """A frame with nothing but what is required leaves an alert that can be listed and sorted."""
    frame = SystemNotification(priority="novel", content="x", department="cardiology", requires_action=True)
    listed = run(
        page,
        BOOK,
        f"""const bare = {msgspec.json.encode(frame).decode()};
        hear(bare); hear({{ ...bare }}); return book.list().map((alert) => [alert.key, book.may(alert).accept])""",
    )
    assert listed == [["alert-1", False], ["alert-2", False]]


# --- the wall board -----------------------------------------------------------------------------------------


def test_board_plan_never_leaves_a_critical_alert_out(page: Page) -> None:
    """For every number of alerts and every height, type shrinks first, and all critical ones are shown."""
    broken = run(
        page,
        BOOK,
        """const broken = [];
        for (let total = 0; total <= 30; total += 1) for (let critical = 0; critical <= total; critical += 1)
            for (let room = 1; room <= 60; room += 7) {
                const fits = (density, count) => count * (5 - density) <= room;
                const plan = boardPlan(total, critical, 5, fits);
                const same = [total, critical, room, plan.density, plan.count].join();
                if (plan.count < critical || plan.count > total) broken.push(same);
                if (plan.count < total && fits(4, total)) broken.push(`left out: ${same}`);
                if (plan.density > 0 && fits(0, total)) broken.push(`small: ${same}`);
                if (!fits(plan.density, plan.count) && plan.count > critical) broken.push(`over: ${same}`);
            }
        return broken;""",
    )
    assert broken == []


# --- presence -----------------------------------------------------------------------------------------------


def test_presence_form_begins_with_what_still_holds_and_sends_it(page: Page) -> None:
    """What has ended by itself is not said again; an end that was known goes out as it was, in minutes from now on."""
    held, sent = run(
        page,
        """const { stillSaid, presenceFrame } = await import("/web/alert-dialogs.js");
        const now = Date.parse("2026-01-15T07:00:00.000Z");
        const said = (state, until = null) => ({ state, until, delegate_to: "you" });""",
        """const later = "2026-01-15T07:00:00.001Z", over = "2026-01-15T07:00:00.000Z";
        const all = [undefined, said("busy", later), said("busy", over), said("busy"), said("available")];
        return [
            all.map((one) => stillSaid(one, now)?.state ?? null),
            [["available", later, "you"], ["off", "", " "], ["off", "30", " you "], ["busy", later, "you"],
                ["busy", over, ""]].map((one) => presenceFrame(...one, now)),
        ];""",
    )
    assert held == [None, "busy", None, "busy", "available"]
    assert sent == [
        {"type": "presence", "state": "available"},
        {"type": "presence", "state": "off"},
        {"type": "presence", "state": "off", "until": "2026-01-15T07:30:00.000Z", "delegate_to": "you"},
        {"type": "presence", "state": "busy", "until": "2026-01-15T07:00:00.001Z", "delegate_to": "you"},
        {"type": "presence", "state": "busy", "until": "2026-01-15T07:00:00.000Z"},
    ]
