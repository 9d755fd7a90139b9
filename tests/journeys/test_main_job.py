"""The main job over a real WebSocket: ask about João Silva, get checked facts, one answer and quick actions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import connect

from tests.chat_client import ChatClient
from tests.server import Hospital

ASK = "Analyze João Silva's ECG results"
CARDIOLOGY = {
    "schedule_cath_lab",
    "order_ecg",
    "order_troponin",
    "order_echo",
    "order_electrolytes",
    "calculate_renal_dose",
    "order_chest_xray",
    "notify_icu",
    "consult_pharmacy",
}
Phone = Callable[..., ChatClient]


async def test_ask_joao_silva_gives_accepted_facts_answer(phone: Phone) -> None:
    """The question gets accepted, facts and ai_response, in this order, with all that the record says."""
    doctor = phone()
    await doctor.connect()
    frames = await doctor.ask(ASK, "7823")
    assert [frame["type"] for frame in frames] == ["accepted", "facts", "ai_response"]
    facts, answer = frames[1], frames[2]
    troponin = next(f for f in facts["facts"] if f["name"] == "Troponin I" and f["value"] == 45)
    assert (troponin["unit"], troponin["ref"]) == ("ng/mL", "Observation/trop-1")
    assert troponin["as_of"]
    assert troponin["trend"] == "up"
    assert any(f["kind"] == "allergy" and "enicillin" in f["name"] for f in facts["facts"])
    assert any("V2-V6" in f["text"] for f in facts["facts"] if f["kind"] == "report")
    stemi = [quote for quote in facts["protocols"] if quote["id"] == "stemi"]
    assert stemi
    assert all(quote["source"] and quote["year"] for quote in stemi)
    assert any("tracing itself is not available" in text for text in facts["missing"])
    data = answer["content"]["structured_data"]
    assert (answer["status"], answer["model"], answer["confidence"]) == ("completed", None, None)
    assert data["findings"]
    assert data["recommendations"]
    assert {action["catalog_id"] for action in data["actions"]} <= CARDIOLOGY
    assert "Schedule Cath Lab" in data["quick_actions"]
    assert data["quick_actions"] == [action["label"] for action in data["actions"]]
    assert {c["kind"] for c in data["citations"]} == {"chart", "protocol"}


async def test_ask_in_portuguese_answers_in_portuguese(phone: Phone) -> None:
    """A Portuguese question is answered in Portuguese, from the same facts."""
    doctor = phone()
    await doctor.connect()
    frames = await doctor.ask("Analise o ECG do João Silva", "7823")
    assert any("traçado" in text and "não está disponível" in text for text in frames[1]["missing"])
    assert any(fact["value"] == 45 for fact in frames[1]["facts"])


async def test_resend_is_the_same_question(phone: Phone) -> None:
    """The same client_msg_id is accepted as a duplicate and never answered twice on a connection."""
    doctor = phone()
    await doctor.connect()
    first = await doctor.ask(ASK, "7823", client_msg_id="m-1")
    await doctor.send({"type": "user_message", "client_msg_id": "m-1", "content": ASK, "patient_id": "7823"})
    again = await doctor.until("accepted", client_msg_id="m-1")
    assert again["duplicate"] is True
    assert again["response_id"] == first[0]["response_id"]
    await doctor.send({"type": "ping", "t": 1})
    await doctor.until("pong")
    assert len(doctor.answers["m-1"]) == 1


async def test_resend_with_another_body_is_refused(phone: Phone) -> None:
    """An id that is used again for another question is bad_request."""
    doctor = phone()
    await doctor.connect()
    await doctor.ask(ASK, "7823", client_msg_id="m-1")
    frames = await doctor.ask("Allergies?", "7823", client_msg_id="m-1")
    assert frames[-1]["code"] == "bad_request"


async def test_resend_on_a_fresh_connection_gets_the_finished_answer(phone: Phone) -> None:
    """A phone that forgot everything and asks again with the same id gets the original answer."""
    doctor = phone(session_id="sess_fresh")
    await doctor.connect()
    first = (await doctor.ask(ASK, "7823", client_msg_id="m-1"))[-1]
    await doctor.cut()
    doctor.epoch, doctor.seq = "", 0
    assert (await doctor.connect())["gap_reason"] == "first"
    assert doctor.socket is not None
    await doctor.send({"type": "user_message", "client_msg_id": "m-1", "content": ASK, "patient_id": "7823"})
    got: dict[str, Any] = {}
    while got.get("type") != "ai_response":
        got = json.loads(await doctor.socket.recv())
    assert got["content"] == first["content"]
    assert got["seq"] == first["seq"]


async def test_resume_replays_what_was_missed(phone: Phone, place: Hospital) -> None:
    """After a cut the phone resumes on another gateway and gets exactly the frames it lacks."""
    other = place.serve()
    doctor = phone()
    await doctor.connect()
    await doctor.ask("Allergies?", "7823")
    seen = doctor.seq
    await doctor.ask("Last troponin?", "7823")
    await doctor.cut()
    doctor.seq = seen
    del doctor.frames[-2:]
    doctor.answers.clear()
    welcome = await doctor.connect(other.url)
    assert (welcome["resumed"], welcome["replay"], welcome["gap_reason"]) == (True, 2, None)
    assert (await doctor.receive())["type"] == "facts"
    assert (await doctor.receive())["type"] == "ai_response"


async def test_two_phones_of_a_session_see_both(phone: Phone, place: Hospital) -> None:
    """Two phones on two gateways share a session: what one asks, the other sees, in the same order."""
    other = place.serve()
    one, two = phone(session_id="sess_shared"), phone(session_id="sess_shared")
    await one.connect()
    await two.connect(other.url)
    await one.ask(ASK, "7823", client_msg_id="m-1")
    await two.until("ai_response")
    await two.ask("Allergies?", "7823", client_msg_id="m-2")
    await one.until("ai_response", client_msg_id="m-2")
    assert [(f["seq"], f["type"]) for f in one.frames] == [(f["seq"], f["type"]) for f in two.frames]


@pytest.mark.parametrize(
    ("user", "department", "patient_id", "code"),
    [
        ("dr.santos.cardio", "cardiology", "no-such-patient", "patient_unknown"),
        ("dr.santos.cardio", "cardiology", "1072", "forbidden"),
    ],
)
async def test_patient_who_is_not_ours_is_refused(
    phone: Phone, user: str, department: str, patient_id: str, code: str
) -> None:
    """A patient of another department or an unknown one is refused with nothing about them."""
    doctor = phone(user, department)
    await doctor.connect()
    frames = await doctor.ask("What is this patient's name?", patient_id)
    assert [frame["type"] for frame in frames] == ["error"]
    assert frames[0]["code"] == code
    assert "Nogueira" not in json.dumps(frames, ensure_ascii=False)


async def test_open_record_is_a_fence(phone: Phone) -> None:
    """While a record is open, a message about another patient is refused and one without patient is about it."""
    doctor = phone()
    await doctor.connect()
    await doctor.send({"type": "context_set", "client_msg_id": "c-1", "patient_id": "7823"})
    context = await doctor.until("context", client_msg_id="c-1")
    assert context["patient"]["name"] == "João Silva"
    refused = await doctor.ask("Allergies?", "7910")
    assert refused[-1]["code"] == "patient_mismatch"
    about = await doctor.ask("Allergies?", None)
    assert about[-1]["patient_id"] == "7823"
    await doctor.send({"type": "context_set", "client_msg_id": "c-2", "patient_id": None})
    assert (await doctor.until("context", client_msg_id="c-2"))["patient"] is None
    assert (await doctor.ask("Allergies?", "7910"))[-1]["patient_id"] == "7910"


async def test_two_of_one_name_need_a_second_identifier(phone: Phone) -> None:
    """Of two patients with one name in a department, a record opens only with what tells them apart."""
    doctor = phone("dr.vieira.surgery", "surgery")
    await doctor.connect()
    await doctor.send({"type": "context_set", "client_msg_id": "c-1", "patient_id": "4201"})
    assert (await doctor.until("error", client_msg_id="c-1"))["code"] == "second_identifier_required"
    await doctor.send(
        {"type": "context_set", "client_msg_id": "c-2", "patient_id": "4201", "second_identifier": "Maria Fernandes"}
    )
    assert (await doctor.until("error", client_msg_id="c-2"))["code"] == "second_identifier_required"


async def test_rate_limit_spares_commands_that_stop_or_answer(phone: Phone, place: Hospital) -> None:
    """The eleventh question of a minute waits; cancel, ping and ack never do, and other users are not slowed."""
    strict = place.serve({"CHATD_MESSAGES_PER_MINUTE": "10"})
    doctor = phone("dr.mendes.cardio")
    await doctor.connect(strict.url)
    for n in range(10):
        assert (await doctor.ask("Allergies?", "7823", patient=True))[-1]["type"] == "ai_response", n
    refused = (await doctor.ask("Allergies?", "7823"))[-1]
    assert (refused["code"], refused["retryable"]) == ("rate_limited", True)
    assert 0 < refused["retry_after_ms"] <= 60_000
    await doctor.send({"type": "ping", "t": 7})
    await doctor.until("pong", t=7)
    colleague = phone("nurse.almeida.cardio")
    await colleague.connect(strict.url)
    assert (await colleague.ask("Allergies?", "7823"))[-1]["type"] == "ai_response"


async def test_cancel_ends_in_one_answer(phone: Phone) -> None:
    """However cancel and answer race, the question ends in exactly one ai_response."""
    doctor = phone()
    await doctor.connect()
    for n in range(20):
        await doctor.send({"type": "user_message", "client_msg_id": f"m-{n}", "content": ASK, "patient_id": "7823"})
        await doctor.send({"type": "cancel", "client_msg_id": f"m-{n}"})
        answer = await doctor.until("ai_response", client_msg_id=f"m-{n}")
        assert answer["status"] in ("completed", "cancelled")
    await doctor.send({"type": "ping", "t": 1})
    await doctor.until("pong")
    assert all(len(answers) == 1 for answers in doctor.answers.values())


async def test_cancel_of_nothing_is_an_error(phone: Phone) -> None:
    """A cancel that names nothing is bad_request."""
    doctor = phone()
    await doctor.connect()
    await doctor.send({"type": "cancel", "response_id": "resp_nothing"})
    assert (await doctor.until("error"))["code"] == "bad_request"


async def test_action_prepare_confirm_once(phone: Phone) -> None:
    """A quick action is prepared, confirmed once with its token, and cannot be confirmed again."""
    doctor = phone()
    await doctor.connect()
    answer = (await doctor.ask(ASK, "7823"))[-1]
    action = next(a for a in answer["content"]["structured_data"]["actions"] if a["catalog_id"] == "schedule_cath_lab")
    await doctor.send({"type": "action", "client_msg_id": "a-1", "action_id": action["action_id"], "step": "prepare"})
    prepared = await doctor.until("action_update", client_msg_id="a-1")
    assert prepared["status"] == "prepared"
    no_token = {"type": "action", "client_msg_id": "a-2", "action_id": action["action_id"], "step": "confirm"}
    await doctor.send(no_token)
    assert (await doctor.until("error", client_msg_id="a-2"))["code"] == "confirm_required"
    confirm = {
        "type": "action",
        "client_msg_id": "a-3",
        "action_id": action["action_id"],
        "step": "confirm",
        "confirm_token": prepared["confirm_token"],
        "second_identifier": "1959-01-15",
    }
    await doctor.send(confirm)
    confirmed = await doctor.until("action_update", client_msg_id="a-3")
    assert confirmed["status"] == "confirmed"
    await doctor.send(confirm)
    assert (await doctor.until("accepted", client_msg_id="a-3"))["duplicate"] is True
    await doctor.send({**confirm, "client_msg_id": "a-4"})
    assert (await doctor.until("error", client_msg_id="a-4"))["code"] == "action_conflict"


async def test_action_of_somebody_else_is_unknown(phone: Phone) -> None:
    """An action proposed in one doctor's session does not exist in another's."""
    doctor, other = phone(), phone("dr.mendes.cardio")
    await doctor.connect()
    await other.connect()
    answer = (await doctor.ask(ASK, "7823"))[-1]
    action_id = answer["content"]["structured_data"]["actions"][0]["action_id"]
    await other.send({"type": "action", "client_msg_id": "a-1", "action_id": action_id, "step": "prepare"})
    assert (await other.until("error", client_msg_id="a-1"))["code"] == "action_unknown"


async def test_session_end_shreds(phone: Phone) -> None:
    """After session_end the connection closes with 1000 and nothing of the session can be resumed."""
    doctor = phone(session_id="sess_end")
    await doctor.connect()
    await doctor.ask(ASK, "7823")
    await doctor.send({"type": "session_end"})
    assert await doctor.closed_with() == 1000
    welcome = await doctor.connect()
    assert (welcome["resumed"], welcome["gap_reason"]) == (False, "expired")
    assert doctor.snapshot is not None
    assert doctor.snapshot["pending_actions"] == []


async def test_unknown_type_and_garbage(phone: Phone) -> None:
    """An unknown type gets an error and the line stays; the fifth frame of garbage closes it with 4507."""
    doctor = phone()
    await doctor.connect()
    await doctor.send({"type": "teleport", "client_msg_id": "x-1"})
    assert (await doctor.until("error"))["code"] == "unsupported_type"
    assert doctor.socket is not None
    for _ in range(5):
        await doctor.socket.send("CANARY not json")
    assert await doctor.closed_with() == 4507
    errors = [frame for frame in doctor.direct if frame["type"] == "error"]
    assert "CANARY" not in json.dumps(errors)


@pytest.mark.parametrize("token", ["", "garbage", "a.b.c"])
async def test_bad_token_closes_with_4501(place: Hospital, token: str) -> None:
    """Without a good token the socket says goaway and closes with 4501."""
    client = ChatClient(place.url, department="cardiology", user_id="dr.santos.cardio", token=token)
    client.socket = await connect(client.url, subprotocols=["chatd.v1"])  # type: ignore[arg-type]
    await client.send({"type": "hello", "token": token})
    assert await client.closed_with() == 4501
    assert [frame["type"] for frame in client.direct] == ["goaway"]
    assert client.direct[0]["reconnect"] is False


async def test_path_of_another_user_closes_with_4503(place: Hospital, tokens: Callable[..., str]) -> None:
    """A token opens its own user's and department's path only."""
    client = ChatClient(place.url, department="cardiology", user_id="dr.mendes.cardio", token=tokens())
    client.socket = await connect(client.url, subprotocols=["chatd.v1"])  # type: ignore[arg-type]
    await client.send({"type": "hello", "token": client.token})
    assert await client.closed_with() == 4503


async def test_messagepack_carries_the_same(place: Hospital, tokens: Callable[..., str]) -> None:
    """chatd.v1.msgpack carries the same frames as MessagePack."""
    url = f"{place.url.replace('http', 'ws', 1)}/chat/cardiology/dr.santos.cardio"
    async with connect(url, subprotocols=["chatd.v1.msgpack"]) as socket:  # type: ignore[list-item]
        pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode
        await socket.send(pack({"type": "hello", "token": tokens()}))
        assert unpack(await socket.recv())["type"] == "welcome"
        assert unpack(await socket.recv())["type"] == "snapshot"
        await socket.send(pack({"type": "user_message", "client_msg_id": "m-1", "content": ASK, "patient_id": "7823"}))
        kinds = [unpack(await socket.recv())["type"] for _ in range(3)]
    assert kinds == ["accepted", "facts", "ai_response"]
