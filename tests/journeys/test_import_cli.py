"""The commands beside a running chatd and without one: import records, show what is known, make a token."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from redis import Redis

from tests.chat_client import WAIT_S, ChatClient
from tests.clinical_data import clinical_path
from tests.http_call import call
from tests.journeys.conftest import ENV
from tests.server import Hospital, Process, clean_environment

pytestmark = pytest.mark.journeys

Phone = Callable[..., ChatClient]
LINE_KEYS = ["patient_id", "name", "resources", "skipped"]


def run(data: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One chatd command on a data directory; ``DIR`` in the arguments stands for it."""
    command = [sys.executable, "-m", "chatd", *(str(data) if a == "DIR" else str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=clean_environment())


def imported(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The JSON lines of an import; each must have the agreed keys, in their order and of their types."""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        assert list(line) == LINE_KEYS
        assert [type(value) for value in line.values()] == [str, str, int, int]
    return lines


def bundle(patient_id: str, name: str, *, allergy: str = "Latex", mark: str = "") -> dict[str, Any]:
    """A patient with one allergy, and something that no importer can take."""
    given, _, family = name.rpartition(" ")
    entries: list[dict[str, Any]] = [
        {
            "resourceType": "Patient",
            "id": patient_id,
            "name": [{"family": family, "given": [given]}],
            "birthDate": "1950-02-03",
        },
        {
            "resourceType": "AllergyIntolerance",
            "id": f"{patient_id}-a1{mark}",
            "patient": {"reference": f"Patient/{patient_id}"},
            "code": {"text": allergy},
        },
        {"resourceType": "Claim", "id": f"{patient_id}-c1", "patient": {"reference": f"Patient/{patient_id}"}},
    ]
    return {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": entry} for entry in entries]}


def written(folder: Path, name: str, content: dict[str, Any]) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


async def import_into(place: Hospital, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run, place.data, "fhir", "import", "--data-dir", "DIR", *arguments)


async def answer_about(phone: ChatClient, patient_id: str, *, patient: bool = False) -> str:
    async with asyncio.timeout(2 * WAIT_S):
        frame = (await phone.ask("Allergies?", patient_id, patient=patient))[-1]
    assert frame["type"] == "ai_response", frame
    text: str = frame["content"]["text"]
    return text


# --- beside a running chatd ---------------------------------------------------------------------------------


async def test_import_is_visible_at_once_and_for_its_department_only(
    phone: Phone, place: Hospital, tokens: Callable[..., str], tmp_path: Path
) -> None:
    """A patient imported for emergency answers there at once, also on open sockets, and is forbidden elsewhere."""
    there, elsewhere = phone("dr.lopes.emergency", "emergency"), phone()
    await there.connect()
    await elsewhere.connect()
    patient_id = f"er-{secrets.token_hex(4)}"
    assert (await there.ask("Allergies?", patient_id))[-1]["code"] == "patient_unknown"
    file = written(tmp_path, "a.json", bundle(patient_id, "Conceição Simões"))
    done = await import_into(place, "--department", "emergency", file)
    assert done.returncode == 0
    assert imported(done) == [{"patient_id": patient_id, "name": "Conceição Simões", "resources": 2, "skipped": 1}]
    assert "Conceição Simões" in done.stdout  # as it is, not in escapes
    assert "2 taken, 1 not taken" in done.stderr
    assert "Latex" in await answer_about(there, patient_id)
    refused = (await elsewhere.ask("Allergies?", patient_id))[-1]
    assert refused["code"] == "forbidden"
    assert "Concei" not in json.dumps(refused)
    listed = call(
        place.url,
        "/v1/departments/emergency/patients",
        headers={"Authorization": f"Bearer {tokens('dr.lopes.emergency', 'emergency')}"},
    ).json()["patients"]
    assert [p["name"] for p in listed if p["patient_id"] == patient_id] == ["Conceição Simões"]


async def test_import_without_department_is_everybodys_and_says_so(
    phone: Phone, place: Hospital, tmp_path: Path
) -> None:
    """Without --department every department may ask, and the command says that it is so."""
    patient_id = f"all-{secrets.token_hex(4)}"
    done = await import_into(place, written(tmp_path, "a.json", bundle(patient_id, "Ana Costa")))
    assert done.returncode == 0
    assert "every department" in done.stderr
    for user, department in (("dr.santos.cardio", "cardiology"), ("dr.vieira.surgery", "surgery")):
        doctor = phone(user, department)
        await doctor.connect()
        assert "Latex" in await answer_about(doctor, patient_id)


async def test_import_adds_to_a_known_patient_and_twice_is_once(phone: Phone, place: Hospital, tmp_path: Path) -> None:
    """A second file adds to the record, and the same file again changes nothing."""
    patient_id = f"two-{secrets.token_hex(4)}"
    first = written(tmp_path, "a.json", bundle(patient_id, "Ana Costa"))
    second = written(tmp_path, "b.json", bundle(patient_id, "Ana Costa", allergy="Kiwi", mark="b"))
    doctor = phone()
    await doctor.connect()
    texts = []
    for file in (first, second, second):
        assert (await import_into(place, "--department", "cardiology", file)).returncode == 0
        texts.append(await answer_about(doctor, patient_id))
    assert "Latex" in texts[0]
    assert "Kiwi" not in texts[0]
    assert "Latex" in texts[1]
    assert "Kiwi" in texts[1]
    assert texts[2] == texts[1]


async def test_broken_file_costs_nothing_else(phone: Phone, place: Hospital, tmp_path: Path) -> None:
    """Beside broken, missing and foreign files the good ones are imported; the exit status tells."""
    one, two = f"g1-{secrets.token_hex(4)}", f"g2-{secrets.token_hex(4)}"
    (tmp_path / "broken.json").write_text('{"resourceType": "Bundle", "entry": [')
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "other.json").write_text('{"hello": "world"}')
    good = written(tmp_path, "good.json", bundle(one, "Ana Costa"))
    lines = [entry["resource"] for entry in bundle(two, "Rui Pinto")["entry"]]
    packed = tmp_path / "good.ndjson.gz"
    packed.write_bytes(gzip.compress("\n".join(json.dumps(line) for line in lines).encode()))
    bad = [tmp_path / name for name in ("broken.json", "empty.json", "bytes.json", "other.json", "missing.json")]
    done = await import_into(place, "--department", "cardiology", *bad[:2], good, *bad[2:], packed)
    assert done.returncode == 1
    assert {line["patient_id"] for line in imported(done)} == {one, two}
    for path in bad:
        assert path.name in done.stderr
    assert "Traceback" not in done.stderr
    doctor = phone()
    await doctor.connect()
    assert "Latex" in await answer_about(doctor, one)
    assert "Latex" in await answer_about(doctor, two)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("fhir", "import", "--data-dir", "DIR", "--department", "nowhere", "x.json"), 1, "cardiology"),
        (("fhir", "import", "--data-dir", "DIR"), 2, "FILE"),
        (("fhir", "import", "--data-dir", "DIR", "no-such-file.json"), 1, "no-such-file.json"),
        (("fhir",), 2, "usage"),
        (("context", "show", "--data-dir", "DIR", "--department", "cardiology"), 2, "--user"),
        (("serve", "--data-dir", "DIR", "--port", "70000"), 2, "CHATD_PORT"),
        (("up", "--data-dir", "DIR", "--engine", "magic"), 2, "magic"),
        (("token", "--data-dir", "DIR", "--user", "x"), 2, "--department"),
        (("token", "--data-dir", "DIR", "--user", "a b", "--department", "cardiology"), 1, "chatd: "),
        (("token", "--data-dir", "DIR", "--user", "x", "--department", "cardiology", "--ttl", "0"), 1, "--ttl"),
        (("token", "--data-dir", "DIR", "--user", "x", "--department", "cardiology", "--ttl", "43201"), 1, "--ttl"),
    ],
)
def test_wrong_call_is_told_in_a_line(tmp_path: Path, arguments: tuple[str, ...], status: int, says: str) -> None:
    """A command that cannot do what is asked says why, prints no answer, and exits with 1 or, if misspelt, with 2."""
    done = run(tmp_path / "data", *arguments)
    assert done.returncode == status
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_token_says_who_where_what_and_how_long(place: Hospital) -> None:
    """``chatd token`` prints one line: a JWT of the user, the department, the role and the lifetime."""
    arguments = ("--user", "ana.costa", "--department", "icu", "--role", "nurse", "--ttl", "60")
    done = run(place.data, "token", "--data-dir", "DIR", *arguments)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    claims = jwt.decode(done.stdout.strip(), options={"verify_signature": False})
    assert (claims["sub"], claims["departments"], claims["roles"]) == ("ana.costa", ["icu"], ["nurse"])
    assert claims["exp"] - claims["iat"] == 60
    again = run(place.data, "token", "--data-dir", "DIR", *arguments)
    assert jwt.decode(again.stdout.strip(), options={"verify_signature": False})["jti"] != claims["jti"]


async def test_token_of_an_unknown_user_works_with_the_departments_defaults(place: Hospital) -> None:
    """A user whom the staff list does not know asks as anybody of the department."""
    token = await asyncio.to_thread(place.token, "somebody.new", "cardiology")
    doctor = ChatClient(place.url, department="cardiology", user_id="somebody.new", token=token)
    welcome = await doctor.connect()
    assert welcome["user"]["name"] == "somebody.new"
    assert "enicillin" in await answer_about(doctor, "7823")
    await doctor.close()


def test_context_show_prints_five_layers_and_the_prompt(place: Hospital) -> None:
    """``chatd context show`` prints the layers as one JSON document and the composed prompt after it."""
    arguments = ("--department", "cardiology", "--user", "dr.santos.cardio", "--patient", "7823")
    done = run(place.data, "context", "show", "--data-dir", "DIR", *arguments, "--question", "Last troponin?")
    assert done.returncode == 0
    layers, end = json.JSONDecoder().raw_decode(done.stdout)
    assert list(layers) == ["hospital", "department", "doctor", "patient", "session"]
    assert layers["patient"]["name"] == "João Silva"
    for layer in layers.values():
        assert layer["version"]
        assert layer["as_of"]
    prompt = done.stdout[end:]
    assert "Last troponin?" in prompt
    assert "45" in prompt
    assert "enicillin" in prompt


@pytest.mark.parametrize(
    ("department", "patient_id"), [("cardiology", "nobody-1"), ("cardiology", "1072"), ("nowhere", "7823")]
)
def test_context_show_refuses_what_the_department_may_not_see(
    place: Hospital, department: str, patient_id: str
) -> None:
    """An unknown patient, another department's and an unknown department are refused with one line and no name."""
    arguments = ("--department", department, "--user", "dr.santos.cardio", "--patient", patient_id)
    done = run(place.data, "context", "show", "--data-dir", "DIR", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("chatd: ")
    assert "Nogueira" not in done.stderr


# --- before, between and after ------------------------------------------------------------------------------


class Clinic:
    """A data directory that first has commands only and later a ``chatd up`` without the demo."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.up: Process | None = None

    def start(self) -> str:
        self.up = Process(["up", "--data-dir", str(self.data), "--port", "0", "--no-demo"], ENV)
        return self.up.wait_ready()

    def stop(self) -> None:
        if self.up is not None:
            assert self.up.stop() == 0
            self.up = None


@pytest.fixture
async def clinic(tmp_path: Path) -> AsyncIterator[Clinic]:
    made = Clinic(tmp_path / "data")
    yield made
    await asyncio.to_thread(made.stop)


async def test_import_before_the_first_start_lasts_through_start_and_lost_redis(clinic: Clinic, tmp_path: Path) -> None:
    """What was imported before chatd ran is there when it runs, without the demo, and again after a lost Redis."""
    before = written(tmp_path, "before.json", bundle("b-1", "Ana Costa"))
    while_up = written(tmp_path, "while.json", bundle("w-1", "Rui Pinto", allergy="Kiwi"))
    arguments = ("fhir", "import", "--data-dir", "DIR", "--department", "cardiology")
    done = await asyncio.to_thread(run, clinic.data, *arguments, before)
    assert done.returncode == 0
    assert [line["patient_id"] for line in imported(done)] == ["b-1"]
    shown = await asyncio.to_thread(
        run,
        clinic.data,
        "context",
        "show",
        "--data-dir",
        "DIR",
        "--department",
        "cardiology",
        "--user",
        "x",
        "--patient",
        "b-1",
    )
    assert shown.returncode == 0
    layers, _ = json.JSONDecoder().raw_decode(shown.stdout)
    assert layers["patient"]["name"] == "Ana Costa"

    url = await asyncio.to_thread(clinic.start)
    assert call(url, "/v1/demo").status == 404
    assert (
        call(url, "/v1/demo/token", "POST", b'{"user_id":"dr.santos.cardio","department":"cardiology"}').status == 404
    )
    token = await asyncio.to_thread(
        run, clinic.data, "token", "--data-dir", "DIR", "--user", "x", "--department", "cardiology"
    )
    doctor = ChatClient(url, department="cardiology", user_id="x", token=token.stdout.strip())
    await doctor.connect()
    assert "Latex" in await answer_about(doctor, "b-1")
    assert (await doctor.ask("Allergies?", "7823"))[-1]["code"] == "patient_unknown"
    assert (await asyncio.to_thread(run, clinic.data, *arguments, while_up)).returncode == 0
    assert "Kiwi" in await answer_about(doctor, "w-1")

    with Redis(unix_socket_path=str(clinic.data / "redis.sock")) as redis:
        os.kill(redis.info()["process_id"], signal.SIGKILL)
    assert await doctor.to_the_end() == 4003
    await doctor.come_back()
    # The first question may meet the records while they are being loaded, and is told to come again.
    assert "Latex" in await answer_about(doctor, "b-1", patient=True)
    assert "Kiwi" in await answer_about(doctor, "w-1")
    await doctor.close()


def test_every_synthea_bundle_imports(tmp_path: Path) -> None:
    """Each bundle of the clinical test data gives its one patient, and none fails."""
    files = sorted(clinical_path("fhir", "synthea_r4_2021").glob("*.json"))
    assert files
    done = run(tmp_path / "data", "fhir", "import", "--data-dir", "DIR", "--department", "cardiology", *files)
    assert done.returncode == 0
    lines = imported(done)
    # Synthea names its files after patient and id.
    assert {line["patient_id"] for line in lines} == {path.stem.rpartition("_")[2] for path in files}
    assert all(line["resources"] > 20 for line in lines)
    assert "error" not in done.stderr
