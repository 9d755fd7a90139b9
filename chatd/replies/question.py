"""What a question asks for: its language, whether it is about patients at all, and what it names.

Rules over folded words, English and Portuguese; no model, no clock, no record. The same question gives the same
``Question``. Whatever may be clinical is treated as clinical: the price of a wrong "in scope" is a needless
summary, the price of a wrong "out of scope" is a doctor sent away.
"""

from __future__ import annotations

import functools
import re
from typing import Literal

import msgspec
from rapidfuzz import fuzz

from chatd.replies.concepts import CASED, CONCEPTS, GROUPS, REPORT_KINDS
from chatd.replies.cues import (
    CLINICAL,
    EN_SIGNS,
    EN_WORDS,
    GREETING,
    INTENTS,
    KEPT_AFTER_NEGATOR,
    NEGATORS,
    NUMBER_UNIT,
    OFF_TOPIC,
    PT_SIGNS,
    PT_WORDS,
    STOP_NEGATION,
    STOPWORDS,
)
from chatd.safety.medication import drugs_in
from chatd.safety.presentations import emergencies
from context.text import fold_line

Lang = Literal["en", "pt"]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question as the rules read it.

    text: as it came. folded: see ``concepts.fold``. affirmed: folded without what is denied in it ("no chest
    pain"); searched and ranked by. denied: what was taken out.
    lang: of the answer. in_scope: False for greetings and the cafeteria.
    intents: names of ``INTENTS``, in that order. concepts: ids of ``CONCEPTS`` in the order of the question, groups
    resolved. groups: ids of ``GROUPS``. reports: ids of ``REPORT_KINDS``. terms: words of three letters or more that
    carry meaning.
    """

    text: str
    folded: str
    affirmed: str
    denied: tuple[str, ...] = ()
    lang: Lang = "en"
    in_scope: bool = True
    greeting: bool = False
    intents: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()

    def wants(self, *intents: str) -> bool:
        """True if one of ``intents`` is asked for."""
        return any(intent in self.intents for intent in intents)


class Named(msgspec.Struct, frozen=True):
    """Values that a text names: concepts (groups resolved, in order of appearance), groups and kinds of report."""

    concepts: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()


def language_of(text: str, *, hint: str = "", default: Lang = "en") -> Lang:
    """The language to answer in: what ``hint`` says ("pt-BR", "en"), else the words' own, else ``default``."""
    hint = hint.strip().lower()
    if hint[:2] in ("pt", "en"):
        return "pt" if hint[:2] == "pt" else "en"
    words = re.findall(r"[a-z']+", fold_line(text))
    portuguese = sum(word in PT_WORDS or word in PT_SIGNS for word in words)
    english = sum(word in EN_WORDS or word in EN_SIGNS for word in words)
    # A tilde or a cedilla is not written in English; it outweighs one shared word ("no", "do"). Names do not count.
    portuguese += 2 * bool(re.search(r"(?<!\w)[a-zãõçáàâêéíóôú]\w*[ãõçáàâêéíóôú]|(?<!\w)[ãõçáàâêéíóôú]", text))
    if portuguese == english:
        return default
    return "pt" if portuguese > english else "en"


def split_negation(folded: str) -> tuple[str, tuple[str, ...]]:
    """What a folded text affirms, and the parts that it denies.

    A denial reaches to the next sign, turning word or five words on. Emergencies that are told by a "no" ("no
    pulse", "not breathing") stay affirmed.
    """
    kept: list[str] = []
    denied: list[str] = []
    position = 0
    for match in NEGATORS.finditer(folded):
        if match.start() < position:
            continue
        rest = folded[match.end() :]
        if KEPT_AFTER_NEGATOR.match(rest):
            continue
        end = STOP_NEGATION.search(rest)
        reach = rest[: end.start()] if end else rest
        reach = " ".join(reach.split()[:5])
        if not reach:
            continue
        stop = match.end() + folded[match.end() :].index(reach) + len(reach)
        kept.append(folded[position : match.start()])
        denied.append(reach)
        position = stop
    kept.append(folded[position:])
    return _squeeze(" ".join(kept)), tuple(denied)


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@functools.lru_cache(maxsize=1)
def _lexicon() -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """(word, ((table, id), ...)) of every name of a value, group or kind of report; longest first, then by alphabet."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for table, entries in (("concept", CONCEPTS), ("group", GROUPS), ("report", REPORT_KINDS)):
        for entry in entries:
            for word in entry.words:
                rows.setdefault(word, []).append((table, entry.id))
    return tuple((word, tuple(rows[word])) for word in sorted(rows, key=lambda word: (-len(word), word)))


@functools.lru_cache(maxsize=1)
def _by_first_letter() -> dict[str, tuple[str, ...]]:
    """Single words of six letters or more by their first letter, for the test against misspelling."""
    table: dict[str, list[str]] = {}
    for word, _ in _lexicon():
        if len(word) >= 6 and word.isalpha():
            table.setdefault(word[0], []).append(word)
    return {letter: tuple(words) for letter, words in table.items()}


@functools.lru_cache(maxsize=2048)
def _bounded(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])")


def _spelled(word: str, text: str, folded: str, end: int) -> bool:
    """Whether a name that is also a common word stands here as a name: by its letters, or by a number after it."""
    forms = CASED.get(word)
    if forms is None or re.match(r"\s*[:=]?\s*\d+(?:[.,]\d+)?(?![\dªºa-z])", folded[end:]):
        return True
    return any(re.search(rf"(?<![^\W\d_]){re.escape(form)}(?![^\W\d_])", text) for form in forms)


def named_in(text: str, masked: str | None = None) -> Named:
    """The values, groups and reports that ``text`` names; a longer name hides the shorter ones inside it.

    ``masked``: the folded text with spaces where something else was recognised already. Words of six letters or
    more may be misspelt (similarity of 90 or more).
    """
    rest = fold_line(text) if masked is None else masked
    meaning = dict(_lexicon())
    found: list[tuple[int, str, str]] = []
    for word, entries in _lexicon():
        if word not in rest:
            continue
        for match in _bounded(word).finditer(rest):
            if _spelled(word, text, rest, match.end()):
                found += [(match.start(), table, id_) for table, id_ in entries]
                rest = rest[: match.start()] + " " * len(word) + rest[match.end() :]
    for match in re.finditer(r"[a-z]{6,}", rest):
        word = match.group()
        if word in STOPWORDS:
            continue
        scored = [(fuzz.ratio(word, near), near) for near in _by_first_letter().get(word[0], ())]
        best, near = max(scored, default=(0.0, ""))
        if best >= 90:
            found += [(match.start(), table, id_) for table, id_ in meaning[near]]
    members = {group.id: group.members for group in GROUPS}
    concepts: list[str] = []
    for _, table, id_ in sorted(found):
        concepts += (id_,) if table == "concept" else members.get(id_, ()) if table == "group" else ()
    groups = [id_ for _, table, id_ in sorted(found) if table == "group"]
    reports = [id_ for _, table, id_ in sorted(found) if table == "report"]
    return Named(tuple(dict.fromkeys(concepts)), tuple(dict.fromkeys(groups)), tuple(dict.fromkeys(reports)))


@functools.lru_cache(maxsize=64)
def _intent(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _is_clinical(text: str, folded: str, named: Named, intents: tuple[str, ...]) -> bool:
    if named.concepts or named.reports or NUMBER_UNIT.search(folded) or CLINICAL.search(folded):
        return True
    if any(intent not in ("next", "labs", "encounters", "summary", "trend", "demographics") for intent in intents):
        return True
    return bool(drugs_in(text)) or bool(emergencies(text, {}))


def understand(question: str, *, lang_hint: str = "", default_lang: Lang = "en") -> Question:
    """Read ``question``; never fails, an empty one is a greeting without words.

    Args:
        lang_hint: what the client said ("pt-PT", "en"); "" leaves it to the words.
        default_lang: for a question whose words do not tell (a name, a number).
    """
    folded = fold_line(question)
    named = named_in(question, folded)
    intents = tuple(name for name, pattern in INTENTS if _intent(pattern).search(folded))
    affirmed, denied = split_negation(folded)
    greeting = not re.search(r"[a-z0-9]", folded) or bool(GREETING.match(folded))
    clinical = not greeting and _is_clinical(question, folded, named, intents)
    in_scope = not greeting and (clinical or not OFF_TOPIC.search(folded))
    words = (word for word in re.findall(r"[a-z0-9][a-z0-9+\-]{2,}", affirmed) if word not in STOPWORDS)
    return Question(
        text=question,
        folded=folded,
        affirmed=affirmed,
        denied=denied,
        lang=language_of(question, hint=lang_hint, default=default_lang),
        in_scope=in_scope,
        greeting=greeting,
        intents=intents,
        concepts=named.concepts,
        groups=named.groups,
        reports=named.reports,
        terms=tuple(dict.fromkeys(words)),
    )
