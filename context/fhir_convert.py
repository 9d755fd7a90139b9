"""One FHIR resource to items of the patient layer: pure functions, one per type.

Each takes a resource that ``context.fhir_text.clean`` and the R4B models have passed, and gives an ``Outcome``:
the items, or the reason why there are none. Which patient it belongs to is decided elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from typing import Any

import msgspec

from context import fhir_codes as codes
from context.fhir_text import REPORT_CHARS, TEXT_CHARS, clean_text, cut, one_line, strip_markup
from context.layers import Allergy, Condition, Event, Flag, Medication, Observation, Report
from context.units import unit_of

Item = Allergy | Condition | Event | Medication | Observation | Report
Json = dict[str, Any]

#: Longest attached report text, decoded. A page of text has about 3 KiB.
MAX_ATTACHMENT_BYTES = 1024 * 1024
#: Activities of a care plan that are named; the plan itself is the item.
_MAX_ACTIVITIES = 12


class Env(msgspec.Struct):
    """What a conversion may know: the hospital's zone for times that name none, and where to count remarks."""

    zone: tzinfo | None
    noted: Counter[str]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one resource became.

    items: none where ``reason`` says why.
    same_as: what two resources of one business identifier must also share to be one: code and time.
    pregnancy: (pregnant or not, since when), where the resource says it.
    no_known: what a "no known ..." allergy entry covers, see ``codes.NO_KNOWN``.
    medication_ref: a Medication elsewhere that still has to name ``items[0]``.
    """

    items: tuple[Item, ...] = ()
    reason: str = ""
    same_as: tuple[str, str] = ("", "")
    pregnancy: tuple[bool, datetime | None] | None = None
    no_known: str = ""
    medication_ref: str = ""


# --- small readers: each gives nothing for what is not of its kind ------------------------------------------


def texts(node: Any) -> str:
    return node if isinstance(node, str) else ""


def obj(node: Any) -> Json:
    return node if isinstance(node, dict) else {}


def objects(node: Any) -> list[Json]:
    if isinstance(node, dict):
        return [node]
    return [item for item in node if isinstance(item, dict)] if isinstance(node, list) else []


def number(node: Any) -> float | None:
    """A JSON number as float; a number in quotes is none, since FHIR JSON has it without."""
    if isinstance(node, bool) or not isinstance(node, (int, float)):
        return None
    return float(node) if math.isfinite(node) else None


def shown(value: float) -> str:
    """A number for a text: never in exponent notation, no ".0" on whole numbers."""
    if value == int(value):
        return str(int(value))
    return format(Decimal(repr(value)), "f")


_DAY = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_LEAP_SECOND = re.compile(r"(T\d\d:\d\d):60")
_PARTIAL = re.compile(r"(\d{4})(?:-(\d{2}))?")


def moment(node: Any, env: Env, *, partial: bool = False) -> datetime | None:
    """A FHIR date, dateTime or instant in UTC; None without one.

    A date stands as its midnight in UTC. A year or a month alone is a time only where ``partial`` allows it,
    as its first day: a history may be ordered by it, but no measurement is given a day it does not name.
    A time without a zone is read in ``env.zone``, or not at all.
    """
    text = texts(node).strip()
    if not text:
        return None
    try:
        if day := _DAY.fullmatch(text):
            return datetime(int(day[1]), int(day[2]), int(day[3]), tzinfo=UTC)
        if month := _PARTIAL.fullmatch(text):
            if not partial:
                env.noted["time known only to the month or year"] += 1
                return None
            return datetime(int(month[1]), int(month[2] or 1), 1, tzinfo=UTC)
        # A leap second is a valid instant that Python does not know.
        found = datetime.fromisoformat(_LEAP_SECOND.sub(r"\1:59", text))
        if found.tzinfo is None:
            if env.zone is None:
                env.noted["time without a zone"] += 1
                return None
            found = found.replace(tzinfo=env.zone)
        return found.astimezone(UTC)
    except (ValueError, OverflowError):
        env.noted["time not understood"] += 1
        return None


def whole_date(node: Any) -> date | None:
    """A birth date of day precision; None for a partial or impossible one."""
    day = _DAY.fullmatch(texts(node).strip()[:10])
    try:
        return date(int(day[1]), int(day[2]), int(day[3])) if day else None
    except ValueError:
        return None


def codings(concept: Any) -> list[Json]:
    return objects(obj(concept).get("coding"))


def code_in(concept: Any, *systems: tuple[str, ...]) -> str | None:
    """The code of the first of ``systems`` that the concept has."""
    for system in systems:
        for coding in codings(concept):
            code = texts(coding.get("code")).strip()
            if code and coding.get("system") in system:
                return code
    return None


def any_code(concept: Any) -> str | None:
    return next((code for coding in codings(concept) if (code := texts(coding.get("code")).strip())), None)


def code_set(concept: Any) -> frozenset[str]:
    return frozenset(texts(coding.get("code")).strip() for coding in codings(concept)) - {""}


def label(concept: Any) -> str:
    """What people call it: the concept's text, else the first display, else the first code; "" without any."""
    text = one_line(texts(obj(concept).get("text")))
    if text:
        return text
    for coding in codings(concept):
        if display := one_line(texts(coding.get("display"))):
            return display
    return any_code(concept) or ""


def loinc_of(concept: Any) -> str | None:
    found = [
        code
        for coding in codings(concept)
        if coding.get("system") in codes.LOINC and (code := texts(coding.get("code")).strip())
    ]
    return next((code for code in found if code in codes.VITALS), found[0] if found else None)


def status_reason(kind: str, status: str) -> str:
    """Why a resource of this status is left out; "" if it is taken."""
    if kind not in codes.TAKEN or status in codes.TAKEN[kind]:
        return ""
    if status in codes.LEFT_OUT.get(kind, ()):
        return f"status {status}"
    return "status not understood" if status else "no status"


# --- observations -------------------------------------------------------------------------------------------


def flag_of(node: Any) -> Flag:
    """The gravest flag that the interpretations give."""
    found: list[Flag] = [""]
    for concept in objects(node):
        known = [codes.FLAGS.get(code, "") for code in code_set(concept)]
        text = texts(concept.get("text")).strip().casefold()
        found += known if codings(concept) else [codes.FLAG_TEXTS.get(text, "")]
    return max(found, key=lambda flag: (codes.FLAG_RANK[flag], flag))


def _is_normal(row: Json) -> bool:
    """Whether a reference range is the normal one: no type, or the type "normal"."""
    kind = row.get("type")
    return kind is None or "normal" in code_set(kind) or label(kind).casefold() in ("normal", "normal range")


class _Range(msgspec.Struct, frozen=True):
    low: float | None = None
    high: float | None = None
    text: str = ""


def _range(node: Any, unit: str | None) -> _Range:
    """The reference range: bounds only where exactly one normal range stands, in the value's own unit."""
    rows = objects(node)
    lines: list[str] = []
    bounds: list[tuple[float | None, float | None]] = []
    for row in rows:
        low, high = obj(row.get("low")), obj(row.get("high"))
        low_value, high_value = number(low.get("value")), number(high.get("value"))
        units = {_unit(side) for side, value in ((low, low_value), (high, high_value)) if value is not None}
        about = [label(row.get("type"))] if not _is_normal(row) else []
        about += [label(applies) for applies in objects(row.get("appliesTo"))]
        if obj(row.get("age")):
            about.append(f"age {_span(obj(row['age']))}")
        words = [text] if (text := one_line(texts(row.get("text")))) else []
        if not words and (low_value is not None or high_value is not None):
            words = [_span(row)]
        qualifier = ", ".join(part for part in about if part)
        lines += [f"{word} ({qualifier})" if qualifier else word for word in words]
        if _is_normal(row) and not obj(row.get("age")) and not row.get("appliesTo"):
            # Bounds without a unit are in the value's; bounds in another unit stay text.
            if units <= {None, unit} and (low_value is not None or high_value is not None):
                bounds.append((low_value, high_value))
            else:
                bounds.append((None, None))
    alone = bounds[0] if len(bounds) == 1 else (None, None)
    if alone[0] is not None and alone[1] is not None and alone[0] > alone[1]:
        alone = (None, None)
    return _Range(alone[0], alone[1], cut("; ".join(lines), TEXT_CHARS))


def _unit(quantity: Json) -> str | None:
    return unit_of(
        texts(quantity.get("unit")) or None,
        texts(quantity.get("code")) or None,
        texts(quantity.get("system")) or None,
    ).display


def _amount(quantity: Json) -> str:
    """A quantity as text: "< 5 mg"."""
    value = number(quantity.get("value"))
    if value is None:
        return ""
    parts = (texts(quantity.get("comparator")), shown(value), _unit(quantity) or "")
    return " ".join(part for part in parts if part)


def _span(node: Json) -> str:
    """A range as text: "5 to 10 mg", "< 8", "> 13"."""
    low, high = obj(node.get("low")), obj(node.get("high"))
    if low and high:
        low_value, high_value = number(low.get("value")), number(high.get("value"))
        if low_value is not None and high_value is not None:
            if _unit(low) in (None, _unit(high)):
                return f"{shown(low_value)} to {_amount(high)}"
            return f"{_amount(low)} to {_amount(high)}"
    if high:
        return f"up to {_amount(high)}" if _amount(high) else ""
    return f"from {_amount(low)}" if _amount(low) else ""


def _ratio(node: Json) -> str:
    top, bottom = obj(node.get("numerator")), obj(node.get("denominator"))
    if not _amount(top) or not _amount(bottom):
        return ""
    if _unit(top) is None and _unit(bottom) is None:
        return f"{_amount(top)}:{_amount(bottom)}"
    return f"{_amount(top)} / {_amount(bottom)}"


class _Value(msgspec.Struct, frozen=True):
    value: float | None = None
    text: str = ""
    unit: str | None = None
    comparator: str = ""
    reason: str = ""


_VALUE_KEYS = tuple(field for field in codes.FIELDS["Observation"] if field.startswith("value"))


def _value(node: Json, env: Env) -> _Value:
    """The value of an observation or a component; ``reason`` where there is none to show."""
    present = [key for key in _VALUE_KEYS if key in node]
    if "valueSampledData" in node:
        return _Value(reason="a waveform is not read")
    if not present:
        return _Value(reason="no value (data absent)" if node.get("dataAbsentReason") else "no value")
    if node.get("dataAbsentReason"):
        return _Value(reason="a value beside a reason for its absence")
    key = present[0]
    raw = node[key]
    if key == "valueQuantity":
        return _quantity(obj(raw), env)
    if key == "valueInteger":
        found = number(raw)
        return _Value(value=found) if found is not None else _Value(reason="value is not a number")
    text = ""
    if key == "valueCodeableConcept":
        text = label(raw)
    elif key == "valueBoolean":
        text = "yes" if raw is True else "no" if raw is False else ""
    elif key == "valueRange":
        text = _span(obj(raw))
    elif key == "valueRatio":
        text = _ratio(obj(raw))
    elif key == "valuePeriod":
        start, end = texts(obj(raw).get("start")), texts(obj(raw).get("end"))
        text = " to ".join(part for part in (start, end) if part)
    else:
        text = texts(raw)
    text = text.strip()
    return _Value(text=text) if text else _Value(reason="no value")


def _quantity(quantity: Json, env: Env) -> _Value:
    raw = quantity.get("value")
    value = number(raw)
    if value is None:
        return _Value(reason="no value" if raw is None else "value is not a number")
    comparator = texts(quantity.get("comparator"))
    unit, code = texts(quantity.get("unit")) or None, texts(quantity.get("code")) or None
    read = unit_of(unit, code, texts(quantity.get("system")) or None)
    if read.contradiction:
        env.noted["unit contradicts its code"] += 1
        return _Value(text=f"{comparator}{' ' if comparator else ''}{shown(value)} (unit unclear: {unit} or {code})")
    if comparator not in ("", "<", "<=", ">", ">="):
        return _Value(text=f"{comparator} {shown(value)} {read.display or ''}".strip())
    if read.display is None:
        env.noted["number without a unit"] += 1
    return _Value(value=value, unit=read.display, comparator=comparator)


def _derived_flag(value: _Value, bounds: _Range) -> Flag:
    """High or low by the report's own range, where the source gave no interpretation."""
    if value.value is None or (value.unit is None and (bounds.low is not None or bounds.high is not None)):
        return ""
    found, below, above = value.value, value.comparator.startswith("<"), value.comparator.startswith(">")
    # "< 5" says nothing about an upper bound and "> 5" nothing about a lower one.
    if (
        bounds.high is not None
        and not below
        and (found > bounds.high or (value.comparator == ">" and found == bounds.high))
    ):
        return "H"
    if (
        bounds.low is not None
        and not above
        and (found < bounds.low or (value.comparator == "<" and found == bounds.low))
    ):
        return "L"
    return ""


def _category(node: Any) -> str:
    concepts = objects(node)
    for concept in concepts:
        if code := any_code(concept):
            return one_line(code)
    return label(concepts[0]) if concepts else ""


def _effective(resource: Json, env: Env) -> datetime | None:
    """When it was measured: the effective time, for a period its end, else when it was issued."""
    period = obj(resource.get("effectivePeriod"))
    for node in (
        resource.get("effectiveDateTime"),
        resource.get("effectiveInstant"),
        period.get("end"),
        period.get("start"),
    ):
        if node:
            return moment(node, env)
    return moment(resource.get("issued"), env)


def _is_ecg(concept: Any, title: str) -> bool:
    return bool(code_set(concept) & codes.ECG_CODES) or bool(codes.ECG_TITLE.search(title))


def observation(resource: Json, ref: str, env: Env) -> Outcome:
    concept = resource.get("code")
    name = label(concept)
    code = loinc_of(concept)
    as_of = _effective(resource, env)
    same_as = (code or any_code(concept) or name, as_of.isoformat() if as_of else "")
    if resource.get("focus"):
        return Outcome(reason="about somebody or something else (focus)", same_as=same_as)
    if not name:
        return Outcome(reason="no code", same_as=same_as)
    status = texts(resource.get("status"))
    category = _category(resource.get("category"))
    own = _value(resource, env)
    components = objects(resource.get("component"))
    items: list[Item] = []
    if _is_ecg(concept, name) and own.value is None:
        if report := _ecg_report(resource, ref, name, code, own.text, as_of, env):
            items.append(report)
    elif not own.reason:
        # A long text is a report, wherever the source put it.
        if len(own.text) > TEXT_CHARS // 4:
            kind = _report_kind(resource, concept, name)
            text = cut(own.text, REPORT_CHARS)
            items.append(Report(ref=ref, title=name, text=text, code=code, kind=kind, status=status, as_of=as_of))
        else:
            items.append(_item(resource, own, ref, name, code, category, status, as_of))
    seen: Counter[str] = Counter()
    for index, component in enumerate(components, 1):
        part = _value(component, env)
        part_name = label(component.get("code"))
        if part.reason or not part_name:
            env.noted[f"component: {part.reason or 'no code'}"] += 1
            continue
        part_code = loinc_of(component.get("code"))
        tail = part_code or any_code(component.get("code")) or str(index)
        seen[tail] += 1
        suffix = tail if seen[tail] == 1 else f"{tail}.{seen[tail]}"
        items.append(_item(component, part, f"{ref}#{suffix}", part_name, part_code, category, status, as_of))
    pregnancy = None
    if code == codes.PREGNANCY_STATUS:
        answers = code_set(resource.get("valueCodeableConcept"))
        if answers & codes.PREGNANT_ANSWERS or resource.get("valueBoolean") is True:
            pregnancy = (True, as_of)
        elif answers & codes.NOT_PREGNANT_ANSWERS or resource.get("valueBoolean") is False:
            pregnancy = (False, as_of)
    reason = ""
    if not items:
        reason = own.reason or "no value"
        if any("valueSampledData" in component for component in components):
            reason = "a waveform is not read"
        elif resource.get("hasMember"):
            reason = "panel: its members are taken"
    return Outcome(items=tuple(items), reason=reason, same_as=same_as, pregnancy=pregnancy)


def _item(
    node: Json,
    value: _Value,
    ref: str,
    name: str,
    code: str | None,
    category: str,
    status: str,
    as_of: datetime | None,
) -> Observation:
    bounds = _range(node.get("referenceRange"), value.unit)
    flag = flag_of(node.get("interpretation"))
    if not node.get("interpretation"):
        flag = _derived_flag(value, bounds)
    return Observation(
        ref=ref,
        name=name,
        code=code,
        value=value.value,
        text=None if value.value is not None else cut(value.text, TEXT_CHARS),
        unit=value.unit,
        comparator=value.comparator,
        low=bounds.low if value.value is not None else None,
        high=bounds.high if value.value is not None else None,
        range_text=bounds.text,
        flag=flag,
        category=category,
        status=status,
        as_of=as_of,
    )


# --- reports ------------------------------------------------------------------------------------------------


def _narrative(resource: Json, env: Env) -> str:
    text = obj(resource.get("text"))
    if text.get("status") == "empty":
        return ""
    return strip_markup(texts(text.get("div")), env.noted)


def _ecg_report(
    resource: Json, ref: str, title: str, code: str | None, text: str, as_of: datetime | None, env: Env
) -> Report | None:
    """An ECG's words: the value, else the notes, else a narrative that a person wrote beside a waveform."""
    if not text:
        text = "\n".join(note for row in objects(resource.get("note")) if (note := texts(row.get("text")).strip()))
    # A generated narrative of a waveform repeats its samples; only one without components is a text.
    if not text and not objects(resource.get("component")) and "valueSampledData" not in resource:
        text = _narrative(resource, env)
    if not text:
        return None
    status = texts(resource.get("status"))
    text = cut(text, REPORT_CHARS)
    return Report(ref=ref, title=title, text=text, code=code, kind="ecg", status=status, as_of=as_of)


def _report_kind(resource: Json, concept: Any, title: str) -> Any:
    if _is_ecg(concept, title):
        return "ecg"
    categories = frozenset[str]().union(*(code_set(row) for row in objects(resource.get("category"))))
    if categories & codes.IMAGING_CATEGORIES:
        return "imaging"
    if categories & codes.LAB_CATEGORIES:
        return "lab"
    return "imaging" if codes.IMAGING_TITLE.search(title) else "other"


def _attachments(nodes: Iterable[Json], env: Env) -> str:
    """The text of attached text and HTML documents; every other kind is counted, none is opened."""
    found: list[str] = []
    for node in nodes:
        content_type, _, parameters = texts(node.get("contentType")).partition(";")
        content_type = content_type.strip().casefold()
        data = texts(node.get("data"))
        if not data:
            if node.get("url"):
                env.noted["attachment elsewhere, not fetched"] += 1
            continue
        if content_type not in ("text/plain", "text/html", "text/xhtml", "application/xhtml+xml"):
            env.noted["attachment of another kind, not read"] += 1
            continue
        text = _decode(data, parameters)
        if text is None:
            env.noted["attachment not readable"] += 1
        elif content_type == "text/plain":
            found.append(clean_text(text, env.noted).strip())
        else:
            found.append(strip_markup(text, env.noted))
    return "\n\n".join(text for text in found if text)


def _decode(data: str, parameters: str) -> str | None:
    if len(data) > MAX_ATTACHMENT_BYTES * 4 // 3 + 4:
        return None
    try:
        raw = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    declared = re.search(r"charset=\"?([\w.:-]{1,40})", parameters, re.IGNORECASE)
    for charset in ("utf-8-sig", declared[1] if declared else ""):
        if charset:
            try:
                return raw.decode(charset)
            except (UnicodeDecodeError, LookupError):
                continue
    return None


def diagnostic_report(resource: Json, ref: str, env: Env) -> Outcome:
    concept = resource.get("code")
    title = label(concept)
    as_of = _effective(resource, env)
    same_as = (loinc_of(concept) or any_code(concept) or title, as_of.isoformat() if as_of else "")
    if not title:
        return Outcome(reason="no code", same_as=same_as)
    parts = [texts(resource.get("conclusion")).strip()]
    attached = _attachments(objects(resource.get("presentedForm")), env)
    if attached and attached not in parts[0]:
        parts.append(attached)
    if not any(parts):
        parts = ["; ".join(text for row in objects(resource.get("conclusionCode")) if (text := label(row)))]
    kind = _report_kind(resource, concept, title)
    # The narrative of a laboratory report with results only repeats them, perhaps in an older version.
    if not any(parts) and (kind in ("ecg", "imaging") or not resource.get("result")):
        parts = [_narrative(resource, env)]
    text = cut("\n\n".join(part for part in parts if part), REPORT_CHARS)
    if not text:
        has_results = bool(resource.get("result"))
        reason = "report without text: its results are taken" if has_results else "report without text"
        return Outcome(reason=reason, same_as=same_as)
    status = texts(resource.get("status"))
    report = Report(ref=ref, title=title, text=text, code=loinc_of(concept), kind=kind, status=status, as_of=as_of)
    return Outcome(items=(report,), same_as=same_as)


def document_reference(resource: Json, ref: str, env: Env) -> Outcome:
    concept = resource.get("type")
    title = label(concept) or one_line(texts(resource.get("description"))) or "Document"
    as_of = moment(resource.get("date"), env)
    attachments = [obj(row.get("attachment")) for row in objects(resource.get("content"))]
    text = cut(_attachments(attachments, env), REPORT_CHARS)
    if not text:
        return Outcome(reason="document without readable text")
    kind = _report_kind(resource, concept, title)
    status = texts(resource.get("docStatus")) or "final"
    report = Report(ref=ref, title=title, text=text, code=loinc_of(concept), kind=kind, status=status, as_of=as_of)
    return Outcome(items=(report,), same_as=(title, as_of.isoformat() if as_of else ""))


# --- problems, medicines, allergies -------------------------------------------------------------------------


def condition(resource: Json, ref: str, env: Env) -> Outcome:
    concept = resource.get("code")
    name = label(concept)
    verification = next(iter(sorted(code_set(resource.get("verificationStatus")))), "")
    onset_node = resource.get("onsetDateTime") or obj(resource.get("onsetPeriod")).get("start")
    onset = moment(onset_node or resource.get("recordedDate"), env, partial=True)
    end_node = resource.get("abatementDateTime") or obj(resource.get("abatementPeriod")).get("end")
    end = moment(end_node, env, partial=True)
    same_as = (any_code(concept) or name, onset.isoformat() if onset else "")
    if verification == "refuted":
        return Outcome(reason="refuted", same_as=same_as)
    if not name:
        return Outcome(reason="no code", same_as=same_as)
    status = code_set(resource.get("clinicalStatus"))
    if status & codes.CONDITION_ACTIVE:
        active = True
    elif status & codes.CONDITION_INACTIVE:
        active = False
    else:
        active = not any(key.startswith("abatement") for key in resource)
    code = code_in(concept, codes.SNOMED, codes.ICD10) or any_code(concept)
    item = Condition(ref=ref, name=name, code=code, active=active, verification=verification, onset=onset, end=end)
    known = code_set(concept) & codes.PREGNANCY_CONDITIONS
    icd = code_in(concept, codes.ICD10)
    is_pregnancy = bool(known) or bool(icd and codes.PREGNANCY_ICD10.match(icd))
    pregnancy = (True, onset) if is_pregnancy and active and end is None else None
    return Outcome(items=(item,), same_as=same_as, pregnancy=pregnancy)


def medication_name(resource: Json) -> tuple[str, str | None]:
    """Name and code of a Medication: its own, else of its ingredients together."""
    concept = resource.get("code")
    if name := label(concept):
        return name, code_in(concept, codes.RXNORM, codes.ATC, codes.SNOMED) or any_code(concept)
    names = [
        label(row.get("itemCodeableConcept")) or one_line(texts(obj(row.get("itemReference")).get("display")))
        for row in objects(resource.get("ingredient"))
    ]
    return one_line(" + ".join(name for name in names if name)), None


def medication(resource: Json, ref: str, env: Env) -> Outcome:
    """MedicationRequest, MedicationStatement and MedicationAdministration: one medicine each."""
    kind = resource["resourceType"]
    concept = resource.get("medicationCodeableConcept")
    name, code = medication_name({"code": concept}) if concept else ("", None)
    reference = obj(resource.get("medicationReference"))
    target = texts(reference.get("reference"))
    if not name and target.startswith("#"):
        for contained in objects(resource.get("contained")):
            if contained.get("resourceType") == "Medication" and f"#{texts(contained.get('id'))}" == target:
                name, code = medication_name(contained)
    shown_name = name or one_line(texts(reference.get("display")))
    pending = target if not name and target and not target.startswith("#") else ""
    if not pending and not name and (logical := obj(reference.get("identifier"))):
        shown_name = shown_name or one_line(texts(logical.get("value")))
    period = obj(resource.get("effectivePeriod"))
    since = moment(
        resource.get("authoredOn")
        or resource.get("effectiveDateTime")
        or period.get("start")
        or resource.get("dateAsserted"),
        env,
        partial=True,
    )
    doses = objects(resource.get("dosageInstruction") or resource.get("dosage"))
    build = given_dose if kind == "MedicationAdministration" else dose_text
    dose = "; ".join(text for row in doses if (text := build(row)))
    # One prescription's number stands on all its lines: two lines of one medicine differ in their dose.
    same_as = (code or shown_name or target, f"{since.isoformat() if since else ''} {dose}")
    status = texts(resource.get("status"))
    if resource.get("doNotPerform"):
        return Outcome(reason="an order not to give", same_as=same_as)
    if texts(resource.get("intent")) in codes.INTENT_LEFT_OUT:
        return Outcome(reason="a proposal, not a prescription", same_as=same_as)
    if not shown_name and not pending:
        return Outcome(reason="medicine not named", same_as=same_as)
    item = Medication(
        ref=ref,
        name=shown_name,
        code=code,
        dose=cut(dose, TEXT_CHARS),
        active=status in codes.MEDICATION_ACTIVE,
        status=status,
        since=since,
    )
    return Outcome(items=(item,), same_as=same_as, medication_ref=pending)


def given_dose(row: Json) -> str:
    """The dose of an administration: its text, else amount, rate and route."""
    if text := one_line(texts(row.get("text")), TEXT_CHARS):
        return text
    rate = _amount(obj(row.get("rateQuantity"))) or _ratio(obj(row.get("rateRatio")))
    parts = (_amount(obj(row.get("dose"))), f"at {rate}" if rate else "", label(row.get("route")))
    return " ".join(part for part in parts if part)


def dose_text(row: Json) -> str:
    """A dosage as text: the source's own words, else built from amount, rate, route and timing."""
    if text := one_line(texts(row.get("text")), TEXT_CHARS) or one_line(texts(row.get("patientInstruction"))):
        return text
    amounts: list[str] = []
    for dose in objects(row.get("doseAndRate")):
        amount = _amount(obj(dose.get("doseQuantity"))) or _span(obj(dose.get("doseRange")))
        rate = (
            _amount(obj(dose.get("rateQuantity")))
            or _span(obj(dose.get("rateRange")))
            or _ratio(obj(dose.get("rateRatio")))
        )
        amounts.append(" ".join(part for part in (amount, f"at {rate}" if rate else "") if part))
    parts = [" / ".join(dict.fromkeys(amount for amount in amounts if amount)), label(row.get("route"))]
    parts.append(_timing(obj(row.get("timing"))))
    reason = label(row.get("asNeededCodeableConcept"))
    if reason or row.get("asNeededBoolean") is True:
        parts.append(f"as needed for {reason}" if reason else "as needed")
    if most := _ratio(obj(row.get("maxDosePerPeriod"))):
        parts.append(f"at most {most}")
    return ", ".join(part for part in parts if part)


def _timing(timing: Json) -> str:
    repeat = obj(timing.get("repeat"))
    parts: list[str] = []
    frequency, period = number(repeat.get("frequency")), number(repeat.get("period"))
    unit = codes.PERIOD_UNITS.get(texts(repeat.get("periodUnit")), "")
    if period is not None and unit:
        most = number(repeat.get("periodMax"))
        many = number(repeat.get("frequencyMax"))
        times = shown(frequency if frequency is not None else 1)
        if many is not None:
            times += f" to {shown(many)}"
        if most is not None or period != 1:
            length = shown(period) + (f" to {shown(most)}" if most is not None else "") + f" {unit}s"
        else:
            length = unit
        once = times == "1"
        parts.append(f"every {length}" if once else f"{times} times every {length}")
    parts += [codes.TIMING_EVENTS.get(when, when) for when in repeat.get("when") or () if isinstance(when, str)]
    if days := [day for day in repeat.get("dayOfWeek") or () if isinstance(day, str)]:
        parts.append("on " + ", ".join(days))
    if hours := [hour[:5] for hour in repeat.get("timeOfDay") or () if isinstance(hour, str)]:
        parts.append("at " + ", ".join(hours))
    bounds = obj(repeat.get("boundsDuration"))
    if length := _amount(bounds):
        parts.append(f"for {length}")
    if (count := number(repeat.get("count"))) is not None:
        parts.append(f"{shown(count)} times in all")
    if not parts:
        parts = [label(timing.get("code"))]
    return " ".join(part for part in parts if part)


def allergy(resource: Json, ref: str, env: Env) -> Outcome:
    concept = resource.get("code")
    name = label(concept)
    verification = next(iter(sorted(code_set(resource.get("verificationStatus")))), "")
    recorded = moment(resource.get("recordedDate") or resource.get("onsetDateTime"), env, partial=True)
    # Business identifiers of allergies are not shared between entries, so the time need not agree.
    same_as = (any_code(concept) or name, "")
    if verification == "refuted":
        return Outcome(reason="refuted", same_as=same_as)
    status = code_set(resource.get("clinicalStatus"))
    active = not status & frozenset(("inactive", "resolved"))
    all_codes = code_set(concept)
    if all_codes & codes.NO_ALLERGY_INFO:
        return Outcome(reason="says that nothing is known about allergies", same_as=same_as)
    none_known = next((codes.NO_KNOWN[code] for code in sorted(all_codes) if code in codes.NO_KNOWN), "")
    if not none_known and not all_codes:
        none_known = codes.NO_KNOWN_TEXTS.get(name.casefold().strip(" ."), "")
    if none_known:
        if not active:
            return Outcome(reason=f"no known {none_known}: no longer valid", same_as=same_as)
        return Outcome(no_known=none_known, same_as=same_as)
    reactions = objects(resource.get("reaction"))
    if not name:
        # Without a substance the entry still says that there is an allergy; that is shown, not dropped.
        substances = [label(row.get("substance")) for row in reactions]
        name = next((substance for substance in substances if substance), "") or "substance not named"
        concept = next((row.get("substance") for row in reactions if label(row.get("substance"))), concept)
    described: list[str] = []
    for row in reactions:
        signs = ", ".join(sign for node in objects(row.get("manifestation")) if (sign := label(node)))
        signs = signs or one_line(texts(row.get("description")))
        severity = texts(row.get("severity"))
        if signs or severity:
            described.append(f"{signs} ({severity})" if signs and severity else signs or severity)
    categories = resource.get("category")
    item = Allergy(
        ref=ref,
        name=name,
        code=code_in(concept, codes.RXNORM, codes.SNOMED, codes.ATC) or any_code(concept),
        category=", ".join(text for text in categories if isinstance(text, str))
        if isinstance(categories, list)
        else "",
        criticality=texts(resource.get("criticality")),
        reaction=cut("; ".join(dict.fromkeys(described)), TEXT_CHARS),
        active=active,
        verification=verification,
        recorded=recorded,
    )
    return Outcome(items=(item,), same_as=same_as)


# --- what happened ------------------------------------------------------------------------------------------


def encounter(resource: Json, ref: str, env: Env) -> Outcome:
    kinds = [name for row in objects(resource.get("type")) if (name := label(row))]
    coding = obj(resource.get("class"))
    class_code = texts(coding.get("code"))
    class_name = codes.ENCOUNTER_CLASSES.get(class_code) or one_line(texts(coding.get("display"))) or class_code
    name = ", ".join(kinds) or "Encounter"
    if class_name:
        name = f"{name} ({class_name})"
    types = objects(resource.get("type"))
    code = any_code(types[0]) if types else None
    return _event(resource, ref, "encounter", name, code or class_code or None, resource.get("period"), env)


def procedure(resource: Json, ref: str, env: Env) -> Outcome:
    concept = resource.get("code")
    if not (name := label(concept)):
        return Outcome(reason="no code")
    when = resource.get("performedPeriod") or {"start": resource.get("performedDateTime")}
    return _event(resource, ref, "procedure", name, any_code(concept), when, env)


def immunization(resource: Json, ref: str, env: Env) -> Outcome:
    concept = resource.get("vaccineCode")
    if not (name := label(concept)):
        return Outcome(reason="no code")
    when = {"start": resource.get("occurrenceDateTime")}
    return _event(resource, ref, "immunization", name, any_code(concept), when, env)


def care_plan(resource: Json, ref: str, env: Env) -> Outcome:
    if texts(resource.get("intent")) in codes.INTENT_LEFT_OUT:
        return Outcome(reason="a proposal, not a plan")
    categories = objects(resource.get("category"))
    names = [name for row in categories if (name := label(row))]
    title = one_line(texts(resource.get("title"))) or ", ".join(names) or one_line(texts(resource.get("description")))
    done = [obj(row.get("detail")) for row in objects(resource.get("activity"))]
    activities = [
        label(detail.get("code")) or one_line(texts(detail.get("description")))
        for detail in done
        if texts(detail.get("status")) not in ("cancelled", "entered-in-error") and not detail.get("doNotPerform")
    ]
    listed = list(dict.fromkeys(name for name in activities if name))
    rest = len(listed) - _MAX_ACTIVITIES
    text = ", ".join(listed[:_MAX_ACTIVITIES]) + (f" and {rest} more" if rest > 0 else "")
    name = title or "Care plan"
    code = any_code(categories[0]) if categories else None
    when = resource.get("period") or {"start": resource.get("created")}
    return _event(resource, ref, "care_plan", f"{name}: {text}" if text else name, code, when, env)


def _event(resource: Json, ref: str, kind: Any, name: str, code: str | None, when: Any, env: Env) -> Outcome:
    period = obj(when)
    start = moment(period.get("start"), env, partial=True)
    end = moment(period.get("end"), env, partial=True)
    event = Event(
        ref=ref,
        kind=kind,
        name=one_line(name, 2 * TEXT_CHARS // 5),
        code=code,
        status=texts(resource.get("status")),
        start=start,
        end=end,
    )
    return Outcome(items=(event,), same_as=(code or name, start.isoformat() if start else ""))


CONVERTERS: dict[str, Callable[[Json, str, Env], Outcome]] = {
    "Condition": condition,
    "Observation": observation,
    "DiagnosticReport": diagnostic_report,
    "DocumentReference": document_reference,
    "MedicationRequest": medication,
    "MedicationStatement": medication,
    "MedicationAdministration": medication,
    "AllergyIntolerance": allergy,
    "Encounter": encounter,
    "Procedure": procedure,
    "Immunization": immunization,
    "CarePlan": care_plan,
}
