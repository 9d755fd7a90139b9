"""CommunicationRequests of any form: each is an alert or is refused in words, and what chatd reads is never misread."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.alerts import communication
from chatd.alerts.communication import NotRaised, Wanted

GOOD: dict[str, Any] = {
    "resourceType": "CommunicationRequest",
    "id": "cr-1",
    "identifier": [{"system": "urn:lab", "value": "k-1"}],
    "status": "active",
    "doNotPerform": False,
    "priority": "stat",
    "subject": {"reference": "Patient/7823"},
    "about": [{"reference": "Observation/k-1"}],
    "recipient": [
        {"identifier": {"system": communication.DEPARTMENT_SYSTEM, "value": "surgery"}},
        {"reference": "PractitionerRole/nurse"},
    ],
    "payload": [{"contentString": "Potassium 6.9 mmol/L"}],
}
#: Every field that is read, by its path, and the type that FHIR gives it.
FIELDS: dict[tuple[str | int, ...], type] = {
    ("resourceType",): str,
    ("id",): str,
    ("identifier",): list,
    ("identifier", 0): dict,
    ("identifier", 0, "system"): str,
    ("identifier", 0, "value"): str,
    ("status",): str,
    ("doNotPerform",): bool,
    ("priority",): str,
    ("subject",): dict,
    ("subject", "reference"): str,
    ("about",): list,
    ("about", 0): dict,
    ("about", 0, "reference"): str,
    ("recipient",): list,
    ("recipient", 0): dict,
    ("recipient", 0, "identifier"): dict,
    ("recipient", 0, "identifier", "system"): str,
    ("recipient", 0, "identifier", "value"): str,
    ("recipient", 1, "reference"): str,
    ("payload",): list,
    ("payload", 0): dict,
    ("payload", 0, "contentString"): str,
}
#: A field that stands behind another one that tells the request apart already.
_BEHIND = {("id",): ("identifier",)}
WORDS = st.sampled_from(["", "active", "stat", "Patient/1", "Organization/icu", communication.ROLE_SYSTEM]) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
KNOWN = st.sampled_from([*GOOD, "category", "code", "reference", "system", "value", "contentString"])
PATHS = sorted(FIELDS, key=str)


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    resource = copy.deepcopy(GOOD)
    if path in _BEHIND:
        del resource[str(_BEHIND[path][0])]
    at: Any = resource
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return resource


def test_read_takes_the_whole() -> None:
    """The resource that the other tests spoil is an alert, with each of its fields."""
    wanted = communication.read(GOOD)
    assert (wanted.department, wanted.role, wanted.user) == ("surgery", "nurse", None)
    assert (wanted.content, wanted.priority, wanted.requires_action) == ("Potassium 6.9 mmol/L", "critical", True)
    assert (wanted.patient_id, wanted.key is None) == ("7823", False)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
@settings(max_examples=40)
@given(value=JSON)
def test_wrong_type_of_a_field_that_is_read_is_refused(path: tuple[str | int, ...], value: Any) -> None:
    """Nothing that stands where FHIR wants another type is passed over: the alert might go elsewhere, or come twice."""
    if value is None or isinstance(value, FIELDS[path]):
        return
    with pytest.raises(NotRaised) as refused:
        communication.read(changed(path, value))
    told = communication.outcome(refused.value.issue, refused.value.text, refused.value.expression)
    assert str(path[0]) in msgspec.json.encode(told).decode()


@settings(max_examples=400)
@given(path=st.sampled_from(PATHS), value=JSON)
def test_any_value_of_a_field_is_read_or_refused(path: tuple[str | int, ...], value: Any) -> None:
    """Whatever one field holds, the answer is an alert with text or a refusal, and can be written."""
    _read(changed(path, value))


@settings(max_examples=400)
@given(st.dictionaries(KNOWN, JSON | st.lists(st.dictionaries(KNOWN, JSON, max_size=3), max_size=2), max_size=6))
def test_any_resource_is_read_or_refused(fields: dict[str, Any]) -> None:
    """Fields that chatd does not know, or knows elsewhere, do no harm whatever they hold."""
    _read({**GOOD, **fields})


@given(value=JSON)
def test_fields_that_are_not_read_change_nothing(value: Any) -> None:
    """A category or a code list of any form is passed over: the alert is the same."""
    assert communication.read({**GOOD, "category": value, "reasonCode": value, "note": value}) == communication.read(
        GOOD
    )


def _read(resource: dict[str, Any]) -> None:
    try:
        wanted = communication.read(resource)
    except NotRaised as error:
        assert "" not in (error.issue, error.text)  # noqa: PT017 - either end is right; this is what one tells
        return
    assert isinstance(wanted, Wanted)
    assert wanted.content
    assert msgspec.json.encode(wanted)
