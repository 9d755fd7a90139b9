"""FHIR R4 ``CommunicationRequest`` as a way to raise an alert: what is read of it, and how it is answered.

Read tolerantly: what chatd does not know is passed over. What it reads and has another type than FHIR's is refused with
an OperationOutcome, as is what cannot be understood and would change whom the alert is for or about.
Source: https://hl7.org/fhir/R4/communicationrequest.html.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from chatd.alerts.model import Priority, Raised

Json = Mapping[str, Any]

#: The systems of identifiers that name a department, a role and a person of this installation.
DEPARTMENT_SYSTEM: Final = "urn:chatd:department"
ROLE_SYSTEM: Final = "urn:chatd:role"
STAFF_SYSTEM: Final = "urn:chatd:staff"
SEQ_URL: Final = "urn:chatd:alert-seq"
REACH_URL: Final = "urn:chatd:reach"

#: request-priority to ours. Without one it is routine, as the resource's own definition says.
_PRIORITIES: Final[Mapping[str, Priority]] = {
    "routine": "normal",
    "urgent": "high",
    "asap": "high",
    "stat": "critical",
}
#: What may wait asks nobody to come.
_ASKS: Final = frozenset({"urgent", "asap", "stat"})
#: A draft that is sent here is meant to be sent; a request that is over or wrong is not.
_RAISABLE: Final = frozenset({"active", "draft", "unknown"})
#: Which kind of recipient names what.
_KINDS: Final[Mapping[str, str]] = {
    "Organization": "department",
    "HealthcareService": "department",
    "PractitionerRole": "role",
    "CareTeam": "role",
    "Group": "role",
    "Practitioner": "user",
}
_SYSTEMS: Final[Mapping[str, str]] = {DEPARTMENT_SYSTEM: "department", ROLE_SYSTEM: "role", STAFF_SYSTEM: "user"}


class NotRaised(ValueError):
    """The resource is refused. ``issue``: a code of FHIR's issue-type; the text names the element, never a value."""

    def __init__(self, issue: str, text: str, expression: str) -> None:
        super().__init__(text)
        self.issue = issue
        self.text = text
        self.expression = expression


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a CommunicationRequest asks for. ``department`` None: it names none. ``key`` None: nothing in it tells it
    from another one."""

    content: str
    priority: Priority
    requires_action: bool
    patient_id: str | None = None
    department: str | None = None
    role: str | None = None
    user: str | None = None
    key: str | None = None


def read(resource: Json) -> Wanted:
    """What ``resource`` asks for.

    Raises:
        NotRaised: Another resource; one that is over, or says not to; no text; recipients or a patient that are not
            exactly one of each kind or cannot be read; a field that is read and is not of FHIR's type.
    """
    if resource.get("resourceType") != "CommunicationRequest":
        raise NotRaised("structure", "not a CommunicationRequest", "resourceType")
    status = resource.get("status")
    if not isinstance(status, str) or status not in _RAISABLE:
        raise NotRaised("business-rule", "status: neither active nor draft", "CommunicationRequest.status")
    if resource.get("doNotPerform", False) is not False:
        raise NotRaised("business-rule", "doNotPerform: asks for no communication", "CommunicationRequest.doNotPerform")
    priority = resource.get("priority", "routine")
    if not isinstance(priority, str) or priority not in _PRIORITIES:
        raise NotRaised("code-invalid", "priority: not a code of request-priority", "CommunicationRequest.priority")
    named = _recipients(resource)
    return Wanted(
        content=_text(resource),
        priority=_PRIORITIES[priority],
        requires_action=priority in _ASKS,
        patient_id=_patient(resource),
        department=named.get("department"),
        role=named.get("role"),
        user=named.get("user"),
        key=_key(resource),
    )


def answer(resource: Json, raised: Raised) -> dict[str, Any]:
    """The resource as it was taken: the alert's id, and beside it its number and whom it reaches."""
    reach = raised.reach
    extensions: list[dict[str, Any]] = [
        {"url": kind, "valueString": user}
        for kind, users in (("online", reach.online), ("push", reach.push), ("unreachable", reach.unreachable))
        for user in users
    ]
    extensions.append({"url": "whole", "valueBoolean": reach.is_whole})
    taken: dict[str, Any] = {
        "resourceType": "CommunicationRequest",
        "id": raised.alert_id,
        "extension": [
            {"url": SEQ_URL, "valueString": str(raised.alert_seq)},
            {"url": REACH_URL, "extension": extensions},
        ],
        "status": "active",
        "priority": resource.get("priority", "routine"),
    }
    if isinstance(resource.get("identifier"), list):
        taken["identifier"] = resource["identifier"]
    return taken


def outcome(issue: str, text: str, expression: str = "") -> dict[str, Any]:
    """An OperationOutcome with one error."""
    problem: dict[str, Any] = {"severity": "error", "code": issue, "diagnostics": text}
    if expression:
        problem["expression"] = [expression]
    return {"resourceType": "OperationOutcome", "issue": [problem]}


def _text(resource: Json) -> str:
    where = "CommunicationRequest.payload.contentString"
    texts = []
    for payload in _objects(resource, "payload"):
        if "contentString" not in payload:
            raise NotRaised("not-supported", "payload: only contentString is read", "CommunicationRequest.payload")
        if not isinstance(payload["contentString"], str):
            raise NotRaised("structure", "contentString: not text", where)
        texts.append(payload["contentString"].strip())
    text = "\n".join(each for each in texts if each)
    if not text:
        raise NotRaised("required", "payload: no text", where)
    return text


def _recipients(resource: Json) -> dict[str, str]:
    where = "CommunicationRequest.recipient"
    named: dict[str, str] = {}
    for recipient in _objects(resource, "recipient"):
        kind, value = _recipient(recipient, where)
        if kind is None or value is None:
            raise NotRaised("not-supported", "recipient: neither a department, a role nor a member of staff", where)
        if named.setdefault(kind, value) != value:
            raise NotRaised("multiple-matches", f"recipient: more than one {kind}", where)
    if "role" in named and "user" in named:
        raise NotRaised("multiple-matches", "recipient: a role and a member of staff", where)
    return named


def _recipient(reference: Json, where: str) -> tuple[str | None, str | None]:
    """Which kind of target it names, and which one: by our own system of identifiers, or by its reference."""
    identifier = reference.get("identifier")
    if identifier is not None:
        if not isinstance(identifier, dict):
            raise NotRaised("structure", "identifier: not an object", f"{where}.identifier")
        kind = _SYSTEMS.get(_string(identifier, "system", f"{where}.identifier") or "")
        if kind is not None:
            return kind, _string(identifier, "value", f"{where}.identifier") or None
    kind, id_ = _reference(reference, where)
    return _KINDS.get(kind), id_ or None


def _patient(resource: Json) -> str | None:
    """Whom it is about: ``subject``, and what ``about`` says must not be another one."""
    found: set[str] = set()
    subject = resource.get("subject")
    references = [(each, "CommunicationRequest.about") for each in _objects(resource, "about")]
    if isinstance(subject, dict):
        references.append((subject, "CommunicationRequest.subject"))
    for reference, where in references:
        kind, id_ = _reference(reference, where)
        if kind == "Patient" and id_:
            found.add(id_)
    if subject is not None and not found:
        raise NotRaised("not-supported", "subject: not a reference to a patient", "CommunicationRequest.subject")
    if len(found) > 1:
        raise NotRaised("multiple-matches", "subject, about: different patients", "CommunicationRequest.subject")
    return next(iter(found), None)


def _reference(reference: Json, where: str) -> tuple[str, str]:
    """Type and id of a relative or absolute literal reference: "Patient/7823"; a version after it is passed over."""
    parts = (_string(reference, "reference", where) or "").split("/_history/")[0].rstrip("/").split("/")
    return (parts[-2], parts[-1]) if len(parts) >= 2 else ("", "")


def _key(resource: Json) -> str | None:
    """What tells this request from another: its first identifier, else its id. Digested: it goes into the ledger."""
    for identifier in _objects(resource, "identifier"):
        system, value = (_string(identifier, name, "CommunicationRequest.identifier") for name in ("system", "value"))
        if value is not None:
            return _digest("identifier", system or "", value)
    id_ = _string(resource, "id", "CommunicationRequest")
    return _digest("id", id_) if id_ else None


def _digest(*parts: str) -> str:
    return "fhir-" + hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _objects(resource: Json, name: str) -> Sequence[Json]:
    """The objects of a list; none where it is left out. Raises NotRaised where it is no list of objects."""
    value = resource.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise NotRaised("structure", f"{name}: not a list of objects", f"CommunicationRequest.{name}")
    return value


def _string(of: Json, name: str, where: str) -> str | None:
    """A text, None where it is left out. Raises NotRaised where it is something else."""
    value = of.get(name)
    if value is not None and not isinstance(value, str):
        raise NotRaised("structure", f"{name}: not text", f"{where}.{name}")
    return value
