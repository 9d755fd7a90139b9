"""HTTP routes: health, metrics, the page, the demo's sign-in, a department's patient list, the schemas."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

import chatd
from chatd import demo, metrics
from chatd.gateway.auth import Principal, TokenError, mint
from chatd.gateway.connection import Connection, valid_id
from chatd.gateway.node import Node
from chatd.readiness import readiness
from context.layers import age_years
from context.store import StoreError
from protocols import schema
from protocols.errors import ErrorCode, error_text
from protocols.frames import Id

#: A demo sign-in lasts a shift.
DEMO_TOKEN_TTL_S = 8 * 3600
#: A request body of the demo's sign-in; more is refused unread.
_MAX_BODY_BYTES = 4096

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


def _refusal(code: ErrorCode, status: int) -> Response:
    return _json({"code": code.value, "message": error_text(code, "en")}, status)


def _node(request: Request) -> Node:
    node: Node = request.app.state.node
    return node


# --- health and metrics -------------------------------------------------------------------------------------


async def _health(request: Request) -> Response:
    """The original design's body: ``status``, ``active_connections``, ``medgemma_status``."""
    node = _node(request)
    ready = await readiness(node)
    is_whole = ready.ready and ready.model in ("none", "ready")
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
    """Whether new connections should come here: 200, or 503 with what is missing."""
    ready = await readiness(_node(request))
    return _json(ready, 200 if ready.ready else 503)


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
    body = bytearray()
    async for chunk in request.stream():
        # Counted as it comes: a chunked body says no length beforehand.
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            return _refusal(ErrorCode.TOO_LARGE, 413)
    try:
        wanted = msgspec.json.decode(body, type=_SignIn)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return _refusal(ErrorCode.BAD_REQUEST, 400)
    person = next((p for p in demo.staff() if p.user_id == wanted.user_id), None)
    if person is None or wanted.department not in person.departments:
        return _refusal(ErrorCode.FORBIDDEN, 403)
    ttl_s = min(DEMO_TOKEN_TTL_S, node.settings.jwt_max_ttl_s)
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


def _principal(request: Request) -> Principal | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    node = _node(request)
    try:
        return node.verifier.verify(token.strip(), now=node.clock.now())
    except TokenError:
        return None


async def _patients(request: Request) -> Response:
    """The department's patients by name, for the picker: identity only, nothing clinical."""
    principal = _principal(request)
    if principal is None:
        return _refusal(ErrorCode.UNAUTHORIZED, 401)
    department = request.path_params["department"]
    if department not in principal.departments:
        return _refusal(ErrorCode.FORBIDDEN, 403)
    node = _node(request)
    try:
        cards = await node.store.cards_of(department)
    except StoreError:
        return _refusal(ErrorCode.INTERNAL, 503)
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
                }
                for card in sorted(cards, key=lambda card: (card.name.casefold(), card.patient_id))
            ]
        }
    )


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


def _page(folder: Path) -> Callable[[Request], Awaitable[Response]]:
    async def index(_: Request) -> Response:
        return FileResponse(folder / "index.html", media_type="text/html")

    return index


def routes() -> list[BaseRoute]:
    """All routes of a gateway."""
    folder = _web_folder()
    return [
        Route("/", _page(folder)),
        Route("/health", _health),
        Route("/health/live", _live),
        Route("/health/ready", _ready),
        Route("/health/model", _model),
        Route("/metrics", _metrics),
        Route("/asyncapi.json", _asyncapi),
        Route("/schema.json", _json_schema),
        Route("/v1/demo", _demo),
        Route("/v1/demo/token", _demo_token, methods=["POST"]),
        Route("/v1/departments/{department}/patients", _patients),
        WebSocketRoute("/chat/{department}/{user_id}", _chat),
        Mount("/web", StaticFiles(directory=folder)),
    ]
