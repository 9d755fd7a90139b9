"""The audit of a running hospital: what people do by every way in leaves its row, and not one of their words."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from collections.abc import Callable
from typing import Any

from fhir.resources.R4B.auditevent import AuditEvent

from tests.chat_client import ChatClient
from tests.http_call import call
from tests.server import Hospital, hospital

CANARY = "canary7f3e9b"
USER, COLLEAGUE = "dr.santos.cardio", "dr.lima.cardio"
Phone = Callable[..., ChatClient]


def exported(place: Hospital) -> list[dict[str, Any]]:
    """What ``chatd audit export --fhir`` prints."""
    return [
        json.loads(line) for line in place.run("audit", "export", "--fhir", "--data-dir", "DIR").stdout.splitlines()
    ]


def told(resource: dict[str, Any]) -> tuple[str, str]:
    """The event of a resource, and its outcome."""
    return resource["subtype"][-1]["code"], resource.get("outcomeDesc", "ok")


async def said(client: ChatClient, kind: str, **fields: Any) -> str:
    """Send a frame under a new id; returns the id."""
    client_msg_id = f"m-{secrets.token_hex(6)}"
    await client.send({"type": kind, "client_msg_id": client_msg_id, **fields})
    return client_msg_id


async def work_a_shift(place: Hospital, phone: Phone) -> None:
    """One person sends every frame there is, with a canary wherever words may stand."""
    client = phone(USER)
    await client.connect()
    await said(client, "context_set", patient_id="7823")
    await client.until("context")
    frames = await client.ask(f"Chest pain, {CANARY}. Is this a STEMI?", "7823")
    answer = frames[-1]
    action_id = answer["content"]["structured_data"]["actions"][0]["action_id"]
    await said(client, "action", action_id=action_id, step="prepare")
    await client.until("action_update", action_id=action_id)
    await said(client, "action", action_id=action_id, step="dismiss", reason="not_indicated")
    await client.until("action_update", action_id=action_id, status="dismissed")
    await said(client, "feedback", response_id=answer["response_id"], useful=True)
    await client.until("accepted")
    await said(client, "cancel", response_id=answer["response_id"])
    await client.until("accepted")
    await said(client, "presence", state="available")
    await client.until("presence")
    target = {"department": "cardiology"}
    raised = await said(client, "alert_raise", to=target, priority="low", content=f"{CANARY} alert")
    alert_id = (await client.until("accepted", client_msg_id=raised))["alert_id"]
    taken = await said(client, "alert_response", alert_id=alert_id, answer="stand_down", reason=CANARY)
    await client.until("accepted", client_msg_id=taken)
    await said(client, "alert_response", alert_id=alert_id, answer="accept")
    await client.until("error", code="alert_closed")
    await hand_over(client, phone(COLLEAGUE))
    await said(client, "refresh", token=place.token(USER, "cardiology"))
    await client.until("accepted")
    await said(client, "user_message", content=CANARY, patient_id="p-other")
    await client.until("error", code="patient_mismatch")
    await said(client, "context_set")
    await client.until("context")
    await said(client, "context_set", patient_id=CANARY)
    await client.until("error", code="patient_unknown")
    await client.send({"type": "session_end"})
    await client.closed_with()
    headers = {"Authorization": f"Bearer {place.token(USER, 'cardiology')}"}
    for path in ("/v1/departments/cardiology/patients", "/v1/departments/cardiology/people", f"/v1/alerts/{alert_id}"):
        assert call(place.url, path, headers=headers).status == 200
    assert call(place.url, "/v1/departments/cardiology/patients", headers={"Authorization": "Bearer x"}).status == 401
    body = json.dumps({"user_id": USER, "department": "cardiology"}).encode()
    assert call(place.url, "/v1/demo/token", "POST", body, {"Content-Type": "application/json"}).status == 200
    place.run("context", "show", "--data-dir", "DIR", "--department", "cardiology", "--user", USER, "--patient", "7823")


async def hand_over(giver: ChatClient, taker: ChatClient) -> None:
    """Two alerts are taken and offered to a colleague, who takes one over and leaves the other."""
    await taker.connect()
    for answer, holder in (("take_over", taker), ("refuse_handover", giver)):
        called = {"to": {"department": "cardiology"}, "priority": "high", "requires_action": True}
        raised = await said(giver, "alert_raise", content=CANARY, **called)
        alert_id = (await giver.until("accepted", client_msg_id=raised))["alert_id"]
        for client, step, more in (
            (giver, "accept", {}),
            (giver, "hand_over", {"colleague": COLLEAGUE}),
            (taker, answer, {}),
            (holder, "done", {}),
        ):
            done = await said(client, "alert_response", alert_id=alert_id, answer=step, **more)
            frame = await client.receive()
            while frame.get("client_msg_id") != done:
                frame = await client.receive()
            assert frame["type"] == "accepted", (step, frame)
    await taker.close()


EXPECTED = {
    ("session.open", "ok"),
    ("sign_in", "ok"),
    ("patient.open", "ok"),
    ("patient.open", "patient_unknown"),
    ("patient.close", "ok"),
    ("patient.list", "ok"),
    ("people.list", "ok"),
    ("question", "ok"),
    ("question", "patient_mismatch"),
    ("question.cancel", "ok"),
    ("answer", "ok"),
    ("action", "ok"),
    ("feedback", "ok"),
    ("presence", "ok"),
    ("alert.raised", "ok"),
    ("alert.stood_down", "ok"),
    ("alert.accepted", "ok"),
    ("alert.handover_offered", "ok"),
    ("alert.handed_over", "ok"),
    ("alert.handover_refused", "ok"),
    ("alert.resolved", "ok"),
    ("alert.refused", "alert_closed"),
    ("alert.read", "ok"),
    ("token.renewed", "ok"),
    ("session.end", "ok"),
}


async def test_shift_is_in_the_audit_without_a_word_of_it(place: Hospital, phone: Phone) -> None:
    """Each frame, route and command of a shift has its row, valid as FHIR; the chain holds; no canary is in it."""
    await work_a_shift(place, phone)
    found = await asyncio.to_thread(exported, place)
    async with asyncio.timeout(60):
        while EXPECTED - {told(each) for each in found}:  # notes are written within a second
            await asyncio.sleep(0.2)
            found = await asyncio.to_thread(exported, place)
    out = json.dumps(found)
    assert CANARY not in out
    assert '"7823"' not in out
    for resource in found:
        AuditEvent.model_validate(resource)
    lines = place.run("audit", "report", "--data-dir", "DIR", "--patient", "7823").stdout.splitlines()
    about = {line.split("\t")[4] for line in lines}
    assert {"patient.open", "patient.show", "question", "answer", "action", "audit.report"} <= about
    assert not {"people.list", "presence"} & about
    assert "rows hold" in place.run("audit", "verify", "--data-dir", "DIR").stdout


async def test_dead_audit_closes_records_and_lets_alerts_through() -> None:
    """With a chain that takes no row and no file to put it in, no record opens and no question runs; alerts go on."""
    with hospital() as place:
        client = ChatClient(
            place.url, department="cardiology", user_id=USER, token=place.token(USER, "cardiology"), session_id="sess_a"
        )
        await client.connect()
        await said(client, "context_set", patient_id="7823")
        await client.until("context")
        (place.data / "audit-0.spool").mkdir()
        with sqlite3.connect(place.data / "ledger.sqlite3", timeout=30) as ledger:
            ledger.execute("UPDATE audit_chain SET state_sealed = x'00'")
        asked = await client.ask("Troponin?", "7823")
        assert [frame["type"] for frame in asked if frame.get("client_msg_id")] == ["error"]
        assert (asked[-1]["code"], asked[-1]["retryable"]) == ("internal", True)
        await said(client, "context_set", patient_id="7823")
        await client.until("error", code="internal")
        headers = {"Authorization": f"Bearer {place.token(USER, 'cardiology')}"}
        assert call(place.url, "/v1/departments/cardiology/patients", headers=headers).status == 503
        raised = await said(
            client,
            "alert_raise",
            to={"department": "cardiology"},
            priority="critical",
            content="Cardiac arrest, room 3",
        )
        seen: set[str] = set()
        while seen != {"accepted", "system_notification"}:  # in either order
            frame = await client.receive()
            if frame.get("client_msg_id") == raised or frame.get("priority") == "critical":
                assert frame["type"] != "error"
                seen.add(frame["type"])
        assert "chatd_audit_open 0.0" in call(place.url, "/metrics").body.decode()
        done = place.run("audit", "verify", "--data-dir", "DIR", check=False)
        assert (done.returncode, "state_sealed" in done.stdout) == (1, True)
        await client.close()
