"""Does what a person typed identify the patient a second time? Pure text rules, no fuzziness."""

from __future__ import annotations

import re
import unicodedata
from datetime import date
from typing import Literal

from context.layers import PatientLayer

Kind = Literal["birth_date", "name", "identifier"]

#: Shorter record numbers are too easily typed by accident (a bed, an age).
MIN_IDENTIFIER_CHARS = 4

_ISO = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")
_DAY_FIRST = re.compile(r"(\d{1,2})[/.\-](\d{1,2})[/.\-](\d{4})")


def second_identifier(typed: str | None, patient: PatientLayer) -> Kind | None:
    """Which second identifier of ``patient`` was typed; None if it is none of them.

    Taken are the birth date (1959-01-15, or day first: 15/01/1959, 15-1-1959, 15.01.1959), the full name as the
    record has it (accents, case and spacing aside; "Silva, João" is "João Silva"), and a number of the record other
    than ``patient_id`` itself. A part of a name, a year, or the ``patient_id`` again identify nobody.
    """
    text = (typed or "").strip()
    if not text:
        return None
    if patient.birth_date is not None and _date(text) == patient.birth_date:
        return "birth_date"
    words = _words(text)
    if len(words) > 1 and words == _words(patient.name):
        return "name"
    return "identifier" if _number(text) in _numbers(patient) else None


def has_number(patient: PatientLayer) -> bool:
    """Whether the record holds a number, other than ``patient_id``, that ``second_identifier`` takes."""
    return bool(_numbers(patient))


def _numbers(patient: PatientLayer) -> frozenset[str]:
    # A source may write the system before the number, "system|number", as FHIR's searches do.
    numbers = {_number(identifier.rpartition("|")[2]) for identifier in patient.identifiers}
    return frozenset(
        number
        for number in numbers
        # Without a digit it is the mark of a system, not what stands on a wristband.
        if len(number) >= MIN_IDENTIFIER_CHARS
        and number != _number(patient.patient_id)
        and any(sign.isdigit() for sign in number)
    )


def _date(text: str) -> date | None:
    if match := _ISO.fullmatch(text):
        year, month, day = (int(part) for part in match.groups())
    elif match := _DAY_FIRST.fullmatch(text):
        day, month, year = (int(part) for part in match.groups())
    else:
        return None
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _plain(text: str) -> str:
    """Lower case without accents: "João" and "JOAO" are one, whichever way the phone composed the letters."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def _words(text: str) -> tuple[str, ...]:
    last, comma, first = text.partition(",")
    return tuple(re.findall(r"\w+", _plain(f"{first} {last}" if comma else text)))


def _number(text: str) -> str:
    return "".join(char for char in _plain(text) if char.isalnum())
