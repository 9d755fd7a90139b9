"""No word of a doctor's or about a patient stays behind: not on disk, not in a log, not in clear in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from tests.chat_client import WAIT_S, ChatClient
from tests.http_call import call
from tests.journeys.conftest import ENV
from tests.server import Hospital, hospital
from tests.traces import traces, traces_below

pytestmark = pytest.mark.journeys

#: One word for each way in, so that a trace says where it came from. Half of each is plain, half is not ASCII.
WAYS = (
    "question",
    "patient_question",
    "long_content",
    "long_frame",
    "not_json",
    "not_utf8",
    "wrong_field",
    "unknown_type",
    "unknown_field",
    "deep",
    "feedback_text",
    "feedback_code",
    "feedback_response",
    "dismiss_reason",
    "second_identifier",
    "cancel_response",
    "original_client",
    "path_name",
    "path_id",
    "path_query",
    "header",
    "origin",
    "protocol",
    "http_path",
    "http_body",
    "sign_in",
    "patient_name",
    "patient_id",
    "patient_note",
)
#: The demo's own patients, beside the words that this run invents.
NAMES = ["João Silva", "Rosa Teixeira", "Nogueira"]


class Evidence:
    """What the story has left: the servers' logs, the folders they may write to, and what they said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = {way: secrets.token_hex(8) for way in WAYS}
        self.frames: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.metrics = ""
        self.redis: dict[str, bytes] = {}
        self.disk: dict[str, set[tuple[str, str]]] = {}
        self.answer = ""

    def word(self, way: str) -> str:
        """A word with letters that are not ASCII; its token alone is searched for too."""
        return f"Zebrélia{self.tokens[way]}"

    def ident(self, way: str) -> str:
        """The same in the form of an id, which most fields take."""
        return f"z.{self.tokens[way]}"

    @property
    def words(self) -> list[str]:
        # A name or an id contains its token, in whatever form it stands there.
        return [*self.tokens.values(), *NAMES]


def record(evidence: Evidence) -> bytes:
    """An imported patient whose name, id and note are words of this run."""
    patient_id = evidence.ident("patient_id").replace(".", "-")
    entries = [
        {
            "resourceType": "Patient",
            "id": patient_id,
            "name": [{"family": evidence.word("patient_name"), "given": ["Ana"]}],
            "birthDate": "1950-02-03",
        },
        {
            "resourceType": "AllergyIntolerance",
            "id": "a1",
            "patient": {"reference": f"Patient/{patient_id}"},
            "code": {"text": f"Latex {evidence.word('patient_note')}"},
        },
    ]
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": entry} for entry in entries]}
    return json.dumps(bundle).encode()


def values_of(redis: Redis) -> dict[str, bytes]:
    """Every key of a Redis with all that is stored under it, not in Redis's own packing."""
    found: dict[str, bytes] = {}
    read: Any = redis
    for key in read.scan_iter("*"):
        rows: list[bytes] = [key]
        match read.type(key):
            case b"string":
                rows.append(read.get(key))
            case b"hash":
                rows += [part for pair in read.hgetall(key).items() for part in pair]
            case b"set":
                rows += read.smembers(key)
            case b"zset":
                rows += read.zrange(key, 0, -1)
            case b"stream":
                rows += [part for _, row in read.xrange(key) for pair in row.items() for part in pair]
            case kind:
                raise AssertionError(f"a kind of key that is not searched: {kind!r}")
        found[repr(key)] = b"\n".join(rows)
    return found


async def say(evidence: Evidence, phone: ChatClient, data: str | bytes) -> None:
    """Send a message as text and take all frames up to the pong of a later ping; a closed line is opened anew."""
    assert phone.socket is not None
    with contextlib.suppress(ConnectionClosed):
        await phone.socket.send(data, text=True)
        await phone.send({"type": "ping", "t": 1})
        while (frame := await phone.receive())["type"] != "pong":
            evidence.frames.append(frame)
        return
    evidence.frames += phone.direct
    phone.socket = None
    await phone.connect()


async def through_the_socket(evidence: Evidence, url: str, token: str) -> None:
    """Say every word in the way it is for, on an open session."""
    word, ident = evidence.word, evidence.ident
    phone = ChatClient(url, department="cardiology", user_id="dr.santos.cardio", token=token)
    await phone.connect()
    await phone.ask(f"Does {word('question')} matter?", None)
    patient_id = evidence.ident("patient_id").replace(".", "-")
    about = (await phone.ask(f"Allergies of {word('patient_question')}?", patient_id))[-1]
    evidence.answer = about["content"]["text"]
    answer = (await phone.ask("Analyze João Silva's ECG results", "7823"))[-1]
    first, second = answer["content"]["structured_data"]["actions"][:2]
    asked = {"type": "user_message", "client_msg_id": "m-1", "patient_id": "7823"}
    frames: list[dict[str, Any]] = [
        {**asked, "content": word("long_content") * 1000},
        {**asked, "content": ["x", word("wrong_field")]},
        {"type": ident("unknown_type")},
        {"type": "ping", word("unknown_field"): word("unknown_field")},
        {"type": "feedback", "client_msg_id": "f-1", "response_id": answer["response_id"], "useful": False}
        | {"text": word("feedback_text"), "codes": [ident("feedback_code")]},
        {"type": "feedback", "client_msg_id": "f-2", "response_id": ident("feedback_response"), "useful": True},
        {"type": "action", "client_msg_id": "a-1", "action_id": first["action_id"], "step": "prepare"},
        {"type": "action", "client_msg_id": "a-2", "action_id": first["action_id"], "step": "dismiss"}
        | {"reason": word("dismiss_reason")},
        {"type": "action", "client_msg_id": "a-3", "action_id": second["action_id"], "step": "dismiss"}
        | {"reason": f"other {word('dismiss_reason')}"},
        {"type": "context_set", "client_msg_id": "c-1", "patient_id": "7823"}
        | {"second_identifier": word("second_identifier")},
        {"type": "cancel", "response_id": ident("cancel_response")},
    ]
    for frame in frames:
        await say(evidence, phone, json.dumps(frame))
    for data in (
        f"{{{word('not_json')}",
        '{"a":' * 20 + f'"{word("deep")}"' + "}" * 20,
        json.dumps({**asked, "content": word("long_frame") * 3_000}),
        b"\xff\xfe" + word("not_utf8").encode(),
    ):
        await say(evidence, phone, data)
    await phone.cut()


async def through_the_handshake(evidence: Evidence, url: str, token: str) -> None:
    """Say every word before a session is open: paths, headers, and over plain HTTP."""
    base = url.replace("http", "ws", 1)
    own = f"{base}/chat/cardiology/dr.santos.cardio"
    bearer = {"Authorization": f"Bearer {token}"}
    tries: list[tuple[str, dict[str, Any]]] = [
        (f"{base}/chat/cardiology/{quote(evidence.word('path_name'))}", {}),
        (f"{base}/chat/{evidence.ident('path_id')}/dr.santos.cardio", {"additional_headers": bearer}),
        (f"{base}/chat/cardiology/{evidence.ident('path_id')}", {"additional_headers": bearer}),
        (f"{own}?patient={quote(evidence.word('path_query'))}&token={evidence.ident('path_query')}", {}),
        (own, {"additional_headers": {"Authorization": f"Bearer {evidence.ident('header')}"}}),
        (own, {"additional_headers": {"User-Agent": evidence.ident("header"), **bearer}}),
        (own, {"origin": f"https://{evidence.tokens['origin']}.example"}),
        (own, {"subprotocols": [evidence.ident("protocol")]}),
    ]
    for address, options in tries:
        with contextlib.suppress(InvalidHandshake, InvalidMessage, ConnectionClosed, TimeoutError):
            async with connect(address, **{"subprotocols": ["chatd.v1"], **options}) as socket:
                await socket.send('{"type":"hello"}')
                evidence.frames.append(json.loads(await asyncio.wait_for(socket.recv(), WAIT_S)))
    async with connect(own, additional_headers=bearer) as socket:
        message = {"content": evidence.word("original_client"), "patientId": 7}
        await socket.send(json.dumps(message).encode())
        evidence.frames.append(json.loads(await asyncio.wait_for(socket.recv(), WAIT_S)))

    def over_http() -> None:
        for path in (f"/{evidence.ident('http_path')}", f"/web/{quote(evidence.word('http_path'))}"):
            call(url, path)
        call(url, f"/v1/departments/{quote(evidence.word('http_path'))}/patients", headers=bearer)
        call(url, "/v1/demo/token", "POST", evidence.word("http_body").encode())
        body = {"user_id": evidence.ident("sign_in"), "department": "cardiology"}
        call(url, "/v1/demo/token", "POST", json.dumps(body).encode())

    await asyncio.to_thread(over_http)


def all_ways(evidence: Evidence, url: str, token: str) -> None:
    asyncio.run(through_the_socket(evidence, url, token))
    asyncio.run(through_the_handshake(evidence, url, token))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A story with a secret in every way in, on two gateways of which one is killed and one told to stop."""
    folder = tmp_path_factory.mktemp("world")
    found = Evidence(folder)
    # The record to import is the hospital's own file: it lies outside of what chatd may write to.
    export = tmp_path_factory.mktemp("hospital") / "export.json"
    export.write_bytes(record(found))
    for name in ("tmp", "home", "cwd"):
        (folder / name).mkdir()
    env = {**ENV, "CHATD_LOG_LEVEL": "debug", "TMPDIR": str(folder / "tmp"), "HOME": str(folder / "home")}
    with hospital(env=env, cwd=folder / "cwd") as place:
        token = place.token()
        imported = place.run("fhir", "import", "--data-dir", "DIR", "--department", "cardiology", str(export))
        found.logs["import"] = imported.stderr
        killed, stopped = place.serve(), place.serve()
        for gateway in (killed, stopped):
            all_ways(found, gateway.url, token)
        found.metrics = call(stopped.url, "/metrics").body.decode()
        with place.redis() as redis:
            found.redis = values_of(redis)
        killed.kill()
        found.logs["killed"] = killed.log()
        stopped.process.terminate()
        assert stopped.process.wait(WAIT_S) == 0
        found.logs["stopped"] = stopped.log()
        running = traces_below(place.data, found.words)
        place.up.process.terminate()
        assert place.up.process.wait(WAIT_S) == 0
        found.logs["up"] = place.up.log()
        found.disk = running | traces_below(place.data, found.words) | traces_below(folder, found.words)
        check_searcher(place, found)
    return found


def check_searcher(place: Hospital, evidence: Evidence) -> None:
    """The same search finds what is planted in the very folders that were searched."""
    for folder, way in ((place.data, "question"), (evidence.folder, "patient_name")):
        planted = folder / "planted"
        planted.write_bytes(evidence.word(way).encode("utf-16-le"))
        assert (evidence.tokens[way], "utf-16le") in traces_below(folder, evidence.words)[str(planted)]
        planted.unlink()


def test_story_was_told(evidence: Evidence) -> None:
    """The words were really taken, answered and refused: the imported record spoke, and each kind of error came."""
    assert evidence.word("patient_note") in evidence.answer
    codes = {frame["code"] for frame in evidence.frames if frame["type"] == "error"}
    assert codes >= {"bad_request", "unsupported_type"}
    assert {frame["type"] for frame in evidence.frames} >= {"error", "action_update", "accepted", "goaway"}
    assert "layers_loaded" in evidence.logs["up"]
    assert all('"opened"' in evidence.logs[name] for name in ("killed", "stopped"))


def test_no_word_on_disk(evidence: Evidence) -> None:
    """Neither the data directory nor anything else a server could write to holds a word, while running or after."""
    ways = {token: way for way, token in evidence.tokens.items()}
    found = {path: {(ways.get(word, word), form) for word, form in here} for path, here in evidence.disk.items()}
    assert found == {}


@pytest.mark.parametrize("log", ["up", "killed", "stopped", "import"])
def test_no_word_in_logs(evidence: Evidence, log: str) -> None:
    """No log line, at the lowest level, holds a word."""
    ways = {token: way for way, token in evidence.tokens.items()}
    found = {(ways.get(word, word), form) for word, form in traces(evidence.logs[log].encode(), evidence.words)}
    assert found == set()


def test_no_word_in_metrics(evidence: Evidence) -> None:
    """The metrics hold neither a word nor a patient's name."""
    assert evidence.metrics.startswith("# HELP")
    assert traces(evidence.metrics.encode(), evidence.words) == set()


def test_no_word_in_errors_and_goodbyes(evidence: Evidence) -> None:
    """Error frames never echo what was sent, and neither do goodbyes and failed answers."""
    ways = {token: way for way, token in evidence.tokens.items()}
    refusals = [f for f in evidence.frames if f["type"] in ("error", "goaway") or f.get("response_type") == "error"]
    assert refusals
    for frame in refusals:
        echoed = traces(json.dumps(frame).encode(), evidence.words)
        assert {(ways.get(word, word), form) for word, form in echoed} == set(), frame


def test_no_clear_text_in_redis(evidence: Evidence, place: Hospital) -> None:
    """Redis holds sessions, records and questions, and not one word of them can be read there."""
    assert any("context:" in key for key in evidence.redis)
    assert any(":log" in key for key in evidence.redis)
    held = {key: found for key, value in evidence.redis.items() if (found := traces(value, evidence.words))}
    assert held == {}
    # The search sees what is really there.
    with place.redis() as redis:
        redis.hset("planted", "field", evidence.word("question"))
        planted = values_of(redis)["b'planted'"]
        redis.delete("planted")
    assert traces(planted, evidence.words)
