"""What must be escalated, by three triggers that do not need each other: NEWS2, critical results, emergencies.

NEWS2 alone is no safe trigger: a stroke in the thrombolysis window scores 0, a potassium of 6.9 scores 1.
NEWS2 (c) Royal College of Physicians 2017.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from chatd.safety.analytes import Analyte, Limits, analyte_of, limits_of, to_canonical
from chatd.safety.presentations import Presentation, ecg_emergencies, emergencies
from chatd.safety.vitals import AHEAD_H, LABELS, Vitals, newest_first, plausible, vitals_of
from chatd.safety.words import key, moment, name_key, number, pick, slug, stamp
from context.layers import HospitalLayer, Observation, PatientLayer
from context.text import fold
from protocols.frames import RedFlag, Score

#: Each row: (upper bound inclusive, points); the last bound is infinity.
Bands = tuple[tuple[float, int], ...]
_INF = math.inf

#: The NEWS2 chart. Source: Royal College of Physicians, National Early Warning Score (NEWS) 2, 2017.
NEWS2_BANDS: dict[str, Bands] = {
    "rr": ((8, 3), (11, 1), (20, 0), (24, 2), (_INF, 3)),
    "spo2_scale1": ((91, 3), (93, 2), (95, 1), (_INF, 0)),
    "spo2_scale2_air": ((83, 3), (85, 2), (87, 1), (_INF, 0)),
    "spo2_scale2_oxygen": ((83, 3), (85, 2), (87, 1), (92, 0), (94, 1), (96, 2), (_INF, 3)),
    "sbp": ((90, 3), (100, 2), (110, 1), (219, 0), (_INF, 3)),
    "hr": ((40, 3), (50, 1), (90, 0), (110, 1), (130, 2), (_INF, 3)),
    "temp": ((35.0, 3), (36.0, 1), (38.0, 0), (39.0, 1), (_INF, 2)),
}
NEWS2_OXYGEN = 2
NEWS2_CONSCIOUSNESS = {"A": 0, "C": 3, "V": 3, "P": 3, "U": 3}
NEWS2_PARTS = ("rr", "spo2", "o2", "sbp", "hr", "acvpu", "temp")
NEWS2_SOURCE = "NEWS2 (c) Royal College of Physicians 2017"
#: NEWS2 is for 16 and over, and not for pregnancy.
NEWS2_MIN_AGE = 16

NEWS2_RESPONSE: dict[str, tuple[str, str]] = {
    "high": (
        "emergency assessment by a team with critical-care competencies, continuous monitoring",
        "avaliação emergente por equipa com competências em cuidados críticos, monitorização contínua",
    ),
    "medium": (
        "urgent assessment by a clinician or team competent in acute illness, observations at least hourly",
        "avaliação urgente por clínico ou equipa com competência em doença aguda, vigilância pelo menos horária",
    ),
    "low-medium": (
        "3 in one parameter: the medical team is told and reviews, observations at least hourly",
        "3 num só parâmetro: a equipa médica é informada e reavalia, vigilância pelo menos horária",
    ),
    "low": (
        "observations at least 4- to 12-hourly, a registered nurse assesses",
        "vigilância pelo menos a cada 4 a 12 horas, avaliação por enfermeiro",
    ),
}

#: A result older than this raises no alarm: two days are the usual span between two rounds of the laboratory.
CRITICAL_MAX_AGE_H = 48.0
#: A stale critical value is still told as stale for this long; after that it is history.
STALE_TOLD_DAYS = 14
#: Written ECG reports and new diagnoses count as of now for this long.
ECG_MAX_AGE_H = 48.0
CONDITION_MAX_AGE_H = 24.0
#: From five times the upper reference limit a troponin is predictive of infarction by itself (ESC 2020, 2023).
TROPONIN_FACTOR = 5.0


class Triage(msgspec.Struct, frozen=True, kw_only=True):
    """The result of ``triage``: scores, what to escalate, what is missing, and protocol ids that fit."""

    scores: tuple[Score, ...] = ()
    red_flags: tuple[RedFlag, ...] = ()
    missing: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()


def _points(bands: Bands, value: float) -> int:
    return next(points for bound, points in bands if value <= bound)


def _charted(value: float, step: float) -> float:
    """``value`` on the chart's grid, half up: pulse 90.5 is charted as 91, temperature 38.05 as 38.1."""
    return math.floor(round(value / step, 6) + 0.5) * step if step == 1 else math.floor(round(value * 10, 6) + 0.5) / 10


def _news2_parts(vitals: Vitals) -> dict[str, int]:
    """The points of each parameter that is there and possible, in the chart's order."""
    parts: dict[str, int] = {}

    def usable(name: str, value: float | None) -> float | None:
        return value if value is not None and plausible(name, value) else None

    if (rr := usable("rr", vitals.rr)) is not None:
        parts["rr"] = _points(NEWS2_BANDS["rr"], _charted(rr, 1))
    if (spo2 := usable("spo2", vitals.spo2)) is not None:
        if vitals.scale != 2:
            parts["spo2"] = _points(NEWS2_BANDS["spo2_scale1"], _charted(spo2, 1))
        elif vitals.o2 is not None or _charted(spo2, 1) <= 92:
            table = "spo2_scale2_oxygen" if vitals.o2 else "spo2_scale2_air"
            parts["spo2"] = _points(NEWS2_BANDS[table], _charted(spo2, 1))
    if vitals.o2 is not None:
        parts["o2"] = NEWS2_OXYGEN if vitals.o2 else 0
    if (sbp := usable("sbp", vitals.sbp)) is not None:
        parts["sbp"] = _points(NEWS2_BANDS["sbp"], _charted(sbp, 1))
    if (hr := usable("hr", vitals.hr)) is not None:
        parts["hr"] = _points(NEWS2_BANDS["hr"], _charted(hr, 1))
    if vitals.acvpu is not None:
        parts["acvpu"] = NEWS2_CONSCIOUSNESS[vitals.acvpu]
    if (temp := usable("temp", vitals.temp)) is not None:
        parts["temp"] = _points(NEWS2_BANDS["temp"], _charted(temp, 0.1))
    return parts


def news2_band(parts: dict[str, int]) -> str:
    """The clinical risk of a set of points: low, low-medium (3 in one parameter), medium (5-6), high (7 and over).

    Oxygen's two points are no single parameter of 3. Of an incomplete set this is the least the risk can be.
    """
    total = sum(parts.values())
    if total >= 7:
        return "high"
    if total >= 5:
        return "medium"
    return "low-medium" if 3 in parts.values() else "low"


def news2(vitals: Vitals, lang: str = "en") -> Score:
    """NEWS2 of one set of vital signs.

    ``value`` is None when a parameter is missing (``parts`` then holds those that are there, and ``text`` the least
    the score can be), under 16 years and in pregnancy. Never raises. ``vitals.scale`` None counts as scale 1.
    Source: Royal College of Physicians 2017.
    """
    as_of = stamp(vitals.as_of)
    if vitals.age_years is not None and vitals.age_years < NEWS2_MIN_AGE:
        text = pick(
            lang, "NEWS2: not validated here (age under 16)", "NEWS2: não validado aqui (idade inferior a 16 anos)"
        )
        return Score(name="NEWS2", value=None, as_of=as_of, text=text)
    if vitals.pregnant:
        text = pick(lang, "NEWS2: not validated here (pregnancy)", "NEWS2: não validado aqui (gravidez)")
        return Score(name="NEWS2", value=None, as_of=as_of, text=text)
    parts = _news2_parts(vitals)
    absent = [name for name in NEWS2_PARTS if name not in parts]
    total = sum(parts.values())
    if absent:
        told = {gap.parameter: gap.text(lang) for gap in vitals.gaps}
        names = ", ".join(pick(lang, *LABELS[name]) for name in absent)  # type: ignore[index]
        text = pick(lang, f"NEWS2 not calculated, missing: {names}", f"NEWS2 não calculado, falta: {names}")
        if parts:
            text += pick(
                lang,
                f"; at least {total} from the {len(parts)} of 7 parameters recorded",
                f"; pelo menos {total} com os {len(parts)} de 7 parâmetros registados",
            )
        missing = tuple(told.get(name, pick(lang, *LABELS[name])) for name in absent)  # type: ignore[index, call-overload]
        return Score(name="NEWS2", value=None, parts=parts, as_of=as_of, text=text, missing=missing)
    band = news2_band(parts)
    response = pick(lang, *NEWS2_RESPONSE[band])
    risk = pick(lang, f"{band} risk", f"risco {_BAND_PT[band]}")
    scale = pick(lang, ", SpO2 scale 2", ", escala 2 de SpO2") if vitals.scale == 2 else ""
    text = f"NEWS2 {total}, {risk}{scale}: {response}. {NEWS2_SOURCE}"
    return Score(name="NEWS2", value=total, band=band, parts=parts, as_of=as_of, text=text)


_BAND_PT = {"low": "baixo", "low-medium": "baixo-médio", "medium": "médio", "high": "elevado"}


# --- critical results ---------------------------------------------------------------------------------------


def _is_recent(at: datetime | None, now: datetime, max_age_h: float) -> bool:
    """A time unknown cannot be shown to be old: such a result counts, and its missing time is said."""
    return at is None or now - timedelta(hours=max_age_h) <= at <= now + timedelta(hours=AHEAD_H)


def upper_reference(observation: Observation) -> float | None:
    """The upper limit of the result's own reference range, in its own unit; from the text where only that is given."""
    if observation.high is not None:
        return observation.high
    written = fold(observation.range_text).replace(",", ".")
    found = re.search(r"(?:<=?|under|ate|up to|inferior a|menor que)\s*(\d+(?:\.\d+)?)", written) or re.search(
        r"\d+(?:\.\d+)?\s*(?:-|to|a)\s*(\d+(?:\.\d+)?)", written
    )
    return float(found.group(1)) if found else None


def troponin_is_critical(observation: Observation, acute_coronary: bool) -> bool:
    """Against the result's own reference range: over five times its upper limit, or over it in an acute presentation.

    Never against a fixed number: assays differ by a factor of 1000. Without a range only the laboratory's flag counts.
    """
    upper = upper_reference(observation)
    if observation.value is None or upper is None or upper <= 0 or not math.isfinite(observation.value):
        return False
    if observation.comparator.startswith("<"):
        return False
    return observation.value > upper * (1.0 if acute_coronary else TROPONIN_FACTOR)


def _range_text(observation: Observation) -> str:
    if observation.range_text:
        return observation.range_text
    if observation.low is not None and observation.high is not None:
        return f"{number(observation.low)}-{number(observation.high)}"
    if observation.high is not None:
        return f"< {number(observation.high)}"
    return f"> {number(observation.low)}" if observation.low is not None else ""


def _value_text(observation: Observation, lang: str) -> str:
    if observation.value is None:
        return observation.text or ""
    unit = observation.unit
    shown = f"{observation.comparator}{' ' if observation.comparator else ''}{number(observation.value)}"
    if unit:
        return f"{shown} {unit}"
    analyte = analyte_of(observation)
    return (
        shown
        if analyte is not None and analyte.unitless
        else f"{shown} {pick(lang, '(unit missing)', '(sem unidade)')}"
    )


def _flag_text(observation: Observation, why: str, lang: str, timezone: str) -> str:
    reference = _range_text(observation)
    parts = [f"{observation.name} {_value_text(observation, lang)}", why]
    if reference:
        parts.append(pick(lang, f"reference {reference}", f"referência {reference}"))
    parts.append(moment(observation.as_of, lang, timezone))
    return pick(lang, "Critical result: ", "Resultado crítico: ") + ", ".join(parts)


def _why(limits: Limits, side: str, analyte: Analyte, lang: str) -> str:
    limit = limits.text(side)
    unit = f" {analyte.unit}" if analyte.unit else ""
    return pick(lang, f"call limit {limit}{unit}", f"limite de comunicação {limit}{unit}") + (
        f" ({limits.source})" if limits.source else ""
    )


class _Judged(msgspec.Struct, frozen=True):
    """One latest result: its analyte id, the flag it raises, why it could not be judged, and which side it is on."""

    id: str
    observation: Observation
    flag: RedFlag | None
    side: str
    analyte: Analyte | None


def _judge(
    observation: Observation, analyte: Analyte | None, hospital: HospitalLayer, acute_coronary: bool, lang: str
) -> _Judged:
    id_ = analyte.id if analyte is not None else slug(observation.name)
    side, why = "", ""
    if analyte is not None and observation.value is not None:
        limits = limits_of(analyte, hospital.critical_limits, hospital.name)
        canonical = to_canonical(analyte, observation.value, observation.unit)
        if analyte.id == "troponin" and troponin_is_critical(observation, acute_coronary):
            side, why = "high", pick(lang, "above its reference range", "acima do intervalo de referência")
        elif canonical is not None:
            # "> 600" is surely high and says nothing about low; "< 10" the other way round
            if limits.is_high(canonical) and not observation.comparator.startswith("<"):
                side = "high"
            elif limits.is_low(canonical) and not observation.comparator.startswith(">"):
                side = "low"
            why = _why(limits, side, analyte, lang) if side else ""
    if not side and observation.flag in {"HH", "LL"}:
        side = "high" if observation.flag == "HH" else "low"
        why = pick(
            lang, f"flagged {observation.flag} by the laboratory", f"assinalado {observation.flag} pelo laboratório"
        )
    flag = None
    if side:
        flag = RedFlag(
            id=f"critical.{id_}",
            trigger="critical_result",
            text=_flag_text(observation, why, lang, hospital.timezone),
            ref=observation.ref,
        )
    return _Judged(id_, observation, flag, side, analyte)


def _latest(patient: PatientLayer, now: datetime) -> list[tuple[Analyte | None, Observation]]:
    """The newest result of each analyte, and of each other name that the laboratory flagged HH or LL.

    A result dated in the future by more than a time zone is left out. A result without a number does not hide one with.
    """
    seen: set[str] = set()
    out: list[tuple[Analyte | None, Observation]] = []
    for observation in newest_first(patient.observations):
        if observation.as_of is not None and observation.as_of > now + timedelta(hours=AHEAD_H):
            continue
        analyte = analyte_of(observation)
        id_ = analyte.id if analyte is not None else f"{observation.code or ''} {name_key(observation.name)}"
        if id_ in seen or (analyte is not None and observation.value is None and observation.flag not in {"HH", "LL"}):
            continue
        seen.add(id_)
        out.append((analyte, observation))
    return out


def _judgements(
    patient: PatientLayer, hospital: HospitalLayer, now: datetime, acute_coronary: bool, lang: str
) -> list[_Judged]:
    return [
        _judge(observation, analyte, hospital, acute_coronary, lang)
        for analyte, observation in _latest(patient, now)
        if _is_recent(observation.as_of, now, CRITICAL_MAX_AGE_H)
    ]


def critical_results(
    patient: PatientLayer, hospital: HospitalLayer, now: datetime, lang: str = "en", acute_coronary: bool = False
) -> tuple[RedFlag, ...]:
    """The latest result of each analyte that somebody must be called about, within the last 48 hours.

    By the hospital's call limits (else the defaults), by the laboratory's HH or LL flag, and for troponin by its own
    reference range. A value without a (known) unit or behind a comparator is compared only where the side is certain;
    the laboratory's flag always counts. A deceased patient has none.
    """
    if is_deceased(patient):
        return ()
    judged = _judgements(patient, hospital, now, acute_coronary, lang)
    return tuple(_once(one.flag for one in judged if one.flag is not None))


def _once(flags: Iterable[RedFlag]) -> list[RedFlag]:
    seen: dict[str, RedFlag] = {}
    for flag in flags:
        seen.setdefault(flag.id, flag)
    return list(seen.values())


def _unjudged(patient: PatientLayer, hospital: HospitalLayer, now: datetime, lang: str) -> list[str]:
    """What is said about results that could not be judged: no unit, not possible, no range, or too old."""
    said = []
    for analyte, observation in _latest(patient, now):
        if analyte is None or observation.value is None:
            continue
        limits = limits_of(analyte, hospital.critical_limits)
        at = moment(observation.as_of, lang, hospital.timezone)
        shown = f"{observation.name} {_value_text(observation, lang)} ({at})"
        if not _is_recent(observation.as_of, now, CRITICAL_MAX_AGE_H):
            told = observation.as_of is not None and observation.as_of >= now - timedelta(days=STALE_TOLD_DAYS)
            if told and _judge(observation, analyte, hospital, False, lang).flag is not None:
                said.append(
                    pick(
                        lang,
                        f"{shown}: was critical, older than 48 h, no newer value",
                        f"{shown}: foi crítico, tem mais de 48 h, sem valor mais recente",
                    )
                )
            continue
        if analyte.id == "troponin":
            if upper_reference(observation) is None and observation.flag == "":
                said.append(
                    pick(
                        lang,
                        f"{shown}: no reference range, not judged",
                        f"{shown}: sem intervalo de referência, não avaliado",
                    )
                )
            continue
        if limits.low is None and limits.high is None:
            continue
        if to_canonical(analyte, observation.value, observation.unit) is None:
            said.append(
                pick(
                    lang,
                    f"{shown}: not compared with limits (unit missing, unknown or value impossible)",
                    f"{shown}: não comparado com limites (unidade ausente, desconhecida ou valor impossível)",
                )
            )
    return said


def is_deceased(patient: PatientLayer) -> bool:
    """Whether the record says that the patient has died."""
    return bool(patient.deceased)


# --- the three triggers together ----------------------------------------------------------------------------

_ICU = re.compile(r"(icu|uci|ucip|ucic|itu|intensive|intensiv[oa]s?|critical care|cuidados intensivos)")
# opioids alone are analgesia: fentanyl in an awake patient silences nothing
_SEDATIVES = re.compile(
    r"\b(propofol|midazolam|dexmedetomidin\w*|ketamin\w*|cetamin\w*|isofluran\w*|sevofluran\w*|thiopental|tiopental"
    r"|rocuroni\w*|cisatracuri\w*|vecuroni\w*|atracuri\w*|pentobarbital)\b"
)
_VENTILATED = re.compile(
    r"\b(mechanical(ly)? ventilat\w*|invasive ventilat\w*|ventilated|intubated|endotracheal tube|ventilador"
    r"|ventilacao (mecanica|invasiva)|entubad[oa]"
    r"|intubad[oa]|tubo (oro|endo)traqueal|vmi|sedated|sedad[oa]|sedacao|deep sedation|rass)\b"
)
_RASS = re.compile(r"\brass\b|richmond agitation")


def is_intensive_care(department_id: str) -> bool:
    """Whether a department's id or name is that of an intensive care unit."""
    return re.search(rf"(?:^|[^a-z]){_ICU.pattern}(?:$|[^a-z])", fold(department_id).replace("_", " ")) is not None


def is_sedated_or_ventilated(patient: PatientLayer, question: str, now: datetime) -> bool:
    """Whether the record or the question says sedation or invasive ventilation now."""
    if any(m.active and _SEDATIVES.search(fold(m.name)) for m in patient.medications):
        return True
    if _VENTILATED.search(fold(question)):
        return True
    for o in patient.observations:
        if _is_recent(o.as_of, now, CRITICAL_MAX_AGE_H):
            if _RASS.search(fold(o.name)) and o.value is not None and o.value <= -2:
                return True
            if _VENTILATED.search(fold(f"{o.name} {o.text or ''}")) and not _RASS.search(fold(o.name)):
                return True
    return any(
        e.kind == "procedure"
        and e.end is None
        and _is_recent(e.start, now, 30 * 24)
        and _VENTILATED.search(fold(e.name))
        for e in patient.events
    )


def _is_hypercapnic(patient: PatientLayer) -> bool:
    """Whether an active diagnosis says that the patient retains carbon dioxide."""
    pattern = r"\b(hypercap\w*|hipercap\w*|hypercarb\w*|type (2|ii) respiratory|tipo (2|ii))\b"
    return any(c.active and re.search(pattern, key(c.name)) for c in patient.conditions)


def _circulation_flag(score: Score, lang: str) -> RedFlag | None:
    """Under sedation or ventilation a systolic or a pulse of 3 points still counts: neither explains them."""
    threes = [name for name in ("sbp", "hr") if score.parts.get(name) == 3]
    if not threes:
        return None
    what = ", ".join(pick(lang, *LABELS[name]) for name in threes)  # type: ignore[index]
    text = pick(
        lang,
        f"3 points in {what}, which sedation or ventilation do not explain. {NEWS2_SOURCE}",
        f"3 pontos em {what}, que a sedação ou a ventilação não explicam. {NEWS2_SOURCE}",
    )
    return RedFlag(id="news2.circulation", trigger="news2", text=text)


def _news2_flag(score: Score, parts: dict[str, int], lang: str) -> RedFlag | None:
    """high (7 and over), medium (5-6) and single (3 in one parameter) are escalated, also when a parameter is missing:
    what is there already suffices."""
    band = news2_band(parts) if parts else "low"
    id_ = {"high": "news2.high", "medium": "news2.medium", "low-medium": "news2.single"}.get(band)
    if id_ is None:
        return None
    if score.value is not None:
        return RedFlag(id=id_, trigger="news2", text=score.text)
    response = pick(lang, *NEWS2_RESPONSE[band])
    return RedFlag(id=id_, trigger="news2", text=f"{score.text}: {response}. {NEWS2_SOURCE}")


def _record_presentations(patient: PatientLayer, now: datetime) -> list[tuple[Presentation, str]]:
    """Emergencies that recent written ECG reports and diagnoses of the last day name, with their chart items."""
    found = []
    ecgs = [r for r in patient.reports if r.kind == "ecg" and r.status not in {"entered-in-error", "cancelled"}]
    dated = sorted((r for r in ecgs if r.as_of is not None), key=lambda r: (r.as_of, r.ref), reverse=True)
    # only the newest report says what the heart does now; reports without a time cannot be put in order
    newest = [*dated[:1], *(r for r in ecgs if r.as_of is None)]
    for report in newest:
        if _is_recent(report.as_of, now, ECG_MAX_AGE_H):
            found += [(p, report.ref) for p in ecg_emergencies(report.text)]
    for o in newest_first(patient.observations):
        if o.text and re.search(r"\b(ecg|ekg|electrocardiogra\w*|eletrocardiogra\w*)\b", name_key(o.name)):
            if _is_recent(o.as_of, now, ECG_MAX_AGE_H):
                found += [(p, o.ref) for p in ecg_emergencies(o.text)]
            break
    for condition in patient.conditions:
        new = condition.onset is not None and _is_recent(condition.onset, now, CONDITION_MAX_AGE_H)
        if condition.active and new and condition.verification not in {"refuted", "entered-in-error"}:
            found += [(p, condition.ref) for p in emergencies(condition.name)]
    return found


_ACUTE_CORONARY = frozenset({"stemi", "acs", "cardiac_arrest", "shock", "heart_failure", "arrhythmia"})


def triage(
    patient: PatientLayer | None,
    question: str,
    hospital: HospitalLayer,
    department_id: str,
    now: datetime,
    lang: str = "en",
) -> Triage:
    """Everything that must be escalated about this patient and this question, by three independent triggers.

    NEWS2: 7 and over ("news2.high"), 5-6 ("news2.medium"), 3 in one parameter ("news2.single"). In intensive care,
    under sedation or ventilation, NEWS2 is shown and raises nothing by itself: it is not validated there, sedation
    alone gives 3 points, and care is continuous already. A systolic or a pulse of 3 points is still escalated there
    ("news2.circulation"), and the other two triggers stay.
    Critical results: "critical.<analyte>". Emergencies of the question, of recent ECG reports and of new diagnoses:
    "emergency.<id>". Without a patient only the question counts; of a deceased one too.
    """
    limits = hospital.critical_limits
    asked = emergencies(question, limits)
    scores: list[Score] = []
    flags: list[RedFlag] = []
    missing: list[str] = []
    signals: list[str] = []
    if patient is not None and is_deceased(patient):
        missing.append(
            pick(lang, "the record says the patient has died: no scores", "o registo indica óbito: sem pontuações")
        )
    elif patient is not None:
        sedated = is_intensive_care(department_id) and is_sedated_or_ventilated(patient, question, now)
        if sedated:
            # sedation is meant to do this
            asked = tuple(p for p in asked if p.id != "reduced_consciousness")
        recorded = _record_presentations(patient, now)
        vitals = vitals_of(patient, now)
        score = news2(vitals, lang)
        validated = not (vitals.pregnant or (vitals.age_years is not None and vitals.age_years < NEWS2_MIN_AGE))
        if sedated and validated:
            note = pick(
                lang,
                " Under sedation or ventilation in intensive care NEWS2 is not validated and does not escalate"
                " by itself.",
                " Sob sedação ou ventilação em cuidados intensivos o NEWS2 não está validado e não escala por si só.",
            )
            score = msgspec.structs.replace(score, text=score.text.rstrip(".") + "." + note)
        scores.append(score)
        missing += vitals.missing(lang, hospital.timezone)
        if vitals.spo2 is not None and vitals.scale is None and _is_hypercapnic(patient):
            missing.append(
                pick(
                    lang,
                    "no SpO2 target of 88-92 % is prescribed in the record: NEWS2 uses scale 1",
                    "sem alvo de SpO2 de 88-92 % prescrito no registo: o NEWS2 usa a escala 1",
                )
            )
        if validated:
            flag = _circulation_flag(score, lang) if sedated else _news2_flag(score, score.parts, lang)
            flags += [flag] if flag is not None else []
        acute_coronary = any(p.id in _ACUTE_CORONARY for p in (*asked, *(p for p, _ in recorded)))
        judged = _judgements(patient, hospital, now, acute_coronary, lang)
        flags += _once(one.flag for one in judged if one.flag is not None)
        missing += _unjudged(patient, hospital, now, lang)
        for presentation in asked:
            signals += presentation.signals
        for presentation, ref in recorded:
            flags.append(_emergency_flag(presentation, lang, ref))
            signals += presentation.signals
        for one in judged:
            if one.flag is not None and one.analyte is not None:
                signals += one.analyte.signals_high if one.side == "high" else one.analyte.signals_low
        if flags and not signals:
            critical = any(flag.trigger == "critical_result" for flag in flags)
            signals.append("critical_labs" if critical else "news2")
    asked_flags = [_emergency_flag(p, lang, None) for p in asked]
    # what the question says comes first among the emergencies, and stands for the same id in the record
    ordered = [f for f in flags if f.trigger != "emergency"]
    ordered += _once([*asked_flags, *(f for f in flags if f.trigger == "emergency")])
    signals = [s for p in asked for s in p.signals] + signals
    return Triage(
        scores=tuple(scores),
        red_flags=tuple(ordered),
        missing=tuple(dict.fromkeys(missing)),
        signals=tuple(dict.fromkeys(signals)),
    )


def _emergency_flag(presentation: Presentation, lang: str, ref: str | None) -> RedFlag:
    return RedFlag(id=f"emergency.{presentation.id}", trigger="emergency", text=presentation.text(lang), ref=ref)
