"""Units as people read them: UCUM codes made readable, and two units compared before one is believed.

Nothing is converted here: a number keeps the unit that its source gave it.
"""

from __future__ import annotations

import re

import msgspec

UCUM = ("http://unitsofmeasure.org", "https://unitsofmeasure.org", "urn:oid:2.16.840.1.113883.6.8")

#: UCUM codes whose readable form the two general rules below (drop braces, open brackets) do not give.
READABLE: dict[str, str] = {
    "1": "",  # UCUM's unity: a ratio or a plain number, dimensionless by the source's own word
    "{#}": "",
    "{1}": "",
    "Cel": "°C",
    "[degF]": "°F",
    "10*3/uL": "10^3/uL",
    "10*6/uL": "10^6/uL",
    "10*9/L": "10^9/L",
    "10*12/L": "10^12/L",
    "mm[Hg]": "mmHg",
    "cm[H2O]": "cmH2O",
    "[lb_av]": "lb",
    "[oz_av]": "oz",
    "[in_i]": "in",
    "[in_us]": "in",
    "[ft_i]": "ft",
    "[pH]": "pH",
    "[drp]": "drops",
    "kg/m2": "kg/m²",
    "m2": "m²",
    "mL/min/{1.73_m2}": "mL/min/1.73 m²",
    "mL/min/1.73.m2": "mL/min/1.73 m²",
    "mL/min/1.73.m^2": "mL/min/1.73 m²",
    "L/min/m2": "L/min/m²",
    "meq/L": "mEq/L",
    "meq": "mEq",
    "/min": "/min",
    "{beats}/min": "/min",
    "{breaths}/min": "/min",
    "m[IU]/L": "mIU/L",
    "m[IU]/mL": "mIU/mL",
    "u[IU]/mL": "uIU/mL",
    "k[IU]/L": "kIU/L",
    "a": "years",
    "mo": "months",
    "wk": "weeks",
    "d": "days",
    "h": "h",
}

#: What people write for the same thing, compared without case and blanks. Only spellings with one meaning.
WRITTEN: dict[str, str] = {
    "mmhg": "mmHg",
    "mm[hg]": "mmHg",
    "c": "°C",
    "°c": "°C",
    "degc": "°C",
    "celsius": "°C",
    "degreescelsius": "°C",
    "f": "°F",
    "°f": "°F",
    "degf": "°F",
    "fahrenheit": "°F",
    "bpm": "/min",
    "beats/min": "/min",
    "beats/minute": "/min",
    "breaths/min": "/min",
    "breaths/minute": "/min",
    "perminute": "/min",
    "/min": "/min",
    "kg/m2": "kg/m²",
    "kg/m^2": "kg/m²",
    "percent": "%",
    "lbs": "lb",
    "pounds": "lb",
    "kilograms": "kg",
    "mg/dl": "mg/dL",
    "g/dl": "g/dL",
    "ug/dl": "ug/dL",
    "mcg/dl": "ug/dL",
    "g/l": "g/L",
    "mg/l": "mg/L",
    "ug/l": "ug/L",
    "mcg/l": "ug/L",
    "ng/l": "ng/L",
    "ng/ml": "ng/mL",
    "pg/ml": "pg/mL",
    "ug/ml": "ug/mL",
    "mcg/ml": "ug/mL",
    "ng/dl": "ng/dL",
    "mmol/l": "mmol/L",
    "umol/l": "umol/L",
    "nmol/l": "nmol/L",
    "pmol/l": "pmol/L",
    "meq/l": "mEq/L",
    "u/l": "U/L",
    "iu/l": "IU/L",
    "10^9/l": "10^9/L",
    "x10^9/l": "10^9/L",
    "10^3/ul": "10^3/uL",
    "x10^3/ul": "10^3/uL",
    "k/ul": "10^3/uL",
    "10^6/ul": "10^6/uL",
    "10^12/l": "10^12/L",
}

_PREFIX = {"k": 3, "": 0, "d": -1, "c": -2, "m": -3, "u": -6, "µ": -6, "n": -9, "p": -12, "f": -15}
_PART = re.compile(r"(?P<prefix>[kdcmuµnpf]?)(?P<base>mol|g|L|Eq|IU|U|m|Pa)|10\^(?P<exponent>\d{1,2})")
_ANNOTATION = re.compile(r"\{[^{}]*\}")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


class Unit(msgspec.Struct, frozen=True):
    """What a quantity's unit turned out to be.

    display: None: the source gave none; "": the source says that the number has no dimension.
    contradiction: the readable unit and the coded one name different things, and nobody can tell which is meant.
    """

    display: str | None
    contradiction: bool = False


def unit_of(unit: str | None, code: str | None, system: str | None) -> Unit:
    """Read a FHIR quantity's ``unit`` and ``code`` together; the UCUM code leads, as it has one meaning.

    A code without a system is taken as UCUM, which is what FHIR asks for in vital signs. Where both are
    known and differ in size or kind ("mg/dL" beside ``g/dL``) the answer is a contradiction.
    """
    written = (unit or "").strip()
    coded = (code or "").strip()
    from_code = readable(coded) if coded and (system is None or system in UCUM) else None
    if from_code is None:
        if not written:
            return Unit(coded or None)
        return Unit(WRITTEN.get(_plain(written), readable(written)))
    known = WRITTEN.get(_plain(written)) if written else None
    if known is None and _magnitude(written) is not None:
        known = written
    if known is not None and from_code != known and not _is_equal(from_code, known):
        return Unit(None, contradiction=True)
    return Unit(from_code)


def readable(code: str) -> str:
    """A UCUM code in readable form: ``mm[Hg]`` is "mmHg", ``{score}`` is "score", ``10*3/uL`` is "10^3/uL"."""
    if code in READABLE:
        return READABLE[code]
    bare = _ANNOTATION.sub("", code)
    if not bare:
        return code.strip("{}").replace("_", " ")
    return _BRACKETS.sub(r"\1", bare).replace("10*", "10^")


def _plain(unit: str) -> str:
    return unit.replace(" ", "").replace("µ", "u").replace("μ", "u").casefold()


def _magnitude(unit: str) -> tuple[tuple[str, ...], int] | None:
    """Kind and power of ten of a unit such as "ug/mL" or "10^3/uL"; None where it is not of that shape."""
    kinds: list[str] = []
    power = 0
    for index, part in enumerate(unit.replace(" ", "").split("/")):
        found = _PART.fullmatch(part)
        if found is None:
            return None
        sign = 1 if index == 0 else -1
        if found["exponent"]:
            kinds.append("count")
            power += sign * int(found["exponent"])
        else:
            kinds.append("U" if found["base"] == "IU" else found["base"])
            power += sign * _PREFIX[found["prefix"]]
    return tuple(kinds), power


def _is_equal(one: str, other: str) -> bool:
    """Whether two units are two spellings of one, or unknown; only what is known to differ differs."""
    first, second = _magnitude(one), _magnitude(other)
    if first is not None and second is not None:
        return first == second
    return False
