"""What a model was given about one question, as lines that its numbers are held against.

Of the prompt the patient, the session and the question with its protocol sections: what hospital, department and
doctor are told holds no number of a patient. Beside it the facts, which the same reply shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Final

from chatd.replies.concepts import CASED, CONCEPTS, GROUPS, concept_of
from chatd.replies.facts import FactsResult
from chatd.safety.numbers import Given, NumberLock, Vocabulary
from context.compose import Prompt
from context.layers import Layers, Observation
from context.memo import remembers
from context.text import fold_line
from protocols.frames import Fact

#: Segments of a prompt that speak of this question.
SEGMENTS: Final = frozenset({"patient", "session", "question"})
#: Names of numbers that are no result of the record.
_OTHER: Final[dict[str, tuple[str, ...]]] = {
    "score:news2": ("news2", "news 2", "news"),
    "age": ("age", "aged", "idade"),
    "sbp": ("systolic", "sistolica", "sbp"),
    "dbp": ("diastolic", "diastolica", "dbp"),
}


def _key(name: str) -> str:
    """A name as ``Vocabulary`` wants it: folded, letters, digits and "+" with one blank between."""
    return " ".join("".join(sign if sign.isalnum() or sign == "+" else " " for sign in fold_line(name)).split())


#: The names of results alone are remembered, never a doctor's or a model's words: a record has the same few often.
_result_key = remembers(4096)(_key)


@lru_cache(maxsize=1)
def _table() -> Vocabulary:
    """The names of the table of values, of blood pressure as a pair, and of what else has a number."""
    names: dict[str, set[str]] = {}
    for concept in CONCEPTS:
        for word in concept.words:
            names.setdefault(_key(word), set()).add(concept.id)
    for group in GROUPS:
        if group.id == "bp":
            for word in group.words:
                names.setdefault(_key(word), set()).update(("bp", "sbp", "dbp", "map"))
    for id_, words in _OTHER.items():
        for word in words:
            names.setdefault(_key(word), set()).add(id_)
    names.pop("", None)
    return Vocabulary(
        {name: frozenset(ids) for name, ids in names.items()},
        {_key(word): spellings for word, spellings in CASED.items()},
    )


def _named_in(title: str) -> frozenset[str]:
    """What the words of a protocol's title name: "QTc safety" is about QTc, unless a line of it says otherwise."""
    words = _key(title).split()
    return frozenset().union(*(_table().names.get(word, frozenset()) for word in words if len(word) > 2))


def ids_of(observation: Observation) -> frozenset[str]:
    """What a result is of: the row of the table, else its own name; without what stands in brackets, too."""
    concept = concept_of(observation)
    return frozenset({concept.id if concept is not None else f"name:{_result_key(observation.name)}"})


def vocabulary(layers: Layers, facts: FactsResult) -> Vocabulary:
    """The table's names and those that this record uses for its results."""
    table = _table()
    more: list[tuple[str, frozenset[str]]] = []
    if layers.patient is not None:
        for observation in layers.patient.observations:
            name = _result_key(observation.name)
            if name and name not in table.cased:
                more.append((name, ids_of(observation)))
    more += [(name, frozenset({f"score:{name}"})) for score in facts.scores if (name := _key(score.name))]
    return table.with_names(dict.fromkeys(more))


def _prompt_lines(prompt: Prompt) -> Iterator[Given]:
    group = 0
    for segment in prompt.segments:
        if segment.name not in SEGMENTS:
            continue
        is_quoted = segment.name == "question"
        for line in segment.text.splitlines():
            is_free = line.startswith("  >")
            if not is_free:
                group += 1
            # The protocol sections stand before the question; a line of theirs cannot look like its heading.
            if line == "# Question":
                is_quoted = False
            if text := line.removeprefix("  >").removeprefix("- ").strip():
                yield Given(text=text, group=group, is_free=is_free, is_quoted=is_quoted)


def _fact_lines(facts: FactsResult, layers: Layers) -> Iterator[Given]:
    group = 1_000_000  # no entry of the prompt is one of these
    ids = {} if layers.patient is None else {each.ref: ids_of(each) for each in layers.patient.observations}

    def row(text: str, about: frozenset[str] = frozenset()) -> Given:
        nonlocal group
        group += 1
        return Given(text=text, about=about, group=group)

    for fact in facts.facts:
        yield row(_exact(fact), ids.get(fact.ref or "", frozenset()))
    yield row(facts.who)
    for text in (
        *facts.trends,
        *(score.text for score in facts.scores),
        *(flag.text for flag in facts.red_flags),
        *(check.text for check in facts.checks),
        *facts.missing,
    ):
        yield row(text)
    for score in facts.scores:
        if score.value is not None:
            yield row(f"{score.name} {score.value:g}")
    for quote in facts.protocols:
        group += 1
        yield Given(text=f"{quote.title}, {quote.source}, {quote.year or ''}", group=group, is_quoted=True)
        about = _named_in(f"{quote.title} {quote.id}")
        for line in quote.quote.splitlines():
            yield Given(text=line, about=about, group=group, is_free=True, is_quoted=True)
    if layers.patient is not None:
        years = layers.patient.age_years(facts.now.date())
        if years is not None:
            yield row(f"age {years} years")


def _exact(fact: Fact) -> str:
    """A fact's text; a value that the text rounds stands behind it as it was recorded."""
    if isinstance(fact.value, float) and f"{fact.value}" not in fact.text:
        return f"{fact.text}; {fact.value} {fact.unit or ''}"
    return fact.text


def number_lock(prompt: Prompt, facts: FactsResult, layers: Layers) -> NumberLock:
    """The lock for the answer to one question; it reads the prompt when a line first has a number."""
    given = chain(_prompt_lines(prompt), _fact_lines(facts, layers))
    return NumberLock(given, vocabulary(layers, facts), facts.lang)
