"""Rows as FHIR R4 AuditEvents after the Basic Audit Log Patterns of IHE ITI (BALP 1.1).

The profiles are for what went well; a refusal has the same shape without the profile, as BALP leaves it. People,
phones, patients and gateways are told by identifiers, and a patient by the pseudonym: who has the installation's keys
finds a patient's rows, and nobody finds a patient in the rows. The address of a phone is not kept, so its place in
``network`` is taken by the device id. Source: https://profiles.ihe.net/ITI/BALP/
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from chatd.audit.chain import Row
from chatd.audit.events import EVENTS, Event, Kind
from chatd.clock import iso_ms

_PROFILES: Final = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/"
_TERMS: Final = "http://terminology.hl7.org/CodeSystem/"
_DICOM: Final = "http://dicom.nema.org/resources/ontology/DCM"
#: Identifiers are chatd's own; which installation's, the source says.
_OURS: Final = "urn:chatd:"

_SOURCE: Final = {"system": _DICOM, "code": "110153", "display": "Source Role ID"}
_DESTINATION: Final = {"system": _DICOM, "code": "110152", "display": "Destination Role ID"}
_APPLICATION: Final = {"system": _DICOM, "code": "110150", "display": "Application"}
_CUSTODIAN: Final = {"system": f"{_TERMS}provenance-participant-type", "code": "custodian", "display": "Custodian"}
_RECIPIENT: Final = {"system": f"{_TERMS}v3-ParticipationType", "code": "IRCP", "display": "information recipient"}
_AUTHOR: Final = {"system": f"{_TERMS}v3-ParticipationType", "code": "AUT", "display": "author"}
_REST: Final = {"system": f"{_TERMS}audit-event-type", "code": "rest", "display": "RESTful Operation"}
_AUTHENTICATION: Final = {"system": _DICOM, "code": "110114", "display": "User Authentication"}
_LOGIN: Final = {"system": _DICOM, "code": "110122", "display": "Login"}
_ACTIVITY: Final = {"system": _DICOM, "code": "110100", "display": "Application Activity"}


class _Shape(msgspec.Struct, frozen=True):
    """How a kind of event is told: the profile's name, the interaction, the action, and who is what in it."""

    profile: str
    interaction: str
    action: str
    client: Mapping[str, str]
    server: Mapping[str, str]
    user: Mapping[str, str]


#: Data goes to the client in a read; elsewhere, in a query too, the client is the source. Source: BALP, by profile.
_SHAPES: Final[Mapping[Kind, _Shape]] = {
    "read": _Shape("Read", "read", "R", _DESTINATION, _SOURCE, _RECIPIENT),
    "query": _Shape("Query", "search", "E", _SOURCE, _DESTINATION, _RECIPIENT),
    "create": _Shape("Create", "create", "C", _SOURCE, _DESTINATION, _AUTHOR),
    "update": _Shape("Update", "update", "U", _SOURCE, _DESTINATION, _AUTHOR),
    "delete": _Shape("Delete", "delete", "D", _APPLICATION, _CUSTODIAN, _AUTHOR),
    "login": _Shape("", "", "E", _SOURCE, _DESTINATION, _AUTHOR),
    "none": _Shape("", "", "E", _SOURCE, _DESTINATION, _AUTHOR),
}


def audit_event(row: Row, chain: str) -> dict[str, Any]:
    """One row as an AuditEvent; the same row is always the same resource."""
    event = EVENTS.get(row.event, Event("none", row.event))
    shape = _SHAPES[event.kind]
    is_ok = row.outcome == "ok"
    found: dict[str, Any] = {"resourceType": "AuditEvent", "id": f"{chain}-{row.seq}"}
    if is_ok and shape.profile:
        name = f"{'Patient' if row.patient else ''}{shape.profile}"
        found["meta"] = {"profile": [f"{_PROFILES}IHE.BasicAudit.{name}"]}
    found["type"], subtypes = _types(event.kind, shape)
    found["subtype"] = [*subtypes, {"system": f"{_OURS}event", "code": row.event, "display": event.text}]
    found["action"] = shape.action
    found["recorded"] = iso_ms(datetime.fromtimestamp(row.at_ms / 1000, UTC))
    found["outcome"] = "0" if is_ok else "8" if row.outcome in _SERIOUS else "4"
    if not is_ok:
        found["outcomeDesc"] = row.outcome
    found["agent"] = _agents(row, shape)
    found["source"] = {
        "observer": _who("node", row.node or chain),
        "type": [{"system": f"{_TERMS}security-source-type", "code": "4", "display": "Application Server"}],
    }
    if row.department:
        found["source"]["site"] = row.department
    found["entity"] = _entities(row, event.kind)
    return found


#: Failures of the server itself; all other outcomes are refusals.
_SERIOUS: Final = frozenset({"internal", "lost", "damaged"})


def _types(kind: Kind, shape: _Shape) -> tuple[dict[str, str], list[dict[str, str]]]:
    if kind == "login":
        return _AUTHENTICATION, [_LOGIN]
    if kind == "none":
        return _ACTIVITY, []
    code = shape.interaction
    return _REST, [{"system": "http://hl7.org/fhir/restful-interaction", "code": code, "display": code}]


def _agents(row: Row, shape: _Shape) -> list[dict[str, Any]]:
    phone = row.device or row.session or "unknown"
    agents: list[dict[str, Any]] = [
        {
            "type": {"coding": [dict(shape.client)]},
            "who": _who("device", phone),
            "requestor": False,
            "network": {"address": phone, "type": "1"},
        },
        {
            "type": {"coding": [dict(shape.server)]},
            "who": _who("node", row.node or "unknown"),
            "requestor": False,
            "network": {"address": row.node or "unknown", "type": "1"},
        },
    ]
    if row.user:
        user: dict[str, Any] = {
            "type": {"coding": [dict(shape.user)]},
            "who": _who("user", row.user),
            "requestor": True,
        }
        if row.roles:
            user["role"] = [{"coding": [{"system": f"{_OURS}role", "code": role}]} for role in row.roles]
        agents.append(user)
    return agents


def _entities(row: Row, kind: Kind) -> list[dict[str, Any]]:
    entities: list[dict[str, Any]] = []
    if row.patient:
        entities.append(
            {
                "what": {**_who("patient-pseudonym", row.patient), "type": "Patient"},
                "type": {"system": f"{_TERMS}audit-entity-type", "code": "1", "display": "Person"},
                "role": {"system": f"{_TERMS}object-role", "code": "1", "display": "Patient"},
            }
        )
    system_object = {"system": f"{_TERMS}audit-entity-type", "code": "2", "display": "System Object"}
    if kind == "query":
        # What was asked is content and is kept nowhere: the query is told by its event and ids.
        asked = "&".join(f"{name}={value}" for name, value in (("event", row.event), *_ids(row)))
        entities.append(
            {
                "type": system_object,
                "role": {"system": f"{_TERMS}object-role", "code": "24", "display": "Query"},
                "query": base64.b64encode(asked.encode()).decode(),
            }
        )
        return entities
    (name, value), *others = [*_ids(row), ("event", row.event)]
    entity: dict[str, Any] = {
        "what": _who(name, value),
        "type": system_object,
        "role": {"system": f"{_TERMS}object-role", "code": "4", "display": "Domain Resource"},
    }
    details = [{"type": name, "valueString": value} for name, value in others if name != "event"]
    if row.detail:
        details.append({"type": "detail", "valueString": row.detail})
    if row.count != 1:
        details.append({"type": "count", "valueString": str(row.count)})
    if details:
        entity["detail"] = details
    entities.append(entity)
    return entities


def _ids(row: Row) -> list[tuple[str, str]]:
    """The ids of what it was about, the nearest first."""
    named = (("response", row.response), ("action", row.action), ("alert", row.alert), ("session", row.session))
    return [(name, value) for name, value in named if value]


def _who(kind: str, value: str) -> dict[str, Any]:
    return {"identifier": {"system": f"{_OURS}{kind}", "value": value}}
