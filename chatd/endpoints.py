"""HTTP routes: health, metrics, the page, the demo's sign-in, a department's patient list, alerts, the schemas."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

import chatd
from chatd import demo, metrics
from chatd.alerts import communication
from chatd.alerts.model import Raised
from chatd.alerts.model import Response as AlertAnswer
from chatd.alerts.permissions import may_answer, raiser
from chatd.audit.events import ROUTES
from chatd.audit.service import AuditUnavailable
from chatd.clock import iso_ms
from chatd.gateway.alerting import command_of
from chatd.gateway.auditing import token_refused
from chatd.gateway.auth import Principal, mint
from chatd.gateway.connection import Connection, valid_id
from chatd.gateway.node import Node
from chatd.identity.roles import TABLE
from chatd.ledger import LedgerUnavailable
from chatd.readiness import readiness
from context.layers import age_years
from context.lookalike import mixed_scripts
from context.store import StoreError
from protocols import codec, schema
from protocols.errors import ERRORS, ErrorCode, RemoteProtocolError, error_text
from protocols.frames import AlertRaise, AlertTarget, Id

#: A demo sign-in lasts a shift.
DEMO_TOKEN_TTL_S = 8 * 3600
#: A request body of the demo's sign-in; more is refused unread.
_MAX_BODY_BYTES = 4096
#: A body that trickles in is not waited for; a proxy in front should be stricter.
_BODY_WITHIN_S = 10.0
#: After a failure that may pass, a client tries again.
_RETRY_S = 1

_HEADERS: Mapping[bytes, bytes] = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"permissions-policy": b"camera=(), geolocation=()",
    b"cross-origin-opener-policy": b"same-origin",
    # A record must not come out of a browser's cache after signing out.
    b"cache-control": b"no-store",
}


#: What may stand in a policy as the name of this server.
_HOST = re.compile(rb"[A-Za-z0-9.\-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")


def _policy(host: bytes) -> bytes:
    """Only chatd's own files and its own socket: an injected script finds nothing to run and nowhere to send to.

    The socket is named beside 'self', which older browsers do not take for it.
    """
    sockets = b" ws://%b wss://%b" % (host, host) if _HOST.fullmatch(host) else b""
    return (
        b"default-src 'self'; connect-src 'self'%b; img-src 'self' data:; object-src 'none'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ) % sockets


class SecureHeaders:
    """Adds the security headers to every HTTP answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        policy = _policy(dict(scope["headers"]).get(b"host", b""))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", policy),
                    *((name, value) for name, value in _HEADERS.items() if name not in present),
                ]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


class _Refusal(msgspec.Struct, frozen=True):
    """A refusal (but FHIR's), as in an ``error`` frame; ``detail`` names a field or rule, never a value."""

    code: str
    message: str
    retryable: bool
    detail: str | None


#: The status of each code that a way in can answer with; 503 and 429 may be sent again.
_STATUS: Final[Mapping[ErrorCode, int]] = {
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.TOKEN_EXPIRED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.ROLE_UNASSIGNED: 409,
    ErrorCode.ALERT_CLOSED: 409,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.INTERNAL: 503,
}


def _refused(error: RemoteProtocolError, status: int | None = None) -> Response:
    """What a phone would get as an ``error`` frame, with the status of its code where none is given."""
    status = status or _STATUS.get(error.code, 400)
    detail = error.detail
    if detail is not None:
        # Here the fields have names of their own.
        detail = detail.replace("template:", "policy:").replace("client_msg_id:", "Idempotency-Key:")
    body = _Refusal(error.code.value, error_text(error.code, "en"), ERRORS[error.code].retryable, detail)
    answer = _json(body, status)
    if status in (429, 503):
        answer.headers["retry-after"] = str(max(_RETRY_S, -(-(error.retry_after_ms or 0) // 1000)))
    return answer


def _refusal(code: ErrorCode, status: int | None = None, detail: str | None = None) -> Response:
    return _refused(RemoteProtocolError(code, detail), status)


async def no_route(_: Request, error: Exception) -> Response:
    """No such path, or not this method there: the router's own refusal, in the shape of the others."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    detail = "method: not allowed here" if error.status_code == 405 else "path: not known"
    answer = _refusal(ErrorCode.BAD_REQUEST, error.status_code, detail)
    answer.headers.update(error.headers or {})
    return answer


async def _body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises RemoteProtocolError: too_large, or bad_request where it does not come within 10 s."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_WITHIN_S):
            async for chunk in request.stream():
                # Counted as it comes: a chunked body says no length beforehand.
                body += chunk
                if len(body) > max_bytes:
                    raise RemoteProtocolError(ErrorCode.TOO_LARGE)
    except TimeoutError:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "body: did not come in time") from None
    return bytes(body)


def _node(request: Request) -> Node:
    node: Node = request.app.state.node
    return node


# --- who may ------------------------------------------------------------------------------------------------

Handler = Callable[[Request], Awaitable[Response]]


def _principal(request: Request) -> Principal:
    """Who asks; the gate has let them in before the route was reached."""
    principal: Principal = request.state.principal
    return principal


async def _let_in(request: Request, command: str) -> None:
    """Raises RemoteProtocolError: unauthorized, token_expired, forbidden by the table of roles, or internal."""
    headers = request.headers.getlist("authorization")
    scheme, _, token = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    if scheme.lower() != "bearer":
        raise RemoteProtocolError(ErrorCode.UNAUTHORIZED)
    gate = _node(request).gate
    principal = await gate.admit(token.strip())
    gate.require(principal, command, request.path_params.get("department"))
    request.state.principal = principal


def _events_of(command: str) -> tuple[str, ...]:
    found = ROUTES.get(command, ())
    return found if isinstance(found, tuple) else ()


def _guarded(method: str, path: str, handler: Handler, refuse: Callable[[RemoteProtocolError], Response]) -> Route:
    """A route that is public in the table of roles, or lets in whom the table names; one that is not there, nobody."""
    command = f"{method} {path}"
    if command in TABLE.public:
        return Route(path, handler, methods=[method])

    tells_refusals = "alert.refused" in _events_of(command)

    async def guarded(request: Request) -> Response:
        audit = _node(request).audit
        try:
            await _let_in(request, command)
        except RemoteProtocolError as error:
            token_refused(audit, error)
            return refuse(error)
        answer = await handler(request)
        if tells_refusals and answer.status_code >= 400:
            audit.refused("alert.refused", f"http.{answer.status_code}", user=_principal(request).user_id)
        return answer

    return Route(path, guarded, methods=[method])


# --- health and metrics -------------------------------------------------------------------------------------


async def _health(request: Request) -> Response:
    """The original design's body: ``status``, ``active_connections``, ``medgemma_status``."""
    node = _node(request)
    ready = await readiness(node)
    is_whole = ready.ready and ready.model in ("none", "ready") and not ready.clock_stepped and ready.audit == "ok"
    return _json(
        {
            "status": "healthy" if is_whole else "degraded",
            "active_connections": node.connections,
            "medgemma_status": "not_configured" if ready.model == "none" else ready.model,
        }
    )


async def _live(_: Request) -> Response:
    """The process runs its event loop; nothing else is asked."""
    return _json({"status": "live"})


async def _ready(request: Request) -> Response:
    """Whether new connections should come here: 200, or 503 with what is missing. ``Age``: of its oldest part, in s."""
    node = _node(request)
    ready = await readiness(node)
    answer = _json(ready, 200 if ready.ready else 503)
    answer.headers["Age"] = str(node.checks.age_ms // 1000)
    return answer


async def _model(request: Request) -> Response:
    """The texts that were given up, as this gateway last saw the queue: ids, lanes and times, no words."""
    return _json({"given_up": _node(request).watch.given_up})


async def _metrics(request: Request) -> Response:
    metrics.OUTBOX_BYTES.set(_node(request).waiting_bytes)
    return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)


async def _asyncapi(_: Request) -> Response:
    return _json(schema.asyncapi())


async def _json_schema(_: Request) -> Response:
    return _json(schema.json_schema())


# --- the demo's sign-in -------------------------------------------------------------------------------------


class _SignIn(msgspec.Struct, frozen=True):
    user_id: Id
    department: Id


async def _demo(request: Request) -> Response:
    """Whom one may sign in as; 404 where this is no demo."""
    node = _node(request)
    if not node.settings.demo:
        return _refusal(ErrorCode.FORBIDDEN, 404)
    try:
        departments = await node.store.departments()
    except StoreError:
        return _refusal(ErrorCode.INTERNAL, 503)
    return _json(
        {
            "hospital": demo.hospital_name(),
            "staff": [
                {
                    "user_id": person.user_id,
                    "name": person.name,
                    "role": person.role,
                    "specialty": person.specialty,
                    "departments": person.departments,
                }
                for person in demo.staff()
            ],
            "departments": [{"id": d.department_id, "name": d.name, "name_pt": d.name_pt} for d in departments],
        }
    )


async def _demo_token(request: Request) -> Response:
    """A token for one of the demo's staff; the demo hospital has no passwords and no real patients."""
    node = _node(request)
    if not node.settings.demo:
        return _refusal(ErrorCode.FORBIDDEN, 404)
    try:
        wanted = msgspec.json.decode(await _body(request, _MAX_BODY_BYTES), type=_SignIn)
    except RemoteProtocolError as error:
        return _refused(error)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return _refusal(ErrorCode.BAD_REQUEST, 400)
    person = next((p for p in demo.staff() if p.user_id == wanted.user_id), None)
    if person is None or wanted.department not in person.departments:
        return _refusal(ErrorCode.FORBIDDEN, 403)
    ttl_s = min(DEMO_TOKEN_TTL_S, node.settings.jwt_max_ttl_s)
    node.audit.note(node.audit.row("sign_in", user=person.user_id, department=wanted.department))
    token = mint(
        request.app.state.jwt_secret,
        user_id=person.user_id,
        departments=person.departments,
        roles=(person.role,),
        name=person.name,
        ttl_s=ttl_s,
        now=node.clock.now(),
        issuer=node.settings.jwt_issuer,
        audience=node.settings.jwt_audience,
    )
    return _json({"token": token, "expires_in_s": ttl_s})


# --- a department's patients --------------------------------------------------------------------------------


async def _patients(request: Request) -> Response:
    """The department's patients by name, for the picker: identity only, nothing clinical.

    ``look_alike``: another's name may be taken for theirs, and the record opens with a second identifier only.
    ``scripts``: of a name in letters of several scripts that look alike, which they are.
    """
    department = request.path_params["department"]
    node = _node(request)
    try:
        cards = await node.store.cards_of(department)
        principal = _principal(request)
        listed = node.audit.row(
            "patient.list",
            user=principal.user_id,
            roles=tuple(principal.roles),
            device=principal.device,
            department=department,
        )
        await node.audit.record(listed)
    except (StoreError, AuditUnavailable):
        return _refusal(ErrorCode.INTERNAL, 503)
    alike = await node.namesakes.among(department, cards)
    today = node.clock.now().date()
    return _json(
        {
            "patients": [
                {
                    "patient_id": card.patient_id,
                    "name": card.name,
                    "birth_date": card.birth_date,
                    "sex": card.sex,
                    "age_years": age_years(card.birth_date, today),
                    "deceased": card.deceased,
                    "look_alike": card.patient_id in alike,
                    "scripts": mixed_scripts(card.name),
                }
                for card in sorted(cards, key=lambda card: (card.name.casefold(), card.patient_id))
            ]
        }
    )


async def _people(request: Request) -> Response:
    """Who may be asked to take an alert over: colleagues of the department, as far as presence knows them now."""
    principal = _principal(request)
    department = request.path_params["department"]
    if not may_answer(principal.roles):
        return _refusal(ErrorCode.FORBIDDEN, 403)
    present = await _node(request).alerts.colleagues(department)
    audit = _node(request).audit
    audit.note(audit.row("people.list", user=principal.user_id, department=department))
    people = [
        {
            "user_id": record.user_id,
            "roles": record.roles,
            "state": record.state,
            "is_here": bool(record.channels),
        }
        for record in sorted(present.records, key=lambda record: (not record.channels, record.user_id))
    ]
    return _json({"people": people, "is_whole": present.is_whole})


# --- alerts -------------------------------------------------------------------------------------------------


class _AlertBody(msgspec.Struct, frozen=True, kw_only=True):
    """What may stand in the body of an alert; what is checked beyond the form, the codec checks as in a frame."""

    content: str
    priority: Literal["low", "normal", "high", "critical"]
    requires_action: bool = False
    patient_id: str | None = None
    policy: str | None = None
    to: AlertTarget | None = None
    dedup_key: str | None = None
    drill: bool = False


_KEY_HEADER: Final = "idempotency-key"
_NO_KEY: Final = "Idempotency-Key: required, 1 to 128 letters, digits or ._:@+-"


def _key_of(request: Request) -> str | None:
    """The idempotency key; the quotes of a structured field's string are not part of it."""
    given = request.headers.get(_KEY_HEADER, "").strip()
    return given[1:-1] if len(given) > 1 and given[0] == given[-1] == '"' else given or None


def _frame(request: Request, key: str, to: AlertTarget, **fields: Any) -> AlertRaise:
    """An alert as a phone would have sent it, checked as one. Raises RemoteProtocolError (bad_request)."""
    settings = _node(request).settings
    limits = codec.CodecLimits(max_bytes=settings.max_frame_bytes, max_content_chars=settings.max_content_chars)
    target = {name: value for name, value in msgspec.structs.asdict(to).items() if value is not None}
    raw = {"type": "alert_raise", "client_msg_id": key, "to": target, **fields}
    try:
        frame = codec.decode(msgspec.json.encode(raw), limits=limits)
    except RemoteProtocolError as error:
        detail = _NO_KEY if (error.detail or "").startswith("client_msg_id") else error.detail
        raise RemoteProtocolError(error.code, detail) from None
    assert isinstance(frame, AlertRaise)  # noqa: S101 - the type was written above
    return frame


async def _raise(request: Request, principal: Principal, frame: AlertRaise, department: str, is_drill: bool) -> Raised:
    node = _node(request)
    command = command_of(frame, principal, department=department, is_drill=is_drill)
    try:
        return await node.alerts.raise_(command, node.alerts.now())
    except LedgerUnavailable:
        raise RemoteProtocolError(ErrorCode.INTERNAL, "nothing can be recorded now") from None


async def _post_alert(request: Request) -> Response:
    """Raise an alert: 201 with its id, its number and whom it reaches, when the ledger has it.

    The same ``Idempotency-Key`` of the same sender gives the same answer, with ``idempotency-replayed: true``.
    """
    try:
        principal = _principal(request)
        department = request.path_params["department"]
        raw = await _body(request, _node(request).settings.max_frame_bytes)
        try:
            body = msgspec.json.decode(raw, type=_AlertBody)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "body: not an alert") from None
        to = body.to or AlertTarget(department=department)
        if to.department not in (None, department):
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "to: another department than the path's")
        key = _key_of(request)
        if key is None:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, _NO_KEY)
        frame = _frame(
            request,
            key,
            to,
            priority=body.priority,
            content=body.content,
            requires_action=body.requires_action,
            patient_id=body.patient_id,
            template=body.policy,
            dedup_key=body.dedup_key,
        )
        raised = await _raise(request, principal, frame, department, body.drill)
    except RemoteProtocolError as error:
        return _refused(error)
    told = {"alert_id": raised.alert_id, "alert_seq": raised.alert_seq, "reach": raised.reach}
    return _created(_json(told, 201), raised)


def _created(answer: Response, raised: Raised) -> Response:
    answer.headers["location"] = f"/v1/alerts/{raised.alert_id}"
    if raised.is_duplicate:
        answer.headers["idempotency-replayed"] = "true"
    return answer


async def _get_alert(request: Request) -> Response:
    """Who has it: for the people of its department, and for who raised it."""
    node = _node(request)
    try:
        principal = _principal(request)
        try:
            view = await node.alerts.view(request.path_params["alert_id"])
        except LedgerUnavailable:
            raise RemoteProtocolError(ErrorCode.INTERNAL, "the ledger does not answer") from None
        if view is None:
            return _refusal(ErrorCode.BAD_REQUEST, 404, "alert: not known")
        notification = view.notification
        who = raiser(principal.user_id, principal.roles)
        is_theirs = not who.startswith("service:") and notification.department in principal.departments
        if not (is_theirs or notification.from_ == who):
            raise RemoteProtocolError(ErrorCode.FORBIDDEN)
    except RemoteProtocolError as error:
        return _refused(error)
    # Who has an alert is told also where no row can be written: alerts go on.
    node.audit.note(
        node.audit.row(
            "alert.read",
            user=principal.user_id,
            roles=tuple(principal.roles),
            department=notification.department,
            patient_id=notification.patient_id,
            alert=notification.alert_id,
        )
    )
    told: dict[str, Any] = msgspec.to_builtins(notification)
    for name in ("type", "event", "alert_seq", "by", "options", "reached"):
        told.pop(name, None)
    people = [
        {
            "user_id": person.user_id,
            "answer": person.answer,
            "at": iso_ms(person.at),
            "step": person.step,
            "eta_at": _at(person.eta_at),
            "slot": person.slot,
            "reason": person.reason,
            "delivered_at": _at(person.delivered_at),
            "displayed_at": _at(person.displayed_at),
            "accepted_at": _at(person.accepted_at),
        }
        for person in view.people
    ]
    return _json({**told, "people": people, "reach": view.reach})


def _at(moment: datetime | None) -> str | None:
    return None if moment is None else iso_ms(moment)


async def _stand_down(request: Request) -> Response:
    """Call an alert off: for who raised it. The second time changes nothing and answers the same.

    One that has ended in another way is 409.
    """
    node, alert_id = _node(request), request.path_params["alert_id"]
    try:
        principal = _principal(request)
        who = raiser(principal.user_id, principal.roles)
        try:
            view = await node.alerts.view(alert_id)
            if view is None:
                return _refusal(ErrorCode.BAD_REQUEST, 404, "alert: not known")
            if view.notification.from_ != who:
                raise RemoteProtocolError(ErrorCode.FORBIDDEN)
            response = AlertAnswer(
                # No client's key begins so: one stand-down of an alert by its raiser is every one.
                key=f"!stand_down:{alert_id}",
                user_id=who,
                roles=tuple(principal.roles),
                department=view.notification.department,
                alert_id=alert_id,
                answer="stand_down",
            )
            await node.alerts.respond(response, node.alerts.now())
        except LedgerUnavailable:
            raise RemoteProtocolError(ErrorCode.INTERNAL, "nothing can be recorded now") from None
    except RemoteProtocolError as error:
        return _refused(error)
    return _json({"alert_id": alert_id, "state": "stood_down"})


async def _post_communication(request: Request) -> Response:
    """Raise an alert by a FHIR R4 CommunicationRequest; refusals are OperationOutcomes."""
    try:
        principal = _principal(request)
        raw = await _body(request, _node(request).settings.max_frame_bytes)
        try:
            resource = msgspec.json.decode(raw, type=dict[str, Any])
            wanted = communication.read(resource)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _outcome(400, "structure", "body: not one JSON object")
        except communication.NotRaised as error:
            return _outcome(422, error.issue, error.text, error.expression)
        department = wanted.department or next(iter(principal.departments), None)
        if department is None or (wanted.department is None and len(principal.departments) > 1):
            return _outcome(422, "required", "recipient: names no department", "CommunicationRequest.recipient")
        key = _key_of(request) or wanted.key
        if key is None:
            return _outcome(422, "required", "identifier: required, or id, or an Idempotency-Key")
        to = AlertTarget(role=wanted.role, user=wanted.user)
        frame = _frame(
            request,
            key,
            AlertTarget(department=department) if wanted.role is None and wanted.user is None else to,
            priority=wanted.priority,
            content=wanted.content,
            requires_action=wanted.requires_action,
            patient_id=wanted.patient_id,
        )
        raised = await _raise(request, principal, frame, department, False)
    except RemoteProtocolError as error:
        return _refused_fhir(error)
    return _created(_fhir(communication.answer(resource, raised), 201), raised)


#: FHIR's issue-type of each code. Source: https://hl7.org/fhir/R4/valueset-issue-type.html.
_ISSUES: Final[Mapping[ErrorCode, str]] = {
    ErrorCode.UNAUTHORIZED: "login",
    ErrorCode.TOKEN_EXPIRED: "expired",
    ErrorCode.FORBIDDEN: "forbidden",
    ErrorCode.TOO_LARGE: "too-long",
    ErrorCode.ROLE_UNASSIGNED: "not-found",
    ErrorCode.RATE_LIMITED: "throttled",
    ErrorCode.INTERNAL: "transient",
}


def _fhir(content: Any, status: int) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/fhir+json")


def _refused_fhir(error: RemoteProtocolError) -> Response:
    refused = _refused(error)
    issue = _ISSUES.get(error.code, "invalid")
    answer = _outcome(refused.status_code, issue, error.detail or error_text(error.code, "en"))
    if "retry-after" in refused.headers:
        answer.headers["retry-after"] = refused.headers["retry-after"]
    return answer


def _outcome(status: int, issue: str, text: str, expression: str = "") -> Response:
    return _fhir(communication.outcome(issue, text, expression), status)


# --- the socket and the page --------------------------------------------------------------------------------


async def _chat(websocket: WebSocket) -> None:
    params = websocket.path_params
    if not (valid_id(params["department"]) and valid_id(params["user_id"])):
        await websocket.close()  # before accept: HTTP 403
        return
    await Connection(websocket, websocket.app.state.node).serve()


def _web_folder() -> Path:
    """The page's files: they lie beside the package, in a checkout and in an installed one alike."""
    return Path(chatd.__file__).parent.parent / "clients" / "web"


def _page(folder: Path) -> Handler:
    async def index(_: Request) -> Response:
        return FileResponse(folder / "index.html", media_type="text/html")

    return index


def routes() -> list[BaseRoute]:
    """All routes of a gateway."""
    folder = _web_folder()
    return [
        *(_guarded(method, path, handler, _refused) for method, path, handler in _handlers(folder)),
        _guarded("POST", "/v1/fhir/CommunicationRequest", _post_communication, _refused_fhir),
        WebSocketRoute("/chat/{department}/{user_id}", _chat),
        Mount("/web", StaticFiles(directory=folder)),
    ]


def _handlers(folder: Path) -> tuple[tuple[str, str, Handler], ...]:
    return (
        ("GET", "/", _page(folder)),
        ("GET", "/health", _health),
        ("GET", "/health/live", _live),
        ("GET", "/health/ready", _ready),
        ("GET", "/health/model", _model),
        ("GET", "/metrics", _metrics),
        ("GET", "/asyncapi.json", _asyncapi),
        ("GET", "/schema.json", _json_schema),
        ("GET", "/v1/demo", _demo),
        ("POST", "/v1/demo/token", _demo_token),
        ("GET", "/v1/departments/{department}/patients", _patients),
        ("GET", "/v1/departments/{department}/people", _people),
        ("POST", "/v1/departments/{department}/alerts", _post_alert),
        ("GET", "/v1/alerts/{alert_id}", _get_alert),
        ("POST", "/v1/alerts/{alert_id}/stand_down", _stand_down),
    )
