"""One WebSocket: the read loop, the write loop and the keepalive that drive ``protocols.session``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

import msgspec
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from chatd import metrics, tasks
from chatd.alerts.presence import Here
from chatd.clock import epoch_ms, iso_ms
from chatd.gateway import commands
from chatd.gateway.auditing import note, token_refused
from chatd.gateway.auth import Principal, TokenError, check_path
from chatd.gateway.gate import REVOKED
from chatd.gateway.limits import Pace
from chatd.gateway.node import FLUSH_S, Node, TurnNotReached
from chatd.gateway.outbox import Lane, Outbox, SlowConsumer, Words
from chatd.gateway.pools import Member, Variant
from chatd.gateway.transport import EXTENSION, Transport
from chatd.gateway.welcome import welcome
from chatd.logs import error_name
from chatd.replies.sessions import SessionLost, SessionsUnavailable
from context.store import ContextNotLoaded, DepartmentUnknown, StoreUnavailable
from protocols import codec
from protocols.errors import CLOSE_REASONS, ChatdError, CloseCode, ErrorCode, RemoteProtocolError, error_text
from protocols.frames import (
    PROTOCOL,
    PROTOCOL_MSGPACK,
    RATE_EXEMPT,
    AiDelta,
    AiResponse,
    ClientFrame,
    Context,
    Error,
    Facts,
    Goaway,
    Hello,
    Id,
    ModeChange,
    Queue,
    ServerFrame,
)
from protocols.session import Close, SendPing, Session, SessionRules, State

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: After an unavailable Redis a phone comes back after this, plus its own jitter.
_COME_BACK_MS = 1_000
#: After a full gateway, where no other has room either.
_FULL_MS = 5_000
#: How often a connection's deadlines are looked at, at least.
_LOOK_MS = 1_000
#: A phone that comes from a gateway that has died may bring a run whose lease (3 s) has yet to lapse.
_NEW_MS = 10_000
_ANSWER = b'{"type":"ai_response"'
#: How a connection ends that is not let in; what does not stand here is 4501.
_CLOSES = {
    ErrorCode.TOKEN_EXPIRED: CloseCode.TOKEN_CHANGED,
    ErrorCode.FORBIDDEN: CloseCode.FORBIDDEN_PATH,
    # No keys, or no list of phones: the fault is not the phone's, and passes.
    ErrorCode.INTERNAL: CloseCode.INSUFFICIENT_STATE,
}


def _close_code(error: RemoteProtocolError) -> CloseCode:
    """How a connection ends that is not let in."""
    if error.detail == REVOKED:
        return CloseCode.REVOKED
    return _CLOSES.get(error.code, CloseCode.UNAUTHORIZED)


class Closing(Exception):
    """The connection shall be closed with this code; raised inside its own tasks only."""

    def __init__(self, code: CloseCode, *, after_ms: int = 0) -> None:
        super().__init__(code.name)
        self.code = code
        self.after_ms = after_ms


class Connection:
    """One phone's connection, from handshake to close.

    ``key`` and ``epoch`` name its session once it is open; the phone knows the epoch as ``session.epoch``, which stays
    as it was told where the session has gone on to another and nothing was lost. ``ring`` and ``close_soon`` may be
    called from anywhere on the event loop and never wait.
    """

    def __init__(self, websocket: WebSocket, node: Node) -> None:
        self._websocket = websocket
        self.node = node
        self.department = websocket.path_params["department"]
        self.user_id = websocket.path_params["user_id"]
        self.connection_id = node.new_connection_id()
        self._opened_ms = 0
        self.channel: Literal["app", "push", "board"] = "app"
        self.lang = ""
        self.key: str | None = None
        self.epoch = ""
        self.session_id = ""
        #: It was let in while Redis was away: it hears of alerts and answers them, and has no session.
        self.is_alerts_only = False
        self._is_recalled = False
        self.compat = False
        self.compat_text = False
        self.principal: Principal | None = None
        #: As presence is told of it, from when its token has been checked.
        self.here: Here | None = None
        self.device_id: str | None = None
        self.device_kind: Literal["phone", "computer"] | None = None
        self.active_patient_id: str | None = None
        #: Durable frames up to here are the client's; None until the session is open.
        self.cursor: int | None = None
        #: Durable frames up to here were not sent on this connection and are not held by the client: an answer
        #: among them is sent again to whoever asks with its id again.
        self.repeats_up_to = 0
        #: The session's log when it was opened here; the open record that came with it is as new.
        self.opened_seq = 0
        #: Its place among the department's phones, from before its position in the alerts is looked for.
        self.member: Member | None = None
        #: Its position in the alerts is not known: the ledger could not be asked.
        self.is_stranger = False
        self._alerts_after: int | None = None
        self._msgpack = False
        self._received = 0
        self._outbox = Outbox(node.settings.outbox_bytes)
        #: The session's log is, or may be, ahead of the cursor; the task that reads on, while there is one.
        self._behind = False
        self._catching_up: asyncio.Task[None] | None = None
        #: The newest event that was rung for before the cursor was known.
        self._rung = 0
        #: Its turn among the sessions that rest; given by the node.
        self.turn = 0
        #: When ``tick`` is to be called; None: not now.
        self.due_ms: int | None = None
        #: What the phone was last told of the model; None before its welcome.
        self.mode_told: ModeChange | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_told = False
        self._close_wanted: asyncio.Future[Closing] = asyncio.get_running_loop().create_future()
        self._transport: Transport | None = websocket.scope.get("extensions", {}).get(EXTENSION)
        self._limits = codec.CodecLimits(
            max_bytes=node.settings.max_frame_bytes, max_content_chars=node.settings.max_content_chars
        )
        self.session: Session

    @property
    def waiting_bytes(self) -> int:
        """What waits for this phone to read."""
        return self._outbox.waiting_bytes

    # --- from handshake to close ---

    async def serve(self) -> None:
        """Run the connection to its end; the socket is closed when this returns."""
        headers = self._websocket.headers
        if not self.node.gate.is_our_page(headers.get("origin"), headers.get("host", "")):
            await self._websocket.close()  # before accept: HTTP 403
            metrics.HANDSHAKES.labels("foreign_origin").inc()
            return
        try:
            await self._serve()
        finally:
            self._gone.set_result(None)

    async def _serve(self) -> None:
        offered = self._websocket.scope.get("subprotocols", [])
        chosen = next((name for name in offered if name in (PROTOCOL, PROTOCOL_MSGPACK)), None)
        self.compat = not offered
        self.compat_text = self.compat and self._websocket.query_params.get("compat") == "text"
        self._msgpack = chosen == PROTOCOL_MSGPACK
        await self._websocket.accept(subprotocol=chosen)
        now_ms = self._opened_ms = self._now_ms()
        settings = self.node.settings
        self.session = Session(
            compat=self.compat,
            now_ms=now_ms,
            authenticated="authorization" in self._websocket.headers,
            rules=SessionRules(
                hello_timeout_ms=round(settings.hello_timeout_s * 1000),
                ping_interval_ms=round(settings.ping_interval_s * 1000),
                pong_timeout_ms=round(settings.ping_timeout_s * 1000),
                session_timeout_ms=round(settings.session_timeout_s * 1000),
                max_strikes=settings.max_strikes,
            ),
        )
        if self._transport is not None:
            self._transport.on_heard = self._heard
        closing = Closing(CloseCode.NORMAL)
        try:
            if self.node.full:
                # Not for good, as for a person with too many phones: another gateway may have room for its alerts.
                raise Closing(CloseCode.FULL, after_ms=_FULL_MS)
            if offered and chosen is None:
                raise Closing(CloseCode.UNSUPPORTED_VERSION)
            if self.node.draining:
                raise Closing(CloseCode.RESTART, after_ms=_COME_BACK_MS)
            self.node.opened(self)
            closing = await self._converse()
        # A traceback holds frames, these the task that failed, and that the error: a ring, with the last words read.
        except Closing as wanted:
            closing = wanted.with_traceback(None)
        except WebSocketDisconnect as gone:
            gone.with_traceback(None)
            metrics.HANDSHAKES.labels("gone").inc()
            return
        except Exception as error:  # the last resort: the phone gets a code, the log gets the place
            log.error("connection_failed", connection_id=self.connection_id, error=error_name(error))
            error.with_traceback(None)
            closing = Closing(CloseCode.RESTART, after_ms=_COME_BACK_MS)
        finally:
            self.node.left(self)
            if self._transport is not None:
                self._transport.on_heard = self._transport.on_writable = None
        await self._close(closing)

    async def _converse(self) -> Closing:
        """Authorise, open the session and work until somebody wants to close; returns how."""
        hello = await self._unless_closing(self._hello())
        await self._unless_closing(self._authorise(hello))
        metrics.HANDSHAKES.labels("opened").inc()
        log.info(
            "opened",
            connection_id=self.connection_id,
            user_id=self.user_id,
            department=self.department,
            channel=self.channel,
            compat=self.compat,
        )
        loops: list[asyncio.Task[None]] = [
            asyncio.create_task(self._write_loop()),
        ]
        self.due_ms = self._now_ms()
        try:
            resume_from = await self._unless_closing(self._open(hello))
            self.node.seat(self)
            note(self, "session.open", detail=self.channel)
            del hello  # and its token, for as long as the connection lives
            # Alerts overtake whatever waits, but not the welcome.
            self._alerts_after = self._outbox.replies_offered
            self._admit_alerts()
            loops.append(asyncio.create_task(self._read_loop()))
            if self.channel == "app" and self.key is not None:
                # A push extension and a wall board hear of alerts only: the session's log is not theirs.
                self.cursor = resume_from
                if max(self._rung, self.opened_seq) > resume_from:
                    self._catch_up_soon()
                # What is being written now is heard from here on, wherever it is followed for the session.
                self.node.attend(self)
            watched: list[asyncio.Future[Any]] = [*loops, self._close_wanted]
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if self._close_wanted.done():
                return self._close_wanted.result()
            for loop in loops:
                if loop.done():
                    loop.result()  # raises: Closing, WebSocketDisconnect or a fault
            return Closing(CloseCode.NORMAL)
        finally:
            # It does not begin anew: nothing rings here any more once the node has let go of the phone.
            self.cursor, self.due_ms = None, None
            await tasks.end([*loops, *([self._catching_up] if self._catching_up is not None else [])])

    async def _unless_closing(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``; raises Closing where somebody wants to close before it is there."""
        task = asyncio.create_task(work)
        try:
            watched: list[asyncio.Future[Any]] = [task, self._close_wanted]
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if self._close_wanted.done():
                raise self._close_wanted.result()
            return task.result()
        finally:
            await tasks.end([task])

    async def _hello(self) -> Hello:
        """The first frame; until it comes, anything else is answered as the session's rules say."""
        while not self.compat:
            try:
                async with asyncio.timeout(self._until_due_s()):
                    frame = await self._receive()
                self.session.receive(frame, self._now_ms())
                if isinstance(frame, Hello):
                    return frame
            except TimeoutError:
                self._raise_due()
            except RemoteProtocolError as error:
                self.send_error(error)
                if error.strike:
                    self.session.strike(self._now_ms())
                if error.close is not None:
                    raise Closing(error.close) from None
                self._raise_due()
        return Hello()

    def _until_due_s(self) -> float:
        deadline_ms = self.session.deadline_ms()
        return 1.0 if deadline_ms is None else min(max((deadline_ms - self._now_ms()) / 1000, 0.01), 1.0)

    def _raise_due(self) -> None:
        for due in self.session.tick(self._now_ms()):
            if isinstance(due, Close):
                raise Closing(due.code)

    async def _authorise(self, hello: Hello) -> None:
        self.lang = hello.lang
        self.device_id, self.device_kind = hello.device_id, hello.device_kind
        headers = self._websocket.headers.getlist("authorization")
        header = headers[0] if headers else ""
        scheme, _, token = header.partition(" ")
        # Of two, a proxy may have checked the other one.
        if len(headers) > 1 or (header and scheme.lower() != "bearer"):
            raise Closing(CloseCode.UNAUTHORIZED)
        principal = await self._verify(token.strip() or hello.token or "")
        if hello.channel != "app":
            self.node.left(self)
            self.channel = hello.channel
            self.node.opened(self)
        self._is_here(principal)

    def _is_here(self, principal: Principal) -> None:
        self.principal = principal
        self.here = Here(
            department=self.department, user_id=self.user_id, channel=self.channel, roles=tuple(principal.roles)
        )
        self.node.came(self.here)

    async def _verify(self, token: str) -> Principal:
        principal: Principal | None = None
        try:
            principal = await self.node.gate.admit(token, device_id=self.device_id)
            self._take(principal)
        except RemoteProtocolError as error:
            audit = self.node.audit
            # The path may hold anything that somebody typed, and a row stays for years.
            user = audit.named(self.user_id) if principal is None else principal.user_id
            department = self.department if self.node.knows(self.department) else ""
            token_refused(audit, error, user=user, department=department)
            if error.detail is not None and error.detail.startswith("device"):
                self.send_error(error)
            raise Closing(_close_code(error), after_ms=_COME_BACK_MS) from None
        return principal

    def _take(self, principal: Principal) -> None:
        """Let somebody in here until their token ends. Raises RemoteProtocolError: forbidden."""
        check_path(principal, self.department, self.user_id)
        self.node.gate.require(principal, "hello", self.department)
        left_ms = round(principal.expires_at_s * 1000) - epoch_ms(self.node.clock.now())
        self.session.token_expires(self._now_ms() + max(0, left_ms))

    async def renew(self, token: str) -> None:
        """Take a fresh token of the same user; a bad one leaves the old one in force.

        Raises:
            RemoteProtocolError: unauthorized, token_expired, forbidden or internal.
        """
        try:
            principal = await self.node.gate.admit(token, device_id=self.device_id)
            self._take(principal)
        except TokenError as error:
            raise RemoteProtocolError(error.code) from None
        self._is_here(principal)
        if self.member is not None:
            self.member.roles = tuple(principal.roles)
        # The new one may end sooner.
        self.due_ms = self._now_ms()

    def look_at_standing(self) -> None:
        """Close it where its token, its person or its phone has been revoked since it was let in."""
        if self.principal is not None and (code := self.node.gate.standing(self.principal, self.device_id)) is not None:
            self.close_soon(code)

    async def _open(self, hello: Hello) -> int:
        try:
            async with self.node.opening():
                return await welcome(self, hello)
        except (SessionsUnavailable, StoreUnavailable, ContextNotLoaded, TurnNotReached) as error:
            self._note_not_begun(error)
            raise Closing(CloseCode.INSUFFICIENT_STATE, after_ms=_COME_BACK_MS) from None
        except DepartmentUnknown as error:
            self._note_not_begun(error)
            raise Closing(CloseCode.FORBIDDEN_PATH) from None

    def _note_not_begun(self, error: ChatdError) -> None:
        """Say why, because several causes share a close code."""
        log.warning("session_not_begun", connection_id=self.connection_id, error=error_name(error))

    def join_alerts(self) -> None:
        """From here on no alert of the department passes this phone by; they are sent once its welcome has left."""
        pools, principal = self.node.pools, self.principal
        if pools is None or principal is None:
            return
        variant = Variant(msgpack=self._msgpack, push=self.channel == "push", original=self.compat)
        self.member = Member(
            session=self.session,
            outbox=self._outbox,
            variant=variant,
            close_soon=self.close_soon,
            transport=self._transport,
            user_id=self.user_id,
            roles=tuple(principal.roles),
        )
        if self._transport is not None:
            self._transport.on_writable = self.member.on_writable
        pools.join(self.department, self.member)

    def _admit_alerts(self) -> None:
        member, after = self.member, self._alerts_after
        if member is None or self.node.pools is None or after is None or self._outbox.replies_written < after:
            return
        self._alerts_after = None
        self.node.pools.place(member, is_stranger=self.is_stranger)

    # --- reading ---

    async def _receive(self) -> ClientFrame:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        self.session.heard(self._now_ms())
        text, data = message.get("text"), message.get("bytes")
        self._received += 1
        context = None
        if self.compat:
            frame_id = f"{self.connection_id}:{self._received}"
            context = codec.CompatContext(user_id=self.user_id, department=self.department, frame_id=frame_id)
        return codec.decode(
            text if text is not None else data or b"",
            limits=self._limits,
            compat=context,
            msgpack=self._msgpack and text is None,
        )

    async def _read_loop(self) -> None:
        pace = Pace(self.node.settings.commands_per_second, self._now_ms())
        while True:
            cost = 0
            try:
                frame = await self._receive()
                cost = 0 if isinstance(frame, RATE_EXEMPT) else 1
                metrics.FRAMES_IN.labels(str(frame.__struct_config__.tag)).inc()
                self.session.receive(frame, self._now_ms())
                await commands.handle(self, frame)
            except RemoteProtocolError as error:
                cost = 2  # what is refused again and again has no use, and costs the others as much
                if self.session.state is State.CLOSED:
                    # Its last act, the end of its session, could not be done now: nothing may be sent any more.
                    raise Closing(CloseCode.INSUFFICIENT_STATE, after_ms=_COME_BACK_MS) from None
                self.send_error(error)
                if error.strike:
                    self.session.strike(self._now_ms())
                if error.close is not None:
                    raise Closing(error.close) from None
                self._apply_due()
            except SessionLost:
                raise Closing(CloseCode.INSUFFICIENT_STATE) from None
            wait_ms = pace.spend(cost, self._now_ms())
            if wait_ms > 0 and cost:
                await asyncio.sleep(wait_ms / 1000)

    # --- writing ---

    def send(self, frame: ServerFrame) -> None:
        """Queue a frame that is not from the session's log; closes a phone that does not read."""
        self._queue(frame if self.compat else self.session.sending(frame))

    def _queue(self, frame: ServerFrame) -> None:
        data = self._encode(frame)
        if data is None:
            return
        metrics.FRAMES_OUT.labels(str(frame.__struct_config__.tag)).inc()
        self._offer(data)

    def send_error(self, error: RemoteProtocolError) -> None:
        """Tell the phone why a command was not taken."""
        metrics.ERRORS.labels(error.code.value).inc()
        self.send(
            Error(
                code=error.code.value,
                message=error_text(error.code, self.lang),
                retryable=commands.is_retryable(error.code),
                retry_after_ms=error.retry_after_ms,
                client_msg_id=error.client_msg_id,
                detail=error.detail,
            )
        )

    def send_event(self, seq: int, stored: bytes, *, again: bool = False) -> None:
        """Queue a durable frame of the log; ``again`` for one that is asked for a second time and moves no cursor."""
        frame = codec.decode_server(codec.with_position(stored, self.session.epoch, seq))
        if isinstance(frame, AiResponse):
            # The answer replaces its text: what still waits of it must not follow.
            self._outbox.drop_deltas(frame.response_id)
        if again:
            self._queue(self.session.repeating(frame))
            return
        self._queue(self.session.sending(frame))
        self.cursor = seq
        if isinstance(frame, Facts):
            self.node.begun(self, frame.response_id)
        elif isinstance(frame, AiResponse):
            self.node.answered(self, frame.response_id)
        if isinstance(frame, Context) and seq > self.opened_seq:
            # Another phone of the session has switched, maybe on another gateway: the fence stands where it shows.
            self.active_patient_id = None if frame.patient is None else frame.patient.patient_id

    def may_repeat(self, seq: int) -> bool:
        """Whether a frame of the past goes out once more when its command comes again.

        A client of the original design gets no ``accepted``: the answer is all that can tell it that it was heard.
        """
        return seq <= ((self.cursor or 0) if self.compat else self.repeats_up_to)

    def _encode(self, frame: ServerFrame) -> bytes | None:
        if self.compat:
            return codec.compat_encode(frame, "text" if self.compat_text else "json", lang=self.lang)
        return codec.encode(frame, msgpack=self._msgpack)

    def _offer(self, data: bytes) -> None:
        try:
            self._outbox.offer(data)
        except SlowConsumer as slow:
            self._too_slow(slow)

    def _too_slow(self, slow: SlowConsumer) -> None:
        metrics.SLOW_CONSUMERS.inc()
        log.warning("slow_consumer", connection_id=self.connection_id, waiting_bytes=slow.waiting_bytes)
        self.close_soon(CloseCode.SLOW_CONSUMER)

    # --- an answer that is being written: none of these is from the log, none is ever repeated ---

    def can_hear(self, response_id: str) -> bool:
        """Whether text and places of this response may be sent: the log before it has gone out, its answer has not."""
        is_current = self.cursor is not None and self._catching_up is None
        return is_current and not self.compat and not self.session.is_finished(response_id)

    def hear_place(self, frame: Queue) -> None:
        """Send where a question stands with the model; where its text is void, what waits of it is dropped."""
        if not self._may_hear(frame.response_id):
            return
        if frame.state == "restarted":
            self._outbox.drop_deltas(frame.response_id)
        self.send(frame)

    def hear_words(self, response_id: str, section: str, text: str, attempt: int) -> None:
        """Queue text of an answer; pieces that wait together leave as one."""
        if not self._may_hear(response_id):
            return
        try:
            self._outbox.offer_delta(response_id, section, text, attempt)
        except SlowConsumer as slow:
            self._too_slow(slow)

    def _may_hear(self, response_id: str) -> bool:
        return not self.compat and self.session.is_welcomed and not self.session.is_finished(response_id)

    def hear_mode(self, mode: ModeChange) -> None:
        """Send the model's state if it is another than the phone was told."""
        told = self.mode_told
        if told is None or not self.session.is_welcomed:
            return
        if (told.mode, told.model.state, told.model.id) != (mode.mode, mode.model.state, mode.model.id):
            self.mode_told = mode
            self.send(mode)

    async def _write_loop(self) -> None:
        while True:
            await self._write(await self._outbox.take())
            lane = self._outbox.written()
            if lane is Lane.ALERT and self.member is not None and not self._outbox.has_alerts:
                self.member.settle()
            elif self._alerts_after is not None:
                self._admit_alerts()

    async def _write(self, next_one: bytes | Words) -> None:
        data = self._numbered(next_one) if isinstance(next_one, Words) else next_one
        if data is None:
            return
        if self._msgpack:
            await self._websocket.send_bytes(data)
        else:
            await self._websocket.send_text(data.decode())
        if data.startswith(_ANSWER):
            self.node.faults.reached("deliver")

    def _numbered(self, words: Words) -> bytes | None:
        """Text as its frame, numbered in the order of leaving; None after the answer and the session's end."""
        if self.session.is_finished(words.response_id) or not self.session.is_welcomed:
            return None
        frame = AiDelta(
            response_id=words.response_id,
            idx=self.session.next_idx(words.response_id),
            section=words.section,
            text=words.text,
            attempt=words.attempt,
        )
        metrics.FRAMES_OUT.labels("ai_delta").inc()
        return self._encode(self.session.sending(frame))

    # --- the session's log ---

    def ring(self, seq: int, frame: bytes | None = None) -> None:
        """The session's log has grown to ``seq``; with its frame at hand and nothing missing, send it at once."""
        if self.session.state is State.CLOSED:
            return  # its end has been asked for, and is under way
        if self.cursor is None:
            self._rung = max(self._rung, seq)
        elif seq > self.cursor:
            if frame is not None and seq == self.cursor + 1 and self._catching_up is None:
                self.send_event(seq, frame)
            else:
                self._catch_up_soon()

    def go_on(self, epoch: str, *, holds_to: int) -> None:
        """The log counts in another epoch now; a phone with an event beyond what both mean alike begins anew."""
        if self.cursor is None or self.cursor > holds_to:
            self.close_soon(CloseCode.INSUFFICIENT_STATE)
        else:
            self.epoch = epoch

    def _catch_up_soon(self) -> None:
        self._behind = True
        if self._catching_up is None:
            self._catching_up = asyncio.create_task(self._catch_up())
            self._catching_up.add_done_callback(self._caught_up)

    def _caught_up(self, task: asyncio.Task[None]) -> None:
        self._catching_up = None
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Closing):
            self.close_soon(error.code)
        elif error is not None:
            log.error("connection_failed", connection_id=self.connection_id, error=error_name(error))
            self.close_soon(CloseCode.RESTART, after_ms=_COME_BACK_MS)
        elif self._behind and self.cursor is not None:
            # It was rung for after the last look.
            self._catch_up_soon()

    async def _catch_up(self) -> None:
        """Read on from the cursor while the log is ahead of it: resume, another node's append, a lost ring."""
        while self._behind and self.key is not None and self.cursor is not None:
            # Cleared before reading: a ring that comes while we read must not be lost.
            self._behind = False
            try:
                events = await self.node.sessions.read(self.key, self.epoch, self.cursor)
            except SessionsUnavailable:
                # The sweep rings again.
                self._behind = False
                return
            except SessionLost:
                raise Closing(CloseCode.INSUFFICIENT_STATE) from None
            if self.session.state is State.CLOSED:
                return
            for event in events:
                if event.seq <= self.cursor:
                    continue
                if event.seq != self.cursor + 1:
                    raise Closing(CloseCode.INSUFFICIENT_STATE)
                self.send_event(event.seq, event.frame)
            if events:
                self._behind = True

    # --- time ---

    def _now_ms(self) -> int:
        return self.node.clock.monotonic_ms()

    def _heard(self) -> None:
        self.session.heard(self._now_ms())

    def tick(self, now_ms: int) -> None:
        """Do what time asks for: a ping, a close. The node calls it once ``due_ms`` has come."""
        if self.member is not None:
            self.session.alert_open(self.member.is_rung)
        self._apply_due()
        deadline_ms = self.session.deadline_ms()
        # Deadlines move with alerts and tokens, so it is looked at again soon.
        self.due_ms = now_ms + _LOOK_MS if deadline_ms is None else min(now_ms + _LOOK_MS, max(deadline_ms, now_ms + 1))

    @property
    def is_quiet(self) -> bool:
        """No answer is under way that this phone knows of, and it has not just come."""
        return not self.session.unanswered and self._now_ms() - self._opened_ms > _NEW_MS

    def _apply_due(self) -> None:
        for due in self.session.tick(self._now_ms()):
            match due:
                case SendPing():
                    if self._transport is not None:
                        self._transport.ping()
                case Close(code=code):
                    if code is CloseCode.NO_PONG and self._transport is None:
                        continue
                    self.close_soon(code)

    # --- the end ---

    def close_soon(self, code: CloseCode, *, after_ms: int = 0) -> None:
        """Have the connection closed with ``code``; the first call wins."""
        if not self._close_wanted.done():
            self._close_wanted.set_result(Closing(code, after_ms=after_ms))

    def recall(self, after_s: float) -> None:
        """Have a phone that was let in for alerts alone come again ``after_s`` from now; the first call counts."""
        if not self._is_recalled:
            self._is_recalled = True
            asyncio.get_running_loop().call_later(after_s, self.close_soon, CloseCode.RESTART)

    async def leave(self, after_s: float) -> None:
        """The node is draining: say so now, close with 4000 after ``after_s``; returns when the socket is closed."""
        is_open = self.session.state is State.ACTIVE
        self.session.drain(self._now_ms())
        if is_open:
            self._goaway(CloseCode.RESTART, round(after_s * 1000))
            await asyncio.sleep(after_s)
        # One that is not open yet has nothing to finish.
        self.close_soon(CloseCode.RESTART, after_ms=_COME_BACK_MS)
        await asyncio.shield(self._gone)

    def _goaway(self, code: CloseCode, after_ms: int) -> None:
        self._is_told = True
        self.send(Goaway(code=int(code), reconnect=code.reconnect, after_ms=after_ms, reason=CLOSE_REASONS[code]))

    async def _close(self, closing: Closing) -> None:
        metrics.CLOSES.labels(str(int(closing.code))).inc()
        metrics.HANDSHAKES.labels(str(int(closing.code))).inc() if self.principal is None else None
        if closing.code is not CloseCode.NORMAL and not self._is_told:
            with contextlib.suppress(SlowConsumer):
                self._goaway(closing.code, closing.after_ms)
        log.info("closed", connection_id=self.connection_id, code=int(closing.code))
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            async with asyncio.timeout(FLUSH_S):
                while self._outbox.waiting_bytes:
                    await self._write(await self._outbox.take())
                    self._outbox.written()
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            async with asyncio.timeout(FLUSH_S):
                await self._websocket.close(int(closing.code), CLOSE_REASONS[closing.code])
        self.session.closed()

    def now_iso(self) -> str:
        return iso_ms(self.node.clock.now())


def valid_id(value: str) -> bool:
    """Whether a path component has the form of an id."""
    try:
        msgspec.convert(value, Id)
    except msgspec.ValidationError:
        return False
    return True
