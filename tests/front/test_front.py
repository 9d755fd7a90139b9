"""The hospital's front door: a real nginx with the project's configuration before two gateways."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Callable

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.chat_client import WAIT_S, ChatClient
from tests.front.front_nginx import Front
from tests.journeys.test_original_clients import SHAPES
from tests.server import Hospital

pytestmark = pytest.mark.front

Phone = Callable[..., ChatClient]
#: nginx closes a head or a body that does not come within 5 s; a busy machine needs longer to notice.
SLOW_S = 5.0
CHAT = "/chat/cardiology/dr.santos.cardio"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": base64.b64encode(b"0123456789abcdef").decode(),
}


def test_configuration_is_accepted_without_a_word(front: Front) -> None:
    """``nginx -t`` finds nothing to warn of."""
    said = front.check()
    assert "test is successful" in said
    assert "warn" not in said


# --- TLS ----------------------------------------------------------------------------------------------------


def test_tls_is_1_3_with_the_two_curves(front: Front) -> None:
    """1.3 is spoken, with X25519 and P-256 each alone; 1.2 is refused, and so is another curve."""
    with front.line() as line:
        assert line.version() == "TLSv1.3"
    old = front.authority.context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol version"):
        front.line(old)
    for group, is_spoken in (("X25519", True), ("P-256", True), ("P-521", False), ("ffdhe2048", False)):
        done = subprocess.run(
            [
                "openssl",
                "s_client",
                "-connect",
                front.host,
                "-servername",
                "localhost",
                "-groups",
                group,
                "-CAfile",
                front.authority.ca,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == is_spoken, group


def test_strangers_do_not_trust_and_other_names_get_no_certificate(front: Front) -> None:
    """Without the hospital's authority the certificate is refused; another name is shown none."""
    with pytest.raises(ssl.SSLCertVerificationError):
        front.line(ssl.create_default_context())
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized"):
        front.line(name="other.hospital.test")
    status, _, _ = front.exchange(b"GET / HTTP/1.1\r\nHost: other.hospital.test\r\nConnection: close\r\n\r\n")
    assert status == 421


def test_early_data_and_tickets_are_off(front: Front) -> None:
    """What could be sent again by somebody else is not taken, and no key of tickets is kept."""
    done = subprocess.run(
        [
            "openssl",
            "s_client",
            "-connect",
            front.host,
            "-servername",
            "localhost",
            "-CAfile",
            front.authority.ca,
            "-ign_eof",
        ],
        input=f"GET /health/live HTTP/1.1\r\nHost: {front.host}\r\nConnection: close\r\n\r\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert '{"status":"live"}' in done.stdout
    assert set(re.findall(r"Max Early Data: (\d+)", done.stdout)) <= {"0"}


def test_plain_http_is_sent_to_the_secure_address(front: Front) -> None:
    """Port 80 names the secure address, and repeats nothing of what was asked."""
    with socket.create_connection(("127.0.0.1", front.plain_port), timeout=WAIT_S) as line:
        line.sendall(b"GET /x?token=CANARY HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 301")
    assert f"Location: {front.url}/\r\n".encode() in answer
    assert b"CANARY" not in answer
    assert b"evil" not in answer


# --- clients ------------------------------------------------------------------------------------------------


async def test_python_client_asks_and_resumes_over_wss(phone: Phone) -> None:
    """A question is answered through nginx; a phone that was cut resumes, on whichever gateway."""
    doctor = phone()
    await doctor.connect()
    frames = await doctor.ask("Analyze João Silva's ECG results", "7823")
    assert [frame["type"] for frame in frames] == ["accepted", "facts", "ai_response"]
    for _ in range(4):
        await doctor.cut()
        assert (await doctor.connect())["resumed"] is True


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_original_clients_are_answered_over_wss(
    front: Front, tokens: Callable[..., str], shape: str, binary: bool
) -> None:
    """Each golden frame of the original clients, as text and as bytes, gets its one answer through nginx."""
    user = "dr.santos.cardio" if b"santos" in SHAPES[shape] else "dr.mendes.cardio"
    data = SHAPES[shape]
    headers = {"Authorization": f"Bearer {tokens(user)}"}
    async with connect(
        f"wss://{front.host}/chat/cardiology/{user}?compat=text",
        ssl=front.authority.context(),
        additional_headers=headers,
        compression=None,
    ) as line:
        await line.send(data if binary else data.decode())
        answer = json.loads(await asyncio.wait_for(line.recv(), WAIT_S))
    assert (answer["type"], answer["status"]) == ("ai_response", "completed")


async def test_alert_over_https_reaches_a_phone(front: Front, phone: Phone, tokens: Callable[..., str]) -> None:
    """An alert that is raised through nginx is on a phone that came through nginx; sent again it is the same."""
    doctor = phone()
    await doctor.connect()
    body = json.dumps({"content": "Bed 4 needs you", "priority": "high"})
    head = (
        f"POST /v1/departments/cardiology/alerts HTTP/1.1\r\nHost: {front.host}\r\nConnection: close\r\n"
        f"Authorization: Bearer {tokens()}\r\nIdempotency-Key: k-{secrets.token_hex(6)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    first = await asyncio.to_thread(front.exchange, head)
    again = await asyncio.to_thread(front.exchange, head)
    assert first[0] == again[0] == 201
    alert_id = json.loads(first[2])["alert_id"]
    assert json.loads(again[2])["alert_id"] == alert_id
    await doctor.until("system_notification", alert_id=alert_id)


# --- who may open a socket ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["https://evil.test", "null", "http://localhost", "https://localhost.evil.test", "x"]
)
def test_foreign_origin_is_refused(front: Front, origin: str) -> None:
    """A page of another origin opens no socket, and nothing below /v1/."""
    assert front.get(CHAT, Origin=origin, **UPGRADE)[0] == 403
    assert front.get("/v1/departments/cardiology/patients", Origin=origin)[0] == 403


def test_own_origin_and_none_are_let_in(front: Front) -> None:
    """The page's own origin and a program without one reach a gateway."""
    for headers in ({"Origin": front.url}, {}):
        with front.line() as line:
            lines = {"Host": front.host, "Sec-WebSocket-Protocol": "chatd.v1", **headers}
            lines |= {name.replace("_", "-"): value for name, value in UPGRADE.items()}
            head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            line.sendall(f"GET {CHAT} HTTP/1.1\r\n{head}\r\n".encode())
            assert line.recv(4096).startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/x/../metrics", "/%6detrics", "//metrics", "/health/model"])
def test_metrics_are_for_monitoring_alone(front: Front, path: str) -> None:
    """From an address that is not named, metrics are refused, however the path is written."""
    assert front.get(path)[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", CHAT, 405),
        ("PUT", "/v1/departments/cardiology/alerts", 405),
        ("TRACE", "/", 405),
        ("DELETE", "/", 405),
        ("OPTIONS", "/v1/demo", 405),
    ],
)
def test_other_methods_are_refused(front: Front, method: str, path: str, status: int) -> None:
    """Only what chatd has is passed on."""
    assert front.get(path, method=method)[0] == status


def test_forwarded_headers_do_not_reach_chatd_and_host_is_ours(front: Front) -> None:
    """Another Host on a known name's connection is told that it is wrong, whatever X-Forwarded-Host says."""
    status, _, _ = front.exchange(
        f"GET / HTTP/1.1\r\nHost: evil.test\r\nX-Forwarded-Host: {front.host}\r\nConnection: close\r\n\r\n".encode()
    )
    assert status == 421


# --- bounds -------------------------------------------------------------------------------------------------


def test_heads_uris_and_bodies_have_a_limit(front: Front) -> None:
    """A long path is 414, a long header 400, a long body 413; a token of the greatest length still passes."""
    assert front.get("/" + "a" * 10_000)[0] == 414
    assert front.get("/health/live", X="a" * 10_000)[0] == 400
    assert front.get("/health/live", Authorization="Bearer " + "a" * 4096)[0] == 200
    assert (
        front.exchange(
            f"POST /v1/departments/cardiology/alerts HTTP/1.1\r\nHost: {front.host}\r\n"
            "Content-Length: 70000\r\nConnection: close\r\n\r\n".encode()
        )[0]
        == 413
    )


def test_two_lengths_are_refused(front: Front) -> None:
    """A request with a length and a chunked body, which two servers could cut differently, is refused."""
    assert (
        front.exchange(
            f"POST /v1/demo/token HTTP/1.1\r\nHost: {front.host}\r\nContent-Length: 4\r\n"
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n".encode()
        )[0]
        == 400
    )


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /chat/cardiology/dr.santos.cardio HTTP/1.1\r\nHost: ",
        b"",
        b"POST /v1/demo/token HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1000\r\n\r\n{",
    ],
    ids=["half a head", "nothing", "half a body"],
)
def test_slow_sender_is_closed(front: Front, begun: bytes) -> None:
    """Who keeps a request unfinished, byte by byte or not at all, is closed; it does not matter that some come."""
    with front.line() as line:
        line.sendall(begun.replace(b"HOST", front.host.encode()))
        line.settimeout(1.0)
        began = time.monotonic()
        while time.monotonic() - began < WAIT_S:
            try:
                if not line.recv(4096):
                    break
            except TimeoutError:
                if begun.startswith(b"GET"):
                    try:
                        line.sendall(b"x")
                    except OSError:
                        break
            except OSError:
                break
        else:
            pytest.fail("still open")


async def test_one_that_opens_socket_after_socket_is_held_back_and_others_are_not(
    front: Front, phone: Phone, tokens: Callable[..., str]
) -> None:
    """A token that opens sockets without end is told 429; a colleague behind the same address comes in."""
    url, context = f"wss://{front.host}{CHAT}", front.authority.context()
    headers = {"Authorization": f"Bearer {tokens()}"}
    lines: list[ClientConnection] = []
    refused = []
    for _ in range(15):
        try:
            lines.append(await connect(url, ssl=context, additional_headers=headers, compression=None))
        except InvalidStatus as error:
            refused.append((error.response.status_code, error.response.headers["Retry-After"]))
    assert (len(lines), refused) == (10, [(429, "1")] * 5)
    other = phone("dr.mendes.cardio")
    await other.connect()
    for line in lines:
        await line.close()


# --- what is said and what is not -----------------------------------------------------------------------------


def test_own_answers_have_the_headers_and_each_once(front: Front) -> None:
    """What nginx answers itself has the security headers; what chatd answers has each of them once."""
    for path, extra in (("/health/live", {}), ("/", {}), (CHAT, {"Origin": "https://evil.test"}), ("/metrics", {})):
        with front.line() as line:
            lines = {"Host": front.host, "Connection": "close", **extra}
            head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            line.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
            answer = b"".join(iter(lambda line=line: line.recv(65536), b"")).partition(b"\r\n\r\n")[0].lower()  # type: ignore[misc]
        for name in (
            "strict-transport-security",
            "x-content-type-options",
            "referrer-policy",
            "cache-control",
            "content-security-policy",
        ):
            assert answer.count(f"\r\n{name}:".encode()) == 1, (path, name)
        assert b"server: nginx\r\n" in answer + b"\r\n"


def test_no_log_holds_what_was_asked(front: Front) -> None:
    """Tokens in queries, paths and headers, refused or not, stand in no log of nginx."""
    canary = f"CANARY{secrets.token_hex(8)}"
    asked = [
        (f"/?token={canary}", {}),
        (f"{CHAT}?token={canary}", UPGRADE),
        (f"/v1/departments/{canary}/patients?access_token={canary}", {"Authorization": f"Bearer {canary}"}),
        (f"/{canary}", {"Referer": f"https://x.test/{canary}", "User_Agent": canary, "Cookie": canary}),
        ("/metrics", {"X": canary}),
        (f"/{canary}" + "a" * 10_000, {}),
        ("/health/live", {"X": canary + "a" * 10_000}),
        (CHAT, {"Origin": f"https://{canary}.test"}),
    ]
    statuses = [front.get(path, **headers)[0] for path, headers in asked]
    assert statuses[1] == 400
    assert 0 not in statuses
    lines = front.logs()
    assert '"route":"chat","status":400' in lines
    assert canary not in lines
    assert canary.lower() not in lines.lower()


async def test_maintenance_is_told_and_open_sockets_stay(front: Front, phone: Phone) -> None:
    """With the file there, new ones get 503 in two languages and health is told on; who is in, stays in."""
    doctor = phone()
    await doctor.connect()
    front.maintenance.touch()
    try:
        for path in ("/", CHAT, "/v1/demo"):
            status, headers, body = await asyncio.to_thread(front.get, path)
            assert (status, headers["retry-after"]) == (503, "5")
            assert b"worked on" in body
            assert "manutenção".encode() in body
        assert (await asyncio.to_thread(front.get, "/health/ready"))[0] == 200
        frames = await doctor.ask("Allergies?", "7823")
        assert frames[-1]["status"] == "completed"
    finally:
        front.maintenance.unlink()
    assert (await asyncio.to_thread(front.get, "/"))[0] == 200


async def test_gateways_away_are_told_in_words(place: Hospital) -> None:
    """Where no gateway listens, a person is told to use the telephone, with 503 and a time to come back."""
    front = Front({"a": "unix:/nowhere/a.sock", "b": "127.0.0.1:9"})
    try:
        await asyncio.to_thread(front.start)
        status, headers, body = await asyncio.to_thread(front.get, "/")
        assert (status, headers["retry-after"]) == (503, "5")
        assert b"telephone" in body
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"wss://{front.host}{CHAT}", ssl=front.authority.context())
        assert refused.value.response.status_code == 503
    finally:
        await asyncio.to_thread(front.stop)


async def _to_the_end(line: ClientConnection) -> None:
    while True:
        await line.recv()


async def test_frame_over_the_limit_is_refused_by_chatd_through_nginx(front: Front, tokens: Callable[..., str]) -> None:
    """nginx passes frames as they are: the limit of a frame is chatd's own, with its own code."""
    headers = {"Authorization": f"Bearer {tokens()}"}
    async with connect(
        f"wss://{front.host}{CHAT}",
        ssl=front.authority.context(),
        additional_headers=headers,
        subprotocols=["chatd.v1"],  # type: ignore[list-item]
        compression=None,
    ) as line:
        await line.send("x" * 70_000)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(_to_the_end(line), WAIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
