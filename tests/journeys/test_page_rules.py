"""The page's pure modules (session rules, the model of the screen, the texts) inside headless Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from chatd.actions.reasons import dismiss_reasons
from chatd.gateway.emergency import COMMAND
from chatd.identity.break_glass import MIN_REASON_CHARS
from chatd.identity.roles import TABLE
from protocols.errors import CloseCode, ErrorCode
from protocols.frames import ALERT_DURABLE, SESSION_DURABLE
from tests.journeys.page_browser import run

pytest_plugins = ("tests.journeys.page_fixtures",)
pytestmark = pytest.mark.browser

RULES = Path(__file__).with_name("page_rules.js").read_text(encoding="utf-8")

#: A session with a fixed jitter, already live, in front of every check that needs one.
LIVE = """
    const { ClientSession, RULES, backoffMs, closeVerdict } = await import("/web/protocol.js");
    let ids = 0;
    const make = () => new ClientSession({ deviceId: "d-1", random: () => 0.5, makeId: (p) => `${p}-${++ids}` });
    const welcome = (more) => ({ type: "welcome", session_id: "s-1", epoch: "e-1", seq: 4, alert_seq: 2,
        resumed: false,
        replay: 0, gap_reason: "first", heartbeat: { interval_s: 10, timeout_s: 10 }, ...more });
    const live = () => {
        const session = make();
        session.start(0);
        session.setToken("t-1", 3600, 0);
        session.opened(10);
        session.received(welcome(), 20);
        session.received({ type: "snapshot", open_responses: [] }, 30);
        return session;
    };
    const sent = (effects) => effects.filter((one) => one.do === "send").map((one) => one.frame);
    const done = (effects) => effects.map((one) => one.do);
    const question = (id) => ({ type: "user_message", client_msg_id: id, content: "x" });
"""

MODEL = """
    const { Conversation } = await import("/web/conversation.js");
    const talk = new Conversation();
    const ask = (id, patient = null) => talk.ask({ id, text: "x", patient, urgency: "routine", lang: "en",
        at: 0 });
    const final = (id, more = {}, data = {}) => ({ type: "ai_response", response_id: `r-${id}`, client_msg_id: id,
        status: "completed", patient_id: null, content: { text: "t", structured_data: data }, ...more });
"""


@pytest.mark.parametrize("block", range(10))
def test_session_rules_any_weather(page: Page, block: int) -> None:
    """Over random cuts, restarts, repeats and sleeps every question is answered once and no log has a gap."""
    broken = page.evaluate(
        f"""async () => {{
            const story = {RULES};
            for (let seed = {block * 60}; seed < {block * 60 + 60}; seed += 1) {{
                const broken = await story(seed, 400);
                if (broken.length) return [`seed ${{seed}}`, ...broken];
            }}
            return [];
        }}"""
    )
    assert not broken, "\n".join(broken)


def test_backoff_bounds_and_jitter(page: Page) -> None:
    """The wait grows from half a second to thirty, keeps its floor, and is spread over the whole range."""
    low, high, caps = run(
        page,
        LIVE,
        """return [
            Array.from({length: 40}, (_, n) => backoffMs(n, () => 0)),
            Array.from({length: 40}, (_, n) => backoffMs(n, () => 0.999999)),
            Array.from({length: 40}, (_, n) => Math.min(30000, 500 * 2 ** n)),
        ]""",
    )
    assert low == [100] * 40
    assert all(cap - 1 <= value <= cap for value, cap in zip(high, caps, strict=True))


def test_close_verdict_agrees_with_the_catalogue(page: Page) -> None:
    """The page comes back exactly where the server's table of close codes says so."""
    verdicts = run(page, LIVE, f"return {[int(code) for code in CloseCode]}.map(closeVerdict)")
    for code, verdict in zip(CloseCode, verdicts, strict=True):
        assert (verdict != "stop") == code.reconnect, code
    assert run(page, LIVE, "return [1005, 1006, 1011, 1012, 1013].map(closeVerdict)") == ["reconnect"] * 5
    assert run(page, LIVE, "return closeVerdict(4004)") == "token"


def test_durable_frames_agree_with_the_contract(page: Page) -> None:
    """The page counts exactly the frames that the contract counts."""
    session, alerts = page.evaluate(
        """async () => { const m = await import("/web/protocol.js");
        return [[...m.SESSION_DURABLE].sort(), [...m.ALERT_DURABLE].sort()]; }"""
    )
    assert session == sorted(str(one.__struct_config__.tag) for one in SESSION_DURABLE)
    assert alerts == sorted(str(one.__struct_config__.tag) for one in ALERT_DURABLE)


def test_hello_carries_token_and_cursor(page: Page) -> None:
    """The first hello has no cursor; the one after a lost line has both, and the same session."""
    first, second = run(
        page,
        LIVE,
        """const session = make();
        session.start(0); session.setToken("t-1", 3600, 0);
        const [first] = sent(session.opened(10));
        session.received(welcome(), 20); session.received({ type: "snapshot" }, 30);
        session.received({ type: "context", epoch: "e-1", seq: 5, patient: null }, 40);
        session.closed(1006, 50);
        session.tick(session.wakeAt());
        return [first, sent(session.opened(900))[0]];""",
    )
    assert first["token"] == "t-1"
    assert "resume" not in first
    assert second["resume"] == {"epoch": "e-1", "seq": 5, "alert_seq": 2}
    assert second["session_id"] == "s-1"


def test_question_waits_for_the_snapshot(page: Page) -> None:
    """Nothing is sent before the snapshot; then what the server is still answering is not asked again."""
    before, after = run(
        page,
        LIVE,
        """const session = live();
        session.submit(question("q-1"), 40); session.submit(question("q-2"), 40);
        session.received({ type: "accepted", client_msg_id: "q-1", response_id: "r-1" }, 50);
        session.received({ type: "accepted", client_msg_id: "q-2", response_id: "r-2" }, 50);
        session.closed(1006, 60); session.tick(session.wakeAt()); session.opened(1000);
        const before = sent(session.received(welcome({ epoch: "e-2", gap_reason: "epoch_changed" }), 1010));
        const after = sent(session.received({ type: "snapshot", open_responses: [{ client_msg_id: "q-1",
            response_id: "r-1" }] }, 1020));
        return [before, after];""",
    )
    assert before == []
    assert [frame["client_msg_id"] for frame in after] == ["q-2"]


def test_resumed_resends_only_what_was_not_accepted(page: Page) -> None:
    """After a resume the accepted question's answer comes by replay; the other one is sent again, unchanged."""
    frames = run(
        page,
        LIVE,
        """const session = live();
        session.submit(question("q-1"), 40); session.submit(question("q-2"), 40);
        session.received({ type: "accepted", client_msg_id: "q-1", response_id: "r-1" }, 50);
        session.closed(4002, 60); session.tick(session.wakeAt()); session.opened(1000);
        return sent(session.received(welcome({ resumed: true, gap_reason: null, seq: 4 }), 1010));""",
    )
    assert frames == [{"type": "user_message", "client_msg_id": "q-2", "content": "x"}]


def test_repeated_answer_of_a_resent_question_is_delivered_once(page: Page) -> None:
    """An answer under an old number is shown where it is awaited, and dropped once it is there."""
    delivered = run(
        page,
        LIVE,
        """const session = live();
        session.submit(question("q-1"), 40);
        const old = { type: "ai_response", client_msg_id: "q-1", response_id: "r-1", epoch: "e-1", seq: 2 };
        return [session.received(old, 50), session.received(old,
            60)].map((effects) => done(effects).includes("deliver"));""",
    )
    assert delivered == [True, False]


def test_answer_behind_the_cursor_is_asked_for_again(page: Page) -> None:
    """A duplicate's answer that is lost with the line lies where no replay reaches: the question goes out again."""
    frames = run(
        page,
        LIVE,
        """const session = live();
        session.submit(question("q-1"), 40);
        session.received({ type: "accepted", client_msg_id: "q-1", response_id: "r-1", duplicate: true }, 50);
        session.closed(1006, 60); session.tick(session.wakeAt()); session.opened(1000);
        return sent(session.received(welcome({ resumed: true }), 1010)).map((frame) => frame.client_msg_id);""",
    )
    assert frames == ["q-1"]


def test_line_lost_before_the_snapshot_is_not_resumed(page: Page) -> None:
    """A welcome without its snapshot is half a state: the next hello asks for a whole one."""
    hello = run(
        page,
        LIVE,
        """const session = make();
        session.start(0); session.setToken("t-1", 3600, 0); session.opened(10); session.received(welcome(), 20);
        session.closed(1006, 30); session.tick(session.wakeAt());
        return sent(session.opened(900))[0];""",
    )
    assert "resume" not in hello


def test_dead_token_is_not_shown_to_the_server(page: Page) -> None:
    """After an hour asleep the page fetches a token before it connects."""
    effects = run(
        page,
        LIVE,
        """const session = live();
        session.closed(1006, 3_600_000);
        return done(session.tick(session.wakeAt()));""",
    )
    assert effects == ["line", "token"]


def test_gap_reconnects_and_does_not_show_what_comes_after_it(page: Page) -> None:
    """A number left out closes the line and comes back for it; a third time in a row the cursor is given up."""
    effects, hellos = run(
        page,
        LIVE,
        """const session = live();
        const jump = { type: "context", epoch: "e-1", seq: 6 };
        const effects = done(session.received(jump, 40));
        const hellos = [];
        for (let round = 0; round < 3; round += 1) {
            session.tick(session.wakeAt());
            hellos.push(sent(session.opened(session.wakeAt()))[0].resume ?? null);
            session.received(welcome({ resumed: true }), 5000 + round);
            session.received(jump, 5000 + round);
        }
        return [effects, hellos];""",
    )
    assert effects == ["close", "line"]
    assert hellos[0] == hellos[1] == {"epoch": "e-1", "seq": 4, "alert_seq": 2}
    assert hellos[2] is None


def test_heartbeat_pings_and_drops_a_silent_line(page: Page) -> None:
    """A ping every 10 s; 10 s without any frame after it end the line; any frame in between saves it."""
    result = run(
        page,
        LIVE,
        """const session = live();
        const first = session.wakeAt();
        const ping = sent(session.tick(first)).map((frame) => frame.type);
        session.received({ type: "queue", response_id: "r" }, first + 9_999);
        const again = sent(session.tick(first + 10_000)).map((frame) => frame.type);
        const early = done(session.tick(first + 19_999));
        const dropped = done(session.tick(first + 20_000));
        return { first, ping, again, early, dropped, phase: session.phase };""",
    )
    assert result == {
        "first": 10_020,
        "ping": ["ping"],
        "again": ["ping"],
        "early": [],
        "dropped": ["close", "line"],
        "phase": "waiting",
    }


def test_foreground_probe_reconnects_after_two_seconds(page: Page) -> None:
    """Back in the foreground a dead line is given up after 2 s, and a living one is kept."""
    result = run(
        page,
        LIVE,
        """const dead = live(), alive = live();
        const probe = sent(dead.foreground(5_000)).map((frame) => frame.type);
        alive.foreground(5_000);
        alive.received({ type: "pong" }, 5_300);
        return [probe, done(dead.tick(7_000)), dead.wakeAt() - 7_000, done(alive.tick(7_000))];""",
    )
    assert result == [["ping"], ["close", "line"], 100, []]


def test_alerts_only_holds_what_is_no_alert_and_keeps_the_cursor(page: Page) -> None:
    """Without the server's memory only alerts are sent; what waits for an answer goes on waiting, and is sent later."""
    held, alert, hello, later = run(
        page,
        LIVE,
        """const session = live();
        session.submit(question("q-1"), 40);
        session.received({ type: "accepted", client_msg_id: "q-1", response_id: "r-1" }, 50);
        session.submit(question("q-2"), 55);
        const back = () => {
            session.closed(1006, 60); session.tick(60_000); session.setToken("t-1", 3600, 60_000);
            return sent(session.opened(60_010));
        };
        back();
        const only = welcome({ alerts_only: true, gap_reason: "too_far", alert_seq: 9 });
        const held = sent(session.received(only, 60_020));
        held.push(...sent(session.received({ type: "snapshot", open_responses: [], open_alerts: [] }, 60_030)));
        held.push(...sent(session.submit(question("q-3"), 60_040)), ...sent(session.cancel("q-1")));
        held.push(...sent(session.tick(60_050)));
        const answer = { type: "alert_response", client_msg_id: "a-1", alert_id: "al-1", answer: "accept" };
        const alert = sent(session.submit(answer, 60_060));
        const hello = back();
        const later = sent(session.received(welcome({ resumed: true, gap_reason: null, alert_seq: 9 }), 60_070));
        return [held, alert, hello, later];""",
    )
    assert [frame["type"] for frame in held if frame["type"] != "ping"] == []
    assert [frame["client_msg_id"] for frame in alert] == ["a-1"]
    assert hello[0]["resume"] == {"epoch": "e-1", "seq": 4, "alert_seq": 9}
    assert [(frame["type"], frame["client_msg_id"]) for frame in later] == [
        ("user_message", "q-2"),
        ("user_message", "q-3"),
        ("alert_response", "a-1"),
        ("cancel", "q-1"),
    ]


def test_alerts_only_snapshot_replaces_the_alerts_alone(page: Page) -> None:
    """What the server cannot tell of now stays on the screen: the open patient, the running question, no divider."""
    found = run(
        page,
        MODEL,
        """const hello = { type: "welcome", resumed: false, gap_reason: "first", user: { user_id: "u" },
            department: { id: "d" }, mode: "normal" };
        const alert = (id) => ({ type: "system_notification", alert_id: id, content: id, priority: "low",
            state: "delivering", alert_seq: 0 });
        talk.apply(hello, 0);
        talk.apply({ type: "snapshot", open_alerts: [alert("al-1")], active_patient: { patient_id: "p-1" } }, 0);
        ask("q-1");
        talk.apply({ type: "accepted", client_msg_id: "q-1", response_id: "r-q-1" }, 1);
        talk.apply({ ...hello, alerts_only: true, gap_reason: "too_far" }, 2);
        talk.apply({ type: "snapshot", open_alerts: [alert("al-2")], active_patient: null }, 2);
        const shown = talk.book.list().map((one) => one.key);
        const kept = [talk.alertsOnly, talk.patient.patient_id, [...talk.items.keys()], shown];
        talk.apply({ ...hello, resumed: true, gap_reason: null }, 3);
        return [...kept, talk.alertsOnly];""",
    )
    assert found == [True, "p-1", ["q-1"], ["al-2"], False]


def test_goaway_is_obeyed(page: Page) -> None:
    """After a goaway nothing new is sent, the named time is kept, and a verdict to stay away stops the page."""
    result = run(
        page,
        LIVE,
        """const session = live();
        session.received({ type: "goaway", code: 4000, reconnect: true, after_ms: 7_000 }, 100);
        const held = sent(session.submit(question("q-1"), 110));
        const answer = sent(session.submit({ type: "alert_response", client_msg_id: "n-1", alert_id: "a",
            answer: "accept" }, 110));
        session.closed(1006, 200);
        const impatient = done(session.foreground(300));
        const wait = session.wakeAt();
        const away = live();
        away.received({ type: "goaway", code: 4504, reconnect: false, after_ms: 0 }, 100);
        away.closed(1006, 120);
        return { held, answer: answer.length, impatient, wait, phase: away.phase, code: away.stopCode };""",
    )
    assert result["held"] == []
    assert result["answer"] == 1
    assert result["impatient"] == []
    assert 7_100 <= result["wait"] <= 7_600
    assert (result["phase"], result["code"]) == ("stopped", 4504)


def test_token_change_fetches_a_token_first(page: Page) -> None:
    """Close 4004 asks for a token before it connects; a token that runs out is renewed on the live line."""
    result = run(
        page,
        LIVE,
        """const session = live();
        session.closed(4004, 100);
        const at = session.wakeAt();
        const asks = done(session.tick(at));
        const opens = done(session.setToken("t-2", 3600, at));
        const renewing = live();
        renewing.tick(3_540_000);
        const renew = done(renewing.tick(3_541_000));
        const early = live();
        early.received({ type: "pong" }, 3_539_990);
        const refresh = sent(early.setToken("t-3", 3600, 3_540_000))[0];
        return { asks, opens, refresh, phase: session.phase };""",
    )
    assert result["asks"] == ["line", "token"]
    assert result["opens"] == ["line", "open"]
    assert result["refresh"]["type"] == "refresh"
    assert result["refresh"]["token"] == "t-3"


def test_token_expired_error_sends_the_command_again(page: Page) -> None:
    """An expired token is no fault of the question: it is renewed and the question goes out again."""
    result = run(
        page,
        LIVE,
        """const session = live();
        session.submit(question("q-1"), 40);
        const asks = done(session.received({ type: "error", code: "token_expired", retryable: true,
            client_msg_id: "q-1" }, 50));
        return [asks, sent(session.setToken("t-2", 3600, 60)).map((frame) => frame.type)];""",
    )
    assert result == [["token"], ["refresh", "user_message"]]


def test_ack_is_coalesced(page: Page) -> None:
    """A burst is acknowledged once, after half a second or sixteen frames."""
    result = run(
        page,
        LIVE,
        """const session = live();
        const acks = [];
        for (let seq = 5; seq < 5 + 16; seq += 1) acks.push(...sent(session.received({ type: "stale",
            epoch: "e-1", seq }, 100)));
        session.received({ type: "stale", epoch: "e-1", seq: 21 }, 200);
        const due = session.wakeAt();
        return [acks, due, sent(session.tick(due))];""",
    )
    assert result == [
        [{"type": "ack", "epoch": "e-1", "seq": 20}],
        700,
        [{"type": "ack", "epoch": "e-1", "seq": 21}],
    ]


def test_outbox_is_bounded(page: Page) -> None:
    """The sixty-fifth waiting command is refused aloud; the same id twice is one command."""
    result = run(
        page,
        LIVE,
        """const session = make();
        session.start(0);
        for (let n = 0; n < 64; n += 1) session.submit(question(`q-${n}`), 0);
        return [session.submit(question("q-0"), 0), session.submit(question("q-64"), 0)];""",
    )
    assert result[0] == []
    assert result[1] == [{"do": "outgoing", "id": "q-64", "status": "failed", "code": "outbox_full", "retryable": True}]


def test_cancel_before_and_after_sending(page: Page) -> None:
    """A question that never left is withdrawn; one that did is cancelled once, and again after a reconnect."""
    result = run(
        page,
        LIVE,
        """const idle = make();
        idle.start(0);
        idle.submit(question("q-1"), 0);
        const withdrawn = idle.cancel("q-1").map((one) => one.status);
        const session = live();
        session.submit(question("q-2"), 40);
        const first = sent(session.cancel("q-2")), again = sent(session.cancel("q-2"));
        session.closed(1006, 50); session.tick(session.wakeAt()); session.opened(900);
        const after = sent(session.received(welcome({ resumed: true }), 910)).map((frame) => frame.type);
        return [withdrawn, first, again, after];""",
    )
    assert result == [["withdrawn"], [{"type": "cancel", "client_msg_id": "q-2"}], [], ["user_message", "cancel"]]


# --- the model of the screen --------------------------------------------------------------------------------


def test_conversation_final_frame_is_authoritative(page: Page) -> None:
    """No delta and no second answer changes what the final frame has said."""
    result = run(
        page,
        MODEL,
        """ask("q-1");
        talk.apply({ type: "ai_delta", response_id: "r-q-1", client_msg_id: "q-1", idx: 0,
            section: "findings", text: "a" }, 0);
        const streamed = talk.items.get("q-1").stream.sections.get("findings");
        talk.apply(final("q-1"), 0);
        talk.apply({ type: "ai_delta", response_id: "r-q-1", idx: 1, section: "findings", text: "b" }, 0);
        talk.apply(final("q-1", { status: "failed" }), 0);
        const item = talk.items.get("q-1");
        return [streamed, item.stream, item.final.status, talk.items.size];""",
    )
    assert result == ["a", None, "completed", 1]


def test_conversation_delta_gap_is_said(page: Page) -> None:
    """A delta that is missing is marked, a repeated one is ignored."""
    result = run(
        page,
        MODEL,
        """ask("q-1");
        const delta = (idx, text) => talk.apply({ type: "ai_delta", response_id: "r-q-1",
            client_msg_id: "q-1", idx, section: "", text }, 0);
        delta(0, "a"); delta(0, "a"); delta(1, "b");
        const whole = { ...talk.items.get("q-1").stream, sections: undefined };
        delta(3, "d");
        const stream = talk.items.get("q-1").stream;
        return [whole.broken, stream.broken, stream.sections.get("")];""",
    )
    assert result == [False, True, "abd"]


def test_conversation_action_is_blocked_for_another_patient(page: Page) -> None:
    """A proposal can be chosen only while its own patient, or nobody, is open, in time and on current values."""
    result = run(
        page,
        MODEL,
        """const proposed = (expires_at) => ({ actions: [{ action_id: "a-1", catalog_id: "c", label: "L",
            risk: "confirm",
            expires_at, bound: { patient_id: "7823", context: "h" } }] });
        ask("q-1");
        talk.apply(final("q-1", {}, proposed("2026-01-15T08:00:00.000Z")), 0);
        const item = talk.items.get("q-1");
        const at = Date.parse("2026-01-15T07:59:59.000Z");
        const seen = [talk.actionBlock("a-1", item, at)];
        talk.apply({ type: "context", patient: { patient_id: "7900", name: "B" }, reason: "set" }, 0);
        seen.push(talk.actionBlock("a-1", item, at));
        talk.apply({ type: "context", patient: { patient_id: "7823", name: "A" }, reason: "switched" }, 0);
        seen.push(talk.actionBlock("a-1", item, at), talk.actionBlock("a-1", item, at + 1000));
        talk.apply({ type: "stale", response_id: "r-q-1", cause: { layer: "patient", field: "K",
            new_as_of: "" } }, 0);
        seen.push(talk.actionBlock("a-1", item, at));
        talk.apply({ type: "action_update", action_id: "a-1", status: "confirmed", confirm_token: "secret" }, 0);
        seen.push(talk.actionBlock("a-1", item, at));
        seen.push(JSON.stringify([...talk.actions.values()]).includes("secret"));
        return seen;""",
    )
    assert result == ["", "other_patient", "", "expired", "stale", "state", False]


def test_conversation_open_alert_is_never_pushed_out(page: Page) -> None:
    """Two hundred alerts leave every open one on the screen, the critical ones first."""
    result = run(
        page,
        MODEL,
        """for (let n = 1; n <= 200; n += 1) {
            talk.apply({ type: "system_notification", alert_id: `a-${n}`, alert_seq: n, event: "raised",
                content: "x",
                priority: n === 200 ? "critical" : "normal" }, 0);
            if (n % 3 === 0) talk.apply({ type: "alert_update", alert_id: `a-${n}`, state: "resolved",
                counts: {} }, 0);
        }
        const open = talk.openAlerts();
        return [open.length, open[0].key, talk.alerts.size <= 150];""",
    )
    assert result == [200 - 66, "a-200", True]


def test_conversation_survives_any_frame(page: Page) -> None:
    """Frames in any order, and with parts left out, neither throw nor grow without a bound."""
    result = run(
        page,
        MODEL,
        """let state = 7;
        const random = () => ((state = (state * 1103515245 + 12345) % 2147483648) / 2147483648);
        const pick = (list) => list[Math.floor(random() * list.length)];
        const types = ["welcome", "snapshot", "accepted", "queue", "facts", "ai_delta", "ai_response",
            "stale", "context",
            "action_update", "system_notification", "alert_update", "pong", "presence", "error", "goaway",
                "novel"];
        for (let n = 0; n < 4000; n += 1) {
            const id = `q-${Math.floor(random() * 600)}`;
            if (random() < 0.2) ask(id);
            const frame = { type: pick(types) };
            if (random() < 0.8) Object.assign(frame, { response_id: `r-${id}`, client_msg_id: id, idx: n % 4,
                section: "s", text: "t",
                action_id: `a-${id}`, status: pick(["prepared", "confirmed", "completed"]),
                    alert_id: `al-${n % 40}`, alert_seq: n, event: "raised",
                state: pick(["accepted", "resolved"]), priority: "high",
                    content: frame.type === "ai_response" ? { text: "t", structured_data: {} } : "c" });
            talk.apply(frame, n);
        }
        return [talk.items.size <= 200, talk.alerts.size <= 100, talk.announcements.length <= 50];""",
    )
    assert result == [True, True, True]


# --- texts and names ----------------------------------------------------------------------------------------


def test_texts_are_whole_in_both_languages(page: Page) -> None:
    """Each text stands in both languages with the same places to fill; each error and stop has its own."""
    tables = page.evaluate('async () => (await import("/web/i18n.js")).TABLES')
    en, pt = tables["en"], tables["pt"]
    assert en.keys() == pt.keys()
    for key in en:
        assert en[key].strip(), key
        assert pt[key].strip(), key
        assert _places(en[key]) == _places(pt[key]), key
    for code in ErrorCode:
        assert f"error.{code.value}" in en, code
    for close in CloseCode:
        if not close.reconnect:
            assert f"signin.reason.{int(close)}" in en, close


def test_dismiss_reasons_are_the_servers(page: Page) -> None:
    """The page offers the server's reasons, in its order and its words."""
    codes, tables = page.evaluate(
        """async () => [(await import("/web/dialogs.js")).DISMISS_REASONS, (await import("/web/i18n.js")).TABLES]"""
    )
    known = dismiss_reasons()
    assert codes == [one.code for one in known]
    assert [tables["en"][f"reason.{one.code}"] for one in known] == [one.en for one in known]
    assert [tables["pt"][f"reason.{one.code}"] for one in known] == [one.pt for one in known]


def test_emergency_access_is_offered_to_whom_the_server_gives_it(page: Page) -> None:
    """The page knows the roles of the server's table, and how long a reason must be."""
    roles, least = page.evaluate(
        """async () => { const { EMERGENCY_ROLES, MIN_REASON_CHARS } = await import("/web/dialogs.js");
                         return [EMERGENCY_ROLES, MIN_REASON_CHARS]; }"""
    )
    assert roles == sorted(role for group in TABLE.commands[COMMAND] for role in TABLE.groups[group])
    assert least == MIN_REASON_CHARS


def _places(text: str) -> set[str]:
    return {part.partition("}")[0] for part in text.split("{")[1:]}


def test_time_is_never_shown_without_its_day(page: Page) -> None:
    """Today has a time only; any other day is named; a date stays that date; what is no time stays as it came."""
    shown = page.evaluate(
        """async () => {
        const { Texts } = await import("/web/i18n.js");
        const en = new Texts("en"), now = new Date(2026, 0, 15, 12, 0).getTime();
        const at = (...parts) => new Date(...parts).toISOString();
        return [at(2026, 0, 15, 6, 10), at(2026, 0, 14, 23, 59), at(2024, 4, 2, 6, 10), "2024-05-02",
            "2024-05", "", null]
            .map((value) => en.time(value, now)); }"""
    )
    assert shown == [
        "06:10",
        "14 Jan, 23:59",
        "02 May 2024, 06:10",
        "02 May 2024",
        "2024-05",
        "time unknown",
        "time unknown",
    ]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Analyze João Silva's ECG results", ["1"]),
        ("analisa o ecg do JOAO SILVA?", ["1"]),
        ("João's ECG", []),
        ("Ana Costa Pereira, potassium", ["3"]),
        ("Ana Costa, potassium", ["2", "4"]),
        ("Joana Silva", []),
        ("", []),
    ],
)
def test_named_in_needs_the_whole_name(page: Page, text: str, ids: list[str]) -> None:
    """A record is opened for a whole name only, and everybody who has that name is offered."""
    found = page.evaluate(
        """async (text) => {
        const { namedIn } = await import("/web/patient.js");
        const people = [["1", "João Silva"], ["2", "Ana Costa"], ["3", "Ana Costa Pereira"], ["4", "Ana Costa"]];
        return namedIn(text, people.map(([patient_id, name]) => ({ patient_id,
            name }))).map((one) => one.patient_id); }""",
        text,
    )
    assert found == ids


def test_names_that_look_like_others_are_marked(page: Page) -> None:
    """A name of several scripts is marked with them, one that looks like another is, in both languages; others not."""
    for language, like, scripts in (
        ("en", "another name is like this one", "letters of several alphabets (Cyrillic, Latin)"),
        ("pt", "há outro nome parecido", "letras de vários alfabetos (Cyrillic, Latin)"),
    ):
        rows = page.evaluate(
            """async (language) => {
            await import("/web/patient.js");
            const { Texts } = await import("/web/i18n.js");
            const list = document.createElement("patient-list");
            document.body.append(list);
            const names = [["Mаria Reis", true], ["Maria Reis", true], ["João Ávila", false]];
            list.show({ texts: new Texts(language), conversation: { patient: null },
                patients: names.map(([name, look_alike], n) => ({ patient_id: `${n}`, name, look_alike })) });
            const rows = [...list.querySelectorAll(".patient-row")].map((row) => row.textContent);
            list.remove();
            return rows; }""",
            language,
        )
        assert [(like in row, scripts in row) for row in rows] == [(True, True), (True, False), (False, False)]
