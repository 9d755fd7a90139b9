"""The page's rules of handing over (what is one's own, what is asked, what came of it) inside headless Chromium."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

from tests.journeys.page_browser import run
from tests.journeys.test_page_alert_rules import ALERTS, BOOK

pytest_plugins = ("tests.journeys.page_fixtures",)
pytestmark = pytest.mark.browser

OFFERS = (
    BOOK
    + """
    const offer = (from, to) => ({ from, to, at: "2026-01-15T07:00:00.000Z", until: "2026-01-15T07:30:00.000Z" });
    const event = (id, name, about, more = {}) => update(id, { state: "in_progress", event: name, handover: about,
        handovers: [], timestamp: "2026-01-15T07:05:00.000Z", ...more });
    const mine = (id) => { hear(raised(id)); hear(update(id, { state: "in_progress", event: "accepted",
        who: [has("me")] })); };
    const keys = (list) => list.map((one) => one.key);
"""
)


def test_loops_are_what_one_has_and_what_calls_one(page: Page) -> None:
    """Not what others have, what one has declined or raised, what only informs, or what is closed."""
    result = run(
        page,
        OFFERS,
        """mine("has"); hear(raised("calls")); hear(raised("informs", { requires_action: false }));
        hear(raised("other")); hear(update("other", { state: "in_progress", event: "accepted", who: [has("you")] }));
        hear(raised("declined")); hear(update("declined", { event: "declined", who: [has("me", "decline")] }));
        hear(raised("raised", { from: "me" })); mine("done"); hear(raised("done", { event: "resolved",
            state: "resolved", who: [has("me", "done")] }));
        return keys(book.loops()).sort();""",
    )
    assert result == ["calls", "has"]


def test_offer_stands_until_the_log_says_otherwise(page: Page) -> None:
    """Each frame brings the whole list; how mine has ended is kept as long as the alert is known."""
    result = run(
        page,
        OFFERS,
        """mine("a");
        const told = [];
        const look = () => told.push([book.offerOf(book.alerts.get("a"), "me")?.to ?? null,
            book.alerts.get("a").given?.event ?? null, keys(book.loops())]);
        const first = offer("me", "you");
        const heard = [hear(event("a", "handover_offered", first, { handovers: [first], who: [has("me")] }))]; look();
        heard.push(hear(update("a", { state: "in_progress", handovers: [first], who: [has("me")] }))); look();
        heard.push(hear(event("a", "handover_refused", first, { who: [has("me")] }))); look();
        heard.push(hear(event("a", "handed_over", first, { who: [has("you"), has("me", "handed_over")] }))); look();
        return [told, heard.map((one) => one.handed?.event ?? null), heard.map((one) => one.taken)];""",
    )
    assert result == [
        [
            ["you", None, ["a"]],
            ["you", None, ["a"]],
            [None, "handover_refused", ["a"]],
            [None, "handed_over", []],
        ],
        ["handover_offered", None, "handover_refused", "handed_over"],
        [None, None, None, None],
    ]


def test_asked_are_the_offers_to_me_also_of_a_snapshot(page: Page) -> None:
    """An alert stands there as often as somebody asks; what was taken over is one's own, also if it called others."""
    result = run(
        page,
        OFFERS,
        """const both = [offer("you", "me"), offer("she", "me"), offer("he", "you")];
        book.restart();
        book.replace([raised("a", { state: "in_progress", to: { user: "you" }, who: [has("you")], handovers: both })],
            NOW);
        const before = book.asked().map((one) => one.offer.from);
        hear(event("a", "handed_over", both[0], { by: "me", handovers: both.slice(1), who: [has("me"),
            has("you", "handed_over")] }));
        const alert = book.alerts.get("a");
        return [before, book.asked().map((one) => one.offer.from), keys(book.loops()), book.may(alert).decline,
            book.due().length];""",
    )
    assert result == [["you", "she"], ["she"], ["a"], True, 0]


def test_hand_waits_for_its_answer_beside_an_answer_to_the_alert(page: Page) -> None:
    """One at a time for each offer; taken or over, it is gone; refused, it says why; it is no answer to the alert."""
    result = run(
        page,
        OFFERS,
        """mine("a"); hear(raised("b"));
        const hand = (key, id) => book.hand(key, { id, giver: "me", answer: "hand_over", colleague: "you" });
        const made = [hand("a", "m1"), hand("a", "m2"), hand("b", "m3"), hand("none", "m4")];
        const known = [book.outgoing({ id: "m1", status: "failed", code: "bad_request" }),
            book.outgoing({ id: "m3", status: "accepted" }), book.outgoing({ id: "m4", status: "sent" })];
        const left = [book.handOf("a", "me").code, book.handOf("b", "me"), book.pending.size,
            book.needsMe(book.alerts.get("b"))];
        hear(raised("a", { event: "resolved", state: "resolved", who: [has("me", "done")] }));
        return [made, known, left, book.hands.size];""",
    )
    assert result == [
        [True, False, True, False],
        [True, True, False],
        ["bad_request", None, 0, True],
        0,
    ]


def test_hand_is_settled_by_its_acceptance_alone(page: Page) -> None:
    """The log's event may come before or without it; only "accepted" or the alert's end take it out of the outbox."""
    result = run(
        page,
        ALERTS,
        """const session = known();
        session.submit(answer("m-1", { answer: "take_over" }), 40);
        const update = (seq, more) => ({ type: "alert_update", alert_id: "al-1", alert_seq: seq, state: "in_progress",
            event: "handed_over", by: "me", who: [{ user_id: "me", answer: "accept" }], ...more });
        const first = kinds(session.received(update(3), 50));
        const second = kinds(session.received({ type: "accepted", client_msg_id: "m-1", alert_id: "al-1" }, 60));
        session.submit(answer("m-2", { answer: "hand_over", colleague: "you" }), 70);
        const end = kinds(session.received(update(4, { state: "resolved", event: "resolved" }), 80));
        return [first, second, end, session.outbox.size];""",
    )
    assert result == [[], [["m-1", "accepted"]], [["m-2", "failed"]], 0]
