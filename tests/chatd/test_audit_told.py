"""The audit told: as FHIR, to a person, and by ``chatd audit verify`` with its exit states."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest
from fhir.resources.R4B.auditevent import AuditEvent

from chatd import auditing
from chatd.audit import chain
from chatd.audit.chain import Row
from chatd.audit.events import EVENTS
from chatd.audit.fhir import audit_event
from chatd.cli import main
from chatd.places import Places
from chatd.settings import Settings

PROFILE = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
DCM = "http://dicom.nema.org/resources/ontology/DCM"


def row(event: str, **fields: object) -> Row:
    given: dict[str, object] = {
        "event": event,
        "at_ms": 1_768_463_120_114,
        "id": "a" * 24,
        "seq": 7,
        "user": "dr.santos.cardio",
        "roles": ("physician",),
        "session": "sess_1",
        "department": "cardiology",
        "node": "n-1",
    }
    return Row(**(given | fields))  # type: ignore[arg-type]


# --- FHIR ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("outcome", ["ok", "forbidden"])
def test_every_event_is_a_valid_audit_event(event: str, outcome: str) -> None:
    """Whatever the row, with a patient and without, its resource is one of FHIR R4; a refusal claims no profile."""
    for patient in ("", "b" * 64):
        resource = audit_event(row(event, outcome=outcome, patient=patient, alert=f"al-{'c' * 24}"), "0" * 16)
        AuditEvent.model_validate(resource)
        assert ("meta" in resource) == (outcome == "ok" and EVENTS[event].kind not in ("login", "none"))
        assert resource["outcome"] == ("0" if outcome == "ok" else "4")


def test_patient_read_has_the_slices_of_balp() -> None:
    """PatientRead: the client is the destination, the server the source, the user the recipient; patient and data."""
    told = audit_event(row("patient.open", patient="b" * 64, device="ipad-3"), "0" * 16)
    assert told["meta"]["profile"] == [f"{PROFILE}PatientRead"]
    assert (told["type"]["code"], told["action"], told["outcome"]) == ("rest", "R", "0")
    assert told["recorded"] == "2026-01-15T07:45:20.114Z"
    agents = [(each["type"]["coding"][0]["code"], each["requestor"]) for each in told["agent"]]
    assert agents == [("110152", False), ("110153", False), ("IRCP", True)]
    assert "network" not in told["agent"][2]
    entities = {each["type"]["code"]: each for each in told["entity"]}
    assert entities["1"]["role"]["code"] == "1"
    assert entities["1"]["what"]["identifier"]["value"] == "b" * 64
    assert entities["2"]["role"]["code"] == "4"


def test_patient_query_has_the_slices_of_balp() -> None:
    """PatientQuery: the client is the source, and what was asked is told by its event and ids alone."""
    told = audit_event(row("question", patient="b" * 64, response="resp_0123456789abcdef"), "0" * 16)
    assert told["meta"]["profile"] == [f"{PROFILE}PatientQuery"]
    assert told["action"] == "E"
    assert [each["type"]["coding"][0]["code"] for each in told["agent"][:2]] == ["110153", "110152"]
    (query,) = [each for each in told["entity"] if each["role"]["code"] == "24"]
    assert "what" not in query
    asked = base64.b64decode(query["query"]).decode()
    assert asked == "event=question&response=resp_0123456789abcdef&session=sess_1"


def test_create_names_its_author() -> None:
    """PatientCreate: who raised the alert is its author, and the alert is the data."""
    told = audit_event(row("alert.raised", patient="b" * 64, alert=f"al-{'c' * 24}"), "0" * 16)
    assert told["meta"]["profile"] == [f"{PROFILE}PatientCreate"]
    assert told["agent"][2]["type"]["coding"][0]["code"] == "AUT"
    assert told["entity"][1]["what"]["identifier"] == {"system": "urn:chatd:alert", "value": f"al-{'c' * 24}"}


# --- commands -----------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with some rows in its audit."""
    monkeypatch.setenv("CHATD_AUDIT_CHECKPOINT_ROWS", "2")
    folder = tmp_path / "data"
    places = Places(Settings(data_dir=str(folder), audit_checkpoint_rows=2))
    for n in range(3):
        asyncio.run(auditing.noted(places, "patient.show", patient_id="7823", department=f"d{n}"))
    return folder


def test_verify_tells_its_exit_states(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole, without the seed, with a checkpoint of more rows, and unreadable: each has its state and its words."""
    assert main(["audit", "verify", "--data-dir", str(data)]) == auditing.WHOLE
    assert "3 rows hold" in capsys.readouterr().out
    (seed,) = (data / "keys").glob("audit-*.seed")
    away = data.parent / "seed"
    seed.rename(away)
    assert main(["audit", "verify", "--data-dir", str(data)]) == auditing.WITHOUT_SEED
    assert "--seed" in capsys.readouterr().err
    assert main(["audit", "verify", "--data-dir", str(data), "--seed", str(away)]) == auditing.WHOLE
    sent = data / "audit.checkpoints"
    *_, last = sent.read_bytes().splitlines()
    beyond = json.loads(last) | {"size": 900}
    forged = data.parent / "forged"
    forged.write_text(f"<109>1 2026-01-15T07:45:20.000Z ward chatd 7 audit-checkpoint - {json.dumps(beyond)}\n")
    options = ["--seed", str(away), "--checkpoints", str(sent), "--checkpoints", str(forged)]
    assert main(["audit", "verify", "--data-dir", str(data), *options]) == auditing.FAULTY
    assert "checkpoint_beyond" in capsys.readouterr().out
    forged.write_text("{}\n")
    assert main(["audit", "verify", "--data-dir", str(data), *options]) == auditing.NOT_READ
    assert "line 1 is no checkpoint" in capsys.readouterr().err


def test_verify_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fresh installation has no chain, which is no fault; where a checkpoint knows one, it is."""
    other = tmp_path / "other"
    assert main(["audit", "verify", "--data-dir", str(other)]) == auditing.WHOLE
    made = chain.checkpoint(chain.begin("f" * 16, b"k" * 32), 1)[1]
    sent = tmp_path / "sent"
    sent.write_bytes(chain.encode_checkpoint(made) + b"\n")
    capsys.readouterr()
    fresh = tmp_path / "fresh"
    assert main(["audit", "verify", "--data-dir", str(fresh), "--checkpoints", str(sent)]) == auditing.FAULTY
    assert "no_chain" in capsys.readouterr().out


def test_report_tells_who_and_leaves_its_row(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report of a patient has the rows about them alone, itself included, and no id of theirs."""
    assert main(["audit", "report", "--data-dir", str(data), "--patient", "7823"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[4] for line in lines] == ["patient.show"] * 3 + ["audit.report"]
    assert all(line[2] == auditing.operator() for line in lines)
    assert "7823" not in str(lines)
    assert main(["audit", "report", "--data-dir", str(data), "--user", "dr.nobody"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["audit", "report", "--data-dir", str(data)]) == 2
    assert main(["audit", "export", "--fhir", "--data-dir", str(data)]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["subtype"][-1]["code"] for each in told][-1] == "audit.export"
