"""Clients of the original design, byte for byte: no subprotocol, no hello, the token in a header, text or bytes."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.chat_client import WAIT_S, ChatClient
from tests.http_call import call
from tests.server import Hospital

#: The original design's own examples: a JSON client, and what Swift's JSONEncoder makes of the same Struct.
JSON_BYTES = (
    b'{"type":"user_message","user_id":"dr.santos.cardio","department":"cardiology","patient_id":"7823",'
    b'"content":"Analyze ECG results","timestamp":"2024-01-15T07:45:20Z","session_id":"sess_abc123"}'
)
SPACED_BYTES = (
    b'{\n  "type": "user_message",\n  "user_id": "dr.santos.cardio",\n  "department": "cardiology",\n'
    b'  "patient_id": "7823",\n  "content": "Analyze ECG results",\n  "timestamp": "2024-01-15T07:45:21Z",\n'
    b'  "session_id": "sess_abc123"\n}'
)
NO_TYPE_BYTES = (
    b'{"user_id":"dr.santos.cardio","department":"cardiology","patient_id":"7823","content":"Analyze ECG results",'
    b'"timestamp":"2024-01-15T07:45:22Z","session_id":"sess_abc123"}'
)
SWIFT_CAMEL_BYTES = (
    b'{"content":"Analyze ECG results","department":"cardiology","patientId":"7823","sessionId":"sess_abc123",'
    b'"timestamp":727084800.25,"userId":"dr.santos.cardio"}'
)
SWIFT_SNAKE_BYTES = (
    b'{"content":"Analyze ECG results","department":"cardiology","patient_id":"7823","session_id":"sess_abc123",'
    b'"timestamp":727084801.25,"user_id":"dr.santos.cardio"}'
)
SWIFT_PRINTED_BYTES = (
    b'{"content":"Analyze ECG results","patient_id":"7823","timestamp":"2024-01-15 07:45:23 +0000","deviceToken":"x"}'
)
CONTENT_ONLY_BYTES = b'{"content":"Time targets of STEMI?"}'
SHAPES = {
    "json": JSON_BYTES,
    "spaced": SPACED_BYTES,
    "no_type": NO_TYPE_BYTES,
    "swift_camel": SWIFT_CAMEL_BYTES,
    "swift_snake": SWIFT_SNAKE_BYTES,
    "swift_printed": SWIFT_PRINTED_BYTES,
    "content_only": CONTENT_ONLY_BYTES,
}
ORIGINAL_FIELDS = {"type", "response_id", "content", "processing_time_ms", "confidence", "status"}
ORIGINAL_DATA = {"findings", "recommendations", "quick_actions"}
Open = Callable[..., connect]


@pytest.fixture
def socket_of(place: Hospital, tokens: Callable[..., str]) -> Open:
    """Opens a socket as the original clients do: ``socket_of(query="?compat=text")``."""

    def make(user: str = "dr.santos.cardio", query: str = "", url: str | None = None, **options: Any) -> connect:
        address = f"{(url or place.url).replace('http', 'ws', 1)}/chat/cardiology/{user}{query}"
        headers = {"Authorization": f"Bearer {tokens(user, 'cardiology')}"}
        return connect(address, additional_headers=headers, compression=None, open_timeout=WAIT_S, **options)

    return make


async def receive(socket: ClientConnection) -> dict[str, Any]:
    """The next frame, which must be text that holds one JSON object."""
    async with asyncio.timeout(WAIT_S):
        data = await socket.recv()
    assert isinstance(data, str)
    frame: dict[str, Any] = json.loads(data)
    return frame


async def nothing_more(socket: ClientConnection) -> None:
    """Whatever else would come, comes before the pong of a later ping."""
    await socket.send('{"type":"ping","t":"end"}')
    assert (await receive(socket))["type"] == "pong"


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_original_shapes_get_one_whole_answer(socket_of: Open, shape: str, binary: bool) -> None:
    """Each original shape, as text and as bytes, gets one complete ai_response and nothing else."""
    # A user of its own for each way: all phones of one user share the original design's session.
    user = "dr.santos.cardio" if b"santos" in SHAPES[shape] else "dr.mendes.cardio"
    data = SHAPES[shape]
    async with socket_of(user) as socket:
        await socket.send(data if binary else data.decode())
        answer = await receive(socket)
        assert answer["type"] == "ai_response"
        assert answer.keys() >= ORIGINAL_FIELDS
        assert answer["content"].keys() >= {"text", "structured_data"}
        assert answer["content"]["structured_data"].keys() >= ORIGINAL_DATA
        assert answer["status"] == "completed"
        assert answer["department"] == "cardiology"
        assert answer["patient_id"] == (None if shape == "content_only" else "7823")
        assert ("45 ng/mL" in answer["content"]["text"]) == (shape != "content_only")
        await nothing_more(socket)


async def test_compat_text_gives_content_as_text(socket_of: Open) -> None:
    """With ?compat=text the content is the text itself, of an answer and of an error alike."""
    async with socket_of(query="?compat=text") as socket:
        await socket.send(
            b'{"patient_id":"7823","content":"Troponin and allergies?","timestamp":"2024-01-15T08:00:00Z"}'
        )
        answer = await receive(socket)
        assert answer["type"] == "ai_response"
        assert isinstance(answer["content"], str)
        assert "45 ng/mL" in answer["content"]
        assert "enicillin" in answer["content"]
        await socket.send(b'{"patient_id":"nobody-1","content":"Allergies?"}')
        refused = await receive(socket)
        assert (refused["status"], refused["finish_reason"]) == ("failed", "patient_unknown")
        assert isinstance(refused["content"], str)


async def test_resend_on_one_socket_gets_the_same_answer(socket_of: Open) -> None:
    """The same bytes again on the same socket are the same question: the same answer, not a second one."""
    data = b'{"patient_id":"7823","content":"Allergies?","timestamp":"2024-01-15T09:00:00Z","session_id":"sess_r1"}'
    async with socket_of() as socket:
        await socket.send(data)
        first = await receive(socket)
        await socket.send(data)
        again = await receive(socket)
        assert again == first
        await nothing_more(socket)


async def test_resend_after_a_reconnect_gets_the_same_answer(socket_of: Open) -> None:
    """A phone that lost the line before the answer sends its bytes again on a new one and gets that answer."""
    data = b'{"patient_id":"7823","content":"Last potassium?","timestamp":"2024-01-15T09:01:00Z"}'
    async with socket_of() as socket:
        await socket.send(data)
        first = await receive(socket)
    async with socket_of() as socket:
        await socket.send(data)
        assert await receive(socket) == first
        await nothing_more(socket)


async def test_same_message_about_another_patient_is_refused(socket_of: Open) -> None:
    """The same user, session, time and words about another patient is no resend: it is refused and says so."""
    async with socket_of() as socket:
        await socket.send(b'{"patient_id":"7823","content":"Medication?","timestamp":"2024-01-15T09:02:00Z"}')
        assert (await receive(socket))["patient_id"] == "7823"
        await socket.send(b'{"patient_id":"7910","content":"Medication?","timestamp":"2024-01-15T09:02:00Z"}')
        refused = await receive(socket)
        assert (refused["status"], refused["finish_reason"]) == ("failed", "bad_request")


async def test_undated_messages_are_new_questions(socket_of: Open) -> None:
    """Without a timestamp the same words are two questions with two answers."""
    data = b'{"patient_id":"7823","content":"Allergies?"}'
    async with socket_of() as socket:
        await socket.send(data)
        first = await receive(socket)
        await socket.send(data)
        second = await receive(socket)
    assert first["response_id"] != second["response_id"]
    assert first["content"]["text"] == second["content"]["text"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"department":"emergency","patient_id":"7823","content":"Allergies?"}', "forbidden"),
        (b'{"user_id":"dr.mendes.cardio","patient_id":"7823","content":"Allergies?"}', "forbidden"),
        (b'{"patient_id":"1072","content":"Allergies?"}', "forbidden"),
        (b'{"patient_id":"nobody-1","content":"Allergies?"}', "patient_unknown"),
        (b'{"patient_id":"7823","patientId":"7910","content":"Allergies?"}', "bad_request"),
        (b'{"patient_id":"7823","content":""}', "bad_request"),
        (b'{"patient_id":"7823"}', "bad_request"),
        (b'{"type":"teleport"}', "unsupported_type"),
        (b"not json CANARY-4711", "bad_request"),
        (b"\xff\xfe\x00", "bad_request"),
    ],
)
async def test_refused_question_is_seen_as_a_failed_answer(socket_of: Open, data: bytes, code: str) -> None:
    """A refused question becomes a failed ai_response, the only frame such a client shows, without what was sent."""
    async with socket_of() as socket:
        await socket.send(data)
        refused = await receive(socket)
        assert refused["type"] == "ai_response"
        assert (refused["status"], refused["finish_reason"], refused["response_type"]) == ("failed", code, "error")
        assert refused["content"]["text"]
        assert refused["content"]["structured_data"].keys() >= ORIGINAL_DATA
        text = json.dumps(refused, ensure_ascii=False)
        assert "CANARY" not in text
        assert "Nogueira" not in text
        # The line goes on.
        await socket.send(b'{"patient_id":"7823","content":"Allergies?"}')
        assert (await receive(socket))["status"] == "completed"


async def test_rate_limited_question_is_seen(socket_of: Open, place: Hospital) -> None:
    """The question over the limit gets a failed ai_response that says so."""
    strict = place.serve({"CHATD_MESSAGES_PER_MINUTE": "1"})
    async with socket_of("charge.rocha.cardio", url=strict.url) as socket:
        await socket.send(b'{"patient_id":"7823","content":"Allergies?"}')
        assert (await receive(socket))["status"] == "completed"
        await socket.send(b'{"patient_id":"7823","content":"Allergies?"}')
        assert (await receive(socket))["finish_reason"] == "rate_limited"


async def test_without_a_good_token_the_socket_closes(place: Hospital) -> None:
    """Without a token in the header the socket closes with 4501, and nothing is said in a frame it cannot read."""
    address = f"{place.url.replace('http', 'ws', 1)}/chat/cardiology/dr.santos.cardio"
    for headers in ({}, {"Authorization": "Bearer a.b.c"}, {"Authorization": "Basic eDp5"}):
        async with connect(address, additional_headers=headers) as socket:
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(socket.recv(), WAIT_S)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4501


async def test_original_and_new_phones_work_side_by_side(
    socket_of: Open, place: Hospital, tokens: Callable[..., str]
) -> None:
    """A chatd.v1 phone of the same user has a session of its own: neither sees the other's answers."""
    phone = ChatClient(
        place.url,
        department="cardiology",
        user_id="dr.santos.cardio",
        token=tokens(),
        session_id=f"sess_{secrets.token_hex(6)}",
    )
    await phone.connect()
    async with socket_of() as socket:
        await socket.send(b'{"patient_id":"7823","content":"Allergies?"}')
        assert (await receive(socket))["status"] == "completed"
        assert [frame["type"] for frame in await phone.ask("Troponin?", "7823")] == ["accepted", "facts", "ai_response"]
        await nothing_more(socket)
    await phone.close()


async def test_health_has_the_original_body(socket_of: Open, place: Hospital) -> None:
    """GET /health answers the original fields and counts the open sockets."""

    before = (await asyncio.to_thread(call, place.url, "/health")).json()
    assert before.keys() >= {"status", "active_connections", "medgemma_status"}
    assert (before["status"], before["medgemma_status"]) == ("healthy", "not_configured")
    async with socket_of() as socket:
        await nothing_more(socket)
        assert (await asyncio.to_thread(call, place.url, "/health")).json()["active_connections"] == before[
            "active_connections"
        ] + 1


def test_bytes_here_are_those_of_the_golden_files() -> None:
    """The first example is the one of the protocol's golden files, byte for byte."""
    golden = Path(__file__).parent.parent / "protocols" / "golden" / "original" / "all_fields.json"
    assert json.loads(golden.read_text())["received"].encode() == JSON_BYTES
