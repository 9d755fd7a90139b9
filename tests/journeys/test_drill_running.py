"""chatd drill through a running chatd: it rings as a drill, tells when each phone had it, and never rings on."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.chat_client import WAIT_S, ChatClient
from tests.server import ROOT, Hospital, clean_environment

pytestmark = pytest.mark.journeys

Phone = Callable[..., ChatClient]


Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
def drilling(place: Hospital) -> Start:
    """Starts ``chatd drill``; whoever starts it waits for its end."""

    async def start(*arguments: str, department: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chatd", "drill", "--data-dir", str(place.data), department, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**clean_environment(), **place.env},
            cwd=ROOT,
        )

    return start


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def say(phone: ChatClient, alert_id: str, answer: str) -> None:
    await phone.send(
        {"type": "alert_response", "client_msg_id": f"{answer}-{alert_id}", "alert_id": alert_id, "answer": answer}
    )


def endings(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


async def test_drill_tells_when_each_person_had_it(
    place: Hospital, phone: Phone, drilling: Start, tmp_path: Path
) -> None:
    """Both phones ring with the mark of a drill; the figures are theirs, files are written, and it is stood down."""
    doctor, nurse = phone("dr.vieira.surgery", "surgery"), phone("nurse.sousa.surgery", "surgery")
    await doctor.connect()
    await nurse.connect()
    process = await drilling("--json", "--out", str(tmp_path), department="surgery")
    for each in (doctor, nurse):
        ring = await each.until("system_notification", event="raised")
        assert (ring["drill"], ring["priority"], ring["requires_action"]) == (True, "critical", True)
        assert ring["patient_id"] is None
        for answer in ("delivered", "displayed", "accept"):
            await say(each, ring["alert_id"], answer)
    status, out, err = await ended(process)
    assert (status, "wrote drill-surgery-" in err) == (0, True)
    figures = json.loads(out)
    people = {row["user_id"]: row for row in figures["people"] if row["reach"] == "online"}
    assert set(people) == {"dr.vieira.surgery", "nurse.sousa.surgery"}
    for row in people.values():
        assert 0 <= row["delivered_ms"] <= row["displayed_ms"] <= row["accepted_ms"]
    assert (figures["delivered"], figures["missing"], figures["is_whole"]) == (2, [], True)
    assert endings(tmp_path) == {".json", ".png"}
    for each in (doctor, nurse):
        off = await each.until("system_notification", event="stood_down")
        assert (off["alert_id"], off["by"]) == (figures["alert_id"], "service:chatd-drill")


async def test_drill_that_is_interrupted_is_stood_down(place: Hospital, phone: Phone, drilling: Start) -> None:
    """Ctrl-C ends the following, not the calling off; a phone that said nothing makes the status 1, and is named."""
    silent = phone("dr.faria.icu", "icu")
    await silent.connect()
    process = await drilling(department="icu")
    ring = await silent.until("system_notification", event="raised")
    process.send_signal(signal.SIGINT)
    off = await silent.until("system_notification", event="stood_down")
    assert off["alert_id"] == ring["alert_id"]
    status, out, _ = await ended(process)
    assert status == 1
    assert "0 of 1 delivered" in out
    assert "did not get it: dr.faria.icu" in out


def test_drill_of_no_department_is_refused(place: Hospital) -> None:
    """A department that is not there, and a policy that is not: nothing rings, and the status says so."""
    for arguments in (("no-such-ward",), ("icu", "--policy", "no-such-policy")):
        done = place.run("drill", "--data-dir", "DIR", *arguments, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Nobody was alerted" in done.stderr
