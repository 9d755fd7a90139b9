"""The HTTP side: health, metrics, schemas, the demo's sign-in, the patient list, the page; and what it refuses."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import jwt
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.chat_client import ChatClient
from tests.http_call import WAIT_S, Answer, call
from tests.server import Hospital

GETS = (
    "/",
    "/health",
    "/health/live",
    "/health/ready",
    "/health/model",
    "/metrics",
    "/asyncapi.json",
    "/schema.json",
    "/v1/demo",
    "/v1/departments/cardiology/patients",
    "/web/index.html",
    "/no/such/page",
)
PATIENTS = "/v1/departments/cardiology/patients"
TOKEN = "/v1/demo/token"
#: The fields of every refusal.
REFUSAL = {"code", "message", "retryable", "detail"}
SIGN_IN = {"user_id": "dr.santos.cardio", "department": "cardiology"}
Phone = Callable[..., ChatClient]


def sign_in(place: Hospital, body: bytes, **headers: str) -> Answer:
    return call(place.url, TOKEN, "POST", body, {"Content-Type": "application/json", **headers})


def raw(place: Hospital, request: bytes) -> bytes:
    """Send bytes as they are, and return the answer's first bytes; b"" for a closed line."""
    parts = urlsplit(place.url)
    with socket.create_connection((parts.hostname, parts.port), WAIT_S) as line:
        line.sendall(request)
        return line.recv(65_536)


@pytest.mark.parametrize("path", GETS)
def test_every_answer_has_the_security_headers(place: Hospital, path: str) -> None:
    """Whatever the path and the status, a browser is told to run, frame, guess and keep nothing."""
    found = call(place.url, path)
    policy = found.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "object-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"
    assert found.headers["cache-control"] == "no-store"
    assert "server" not in found.headers
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize("path", GETS[:9])
def test_get_routes_take_head_and_refuse_the_rest(place: Hospital, path: str) -> None:
    """HEAD answers as GET without a body; POST, PUT and DELETE are refused with 405."""
    get, head = call(place.url, path), call(place.url, path, "HEAD")
    assert head.status == get.status
    assert head.body == b""
    for method in ("POST", "PUT", "DELETE"):
        refused = call(place.url, path, method)
        assert refused.status == 405
        assert refused.json().keys() == REFUSAL
        assert "GET" in refused.headers["allow"]


def test_health_live_ready(place: Hospital) -> None:
    """A healthy gateway is live and ready, and says what each part is."""
    assert call(place.url, "/health/live").json() == {"status": "live"}
    ready = call(place.url, "/health/ready")
    assert ready.status == 200
    assert ready.headers["content-type"] == "application/json"
    assert ready.json() == {
        "ready": True,
        "draining": False,
        "redis": True,
        "context": True,
        "ledger": True,
        "mode": "facts_only",
        "model": "none",
        "keys": True,
        "revocations": True,
        "clock_stepped": False,
        "audit": "ok",
        "redis_safe": True,
    }


async def test_many_health_checks_at_once_cost_the_ledger_little(phone: Phone, place: Hospital) -> None:
    """Hundreds of health checks do not stand in the line in which a confirmation waits."""
    doctor = phone()
    await doctor.connect()
    answer = (await doctor.ask("Analyze João Silva's ECG results", "7823"))[-1]
    action_id = answer["content"]["structured_data"]["actions"][0]["action_id"]
    checks = [asyncio.to_thread(call, place.url, "/health") for _ in range(300)]
    storm = asyncio.gather(*checks)
    await doctor.send({"type": "action", "client_msg_id": "a-1", "action_id": action_id, "step": "prepare"})
    assert (await doctor.until("action_update", client_msg_id="a-1"))["status"] == "prepared"
    assert {check.json()["status"] for check in await storm} == {"healthy"}


def test_metrics_parse_and_name_what_is_documented(place: Hospital) -> None:
    """/metrics is Prometheus's text format, and the connections and questions are in it."""
    found = call(place.url, "/metrics")
    assert found.headers["content-type"].startswith("text/plain")
    families = {family.name for family in text_string_to_metric_families(found.body.decode())}
    assert families >= {"chatd_connections", "chatd_questions", "chatd_accept_seconds", "chatd_context_loaded"}


def test_schemas_are_those_of_the_command(place: Hospital) -> None:
    """/asyncapi.json and /schema.json serve what ``chatd schema`` prints."""
    assert call(place.url, "/asyncapi.json").json() == json.loads(place.run("schema").stdout)
    assert call(place.url, "/schema.json").json() == json.loads(place.run("schema", "--json-schema").stdout)
    assert call(place.url, "/asyncapi.json").json()["asyncapi"]


def test_demo_lists_staff_and_departments_and_no_patient(place: Hospital) -> None:
    """/v1/demo names whom one may sign in as; a patient's name is not among them."""
    found = call(place.url, "/v1/demo")
    assert found.status == 200
    body = found.json()
    assert SIGN_IN["user_id"] in [person["user_id"] for person in body["staff"]]
    assert {d["id"] for d in body["departments"]} >= {"cardiology", "emergency", "surgery"}
    assert "Silva" not in found.body.decode()


async def test_demo_token_opens_the_socket(place: Hospital) -> None:
    """A signed-in demo doctor asks with the token that the sign-in gave."""
    found = await asyncio.to_thread(sign_in, place, json.dumps(SIGN_IN).encode())
    assert found.status == 200
    token = found.json()["token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == found.json()["expires_in_s"]
    doctor = ChatClient(place.url, department="cardiology", user_id="dr.santos.cardio", token=token)
    await doctor.connect()
    assert (await doctor.ask("Allergies?", "7823"))[-1]["status"] == "completed"
    await doctor.close()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"CANARY-4711", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b'{"user_id":"dr.santos.cardio"}', 400),
        (b'{"user_id":7,"department":"cardiology"}', 400),
        (b'{"user_id":"../../etc/passwd","department":"cardiology"}', 400),
        (b'{"user_id":"' + b"x" * 200 + b'","department":"cardiology"}', 400),
        (b'{"user_id":"dr.santos.cardio","department":"cardiology","more":' + b"[" * 3900 + b"}", 400),
        (b'{"user_id":"CANARY-4711","department":"cardiology"}', 403),
        (b'{"user_id":"dr.santos.cardio","department":"emergency"}', 403),
        (b'{"user_id":"dr.santos.cardio","department":"CANARY-4711"}', 403),
        (b" " * 5000, 413),
    ],
)
def test_bad_sign_in_is_refused_without_echo(place: Hospital, body: bytes, status: int) -> None:
    """A malformed, unknown or oversized sign-in is refused with a code, and nothing of it comes back."""
    found = sign_in(place, body)
    assert found.status == status
    body_of = found.json()
    assert body_of.keys() == REFUSAL
    assert body_of["detail"] is None
    assert b"CANARY" not in found.body


def test_chunked_body_is_bounded_too(place: Hospital) -> None:
    """A body that does not say its length is refused as soon as it is too long, not read to its end."""
    head = b"POST /v1/demo/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    # The last chunk never comes: only a server that counts can answer.
    assert raw(place, head + b"1400\r\n" + b" " * 0x1400 + b"\r\n").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer a.b.c", 401),
        ("Basic ZHI6eA==", 401),
        ("good", 200),
        ("good lower case", 200),
        ("other department", 403),
    ],
)
def test_patient_list_is_the_departments_own(
    place: Hospital, tokens: Callable[..., str], authorization: str | None, status: int
) -> None:
    """The list needs a good token of that very department, and shows identity only."""
    given = {
        "good": f"Bearer {tokens()}",
        "good lower case": f"bearer {tokens()}",
        "other department": f"Bearer {tokens('dr.vieira.surgery', 'surgery')}",
    }.get(authorization or "", authorization)
    found = call(place.url, PATIENTS, headers={} if given is None else {"Authorization": given})
    assert found.status == status
    if status != 200:
        assert found.json().keys() == REFUSAL
        assert "Silva" not in found.body.decode()
        return
    patients = found.json()["patients"]
    assert [p["name"] for p in patients if p["patient_id"] == "7823"] == ["João Silva"]
    assert {key for p in patients for key in p} == {
        "patient_id",
        "name",
        "birth_date",
        "sex",
        "age_years",
        "deceased",
        "look_alike",
        "scripts",
    }
    # One of another department is not there.
    assert "1072" not in [p["patient_id"] for p in patients]


def test_patient_list_of_an_unknown_department_is_forbidden(place: Hospital, tokens: Callable[..., str]) -> None:
    """A department that the token does not name is forbidden, whether it exists or not."""
    for department in ("nowhere", "emergency", "..%2fcardiology", "%00"):
        path = f"/v1/departments/{department}/patients"
        assert call(place.url, path, headers={"Authorization": f"Bearer {tokens()}"}).status in (403, 404)


@pytest.mark.parametrize(
    "path",
    [
        "/web/../chatd/app.py",
        "/web/../../etc/passwd",
        "/web/%2e%2e/chatd/app.py",
        "/web/%2e%2e%2fchatd%2fapp.py",
        "/web/..%5cchatd%5capp.py",
        "/web//etc/passwd",
        "/web/./../README.md",
        "/web/%00",
        "/web/index.html%00.js",
        "/web/" + "a" * 5000,
        "/web/",
        "/web",
    ],
)
def test_page_folder_cannot_be_left(place: Hospital, path: str) -> None:
    """No spelling of a path leads out of the page's folder, and none is a fault of the server."""
    found = call(place.url, path)
    assert found.status in (400, 404, 307)
    assert b"import" not in found.body
    assert b"root:" not in found.body


def test_page_is_served_whole(place: Hospital) -> None:
    """The page and each script it names are there with their types."""
    page = call(place.url, "/")
    assert page.headers["content-type"].startswith("text/html")
    script = call(place.url, "/web/app.js")
    assert script.status == 200
    assert "javascript" in script.headers["content-type"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1.evil.example", "file://"]
)
async def test_foreign_origin_gets_403(place: Hospital, tokens: Callable[..., str], origin: str) -> None:
    """A page of another origin cannot open a socket in a signed-in browser's name."""
    address = f"{place.url.replace('http', 'ws', 1)}/chat/cardiology/dr.santos.cardio"
    headers = {"Authorization": f"Bearer {tokens()}"}
    with pytest.raises(InvalidStatus) as refused:
        async with connect(address, subprotocols=["chatd.v1"], origin=origin, additional_headers=headers):  # type: ignore[arg-type,list-item]
            pass
    assert refused.value.response.status_code == 403


async def test_own_origin_is_let_in(place: Hospital, tokens: Callable[..., str]) -> None:
    """chatd's own page opens the socket."""
    address = f"{place.url.replace('http', 'ws', 1)}/chat/cardiology/dr.santos.cardio"
    headers = {"Authorization": f"Bearer {tokens()}"}
    async with connect(address, subprotocols=["chatd.v1"], origin=place.url, additional_headers=headers) as socket_:  # type: ignore[arg-type,list-item]
        await socket_.send('{"type":"hello"}')
        assert json.loads(await asyncio.wait_for(socket_.recv(), WAIT_S))["type"] == "welcome"


@pytest.mark.parametrize(
    "path", ["/chat/cardiology/Jo%C3%A3o%20Silva", "/chat/card%20iology/x", "/chat/a/" + "x" * 200]
)
async def test_path_that_is_no_id_gets_403(place: Hospital, path: str) -> None:
    """A path that cannot be a department and a user is refused before the socket is open."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(place.url.replace("http", "ws", 1) + path, subprotocols=["chatd.v1"]):  # type: ignore[list-item]
            pass
    assert refused.value.response.status_code == 403


def test_chat_path_without_upgrade_is_no_page(place: Hospital) -> None:
    """The socket's path asked for as a page is not found."""
    found = call(place.url, "/chat/cardiology/dr.santos.cardio")
    assert found.status == 404
    assert found.json().keys() == REFUSAL


def test_bytes_that_are_no_http_get_400(place: Hospital) -> None:
    """Garbage on the port is refused by the server and harms nobody."""
    assert raw(place, b"CANARY garbage\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert call(place.url, "/health/live").status == 200
