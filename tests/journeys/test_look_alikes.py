"""Names that may be taken for each other, on a running gateway: told in the list, and opened by more than a name."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chat_client import ChatClient
from tests.http_call import call
from tests.server import Hospital, hospital

pytestmark = pytest.mark.journeys

#: Signs that change the direction of what is read.
BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
TRICK = "\u202e01\u202c \u2066mg\u2069\u200f"
#: Id, name, birth date, and a number of its own. "Mаria" has a Cyrillic letter; the next two are twins.
PEOPLE = (
    ("la-1", "Maria Salgueiro", "1950-01-01", "990001"),
    ("la-2", "Mаria Salgueiro", "1960-02-02", "990002"),
    ("la-3", "Rui Bragança", "1970-03-03", "990003"),
    ("la-4", "Raquel Bragança", "1970-03-03", "990004"),
    ("la-5", f"Zulmira {TRICK} Quaresma", "1980-04-04", "990005"),
)


def bundle(patient_id: str, name: str, born: str, number: str) -> dict[str, Any]:
    subject = {"reference": f"Patient/{patient_id}"}
    patient = {
        "resourceType": "Patient",
        "id": patient_id,
        "identifier": [{"system": "urn:x", "value": number}],
        "name": [{"text": name}],
        "birthDate": born,
        "gender": "female",
    }
    condition = {
        "resourceType": "Condition",
        "id": f"{patient_id}-c",
        "subject": subject,
        "code": {"text": f"Takes {TRICK} of something"},
        "clinicalStatus": {"coding": [{"code": "active"}]},
    }
    entries = [
        {"fullUrl": f"https://like.example/{each['resourceType']}/{each['id']}", "resource": each}
        for each in (patient, condition)
    ]
    return {"resourceType": "Bundle", "type": "collection", "entry": entries}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A hospital of its own: the names would be looked alike in others' tests."""
    folder: Path = tmp_path_factory.mktemp("like")
    for each in PEOPLE:
        (folder / f"{each[0]}.json").write_text(json.dumps(bundle(*each)))
    with hospital(env={"CHATD_MESSAGES_PER_MINUTE": "1000", "CHATD_DRAIN_SPREAD_S": "0.1"}) as running:
        files = sorted(map(str, folder.glob("*.json")))
        running.run("fhir", "import", "--data-dir", "DIR", "--department", "cardiology", *files)
        yield running


@pytest.fixture(scope="module")
def token(place: Hospital) -> str:
    return place.token("dr.santos.cardio", "cardiology", ttl="3600")


@pytest.fixture
async def doctor(place: Hospital, token: str) -> AsyncIterator[ChatClient]:
    client = ChatClient(place.url, department="cardiology", user_id="dr.santos.cardio", token=token)
    yield client
    await client.close()


def listed(place: Hospital, token: str) -> dict[str, Any]:
    found = call(place.url, "/v1/departments/cardiology/patients", headers={"Authorization": f"Bearer {token}"})
    assert found.status == 200
    return {one["patient_id"]: one for one in found.json()["patients"]}


def test_list_says_who_may_be_taken_for_whom(place: Hospital, token: str) -> None:
    """Each of two that look alike is told, and which scripts a name mixes; the others are not."""
    patients = listed(place, token)
    like = {id_ for id_, one in patients.items() if one["look_alike"]}
    ids = {one["name"]: id_ for id_, one in patients.items()}
    expected = {ids[name] for _, name, _, _ in PEOPLE[:4]}
    assert expected <= like
    assert patients[ids["Mаria Salgueiro"]]["scripts"] == ["Cyrillic", "Latin"]
    assert [one["name"] for one in patients.values() if one["scripts"]] == ["Mаria Salgueiro"]
    assert not patients["7823"]["look_alike"]


@pytest.mark.parametrize(
    ("name", "second", "code"),
    [
        ("Maria Salgueiro", None, "second_identifier_required"),
        ("Mаria Salgueiro", None, "second_identifier_required"),
        ("Mаria Salgueiro", "Mаria Salgueiro", "second_identifier_required"),
        ("Mаria Salgueiro", "1950-01-01", "second_identifier_required"),
        ("Mаria Salgueiro", "1960-02-02", None),
        ("Maria Salgueiro", "990001", None),
        ("Rui Bragança", None, "second_identifier_required"),
        ("Rui Bragança", "1970-03-03", "second_identifier_required"),
        ("Rui Bragança", "990003", None),
    ],
)
async def test_record_opens_by_what_tells_them_apart(
    place: Hospital, token: str, doctor: ChatClient, name: str, second: str | None, code: str | None
) -> None:
    """The name and another's birth date do not open it; the own date does unless a twin has it; a number does."""
    (patient_id,) = [id_ for id_, one in listed(place, token).items() if one["name"] == name]
    await doctor.connect()
    await doctor.send(
        {"type": "context_set", "client_msg_id": "c", "patient_id": patient_id, "second_identifier": second}
    )
    if code is not None:
        assert (await doctor.until("error", client_msg_id="c"))["code"] == code
    else:
        assert (await doctor.until("context", client_msg_id="c"))["patient"]["name"] == name


async def test_nothing_of_a_record_turns_what_is_read(place: Hospital, token: str, doctor: ChatClient) -> None:
    """Direction marks in a name and a note reach neither the list, the banner nor an answer; an override is visible."""
    patients = listed(place, token)
    (one,) = [one for one in patients.values() if "Quaresma" in one["name"]]
    await doctor.connect()
    frames = await doctor.ask("Active problems?", one["patient_id"])
    await doctor.send({"type": "context_set", "client_msg_id": "c", "patient_id": one["patient_id"]})
    frames.append(await doctor.until("context", client_msg_id="c"))
    seen = json.dumps([*patients.values(), *frames], ensure_ascii=False)
    assert "of something" in seen
    assert "�" in one["name"]
    assert BIDI.search(seen) is None
