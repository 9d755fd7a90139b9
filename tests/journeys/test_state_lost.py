"""State that goes away during use: Redis killed, emptied or frozen, the ledger locked or away, processes killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from tests.chat_client import WAIT_S, ChatClient
from tests.http_call import call
from tests.journeys.conftest import ENV
from tests.server import Hospital, Process, hospital

pytestmark = pytest.mark.journeys

ASK = "Allergies and last troponin?"
Phone = Callable[..., ChatClient]
#: What no log may show after a fault: each stands for an error that nobody expected.
UNEXPECTED = ("background_task_failed", "connection_failed", "run_failed", "Traceback")


def imported_bundle() -> dict[str, Any]:
    """A record that came with an import, told apart from the demo's by an unusual allergy."""
    patient = {"reference": "Patient/imp-9001"}
    allergy = {
        "resourceType": "AllergyIntolerance",
        "id": "imp-a1",
        "patient": patient,
        "code": {"text": "Latex"},
        "clinicalStatus": {"coding": [{"code": "active"}]},
    }
    person = {
        "resourceType": "Patient",
        "id": "imp-9001",
        "name": [{"family": "Quintanilha", "given": ["Zulmira"]}],
        "birthDate": "1950-02-03",
        "gender": "female",
    }
    return {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": person}, {"resource": allergy}]}


async def answered_once(phone: ChatClient, question: dict[str, Any]) -> dict[str, Any]:
    """Send a question again under its id until it is taken; returns its one answer."""
    async with asyncio.timeout(2 * WAIT_S):
        while True:
            await phone.send(question)
            while True:
                frame = await phone.receive()
                if frame["type"] == "ai_response" and frame["client_msg_id"] == question["client_msg_id"]:
                    return frame
                if frame["type"] == "error" and frame["client_msg_id"] == question["client_msg_id"]:
                    assert frame["retryable"], frame
                    await asyncio.sleep((frame["retry_after_ms"] or 0) / 1000)
                    break


async def nothing_more(phone: ChatClient) -> None:
    """Whatever else would come, comes before the pong of a later ping; the strict phone checks it."""
    await phone.send({"type": "ping", "t": 77})
    await phone.until("pong", t=77)


async def ready(url: str) -> tuple[int, dict[str, Any]]:
    answer = await asyncio.to_thread(call, url, "/health/ready")
    return answer.status, answer.json()


async def until_ready(url: str, **wanted: bool) -> dict[str, Any]:
    """Poll /health/ready until it says so, within a bound."""
    async with asyncio.timeout(2 * WAIT_S):
        while True:
            _, body = await ready(url)
            if all(body[name] is value for name, value in wanted.items()):
                return body
            await asyncio.sleep(0.1)


def children_of(pid: int) -> dict[int, str]:
    """Command lines of a process's children by their pid, without a tool where the kernel tells it."""
    found: dict[int, str] = {}
    if sys.platform == "linux":
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if parent == pid:
                found[int(folder.name)] = command
        return found
    rows = subprocess.run(["ps", "-axo", "pid=,ppid=,command="], capture_output=True, text=True, check=True).stdout
    for row in rows.splitlines():
        child, parent_pid, command = row.split(None, 2)
        if int(parent_pid) == pid:
            found[int(child)] = command
    return found


async def until_gone(pid: int) -> None:
    """Wait until a process that is nobody's child here has ended, within a bound."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            await asyncio.sleep(0.05)


def gateway_of(place: Hospital) -> int:
    """The pid of the gateway that a ``chatd up`` has started."""
    return next(pid for pid, line in children_of(place.up.process.pid).items() if " serve " in line)


def redis_pid(place: Hospital) -> int:
    with place.redis() as redis:
        return int(redis.info()["process_id"])


def assert_nothing_unexpected(place: Hospital) -> None:
    log = place.up.log()
    assert not [word for word in UNEXPECTED if word in log], log[-3000:]


# --- Redis --------------------------------------------------------------------------------------------------


def kill_redis(place: Hospital) -> None:
    os.kill(redis_pid(place), signal.SIGKILL)


def empty_redis(place: Hospital) -> None:
    with place.redis() as redis:
        redis.flushall()


@pytest.mark.parametrize("lose", [kill_redis, empty_redis])
async def test_lost_redis_begins_new_epochs_and_loads_all_layers_again(
    phone: Phone, place: Hospital, tmp_path: Path, lose: Callable[[Hospital], None]
) -> None:
    """Redis killed or emptied: 4003, a new epoch with a snapshot, demo and imported records back, one answer each."""
    file = tmp_path / "export.json"
    file.write_text(json.dumps(imported_bundle()))
    arguments = ("fhir", "import", "--data-dir", "DIR", "--department", "cardiology", str(file))
    await asyncio.to_thread(place.run, *arguments)
    doctor = phone()
    await doctor.connect()
    before = {about: (await doctor.ask(ASK, about))[-1]["content"]["text"] for about in ("7823", "imp-9001")}
    assert "45 ng/mL" in before["7823"]
    assert "Latex" in before["imp-9001"]
    old_epoch = doctor.epoch
    # A burst that the loss meets somewhere on its way; each id keeps its promise on its own.
    questions = [
        {"type": "user_message", "client_msg_id": f"m-{n}", "content": ASK, "patient_id": "7823"} for n in range(12)
    ]
    for question in questions:
        await doctor.send(question)
    await doctor.until("accepted", client_msg_id="m-0")
    lose(place)
    assert await doctor.to_the_end() == 4003
    goodbye = doctor.direct[-1]
    assert (goodbye["type"], goodbye["code"], goodbye["reconnect"]) == ("goaway", 4003, True)

    welcome = await doctor.come_back()
    assert (welcome["resumed"], welcome["gap_reason"], welcome["seq"]) == (False, "epoch_changed", 0)
    assert welcome["epoch"] != old_epoch
    assert doctor.snapshot is not None
    assert doctor.snapshot["open_responses"] == []
    assert doctor.snapshot["active_patient"] is None
    # In the new epoch an id that was accepted is a new question with another response id.
    doctor.accepted.clear()
    for question in questions:
        if question["client_msg_id"] not in doctor.answers:
            await answered_once(doctor, question)
    await nothing_more(doctor)
    assert [len(doctor.answers[f"m-{n}"]) for n in range(12)] == [1] * 12
    after = {about: (await doctor.ask(ASK, about))[-1]["content"]["text"] for about in before}
    assert after == before
    assert_nothing_unexpected(place)


async def test_frozen_redis_is_told_and_survived(phone: Phone, place: Hospital) -> None:
    """While Redis stands still, commands get a retryable error and readiness says so; after it, one answer."""
    doctor = phone()
    await doctor.connect()
    question = {"type": "user_message", "client_msg_id": "m-1", "content": ASK, "patient_id": "7823"}
    pid = redis_pid(place)
    os.kill(pid, signal.SIGSTOP)
    try:
        await doctor.send(question)
        refused = await doctor.until("error", client_msg_id="m-1")
        assert (refused["code"], refused["retryable"]) == ("internal", True)
        assert refused["retry_after_ms"] > 0
        status, body = await ready(place.url)
        assert (status, body["ready"], body["redis"]) == (503, False, False)
        assert (await asyncio.to_thread(call, place.url, "/health/live")).status == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    answer = await answered_once(doctor, question)
    assert answer["status"] == "completed"
    await nothing_more(doctor)
    assert len(doctor.answers["m-1"]) == 1
    assert redis_pid(place) == pid
    await until_ready(place.url, ready=True)
    assert_nothing_unexpected(place)


async def test_phone_that_comes_while_redis_is_away_has_its_alerts(phone: Phone, place: Hospital) -> None:
    """It is let in for its alerts alone, hears and answers them, and has its session again when Redis answers."""
    doctor, newcomer = phone(), phone("nurse.reis")
    await doctor.connect()
    await doctor.ask(ASK, "7823", client_msg_id="m-1")
    epoch, seq = doctor.epoch, doctor.seq
    await doctor.cut()
    pid = redis_pid(place)
    os.kill(pid, signal.SIGSTOP)
    try:
        welcome = await doctor.connect()
        assert (welcome["alerts_only"], welcome["resumed"], welcome["replay"]) == (True, True, 0)
        assert (welcome["epoch"], welcome["seq"], welcome["department"]["name"]) == (epoch, seq, "Cardiology")
        welcome = await newcomer.connect()
        assert (welcome["alerts_only"], welcome["resumed"], welcome["gap_reason"]) == (True, False, "first")
        assert (welcome["epoch"], welcome["seq"]) == ("", 0)
        question = {"type": "user_message", "client_msg_id": "m-2", "content": ASK, "patient_id": "7823"}
        await doctor.send(question)
        refused = await doctor.until("error", client_msg_id="m-2")
        assert (refused["code"], refused["retryable"]) == ("internal", True)
        raising = {"to": {"department": "cardiology"}, "priority": "low", "content": "Bed 9", "requires_action": True}
        await doctor.send({"type": "alert_raise", "client_msg_id": "r-1", **raising})
        alert_id = (await doctor.until("accepted", client_msg_id="r-1"))["alert_id"]
        notified = await newcomer.until("system_notification", alert_id=alert_id)
        assert notified["content"] == "Bed 9"
        answer = {"type": "alert_response", "alert_id": alert_id}
        await newcomer.send({**answer, "client_msg_id": "r-2", "answer": "accept"})
        await newcomer.until("accepted", client_msg_id="r-2")
        await doctor.until("alert_update", alert_id=alert_id, event="accepted")
    finally:
        os.kill(pid, signal.SIGCONT)
    for each in (doctor, newcomer):
        assert await each.to_the_end() == 4000
    welcome = await doctor.come_back()
    assert (welcome["alerts_only"], welcome["resumed"], welcome["epoch"], welcome["seq"]) == (False, True, epoch, seq)
    assert (await answered_once(doctor, question))["status"] == "completed"
    assert [len(doctor.answers[each]) for each in ("m-1", "m-2")] == [1, 1]
    welcome = await newcomer.come_back()
    assert (welcome["alerts_only"], welcome["resumed"], welcome["gap_reason"]) == (False, False, "first")
    assert newcomer.snapshot is not None
    assert alert_id in [each["alert_id"] for each in newcomer.snapshot["open_alerts"]]
    await newcomer.send({**answer, "client_msg_id": "r-3", "answer": "done"})
    await newcomer.until("accepted", client_msg_id="r-3")
    assert_nothing_unexpected(place)


# --- the ledger ---------------------------------------------------------------------------------------------


@contextmanager
def locked(ledger: Path) -> Iterator[sqlite3.Connection]:
    """The ledger as another process holds it; writers wait in vain."""
    with sqlite3.connect(ledger, isolation_level=None) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield holder
        holder.execute("ROLLBACK")
    holder.close()


async def an_action(doctor: ChatClient) -> dict[str, Any]:
    """The frame that prepares the first action of an answer."""
    answer = (await doctor.ask("Analyze João Silva's ECG results", "7823"))[-1]
    action_id = answer["content"]["structured_data"]["actions"][0]["action_id"]
    return {"type": "action", "client_msg_id": f"a-{action_id}", "action_id": action_id, "step": "prepare"}


async def test_locked_ledger_refuses_actions_and_answers_questions(phone: Phone, place: Hospital) -> None:
    """While the ledger takes no writes, actions are refused aloud; afterwards the same command works, once."""
    doctor = phone()
    await doctor.connect()
    prepare = await an_action(doctor)
    with locked(place.data / "ledger.sqlite3"):
        await doctor.send(prepare)
        refused = await doctor.until("error", client_msg_id=prepare["client_msg_id"])
        assert (refused["code"], refused["retryable"]) == ("internal", True)
        assert "recorded" in refused["detail"]
        assert (await doctor.ask(ASK, "7823"))[-1]["status"] == "completed"
        body = await until_ready(place.url, ledger=False)
        assert body["ready"] is True
        other = phone()
        assert (await other.connect())["gap_reason"] == "first"
    await until_ready(place.url, ledger=True)
    await doctor.send(prepare)
    update = await doctor.until("action_update", client_msg_id=prepare["client_msg_id"])
    assert update["status"] == "prepared"
    await doctor.send(prepare)
    again = await doctor.until("accepted", client_msg_id=prepare["client_msg_id"])
    assert again["duplicate"] is True
    with sqlite3.connect(place.data / "ledger.sqlite3") as reader:
        rows = reader.execute(
            "SELECT status FROM action_events WHERE client_msg_id = ?", [prepare["client_msg_id"]]
        ).fetchall()
    reader.close()
    assert rows == [("prepared",)]
    assert_nothing_unexpected(place)


async def test_ledger_that_is_away_refuses_actions_and_answers_questions(phone: Phone, place: Hospital) -> None:
    """A gateway whose ledger cannot be reached starts, answers questions and refuses actions."""
    gateway = await asyncio.to_thread(place.serve, {"CHATD_LEDGER_URL": "postgresql://nobody@127.0.0.1:1/none"})
    doctor = phone()
    await doctor.connect(gateway.url)
    prepare = await an_action(doctor)
    await doctor.send(prepare)
    refused = await doctor.until("error", client_msg_id=prepare["client_msg_id"])
    assert (refused["code"], refused["retryable"]) == ("internal", True)
    status, body = await ready(gateway.url)
    assert (status, body["ready"], body["ledger"]) == (200, True, False)
    # Another gateway, whose ledger is there, takes the very same command.
    await doctor.cut()
    assert (await doctor.connect(place.url))["resumed"] is True
    await doctor.send(prepare)
    assert (await doctor.until("action_update", client_msg_id=prepare["client_msg_id"]))["status"] == "prepared"


# --- processes ----------------------------------------------------------------------------------------------


async def test_killed_gateway_is_started_again_and_phones_resume(phone: Phone, place: Hospital) -> None:
    """The supervisor starts a killed gateway again on its port; the session goes on, each question answered once."""
    doctor = phone()
    await doctor.connect()
    first = (await doctor.ask(ASK, "7823", client_msg_id="m-1"))[-1]
    question = {"type": "user_message", "client_msg_id": "m-2", "content": ASK, "patient_id": "7823"}
    await doctor.send(question)
    killed = gateway_of(place)
    os.kill(killed, signal.SIGKILL)
    assert await doctor.to_the_end() == 1006
    welcome = await doctor.come_back()
    assert (welcome["resumed"], welcome["gap_reason"]) == (True, None)
    if "m-2" not in doctor.answers:
        await answered_once(doctor, question)
    await nothing_more(doctor)
    assert [len(doctor.answers[each]) for each in ("m-1", "m-2")] == [1, 1]
    assert doctor.answers["m-2"][0]["content"]["text"] == first["content"]["text"]
    assert gateway_of(place) != killed
    assert place.up.process.poll() is None


@pytest.fixture
async def fragile() -> AsyncIterator[Hospital]:
    """A hospital of this test's own, whose ``chatd up`` may be killed."""
    # Started and stopped on threads: the loop must go on.
    manager = hospital(env=ENV)
    yield await asyncio.to_thread(manager.__enter__)
    await asyncio.to_thread(manager.__exit__, None, None, None)


async def another_redis(place: Hospital, before: int) -> int:
    """Wait until the supervisor has started another Redis than ``before``; returns its pid."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(RedisError, OSError):
                if (now := redis_pid(place)) != before:
                    return now
            await asyncio.sleep(0.01)


def has_layers(place: Hospital) -> tuple[bool, bool]:
    """Whether Redis has departments and staff, and whether it has all."""
    with place.redis() as redis:
        names = redis.keys("chatd:context:*")
    return any(b":doctor:" in name for name in names), any(name.endswith(b":loaded") for name in names)


async def stopped_in_the_middle_of_loading(place: Hospital) -> int:
    """End Redis, and have the gateway stand still when the next one has departments and no mark; its pid."""
    gateway = gateway_of(place)
    async with asyncio.timeout(2 * WAIT_S):
        while True:
            before = redis_pid(place)
            os.kill(before, signal.SIGTERM)
            await another_redis(place, before)
            while not (await asyncio.to_thread(has_layers, place))[0]:
                pass
            os.kill(gateway, signal.SIGSTOP)
            if not has_layers(place)[1]:
                return gateway
            os.kill(gateway, signal.SIGCONT)


async def test_redis_lost_in_the_middle_of_loading_is_loaded_from_the_beginning(fragile: Hospital) -> None:
    """Redis ends twice: what the first new one had been given is not taken to be in the second."""
    place = fragile
    token = await asyncio.to_thread(place.token)
    doctor = ChatClient(place.url, department="cardiology", user_id="dr.santos.cardio", token=token)
    await doctor.connect()
    before = (await doctor.ask(ASK, "7823"))[-1]["content"]["text"]
    gateway = await stopped_in_the_middle_of_loading(place)
    try:
        lost = redis_pid(place)
        os.kill(lost, signal.SIGKILL)
        await another_redis(place, lost)
    finally:
        os.kill(gateway, signal.SIGCONT)
    await doctor.cut()
    await until_ready(place.url, ready=True)
    # A phone without a session of before, and one of another department.
    for department, user in (("cardiology", "dr.santos.cardio"), ("icu", "dr.reis.icu")):
        newcomer = ChatClient(
            place.url, department=department, user_id=user, token=await asyncio.to_thread(place.token, user, department)
        )
        assert (await newcomer.connect())["alerts_only"] is False
        await newcomer.close()
    await doctor.come_back()
    assert (await doctor.ask(ASK, "7823"))[-1]["content"]["text"] == before
    await doctor.close()
    # The first of the two loads was met in its middle, and said so.
    assert "LoadLost" in place.up.log()
    assert_nothing_unexpected(place)


async def test_killed_up_takes_its_gateway_along_and_the_next_goes_on(fragile: Hospital) -> None:
    """Without its supervisor the gateway drains by itself; the next chatd up takes over Redis, port and sessions."""
    place = fragile
    token = await asyncio.to_thread(place.token)
    doctor = ChatClient(place.url, department="cardiology", user_id="dr.santos.cardio", token=token)
    await doctor.connect()
    await doctor.ask(ASK, "7823", client_msg_id="m-1")
    gateway, redis = gateway_of(place), redis_pid(place)
    url = place.url
    place.up.kill()
    # Begun at once, on the same port: it waits for the old gateway to let go.
    killed = place.up
    place.up = Process(["up", "--data-dir", str(place.data), "--port", url.rpartition(":")[2]], place.env)
    killed.close()
    assert await doctor.closed_with() == 4000
    assert [frame["type"] for frame in doctor.direct if frame["type"] == "goaway"] == ["goaway"]
    assert await asyncio.to_thread(place.up.wait_ready) == url
    welcome = await doctor.come_back()
    assert (welcome["resumed"], welcome["epoch"]) == (True, doctor.epoch)
    assert (await doctor.ask(ASK, "7823", client_msg_id="m-2"))[-1]["status"] == "completed"
    assert redis_pid(place) == redis
    assert gateway_of(place) != gateway
    await until_gone(gateway)
    await doctor.close()
    # What it did not start itself but took over, it stops all the same.
    assert await asyncio.to_thread(place.up.stop) == 0
    await until_gone(redis)


async def test_second_up_on_the_same_folder_is_refused(place: Hospital) -> None:
    """Two chatd up on one data directory would share its keys and ledger by accident: the second says so and ends."""
    second = await asyncio.to_thread(place.run, "up", "--data-dir", "DIR", "--port", "0", check=False)
    assert second.returncode == 1
    assert "already running" in second.stderr
    assert (await ready(place.url))[0] == 200
