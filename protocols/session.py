"""The rules of one connection's session as a plain object: frames and times in, verdicts out.

It holds no clock, no socket and no task. The driver reads its clock once per event and hands the time in; asks
``deadline_ms`` how long it may wait; calls ``tick`` when that time has come; and does what ``tick`` returns. All
times are whole milliseconds of one monotonic clock.

A method that raises has changed nothing but the sign of life: ``RemoteProtocolError`` is the client's fault and
becomes an ``error`` frame, ``LocalProtocolError`` is ours.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, Literal, TypeVar

import msgspec

from .errors import CloseCode, ErrorCode, LocalProtocolError, RemoteProtocolError
from .frames import (
    ALERT_DURABLE,
    SESSION_DURABLE,
    Accepted,
    Ack,
    ActionCommand,
    AiDelta,
    AiResponse,
    AlertRaise,
    AlertResponse,
    Cancel,
    ClientFrame,
    ContextSet,
    Error,
    Facts,
    Feedback,
    Frame,
    GapReason,
    Goaway,
    Hello,
    ModeChange,
    Ping,
    Pong,
    PresenceSet,
    Queue,
    Refresh,
    Resume,
    SessionEnd,
    Snapshot,
    SystemNotification,
    UserMessage,
    Welcome,
)

F = TypeVar("F", bound=Frame)
Channel = Literal["app", "push", "board"]


# --- the tables ---------------------------------------------------------------------------------------------


class State(enum.Enum):
    """Where a connection stands."""

    CONNECTING = enum.auto()  # waiting for hello
    OPENING = enum.auto()  # the driver checks the token and finds the session
    ACTIVE = enum.auto()
    DRAINING = enum.auto()  # the node goes away: replies are finished, nothing new is begun
    CLOSED = enum.auto()


class Event(enum.Enum):
    """What the driver tells beside frames."""

    OPENED = enum.auto()
    DRAIN = enum.auto()
    CLOSED = enum.auto()


_COMMANDS: Final[tuple[type[Frame], ...]] = (
    UserMessage,
    Cancel,
    Ack,
    AlertRaise,
    AlertResponse,
    ActionCommand,
    ContextSet,
    PresenceSet,
    Feedback,
    Refresh,
    Ping,
)

#: A client frame that has no entry in its state's row is illegal there.
TRANSITIONS: Final[Mapping[State, Mapping[type[Frame] | Event, State]]] = {
    State.CONNECTING: {
        Hello: State.OPENING,
        Event.DRAIN: State.CLOSED,
        Event.CLOSED: State.CLOSED,
    },
    State.OPENING: {
        Event.OPENED: State.ACTIVE,
        Event.DRAIN: State.CLOSED,
        Event.CLOSED: State.CLOSED,
    },
    State.ACTIVE: {
        **dict.fromkeys(_COMMANDS, State.ACTIVE),
        SessionEnd: State.CLOSED,
        Event.DRAIN: State.DRAINING,
        Event.CLOSED: State.CLOSED,
    },
    State.DRAINING: {
        Cancel: State.DRAINING,
        Ack: State.DRAINING,
        # The ledger has an alert before anybody is told, so the end of this node cannot lose it; waiting could.
        AlertRaise: State.DRAINING,
        AlertResponse: State.DRAINING,
        Ping: State.DRAINING,
        SessionEnd: State.CLOSED,
        Event.DRAIN: State.DRAINING,
        Event.CLOSED: State.CLOSED,
    },
    State.CLOSED: {Event.DRAIN: State.CLOSED, Event.CLOSED: State.CLOSED},
}

#: What a channel may send once it is open. A board hangs on a wall and has nobody who could ask or answer.
MAY_SEND: Final[Mapping[Channel, frozenset[type[Frame]]]] = {
    "app": frozenset({*_COMMANDS, SessionEnd}),
    "push": frozenset({Ack, AlertResponse, Refresh, Ping}),
    "board": frozenset({Ack, Refresh, Ping}),
}
_ALWAYS: Final[tuple[type[Frame], ...]] = (
    Welcome,
    Snapshot,
    Accepted,
    ModeChange,
    Pong,
    Error,
    Goaway,
    *ALERT_DURABLE,
)
#: What may be sent to a channel; None: everything. Neither of the others shows a patient's data.
MAY_GET: Final[Mapping[Channel, tuple[type[Frame], ...] | None]] = {"app": None, "push": _ALWAYS, "board": _ALWAYS}

#: Frames that a device sends by itself. They prove a living line and say nothing about a doctor.
AUTOMATIC: Final = (Ack, Refresh, Ping)


class SessionRules(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one connection."""

    # A browser sends its token in hello; until then the socket costs a place and has proven nothing.
    hello_timeout_ms: int = 5_000
    # Twice this is the longest that a half-open socket hides an alert.
    ping_interval_ms: int = 10_000
    pong_timeout_ms: int = 10_000
    # The same while an alert to this phone is unanswered.
    alert_ping_interval_ms: int = 5_000
    alert_pong_timeout_ms: int = 5_000
    # A phone left on a desk: 30 minutes without a doctor's act end the session.
    session_timeout_ms: int = 1_800_000
    # Bytes that are no frame: five of them within a minute are no accident.
    max_strikes: int = 5
    strike_window_ms: int = 60_000
    # A node exits within 10 s of being told; what is unanswered then is finished by another one.
    drain_timeout_ms: int = 8_000
    # Finished answers that are remembered against a late delta: 10 questions a minute for the 12 hours of a token.
    remembered_responses: int = 7_200


class SendPing(msgspec.Struct, frozen=True):
    """Send a WebSocket ping."""


class Close(msgspec.Struct, frozen=True):
    """Say ``goaway`` and close with ``code``."""

    code: CloseCode


Due = SendPing | Close


# --- the session --------------------------------------------------------------------------------------------


class Session:
    """One connection's part in a session.

    The driver's order: ``receive`` a ``Hello``; check the token; ``opened``; ``sending(welcome)``; then frames both
    ways. A connection of the original design has no ``Hello``: it begins in ``OPENING`` and is ``opened`` at once.

    Args:
        compat: A client of the original design: no ``hello``, no ``welcome``, no ``snapshot``.
        now_ms: When the socket was accepted.
        rules: The limits.
        authenticated: A valid token came with the handshake; without one, anything but ``hello`` closes with 4501.
    """

    def __init__(self, *, compat: bool, now_ms: int, rules: SessionRules, authenticated: bool = False) -> None:
        self.state = State.OPENING if compat else State.CONNECTING
        self.channel: Channel = "app"
        self.epoch = ""
        self.seq = 0
        self.alert_seq = 0
        self.acked_seq = 0
        self._rules = rules
        self._compat = compat
        self._authenticated = authenticated
        self.heard_ms = now_ms
        self._hello_by_ms = now_ms + rules.hello_timeout_ms
        self._idle_since_ms = now_ms
        self._pinged_ms = now_ms
        self._silent_since_ms: int | None = None  # the first ping that nothing has followed yet
        self._alert_open = False
        self._token_expires_ms: int | None = None
        self._drained_by_ms: int | None = None
        self._strikes_ms: list[int] = []  # the last of them, oldest first
        self._verdict: CloseCode | None = None
        self._is_told = False  # the verdict has been returned once
        self._welcome_due = False
        self._snapshot_due = False
        self._next_idx: dict[str, int] = {}
        self._finished: OrderedDict[str, None] = OrderedDict()

    # What the client does.

    def receive(self, frame: ClientFrame, now_ms: int) -> None:
        """Take a frame of the client: it is legal now, and noted.

        Raises:
            RemoteProtocolError: It is not legal; the state is what it was. ``close`` is set where the connection
                cannot go on.
        """
        self.heard(now_ms)
        client_msg_id = getattr(frame, "client_msg_id", None)
        if self._token_expires_ms is not None and now_ms >= self._token_expires_ms:
            raise RemoteProtocolError(
                ErrorCode.TOKEN_EXPIRED, client_msg_id=client_msg_id, close=CloseCode.TOKEN_CHANGED
            )
        after = TRANSITIONS[self.state].get(type(frame))
        if after is None:
            raise self._illegal(client_msg_id)
        match frame:
            case Hello():
                self.channel = frame.channel
            case _ if type(frame) not in MAY_SEND[self.channel]:
                raise RemoteProtocolError(ErrorCode.FORBIDDEN, "type: not on this channel", client_msg_id=client_msg_id)
            case Ack():
                self.acked(frame.seq, epoch=frame.epoch)
            case SessionEnd():
                self._verdict = CloseCode.NORMAL
            case _:
                pass
        self.state = after
        if not isinstance(frame, AUTOMATIC) and not (isinstance(frame, AlertResponse) and frame.answer == "delivered"):
            self._idle_since_ms = now_ms

    def _illegal(self, client_msg_id: str | None) -> RemoteProtocolError:
        """Why a frame has no entry in the row of this state."""
        if self.state is State.CONNECTING and not self._authenticated:
            return RemoteProtocolError(
                ErrorCode.UNAUTHORIZED, client_msg_id=client_msg_id, close=CloseCode.UNAUTHORIZED
            )
        if self.state is State.DRAINING:
            return RemoteProtocolError(
                ErrorCode.QUEUE_FULL, "type: not while draining; reconnect first", client_msg_id=client_msg_id
            )
        if self.state is State.CLOSED:
            return RemoteProtocolError(ErrorCode.SESSION_EXPIRED, client_msg_id=client_msg_id)
        detail = "type: hello must come first" if self.state is State.CONNECTING else "type: not legal now"
        return RemoteProtocolError(ErrorCode.BAD_REQUEST, detail, client_msg_id=client_msg_id)

    def heard(self, now_ms: int) -> None:
        """Anything came from the client, a WebSocket pong too: the line lives."""
        self.heard_ms = now_ms
        self._silent_since_ms = None

    def strike(self, now_ms: int) -> Close | None:
        """Bytes came that are no frame. Returns the verdict if that was one too many; ``tick`` repeats it."""
        self.heard(now_ms)
        self._strikes_ms = [*self._strikes_ms, now_ms][-self._rules.max_strikes :]
        if self.state is State.CONNECTING and not self._authenticated:
            return self._decide(CloseCode.UNAUTHORIZED)
        within_ms = now_ms - self._strikes_ms[0]
        if len(self._strikes_ms) == self._rules.max_strikes and within_ms <= self._rules.strike_window_ms:
            return self._decide(CloseCode.TOO_MANY_ERRORS)
        return None

    def acked(self, seq: int, *, epoch: str) -> None:
        """The client holds all durable frames up to ``seq``; ``receive`` calls this. A lower one changes nothing.

        Raises:
            RemoteProtocolError: Another epoch, or more than was ever sent.
        """
        if epoch != self.epoch:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "epoch: not the epoch of this session")
        if seq > self.seq:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "seq: not sent yet")
        self.acked_seq = max(self.acked_seq, seq)

    # What the driver decides.

    def opened(self, epoch: str, seq: int, alert_seq: int, *, now_ms: int | None = None, idle_ms: int = 0) -> None:
        """The token is good and the session is found.

        Args:
            epoch: Of the session's log.
            seq: The last one the client holds: its own ``resume.seq`` when it is resumed, else the log's last.
                The next durable frame has ``seq + 1``.
            alert_seq: The same for the department's alerts.
            now_ms: When; None leaves the session's idle time as it runs since the socket was accepted.
            idle_ms: How long no doctor has acted in this session, on whatever connection.
        Raises:
            LocalProtocolError: The connection is not opening.
        """
        self._happened(Event.OPENED)
        self.epoch, self.seq, self.alert_seq, self.acked_seq = epoch, seq, alert_seq, seq
        self._welcome_due = not self._compat
        self._idle_since_ms = (self._idle_since_ms if now_ms is None else now_ms) - idle_ms

    def token_expires(self, at_ms: int) -> None:
        """The token that now speaks for this connection runs out at ``at_ms``: of the handshake, of a ``refresh``."""
        self._token_expires_ms = at_ms

    def alert_open(self, is_open: bool) -> None:
        """An alert to this phone is unanswered, or no longer: the heartbeat is quicker or normal."""
        self._alert_open = is_open

    def drain(self, now_ms: int) -> None:
        """The node goes away: replies are finished, for ``drain_timeout_ms`` at most; repeated, it changes nothing.

        A connection that is not open yet has nothing to finish: ``tick`` closes it at once.
        """
        before = self.state
        self._happened(Event.DRAIN)
        if before is State.ACTIVE:
            self._drained_by_ms = now_ms + self._rules.drain_timeout_ms
        elif before in (State.CONNECTING, State.OPENING):
            self._decide(CloseCode.RESTART)

    def closed(self) -> None:
        """The socket is gone, whoever closed it; repeated, it changes nothing."""
        self._happened(Event.CLOSED)

    def _happened(self, event: Event) -> None:
        after = TRANSITIONS[self.state].get(event)
        if after is None:
            raise LocalProtocolError(f"{event.name} while {self.state.name}")
        self.state = after

    # What the server sends.

    @property
    def unanswered(self) -> frozenset[str]:
        """Response ids this connection has begun to show and not seen the end of; empty: drained."""
        return frozenset(self._next_idx)

    @property
    def is_welcomed(self) -> bool:
        """Whether the opening frames have been sent, so that others may follow."""
        return self.state in (State.ACTIVE, State.DRAINING) and not (self._welcome_due or self._snapshot_due)

    def is_finished(self, response_id: str) -> bool:
        """Whether this connection was sent the answer: neither text nor a place in the queue may follow it."""
        return response_id in self._finished

    def next_idx(self, response_id: str) -> int:
        """The ``idx`` of the next ``ai_delta`` of a response on this connection, from 0."""
        return self._next_idx.get(response_id, 0)

    def sending(self, frame: F) -> F:
        """Check a frame just before it is written, in the order of writing, and note it.

        Raises:
            LocalProtocolError: The frame breaks the order that clients rely on; nothing is noted.
        """
        self._check_state(frame)
        self._check_channel(frame)
        if isinstance(frame, SESSION_DURABLE) and (frame.epoch, frame.seq) != (self.epoch, self.seq + 1):
            raise LocalProtocolError(f"seq {frame.seq} after {self.seq}, or another epoch")
        if isinstance(frame, ALERT_DURABLE) and frame.alert_seq != self.alert_seq + 1:
            raise LocalProtocolError(f"alert_seq {frame.alert_seq} after {self.alert_seq}")
        self._check_response(frame)
        if isinstance(frame, SESSION_DURABLE):
            self.seq = frame.seq
        elif isinstance(frame, ALERT_DURABLE):
            self.alert_seq = frame.alert_seq
        self._note(frame)
        return frame

    def alert_sent(self, alert_seq: int) -> None:
        """``sending`` for a durable frame of the department's alerts that was encoded once for all its phones.

        Whether the frame may be sent on this channel is the encoder's part.

        Raises:
            LocalProtocolError: A hole, a repetition, or alerts before welcome and snapshot; nothing is noted.
        """
        if not self.is_welcomed:
            raise LocalProtocolError(f"alert_seq {alert_seq} while {self.state.name}")
        if alert_seq != self.alert_seq + 1:
            raise LocalProtocolError(f"alert_seq {alert_seq} after {self.alert_seq}")
        self.alert_seq = alert_seq

    def alerts_from(self, alert_seq: int) -> None:
        """Where this connection stands in the alerts is known only now: nothing was sent of them before."""
        self.alert_seq = alert_seq

    def repeating(self, frame: F) -> F:
        """Check a durable frame that is sent once more, as the original answer to a duplicate, and note it.

        It keeps its ``seq``, by which the client knows it; the cursor stays where it is.

        Raises:
            LocalProtocolError: It is not of this epoch, or it has not had its turn yet and belongs to ``sending``.
        """
        self._check_state(frame)
        self._check_channel(frame)
        is_past = isinstance(frame, SESSION_DURABLE) and frame.epoch == self.epoch and 1 <= frame.seq <= self.seq
        if not is_past or self._welcome_due or self._snapshot_due:
            raise LocalProtocolError("only a durable frame of the past can be repeated")
        if isinstance(frame, AiResponse):
            self._finish(frame.response_id)
        return frame

    def _check_state(self, frame: Frame) -> None:
        if isinstance(frame, Goaway) or (isinstance(frame, Error) and self.state is not State.CLOSED):
            return  # a verdict and a refusal have no order
        if self.state not in (State.ACTIVE, State.DRAINING):
            raise LocalProtocolError(f"{type(frame).__name__} while {self.state.name}")
        if self._welcome_due != isinstance(frame, Welcome):
            raise LocalProtocolError("the first frame is a welcome, and no other one is")
        if self._snapshot_due != isinstance(frame, Snapshot):
            raise LocalProtocolError("a snapshot follows a welcome without resume, and nothing else")
        if isinstance(frame, Welcome):
            last = self.seq + frame.replay
            if (frame.epoch, frame.seq) != (self.epoch, last) or frame.alert_seq < self.alert_seq:
                raise LocalProtocolError("welcome counts otherwise than opened")
            if frame.resumed == (frame.gap_reason is not None) or (frame.replay and not frame.resumed):
                raise LocalProtocolError("welcome is either resumed or says why not")

    def _check_channel(self, frame: Frame) -> None:
        may_get = MAY_GET[self.channel]
        if may_get is None:
            return
        if not isinstance(frame, may_get):
            raise LocalProtocolError(f"{type(frame).__name__} on channel {self.channel}")
        if isinstance(frame, Snapshot) and (frame.active_patient or frame.open_responses or frame.pending_actions):
            raise LocalProtocolError(f"a patient's data on channel {self.channel}")
        if self.channel == "push":
            alerts = frame.open_alerts if isinstance(frame, Snapshot) else (frame,)
            if any(isinstance(each, SystemNotification) and each.patient_id is not None for each in alerts):
                raise LocalProtocolError("a patient's id on channel push")

    def _check_response(self, frame: Frame) -> None:
        if isinstance(frame, Queue | Facts | AiDelta | AiResponse) and frame.response_id in self._finished:
            raise LocalProtocolError(f"{type(frame).__name__} after the answer's end")
        if isinstance(frame, AiDelta) and frame.idx != self.next_idx(frame.response_id):
            raise LocalProtocolError(f"idx {frame.idx} instead of {self.next_idx(frame.response_id)}")

    def _note(self, frame: Frame) -> None:
        match frame:
            case Welcome():
                self._welcome_due = False
                self._snapshot_due = not frame.resumed
            case Snapshot():
                self._snapshot_due = False
                for each in frame.open_responses:
                    self._next_idx.setdefault(each.response_id, 0)
            case Accepted(response_id=str(response_id)) if response_id not in self._finished:
                self._next_idx.setdefault(response_id, 0)
            case Queue() | Facts():
                self._next_idx.setdefault(frame.response_id, 0)
            case AiDelta():
                self._next_idx[frame.response_id] = frame.idx + 1
            case AiResponse():
                self._finish(frame.response_id)
            case _:
                pass

    def _finish(self, response_id: str) -> None:
        self._next_idx.pop(response_id, None)
        self._finished[response_id] = None
        if len(self._finished) > self._rules.remembered_responses:
            self._finished.popitem(last=False)

    # Time.

    def _heartbeat_ms(self) -> tuple[int, int]:
        rules = self._rules
        if self._alert_open:
            return rules.alert_ping_interval_ms, rules.alert_pong_timeout_ms
        return rules.ping_interval_ms, rules.pong_timeout_ms

    def _ends(self) -> list[tuple[int, CloseCode]]:
        """When this connection ends by itself, and why; where several come at once, the first row counts."""
        ends: list[tuple[int, CloseCode]] = []
        if self._token_expires_ms is not None:
            ends.append((self._token_expires_ms, CloseCode.TOKEN_CHANGED))
        if self.state is State.CONNECTING:
            code = CloseCode.BAD_PROTOCOL if self._authenticated else CloseCode.UNAUTHORIZED
            ends.append((self._hello_by_ms, code))
        elif self.state is not State.OPENING and self.channel == "app":
            # Nobody types on a board or in an extension: their alerts go on until the token ends.
            ends.append((self._idle_since_ms + self._rules.session_timeout_ms, CloseCode.SESSION_TIMEOUT))
        if self._drained_by_ms is not None:
            ends.append((self._drained_by_ms, CloseCode.RESTART))
        if self._silent_since_ms is not None:
            ends.append((self._silent_since_ms + self._heartbeat_ms()[1], CloseCode.NO_PONG))
        return ends

    def deadline_ms(self) -> int | None:
        """When ``tick`` must be called next, at the latest; None: never again."""
        if self._verdict is not None:
            return None if self._is_told else 0
        if self.state is State.CLOSED:
            return None
        ping_at_ms = self._pinged_ms + self._heartbeat_ms()[0]
        return min([ping_at_ms, *(at_ms for at_ms, _ in self._ends())])

    def tick(self, now_ms: int) -> tuple[Due, ...]:
        """What is due at ``now_ms``; too early or too late a call is harmless, and a verdict is repeated."""
        if self._verdict is None and self.state is not State.CLOSED:
            code = next((code for at_ms, code in self._ends() if at_ms <= now_ms), None)
            if code is not None:
                self._decide(code)
        if self._verdict is not None:
            self._is_told = True
            return (Close(self._verdict),)
        if self.state is State.CLOSED or now_ms < self._pinged_ms + self._heartbeat_ms()[0]:
            return ()
        self._pinged_ms = now_ms
        if self._silent_since_ms is None:
            self._silent_since_ms = now_ms
        return (SendPing(),)

    def _decide(self, code: CloseCode) -> Close:
        """The first verdict stays."""
        if self._verdict is None:
            self._verdict = code
        return Close(self._verdict)


# --- resuming -----------------------------------------------------------------------------------------------


class ResumePlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a session goes on: ``replay`` frames from ``replay_from``, or a snapshot and the reason for it."""

    resumed: bool
    replay_from: int
    replay: int
    gap_reason: GapReason | None


def resume_plan(client: Resume | None, *, epoch: str, first_seq: int, last_seq: int, known: bool) -> ResumePlan:
    """All or nothing: either every frame that the client lacks can be replayed, or none is.

    Args:
        client: Where the client stands; None or an empty epoch: it has never been here.
        epoch: Of the session's log now.
        first_seq: The oldest frame that the log still holds; ``last_seq + 1`` if it holds none.
        last_seq: The newest frame that the log ever had.
        known: The session lives; False: it ran out, and this is a new one under its name.
    """
    reason: GapReason | None = None
    if client is None or not client.epoch:
        reason = "first"
    elif not known:
        reason = "expired"
    elif client.epoch != epoch or client.seq > last_seq:
        # A client ahead of its log has frames that the log lost: it is not the log that the client knew.
        reason = "epoch_changed"
    elif client.seq + 1 < first_seq:
        reason = "too_far"
    else:
        return ResumePlan(resumed=True, replay_from=client.seq + 1, replay=last_seq - client.seq, gap_reason=None)
    return ResumePlan(resumed=False, replay_from=last_seq + 1, replay=0, gap_reason=reason)


#: A client at 0 has seen no alert, be it that there was none or that it could not be told. Beyond this many it gets
#: the open ones instead of the whole past.
MOST_FROM_NOTHING: Final = 256


class AlertPlan(msgspec.Struct, frozen=True, kw_only=True):
    """After which ``alert_seq`` a client goes on, and the newest there is.

    ``gap_reason``: why it cannot go on from where it stands; None: nothing is missing but what follows ``after``.
    ``is_away``: the ledger could not be asked, and ``last_seq`` is only what the client knows.
    """

    after: int
    last_seq: int
    gap_reason: GapReason | None = None
    is_away: bool = False


def alert_plan(client: Resume | None, *, first_seq: int, last_seq: int) -> AlertPlan:
    """How a client goes on with its department's alerts: from where it stands, or from the newest with a snapshot.

    Args:
        client: Where the client stands; None, or neither epoch nor alert: it has never been here.
        first_seq: The oldest alert event that the ledger still holds; ``last_seq + 1`` if it holds none.
        last_seq: The newest that the ledger ever had.
    """
    reason: GapReason
    if client is None or not (client.epoch or client.alert_seq):
        reason = "first"
    elif client.alert_seq > last_seq:
        # The client has alerts that the ledger lost: it is not the ledger that the client knew.
        reason = "epoch_changed"
    elif client.alert_seq + 1 < first_seq or (client.alert_seq == 0 and last_seq > MOST_FROM_NOTHING):
        reason = "too_far"
    else:
        return AlertPlan(after=client.alert_seq, last_seq=last_seq)
    return AlertPlan(after=last_seq, last_seq=last_seq, gap_reason=reason)
