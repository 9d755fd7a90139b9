"""Units as they are shown, and two that contradict each other."""

from __future__ import annotations

import pytest

from context.units import UCUM, readable, unit_of


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("mm[Hg]", "mmHg"),
        ("Cel", "°C"),
        ("10*3/uL", "10^3/uL"),
        ("{score}", "score"),
        ("[pH]", "pH"),
        ("mL/min/{1.73_m2}", "mL/min/1.73 m²"),
        ("m[IU]/L", "mIU/L"),
        ("[IU]/L", "IU/L"),
        ("mg/dL", "mg/dL"),
        ("1", ""),
        ("ng/mL{FEU}", "ng/mL"),
    ],
)
def test_ucum_code_is_made_readable(code: str, shown: str) -> None:
    """A UCUM code reads as people write it."""
    assert readable(code) == shown


@pytest.mark.parametrize(
    ("unit", "code", "shown"),
    [
        (None, None, None),
        ("", "", None),
        ("C", "Cel", "°C"),
        ("breaths/minute", "/min", "/min"),
        ("mmHg", "mm[Hg]", "mmHg"),
        ("mmol/L", "mmol/L", "mmol/L"),
        ("ng/mL", "ug/L", "ug/L"),
        ("10^9/L", "10*3/uL", "10^3/uL"),
        ("MG/DL", "mg/dL", "mg/dL"),
        ("anything", "kg", "kg"),
        ("units per field", None, "units per field"),
    ],
)
def test_unit_and_code_that_agree_give_one_unit(unit: str | None, code: str | None, shown: str | None) -> None:
    """The code leads where both mean the same or the text is free; without either the unit is none."""
    found = unit_of(unit, code, UCUM[0] if code else None)
    assert (found.display, found.contradiction) == (shown, False)


@pytest.mark.parametrize(
    ("unit", "code"),
    [("mg/dL", "g/dL"), ("mmol/L", "mg/dL"), ("°C", "[degF]"), ("mg", "ug"), ("kg", "[lb_av]"), ("10^3/uL", "10*12/L")],
)
def test_unit_and_code_of_different_size_contradict(unit: str, code: str) -> None:
    """A unit whose text and code differ in size or kind is called a contradiction, never one of the two."""
    assert unit_of(unit, code, UCUM[0]).contradiction


def test_code_of_another_system_gives_way_to_the_text() -> None:
    """Only UCUM codes lead; a local code stands where there is no text."""
    assert unit_of("mg/dL", "X17", "urn:local").display == "mg/dL"
    assert unit_of(None, "X17", "urn:local").display == "X17"
