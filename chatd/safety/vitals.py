"""The latest vital signs of a patient in the units that NEWS2 is made for, and why any of them is missing.

A value is taken by its LOINC code, else by its name (English and Portuguese). It is refused, and said so, when it
is older than the window, physiologically impossible, behind a comparator, or a temperature without a unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from chatd.safety.words import key, moment, number, pick
from context.layers import ChartRef, Observation, PatientLayer
from context.memo import remembers
from context.text import fold

Parameter = Literal["rr", "spo2", "o2", "sbp", "dbp", "hr", "acvpu", "temp", "scale"]
Acvpu = Literal["A", "C", "V", "P", "U"]
Reason = Literal["absent", "stale", "no_unit", "unit", "implausible", "comparator", "unreadable", "future"]

#: NEWS2 asks for at least 12-hourly observations; one round may be missed before the signs are called old.
MAX_AGE_H = 24.0

#: How far ahead of ``now`` a time may lie: a source without a time zone is off by at most this.
AHEAD_H = 14.0

LOINC: dict[str, Parameter] = {
    "9279-1": "rr",
    "59408-5": "spo2",
    "2708-6": "spo2",
    "20564-1": "spo2",
    "59410-1": "spo2",
    "8480-6": "sbp",
    "76215-3": "sbp",
    "76534-7": "sbp",
    "8459-0": "sbp",
    "8460-8": "sbp",
    "8461-6": "sbp",
    "8462-4": "dbp",
    "76213-8": "dbp",
    "76535-4": "dbp",
    "8867-4": "hr",
    "8889-8": "hr",
    "8893-0": "hr",
    "76282-3": "hr",
    "8310-5": "temp",
    "8331-1": "temp",
    "8332-9": "temp",
    "8328-7": "temp",
    "8329-5": "temp",
    "8333-7": "temp",
    "67775-7": "acvpu",
    "80288-4": "acvpu",
    "11454-5": "acvpu",
    "9269-2": "acvpu",
    "3151-8": "o2",
    "3150-6": "o2",
    "19994-3": "o2",
    "19849-9": "o2",
}
_GLASGOW = "9269-2"
_FLOW = {"3151-8"}
_FRACTION = {"3150-6", "19994-3", "19849-9"}
_ON_AIR = {"59410-1"}

#: Whole names, folded by ``words.key`` and without what stands in brackets. Whole, because "fetal heart rate",
#: "SpO2 target" and "pulse pressure" are none of these.
_NAMES: dict[Parameter, str] = {
    "rr": r"rr|fr|resps?|(spontaneous |total )?resp(iratory|iration)? rate( spontaneous| total)?|respirations?"
    r"|breathing rate|breaths per minute|freq(uencia)? resp(iratoria)?( espontanea| total)?",
    "spo2": r"(pulse |peripheral )?(spo2|sp02|sao2|sp o2|o2 ?sats?|sats?|sat ?o2|(arterial |blood "
    r"|peripheral )?oxygen sat(uration)?"
    r"|oximetry|pulse oximetry|saturation|sat(uracao)?( arterial| periferica)?( de| do| em| por)? (o2|oxigenio)"
    r"|saturacao( periferica)?|oximetria( de pulso)?)"
    r"( in (arterial )?blood| em sangue arterial)?( by pulse oximetry| pulse oximetry| por oximetria( de pulso)?)?"
    r"( on (room )?air| em ar ambiente| on oxygen| com oxigenio)?",
    "sbp": r"sbp|pas|tas|nibp sys(tolic)?|sys|systolic|sistolica|(systolic|sys) (arterial )?(blood pressure|bp"
    r"|pressure)"
    r"|(arterial |non ?invasive |invasive |ni)?(blood pressure|bp) (systolic|sys)|(ni)?bp (systolic|sys)"
    r"|(pressao|tensao)( arterial)? sistolica|(pa|ta) sistolica|intravascular systolic",
    "dbp": r"dbp|pad|tad|nibp dia(stolic)?|dia|diastolic|diastolica|(diastolic|dia) (arterial )?(blood pressure|bp"
    r"|pressure)"
    r"|(arterial |non ?invasive |invasive |ni)?(blood pressure|bp) (diastolic|dia)|(ni)?bp (diastolic|dia)"
    r"|(pressao|tensao)( arterial)? diastolica|(pa|ta) diastolica|intravascular diastolic",
    "hr": r"hr|fc|pulse|pulso|(apical |radial |peripheral )?(heart ?rate|pulse rate|pulse)( apical| radial"
    r"| peripheral| monitor(ed)?)?"
    r"|heart beat|beats per minute|freq(uencia)? card(iaca)?|freq(uencia)? (do|de) pulso|pulsacao",
    "temp": r"t|temp|temperature|temperatura"
    r"|(body |core |oral |rectal |tympanic |axillary |ear |bladder )*temp(erature)?( body| core| oral| rectal"
    r"| tympanic| axillary)*"
    r"|temp(eratura)?( corporal| central| oral| rectal| timpanica| axilar)+",
    "acvpu": r"(level of |state of )?(consciousness|responsiveness|alertness)( level| scale| status)?( acvpu"
    r"| avpu)?( scale| score)?"
    r"|(acvpu|avpu)( scale| score| level| status| consciousness)*|loc|conscious(ness)? level|mental status"
    r"|(nivel|estado) de consciencia( acvpu| avpu)?|(escala )?(acvpu|avpu)|consciencia|gcs"
    r"|(total )?glasgow( coma)?( scale| score)*( total)?"
    r"|gcs (total|score)|escala de( coma de)? glasgow( total)?|escala de coma|resposta( acvpu| avpu)"
    r"|estado (neurologico|mental)",
    "o2": r"(inhaled |inspired |supplemental |added |current )?(oxygen|o2|oxigenio)( inhaled| inspired)?( therapy"
    r"| delivery| use| device"
    r"| flow| rate| supplementation| supplement| supply| source| administration| administered| given| system"
    r"| method| status"
    r"| concentration| fraction| litres| liters| l min| suplementar| em curso)*"
    r"|(air|room air) or oxygen|(on )?(room )?air (or )?(o2|oxygen)|fio2|fi o2|inspired oxygen( fraction"
    r"| concentration)?"
    r"|fraction of inspired oxygen|fraction inspired oxygen|oxigenoterapia"
    r"|(aporte|debito|fluxo|administracao)( de| suplementar de)? (o2|oxigenio)|suplemento de (o2|oxigenio)"
    r"|ar( ambiente)? ou (oxigenio|o2)|fracao inspirada de (oxigenio|o2)|fracao de (oxigenio|o2) inspirado",
    "scale": r"news ?2? (spo2 |o2 |sat |oxygen saturation )?scale|(spo2|o2|sats?|oxygen saturation) scale( news ?2?)?"
    r"|escala( de| da)? (spo2|saturacao)( news ?2?| do news ?2?)?|news ?2? (escala|scale)( de| da)?( spo2)?",
}
_NAME_PATTERNS = tuple((parameter, re.compile(pattern)) for parameter, pattern in _NAMES.items())

#: Inclusive bounds of what a living adult's monitor can show, in the canonical unit.
PLAUSIBLE: dict[str, tuple[float, float]] = {
    "rr": (0, 100),
    "spo2": (20, 100),
    "sbp": (30, 320),
    "dbp": (10, 220),
    "hr": (0, 350),
    "temp": (24, 45),
}

LABELS: dict[Parameter, tuple[str, str]] = {
    "rr": ("respiratory rate", "frequência respiratória"),
    "spo2": ("SpO2", "SpO2"),
    "o2": ("air or oxygen", "ar ou oxigénio"),
    "sbp": ("systolic blood pressure", "pressão arterial sistólica"),
    "dbp": ("diastolic blood pressure", "pressão arterial diastólica"),
    "hr": ("heart rate", "frequência cardíaca"),
    "acvpu": ("consciousness (ACVPU)", "consciência (ACVPU)"),
    "temp": ("temperature", "temperatura"),
    "scale": ("SpO2 scale", "escala de SpO2"),
}
_REASONS: dict[Reason, tuple[str, str]] = {
    "absent": ("not recorded", "sem registo"),
    "stale": ("too old to be scored", "demasiado antigo para pontuar"),
    "future": ("dated in the future, not scored", "com data no futuro, não pontuado"),
    "no_unit": ("recorded without a unit, not scored", "registado sem unidade, não pontuado"),
    "unit": ("recorded in an unknown unit, not scored", "registado em unidade desconhecida, não pontuado"),
    "implausible": ("physiologically impossible as recorded, not scored", "fisiologicamente impossível, não pontuado"),
    "comparator": ("recorded as a limit and not as a value, not scored", "registado como limite, não pontuado"),
    "unreadable": ("recorded as text that is not understood", "registado em texto que não se compreende"),
}

_IDENTITY: Callable[[float], float] = float


def _fahrenheit(value: float) -> float:
    return (value - 32) / 1.8


#: From the source's unit (folded, without spaces) to the canonical one; "" is no unit, where that is unambiguous.
_UNITS: dict[str, dict[str, Callable[[float], float]]] = {
    "rr": dict.fromkeys(
        ("", "/min", "{breaths}/min", "breaths/min", "breaths/minute", "bpm", "rpm", "cpm", "min-1", "1/min",
         "resp/min", "/minute", "ciclos/min", "ipm"),
        _IDENTITY,
    ),
    "spo2": {**dict.fromkeys(("", "%", "percent", "%sat", "%{saturation}"), _IDENTITY),
             **dict.fromkeys(("1", "ratio", "fraction", "{ratio}"), lambda v: v * 100)},
    "sbp": {**dict.fromkeys(("", "mm[hg]", "mmhg", "mm/hg", "torr"), _IDENTITY),
            "kpa": lambda v: v * 7.50062, "cmhg": lambda v: v * 10},
    "hr": dict.fromkeys(
        ("", "/min", "{beats}/min", "beats/min", "beats/minute", "bpm", "min-1", "1/min", "/minute", "{h.b.}/min",
         "bat/min", "batimentos/min", "ppm", "lpm"),
        _IDENTITY,
    ),
    "temp": {**dict.fromkeys(("cel", "c", "degc", "degreesc", "celsius", "degreescelsius", "deg.c", "grausc"),
                             _IDENTITY),
             **dict.fromkeys(("[degf]", "degf", "f", "fahrenheit", "degreesf", "degreesfahrenheit", "deg.f"),
                             _fahrenheit),
             "k": lambda v: v - 273.15},
}  # fmt: skip
_UNITS["dbp"] = _UNITS["sbp"]


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Why a vital sign could not be used. ``value`` is what the record has, in its own unit."""

    parameter: Parameter
    reason: Reason
    as_of: datetime | None = None
    ref: ChartRef | None = None

    def text(self, lang: str, timezone: str = "UTC") -> str:
        """ "temperature: recorded without a unit, not scored (2026-01-15 06:10 UTC)"."""
        said = f"{pick(lang, *LABELS[self.parameter])}: {pick(lang, *_REASONS[self.reason])}"
        return said if self.reason == "absent" else f"{said} ({moment(self.as_of, lang, timezone)})"


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """One set of vital signs, each None if it is absent or was refused (``gaps`` says which and why).

    rr and hr per minute, spo2 in percent, sbp and dbp in mmHg, temp in °C. ``o2``: whether oxygen is given.
    ``scale``: 2 only where a clinician prescribed 88-92 %; None counts as 1.
    ``as_of``: the oldest time among the values (None if one of them has none); ``refs``: chart item of each value.
    ``age_years`` and ``pregnant`` decide whether a score is validated; None is unknown.
    """

    rr: float | None = None
    spo2: float | None = None
    o2: bool | None = None
    scale: Literal[1, 2] | None = None
    sbp: float | None = None
    dbp: float | None = None
    hr: float | None = None
    acvpu: Acvpu | None = None
    temp: float | None = None
    as_of: datetime | None = None
    refs: dict[str, ChartRef] = {}
    gaps: tuple[Gap, ...] = ()
    age_years: int | None = None
    pregnant: bool | None = None

    def missing(self, lang: str = "en", timezone: str = "UTC") -> tuple[str, ...]:
        """What could not be used, as sentences for people, with times in the hospital's zone."""
        return tuple(gap.text(lang, timezone) for gap in self.gaps)


def parameter_of(observation: Observation) -> Parameter | None:
    """Which vital sign this observation is: by LOINC, else by its whole name; None for anything else."""
    if observation.code is not None and observation.code in LOINC:
        return LOINC[observation.code]
    return _parameter_named(observation.name)


@remembers(4096)  # a record says the same few names hundreds of times
def _parameter_named(name: str) -> Parameter | None:
    plain = key(re.sub(r"[\(\[\{].*?[\)\]\}]", " ", name))
    for parameter, pattern in _NAME_PATTERNS:
        if pattern.fullmatch(plain):
            return parameter
    return None


def plausible(parameter: str, value: float) -> bool:
    """Whether a living patient can have this value, in the parameter's canonical unit."""
    low, high = PLAUSIBLE[parameter]
    return math.isfinite(value) and low <= value <= high


def convert(parameter: str, value: float, unit: str | None) -> float | Reason:
    """``value`` in the canonical unit, or why it cannot be used: "no_unit", "unit" or "implausible".

    Only a temperature needs its unit said: the other scales cannot be mistaken for each other within ``PLAUSIBLE``.
    """
    known = _UNITS[parameter]
    written = fold(unit or "").replace(" ", "").replace("°", "").replace("^", "")
    if written not in known:
        return "unit" if written else "no_unit"
    converted = known[written](value)
    return converted if plausible(parameter, converted) else "implausible"


# Order matters: "nao responde" must be seen before "responde", "not alert" before "alert".
_CONSCIOUSNESS: tuple[tuple[Acvpu, re.Pattern[str]], ...] = (
    ("A", re.compile(r"a|(mentally |fully )?alert( and| e)?.*|(sem|no|not) (confusao|confusion|confused)"
        r"|(a )?alerta.*"
                     r"|(fully )?(awake|conscious)( and.*)?|(consciente|acordado|acordada|vigil|orientado"
                     r"|orientada).*"
                     r"|normal|oriented.*")),
    ("U", re.compile(r"u|unresponsive.*|unconscious.*|(nao responde|nao responsiv|sem resposta|inconsciente|coma).*"
                     r"|does not respond.*|no response.*|arreactiv.*|arreativ.*|comatose|unrousable|unarousable")),
    ("P", re.compile(r"p|d|(responds? to |responsive to |reacts to |response to )?pain(ful)?( stimul.*| only)?"
                     r"|(responde |resposta |reage )?(a |ao )?(dor|estimulos? dolorosos?).*")),
    ("V", re.compile(r"v|(responds? to |responsive to |reacts to |response to )?(voice|verbal|speech)( stimul.*"
        r"| only)?"
                     r"|(responde |resposta |reage )?(a |ao )?(voz|chamamento|estimulos? verba(l|is)).*"
                     r"|drows(y|iness).*|somnolent.*|sonolent.*|letharg.*|letargic.*|prostrad.*|obtunded.*"
                     r"|stupor.*")),
    ("C", re.compile(r"c|(new(ly)? |acute(ly)? |recent )?(confus(ed|ion)|delirium|disorient\w*)( .*)?"
                     r"|(nova |novo )?(confus[ao]o?|confuso|confusa|desorientad[oa]|delirio|delirium)( .*)?"
                     r"|not alert|nao alerta")),
)  # fmt: skip


def consciousness(text: str) -> Acvpu | None:
    """The letter for what somebody wrote about consciousness; None when it is not understood."""
    name = key(text)
    for letter, pattern in _CONSCIOUSNESS:
        if pattern.fullmatch(name):
            return letter
    head = re.match(r"([acvpu]) ", name + " ")
    if head is not None and re.fullmatch(r"[acvpu]\s*[-=:(].*", fold(text)):
        letter_text = head.group(1).upper()
        return letter_text if letter_text in {"A", "C", "V", "P", "U"} else None  # type: ignore[return-value]
    return None


def glasgow_as_acvpu(total: float) -> Acvpu | None:
    """Alert only at 15. Below it every letter scores 3, so the letter is an approximation and the score is not."""
    if not 3 <= total <= 15 or total != int(total):
        return None
    if total == 15:
        return "A"
    return "C" if total == 14 else "V" if total >= 9 else "P" if total > 3 else "U"


_AIR = re.compile(r"\b(room air|ambient air|on air|breathing air|ar ambiente|aa|ra|air|ar)\b")
_NO = re.compile(
    r"(no|none|nao|false|nenhum|nil|off|0|sem (o2|oxigenio|suplemento.*)|without (oxygen|o2)|no (oxygen|o2).*)"
)
_OXYGEN = re.compile(
    r"\b(yes|sim|true|on|oxygen|o2|oxigenio|cannula|canula|prongs|oculos nasais|mask|mascara|venturi|non rebreather"
    r"|reservoir|high flow|alto fluxo|alto debito|hfnc|hfno|cpap|bipap|niv|vni|vmi|ventilat(or|ed|ion)|ventilad[oa]"
    r"|ventilador|intubated|entubad[oa]|intubad[oa]|tracheostomy|ecmo|\d+([.,]\d+)? ?l( ?/? ?min)?|concentrador)\b"
)


def oxygen_given(observation: Observation) -> bool | None:
    """Whether this observation says that oxygen is given: flow over 0, inspired fraction over 21 %, or words."""
    name = key(observation.name)
    if observation.value is not None:
        value = observation.value
        if not math.isfinite(value) or value < 0:
            return None
        unit = fold(observation.unit or "").replace(" ", "")
        is_fraction = observation.code in _FRACTION or "fio2" in name or "fi o2" in name or "inspir" in name
        if is_fraction and observation.code not in _FLOW:
            share = value if value <= 1 and unit != "%" else value / 100
            # 0.21 is air; monitors write 0.209 to 0.215 for it
            return None if not 0.15 <= share <= 1 else share > 0.215
        return value > 0
    said = key(observation.text or "")
    if _NO.fullmatch(said):
        return False
    air, oxygen = _AIR.search(said), _OXYGEN.search(said)
    if air and (oxygen is None or oxygen.group(0) == "on"):
        return False
    return True if oxygen else None


#: A prescribed saturation of 88-92 %, written near a word that makes it a target.
_TARGET = re.compile(
    r"((spo2|sao2|sats?|saturac\w*|saturation|o2|oxygen\w*|oxigeni\w*|target|alvo|objetivo|objectivo|goal|aim"
    r"|scale 2|escala 2)"
    r"[^.;\n]{0,40}?\b88 ?%? ?(-|to|a|e|and) ?92\b)|(\b88 ?%? ?(-|to|a) ?92 ?%?[^.;\n]{0,30}?"
    r"(spo2|sats?|saturation|saturac|target|alvo|o2|oxygen|oxigenio))|\b(spo2|news ?2?) (scale|escala) 2\b"
)


def prescribes_88_92(text: str) -> bool:
    """Whether a text prescribes the saturation target of NEWS2's scale 2."""
    # the cheap question first: a long record asks it of every result
    return ("88" in text or re.search(r"(?i)(scale|escala)\s*2", text) is not None) and _TARGET.search(
        fold(text)
    ) is not None


def _fresh(as_of: datetime | None, now: datetime, max_age_h: float) -> bool:
    """A value without a time cannot be shown to be old and counts as current; its missing time is said where shown."""
    return as_of is None or now - timedelta(hours=max_age_h) <= as_of <= now + timedelta(hours=AHEAD_H)


def newest_first(observations: tuple[Observation, ...]) -> list[Observation]:
    """By time, newest first, unknown times last, ties by ``ref``; withdrawn results left out."""
    kept = [o for o in observations if o.status not in {"entered-in-error", "cancelled", "retracted", "registered"}]
    return sorted(kept, key=lambda o: (o.as_of is None, -(o.as_of.timestamp() if o.as_of else 0.0), o.ref))


def _read(parameter: Parameter, observation: Observation) -> float | bool | str | tuple[Reason]:
    """The observation as a value of ``parameter``, or a one-tuple with the reason it is refused."""
    if observation.comparator:
        return ("comparator",)
    if parameter == "o2":
        given = oxygen_given(observation)
        return ("unreadable",) if given is None else given
    if parameter == "acvpu":
        letter = (
            consciousness(observation.text or "")
            if observation.value is None
            else glasgow_as_acvpu(observation.value)
            if observation.code == _GLASGOW or "glasgow" in key(observation.name) or "gcs" in key(observation.name)
            else None
        )
        if letter is None and observation.text is not None:
            digits = re.search(r"\b(1[0-5]|[3-9])\b(?= ?(/ ?15|$))", fold(observation.text))
            letter = glasgow_as_acvpu(float(digits.group(1))) if digits else None
        return ("unreadable",) if letter is None else letter
    if observation.value is None:
        return ("unreadable",)
    result = convert(parameter, observation.value, observation.unit)
    return (result,) if isinstance(result, str) else result


def _scale(patient: PatientLayer, now: datetime) -> Literal[1, 2] | None:
    """2 where the record says so: a scale, a prescribed target or a plan of 88-92 %; else None."""
    for o in newest_first(patient.observations):
        if parameter_of(o) == "scale":
            said = number(o.value) if o.value is not None else key(o.text or "")
            if re.search(r"\b2\b", said):
                return 2
            if re.search(r"\b1\b", said):
                return 1
        if prescribes_88_92(f"{o.name} {o.text or ''}"):
            return 2
        # a target given as a range: "SpO2 target" with limits 88 and 92
        if o.low == 88 and o.high == 92 and re.search(r"target|alvo", fold(o.name)):
            return 2
    written = [f"{m.name} {m.dose}" for m in patient.medications if m.active]
    written += [c.name for c in patient.conditions if c.active]
    written += [e.name for e in patient.events if e.status not in {"revoked", "completed", "cancelled"}]
    written.append(patient.summary)
    return 2 if any(prescribes_88_92(text) for text in written) else None


def vitals_of(patient: PatientLayer, now: datetime, max_age_h: float = MAX_AGE_H) -> Vitals:
    """The latest usable value of each vital sign within ``max_age_h`` hours before ``now``.

    A refused value does not hide an older usable one, but both are told: the refused one stands in ``gaps``.
    A value without a time counts as current, after all values with one.
    """
    values: dict[str, float | bool | str] = {}
    times: dict[str, datetime | None] = {}
    refs: dict[str, ChartRef] = {}
    refused: dict[Parameter, Gap] = {}
    for observation in newest_first(patient.observations):
        parameter = parameter_of(observation)
        if parameter is None or parameter == "scale" or parameter in values:
            continue
        if not _fresh(observation.as_of, now, max_age_h):
            old = observation.as_of is not None and observation.as_of < now
            gap: Gap | None = Gap(
                parameter=parameter, reason="stale" if old else "future", as_of=observation.as_of, ref=observation.ref
            )
        else:
            read = _read(parameter, observation)
            gap = None
            if isinstance(read, tuple):
                gap = Gap(parameter=parameter, reason=read[0], as_of=observation.as_of, ref=observation.ref)
            else:
                values[parameter], times[parameter], refs[parameter] = read, observation.as_of, observation.ref
        if gap is not None:
            refused.setdefault(parameter, gap)
    if "o2" not in values:
        for observation in newest_first(patient.observations):
            on_air = observation.code in _ON_AIR or re.search(r"room air|ar ambiente", fold(observation.name))
            if on_air and parameter_of(observation) == "spo2" and _fresh(observation.as_of, now, max_age_h):
                values["o2"], times["o2"], refs["o2"] = False, observation.as_of, observation.ref
                refused.pop("o2", None)
                break
    wanted: tuple[Parameter, ...] = ("rr", "spo2", "o2", "sbp", "hr", "acvpu", "temp")
    gaps = [
        refused.get(parameter) or Gap(parameter=parameter, reason="absent")
        for parameter in wanted
        if parameter not in values or parameter in refused
    ]
    known = [times[p] for p in wanted if p in times]
    return msgspec.convert(
        {
            **values,
            "scale": _scale(patient, now),
            "as_of": min((t for t in known if t), default=None) if None not in known else None,
            "refs": refs,
            "gaps": gaps,
            "age_years": patient.age_years(now.date()),
            "pregnant": patient.pregnant,
        },
        Vitals,
        from_attributes=True,
    )
