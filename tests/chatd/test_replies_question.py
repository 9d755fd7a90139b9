# ruff: noqa: E501 - a case stands on one line
"""How a question is read: language, scope, intents, named values, denials; and that the tables hold together."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.replies.concepts import BY_ID, BY_LOINC, CONCEPTS, GROUPS
from chatd.replies.needs import BY_PROTOCOL, BY_REPORT, FOR_DOSE
from chatd.replies.question import language_of, named_in, split_negation, understand
from chatd.replies.wording import TEXTS, say
from context.library.library import Library
from context.text import fold_line


@pytest.mark.parametrize(
    ("text", "hint", "lang"),
    [
        ("Qual o último potássio?", "", "pt"),
        ("What is the last potassium?", "", "en"),
        ("What is the last potassium?", "pt-PT", "pt"),
        ("Qual o último potássio?", "en-GB", "en"),
        ("Analyze João Silva's ECG results", "", "en"),
        ("Dor torácica há 1 hora", "", "pt"),
        ("K 6.9", "", "en"),
    ],
)
def test_language_by_hint_then_words(text: str, hint: str, lang: str) -> None:
    """A hint decides; without one the small words do, and a Portuguese name makes no Portuguese sentence."""
    assert language_of(text, hint=hint) == lang


def test_language_default_decides_where_words_do_not() -> None:
    """A number alone is answered in the hospital's language."""
    assert language_of("K 6.9", default="pt") == "pt"


@pytest.mark.parametrize(
    ("text", "concepts"),
    [
        ("Qual o último potássio?", {"potassium"}),
        ("na última análise, o sódio", {"sodium"}),
        ("Na 128", {"sodium"}),
        ("na enfermaria 3", set()),
        ("hr 132 rr 28", {"heart_rate", "resp_rate"}),
        ("hemoglobn", {"hemoglobin"}),
        ("HbA1c?", {"hba1c"}),
        ("albumin creatinine ratio", {"acr"}),
        ("big toe pain", set()),
        ("to be or not to be", set()),
        ("tensão arterial", {"sbp", "dbp", "map"}),
        ("SpO₂ 84", {"spo2"}),
        ("NT-proBNP", {"nt_probnp"}),
        ("C reactive protein", {"crp"}),
    ],
)
def test_named_values(text: str, concepts: set[str]) -> None:
    """Names, short names, misspellings and groups are found; common words that look like short names are not."""
    assert set(named_in(text).concepts) == concepts


@pytest.mark.parametrize(
    ("text", "affirmed", "denied"),
    [
        ("no chest pain but dyspnoea", "dyspnoea", "chest pain"),
        ("sem febre, com tosse", "tosse", "febre"),
        ("nega dor torácica", "", "dor toracica"),
        ("no pulse", "pulse", ""),
        ("not breathing", "breathing", ""),
        ("não respira", "respira", ""),
        ("no known allergies", "known allergies", ""),
        ("not improving", "improving", ""),
    ],
)
def test_negation(text: str, affirmed: str, denied: str) -> None:
    """What is denied is taken out; an emergency told by a "no" stays."""
    kept, out = split_negation(fold_line(text))
    assert affirmed in kept
    assert (denied in " ".join(out)) if denied else out == ()


@pytest.mark.parametrize(
    "text",
    [
        "What is the cafeteria menu?", "Onde fica o estacionamento?", "hello", "Bom dia!", "thanks", "Que tempo faz hoje?",
        "What is the wifi password?", "Who won the game?", "?",
    ],
)  # fmt: skip
def test_out_of_scope(text: str) -> None:
    """Greetings and what no record answers are out of scope."""
    assert not understand(text).in_scope


@pytest.mark.parametrize(
    "text",
    [
        "Is he ok?", "84/50", "6.9 mmol", "aspirin", "cafeteria menu for a diabetic patient", "She collapsed in the car park",
        "caiu no parque de estacionamento, não reage", "hello, BP 80", "bom dia, dor no peito", "varfarina", "Hb?", "vaccines",
        "Como está o doente?", "rash after lunch", "engasgou-se ao almoço", "choking at dinner", "burned by hot coffee",
        "drank a bottle of bleach in the toilet", "idade?", "What is the plan?",
    ],
)  # fmt: skip
def test_clinical_is_never_out_of_scope(text: str) -> None:
    """One clinical word, number with unit or name of a value keeps a question in scope."""
    assert understand(text).in_scope


@given(st.text(max_size=300))
def test_understand_any_text_is_read_the_same_twice(text: str) -> None:
    """No text fails, and the same text is the same question."""
    assert understand(text) == understand(text)


@given(
    st.sampled_from([word for concept in CONCEPTS for word in (concept.en, concept.pt)]),
    st.text(string.ascii_letters + " ?", max_size=30),
)
def test_understand_a_named_value_is_in_scope(name: str, around: str) -> None:
    """Naming a value of the table keeps any sentence in scope."""
    assert understand(f"{around} {name}").in_scope


def test_tables_have_one_meaning_per_name_and_code() -> None:
    """No LOINC code and no name means two values, and every id that a table uses exists."""
    codes = [code for concept in CONCEPTS for code in concept.loinc]
    assert len(codes) == len(set(codes)) == len(BY_LOINC)
    words = [word for concept in CONCEPTS for word in concept.words]
    assert sorted(word for word in set(words) if words.count(word) > 1) == []
    members = {member for group in GROUPS for member in group.members}
    shown = {c for need in BY_PROTOCOL.values() for c in (*need.show, *need.must)}
    assert (members | shown | set(FOR_DOSE) | {c for row in BY_REPORT.values() for c in row}) <= set(BY_ID)
    assert set(BY_PROTOCOL) <= set(Library.load().ids())


def test_wording_both_languages_have_the_same_places() -> None:
    """Every text exists in both languages, with the same braces, and none is empty."""
    for key, (english, portuguese) in TEXTS.items():
        assert english, key
        assert portuguese, key
        assert sorted(re.findall(r"\{(\w+)\}", english)) == sorted(re.findall(r"\{(\w+)\}", portuguese)), key


def test_wording_has_no_certainty_and_no_reassurance() -> None:
    """The server's own words never call anything normal, certain or fine."""
    banned = re.compile(
        r"\b(normal|certain(ly)?|definite(ly)?|no need to worry|don't worry|fine|safe|healthy|certeza|seguro|saudável|não se preocupe)\b",
        re.IGNORECASE,
    )
    assert [key for key, pair in TEXTS.items() if any(banned.search(text) for text in pair)] == []


def test_say_unknown_key_or_missing_value_fails() -> None:
    """A misspelt key or a forgotten value is an error in development, not half a sentence in production."""
    with pytest.raises(KeyError):
        say("no.such.text", "en")
    with pytest.raises(KeyError):
        say("missing.value", "en", wrong="x")
