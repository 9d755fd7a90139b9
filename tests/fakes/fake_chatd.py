"""A double of chatd for the page's own checks: speaks ``chatd.v1`` with canned frames, on a free loopback port.

It decodes every frame of the page with the real Structs and refuses what they refuse, and it encodes its own with
them, so the page cannot drift from the contract. It keeps sessions, epochs and both logs, replays on resume, knows
duplicates, and can be told to hold answers, to drop every line, to lose its memory and to raise alerts. It knows
nothing clinical: the journey over the real server is another test.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from chatd.actions.reasons import is_dismiss_reason
from protocols import frames as f
from protocols.errors import CloseCode, ErrorCode, error_text

WEB = Path(__file__).resolve().parents[2] / "clients" / "web"
POLICY = "default-src 'self'; connect-src 'self' ws: wss:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
TROPONIN_AT = "2026-01-15T06:10:00.000Z"

STAFF = (
    ("dr.santos.cardio", "Dr. Santos", "physician", "Interventional cardiology", ("cardiology", "emergency")),
    ("enf.alves", "Enf. Alves", "nurse", "", ("cardiology",)),
)
DEPARTMENTS = (("cardiology", "Cardiology", "Cardiologia"), ("emergency", "Emergency", "Urgência"))
PATIENTS = (
    f.PatientInfo(
        patient_id="7823",
        name="João Silva",
        age_years=67,
        sex="male",
        birth_date="1958-11-02",
        allergies=("Penicillin",),
        allergy_status="known",
    ),
    f.PatientInfo(patient_id="7900", name="Maria João Fernandes de Albuquerque e Castro", age_years=54, sex="female"),
    f.PatientInfo(
        patient_id="7901", name="Ana Costa", age_years=81, sex="female", birth_date="1944-03-09", deceased=True
    ),
    f.PatientInfo(
        patient_id="7902",
        name="Ana Costa",
        age_years=33,
        sex="female",
        birth_date="1992-07-21",
        allergy_status="none_known",
    ),
)
#: The roles that a person's token says.
ROLES = {"dr.santos.cardio": ("physician",), "enf.alves": ("nurse",)}
REACH = f.Reach(
    online=("enf.alves", "dr.mendes.cardio"),
    push=("dr.rocha.cardio",),
    unreachable=("dr.lima.cardio", "dr.faria.cardio"),
    covered={"dr.lima.cardio": "dr.mendes.cardio"},
)
COLLEAGUES = (
    ("dr.mendes.cardio", ("physician",), "available", True),
    ("dr.santos.cardio", ("physician",), "available", True),
    ("enf.alves", ("nurse", "charge_nurse"), "in_procedure", True),
    ("dr.rocha.cardio", ("cardiologist",), "available", False),
)
#: What the server sends with an alert that somebody has to accept.
OPTIONS = (
    f.AlertOption(id="coming", label="I am coming", label_pt="Vou já", answer="accept"),
    f.AlertOption(
        id="in_procedure",
        label="In a procedure",
        label_pt="Em procedimento",
        answer="decline",
        reason="in_procedure",
    ),
    f.AlertOption(
        id="not_available", label="Not available", label_pt="Não disponível", answer="decline", reason="not_available"
    ),
)
#: A team of four; the first place is not this physician's.
TEAM = (
    f.AlertSlot(id="nurse", label="Cath lab nurse", label_pt="Enfermeiro de hemodinâmica", roles=("nurse",)),
    f.AlertSlot(id="operator", label="Operator", label_pt="Operador", roles=("cardiologist", "physician")),
    f.AlertSlot(
        id="anaesthesia",
        label="Anaesthesia",
        label_pt="Anestesia",
        roles=("anaesthetist",),
        roles_named=("physician",),
    ),
    f.AlertSlot(id="runner", label="Runner", label_pt="Apoio"),
)
#: Opens with a second identifier only.
GUARDED = {"7901": "1944-03-09", "7902": "1992-07-21"}


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Session:
    def __init__(self, session_id: str, epoch: str) -> None:
        self.session_id = session_id
        self.epoch = epoch
        self.log: list[f.Frame] = []
        self.answers: dict[str, list[f.Frame]] = {}
        self.open: dict[str, str] = {}
        self.patient: f.PatientInfo | None = None
        self.tokens: dict[str, str] = {}
        self.sockets: list[_Line] = []

    def append(self, frame: Any) -> Any:
        placed = msgspec.structs.replace(frame, epoch=self.epoch, seq=len(self.log) + 1)
        self.log.append(placed)
        return placed


class _Line:
    """One open socket."""

    def __init__(self, websocket: WebSocket) -> None:
        self.websocket = websocket
        self.session: _Session | None = None
        self.user_id: str = websocket.path_params["user_id"]

    async def send(self, frame: f.Frame) -> None:
        await self.websocket.send_text(msgspec.json.encode(frame).decode())


class _Headers:
    """Adds the policy that the real server sends, so that the page is always tested under it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)


class FakeChatd:
    """Start with ``start``, stop with ``stop``; the other methods may be called from the test's thread."""

    def __init__(self, *, demo: bool = True, mode: f.Mode = "normal") -> None:
        self.demo = demo
        self.mode: f.Mode = mode
        self.received: list[f.Frame] = []
        self.invalid: list[str] = []
        self.hold_answers = False
        self.refuse = False
        self.silent = False
        self.error_next: ErrorCode | None = None
        self.presence: f.OwnPresence | None = None
        #: Take answers to alerts and raised alerts as the server does; else they only are received.
        self.answers_alerts = True
        self.reach = REACH
        #: Who may be asked to take an alert over: (user id, roles, state, is here).
        self.people: tuple[tuple[str, tuple[str, ...], str, bool], ...] = COLLEAGUES
        self.facts_of: Callable[[f.UserMessage], f.Facts] | None = None
        self.reply_of: Callable[[f.UserMessage], f.AiResponse] | None = None
        self._sessions: dict[str, _Session] = {}
        self._alerts: list[f.Frame] = []
        self._open: dict[str, f.SystemNotification] = {}
        self._lines: set[_Line] = set()
        self._alerts_from = 0
        self._epochs = 0
        self._serial = 0
        self._held: list[tuple[_Session, f.UserMessage, str]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    # --- from the test's thread -----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self._app(), log_level="error", ws="websockets-sansio", lifespan="off")
        self._server = uvicorn.Server(config)
        ready = threading.Event()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._loop.call_later(0, ready.set)
            assert self._server is not None
            await self._server.serve(sockets=[listener])

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        ready.wait(10)

    def stop(self) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = True
        self.drop()
        self._thread.join(10)

    def of(self, kind: type[Any]) -> list[Any]:
        """The frames of one kind that the page has sent so far."""
        return [frame for frame in list(self.received) if isinstance(frame, kind)]

    def drop(self, code: int = 1011) -> None:
        """Cut every line."""
        self._run(self._drop(code))

    def forget(self) -> None:
        """Lose every session, as a lost Redis would: the next one has a new epoch."""
        self._run(self._forget())

    def release(self) -> None:
        """Answer everything that was held."""
        self.hold_answers = False
        self._run(self._release())

    def delta(self, idx: int, section: str, text: str, attempt: int = 1) -> None:
        """Stream a piece of text for the question that is held."""
        self._run(self._delta(idx, section, text, attempt))

    def queue(self, position: int, eta_ms: int | None, state: f.QueueState = "waiting") -> None:
        """Tell where the held question stands with the model."""
        self._run(self._broadcast_held(position, eta_ms, state))

    def set_mode(self, mode: f.Mode) -> None:
        """The model comes or goes, and everybody is told."""
        self.mode = mode
        self._run(self._tell_mode())

    def alert(self, **fields: Any) -> None:
        self._run(self._alert(fields))

    def update_alert(self, **fields: Any) -> None:
        self._run(self._update_alert(fields))

    def forget_alerts(self, first_seq: int) -> None:
        """A phone that is further back than this cannot be brought up by replay any more."""
        self._alerts_from = first_seq

    def stale(self, response_id: str) -> None:
        self._run(self._stale(response_id))

    def goaway(self, code: CloseCode, after_ms: int) -> None:
        self._run(self._goaway(code, after_ms))

    def _run(self, work: Any) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    # --- HTTP -----------------------------------------------------------------------------------------------

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", lambda _: FileResponse(WEB / "index.html")),
                Route("/board", lambda _: FileResponse(WEB / "index.html")),
                Route("/v1/demo", self._demo),
                Route("/v1/demo/token", self._demo_token, methods=["POST"]),
                Route("/v1/departments/{department}/patients", self._patients),
                Route("/v1/departments/{department}/people", self._people),
                WebSocketRoute("/chat/{department}/{user_id}", self._socket),
                Mount("/web", StaticFiles(directory=WEB)),
            ],
            middleware=[Middleware(_Headers)],
        )

    async def _demo(self, _: Request) -> Response:
        if not self.demo:
            return JSONResponse({}, status_code=404)
        return JSONResponse(
            {
                "hospital": "Real Portuguese Hospital",
                "staff": [
                    {"user_id": u, "name": n, "role": r, "specialty": s, "departments": list(d)}
                    for u, n, r, s, d in STAFF
                ],
                "departments": [{"id": i, "name": n, "name_pt": p} for i, n, p in DEPARTMENTS],
            }
        )

    async def _demo_token(self, request: Request) -> Response:
        body = await request.json()
        return JSONResponse({"token": f"token.{body['department']}.{body['user_id']}", "expires_in_s": 3600})

    async def _patients(self, request: Request) -> Response:
        if not request.headers.get("authorization", "").startswith("Bearer token."):
            return JSONResponse({}, status_code=401)
        fields = ("patient_id", "name", "birth_date", "sex", "age_years")
        return JSONResponse({"patients": [{name: getattr(one, name) for name in fields} for one in PATIENTS]})

    async def _people(self, request: Request) -> Response:
        if not request.headers.get("authorization", "").startswith("Bearer token."):
            return JSONResponse({}, status_code=401)
        people = [
            {"user_id": user, "roles": roles, "state": state, "is_here": is_here}
            for user, roles, state, is_here in self.people
        ]
        return JSONResponse({"people": people, "is_whole": True})

    # --- the socket -----------------------------------------------------------------------------------------

    async def _socket(self, websocket: WebSocket) -> None:
        if self.refuse:
            await websocket.close()
            return
        await websocket.accept(subprotocol="chatd.v1")
        line = _Line(websocket)
        self._lines.add(line)
        try:
            while True:
                text = await websocket.receive_text()
                try:
                    frame = msgspec.json.decode(text, type=f.ClientFrame)
                except msgspec.ValidationError as error:
                    self.invalid.append(str(error))
                    continue
                self.received.append(frame)
                if not self.silent:
                    await self._handle(line, frame)
        except WebSocketDisconnect:
            pass
        finally:
            self._lines.discard(line)
            if line.session:
                line.session.sockets.remove(line)

    async def _handle(self, line: _Line, frame: f.Frame) -> None:
        if isinstance(frame, f.Hello):
            await self._hello(line, frame)
            return
        session = line.session
        if session is None:
            await line.websocket.close(CloseCode.UNAUTHORIZED)
            return
        is_receipt = isinstance(frame, f.AlertResponse) and frame.answer in {"delivered", "displayed"}
        takes_errors = f.UserMessage | f.ContextSet | f.ActionCommand | f.AlertResponse | f.AlertRaise | f.PresenceSet
        if self.error_next and isinstance(frame, takes_errors) and not is_receipt:
            code, self.error_next = self.error_next, None
            await line.send(_error(code, frame.client_msg_id))
        elif isinstance(frame, f.UserMessage):
            await self._question(line, session, frame)
        elif isinstance(frame, f.Cancel):
            await self._cancel(session, frame)
        elif isinstance(frame, f.ContextSet):
            await self._context(line, session, frame)
        elif isinstance(frame, f.ActionCommand):
            await self._action(line, session, frame)
        elif isinstance(frame, f.AlertResponse):
            if self.answers_alerts and not is_receipt:
                await self._alert_answer(line, frame)
        elif isinstance(frame, f.AlertRaise):
            if self.answers_alerts:
                await self._alert_raise(line, frame)
        elif isinstance(frame, f.PresenceSet):
            before = self.presence
            self.presence = f.OwnPresence(
                state=frame.state,
                until=frame.until,
                delegate_to=frame.delegate_to,
                is_accepted=before is not None and before.is_accepted and before.delegate_to == frame.delegate_to,
            )
            await line.send(
                f.Presence(
                    user_id=line.user_id,
                    state=frame.state,
                    until=frame.until,
                    delegate_to=frame.delegate_to,
                    is_accepted=self.presence.is_accepted,
                    client_msg_id=frame.client_msg_id,
                )
            )
        elif isinstance(frame, f.Feedback | f.Refresh):
            await line.send(f.Accepted(client_msg_id=frame.client_msg_id))
        elif isinstance(frame, f.Ping):
            await line.send(f.Pong(t=frame.t))
        elif isinstance(frame, f.SessionEnd):
            self._sessions.pop(session.session_id, None)
            await line.websocket.close(1000)

    async def _hello(self, line: _Line, hello: f.Hello) -> None:
        _, department, user_id = (hello.token or "..").split(".", 2)
        if department != line.websocket.path_params["department"] or user_id != line.websocket.path_params["user_id"]:
            await line.websocket.close(CloseCode.UNAUTHORIZED)
            return
        self._serial += 1
        session_id = hello.session_id or f"sess_{self._serial}"
        session = self._sessions.get(session_id)
        if session is None:
            self._epochs += 1
            session = self._sessions[session_id] = _Session(session_id, f"e-{self._epochs}")
        line.session = session
        resume = hello.resume
        resumed = resume is not None and resume.epoch == session.epoch
        gap: f.GapReason = "epoch_changed" if resume else "first"
        if resumed and resume and resume.alert_seq + 1 < self._alerts_from:
            resumed, gap = False, "too_far"
        name = next((n for u, n, *_ in STAFF if u == user_id), user_id)
        await line.send(
            f.Welcome(
                connection_id=f"c-{self._serial}",
                session_id=session_id,
                server_time=_iso(datetime.now(UTC)),
                epoch=session.epoch,
                seq=len(session.log),
                alert_seq=len(self._alerts),
                resumed=resumed,
                replay=len(session.log) - resume.seq if resumed and resume else 0,
                gap_reason=None if resumed else gap,
                heartbeat=f.Heartbeat(),
                limits=f.Limits(),
                user=f.User(user_id=user_id, name=name, roles=ROLES.get(user_id, ())),
                department=f.DepartmentInfo(id=department, name=department.title()),
                model=f.ModelState(state="ready" if self.mode == "normal" else "none"),
                mode=self.mode,
                presence=self.presence,
            )
        )
        if resumed and resume:
            for frame in [*session.log[resume.seq :], *self._alerts[resume.alert_seq :]]:
                await line.send(frame)
        else:
            await line.send(
                f.Snapshot(
                    open_responses=tuple(
                        f.OpenResponse(response_id=r, client_msg_id=c) for c, r in session.open.items()
                    ),
                    active_patient=session.patient,
                    open_alerts=tuple(self._open.values()),
                )
            )
        session.sockets.append(line)

    async def _tell(self, session: _Session, frame: Any) -> Any:
        placed = session.append(frame)
        for line in list(session.sockets):
            await line.send(placed)
        return placed

    async def _question(self, line: _Line, session: _Session, frame: f.UserMessage) -> None:
        known = session.answers.get(frame.client_msg_id)
        response_id = f"resp-{frame.client_msg_id}"
        await line.send(
            f.Accepted(client_msg_id=frame.client_msg_id, response_id=response_id, duplicate=known is not None)
        )
        if known is not None:
            for one in known:
                await line.send(one)
            return
        if frame.client_msg_id in session.open:
            return
        session.open[frame.client_msg_id] = response_id
        session.answers[frame.client_msg_id] = []
        facts = self.facts_of(frame) if self.facts_of else canned_facts(frame)
        session.answers[frame.client_msg_id].append(await self._tell(session, facts))
        if self.hold_answers:
            self._held.append((session, frame, "completed"))
        else:
            await self._answer(session, frame, "completed")

    async def _answer(self, session: _Session, frame: f.UserMessage, status: f.Status) -> None:
        if frame.client_msg_id not in session.open:
            return
        del session.open[frame.client_msg_id]
        reply = self.reply_of(frame) if self.reply_of else canned_reply(frame, self.mode)
        if status != "completed":
            reply = msgspec.structs.replace(
                reply, status=status, content=f.Content(text="", structured_data=f.StructuredData())
            )
        session.answers[frame.client_msg_id].append(await self._tell(session, reply))

    async def _cancel(self, session: _Session, frame: f.Cancel) -> None:
        for held in list(self._held):
            if held[1].client_msg_id == frame.client_msg_id:
                self._held.remove(held)
                await self._answer(session, held[1], "cancelled")

    async def _context(self, line: _Line, session: _Session, frame: f.ContextSet) -> None:
        patient = next((one for one in PATIENTS if one.patient_id == frame.patient_id), None)
        if frame.patient_id and patient is None:
            await line.send(_error(ErrorCode.PATIENT_UNKNOWN, frame.client_msg_id))
            return
        if frame.patient_id in GUARDED and frame.second_identifier != GUARDED[frame.patient_id]:
            await line.send(_error(ErrorCode.SECOND_IDENTIFIER_REQUIRED, frame.client_msg_id))
            return
        reason: Any = "switched" if session.patient and patient else "set"
        session.patient = patient
        await self._tell(session, f.Context(patient=patient, reason=reason, client_msg_id=frame.client_msg_id))

    async def _action(self, line: _Line, session: _Session, frame: f.ActionCommand) -> None:
        base = f.ActionUpdate(
            action_id=frame.action_id,
            status="prepared",
            by="Dr. Santos",
            at=_iso(datetime.now(UTC)),
            client_msg_id=frame.client_msg_id,
            label="Schedule Cath Lab",
            patient_id="7823",
        )
        guarded = frame.action_id.endswith("-notify_icu")
        if frame.step == "prepare":
            session.tokens[frame.action_id] = f"ct-{frame.client_msg_id}"
            await self._tell(
                session,
                msgspec.structs.replace(
                    base,
                    confirm_token=session.tokens[frame.action_id],
                    summary="Appointment (proposed): coronary angiography, urgent, for João Silva",
                    second_identifier_required=guarded,
                    expires_at=_iso(datetime.now(UTC) + timedelta(minutes=10)),
                ),
            )
        elif frame.step == "hand_over":
            await self._tell(session, msgspec.structs.replace(base, status="handed_over", by=line.user_id))
            now = datetime.now(UTC)
            until = _iso(now + timedelta(minutes=30))
            offer = f.AlertHandover(from_=line.user_id, to=frame.colleague or "", at=_iso(now), until=until)
            fields = {"priority": "normal", "content": f"Handed over: {base.label}", "patient_id": base.patient_id}
            who = (f.AlertHolder(user_id=line.user_id, answer="accept", at=_iso(now)),)
            told = {"from_": line.user_id, "to": f.AlertTarget(user=line.user_id), "state": "in_progress", "who": who}
            await self._alert(fields | told | {"alert_id": f"al-{frame.action_id}", "handovers": (offer,)})
        elif frame.step == "dismiss" and not is_dismiss_reason(frame.reason):
            await line.send(_error(ErrorCode.BAD_REQUEST, frame.client_msg_id))
        elif frame.step == "dismiss":
            await self._tell(session, msgspec.structs.replace(base, status="dismissed", reason=frame.reason))
        elif frame.confirm_token != session.tokens.get(frame.action_id):
            await line.send(_error(ErrorCode.CONFIRM_REQUIRED, frame.client_msg_id))
        elif guarded and frame.second_identifier != "1958-11-02":
            await line.send(_error(ErrorCode.SECOND_IDENTIFIER_REQUIRED, frame.client_msg_id))
        else:
            del session.tokens[frame.action_id]
            await self._tell(session, msgspec.structs.replace(base, status="confirmed"))

    # --- what the test makes happen -------------------------------------------------------------------------

    async def _drop(self, code: int) -> None:
        for line in list(self._lines):
            await line.websocket.close(code)

    async def _forget(self) -> None:
        self._sessions.clear()
        self._held.clear()
        await self._drop(4003)

    async def _release(self) -> None:
        held, self._held = self._held, []
        for session, frame, status in held:
            await self._answer(session, frame, status)  # type: ignore[arg-type]

    async def _delta(self, idx: int, section: str, text: str, attempt: int) -> None:
        session, frame, _ = self._held[-1]
        response_id = f"resp-{frame.client_msg_id}"
        for line in session.sockets:
            await line.send(f.AiDelta(response_id=response_id, idx=idx, section=section, text=text, attempt=attempt))

    async def _broadcast_held(self, position: int, eta_ms: int | None, state: f.QueueState) -> None:
        session, frame, _ = self._held[-1]
        place = f.Queue(
            response_id=f"resp-{frame.client_msg_id}", lane="routine", position=position, eta_ms=eta_ms, state=state
        )
        for line in session.sockets:
            await line.send(place)

    async def _tell_mode(self) -> None:
        state = "down" if self.mode == "facts_only" else "ready"
        for session in self._sessions.values():
            for line in session.sockets:
                await line.send(f.ModeChange(mode=self.mode, model=f.ModelState(state=state, id="scripted-1")))

    async def _alert(self, fields: dict[str, Any]) -> None:
        now = _iso(datetime.now(UTC))
        frame = f.SystemNotification(
            **{
                "department": "cardiology",
                "alert_seq": len(self._alerts) + 1,
                "timestamp": now,
                "raised_at": now,
                "state": "delivering",
                "requires_action": True,
                **fields,
            }
        )
        await self._record(frame)

    async def _update_alert(self, fields: dict[str, Any]) -> None:
        await self._record(f.AlertUpdate(**{"alert_seq": len(self._alerts) + 1, **fields}))

    async def _record(self, frame: f.SystemNotification | f.AlertUpdate) -> None:
        """Into the log, into what a snapshot shows, and to everybody."""
        self._alerts.append(frame)
        if isinstance(frame, f.SystemNotification):
            self._open[frame.alert_id] = frame
        elif frame.alert_id in self._open:
            known = self._open[frame.alert_id]
            self._open[frame.alert_id] = msgspec.structs.replace(
                known, state=frame.state, who=frame.who, slots=frame.slots or known.slots, handovers=frame.handovers
            )
        if frame.state in {"resolved", "stood_down", "expired"}:
            self._open.pop(frame.alert_id, None)
        for line in list(self._lines):
            await line.send(frame)

    async def _alert_answer(self, line: _Line, frame: f.AlertResponse) -> None:
        """Take an answer: the last word of each person counts, a place is taken once."""
        alert = self._open.get(frame.alert_id)
        if alert is None:
            await line.send(_error(ErrorCode.ALERT_CLOSED, frame.client_msg_id))
            return
        if frame.answer in {"hand_over", "take_over", "refuse_handover", "revoke_handover"}:
            await self._hand(line, alert, frame)
            return
        now = datetime.now(UTC)
        eta_at = None if frame.eta_min is None else _iso(now + timedelta(minutes=frame.eta_min))
        holder = f.AlertHolder(
            user_id=line.user_id, answer=frame.answer, at=_iso(now), eta_at=eta_at, slot=frame.slot, reason=frame.reason
        )
        who = (*(one for one in alert.who if one.user_id != line.user_id), holder)
        slots = tuple(
            msgspec.structs.replace(one, by=line.user_id, eta_at=eta_at) if one.id == frame.slot else one
            for one in alert.slots
        )
        held = all(one.by for one in slots) if slots else any(one.answer == "accept" for one in who)
        ends = {"done": "resolved", "stand_down": "stood_down"}.get(frame.answer)
        await line.send(f.Accepted(client_msg_id=frame.client_msg_id, alert_id=frame.alert_id))
        if ends:
            await self._record(
                msgspec.structs.replace(
                    alert, alert_seq=len(self._alerts) + 1, event=ends, state=ends, by=line.user_id, who=who
                )
            )
            return
        await self._record(
            f.AlertUpdate(
                alert_id=frame.alert_id,
                alert_seq=len(self._alerts) + 1,
                state="in_progress" if held else "delivering",
                event="declined" if frame.answer == "decline" else "accepted",
                by=line.user_id,
                who=who,
                slots=slots,
            )
        )

    async def _hand(self, line: _Line, alert: f.SystemNotification, frame: f.AlertResponse) -> None:
        """Offer an alert, take it over, refuse or withdraw: as the board would."""
        now, me = datetime.now(UTC), line.user_id
        taking = frame.answer in {"take_over", "refuse_handover"}
        if frame.answer == "hand_over":
            about = f.AlertHandover(
                from_=me, to=frame.colleague or "", at=_iso(now), until=_iso(now + timedelta(minutes=30))
            )
            rest = tuple(one for one in alert.handovers if one.from_ != me)
        else:
            found = [one for one in alert.handovers if (one.to if taking else one.from_) == me]
            if not found:
                await line.send(_error(ErrorCode.HANDOVER_ENDED, frame.client_msg_id))
                return
            about = found[0]
            rest = tuple(one for one in alert.handovers if one != about)
        who, state = alert.who, alert.state
        if frame.answer == "take_over":
            others = tuple(one for one in who if one.user_id not in {me, about.from_})
            given = f.AlertHolder(user_id=about.from_, answer="handed_over", at=_iso(now))
            who = (f.AlertHolder(user_id=me, answer="accept", at=_iso(now)), given, *others)
            state = "in_progress"
        await line.send(f.Accepted(client_msg_id=frame.client_msg_id, alert_id=frame.alert_id))
        events = {
            "hand_over": "handover_offered",
            "take_over": "handed_over",
            "refuse_handover": "handover_refused",
            "revoke_handover": "handover_revoked",
        }
        await self._record(
            f.AlertUpdate(
                alert_id=frame.alert_id,
                alert_seq=len(self._alerts) + 1,
                state=state,
                event=events[frame.answer],
                by=me,
                who=who,
                slots=alert.slots,
                timestamp=_iso(now),
                handovers=(*rest, about) if frame.answer == "hand_over" else rest,
                handover=about,
            )
        )

    async def _alert_raise(self, line: _Line, frame: f.AlertRaise) -> None:
        alert_id = f"al-{frame.client_msg_id}"
        await line.send(f.Accepted(client_msg_id=frame.client_msg_id, alert_id=alert_id, reach=self.reach))
        await self._alert(
            {
                "alert_id": alert_id,
                "priority": frame.priority,
                "content": frame.content,
                "requires_action": frame.requires_action,
                "to": frame.to,
                "patient_id": frame.patient_id,
                "from_": line.user_id,
            }
        )

    async def _stale(self, response_id: str) -> None:
        for session in self._sessions.values():
            if any(getattr(one, "response_id", None) == response_id for one in session.log):
                cause = f.StaleCause(layer="patient", field="Troponin I", new_as_of=TROPONIN_AT)
                await self._tell(session, f.Stale(response_id=response_id, cause=cause))

    async def _goaway(self, code: CloseCode, after_ms: int) -> None:
        for line in list(self._lines):
            await line.send(f.Goaway(code=int(code), reconnect=code.reconnect, after_ms=after_ms, reason="restart"))
            await line.websocket.close(int(code))


def _error(code: ErrorCode, client_msg_id: str | None) -> f.Error:
    from protocols.errors import ERRORS

    return f.Error(
        code=code.value, message=error_text(code, "en"), retryable=ERRORS[code].retryable, client_msg_id=client_msg_id
    )


def canned_facts(frame: f.UserMessage) -> f.Facts:
    """Facts of an invented patient with every kind of part in it."""
    fact = f.Fact
    return f.Facts(
        response_id=f"resp-{frame.client_msg_id}",
        client_msg_id=frame.client_msg_id,
        patient_id=frame.patient_id or "7823",
        facts=(
            fact(kind="allergy", name="Penicillin", text="Allergy: penicillin (rash)", ref="AllergyIntolerance/a1"),
            fact(
                kind="value",
                name="Troponin I",
                value=45,
                unit="ng/mL",
                flag="HH",
                range="< 0.04",
                trend="up",
                as_of=TROPONIN_AT,
                text="Troponin I 45 ng/mL (high), 06:10",
                ref="Observation/trop-1",
            ),
            fact(
                kind="value",
                name="Potassium",
                value=5.3,
                unit="mmol/L",
                flag="H",
                range="3.5–5.1",
                trend="steady",
                as_of=TROPONIN_AT,
                text="Potassium 5.3 mmol/L (high)",
                ref="Observation/k-1",
            ),
            fact(
                kind="value",
                name="Glucose",
                value=11.2,
                unit=None,
                flag="A",
                range="",
                as_of=None,
                text="Glucose 11.2, unit missing",
                ref="Observation/g-1",
            ),
            fact(
                kind="value",
                name="Heart rate",
                value=88,
                unit="/min",
                range="60–100",
                as_of=TROPONIN_AT,
                text="Heart rate 88/min",
            ),
            fact(
                kind="report",
                name="ECG report",
                text="ECG 06:10: ST elevation V2-V6, anterior Q waves, poor R-wave progression.",
                as_of=TROPONIN_AT,
                ref="DiagnosticReport/ecg-1",
            ),
            fact(kind="medication", name="Aspirin", text="Aspirin 100 mg once daily"),
            fact(kind="medication", name="Metformin", text="Metformin 850 mg twice daily"),
            fact(kind="condition", name="STEMI", text="ST elevation myocardial infarction, day 2"),
        ),
        scores=(f.Score(name="NEWS2", value=3, band="low", parts={"rr": 2, "spo2": 1, "hr": 0}, as_of=TROPONIN_AT),),
        red_flags=(
            f.RedFlag(
                id="critical.troponin",
                trigger="critical_result",
                text="Troponin I 45 ng/mL is above the call limit",
                ref="Observation/trop-1",
            ),
        ),
        protocols=(
            f.ProtocolQuote(
                id="stemi",
                title="STEMI",
                section="reperfusion",
                quote="Primary PCI within 120 minutes of diagnosis; otherwise fibrinolysis within 10 minutes.",
                source="ESC guideline on acute coronary syndromes",
                year=2023,
                superseded_by="ACS guideline 2025",
                review_due="2025-06-30",
                notice="Not approved for this hospital.",
            ),
        ),
        checks=(
            f.Check(
                id="allergy.penicillin",
                level="critical",
                text="Penicillin allergy: no penicillins, check cephalosporins",
            ),
            f.Check(id="metformin.contrast", level="info", text="Metformin and contrast: check renal function first"),
        ),
        missing=("the ECG tracing itself is not available",),
        context=f.ContextInfo(hash="h-1", layers=(f.LayerInfo(name="patient", version="v1", as_of=TROPONIN_AT),)),
    )


def canned_reply(frame: f.UserMessage, mode: f.Mode) -> f.AiResponse:
    """A whole answer with citations and two proposals, one of them behind a second identifier."""
    patient_id = frame.patient_id or "7823"

    def action(catalog_id: str, label: str, risk: str) -> f.ProposedAction:
        return f.ProposedAction(
            action_id=f"act-{frame.client_msg_id}-{catalog_id}",
            catalog_id=catalog_id,
            label=label,
            risk=risk,
            expires_at=_iso(datetime.now(UTC) + timedelta(minutes=30)),
            bound=f.Bound(patient_id=patient_id, context="h-1"),
        )

    data = f.StructuredData(
        headline="ECG report of 06:10 describes an anterior STEMI pattern; troponin I 45 ng/mL",
        findings=("ST elevation V2-V6, anterior Q waves [1]", "Troponin I 45 ng/mL, rising [2]"),
        interpretation=("Compatible with evolving anterior infarction.",),
        recommendations=("Consider urgent coronary angiography [3].",),
        quick_actions=("Schedule Cath Lab", "Notify ICU"),
        missing=("the ECG tracing itself is not available",),
        citations=(
            f.Citation(
                n=1,
                kind="chart",
                ref="DiagnosticReport/ecg-1",
                title="ECG report",
                quote="ST elevation V2-V6",
                as_of=TROPONIN_AT,
            ),
            f.Citation(n=2, kind="chart", ref="Observation/trop-1", title="Troponin I", as_of=TROPONIN_AT),
            f.Citation(
                n=3,
                kind="protocol",
                ref="stemi#reperfusion",
                title="STEMI",
                quote="Primary PCI within 120 minutes of diagnosis.",
                source="ESC guideline",
                year=2023,
            ),
        ),
        actions=(
            action("schedule_cath_lab", "Schedule Cath Lab", "confirm"),
            action("notify_icu", "Notify ICU", "confirm_id"),
        ),
    )
    return f.AiResponse(
        response_id=f"resp-{frame.client_msg_id}",
        content=f.Content(text="ECG: anterior STEMI pattern in the report of 06:10.", structured_data=data),
        processing_time_ms=1850,
        client_msg_id=frame.client_msg_id,
        patient_id=patient_id,
        timestamp=_iso(datetime.now(UTC)),
        model=f.ModelInfo(id="scripted-1") if mode == "normal" else None,
        mode=mode,
        notice="Decision support, not a diagnosis: verify against the record.",
    )
