"""The rules of a session: its table, its order of frames, its clocks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols.codec import CLIENT_FRAMES, CodecLimits, decode, decode_server
from protocols.errors import CloseCode, ErrorCode, LocalProtocolError, RemoteProtocolError
from protocols.frames import (
    Accepted,
    Ack,
    AiDelta,
    AiResponse,
    AlertResponse,
    Cancel,
    ClientFrame,
    Facts,
    Hello,
    OpenResponse,
    Ping,
    Queue,
    Resume,
    ServerFrame,
    SessionEnd,
    Snapshot,
    SystemNotification,
    UserMessage,
    Welcome,
)
from protocols.session import (
    MAY_GET,
    MAY_SEND,
    TRANSITIONS,
    Close,
    Event,
    ResumePlan,
    SendPing,
    Session,
    SessionRules,
    State,
    resume_plan,
)

GOLDEN = Path(__file__).parent / "golden"
RULES = SessionRules()
EPOCH = "e-1"
FROM_CLIENT: dict[str, ClientFrame] = {
    path.stem: decode(path.read_bytes(), limits=CodecLimits()) for path in sorted(GOLDEN.glob("client.*.json"))
}
FROM_SERVER: dict[str, ServerFrame] = {
    path.stem: decode_server(path.read_bytes()) for path in sorted(GOLDEN.glob("server.*.json"))
}
HELLO = Hello()
QUESTION = UserMessage(client_msg_id="m-1", content="x")


def of(name: str, **changes: Any) -> Any:
    """A golden frame of the server with some fields changed."""
    return msgspec.structs.replace(FROM_SERVER[f"server.{name}"], **changes)


def welcome(session: Session, *, replay: int = 0, resumed: bool = True, **changes: Any) -> Welcome:
    fields: dict[str, Any] = {
        "epoch": session.epoch,
        "seq": session.seq + replay,
        "alert_seq": session.alert_seq,
        "replay": replay,
        "resumed": resumed,
        "gap_reason": None if resumed else "first",
    }
    frame = of("welcome", **{**fields, **changes})
    assert isinstance(frame, Welcome)
    return frame


def active(*, seq: int = 0, alert_seq: int = 0, now_ms: int = 0, channel: Any = "app") -> Session:
    """An open session that has said welcome."""
    session = Session(compat=False, now_ms=now_ms, rules=RULES)
    session.receive(Hello(channel=channel), now_ms)
    session.opened(EPOCH, seq, alert_seq)
    session.sending(welcome(session))
    return session


def in_state(state: State) -> Session:
    """A session that has come to ``state`` by the shortest way."""
    if state is State.CONNECTING:
        return Session(compat=False, now_ms=0, rules=RULES, authenticated=True)
    if state is State.OPENING:
        return Session(compat=True, now_ms=0, rules=RULES, authenticated=True)
    session = active()
    if state is State.DRAINING:
        session.drain(0)
    elif state is State.CLOSED:
        session.closed()
    return session


def answer(seq: int, response_id: str = "r-1", kind: str = "ai_response") -> Any:
    return of(kind, response_id=response_id, epoch=EPOCH, seq=seq)


def alert(alert_seq: int) -> Any:
    return of("system_notification", alert_seq=alert_seq)


def delta(idx: int, response_id: str = "r-1") -> AiDelta:
    return AiDelta(response_id=response_id, idx=idx, section="findings", text="x")


def image(session: Session) -> Any:
    """All that a session knows, but for the sign of life."""
    known = dict(vars(session))
    known.pop("heard_ms")
    known.pop("_silent_since_ms")
    return msgspec.json.encode({name: str(value) for name, value in known.items()}, order="deterministic")


# --- the table ----------------------------------------------------------------------------------------------


def test_table_has_every_state() -> None:
    """Every state has a row, every row leads to states, and every state can be closed."""
    assert set(TRANSITIONS) == set(State)
    for row in TRANSITIONS.values():
        assert set(row.values()) <= set(State)
        assert row[Event.CLOSED] is State.CLOSED
        assert row[Event.DRAIN] in (State.DRAINING, State.CLOSED)


def test_table_knows_every_client_frame() -> None:
    """Each frame of a client is legal in some state, and hello only at the beginning."""
    legal = {state: {kind for kind in row if isinstance(kind, type)} for state, row in TRANSITIONS.items()}
    assert set().union(*legal.values()) == set(CLIENT_FRAMES.values())
    assert legal[State.CONNECTING] == {Hello}
    assert legal[State.ACTIVE] == set(CLIENT_FRAMES.values()) - {Hello} == MAY_SEND["app"]
    assert legal[State.DRAINING] < legal[State.ACTIVE]
    assert {Cancel, Ack, AlertResponse, Ping} <= legal[State.DRAINING]
    assert not legal[State.CLOSED]
    assert not legal[State.OPENING]


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("name", FROM_CLIENT)
def test_receive_by_table(state: State, name: str) -> None:
    """In every state every frame does what the table says, or raises and changes nothing."""
    session, frame = in_state(state), FROM_CLIENT[name]
    if isinstance(frame, Ack):
        frame = Ack(epoch=session.epoch, seq=session.seq)
    after = TRANSITIONS[state].get(type(frame))
    if after is not None:
        session.receive(frame, 1)
        assert session.state is after
        return
    before = image(session)
    with pytest.raises(RemoteProtocolError) as caught:
        session.receive(frame, 1)
    assert image(session) == before
    assert caught.value.client_msg_id == getattr(frame, "client_msg_id", None)


@pytest.mark.parametrize("channel", ["push", "board"])
@pytest.mark.parametrize("name", FROM_CLIENT)
def test_receive_by_channel(channel: Any, name: str) -> None:
    """A push extension answers alerts and a board only listens; nothing else of them is taken."""
    session, frame = active(channel=channel), FROM_CLIENT[name]
    if isinstance(frame, Hello | Ack):
        return
    if type(frame) in MAY_SEND[channel]:
        session.receive(frame, 1)
        return
    before = image(session)
    with pytest.raises(RemoteProtocolError) as caught:
        session.receive(frame, 1)
    assert (caught.value.code, caught.value.close) == (ErrorCode.FORBIDDEN, None)
    assert image(session) == before


@pytest.mark.parametrize("channel", ["push", "board"])
@pytest.mark.parametrize("name", FROM_SERVER)
def test_sending_by_channel(channel: Any, name: str) -> None:
    """Neither a push extension nor a board is sent a patient's data, whatever the frame."""
    session, frame = active(channel=channel), FROM_SERVER[name]
    if isinstance(frame, Welcome | Snapshot):
        return
    if hasattr(frame, "alert_seq"):
        frame = msgspec.structs.replace(frame, alert_seq=1)
    may_get = MAY_GET[channel]
    assert may_get is not None
    has_patient = channel == "push" and getattr(frame, "patient_id", None) is not None
    if isinstance(frame, may_get) and not has_patient:
        session.sending(frame)
        return
    with pytest.raises(LocalProtocolError):
        session.sending(frame)


def test_snapshot_by_channel() -> None:
    """A board's snapshot holds alerts and nothing of a session."""
    session = Session(compat=False, now_ms=0, rules=RULES)
    session.receive(Hello(channel="board"), 0)
    session.opened(EPOCH, 0, 0)
    session.sending(welcome(session, resumed=False))
    with pytest.raises(LocalProtocolError):
        session.sending(FROM_SERVER["server.snapshot"])
    session.sending(Snapshot(open_alerts=(of("system_notification"),)))


# --- before hello -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authenticated", [False, True])
def test_receive_before_hello(authenticated: bool) -> None:
    """Without a token anything but hello ends the connection; with one it is only refused."""
    session = Session(compat=False, now_ms=0, rules=RULES, authenticated=authenticated)
    with pytest.raises(RemoteProtocolError) as caught:
        session.receive(QUESTION, 1)
    expected = (ErrorCode.BAD_REQUEST, None) if authenticated else (ErrorCode.UNAUTHORIZED, CloseCode.UNAUTHORIZED)
    assert (caught.value.code, caught.value.close) == expected
    assert session.state is State.CONNECTING


@pytest.mark.parametrize(("authenticated", "code"), [(False, CloseCode.UNAUTHORIZED), (True, CloseCode.BAD_PROTOCOL)])
def test_tick_hello_timeout(authenticated: bool, code: CloseCode) -> None:
    """Five seconds without hello end the connection, and pings do not lengthen them."""
    session = Session(compat=False, now_ms=1_000, rules=RULES, authenticated=authenticated)
    session.heard(5_999)
    assert session.deadline_ms() == 6_000
    assert session.tick(5_999) == ()
    assert session.tick(6_000) == (Close(code),)


def test_strike_before_hello() -> None:
    """Without a token the first bytes that are no frame end the connection."""
    session = Session(compat=False, now_ms=0, rules=RULES)
    assert session.strike(1) == Close(CloseCode.UNAUTHORIZED)
    assert session.tick(1) == (Close(CloseCode.UNAUTHORIZED),)


def test_hello_twice() -> None:
    """A second hello is refused, before and after the session is open."""
    session = Session(compat=False, now_ms=0, rules=RULES)
    session.receive(HELLO, 0)
    with pytest.raises(RemoteProtocolError):
        session.receive(Hello(channel="board"), 1)
    session.opened(EPOCH, 0, 0)
    with pytest.raises(RemoteProtocolError):
        session.receive(Hello(channel="board"), 2)
    assert (session.state, session.channel) == (State.ACTIVE, "app")


def test_opened_out_of_turn() -> None:
    """A session is opened once, after hello and before its end."""
    session = Session(compat=False, now_ms=0, rules=RULES)
    with pytest.raises(LocalProtocolError):
        session.opened(EPOCH, 0, 0)
    session = active()
    with pytest.raises(LocalProtocolError):
        session.opened(EPOCH, 9, 9)
    assert session.seq == 0
    session.closed()
    with pytest.raises(LocalProtocolError):
        session.opened(EPOCH, 9, 9)


def test_compat_without_hello_and_welcome() -> None:
    """A connection of the original design is opened at once and needs no welcome."""
    session = Session(compat=True, now_ms=0, rules=RULES, authenticated=True)
    session.opened(EPOCH, 4, 7)
    session.receive(QUESTION, 1)
    session.sending(answer(5))
    session.sending(alert(8))
    with pytest.raises(LocalProtocolError):
        session.sending(welcome(session))


# --- the order of what is sent ------------------------------------------------------------------------------


def refuses(session: Session, frame: ServerFrame) -> None:
    """``sending`` raises, and the session is what it was."""
    before = image(session)
    with pytest.raises(LocalProtocolError):
        session.sending(frame)
    assert image(session) == before


def test_sending_welcome_first() -> None:
    """The first frame is the welcome, there is one, and what it counts is what was opened."""
    session = Session(compat=False, now_ms=0, rules=RULES)
    refuses(session, of("welcome"))
    session.receive(HELLO, 0)
    refuses(session, of("welcome"))
    session.opened(EPOCH, 41, 12)
    refuses(session, alert(13))
    refuses(session, answer(42))
    refuses(session, of("pong"))
    refuses(session, welcome(session, replay=2, seq=44))
    refuses(session, welcome(session, epoch="e-2"))
    refuses(session, welcome(session, alert_seq=11))
    refuses(session, welcome(session, gap_reason="first"))
    refuses(session, welcome(session, resumed=False, replay=3))
    refuses(session, welcome(session, resumed=False, gap_reason=None))
    session.sending(of("error"))
    session.sending(welcome(session, replay=2))
    refuses(session, welcome(session))
    refuses(session, Snapshot())
    session.sending(answer(42, "r-0", "facts"))
    session.sending(answer(43, "r-0"))


def test_sending_snapshot_second() -> None:
    """After a welcome without resume comes the snapshot, and only there."""
    session = Session(compat=False, now_ms=0, rules=RULES)
    session.receive(HELLO, 0)
    session.opened(EPOCH, 41, 12)
    session.sending(welcome(session, resumed=False))
    refuses(session, of("pong"))
    refuses(session, alert(13))
    session.sending(Snapshot(open_responses=(OpenResponse(response_id="r-9", client_msg_id="m-9"),)))
    assert session.unanswered == {"r-9"}
    refuses(session, Snapshot())
    session.sending(delta(0, "r-9"))
    session.sending(answer(42, "r-9"))
    assert not session.unanswered


def test_sending_seq() -> None:
    """seq and alert_seq rise by exactly one, each by itself, in one epoch."""
    session = active(seq=10, alert_seq=100)
    for wrong in (0, 9, 10, 12):
        refuses(session, answer(wrong))
    refuses(session, msgspec.structs.replace(answer(11), epoch="e-2"))
    session.sending(answer(11, "r-1", "facts"))
    for wrong in (0, 100, 102):
        refuses(session, alert(wrong))
    session.sending(alert(101))
    session.sending(of("alert_update", alert_seq=102))
    session.sending(answer(12))
    assert (session.seq, session.alert_seq) == (12, 102)


def test_sending_idx() -> None:
    """idx rises by one from 0 within each response on each connection."""
    session = active()
    refuses(session, delta(1))
    session.sending(delta(0))
    refuses(session, delta(0))
    refuses(session, delta(2))
    session.sending(delta(0, "r-2"))
    session.sending(delta(1))
    assert (session.next_idx("r-1"), session.next_idx("r-2"), session.next_idx("r-3")) == (2, 1, 0)


def test_sending_after_the_answer() -> None:
    """One ai_response ends a response: no delta, queue, facts or second answer follows."""
    session = active()
    session.sending(answer(1, kind="facts"))
    session.sending(delta(0))
    session.sending(answer(2))
    for late in (delta(1), delta(0), answer(3), answer(3, kind="facts"), of("queue", response_id="r-1")):
        refuses(session, late)
    session.sending(of("stale", response_id="r-1", epoch=EPOCH, seq=3))
    session.sending(Accepted(client_msg_id="m-1", response_id="r-1", duplicate=True))
    assert not session.unanswered


def test_unanswered() -> None:
    """What was begun on a connection is unanswered until its ai_response."""
    session = active()
    session.sending(Accepted(client_msg_id="m-1", response_id="r-1"))
    session.sending(Accepted(client_msg_id="m-2", alert_id="a-1"))
    session.sending(Queue(response_id="r-2", lane="routine", position=1))
    assert session.unanswered == {"r-1", "r-2"}
    session.sending(answer(1))
    assert session.unanswered == {"r-2"}


def test_repeating() -> None:
    """A duplicate gets its finished answer again under its old seq; the cursor stays, and the answer stays one."""
    session = active(seq=10)
    session.sending(Accepted(client_msg_id="m-1", response_id="r-1", duplicate=True))
    with pytest.raises(LocalProtocolError):
        session.repeating(answer(11))
    with pytest.raises(LocalProtocolError):
        session.repeating(answer(0))
    with pytest.raises(LocalProtocolError):
        session.repeating(msgspec.structs.replace(answer(9), epoch="e-0"))
    with pytest.raises(LocalProtocolError):
        session.repeating(alert(0))
    session.repeating(answer(9))
    session.repeating(answer(9))
    assert (session.seq, session.unanswered) == (10, frozenset())
    refuses(session, answer(11))
    session.sending(answer(11, "r-2"))


def test_finished_is_bounded() -> None:
    """A connection remembers a bounded number of finished responses, the latest ones."""
    session = Session(compat=True, now_ms=0, rules=SessionRules(remembered_responses=3))
    session.opened(EPOCH, 0, 0)
    for seq in range(1, 11):
        session.sending(answer(seq, f"r-{seq}"))
    refuses(session, delta(0, "r-10"))
    refuses(session, delta(0, "r-8"))
    assert len(session._finished) == 3


# --- acknowledgements ---------------------------------------------------------------------------------------


def test_ack() -> None:
    """An ack counts up to what was sent in this epoch; a lower one changes nothing."""
    session = active(seq=10)
    session.sending(answer(11))
    session.receive(Ack(epoch=EPOCH, seq=11), 1)
    session.receive(Ack(epoch=EPOCH, seq=3), 2)
    assert session.acked_seq == 11
    for wrong in (Ack(epoch=EPOCH, seq=12), Ack(epoch="e-0", seq=1)):
        before = image(session)
        with pytest.raises(RemoteProtocolError) as caught:
            session.receive(wrong, 3)
        assert (caught.value.code, image(session)) == (ErrorCode.BAD_REQUEST, before)


# --- time ---------------------------------------------------------------------------------------------------


def test_tick_heartbeat() -> None:
    """A ping goes out every ten seconds; ten seconds of silence after one end the connection with 4001."""
    session = active()
    assert session.deadline_ms() == 10_000
    assert session.tick(9_999) == ()
    assert session.tick(10_000) == (SendPing(),)
    session.heard(19_999)
    assert session.tick(20_000) == (SendPing(),)
    assert session.deadline_ms() == 30_000
    assert session.tick(29_999) == ()
    assert session.tick(30_000) == (Close(CloseCode.NO_PONG),)
    assert session.deadline_ms() is None


def test_tick_heartbeat_does_not_wait_longer() -> None:
    """Silence counts from the first ping that nothing followed, however many pings were sent since."""
    rules = SessionRules(ping_interval_ms=3_000, pong_timeout_ms=10_000)
    session = Session(compat=True, now_ms=0, rules=rules)
    session.opened(EPOCH, 0, 0)
    assert [session.tick(at_ms) for at_ms in (3_000, 6_000, 9_000, 12_000)] == [(SendPing(),)] * 4
    assert session.deadline_ms() == 13_000
    assert session.tick(13_000) == (Close(CloseCode.NO_PONG),)


@pytest.mark.parametrize("sign", ["heard", "strike", "ping", "illegal"])
def test_any_frame_is_a_sign_of_life(sign: str) -> None:
    """Whatever comes from the client, a refused frame too, shows that the line lives."""
    session = active()
    session.tick(10_000)
    if sign == "ping":
        session.receive(Ping(), 15_000)
    elif sign == "illegal":
        with pytest.raises(RemoteProtocolError):
            session.receive(HELLO, 15_000)
    elif sign == "strike":
        session.strike(15_000)
    else:
        session.heard(15_000)
    assert session.tick(20_000) == (SendPing(),)


def test_tick_heartbeat_with_an_alert() -> None:
    """While an alert is unanswered the heartbeat is five seconds and five seconds."""
    session = active()
    session.alert_open(True)
    assert session.deadline_ms() == 5_000
    assert session.tick(5_000) == (SendPing(),)
    assert session.tick(10_000) == (Close(CloseCode.NO_PONG),)
    session = active()
    session.alert_open(True)
    session.alert_open(False)
    assert session.deadline_ms() == 10_000


def with_pongs(session: Session, from_ms: int, until_ms: int) -> tuple[Any, ...]:
    """Tick a living line as its deadlines say; what came at the end."""
    while (at_ms := session.deadline_ms()) is not None and from_ms <= at_ms <= until_ms:
        due = session.tick(at_ms)
        if due != (SendPing(),):
            return due
        session.heard(at_ms)
    return ()


def test_tick_session_timeout() -> None:
    """Thirty minutes without a doctor's act end the session, though the line lives."""
    session = active()
    assert with_pongs(session, 0, 1_799_999) == ()
    assert with_pongs(session, 0, 1_800_000) == (Close(CloseCode.SESSION_TIMEOUT),)


@pytest.mark.parametrize("name", FROM_CLIENT)
def test_session_timeout_counts_acts(name: str) -> None:
    """A doctor's act begins the thirty minutes anew; what a device sends by itself does not."""
    session, frame = active(), FROM_CLIENT[name]
    if isinstance(frame, Hello | SessionEnd):
        return
    if isinstance(frame, Ack):
        frame = Ack(epoch=EPOCH, seq=0)
    session.receive(frame, 1_000_000)
    by_itself = name.split(".")[1] in ("ack", "ping", "refresh")
    session.heard(1_799_999)
    assert (session.tick(1_800_000) == (Close(CloseCode.SESSION_TIMEOUT),)) == by_itself


def test_session_timeout_delivered() -> None:
    """A phone says "delivered" by itself, so it is no act; "displayed" is one, somebody looked."""
    for given_answer, code in (("delivered", (Close(CloseCode.SESSION_TIMEOUT),)), ("displayed", (SendPing(),))):
        session = active()
        frame = AlertResponse(client_msg_id="m", alert_id="a", answer=given_answer)  # type: ignore[arg-type]
        session.receive(frame, 1_000_000)
        assert session.tick(1_800_000) == code


def test_session_timeout_idle_before() -> None:
    """A reconnect does not begin the thirty minutes anew."""
    session = Session(compat=True, now_ms=0, rules=RULES)
    session.opened(EPOCH, 0, 0, now_ms=2_000, idle_ms=1_795_000)
    assert session.deadline_ms() == 7_000
    assert session.tick(7_000) == (Close(CloseCode.SESSION_TIMEOUT),)


@pytest.mark.parametrize("channel", ["push", "board"])
def test_session_timeout_not_for_boards(channel: Any) -> None:
    """A wall display and an extension have no doctor: they hear alerts for as long as their token lives."""
    session = active(channel=channel)
    assert with_pongs(session, 0, 4_000_000) == ()
    assert session.state is State.ACTIVE


def test_token_expires() -> None:
    """A token that runs out ends the connection at that millisecond, for frames as well; a refresh moves it."""
    session = active()
    session.token_expires(3_000)
    assert session.deadline_ms() == 3_000
    session.receive(QUESTION, 2_999)
    before = image(session)
    with pytest.raises(RemoteProtocolError) as caught:
        session.receive(QUESTION, 3_000)
    assert (caught.value.code, caught.value.close) == (ErrorCode.TOKEN_EXPIRED, CloseCode.TOKEN_CHANGED)
    assert image(session) == before
    session.token_expires(5_000)
    session.receive(QUESTION, 4_000)
    assert session.tick(5_000) == (Close(CloseCode.TOKEN_CHANGED),)


def test_strikes() -> None:
    """Five pieces of garbage within a minute end the connection with 4507; spread over hours they do not."""
    session = active()
    assert [session.strike(at_ms) for at_ms in (1, 2, 3, 4)] == [None] * 4
    assert session.deadline_ms() == 10_000
    assert session.strike(60_001) == Close(CloseCode.TOO_MANY_ERRORS)
    assert session.deadline_ms() == 0
    assert session.tick(60_001) == (Close(CloseCode.TOO_MANY_ERRORS),)
    session = active()
    assert [session.strike(at_ms) for at_ms in range(0, 1_500_000, 15_001)] == [None] * 100


def test_first_verdict_stays() -> None:
    """A verdict is repeated, and no later reason replaces it."""
    session = active()
    session.token_expires(10)
    assert session.tick(10) == (Close(CloseCode.TOKEN_CHANGED),)
    assert session.tick(9_000_000) == (Close(CloseCode.TOKEN_CHANGED),)


def test_drain() -> None:
    """While draining one can stop, acknowledge, raise and answer alerts; a question is refused, and may be resent."""
    session = active()
    session.sending(Accepted(client_msg_id="m-0", response_id="r-1"))
    session.drain(1_000)
    session.drain(5_000)
    before = image(session)
    with pytest.raises(RemoteProtocolError) as caught:
        session.receive(QUESTION, 1_001)
    assert (caught.value.code, caught.value.client_msg_id) == (ErrorCode.QUEUE_FULL, "m-1")
    assert image(session) == before
    session.receive(Cancel(client_msg_id="m-0"), 1_002)
    session.sending(answer(1))
    assert not session.unanswered
    assert session.tick(9_000) == (Close(CloseCode.RESTART),)


@pytest.mark.parametrize("state", [State.CONNECTING, State.OPENING])
def test_drain_before_open(state: State) -> None:
    """A connection that is not open has nothing to finish and is told to come back elsewhere."""
    session = in_state(state)
    session.drain(1)
    assert (session.state, session.deadline_ms()) == (State.CLOSED, 0)
    assert session.tick(1) == (Close(CloseCode.RESTART),)
    session.sending(of("goaway"))


def test_session_end() -> None:
    """session_end closes with 1000, and nothing is taken or sent after it but the goodbye."""
    session = active()
    session.receive(SessionEnd(), 1)
    assert session.state is State.CLOSED
    assert session.tick(1) == (Close(CloseCode.NORMAL),)
    refuses(session, answer(1))
    with pytest.raises(RemoteProtocolError) as caught:
        session.receive(QUESTION, 2)
    assert caught.value.code == ErrorCode.SESSION_EXPIRED


def test_closed_is_quiet() -> None:
    """After the socket is gone nothing is due."""
    session = active()
    session.closed()
    session.closed()
    assert session.deadline_ms() is None
    assert session.tick(10**9) == ()


# --- any order ----------------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Any frames, resends, ticks and events in any order; a second, naive account says what had to happen."""

    sent = Bundle("sent")

    @initialize(compat=st.booleans(), authenticated=st.booleans(), channel=st.sampled_from(["app", "push", "board"]))
    def start(self, compat: bool, authenticated: bool, channel: Any) -> None:
        self.now_ms = 0
        self.session = Session(compat=compat, now_ms=0, rules=RULES, authenticated=authenticated)
        self.hello = Hello(channel=channel)
        self.compat = compat
        self.out: list[ServerFrame] = []
        self.counter = itertools.count(1)
        self.start_seq = self.start_alert_seq = 0

    def attempt(self, frame: ServerFrame) -> None:
        before = image(self.session)
        try:
            self.session.sending(frame)
        except LocalProtocolError:
            assert image(self.session) == before
        else:
            self.out.append(frame)

    @rule(name=st.sampled_from(sorted(FROM_CLIENT)), times=st.integers(1, 2))
    def receive(self, name: str, times: int) -> None:
        frame = FROM_CLIENT[name]
        if isinstance(frame, Hello):
            frame = self.hello
        if isinstance(frame, Ack):
            frame = Ack(epoch=self.session.epoch, seq=self.session.seq)
        for _ in range(times):
            before, state = image(self.session), self.session.state
            after = TRANSITIONS[state].get(type(frame))
            allowed = state is State.CONNECTING or type(frame) in MAY_SEND[self.session.channel]
            refused = False
            try:
                self.session.receive(frame, self.now_ms)
            except RemoteProtocolError:
                refused = True
            assert refused == (after is None or not allowed)
            if refused:
                assert image(self.session) == before
            else:
                assert self.session.state is after

    @precondition(lambda self: self.session.state is State.OPENING)
    @rule(seq=st.integers(0, 50), alert_seq=st.integers(0, 50), replay=st.integers(0, 3), resumed=st.booleans())
    def open(self, seq: int, alert_seq: int, replay: int, resumed: bool) -> None:
        self.session.opened(EPOCH, seq, alert_seq)
        self.start_seq, self.start_alert_seq = seq, alert_seq
        if not self.compat:
            self.session.sending(welcome(self.session, resumed=resumed, replay=replay if resumed else 0))
            if not resumed:
                self.session.sending(Snapshot())

    @rule(step=st.integers(-1, 2), response=st.sampled_from("abc"), kind=st.sampled_from(["facts", "ai_response"]))
    def send_durable(self, step: int, response: str, kind: str) -> None:
        self.attempt(answer(self.session.seq + step, f"r-{response}", kind))

    @rule(step=st.integers(-1, 2))
    def send_alert(self, step: int) -> None:
        self.attempt(msgspec.structs.replace(alert(self.session.alert_seq + step), patient_id=None))

    @rule(step=st.integers(-1, 1), response=st.sampled_from("abc"))
    def send_delta(self, step: int, response: str) -> None:
        self.attempt(delta(self.session.next_idx(f"r-{response}") + step, f"r-{response}"))

    @rule(name=st.sampled_from(sorted(FROM_SERVER)))
    def send_any(self, name: str) -> None:
        self.attempt(FROM_SERVER[name])

    @rule(by_ms=st.sampled_from([0, 1, 500, 4_999, 10_000]))
    def tick(self, by_ms: int) -> None:
        self.now_ms += by_ms
        deadline_ms = self.session.deadline_ms()
        state = self.session.state
        due = self.session.tick(self.now_ms)
        assert self.session.state is state
        if deadline_ms is not None:
            assert bool(due) == (self.now_ms >= deadline_ms)
        if due and isinstance(due[0], Close):
            assert self.session.tick(self.now_ms) == due
        else:
            assert self.session.tick(self.now_ms) == ()

    @rule()
    def hear(self) -> None:
        self.session.heard(self.now_ms)

    @rule()
    def strike(self) -> None:
        state = self.session.state
        self.session.strike(self.now_ms)
        assert self.session.state is state

    @rule()
    def drain(self) -> None:
        expected = TRANSITIONS[self.session.state][Event.DRAIN]
        self.session.drain(self.now_ms)
        assert self.session.state is expected

    @precondition(lambda self: self.session.state is not State.CONNECTING)
    @rule()
    def close(self) -> None:
        self.session.closed()
        assert self.session.state is State.CLOSED

    @invariant()
    def promises(self) -> None:
        if not hasattr(self, "session"):
            return
        seqs = [frame.seq for frame in self.out if isinstance(frame, Facts | AiResponse)]
        assert seqs == list(range(self.start_seq + 1, self.start_seq + 1 + len(seqs)))
        alerts = [frame.alert_seq for frame in self.out if isinstance(frame, SystemNotification)]
        assert alerts == list(range(self.start_alert_seq + 1, self.start_alert_seq + 1 + len(alerts)))
        for response_id in {frame.response_id for frame in self.out if isinstance(frame, AiDelta | AiResponse)}:
            of_it = [
                frame
                for frame in self.out
                if isinstance(frame, AiDelta | AiResponse | Facts | Queue) and frame.response_id == response_id
            ]
            ends = [at for at, frame in enumerate(of_it) if isinstance(frame, AiResponse)]
            assert ends in ([], [len(of_it) - 1])
            indexes = [frame.idx for frame in of_it if isinstance(frame, AiDelta)]
            assert indexes == list(range(len(indexes)))


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


# --- resuming -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "known", "reason"),
    [
        (None, True, "first"),
        (None, False, "first"),
        (Resume(), True, "first"),
        (Resume(alert_seq=312), True, "first"),
        (Resume(epoch=EPOCH, seq=20), False, "expired"),
        (Resume(epoch="e-0", seq=20), True, "epoch_changed"),
        (Resume(epoch="e-0", seq=5), True, "epoch_changed"),
        (Resume(epoch=EPOCH, seq=21), True, "epoch_changed"),
        (Resume(epoch=EPOCH, seq=8), True, "too_far"),
        (Resume(epoch=EPOCH, seq=0), True, "too_far"),
        (Resume(epoch=EPOCH, seq=9), True, None),
        (Resume(epoch=EPOCH, seq=15), True, None),
        (Resume(epoch=EPOCH, seq=20), True, None),
    ],
)
def test_resume_plan(client: Resume | None, known: bool, reason: Any) -> None:
    """With a log of 10 to 20, every position has its one outcome."""
    plan = resume_plan(client, epoch=EPOCH, first_seq=10, last_seq=20, known=known)
    if reason is None:
        assert client is not None
        assert plan == ResumePlan(resumed=True, replay_from=client.seq + 1, replay=20 - client.seq, gap_reason=None)
    else:
        assert plan == ResumePlan(resumed=False, replay_from=21, replay=0, gap_reason=reason)


@given(
    seq=st.integers(0, 30),
    epoch=st.sampled_from([EPOCH, "e-0", ""]),
    last_seq=st.integers(0, 30),
    kept=st.integers(0, 30),
    known=st.booleans(),
)
def test_resume_plan_is_all_or_nothing(seq: int, epoch: str, last_seq: int, kept: int, known: bool) -> None:
    """What is replayed is exactly what the client lacks, and the log holds all of it; else a reason is given."""
    first_seq = max(1, last_seq + 1 - kept)
    plan = resume_plan(Resume(epoch=epoch, seq=seq), epoch=EPOCH, first_seq=first_seq, last_seq=last_seq, known=known)
    assert plan.resumed == (plan.gap_reason is None)
    replayed = range(plan.replay_from, plan.replay_from + plan.replay)
    if plan.resumed:
        assert [*range(1, seq + 1), *replayed] == list(range(1, last_seq + 1))
        assert all(first_seq <= each <= last_seq for each in replayed)
    else:
        assert not replayed
        assert not (known and epoch == EPOCH and first_seq <= seq + 1 <= last_seq + 1)


@pytest.mark.parametrize("channel", ["app", "push", "board"])
def test_mode_goes_to_every_channel(channel: Any) -> None:
    """Whether the model writes is told to everybody, and moves no cursor."""
    session = active(channel=channel)
    before = session.seq, session.alert_seq
    session.sending(of("mode"))
    assert (session.seq, session.alert_seq) == before


def test_is_finished_from_the_answer_on() -> None:
    """A response is finished when its answer has been sent, and no place in the queue may follow it."""
    session = active()
    session.sending(of("queue", response_id="r-1"))
    assert not session.is_finished("r-1")
    session.sending(answer(1))
    assert session.is_finished("r-1")
    with pytest.raises(LocalProtocolError):
        session.sending(of("queue.stalled", response_id="r-1"))


def test_is_welcomed_after_the_opening_frames() -> None:
    """Other frames may follow once welcome, and snapshot where it is due, have been sent; not after the end."""
    session = Session(compat=False, now_ms=0, rules=RULES)
    session.receive(HELLO, 0)
    assert not session.is_welcomed
    session.opened(EPOCH, 0, 0)
    session.sending(welcome(session, resumed=False))
    assert not session.is_welcomed
    session.sending(Snapshot())
    assert session.is_welcomed
    session.closed()
    assert not session.is_welcomed
