"""Quick actions as FHIR R4 drafts: a confirmed action becomes a resource that some system may take over, and a
Provenance that says who proposed it.

Everything is a draft or a proposal; nothing here is an order. A draft holds what the catalogue, the record's banner
and the person say, and nothing a model wrote. What the catalogue cannot know (a dose, a substance, a recipient)
stays open and is said to be open. Sources: https://hl7.org/fhir/R4/ (servicerequest, communicationrequest, task,
appointment, medicationrequest, allergyintolerance, provenance).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from chatd.actions.rules import Actor, Proposal, wire_time
from context.layers import PatientLayer

Resource = dict[str, Any]

#: chatd's own code system for the catalogue; the hospital maps it to its order codes.
CATALOGUE_SYSTEM = "urn:chatd:quick-action"
RECORD_SYSTEM = "urn:chatd:record"
STAFF_SYSTEM = "urn:chatd:staff"
CONTEXT_SYSTEM = "urn:chatd:context"
RESPONSE_SYSTEM = "urn:chatd:response"
ACTION_SYSTEM = "urn:chatd:action"

#: FHIR R4 counts an appointment's priority as iCalendar does: 1 is the highest, 5 the middle.
_APPOINTMENT_PRIORITY = {"stat": 1, "asap": 2, "urgent": 3, "routine": 5}
_FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


def draft_of(proposal: Proposal, *, patient: PatientLayer | None, actor: Actor, now: datetime) -> Resource:
    """The draft of a proposal that ``actor`` confirms at ``now``, as a FHIR R4 collection Bundle.

    Two entries: the resource of ``proposal.action.fhir`` and its Provenance. The same arguments give the same Bundle.

    Raises:
        KeyError: The catalogue names a resource that has no draft; the catalogue's own test keeps it from that.
    """
    resource = _DRAFTS[proposal.action.fhir](proposal, patient, actor, now)
    resource = {"resourceType": proposal.action.fhir, "id": _fhir_id(proposal.action_id)} | resource
    provenance = _provenance(proposal, actor, now, target=reference_of(proposal))
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "timestamp": wire_time(now),
        "entry": [
            {"fullUrl": f"urn:chatd:{reference_of(proposal)}", "resource": resource},
            {"fullUrl": f"urn:chatd:Provenance/{provenance['id']}", "resource": provenance},
        ],
    }


def reference_of(proposal: Proposal) -> str:
    """How the draft is referred to: "ServiceRequest/act-1f2e"."""
    return f"{proposal.action.fhir}/{_fhir_id(proposal.action_id)}"


def _service_request(proposal: Proposal, patient: PatientLayer | None, actor: Actor, now: datetime) -> Resource:
    return {
        "identifier": _identifiers(proposal),
        "status": "draft",
        "intent": "proposal",
        "priority": proposal.action.priority,
        "code": _code(proposal),
        "subject": _patient(patient),
        "authoredOn": wire_time(now),
        "requester": _person(actor),
    }


def _communication_request(proposal: Proposal, patient: PatientLayer | None, actor: Actor, now: datetime) -> Resource:
    return {
        "identifier": _identifiers(proposal),
        "status": "draft",
        "category": [_code(proposal)],
        "priority": proposal.action.priority,
        **({"subject": _patient(patient)} if patient is not None else {}),
        "payload": [{"contentString": proposal.label}],
        "authoredOn": wire_time(now),
        "requester": _person(actor),
    }


def _task(proposal: Proposal, patient: PatientLayer | None, actor: Actor, now: datetime) -> Resource:
    return {
        "identifier": _identifiers(proposal),
        "status": "draft",
        "intent": "proposal",
        "priority": proposal.action.priority,
        "code": _code(proposal),
        "description": proposal.label,
        **({"for": _patient(patient)} if patient is not None else {}),
        "authoredOn": wire_time(now),
        "lastModified": wire_time(now),
        "requester": _person(actor),
    }


def _appointment(proposal: Proposal, patient: PatientLayer | None, actor: Actor, now: datetime) -> Resource:
    # No start and no end: R4 allows that for a proposed appointment alone (invariant app-3).
    return {
        "identifier": _identifiers(proposal),
        "status": "proposed",
        "serviceType": [_code(proposal)],
        "priority": _APPOINTMENT_PRIORITY[proposal.action.priority],
        "description": proposal.label,
        "created": wire_time(now),
        "participant": [
            {"actor": _patient(patient), "required": "required", "status": "needs-action"},
            {"actor": _person(actor), "required": "information-only", "status": "accepted"},
        ],
    }


def _medication_request(proposal: Proposal, patient: PatientLayer | None, actor: Actor, now: datetime) -> Resource:
    # The catalogue names a medicine and no dose: dose, route and rate are for the prescriber to write.
    return {
        "identifier": _identifiers(proposal),
        "status": "draft",
        "intent": "proposal",
        "priority": proposal.action.priority,
        "medicationCodeableConcept": _code(proposal),
        "subject": _patient(patient),
        "authoredOn": wire_time(now),
        "requester": _person(actor),
        "note": [{"text": "Dose, route and rate: to be written by the prescriber."}],
    }


def _allergy_intolerance(proposal: Proposal, patient: PatientLayer | None, actor: Actor, now: datetime) -> Resource:
    terminology = "http://terminology.hl7.org/CodeSystem/allergyintolerance-"
    return {
        "identifier": _identifiers(proposal),
        "clinicalStatus": {"coding": [{"system": f"{terminology}clinical", "code": "active"}]},
        "verificationStatus": {"coding": [{"system": f"{terminology}verification", "code": "unconfirmed"}]},
        "code": {
            "extension": [
                {"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "unknown"}
            ],
            "text": "Substance: to be written by the clinician.",
        },
        "patient": _patient(patient),
        "recordedDate": wire_time(now),
        "recorder": _person(actor),
    }


_DRAFTS: dict[str, Callable[[Proposal, PatientLayer | None, Actor, datetime], Resource]] = {
    "ServiceRequest": _service_request,
    "CommunicationRequest": _communication_request,
    "Task": _task,
    "Appointment": _appointment,
    "MedicationRequest": _medication_request,
    "AllergyIntolerance": _allergy_intolerance,
}
#: The resources a catalogue row may name in ``Action.fhir``.
DRAFTABLE = frozenset(_DRAFTS)


def _provenance(proposal: Proposal, actor: Actor, now: datetime, *, target: str) -> Resource:
    """chatd put the draft together from the catalogue, the person confirmed it, on this context and answer."""
    agent = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
    return {
        "resourceType": "Provenance",
        "id": _fhir_id(f"{proposal.action_id}-provenance"),
        "target": [{"reference": target}],
        "recorded": wire_time(now),
        "agent": [
            {
                "type": {"coding": [{"system": agent, "code": "assembler"}]},
                "who": {"type": "Device", "display": "chatd"},
            },
            {
                "type": {"coding": [{"system": agent, "code": "author"}]},
                "who": _person(actor),
            },
        ],
        "entity": [
            {"role": "source", "what": {"identifier": {"system": system, "value": value}}}
            for system, value in (
                (CONTEXT_SYSTEM, proposal.context_hash),
                (RESPONSE_SYSTEM, proposal.response_id),
            )
        ],
    }


def _identifiers(proposal: Proposal) -> list[Resource]:
    return [{"system": ACTION_SYSTEM, "value": proposal.action_id}]


def _code(proposal: Proposal) -> Resource:
    action = proposal.action
    coding = {"system": CATALOGUE_SYSTEM, "code": action.id, "display": action.label}
    return {"coding": [coding], "text": proposal.label}


def _patient(patient: PatientLayer | None) -> Resource:
    """A reference by the record's number, with the name for whoever checks the draft."""
    if patient is None:  # the rules let no such action come here (``needs_patient``)
        raise ValueError("this draft needs a patient")
    found = {
        "type": "Patient",
        "identifier": {"system": RECORD_SYSTEM, "value": patient.patient_id},
        "display": patient.name,
    }
    if _FHIR_ID.fullmatch(patient.patient_id):
        found = {"reference": f"Patient/{patient.patient_id}"} | found
    return found


def _person(actor: Actor) -> Resource:
    return {
        "type": "Practitioner",
        "identifier": {"system": STAFF_SYSTEM, "value": actor.user_id},
        "display": actor.name or actor.user_id,
    }


def _fhir_id(text: str) -> str:
    """``text`` as a FHIR id: letters, digits, "-" and ".", at most 64."""
    return re.sub(r"[^A-Za-z0-9\-.]", "-", text)[:64]
