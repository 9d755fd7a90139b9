"""Patients whose names look alike: who is one, and what tells them apart."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime

import pytest

from chatd.actions.identifiers import Kind, has_number
from chatd.gateway.namesakes import Namesakes, tells_apart
from context.layers import PatientLayer
from context.store import PatientCard

BORN = date(1958, 3, 2)


def patient(*identifiers: str, name: str = "João Silva", born: date | None = BORN) -> PatientLayer:
    return PatientLayer(
        patient_id="7823",
        name=name,
        birth_date=born,
        identifiers=identifiers,
        departments=("cardiology",),
        as_of=datetime(2026, 1, 15, tzinfo=UTC),
    )


def card(patient_id: str, name: str, born: date | None = date(1990, 1, 1)) -> PatientCard:
    return PatientCard(patient_id=patient_id, name=name, birth_date=born)


@pytest.mark.parametrize(
    ("kind", "identifiers", "others_born", "tells"),
    [
        (None, ("55501",), date(1990, 1, 1), False),
        ("name", ("55501",), date(1990, 1, 1), False),
        ("birth_date", ("55501",), date(1990, 1, 1), True),
        ("birth_date", ("55501",), None, True),
        ("identifier", ("55501",), date(1990, 1, 1), True),
        # Twins: the day is both's. Where the record has no other number, nothing better can be asked for.
        ("birth_date", ("55501",), BORN, False),
        ("identifier", ("55501",), BORN, True),
        ("birth_date", (), BORN, True),
        ("birth_date", ("7823", "sys|abcd", "12"), BORN, True),
    ],
)
def test_tells_apart(kind: Kind | None, identifiers: tuple[str, ...], others_born: date | None, tells: bool) -> None:
    """A number of one's own always, a birth date unless it is shared and there is a number, a name never."""
    assert tells_apart(kind, patient(*identifiers), [card("1", "João Silva", others_born)]) is tells


def test_has_number_is_what_may_be_typed() -> None:
    """The record's own number, one too short and the mark of a system are none."""
    assert has_number(patient("urn:x|55501"))
    assert not has_number(patient("7823", "123", "urn:x|none"))


def test_among_compares_with_a_patient_of_elsewhere() -> None:
    """Opened by emergency, a patient of another department is compared with this one's; an empty list has nobody."""
    namesakes = Namesakes()
    cards = (card("1", "José Silva"), card("2", "Ana Dias"))
    assert asyncio.run(namesakes.among("cardiology", cards)) == {}
    found = asyncio.run(namesakes.among("cardiology", cards, patient()))
    assert found == {"1": {"7823"}, "7823": {"1"}}
    assert asyncio.run(namesakes.among("nowhere", (), patient())) == {}


def test_among_many_names_is_the_same() -> None:
    """A list that is compared beside the event loop gives what a short one gives."""
    cards = tuple(card(str(number), f"Ana{number} Fam{number:04}x") for number in range(300))
    twins = (card("a", "Rui Lopes"), card("b", "Rita Lopes"))
    found = asyncio.run(Namesakes().among("cardiology", (*cards, *twins)))
    assert (found["a"], found["b"]) == (frozenset("b"), frozenset("a"))
