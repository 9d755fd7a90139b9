"""The demo hospital: synthetic staff and patients that are always "today", to show and to test every rule.

Nobody in it exists. The data are JSON files beside this module: ``hospital.json``, ``departments.json``,
``staff.json`` and one FHIR R4 transaction bundle per patient (``*.fhir.json``), imported like any other bundle.
A bundle's department stands in ``meta.tag`` under ``urn:chatd:department``; its times are written relative to the
moment of loading:

==========================  ==================================================================
``{{now-1h35m}}``           a moment, to the minute in UTC: "2026-01-15T06:10:00Z"
``{{now-1d7h}}``            days, hours and minutes may be combined
``{{today-9y130d}}``        a date: nine years and 130 days ago, for an age that stays
==========================  ==================================================================
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from chatd.actions.catalogue import catalogue_of
from context.layers import DepartmentLayer, DoctorLayer, HospitalLayer, versioned

DEPARTMENT_TAG = "urn:chatd:department"

_PLACEHOLDER = re.compile(r"\{\{(?P<base>now|today)(?:-(?P<offset>(?:\d+[ydhm])+))?\}\}")
_PART = re.compile(r"(\d+)([ydhm])")


class Person(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the demo's staff, as in ``staff.json``; the fields are ``DoctorLayer``'s."""

    user_id: str
    name: str
    role: str
    specialty: str
    departments: tuple[str, ...]
    preferences: tuple[str, ...] = ()
    rounds: str = ""


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """The demo hospital at one moment.

    ``bundles``: pairs of department id and a FHIR R4 transaction bundle with one patient, ordered by record number.
    """

    hospital: HospitalLayer
    departments: tuple[DepartmentLayer, ...]
    doctors: tuple[DoctorLayer, ...]
    bundles: tuple[tuple[str, dict[str, Any]], ...]


class _Hospital(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    language: str
    timezone: str
    policies: tuple[str, ...]
    critical_limits: dict[str, tuple[float | None, float | None]]


class _Department(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    department_id: str
    name: str
    name_pt: str
    focus: str
    instructions: tuple[str, ...]


def load(now: datetime) -> Demo:
    """The demo hospital as it is at ``now`` (aware): every time in it lies before ``now``.

    The same minute gives the same hospital. A later moment moves all times with it, so a server that loads it again
    during its life passes the moment of its first load, or its patients' records would seem to have changed.
    """
    minute = now.astimezone(UTC).replace(second=0, microsecond=0)
    hospital = HospitalLayer(as_of=minute, **msgspec.structs.asdict(_hospital()))
    departments = (
        DepartmentLayer(
            as_of=minute,
            actions=catalogue_of(department.department_id),
            **msgspec.structs.asdict(department),
        )
        for department in _departments()
    )
    doctors = (DoctorLayer(as_of=minute, **msgspec.structs.asdict(person)) for person in staff())
    bundles = (_bundle(text, minute) for text in _bundle_texts())
    return Demo(
        hospital=versioned(hospital),
        departments=tuple(versioned(department) for department in departments),
        doctors=tuple(versioned(doctor) for doctor in doctors),
        bundles=tuple(sorted(bundles, key=lambda pair: pair[1]["entry"][0]["resource"]["id"])),
    )


@cache
def staff() -> tuple[Person, ...]:
    """Whom one may sign in as."""
    return msgspec.json.decode(_data("staff.json"), type=tuple[Person, ...])


def hospital_name() -> str:
    """The name above the sign-in."""
    return _hospital().name


@cache
def _hospital() -> _Hospital:
    return msgspec.json.decode(_data("hospital.json"), type=_Hospital)


@cache
def _departments() -> tuple[_Department, ...]:
    return msgspec.json.decode(_data("departments.json"), type=tuple[_Department, ...])


@cache
def _bundle_texts() -> tuple[str, ...]:
    files = (file for file in resources.files("chatd.demo").iterdir() if file.name.endswith(".fhir.json"))
    return tuple(file.read_text(encoding="utf-8") for file in sorted(files, key=lambda file: file.name))


def _bundle(text: str, minute: datetime) -> tuple[str, dict[str, Any]]:
    bundle: dict[str, Any] = msgspec.json.decode(
        _PLACEHOLDER.sub(lambda match: _resolved(match, minute), text).encode()
    )
    tags = bundle["meta"]["tag"]
    return next(tag["code"] for tag in tags if tag["system"] == DEPARTMENT_TAG), bundle


def _resolved(match: re.Match[str], minute: datetime) -> str:
    parts = {unit: int(count) for count, unit in _PART.findall(match["offset"] or "")}
    past = timedelta(days=parts.get("d", 0), hours=parts.get("h", 0), minutes=parts.get("m", 0))
    if match["base"] == "now":
        return f"{minute - past:%Y-%m-%dT%H:%M:%SZ}"
    return (_years_before(minute.date(), parts.get("y", 0)) - past).isoformat()


def _years_before(day: date, years: int) -> date:
    try:
        return day.replace(year=day.year - years)
    except ValueError:  # 29 February in a year without one
        return day.replace(year=day.year - years, day=28)


def _data(name: str) -> bytes:
    return resources.files("chatd.demo").joinpath(name).read_bytes()
