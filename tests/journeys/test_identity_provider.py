"""A hospital with an identity provider of its own: sign-in, roles, revocation, rotation and emergency, on sockets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from chatd.identity.roles import TABLE
from tests.fakes.oidc_provider import Provider, rules_file, running
from tests.http_call import Answer, call
from tests.identity_attacks import ORIGIN_ATTACKS, TOKEN_ATTACKS, Forge
from tests.server import Hospital, Process, hospital

pytestmark = pytest.mark.journeys

WAIT_S = 30.0
DOCTOR, NURSE = "dr.santos.cardio", "nurse.cruz.emergency"
CALLBACK = "https://chat.hospital.example/signed-in"


class Ward:
    """The provider, the hospital that trusts it, and a second gateway."""

    def __init__(self, provider: Provider, place: Hospital, ca: Path) -> None:
        self.provider = provider
        self.place = place
        self.ca = ca
        self.other = place.serve()


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """Two gateways that take their keys from a provider over TLS, with a patient in each of two departments."""
    folder = tmp_path_factory.mktemp("provider")
    provider = Provider()
    with running(provider, folder) as ca:
        env = {
            "CHATD_JWT_JWKS_URL": f"{provider.url}/jwks",
            "CHATD_JWT_JWKS_CA_FILE": str(ca),
            "CHATD_JWT_ISSUER": provider.url,
            "CHATD_JWT_CLAIMS_FILE": str(rules_file(folder)),
        }
        with hospital("--no-demo", env=env) as place:
            for patient_id, department in (("p-cardio", "cardiology"), ("p-er", "emergency")):
                file = folder / f"{patient_id}.json"
                name = [{"family": patient_id.title(), "given": ["Ana"]}]
                file.write_text(json.dumps({"resourceType": "Patient", "id": patient_id, "name": name}))
                place.run("fhir", "import", "--data-dir", "DIR", "--department", department, str(file))
            yield Ward(provider, place, ca)


@pytest.fixture(scope="module")
def forge() -> Forge:
    """Keys of a provider whose tokens carry roles and departments themselves."""
    return Forge()


@pytest.fixture(scope="module")
def forged(ward: Ward, forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Process:
    """A gateway that trusts the forge's key set, with every algorithm that a provider may use."""
    file = tmp_path_factory.mktemp("forge") / "jwks.json"
    file.write_bytes(forge.jwks())
    return ward.place.serve(
        {
            "CHATD_JWT_JWKS_URL": "",
            "CHATD_JWT_JWKS_CA_FILE": "",
            "CHATD_JWT_CLAIMS_FILE": "",
            "CHATD_JWT_ISSUER": "chatd",
            "CHATD_JWT_JWKS_FILE": str(file),
            "CHATD_JWT_ALGORITHMS": "ES256, EdDSA, RS256",
        }
    )


class Phone:
    """A socket and its first frames; ``code`` is how the server closed it."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def until(self, *kinds: str, **fields: Any) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            while True:
                frame: dict[str, Any] = json.loads(await self.socket.recv())
                if frame["type"] in kinds and all(frame.get(name) == value for name, value in fields.items()):
                    return frame

    async def code(self) -> int:
        async with asyncio.timeout(WAIT_S):
            try:
                while True:
                    await self.socket.recv()
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd is not None else 0


async def dial(url: str, user: str, token: str, department: str = "cardiology", **hello: Any) -> Phone:
    """Open a socket and say hello with the token, as the page does."""
    address = f"{url.replace('http', 'ws', 1)}/chat/{department}/{user}"
    socket = await connect(address, subprotocols=[Subprotocol("chatd.v1")], compression=None, open_timeout=WAIT_S)
    phone = Phone(socket)
    await phone.send(type="hello", token=token, session_id=f"sess_{secrets.token_hex(4)}", **hello)
    return phone


async def ask(url: str, path: str, token: str, method: str = "GET", body: Any = None) -> Answer:
    headers = {"authorization": f"Bearer {token}", "idempotency-key": f"k-{secrets.token_hex(6)}"}
    raw = None if body is None else json.dumps(body).encode()
    return await asyncio.to_thread(call, url, path, method, raw, headers)


async def until_status(url: str, path: str, token: str, status: int) -> None:
    """Wait until a list is answered so: another gateway hears of a change within a second or two."""
    async with asyncio.timeout(2 * WAIT_S):
        while (await ask(url, path, token)).status != status:  # noqa: ASYNC110 - another process answers
            await asyncio.sleep(0.1)


def alert(department: str) -> tuple[str, str, dict[str, Any]]:
    return f"/v1/departments/{department}/alerts", "POST", {"content": "Potassium 6.9", "priority": "critical"}


# --- signing in ---


@pytest.fixture
async def browser(ward: Ward) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks to the provider."""
    tls = ssl.create_default_context(cafile=ward.ca)
    async with httpx.AsyncClient(base_url=ward.provider.url, verify=tls, trust_env=False) as client:
        yield client


async def test_person_signs_in_with_a_code_and_renews_in_the_same_socket(
    ward: Ward, browser: httpx.AsyncClient
) -> None:
    """Discovery, code with PKCE, token, hello, and a refresh by a fresh token; groups became role and department."""
    found = (await browser.get("/.well-known/openid-configuration")).json()
    verifier = secrets.token_urlsafe(32)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    asked = {"code_challenge": challenge, "code_challenge_method": "S256", "login_hint": "u-1"}
    sent = await browser.get(
        found["authorization_endpoint"], params={**asked, "redirect_uri": CALLBACK, "state": "s-1"}
    )
    code = parse_qs(urlsplit(sent.headers["location"]).query)["code"][0]
    grant = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK, "code_verifier": verifier}
    given = (await browser.post(found["token_endpoint"], data=grant)).json()
    phone = await dial(ward.place.url, DOCTOR, given["access_token"])
    user = (await phone.until("welcome"))["user"]
    assert (user["user_id"], user["roles"], user["departments"]) == (DOCTOR, ["physician"], ["cardiology"])
    again = {"grant_type": "refresh_token", "refresh_token": given["refresh_token"]}
    fresh = (await browser.post(found["token_endpoint"], data=again)).json()
    await phone.send(type="refresh", client_msg_id="r-1", token=fresh["access_token"])
    assert (await phone.until("accepted", "error"))["type"] == "accepted"
    other = ward.provider.person("u-2")
    await phone.send(type="refresh", client_msg_id="r-2", token=other)
    assert (await phone.until("accepted", "error"))["code"] == "forbidden"
    await phone.send(type="ping", t=1)
    await phone.until("pong")
    await phone.socket.close()


async def test_machine_raises_where_its_token_says_and_opens_no_socket(ward: Ward, browser: httpx.AsyncClient) -> None:
    """Client credentials raise in the machine's department, nowhere else, and see no patient and no socket."""
    grant = {"grant_type": "client_credentials", "client_id": "lab", "client_secret": "lab-secret"}
    token = (await browser.post("/token", data=grant)).json()["access_token"]
    path, method, body = alert("cardiology")
    raised = await ask(ward.place.url, path, token, method, body)
    assert raised.status == 201
    assert (await ask(ward.place.url, f"/v1/alerts/{raised.json()['alert_id']}", token)).status == 200
    path, method, body = alert("emergency")
    assert (await ask(ward.place.url, path, token, method, body)).status == 403
    assert (await ask(ward.place.url, "/v1/departments/cardiology/patients", token)).status == 403
    assert await (await dial(ward.place.url, "lab", token)).code() == 4503


async def test_person_without_a_mapped_role_is_not_let_in(ward: Ward) -> None:
    """A guest of the right ward whose groups give no role gets no socket and no list."""
    token = ward.provider.person("u-3")
    assert await (await dial(ward.place.url, "guest.one", token)).code() == 4503
    assert (await ask(ward.place.url, "/v1/departments/cardiology/patients", token)).status == 403


# --- attacks ---

LIVE_TOKENS = [name for name, each in TOKEN_ATTACKS.items() if each.get("live")]
LIVE_ORIGINS = [name for name, each in ORIGIN_ATTACKS.items() if each.get("live")]


async def test_no_attack_is_accepted_by_a_running_gateway(forged: Process, forge: Forge) -> None:
    """A good token opens socket and list; each attack gets 4501 or 4004 on the one and 401 on the other."""
    now_s = int(time.time())
    good = forge.make({}, now_s)
    phone = await dial(forged.url, "dr.teste", good)
    await phone.until("welcome")
    assert (await ask(forged.url, "/v1/departments/cardiology/patients", good)).status == 200
    pid = forged.process.pid
    assert len(LIVE_TOKENS) > 35
    accepted = []
    for name in LIVE_TOKENS:
        token = forge.make(TOKEN_ATTACKS[name]["make"], now_s)
        code = await (await dial(forged.url, "dr.teste", token)).code()
        if code not in (4501, 4500, 1009) and (code, name.startswith("run out")) != (4004, True):
            accepted.append((name, code))
        # What cannot stand in a header is not HTTP.
        if token.isascii() and token.isprintable():
            status = (await ask(forged.url, "/v1/departments/cardiology/patients", token)).status
            if status != 401:
                accepted.append((name, status))
    assert accepted == []
    assert forged.process.poll() is None
    assert forged.process.pid == pid
    await phone.send(type="ping", t=1)
    await phone.until("pong")
    await phone.socket.close()


@pytest.mark.parametrize("name", LIVE_ORIGINS)
async def test_no_foreign_page_opens_a_socket(forged: Process, forge: Forge, name: str) -> None:
    """A handshake from another page ends before it begins, with the good token in its header too."""
    address = f"{forged.url.replace('http', 'ws', 1)}/chat/cardiology/dr.teste"
    headers = {"authorization": f"Bearer {forge.make({}, int(time.time()))}"}
    origin = Origin(ORIGIN_ATTACKS[name]["origin"])
    with pytest.raises(InvalidStatus) as refused:
        await connect(address, origin=origin, additional_headers=headers, subprotocols=[Subprotocol("chatd.v1")])
    assert refused.value.response.status_code == 403


async def test_token_in_other_places_is_none(forged: Process, forge: Forge) -> None:
    """A good token in the address, in a cookie, under another scheme or beside a second one lets nobody in."""
    good = forge.make({}, int(time.time()))
    path = "/v1/departments/cardiology/patients"
    for where in (
        {"cookie": f"token={good}; access_token={good}"},
        {"authorization": good},
        {"authorization": f"Basic {good}"},
        {"authorization": "Bearer"},
        {"x-authorization": f"Bearer {good}"},
    ):
        assert (await asyncio.to_thread(call, forged.url, path, "GET", None, where)).status == 401
    in_address = f"{path}?access_token={good}&token={good}"
    assert (await asyncio.to_thread(call, forged.url, in_address)).status == 401
    address = f"{forged.url.replace('http', 'ws', 1)}/chat/cardiology/dr.teste"
    for query, headers in (
        (f"?token={good}", []),
        ("", [("authorization", f"Bearer {good}"), ("authorization", f"Bearer {good}")]),
        ("", [("authorization", f"Basic {good}")]),
    ):
        socket = await connect(
            address + query, additional_headers=headers, subprotocols=[Subprotocol("chatd.v1")], compression=None
        )
        phone = Phone(socket)
        await phone.send(type="hello")
        assert await phone.code() == 4501


async def test_token_opens_its_own_path_only(forged: Process, forge: Forge) -> None:
    """A good token of one person and ward opens no other person's or ward's socket or list."""
    good = forge.make({}, int(time.time()))
    assert await (await dial(forged.url, "dr.santos.cardio", good)).code() == 4503
    assert await (await dial(forged.url, "dr.teste", good, "icu")).code() == 4503
    assert (await ask(forged.url, "/v1/departments/icu/patients", good)).status == 403
    token = forge.make({"claims": {"device": "d-1"}}, int(time.time()))
    assert await (await dial(forged.url, "dr.teste", token, device_id="d-2")).code() == 4503


# --- the table, on the wire ---

FRAMES: dict[str, dict[str, Any]] = {
    "user_message": {"client_msg_id": "m-1", "content": "Allergies?", "patient_id": None},
    "cancel": {"client_msg_id": "m-9"},
    "ack": {"epoch": "e-x", "seq": 0},
    "alert_raise": {
        "client_msg_id": "m-2", "to": {"department": "cardiology"}, "priority": "low", "content": "A bed is free",
    },
    "alert_response": {"client_msg_id": "m-3", "alert_id": "a-none", "answer": "accept"},
    "action": {"client_msg_id": "m-4", "action_id": "act_none", "step": "prepare"},
    "context_set": {"client_msg_id": "m-5", "patient_id": "p-cardio"},
    "presence": {"client_msg_id": "m-6", "state": "busy"},
    "feedback": {"client_msg_id": "m-7", "response_id": "resp_none", "useful": True},
    "refresh": {"client_msg_id": "m-8", "token": "x"},
    "ping": {"t": 1},
}  # fmt: skip


@pytest.mark.parametrize("role", ["physician", "charge_nurse", "pharmacist", "clerk", "observer", "board", "visitor"])
async def test_each_role_may_on_the_wire_what_the_table_says(forged: Process, forge: Forge, role: str) -> None:
    """Every frame of every kind of role is refused as forbidden exactly where the table does not allow it."""
    token = forge.make({"claims": {"roles": [role], "jti": f"t-{role}"}}, int(time.time()))
    phone = await dial(forged.url, "dr.teste", token)
    if not TABLE.may([role], ["cardiology"], "hello", "cardiology"):
        assert await phone.code() == 4503
        return
    await phone.until("welcome")
    # An onlooker may say that a phone has got an alert, and nothing more; that is decided behind the table.
    behind = {"alert_response"} if role in ("observer", "board") else set()
    for command, fields in FRAMES.items():
        if command in behind:
            continue
        await phone.send(type=command, **fields)
        await phone.send(type="ping", t=77)
        codes = []
        while (frame := await phone.until("error", "pong"))["type"] == "error":
            codes.append(frame["code"])
        if command != "ping":
            allowed = TABLE.may([role], ["cardiology"], command, "cardiology")
            assert ("forbidden" in codes) is not allowed, (role, command, codes)
        else:
            await phone.until("pong")
    await phone.socket.close()


@pytest.mark.parametrize("role", ["physician", "nurse", "technician", "operator", "student", "push", "service", "x"])
async def test_each_role_may_over_http_what_the_table_says(forged: Process, forge: Forge, role: str) -> None:
    """Every guarded route refuses every role with 403 exactly where the table, or what stands behind it, does."""
    token = forge.make({"claims": {"roles": [role], "jti": f"t-http-{role}"}}, int(time.time()))
    for command in (name for name in TABLE.commands if " " in name):
        method, _, path = command.partition(" ")
        for department in ("cardiology", "icu"):
            there = path.replace("{department}", department).replace("{alert_id}", "a-none")
            where = department if "{department}" in path else None
            status = (await ask(forged.url, there, token, method, {} if method == "POST" else None)).status
            allowed = TABLE.may([role], ["cardiology"], command, where)
            assert (status == 403) is not allowed, (role, command, department, status)
        bare = await asyncio.to_thread(call, forged.url, there, method, b"{}" if method == "POST" else None)
        assert bare.status == 401, command


# --- the end of a token ---


async def test_token_that_ends_closes_its_socket(ward: Ward) -> None:
    """At its end a socket is closed with 4004, not before; the same token then opens nothing."""
    # As long as a busy machine may need to sign in.
    end_s = int(time.time()) + 10
    token = ward.provider.person("u-1", iat=end_s - 10, exp=end_s)
    phone = await dial(ward.place.url, DOCTOR, token)
    await phone.until("welcome")
    assert await phone.code() == 4004
    assert time.time() >= end_s
    assert await (await dial(ward.place.url, DOCTOR, token)).code() == 4004


@pytest.mark.parametrize("kind", ["token", "device", "user"])
async def test_revoked_is_out_on_every_gateway(ward: Ward, kind: str) -> None:
    """Sockets on both gateways are closed with 4502, new ones and HTTP are refused; others stay."""
    jti, device, user = f"t-{secrets.token_hex(4)}", f"d-{secrets.token_hex(4)}", "u-1"
    token = ward.provider.person(user, jti=jti, device=device)
    stays = await dial(ward.place.url, NURSE, ward.provider.person("u-2"), "emergency")
    await stays.until("welcome")
    phones = [await dial(url, DOCTOR, token, device_id=device) for url in (ward.place.url, ward.other.url)]
    for phone in phones:
        await phone.until("welcome")
    name = {"token": jti, "device": device, "user": DOCTOR}[kind]
    command = ("revoke", "--data-dir", "DIR", f"--{kind}", name)
    said = await asyncio.to_thread(ward.place.run, *command)
    assert said.stdout == f"revoked {kind} {name}\n"
    assert [await phone.code() for phone in phones] == [4502, 4502]
    for url in (ward.place.url, ward.other.url):
        assert await (await dial(url, DOCTOR, token)).code() == 4502
        assert (await ask(url, "/v1/departments/cardiology/patients", token)).status == 401
    await stays.send(type="ping", t=1)
    await stays.until("pong")
    await stays.socket.close()
    listed = await asyncio.to_thread(ward.place.run, "revoke", "--data-dir", "DIR", "--list")
    assert f"{kind} {name} revoked" in listed.stdout
    await asyncio.to_thread(ward.place.run, *command, "--lift")
    await until_status(ward.other.url, "/v1/departments/cardiology/patients", token, 200)


async def test_revocation_outlives_an_emptied_redis(ward: Ward) -> None:
    """When Redis has lost its memory, what was revoked stays out."""
    jti = f"t-{secrets.token_hex(4)}"
    token = ward.provider.person("u-2", jti=jti)
    await asyncio.to_thread(ward.place.run, "revoke", "--data-dir", "DIR", "--token", jti)
    path = "/v1/departments/emergency/patients"
    await until_status(ward.place.url, path, token, 401)
    redis = ward.place.redis()
    try:
        redis.flushall()
        async with asyncio.timeout(WAIT_S):
            while not redis.exists("chatd:register:revoked"):  # noqa: ASYNC110 - another process answers
                await asyncio.sleep(0.05)
    finally:
        redis.close()
    for url in (ward.place.url, ward.other.url):
        assert (await ask(url, path, token)).status == 401


async def test_revoke_says_when_it_could_not(ward: Ward) -> None:
    """A name that no token could have, and a Redis that is not there, end with an error and change nothing."""
    odd = await asyncio.to_thread(ward.place.run, "revoke", "--data-dir", "DIR", "--user", "dr santos", check=False)
    assert odd.returncode == 1
    assert "dr santos" not in odd.stderr
    nowhere = ("--redis", "unix:///tmp/chatd-there-is-none.sock")
    away = await asyncio.to_thread(
        ward.place.run, "revoke", "--data-dir", "DIR", "--user", "dr.nobody", *nowhere, check=False
    )
    assert away.returncode == 1
    assert "Redis does not answer" in away.stderr


# --- phones ---


async def test_second_phone_waits_until_it_is_approved(ward: Ward) -> None:
    """With approval asked for: the first phone is let in, a second one after a command, one without a name never."""
    strict = ward.place.serve({"CHATD_DEVICE_APPROVAL": "true"})
    try:
        first = await dial(strict.url, DOCTOR, ward.provider.person("u-1", device="d-first"), device_id="d-first")
        await first.until("welcome")
        await first.socket.close()
        second = ward.provider.person("u-1", device="d-second")
        waits = await dial(strict.url, DOCTOR, second)
        assert (await waits.until("error"))["detail"] == "device: waits until it is approved"
        assert await waits.code() == 4503
        assert (await ask(strict.url, "/v1/departments/cardiology/patients", second)).status == 403
        listed = await asyncio.to_thread(ward.place.run, "device", "list", "--data-dir", "DIR")
        assert listed.stdout.startswith(f"{DOCTOR} d-second pending ")
        approve = ("device", "approve", "--data-dir", "DIR", "--user", DOCTOR, "--device", "d-second")
        await asyncio.to_thread(ward.place.run, *approve)
        await until_status(strict.url, "/v1/departments/cardiology/patients", second, 200)
        assert await (await dial(strict.url, DOCTOR, ward.provider.person("u-1"))).code() == 4503
        path, method, body = alert("cardiology")
        machine = {"sub": "lab", "preferred_username": "lab", "groups": ["/machines", "/ward/cardio"]}
        assert (await ask(strict.url, path, ward.provider.sign(machine), method, body)).status == 201
    finally:
        ward.place.forget(strict)


# --- emergency access ---


async def test_emergency_access_is_told_to_the_department_first(ward: Ward) -> None:
    """A record of another ward opens with a reason only; that ward gets the reason, and nobody finds it elsewhere."""
    reason = f"Found collapsed in the corridor {secrets.token_hex(8)}"
    nurse = await dial(ward.place.url, NURSE, ward.provider.person("u-2"), "emergency")
    await nurse.until("welcome")
    doctor = await dial(ward.place.url, DOCTOR, ward.provider.person("u-1"))
    await doctor.until("welcome")
    question = {"content": "Allergies?", "patient_id": "p-er"}
    await doctor.send(type="user_message", client_msg_id="q-1", **question)
    assert (await doctor.until("error", "accepted"))["code"] == "forbidden"
    await doctor.send(type="context_set", client_msg_id="c-1", patient_id="p-er")
    assert (await doctor.until("error", "context"))["code"] == "forbidden"
    await doctor.send(type="context_set", client_msg_id="c-2", patient_id="p-er", reason="   x   ")
    assert (await doctor.until("error", "context"))["code"] == "bad_request"
    await doctor.send(type="context_set", client_msg_id="c-3", patient_id="p-er", reason=reason)
    assert (await doctor.until("error", "context"))["patient"]["patient_id"] == "p-er"
    told = await nurse.until("system_notification")
    assert (told["from"], told["patient_id"], reason in told["content"]) == (DOCTOR, "p-er", True)
    await doctor.send(type="user_message", client_msg_id="q-2", **question)
    assert (await doctor.until("error", "ai_response"))["type"] == "ai_response"
    # On the other gateway too, and for nobody else.
    second = await dial(ward.other.url, DOCTOR, ward.provider.person("u-1"))
    await second.until("welcome")
    async with asyncio.timeout(WAIT_S):
        for number in range(1_000):
            await second.send(type="context_set", client_msg_id=f"c-4-{number}", patient_id="p-er")
            if (await second.until("error", "context"))["type"] == "context":
                break
            await asyncio.sleep(0.1)
    await nurse.send(type="context_set", client_msg_id="c-5", patient_id="p-cardio")
    assert (await nurse.until("error", "context"))["code"] == "forbidden"
    redis = ward.place.redis()
    try:
        held = b"".join(redis.dump(key) or b"" for key in redis.keys("*"))
    finally:
        redis.close()
    assert reason.encode() not in held
    for file in ward.place.data.rglob("*"):
        assert not file.is_file() or reason.encode() not in file.read_bytes()
    assert reason not in ward.place.up.log() + ward.other.log()
    for phone in (nurse, doctor, second):
        await phone.socket.close()


async def test_emergency_access_is_not_for_every_role(forged: Process, forge: Forge) -> None:
    """Who advises opens records of the own ward only, whatever the reason, and does not learn which there are."""
    token = forge.make({"claims": {"roles": ["pharmacist"], "jti": "t-glass"}}, int(time.time()))
    phone = await dial(forged.url, "dr.teste", token)
    await phone.until("welcome")
    for patient_id in ("p-er", "p-nobody"):
        fields = {"patient_id": patient_id, "reason": "I would like to know"}
        await phone.send(type="context_set", client_msg_id=f"c-{patient_id}", **fields)
        assert (await phone.until("error", "context"))["code"] == "forbidden"
    await phone.socket.close()


# --- keys ---


async def test_rotation_disturbs_nobody_and_asks_seldom(ward: Ward) -> None:
    """Sockets stay over a rotation, the new key's tokens come in within the 30 s, and the provider is hardly asked."""
    old_token = ward.provider.person("u-2")
    phone = await dial(ward.place.url, NURSE, old_token, "emergency")
    await phone.until("welcome")
    asked = ward.provider.key_asks
    ward.provider.rotate()
    new_token = ward.provider.person("u-2")
    path = "/v1/departments/emergency/patients"
    await until_status(ward.place.url, path, new_token, 200)
    assert ward.provider.key_asks - asked <= 3
    assert (await ask(ward.place.url, path, old_token)).status == 200
    await phone.send(type="ping", t=1)
    await phone.until("pong")
    await phone.socket.close()
