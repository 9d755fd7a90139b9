"""The number lock: no number of a generated text that was not given, with its unit, and as what it was given.

A wrong number that passes harms somebody, a right one held back only annoys: what cannot be read for certain is not
supported. Decided here: values are compared digit for digit ("1.0", "1,0" and "1" are one, 5.34 is not 5.3); nothing
is converted or rounded; a unit that stands there must be the same; a number beside the name of a result, a score or a
medicine must have been given for it; a bound ("< 0.04", "3.5 to 5.1") is no result; a time stands beside a value only
as it was given with it. Free are counts from one to ten in words ("two critical results") and ordinals in words
("second"); a word before a unit ("two tablets"), "twice daily", "half" and "double" are numbers like others.
Pure and total: any text in, no exception out; no text of a record is kept beyond the object.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final, Literal

import msgspec

from chatd.safety.medication import drugs_in_folded
from chatd.safety.words import longest_by_first_word
from context.memo import remembers
from context.text import fold, without_accents

#: Lines longer than this are not read: nothing that a model may write is.
MAX_CHARS: Final = 4_000

Kind = Literal["number", "range", "ratio", "date", "time", "label", "code", "frequency", "factor", "sign"]
#: A date or a time with its values.
Moment = tuple[str, tuple[Decimal, ...]]


class Vocabulary(msgspec.Struct, frozen=True):
    """Names that tie a number to a thing.

    names: words (folded, one blank between) to the ids of what they name. cased: words that count only in one of
    these spellings ("na" is Portuguese for "in the", "Na" is sodium). longest: of the names, see
    ``longest_by_first_word``; found out where it is not given.
    """

    names: Mapping[str, frozenset[str]]
    cased: Mapping[str, tuple[str, ...]] = {}
    longest: Mapping[str, int] = {}

    def __post_init__(self) -> None:
        if not self.longest:
            msgspec.structs.force_setattr(self, "longest", longest_by_first_word(self.names))

    def with_names(self, more: Iterable[tuple[str, frozenset[str]]]) -> Vocabulary:
        """This one and these names; a name that is there already names both."""
        names, longest = dict(self.names), dict(self.longest)
        for name, ids in more:
            names[name] = names.get(name, frozenset()) | ids
            for first, words in longest_by_first_word((name,)).items():
                longest[first] = max(longest.get(first, 0), words)
        return Vocabulary(names, self.cased, longest)


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """One line of what a model was given.

    about: ids (see ``Vocabulary``) of what its numbers are of, where the line does not say so itself. group: lines
    of one entry have one number: a value and its time may stand in two of them. is_free: written by a person, so that
    "1.125" may be a thousand. is_quoted: of a protocol, so that its numbers are nobody's results.
    """

    text: str
    about: frozenset[str] = frozenset()
    group: int = 0
    is_free: bool = False
    is_quoted: bool = False


class Mention(msgspec.Struct, frozen=True, kw_only=True):
    """A number as a text has it. ``start`` and ``end`` lie in the normalised text.

    values: of a range or ratio two, of a date year (0 without one), month and day (0), of a time hour and minute;
    () where it cannot be read for certain, then only the very same ``raw`` counts. unit: canonical, "" without one.
    is_bound: behind a comparator or a word for one. direction: of the comparator, 1 above, -1 below, 0 none.
    moments: dates and times that were given with it, as kind and values.
    """

    kind: Kind
    raw: str
    start: int
    end: int
    values: tuple[Decimal, ...] = ()
    unit: str = ""
    names: frozenset[str] = frozenset()
    is_bound: bool = False
    direction: int = 0
    is_word: bool = False
    is_quoted: bool = False
    following: str = ""
    group: int = 0
    moments: frozenset[Moment] = frozenset()


# --- units ---------------------------------------------------------------------------------------------------

#: Spellings of the parts of a unit, folded; anything else stands for itself.
_PARTS: Final[dict[str, str]] = {
    **dict.fromkeys(("mcg", "ug", "microg", "micrograms", "microgram", "microgramas", "micrograma"), "ug"),
    **dict.fromkeys(("mg", "mgs", "milligrams", "milligram", "miligramas", "miligrama"), "mg"),
    **dict.fromkeys(("g", "gr", "gram", "grams", "grama", "gramas"), "g"),
    **dict.fromkeys(("kg", "kgs", "kilograms", "quilogramas", "quilos"), "kg"),
    **dict.fromkeys(("ml", "mls", "cc", "millilitres", "milliliters", "mililitros"), "ml"),
    **dict.fromkeys(("l", "litre", "litres", "liter", "liters", "litro", "litros"), "l"),
    **dict.fromkeys(("u", "iu", "ui", "unit", "units", "unidade", "unidades"), "u"),
    **dict.fromkeys(("min", "mins", "minute", "minutes", "minuto", "minutos"), "min"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours", "hora", "horas"), "h"),
    **dict.fromkeys(("s", "sec", "secs", "seconds", "segundos"), "s"),
    **dict.fromkeys(("d", "day", "days", "dia", "dias"), "d"),
    **dict.fromkeys(("week", "weeks", "wk", "wks", "semana", "semanas"), "wk"),
    **dict.fromkeys(("month", "months", "mes", "meses"), "mo"),
    **dict.fromkeys(("year", "years", "yr", "yrs", "yo", "ano", "anos"), "y"),
    **dict.fromkeys(("meq", "mval"), "meq"),
    **dict.fromkeys(("mmhg", "mm[hg]"), "mmhg"),
    **dict.fromkeys(("%", "percent", "por cento"), "%"),
    **dict.fromkeys(("°c", "c", "cel", "celsius", "graus"), "°c"),
    **dict.fromkeys(("°f", "f", "fahrenheit"), "°f"),
    **dict.fromkeys(("m2", "m^2"), "m2"),
    **dict.fromkeys(("tablet", "tablets", "tab", "tabs", "comprimido", "comprimidos", "cp"), "tablet"),
    **dict.fromkeys(("capsule", "capsules", "capsula", "capsulas"), "capsule"),
    **dict.fromkeys(("ampoule", "ampoules", "ampola", "ampolas", "vial", "vials"), "ampoule"),
    **dict.fromkeys(("drop", "drops", "gota", "gotas"), "drop"),
    **dict.fromkeys(("puff", "puffs"), "puff"),
    **dict.fromkeys(("dose", "doses"), "dose"),
    **dict.fromkeys(("bolus", "boluses", "bolos"), "bolus"),
    **dict.fromkeys(("time", "times", "vez", "vezes", "x", "fold"), "times"),
    **dict.fromkeys(("point", "points", "ponto", "pontos"), "point"),
    **dict.fromkeys(("ul", "mcl", "mm3"), "ul"),
}
_WHOLE: Final[dict[str, str]] = {
    **dict.fromkeys(
        ("bpm", "beats/min", "breaths/min", "beats per minute", "breaths per minute", "batimentos/min", "rpm", "cpm",
         "ciclos/min", "resp/min", "respirations/min"), "/min"
    ),
    **dict.fromkeys(("k/ul", "k/mcl", "10^3/ul", "10*3/ul", "10^3/mcl", "giga/l", "10*9/l"), "10^9/l"),
    **dict.fromkeys(("10*12/l", "10^6/ul", "10*6/ul", "m/ul"), "10^12/l"),
}  # fmt: skip
#: Units by themselves, beside the parts above.
_SINGLE: Final = (
    "mmol", "umol", "nmol", "pmol", "mol", "ng", "pg", "fl", "mosm", "kpa", "cmh2o", "cm", "mm", "m", "ms", "msec",
    "j", "joule", "joules", "mcu", "miu", "w", "v", "mv", "ma", "fr", "bpm", "rpm", "cpm", "lb", "lbs", "kcal", "pack",
    "packs",
)  # fmt: skip
#: A span of time or a share needs no name beside it: "repeat potassium in 2 hours" is no potassium of 2.
_TIME_UNITS: Final = frozenset({"min", "h", "s", "d", "wk", "mo", "y"})
_AREA = r"/1[.,]73 ?m\^?2"
_POWER = r"(?:x ?)?10 ?[\^*] ?\d{1,2}(?:/[a-z0-9]{1,4})?"


def _spelled(words: Iterable[str]) -> str:
    """A pattern for any of the words, the longest one first; beginnings that words share are looked at once."""
    by_first: dict[str, list[str]] = {}
    is_whole = False
    for word in sorted(set(words)):
        if word:
            by_first.setdefault(word[0], []).append(word[1:])
        else:
            is_whole = True
    if not by_first:
        return ""
    branches = [re.escape(first) + _spelled(rests) for first, rests in by_first.items()]
    if is_whole:
        return f"(?:{'|'.join(branches)})?"
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


_UNIT: Final = re.compile(
    rf"[ -]?(?:{_POWER}"
    r"|(?:(?:beats|breaths) per minute)"
    rf"|(?:{_spelled((*_PARTS, *_SINGLE))})(?:(?: ?/ ?|/)(?:\d{{1,3}} ?)?[a-z][a-z0-9^]{{0,6}}){{1,3}}(?:{_AREA})?"
    r"|(?!and/|e/)[a-z]{1,6}(?:/[a-z][a-z0-9^]{0,6}){1,3}"
    rf"|(?:{_spelled((*_PARTS, *_SINGLE))})"
    rf"|/ ?(?:{_spelled(_PARTS)})(?:{_AREA})?)"
    r"(?![a-z0-9\[^*°])",
)


@remembers(2048)
def unit_id(unit: str) -> str:
    """The one spelling of a unit: "µg / mL", "mcg/mL" are "ug/ml"; unknown parts stand for themselves."""
    bare = fold(unit).replace("[", "").replace("]", "")
    bare = re.sub(r" ?([/^*]) ?", r"\1", bare.strip(" -"))
    bare = re.sub(r"^x ?(?=10)", "", bare).replace("10*", "10^")
    if bare in _WHOLE:
        return _WHOLE[bare]
    if bare in _PARTS:
        return _PARTS[bare]
    parts = [_PARTS.get(part.replace(",", "."), part.replace(",", ".")) for part in bare.split("/")]
    joined = "/".join(parts)
    return _WHOLE.get(joined, joined)


# --- words ---------------------------------------------------------------------------------------------------

_WORDS: Final[dict[str, int]] = {
    **dict.fromkeys(("zero",), 0),
    **dict.fromkeys(("one", "um", "uma"), 1),
    **dict.fromkeys(("two", "dois", "duas"), 2),
    **dict.fromkeys(("three", "tres"), 3),
    **dict.fromkeys(("four", "quatro"), 4),
    **dict.fromkeys(("five", "cinco"), 5),
    **dict.fromkeys(("six", "seis"), 6),
    **dict.fromkeys(("seven", "sete"), 7),
    **dict.fromkeys(("eight", "oito"), 8),
    **dict.fromkeys(("nine", "nove"), 9),
    **dict.fromkeys(("ten", "dez"), 10),
    **dict.fromkeys(("eleven", "onze"), 11),
    **dict.fromkeys(("twelve", "doze"), 12),
    **dict.fromkeys(("thirteen", "treze"), 13),
    **dict.fromkeys(("fourteen", "catorze", "quatorze"), 14),
    **dict.fromkeys(("fifteen", "quinze"), 15),
    **dict.fromkeys(("sixteen", "dezasseis", "dezesseis"), 16),
    **dict.fromkeys(("seventeen", "dezassete", "dezessete"), 17),
    **dict.fromkeys(("eighteen", "dezoito"), 18),
    **dict.fromkeys(("nineteen", "dezanove", "dezenove"), 19),
    **dict.fromkeys(("twenty", "vinte"), 20),
    **dict.fromkeys(("thirty", "trinta"), 30),
    **dict.fromkeys(("forty", "quarenta"), 40),
    **dict.fromkeys(("fifty", "cinquenta"), 50),
    **dict.fromkeys(("sixty", "sessenta"), 60),
    **dict.fromkeys(("seventy", "setenta"), 70),
    **dict.fromkeys(("eighty", "oitenta"), 80),
    **dict.fromkeys(("ninety", "noventa"), 90),
    **dict.fromkeys(("hundred", "cem", "cento", "duzentos", "trezentos", "quatrocentos", "quinhentos"), 100),
    **dict.fromkeys(("thousand", "mil", "million", "milhao", "milhoes"), 1000),
}
#: The count in words up to which a number without a unit is nobody's dose.
_FREE_COUNT: Final = 10
_FREQUENCY: Final[dict[str, int]] = {
    **dict.fromkeys(("once daily", "once a day", "od", "qd", "uma vez por dia", "1 id", "uma vez ao dia"), 1),
    **dict.fromkeys(("twice daily", "twice a day", "bid", "bd", "duas vezes por dia", "duas vezes ao dia"), 2),
    **dict.fromkeys(("three times daily", "three times a day", "tid", "tds", "tres vezes por dia"), 3),
    **dict.fromkeys(("four times daily", "four times a day", "qid", "qds", "quatro vezes por dia"), 4),
}
_FACTORS: Final[dict[str, str]] = {
    **dict.fromkeys(("half", "halve", "halved", "halving", "metade"), "half"),
    **dict.fromkeys(("double", "doubled", "doubling", "dobro", "duplicar", "duplicou", "twice"), "double"),
    **dict.fromkeys(("triple", "tripled", "tripling", "triplo", "triplicar", "thrice"), "triple"),
    **dict.fromkeys(("quarter", "quadruple", "dozen", "duzia"), "other"),
}
#: Words whose number names a kind, not an amount; the ones of a line are synonyms.
_LABELS: Final[dict[str, str]] = {
    **dict.fromkeys(("type", "tipo"), "type"),
    **dict.fromkeys(("grade", "grau"), "grade"),
    **dict.fromkeys(("stage", "estadio"), "stage"),
    **dict.fromkeys(("class", "classe"), "class"),
    **dict.fromkeys(("day", "dia"), "day"),
    "killip": "killip",
    "nyha": "nyha",
    "ccs": "ccs",
    "asa": "asa",
    "kdigo": "kdigo",
    "aki": "aki",
    **dict.fromkeys(("bed", "cama"), "bed"),
    **dict.fromkeys(("step", "passo"), "step"),
}
_ROMAN: Final = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6}
_MONTHS: Final[dict[str, int]] = {
    name: number
    for number, names in enumerate(
        (
            "january jan janeiro", "february feb fevereiro fev", "march mar marco", "april apr abril abr",
            "may maio mai", "june jun junho", "july jul julho", "august aug agosto ago",
            "september sep sept setembro set", "october oct outubro out", "november nov novembro",
            "december dec dezembro dez",
        ),
        start=1,
    )
    for name in names.split()
}  # fmt: skip
#: Names with a digit that say nothing about a patient.
_TERMS: Final = frozenset(
    """spo2 sao2 svo2 scvo2 po2 pco2 pao2 paco2 fio2 etco2 co2 tco2 o2 h2o hco3 news2 qsofa2 hba1c a1c b12 t3 t4 ft3 ft4
    p2y12 sglt2 sglt-2 glp1 glp-1 dpp4 dpp-4 cox2 cox-2 h2 covid-19 covid19 sars-cov-2 cha2ds2 cha2ds2-vasc chads2
    b-12 c3 c4 il-6 il6 ca125 ca-125 k2 s1 s2 s3 s4 factor-xa""".split()  # noqa: SIM905
)

_LOWER = str.maketrans({chr(65 + n): chr(97 + n) for n in range(26)})
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff\u20e3]")
_PLAIN: Final = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2018\u2019\u02bc\u0060\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
        "\u00b5": "u",
        "\u03bc": "u",
        "\u00d7": "x",
        "\u2215": "/",
        "\u2044": "/",
        "\u2192": " -> ",
        "\u2265": ">=",
        "\u2264": "<=",
        "\uff1c": "<",
        "\uff1e": ">",
        "\u2039": "<",
        "\u00ba": " ",
        "\u00aa": " ",
        "\u2032": "'",
    }
)
_SUPER: Final = {
    "⁰": "0",
    "¹": "1",
    "²": "2",
    "³": "3",
    "⁴": "4",
    "⁵": "5",
    "⁶": "6",
    "⁷": "7",
    "⁸": "8",
    "⁹": "9",
}
_SUPERSCRIPT = re.compile(f"[{''.join(_SUPER)}]+")
_DECIMAL_DOT = re.compile(r"(?<=\d)[\u00b7\u22c5\u2219\u2022\u066b](?=\d)")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def _raised(match: re.Match[str]) -> str:
    digits = "".join(_SUPER[sign] for sign in match.group())
    return digits if match.string[max(0, match.start() - 1) : match.start()] == "m" else f"^{digits}"


def _plain(text: str) -> str:
    """``text`` with the signs of ``_PLAIN``, one after the other: a line has none or few, and none becomes another."""
    if "`" in text:
        text = text.replace("`", "'")
    if not text.isascii():
        for sign in set(_NOT_ASCII.findall(text)):
            if (plain := _PLAIN.get(ord(sign))) is not None:
                text = text.replace(sign, plain)
    return text


def _normal(text: str) -> tuple[str, str, tuple[str, ...]]:
    """``text`` without accents and odd signs, as written and in lower case (of one length), and signs that are
    numbers by themselves ("½", "Ⅳ", "①")."""
    text = text[:MAX_CHARS]
    signs: tuple[str, ...] = ()
    if not text.isascii():
        text = _INVISIBLE.sub("", text)
    text = _plain(text)
    if not text.isascii():
        text, signs = _odd_signs(text)
        for sign in set(signs):
            text = text.replace(sign, " ")
        # Accents go from each sign by itself: what is left of one is never another that has some.
        for sign in set(_NOT_ASCII.findall(text)):
            text = text.replace(sign, without_accents(sign))
        text = _plain(text)
    cased = " ".join(text.split())
    if cased.isascii():
        return cased, cased.lower(), signs  # which folding would leave as it is
    low = cased.translate(_LOWER)
    folded = fold(low)
    return (cased, low, signs) if folded == low else (folded, folded, signs)


def _odd_signs(text: str) -> tuple[str, tuple[str, ...]]:
    """``text`` with every digit and decimal point as an ASCII one, and the signs in it that are numbers."""
    text = _SUPERSCRIPT.sub(_raised, text)
    for sign in {sign for sign in _NOT_ASCII.findall(text) if sign.isdecimal()}:
        text = text.replace(sign, str(unicodedata.decimal(sign)))
    text = _DECIMAL_DOT.sub(".", text)
    return text, tuple(
        sign
        for sign in _NOT_ASCII.findall(text)
        if unicodedata.numeric(sign, None) is not None and not "₀" <= sign <= "₉"
    )


# --- reading -------------------------------------------------------------------------------------------------

_NUM = r"(?:\d{1,3}(?: \d{3})+(?![\d.,]*\d)|\d+(?:[.,]\d+)*|(?<![\d\w])[.,]\d+)"
_MONTH = _spelled(_MONTHS)
_CLOCK = r"(?:[01]?\d|2[0-4])(?::[0-5]\d(?::[0-5]\d)?(?: ?[ap]\.?m\b\.?)?|h[0-5]\d\b| ?[ap]m\b)"
_DATE = (
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}"
    r"|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?[ -](?:de |of )?(?:{_MONTH})\b\.?(?:,?[ -](?:de |of )?\d{{4}})?"
)
_MONTH_FIRST = (
    rf"(?:{_MONTH})\.? \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?(?![\d.,]*\d)"
    rf"|(?:{_MONTH})\.?,? (?:de |of )?\d{{4}}"
)
_DATE_END = r"(?![\w/]|[.,-]\d)"
#: Where this finds nothing, no date is read either; where it does, one may yet be part of something else.
_DATE_SOMEWHERE: Final = re.compile(
    rf"(?=\d)(?<![\w.,/-])(?:{_DATE}){_DATE_END}|(?=[a-z])(?<![\w.,/-])(?:{_MONTH_FIRST}){_DATE_END}"
)
_CODE = r"[a-z]++(?:-[a-z]++)*+-?\d[a-z0-9]*(?:[.,]\d+[a-z0-9]*)*"
_FREQUENCY_FIGURES: Final = tuple(words for words in _FREQUENCY if words[0].isdigit())
_FREQUENCY_WORDS: Final = tuple(words for words in _FREQUENCY if not words[0].isdigit())
#: All that begins with a digit or a sign of one; then all that begins with a word, which most words do not.
_SCAN: Final = re.compile(
    r"(?=[\d+\-.,])(?:"
    rf"(?P<date>(?<![\w.,/-])(?:{_DATE}){_DATE_END})"
    rf"|(?P<time>(?<![\w.,:/-])(?:{_CLOCK})(?![\w:]|[.,/-]\d))"
    rf"|\b(?P<count>{_spelled(_FREQUENCY_FIGURES)})\b"
    rf"|(?P<num>(?P<sign>(?<![\w).,])[+-])?(?P<digits>{_NUM})))"
    r"|(?=[a-z])(?<!\w)"
    rf"(?=(?:{_spelled((*_MONTHS, *_LABELS, *_FREQUENCY_WORDS, *_WORDS, *_FACTORS))})|[a-z-]*+\d)(?:"
    rf"(?P<month>(?<![\w.,/-])(?:{_MONTH_FIRST}){_DATE_END})"
    rf"|(?P<label>(?P<what>{_spelled(_LABELS)})(?: class| classe| stage| grade)?[ -]?"
    rf"(?P<which>\d{{1,3}}|{_spelled(_ROMAN)})\b(?![.,/:-]\d|%))"
    rf"|(?P<code>{_CODE}(?: ?(?:-|to|a) ?[a-z]+\d[a-z0-9]*)*)"
    rf"|(?P<freq>{_spelled(_FREQUENCY_WORDS)})\b"
    rf"|(?P<word>{_spelled(_WORDS)})\b"
    rf"|(?P<factor>{_spelled(_FACTORS)})\b)"
)
_RANGE_MIDDLE = re.compile(r" ?(?:-|\.\.|to|ate|a|and|e|until) ?(?=[+-]?[\d.,]*\d)")
_RANGE_WORD = re.compile(r"(?:to|ate|a|and|e|until)")
_BETWEEN = re.compile(r"\b(?:between|entre)(?: the)? $")
_NUMBER = re.compile(rf"(?P<sign>[+-])?(?P<digits>{_NUM})")
_RATIO = re.compile(rf" ?/ ?(?P<second>{_NUM})(?! ?/ ?\d)")
#: A date or a time goes on, or another number hangs on the end of a range.
_GLUED = re.compile(r"[./:]\d|-\d")
#: Digits or letters that hang on the number and are no unit: "1e3", "1'125", "1_000", "1st".
_TAIL = re.compile(r"(?:[^\W\d_]+[\w]*|['_^*=:x~][\w.,]*\d[\w.,]*)")
#: Right behind a number nothing of it follows these signs: no unit, no other end, no tail, no bound in words.
_STOPS: Final = frozenset(("", ",", ";", ")", "]", "(", "[", "!", "?", '"'))
#: No tail begins with these either.
_NO_TAIL: Final = _STOPS | {" ", ".", "/", "%", "-"}
_NUMBER_WORDS = re.compile(rf"(?:[ -](?:e |and )?{_spelled(_WORDS)}\b)+")
#: What stands before a bound, right before the number; "~" and the like say that it is near.
_BOUNDS: Final[dict[str, tuple[str, ...]]] = {
    "down": (
        "less than", "lower than", "fewer than", "smaller than", "below", "under", "up to", "at most", "no more than",
        "maximum", "maximum of", "max", "max.", "inferior a", "menor que", "menor do que", "menos de", "menos do que",
        "abaixo de", "abaixo do", "abaixo da", "abaixo des", "abaixo dos", "abaixo das", "ate", "no maximo", "maximo",
        "maximo de",
    ),
    "up": (
        "more than", "greater than", "higher than", "above", "over", "exceed", "exceeds", "exceeding", "at least",
        "minimum", "minimum of", "no less than", "superior a", "maior que", "maior do que", "mais de", "mais do que",
        "acima de", "acima do", "acima da", "acima des", "acima dos", "acima das", "pelo menos", "no minimo", "minimo",
        "minimo de",
    ),
    "none": (
        "about", "around", "approximately", "approx", "approx.", "nearly", "almost", "cerca de", "aproximadamente",
        "quase", "upper limit", "upper limit of", "lower limit", "lower limit of", "limite", "limite de",
        "limite superior", "limite superior de", "limite inferior", "limite inferior de", "range up to", "range from",
        "threshold", "threshold of", "target", "target of", "alvo", "alvo de", "goal", "goal of", "cutoff",
        "cutoff of",
    ),
}  # fmt: skip
_BOUND_SIGNS: Final = {"down": "<=?", "up": ">=?", "none": "~"}
_COMPARATOR = re.compile(
    r"(?=[<>~]|(?<![a-z])[a-z])(?:"
    + "|".join(
        rf"(?P<{way}>{_BOUND_SIGNS[way]}|(?<![a-z]){_spelled(words)})[ :]{{0,2}}$" for way, words in _BOUNDS.items()
    )
    + ")"
)
#: The last word before the number wherever the expression above finds something, or the end of what is no word.
_BOUND_WORDS: Final = frozenset(words.split()[-1] for row in _BOUNDS.values() for words in row)
_BOUND_ENDS: Final = ("<", "<=", ">", ">=", "~", *sorted(_BOUND_WORDS))
#: So far before its number a comparator may begin.
_BOUND_CHARS: Final = 40
_AFTER_BOUND = re.compile(
    r" ?(?:or (?:more|above|higher|greater|less|below|lower)|ou (?:mais|menos|superior|inferior))"
)
_FOLLOWING = re.compile(r" ?([a-z]+)")
_SENTENCE = re.compile(r"[.!?](?= |$)")
_TOKEN = re.compile(r"[a-z0-9]+\+*")
_WORD = re.compile(r"[a-z0-9]+")
_LETTERS = re.compile(r"[a-z]+")
_DIGITS = re.compile(r"\d+")
_CODE_JOIN = re.compile(r" ?(?:-| to | a ) ?")
_HALF_OF_DAY = re.compile(r"([ap])\.?m")
_VALUE_BEHIND = re.compile(r"[ :=]{1,3}\d")
#: A name is right before its number where at most this many words stand between.
_NEAR_WORDS: Final = 3
_OF = re.compile(r"^ ?(?:of |de |do |da )?$")
_GROUPS = re.compile(r"\d{1,3}(?:([.,])\d{3})(?:\1\d{3})+")
_AMBIGUOUS = re.compile(r"[1-9]\d{0,2}[.,]\d{3}")


def _value(digits: str, *, lang: str) -> Decimal | None:
    """The value of written digits; None where it cannot be told."""
    if digits.isdecimal():
        return Decimal(digits)
    if " " in digits:
        return Decimal(digits.replace(" ", ""))
    points, commas = digits.count("."), digits.count(",")
    if points + commas == 0:
        return Decimal(digits)
    if points + commas > 1:
        if points and commas:
            thousands = "," if digits.rfind(".") > digits.rfind(",") else "."
            whole, _, part = digits.rpartition("." if thousands == "," else ",")
            if re.fullmatch(rf"[1-9]\d{{0,2}}(?:[{thousands}]\d{{3}})+", whole) is None:
                return None
            return Decimal(f"{re.sub('[.,]', '', whole)}.{part}")
        return Decimal(re.sub("[.,]", "", digits)) if _GROUPS.fullmatch(digits) and digits[0] != "0" else None
    if commas and lang != "pt" and re.fullmatch(r"[1-9]\d{0,2},\d{3}", digits):
        return Decimal(digits.replace(",", ""))
    return Decimal(digits.replace(",", ".") if digits[0] in ".,0123456789" else digits)


def _is_ambiguous(digits: str) -> bool:
    """Whether a person may have meant a thousand or a decimal: "1.125" and "1,125"."""
    return _AMBIGUOUS.fullmatch(digits) is not None


def _date_values(raw: str) -> tuple[Decimal, ...]:
    """Year (0: none), month and day (0: none); () for a day that no calendar has."""
    digits = [int(part) for part in _DIGITS.findall(raw)]
    year, day, month = 0, 0, None
    if len(digits) < 3:
        month = next((_MONTHS[word] for word in _LETTERS.findall(raw) if word in _MONTHS), None)
    if month is not None:
        year = next((number for number in digits if number > 99), 0)
        day = next((number for number in digits if number <= 99), 0)
    elif len(digits) == 3 and digits[0] > 99:
        year, month, day = digits
    elif len(digits) == 3:
        day, month, year = digits
        year += 2000 if year < 100 else 0
    if month is None or not 1 <= month <= 12 or day > 31:
        return ()
    return Decimal(year), Decimal(month), Decimal(day)


def _time_values(raw: str) -> tuple[Decimal, ...]:
    digits = [int(part) for part in _DIGITS.findall(raw)]
    hour, minute = digits[0], digits[1] if len(digits) > 1 else 0
    half = _HALF_OF_DAY.search(raw)
    if half is not None:
        if not 1 <= hour <= 12:
            return ()
        hour = hour % 12 + (12 if half[1] == "p" else 0)
    return Decimal(hour), Decimal(minute)


def _is_word(text: str) -> bool:
    return text.isascii() and text.isalpha()


def _read(text: str, is_free: bool, lang: str) -> tuple[str, str, tuple[Mention, ...]]:
    """A line as ``_normal`` gives it, as written and in lower case, and its mentions in order.

    What the numbers are of and what they were given with is not known yet.
    """
    cased, low, signs = _normal(text)
    mentions = [Mention(kind="sign", raw=sign, start=0, end=0) for sign in dict.fromkeys(signs)]
    at = 0
    while (match := _SCAN.search(low, at)) is not None:
        mention = _mention(match, low, is_free, lang)
        mentions.append(mention)
        at = mention.end
    return cased, low, tuple(mentions)


#: The lines of protocols alone are remembered: they are nobody's, and answer after answer rests on the same few.
_read_quoted = remembers(1024)(_read)


def _mention(match: re.Match[str], low: str, is_free: bool, lang: str) -> Mention:
    kind, raw = match.lastgroup, match.group()
    if kind == "num":
        return _number(match, low, is_free, lang)
    if kind == "word":
        return _word(match, low)
    is_: Kind
    values: tuple[Decimal, ...] = ()
    if kind in ("date", "month"):
        is_, values = "date", _date_values(raw)
    elif kind == "time":
        is_, values = "time", _time_values(raw)
    elif kind == "label":
        which = match["which"]
        value = int(which) if which.isdigit() else _ROMAN[which]
        is_, raw, values = "label", _LABELS[match["what"]], (Decimal(value),)
    elif kind == "code":
        is_ = "code"
        if " " in raw:
            raw = _CODE_JOIN.sub("-", raw).replace(" ", "")
    elif kind == "factor":
        is_, raw = "factor", _FACTORS[raw]
    else:
        is_, values = "frequency", (Decimal(_FREQUENCY[raw]),)
    return Mention(kind=is_, raw=raw, start=match.start(), end=match.end(), values=values)


def _word(match: re.Match[str], low: str) -> Mention:
    """A number in words; several in a row ("twenty five") are one that cannot be read for certain."""
    start, end = match.span()
    run = _NUMBER_WORDS.match(low, end)
    if run is not None:
        return _code(low, start, run.end())
    unit = _UNIT.match(low, end)
    word = low[start:end]
    # "um" and "uma" are articles, "one" a pronoun: without a unit they count nothing, as the other small counts.
    name = unit_id(unit.group()) if unit is not None and low[end : end + 1] in " -" else ""
    return Mention(
        kind="number",
        raw=word,
        start=start,
        end=unit.end() if name and unit is not None else end,
        values=(Decimal(_WORDS[word]),),
        unit=name,
        is_word=True,
    )


def _code(low: str, start: int, end: int) -> Mention:
    """Something with a number in it that cannot be read for certain: only the very same counts."""
    return Mention(kind="code", raw=low[start:end], start=start, end=end)


def _number(first: re.Match[str], low: str, is_free: bool, lang: str) -> Mention:
    value, (start, end) = _of(first, is_free, lang), first.span()
    raw = first.group().lstrip("+")
    kind: Kind = "number"
    values: tuple[Decimal, ...] = () if value is None else (value,)
    unit = following = ""
    is_bound = False
    if low[end : end + 1] not in _STOPS:
        found = _UNIT.match(low, end)
        if "/" in low[end : end + 2] and (ratio := _RATIO.match(low, end)) is not None:
            second = _NUMBER.match(ratio["second"])
            other = None if second is None else _of(second, is_free, lang)
            values = () if value is None or other is None else (value, other)
            kind, end, raw = "ratio", ratio.end(), f"{raw}/{ratio['second']}"
            found = _UNIT.match(low, end)
        else:
            first_unit = found.group() if found is not None else ""
            middle = _RANGE_MIDDLE.match(low, end + len(first_unit))
            if middle is None and first_unit:
                middle = _RANGE_MIDDLE.match(low, end)
            second = None if middle is None else _NUMBER.match(low, middle.end())
            is_and = middle is not None and middle.group().strip() in ("and", "e")
            if middle is not None and second is not None and (not is_and or _BETWEEN.search(low[:start])):
                if middle.start() != end + len(first_unit):
                    first_unit = ""
                other = _of(second, is_free, lang)
                is_glued = _GLUED.match(low, second.end()) is not None
                values = () if value is None or other is None or is_glued else (value, other)
                kind, end = "range", second.end()
                raw = _RANGE_WORD.sub("-", low[start:end]).replace(" ", "")
                unit = unit_id(first_unit) if first_unit else ""
                found = _UNIT.match(low, end)
        if found is not None and not (found.group().startswith("-") and low[end + 1 : end + 2].isdigit()):
            second_unit = unit_id(found.group())
            if kind == "range" and unit and unit != second_unit:
                values = ()
            unit, end = second_unit, found.end()
        tail = _TAIL.match(low, end) if low[end : end + 1] not in _NO_TAIL else None
        if tail is not None and not low[end - 1].isspace() and not (unit and low.startswith(" ", first.end())):
            return _code(low, start, tail.end())
        word_behind = _FOLLOWING.match(low, end)
        if word_behind is not None:
            following = word_behind[1]
            is_bound = following in ("or", "ou") and _AFTER_BOUND.match(low, end) is not None
    direction = 0
    ahead = low[max(0, start - _BOUND_CHARS) : start].rstrip(" :")
    last = ahead[ahead.rfind(" ") + 1 :]
    if last in _BOUND_WORDS or (not _is_word(last) and last.endswith(_BOUND_ENDS)):
        bound = _COMPARATOR.search(low, max(0, start - _BOUND_CHARS), start)
        if bound is not None:
            is_bound, direction = True, 1 if bound["up"] else -1 if bound["down"] else 0
    return Mention(
        kind=kind,
        raw=raw,
        start=start,
        end=end,
        values=values,
        unit=unit,
        is_bound=kind == "number" and is_bound,
        direction=direction,
        following=following,
    )


def _of(match: re.Match[str], is_free: bool, lang: str) -> Decimal | None:
    digits = match["digits"]
    if is_free and _is_ambiguous(digits):
        return None
    value = _value(digits, lang=lang)
    return -value if value is not None and match["sign"] == "-" else value


class _Line(msgspec.Struct):
    """A line as it was read. ``named``: its mentions with what they are of and their units, once somebody asked."""

    given: Given
    cased: str
    low: str
    mentions: Sequence[Mention]
    named: Sequence[Mention] | None = None


#: Kinds of mention that are of something.
_OF_THINGS: Final = frozenset(("number", "range", "ratio"))


class _Reader:
    """Reads the mentions of one line."""

    def __init__(self, vocabulary: Vocabulary, lang: str) -> None:
        self._vocabulary = vocabulary
        self._lang = lang

    def names(self, cased: str, low: str) -> list[tuple[int, int, frozenset[str]]]:
        """Where things are named, in order, the longest name at each place; a medicine goes before other names."""
        found: list[tuple[int, int, frozenset[str]]] = []
        names, longest, cased_names = self._vocabulary.names, self._vocabulary.longest, self._vocabulary.cased
        words = _TOKEN.findall(low)
        starts = [at for at, word in enumerate(words) if word in longest]
        places = [match.span() for match in _TOKEN.finditer(low)] if starts else []
        free = 0
        for first in starts:
            if first < free:
                continue
            for size in range(min(longest[words[first]], len(words) - first), 0, -1):
                phrase = words[first] if size == 1 else " ".join(words[first : first + size])
                ids = names.get(phrase)
                if ids is None:
                    continue
                start, end = places[first][0], places[first + size - 1][1]
                if phrase in cased_names and not self._is_spelled(phrase, cased, start, end):
                    continue
                found.append((start, end, ids))
                free = first + size
                break
        drugs: dict[tuple[int, int], set[str]] = {}
        for drug in drugs_in_folded(low):
            drugs.setdefault((drug.start, drug.end), set()).add(f"drug:{drug.id}")
        if not drugs:
            return found
        for (start, end), ids_ in drugs.items():
            other = [row for row in found if row[0] < end and start < row[1]]
            if any(row[1] - row[0] > end - start for row in other):
                continue
            found = [row for row in found if row not in other]
            found.append((start, end, frozenset(ids_)))
        return sorted(found, key=lambda row: (row[0], row[1]))

    def _is_spelled(self, phrase: str, cased: str, start: int, end: int) -> bool:
        return cased[start:end] in self._vocabulary.cased[phrase] or (
            len(phrase) > 1 and _VALUE_BEHIND.match(cased, end) is not None
        )

    def read(self, given: Given) -> _Line:
        """All mentions of a line, in order, not yet ``named``."""
        cased, low, mentions = (_read_quoted if given.is_quoted else _read)(given.text, given.is_free, self._lang)
        return _Line(given, cased, low, mentions)

    def named(self, line: _Line) -> Sequence[Mention]:
        """The line's mentions with what they are of; worked out once."""
        if line.named is None:
            named = line.mentions
            if any(mention.kind in _OF_THINGS for mention in named):
                names = self.names(line.cased, line.low)
                if names or line.given.about:
                    ends = [match.end() for match in _SENTENCE.finditer(line.low)]
                    named = [self._named(mention, line, names, ends) for mention in named]
                    named = [self._with_unit(at, named) for at in range(len(named))]
            line.named = named
        return line.named

    def _with_unit(self, at: int, mentions: Sequence[Mention]) -> Mention:
        """A range or bound without a unit has that of the value before it: "5.3 mmol/L, range 3.5 to 5.1"."""
        mention = mentions[at]
        if mention.unit or not mention.names or not (mention.kind == "range" or mention.is_bound):
            return mention
        for earlier in reversed(mentions[:at]):
            if earlier.kind == "number" and earlier.names == mention.names and earlier.unit not in _TIME_UNITS | {""}:
                return msgspec.structs.replace(mention, unit=earlier.unit)
        return mention

    def _named(
        self, mention: Mention, line: _Line, names: Sequence[tuple[int, int, frozenset[str]]], ends: Sequence[int]
    ) -> Mention:
        """The mention with what it is of: a name close before it, the medicine right behind it, else the nearest.

        ``ends``: of the line's sentences.
        """
        if mention.kind not in _OF_THINGS:
            return mention
        low, about = line.low, line.given.about
        # In the order of the line, and none lies over another.
        before = behind = None
        for row in names:
            if row[1] <= mention.start:
                before = row
            elif row[0] >= mention.end:
                behind = row
                break
        begin = max((end for end in ends if end <= mention.start), default=0) if ends else 0
        finish = min((end for end in ends if end > mention.end), default=len(low)) if ends else len(low)
        near = before if before is not None and before[0] >= begin else None
        if behind is not None and behind[0] >= finish:
            behind = None
        ids = about
        if near is not None and len(_WORD.findall(low, near[1], mention.start)) <= _NEAR_WORDS:
            ids = near[2]
        elif _is_year(mention):
            ids = frozenset()
        elif behind is not None and mention.unit and _OF.match(low[mention.end : behind[0]]):
            ids = behind[2]
        elif near is not None:
            ids = near[2]
        elif behind is not None and not about:
            ids = behind[2]
        elif before is not None:
            ids = before[2]
        return msgspec.structs.replace(mention, names=ids) if ids else mention


def dates_in(text: str) -> frozenset[tuple[int, int, int]]:
    """The whole dates of a text as year, month and day; "05/03/2012" is read as the 5th of March."""
    _, low, _ = _normal(text)
    if _DATE_SOMEWHERE.search(low) is None:
        return frozenset()
    found = (_date_values(match.group()) for match in _SCAN.finditer(low) if match.lastgroup in ("date", "month"))
    return frozenset((int(row[0]), int(row[1]), int(row[2])) for row in found if row and row[0] and row[2])


# --- the lock ------------------------------------------------------------------------------------------------

_REFERENCE = re.compile(r"\[[^\[\]\s]{1,160}[/#][^\[\]\s]{1,160}\]")


#: Where a number was given: line and place in it; and what it stands for beside itself: "end" of a range, "year" of a
#: date.
_Place = tuple[int, int, Literal["", "end", "year"]]


class NumberLock:
    """What was given; ``unsupported`` then judges line after line.

    It is read once, when the first line has a number that must have been given; of a line only what has a number of the
    judged ones is looked at further. ``lang`` is the answer's: in Portuguese "1,125" is a little more than one, in
    English more than a thousand.
    """

    def __init__(self, given: Iterable[Given], vocabulary: Vocabulary, lang: str) -> None:
        self._reader = _Reader(vocabulary, lang)
        self._source = _Reader(vocabulary, "en")
        self._unread: Iterable[Given] | None = given
        self._lines: list[_Line] = []
        self._given: dict[tuple[int, int], Mention] = {}
        self._by_value: dict[tuple[str, tuple[Decimal, ...]], list[_Place]] = {}
        self._raw: dict[tuple[str, str], list[_Place]] = {}
        #: The dates with what may be said of them: without the year, without the day.
        self._dates: dict[tuple[Decimal, ...], tuple[tuple[Decimal, ...], ...]] = {}
        self._groups: dict[int, set[Moment]] = {}
        #: The numbers that may be the patient's own results, by their unit.
        self._results: dict[str, list[_Place]] = {}

    def _read_given(self) -> None:
        if self._unread is None:
            return
        given, self._unread = self._unread, None
        for row in given:
            line = self._source.read(
                msgspec.structs.replace(row, text=_REFERENCE.sub(" ", row.text)) if "[" in row.text else row
            )
            if not line.mentions:
                continue
            self._lines.append(line)
            for at, mention in enumerate(line.mentions):
                self._keep(mention, len(self._lines) - 1, at, is_quoted=row.is_quoted)
            self._groups.setdefault(row.group, set()).update(_moments(line.mentions))

    def _keep(self, mention: Mention, line: int, at: int, *, is_quoted: bool) -> None:
        kind, values = mention.kind, mention.values
        place: _Place = (line, at, "")
        if kind == "date":
            if values and values not in self._dates:
                year, month, day = values
                self._dates[values] = ((Decimal(0), month, day), (year, month, Decimal(0)))
            if values and values[0]:
                self._by_value.setdefault(("number", values[:1]), []).append((line, at, "year"))
            return
        if kind in _OF_THINGS or not values or kind == "label":
            self._raw.setdefault((kind, mention.raw), []).append(place)
        if values:
            self._by_value.setdefault((kind, values), []).append(place)
            if kind == "range":
                for value in values:
                    self._by_value.setdefault(("number", (value,)), []).append((line, at, "end"))
        if kind == "number" and not mention.is_bound and not is_quoted:
            self._results.setdefault(mention.unit, []).append(place)

    def _at(self, place: _Place, values: tuple[Decimal, ...] = ()) -> Mention:
        """What stands there, with what it is of and the dates and times that were given with it.

        ``values``: of a mention that stands for something beside itself.
        """
        line, at, role = place
        mention = self._given.get((line, at))
        if mention is None:
            row = self._source.named(self._lines[line])
            given = self._lines[line].given
            mention = msgspec.structs.replace(
                row[at],
                group=given.group,
                is_quoted=given.is_quoted,
                moments=_moments_of(at, row) or frozenset(self._groups[given.group]),
            )
            self._given[line, at] = mention
        if role == "end":
            return msgspec.structs.replace(mention, kind="number", values=values, is_bound=True, direction=0)
        if role == "year":
            return msgspec.structs.replace(mention, kind="number", values=values, unit="", names=frozenset())
        return mention

    def _with_value(self, value: Decimal) -> list[Mention]:
        """Every number of this value."""
        return [self._at(place, (value,)) for place in self._by_value.get(("number", (value,)), ())]

    def _same(self, mention: Mention, places: Iterable[_Place]) -> list[Mention]:
        """What stands there that bears a mention out."""
        found = []
        for place in places:
            line, at, role = place
            if _may_be_same(mention, self._lines[line].mentions[at], role):
                one = self._at(place, mention.values)
                if _is_same(mention, one):
                    found.append(one)
        return found

    def unsupported(self, line: str) -> tuple[str, ...]:
        """The numbers of ``line`` that were not given, as normalised text; () where all were.

        The caller passes exactly what a person will read, without marks that the server puts there itself.
        """
        if len(line) > MAX_CHARS:
            return ("…",)
        read = self._reader.read(Given(text=line))
        if not read.mentions:
            return ()
        self._read_given()
        mentions = self._reader.named(read)
        matches = [self._matches(mention) for mention in mentions]
        wrong = [mention.raw for mention, found in zip(mentions, matches, strict=True) if found is None]
        if not wrong:
            wrong = self._misplaced(mentions, [found or [] for found in matches])
        return tuple(wrong)

    def _matches(self, mention: Mention) -> list[Mention] | None:
        """What was given that bears the mention out; None if nothing does, [] where nobody asks what it was."""
        kind, key = mention.kind, (mention.kind, mention.values)
        if kind == "sign":
            return [] if (kind, mention.raw) in self._raw else None
        if kind == "code":
            return [] if mention.raw in _TERMS or (kind, mention.raw) in self._raw else None
        if kind == "frequency":
            return [] if key in self._by_value else None
        if kind in ("label", "factor"):
            places = self._raw.get((kind, mention.raw), ())
            same = any(self._lines[line].mentions[at].values == mention.values for line, at, _ in places)
            return [] if same else None
        if kind == "date":
            dates = self._dates
            return [] if mention.values in dates or any(mention.values in parts for parts in dates.values()) else None
        if kind == "time":
            return [] if mention.values and key in self._by_value else None
        if mention.is_word and not mention.unit and mention.values[0] <= _FREE_COUNT:
            return []
        written = self._raw.get((kind, mention.raw), ())
        if not mention.values:
            return self._same(mention, written) or None
        found = self._same(mention, self._by_value.get(key, ()))
        found += self._same(
            mention, [place for place in written if not self._lines[place[0]].mentions[place[1]].values]
        )
        if any(one.is_quoted for one in found) and self._is_result(mention):
            found = [one for one in found if not one.is_quoted]
        if not found and kind == "ratio":
            found = self._pressures(mention)
        if not found and kind == "range":
            found = self._course(mention)
        return found or None

    def _is_result(self, mention: Mention) -> bool:
        """Whether a number reads as a result of this patient, which no protocol can bear out."""
        if mention.kind != "number" or mention.is_bound or not mention.names:
            return False
        units = (mention.unit,) if mention.unit else self._results
        return any(
            not mention.names.isdisjoint(self._source.named(self._lines[line])[at].names)
            for unit in units
            for line, at, _ in self._results.get(unit, ())
        )

    def _pressures(self, mention: Mention) -> list[Mention]:
        """Systolic and diastolic pressure of one moment, given apart and written as "120/80"."""
        if mention.unit not in ("", "mmhg") or (mention.names and not mention.names & {"bp", "sbp", "dbp", "map"}):
            return []
        high, low = mention.values
        above = [one for one in self._with_value(high) if "sbp" in one.names and not one.is_bound]
        below = [one for one in self._with_value(low) if "dbp" in one.names and not one.is_bound]
        return [one for one in above if any(one.group == other.group or one.moments & other.moments for other in below)]

    def _course(self, mention: Mention) -> list[Mention]:
        """Two results of one thing, the earlier first, written as "from 4.8 to 5.3"."""
        ends = []
        for value in mention.values:
            alone = msgspec.structs.replace(mention, kind="number", values=(value,))
            ends.append(self._same(alone, self._by_value.get(("number", (value,)), ())))
        pairs = [
            (one, other)
            for one in ends[0]
            for other in ends[1]
            if one.names & other.names and one.unit == other.unit and not _is_later(one, other)
        ]
        return [one for pair in pairs for one in pair]

    def _misplaced(self, mentions: Sequence[Mention], matches: Sequence[Sequence[Mention]]) -> list[str]:
        """Dates and times beside a value that was given with others.

        A time belongs to the value before it; in a line that begins with a time, to the one behind it.
        """
        values = [
            at
            for at, mention in enumerate(mentions)
            if mention.kind in ("number", "range", "ratio")
            and matches[at]
            and (mention.names or mention.unit)
            and mention.unit not in _TIME_UNITS
        ]
        moments = [at for at, mention in enumerate(mentions) if mention.kind in ("date", "time")]
        if not values or not moments:
            return []
        is_ahead = moments[0] < values[0]
        wrong = []
        for at in moments:
            beside = [one for one in values if (one > at) == is_ahead] or values
            nearest = min(beside, key=lambda one: abs(one - at))
            key = (mentions[at].kind, mentions[at].values)
            if not any(key in one.moments or _is_part(key, one.moments) for one in matches[nearest]):
                wrong.append(mentions[at].raw)
        return wrong


def _moments(mentions: Iterable[Mention]) -> frozenset[Moment]:
    return frozenset((each.kind, each.values) for each in mentions if each.kind in ("date", "time"))


def _moments_of(at: int, row: Sequence[Mention]) -> frozenset[Moment]:
    """The dates and times of a row that belong to one of its mentions.

    A result has those up to the next result, or all before it where none follow; a bound or a range has all.
    """
    if row[at].kind != "number" or row[at].is_bound:
        return _moments(row)
    others = (n for n in range(at + 1, len(row)) if row[n].kind == "number" and not row[n].is_bound and row[n].names)
    return _moments(row[at + 1 : next(others, len(row))]) or _moments(row[:at])


def _is_later(one: Mention, other: Mention) -> bool:
    """Whether ``one`` was given with a later date or time than ``other``, or nothing tells which came first."""

    def when(mention: Mention) -> tuple[Decimal, ...] | None:
        dates = [values for kind, values in mention.moments if kind == "date" and values]
        times = [values for kind, values in mention.moments if kind == "time" and values]
        return (*dates[0], *times[0]) if len(dates) == 1 and len(times) == 1 else None

    first, second = when(one), when(other)
    return first is None or second is None or first > second


def _is_part(key: Moment, moments: Iterable[Moment]) -> bool:
    """A date without its year or day beside the whole one."""
    kind, values = key
    return kind == "date" and any(
        other[0] == "date" and all(mine in (0, theirs) for mine, theirs in zip(values, other[1], strict=True))
        for other in moments
        if len(other[1]) == len(values)
    )


def _may_be_same(line: Mention, given: Mention, role: str) -> bool:
    """Whether ``_is_same`` may be true of a given mention as it is read, before anybody knows what it is of.

    Its unit and whether it is a bound stand in it; a bound or a range may yet take the unit of the value before it.
    """
    if line.unit and line.unit != given.unit and (given.unit or not (given.is_bound or given.kind == "range")):
        return False
    if line.kind != "number" or line.unit in _TIME_UNITS:
        return True
    return line.is_bound == (role == "end" or given.is_bound)


def _is_same(line: Mention, given: Mention) -> bool:
    """Whether a mention of equal value was given with this unit, of this thing, and as a value or a bound."""
    if line.unit and given.unit != line.unit:
        return False
    if line.unit in _TIME_UNITS:
        return True
    if line.names and not line.names & given.names:
        return False
    if line.kind != "number":
        return True
    if line.is_bound != given.is_bound:
        return False
    if line.direction and given.direction and line.direction != given.direction and not given.names:
        return False
    if not line.unit and not line.names and _is_small(line):
        return not given.unit and (not given.names or (line.following != "" and given.following == line.following))
    return True


def _is_year(mention: Mention) -> bool:
    """A bare number that reads as the year of a guideline; right behind a name it is still that name's."""
    return mention.kind == "number" and not mention.unit and re.fullmatch(r"(?:19|20)\d\d", mention.raw) is not None


def _is_small(mention: Mention) -> bool:
    """A whole number up to ten that says neither of what nor in which unit: half of a record's numbers equal it."""
    return (
        bool(mention.values) and mention.values[0] == int(mention.values[0]) and abs(mention.values[0]) <= _FREE_COUNT
    )
