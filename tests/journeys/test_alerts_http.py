"""Alerts from every way in to the phones of a running chatd, and back to whoever asks who has it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest

from protocols.errors import ErrorCode, error_text
from tests.chat_client import ChatClient
from tests.http_call import Answer, call
from tests.server import Hospital

pytestmark = pytest.mark.journeys

Phone = Callable[..., ChatClient]
ALERTS = "/v1/departments/{}/alerts"
FHIR = "/v1/fhir/CommunicationRequest"
BODY: dict[str, Any] = {
    "content": "Potassium 6.9 mmol/L",
    "priority": "critical",
    "requires_action": True,
    "patient_id": "7823",
}
REFUSAL = {
    "code": "bad_request",
    "message": error_text(ErrorCode.BAD_REQUEST, "en"),
    "retryable": False,
    "detail": None,
}
RESOURCE: dict[str, Any] = {
    "resourceType": "CommunicationRequest",
    "status": "active",
    "priority": "stat",
    "subject": {"reference": "Patient/7823"},
    "about": [{"reference": "Observation/k-1"}],
    "recipient": [{"reference": "Organization/surgery"}],
    "payload": [{"contentString": "Potassium 6.9 mmol/L"}],
}


@pytest.fixture(scope="module")
def lab(place: Hospital) -> str:
    """The token of a machine that may call surgery."""
    return place.token("lab", "surgery", role="service")


def post(place: Hospital, token: str, body: object, *, key: str | None = None, path: str = "") -> Answer:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    if key is not None:
        headers["Idempotency-Key"] = key
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return call(place.url, path or ALERTS.format("surgery"), "POST", raw, headers)


def key() -> str:
    return f"k-{secrets.token_hex(8)}"


def get(place: Hospital, token: str, alert_id: str) -> Answer:
    return call(place.url, f"/v1/alerts/{alert_id}", headers={"Authorization": f"Bearer {token}"})


async def close_alert(place: Hospital, phone: ChatClient, alert_id: str) -> None:
    """Say that it is done, so that it rings in no other journey."""
    await phone.send(
        {"type": "alert_response", "client_msg_id": key(), "alert_id": alert_id, "answer": "accept"},
    )
    await phone.send({"type": "alert_response", "client_msg_id": key(), "alert_id": alert_id, "answer": "done"})
    while (await phone.until("system_notification"))["event"] != "resolved":
        pass


async def test_alert_by_http_reaches_the_phones_and_says_who_has_it(
    place: Hospital, phone: Phone, lab: str, tokens: Callable[..., str]
) -> None:
    """A machine's alert is 201 with its reach, rings on the phone, and shows who accepted it; once, however often."""
    surgeon = phone("dr.vieira.surgery", "surgery")
    await surgeon.connect()
    sent = key()
    first = post(place, lab, BODY, key=sent)
    assert first.status == 201
    raised = first.json()
    assert raised["reach"]["online"] == ["dr.vieira.surgery"]
    assert first.headers["location"] == f"/v1/alerts/{raised['alert_id']}"
    again = post(place, lab, BODY, key=sent)
    assert (again.status, again.json(), again.headers["idempotency-replayed"]) == (201, raised, "true")
    assert post(place, lab, {**BODY, "content": "another"}, key=sent).json()["code"] == "bad_request"
    ring = await surgeon.until("system_notification", alert_id=raised["alert_id"])
    assert (ring["alert_seq"], ring["content"], ring["from"]) == (raised["alert_seq"], BODY["content"], "service:lab")
    await surgeon.send(
        {"type": "alert_response", "client_msg_id": key(), "alert_id": raised["alert_id"], "answer": "accept"}
    )
    update = await surgeon.until("alert_update", alert_id=raised["alert_id"], event="accepted")
    assert update["by"] == "dr.vieira.surgery"
    for token in (lab, tokens("dr.vieira.surgery", "surgery")):
        told = get(place, token, raised["alert_id"]).json()
        assert (told["state"], told["patient_id"]) == ("in_progress", "7823")
        assert [(each["user_id"], each["answer"]) for each in told["people"]] == [("dr.vieira.surgery", "accept")]
    assert get(place, tokens(), raised["alert_id"]).status == 403
    assert get(place, place.token("other", "surgery", role="service"), raised["alert_id"]).status == 403
    unknown = get(place, lab, "al-none")
    assert unknown.status == 404
    assert unknown.json() == {**REFUSAL, "detail": "alert: not known"}
    await close_alert(place, surgeon, raised["alert_id"])
    log = place.up.log()
    assert raised["alert_id"] in log
    assert BODY["content"] not in log


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"content": ""}, 400, "bad_request"),
        ({"content": "x" * 4001}, 400, "bad_request"),
        ({"content": "give \u202e01 mg"}, 400, "bad_request"),
        ({"priority": "stat"}, 400, "bad_request"),
        ({"patient_id": "../1"}, 400, "bad_request"),
        ({"policy": "no-such-policy"}, 400, "bad_request"),
        ({"to": {"department": "icu"}}, 400, "bad_request"),
        ({"to": {"role": "nurse", "user": "dr.vieira.surgery"}}, 400, "bad_request"),
        ({"to": {"role": "astronaut"}}, 409, "role_unassigned"),
        ({"content": "x" * 70_000}, 413, "too_large"),
    ],
    ids=["empty", "long", "reversed", "priority", "patient", "policy", "elsewhere", "two", "nobody", "large"],
)
def test_alert_by_http_is_refused_in_words(
    place: Hospital, lab: str, changes: dict[str, Any], status: int, code: str
) -> None:
    """What is wrong is told by its code, without what was sent, and nothing is raised."""
    answer = post(place, lab, {**BODY, **changes}, key=key())
    assert (answer.status, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert BODY["content"] not in answer.body.decode()


def test_alert_by_http_needs_key_and_right(place: Hospital, lab: str, tokens: Callable[..., str]) -> None:
    """Without a key, a token, the department in it, or a role of the table, nobody raises anything."""
    assert post(place, lab, BODY).json()["detail"].startswith("Idempotency-Key")
    assert post(place, lab, BODY, key="bad key").status == 400
    assert post(place, "none", BODY, key=key()).status == 401
    assert post(place, lab, BODY, key=key(), path=ALERTS.format("icu")).status == 403
    observer = place.token("dr.vieira.surgery", "surgery", role="observer")
    assert post(place, observer, BODY, key=key()).json()["code"] == "forbidden"
    for body in (b"", b"{", b"[]", b"\xff", b"[" * 5000):
        assert post(place, lab, body, key=key()).status == 400


async def test_communication_request_rings(place: Hospital, phone: Phone, lab: str) -> None:
    """A FHIR CommunicationRequest is an alert; the same one again is the same; each refusal is an OperationOutcome."""
    nurse = phone("nurse.sousa.surgery", "surgery")
    await nurse.connect()
    resource = {**RESOURCE, "identifier": [{"system": "urn:lab", "value": key()}]}
    first, again = (post(place, lab, resource, path=FHIR) for _ in range(2))
    assert (first.status, again.status) == (201, 201)
    assert first.headers["content-type"] == "application/fhir+json"
    assert first.json() == again.json()
    assert (first.json()["resourceType"], first.json()["status"]) == ("CommunicationRequest", "active")
    ring = await nurse.until("system_notification", alert_id=first.json()["id"])
    assert (ring["priority"], ring["requires_action"], ring["patient_id"]) == ("critical", True, "7823")
    await close_alert(place, nurse, ring["alert_id"])
    for changes, issue in (
        ({"payload": []}, "required"),
        ({"status": "revoked"}, "business-rule"),
        ({"status": ["active"]}, "business-rule"),
        ({"recipient": {"reference": "Organization/surgery"}}, "structure"),
        ({"recipient": [{"identifier": {"system": ["urn:chatd:role"], "value": "nurse"}}]}, "structure"),
        ({"about": [{"reference": "Patient/1044"}]}, "multiple-matches"),
        ({"recipient": [{"reference": "Device/1"}]}, "not-supported"),
        ({"recipient": [{"reference": "Organization/icu"}]}, "forbidden"),
        ({"identifier": []}, "required"),
    ):
        refused = post(place, lab, {**resource, **changes}, path=FHIR)
        assert 400 <= refused.status < 500
        assert refused.json()["resourceType"] == "OperationOutcome"
        assert refused.json()["issue"][0]["code"] == issue


async def test_chatd_alert_prints_whom_it_reaches(place: Hospital, phone: Phone) -> None:
    """The command's exit status tells whether somebody can be reached, and whether it was raised at all."""
    arguments = ("alert", "--data-dir", "DIR", "icu", "Bed 4: ventilator alarm", "--requires-action")
    nobody = place.run(*arguments, "--to", "user:dr.faria.icu", check=False)
    assert (nobody.returncode, "raised al-" in nobody.stdout) == (3, True)
    assert "unreachable: dr.faria.icu" in nobody.stdout
    intensivist = phone("dr.faria.icu", "icu")
    await intensivist.connect()
    assert intensivist.snapshot is not None
    missed = intensivist.snapshot["open_alerts"]
    assert [each["content"] for each in missed] == ["Bed 4: ventilator alarm"]
    reached = place.run(*arguments, "--priority", "critical", "--to", "role:physician", check=False)
    assert (reached.returncode, "online: dr.faria.icu" in reached.stdout) == (0, True)
    refused = place.run(*arguments, "--to", "role:astronaut", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Nobody was alerted" in refused.stderr
    for alert_id in (missed[0]["alert_id"], reached.stdout.split()[1]):
        await close_alert(place, intensivist, alert_id)


async def test_confirmed_action_calls_the_team(place: Hospital, phone: Phone) -> None:
    """Confirming "Notify ICU" rings in the ICU with the patient's id, once, also when it is confirmed again."""
    doctor, intensivist = phone("dr.lopes.emergency", "emergency"), phone("dr.faria.icu", "icu")
    await doctor.connect()
    await intensivist.connect()
    answer = (await doctor.ask("Septic shock, unstable, drowsy: notify the ICU", "1060"))[-1]
    actions = {each["catalog_id"]: each for each in answer["content"]["structured_data"]["actions"]}
    action_id = actions["notify_icu"]["action_id"]
    await doctor.send({"type": "action", "client_msg_id": "n-1", "action_id": action_id, "step": "prepare"})
    prepared = await doctor.until("action_update", client_msg_id="n-1")
    confirm = {
        "type": "action",
        "client_msg_id": "n-2",
        "action_id": action_id,
        "step": "confirm",
        "confirm_token": prepared["confirm_token"],
    }
    await doctor.send(confirm)
    done = await doctor.until("action_update", client_msg_id="n-2")
    assert (done["status"], done["summary"].endswith("the team has been alerted")) == ("confirmed", True)
    ring = await intensivist.until("system_notification", event="raised")
    assert (ring["content"], ring["patient_id"], ring["from"]) == ("Notify ICU", "1060", "dr.lopes.emergency")
    await doctor.send(confirm)
    await doctor.until("accepted", client_msg_id="n-2")
    await close_alert(place, intensivist, ring["alert_id"])
    log = place.up.log()
    assert log.count(ring["alert_id"]) >= 1
    assert sum('"raised"' in line and '"icu"' in line and ring["alert_id"] in line for line in log.splitlines()) == 1


async def test_delegate_takes_over_when_they_accept(place: Hospital, phone: Phone) -> None:
    """Who goes into a procedure asks a colleague by an alert, and is covered from their acceptance on."""
    away, colleague = phone("dr.santos.cardio"), phone("dr.mendes.cardio")
    await away.connect()
    await colleague.connect()
    command = {
        "type": "presence",
        "client_msg_id": key(),
        "state": "in_procedure",
        "delegate_to": "dr.mendes.cardio",
    }
    await away.send(command)
    told = await away.until("presence")
    assert (told["state"], told["delegate_to"]) == ("in_procedure", "dr.mendes.cardio")
    ask = await colleague.until("system_notification", event="raised")
    assert "Dr. Santos" in ask["content"]
    answer = {"type": "alert_response", "client_msg_id": key(), "alert_id": ask["alert_id"], "answer": "accept"}
    await colleague.send(answer)
    await colleague.until("accepted", client_msg_id=answer["client_msg_id"])
    token = place.token("lab", "cardiology", role="service")
    path = ALERTS.format("cardiology")
    for _ in range(50):
        raised = post(place, token, {"content": "Call back", "priority": "low"}, key=key(), path=path).json()
        if raised["reach"]["covered"]:
            break
    assert raised["reach"]["covered"] == {"dr.santos.cardio": "dr.mendes.cardio"}
    await away.send(command)
    await away.until("presence")
    assert post(place, token, BODY | {"requires_action": False}, key=key(), path=path).json()["reach"]["covered"]
    await away.send({"type": "presence", "client_msg_id": key(), "state": "available"})
    await away.until("presence")
    assert not post(place, token, BODY | {"requires_action": False}, key=key(), path=path).json()["reach"]["covered"]
