"""The sections: a grammar that bounds them, a reader that takes anything, and the same lines while they stream."""

from __future__ import annotations

import itertools
import json
import random
import re
import unicodedata
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.actions import catalogue
from chatd.inference import tiny
from chatd.inference.sections import (
    FORMAT,
    LABELS,
    MAX_ACTIONS,
    MAX_CHARS,
    MAX_LINES,
    SECTIONS,
    SectionReader,
    Sections,
    grammar,
    parse,
    render,
)
from context.compose import RULES

ACTIONS = ("order_ct", "order_ct_head", "order_lactate", "notify_icu", "activate_stemi", "call_resus_team")
WHOLE = """\
Headline: Potassium 6.4 mmol/L, rising
Findings:
- Potassium 6.4 mmol/L at 08:10 [Observation/1]
- ECG: peaked T waves
Interpretation:
- Hyperkalaemia with ECG changes
Recommendations:
- Repeat potassium now
Missing:
- none
Actions: order_lactate, notify_icu
"""
READ = Sections(
    headline="Potassium 6.4 mmol/L, rising",
    findings=("Potassium 6.4 mmol/L at 08:10 [Observation/1]", "ECG: peaked T waves"),
    interpretation=("Hyperkalaemia with ECG changes",),
    recommendations=("Repeat potassium now",),
    missing=(),
    actions=("order_lactate", "notify_icu"),
    is_complete=True,
)

# What a model without a grammar may write: labels in many forms between lines of all kinds.
_LINES = st.one_of(
    st.sampled_from(
        [
            *LABELS.values(),
            *(label.lower() for label in LABELS.values()),
            *(
                "**Findings:**",
                "## Missing",
                "* Missing: the CT",
                "Achados:",
                "EM FALTA:",
                "Recommendations",
                "Findings :",
            ),
            *(
                "Headline: A",
                "Headline:",
                "headline: B",
                "Missing: none",
                "- none",
                "- None.",
                "none",
                "nenhum",
                "-",
                "- ",
                "*",
            ),
            *("Actions: none", "Actions: order_ct", "Actions: order_ct_head, order_ct_head, x", "- order_lactate"),
            *(
                "- Findings: x",
                "- - x",
                "• dot",
                "1. Give 2 mg",
                "-5 mmol/L",
                "Find",
                "Findings are: two",
                "non",
                "  - in",
            ),
            *(
                "- " + "word " * 80,
                "- " + "x" * 300,
                "Headline: " + "12 mg " * 40,
                "- a\u202eb",
                "- a\u2028b",
                "-\u00a0c",
            ),
        ]
    ),
    st.text(max_size=40),
    st.text(alphabet="-*#_: FindingsMoeActAH\u00a0\u200b.", max_size=30),
    st.integers(190, 250).map(lambda chars: "- " + "ab cde" * (chars // 6) + "z" * (chars % 6)),
)
_TEXTS = st.one_of(st.text(), st.lists(_LINES, max_size=24).map("\n".join), st.just(WHOLE))


def _stream(text: str, cuts: list[int]) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """Feeds the text in pieces; per section the lines, and all that was given."""
    reader = SectionReader(ACTIONS)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    given: list[tuple[str, str]] = []
    for first, last in itertools.pairwise(places):
        given += reader.feed(text[first:last])
    texts: dict[str, str] = {}
    for section, piece in given:
        texts[section] = texts.get(section, "") + piece
    return {section: whole.split("\n") for section, whole in texts.items()}, given


def _lines(sections: Sections) -> dict[str, list[str]]:
    lines = {name: list(getattr(sections, name)) for name in MAX_LINES} | {"headline": [sections.headline]}
    return {name: each for name, each in lines.items() if each != [""] and each}


# --- reading ---


def test_parse_reads_what_the_format_asks_for() -> None:
    """Every section in its place, "- none" as nothing."""
    assert parse(WHOLE, ACTIONS) == READ
    assert render(READ) == WHOLE


@given(_TEXTS, st.booleans())
def test_parse_gives_a_valid_structure_for_any_text(text: str, has_stopped: bool) -> None:
    """Bounds hold, no unseen character and no blank line comes through, ids are the catalogue's, each once."""
    sections = parse(text, ACTIONS, has_stopped=has_stopped)
    assert len(sections.headline) <= MAX_CHARS["headline"]
    for name, most in MAX_LINES.items():
        lines = getattr(sections, name)
        assert len(lines) <= most
        for line in lines:
            assert 0 < len(line) <= MAX_CHARS[name]
            assert line == line.strip()
            assert not {unicodedata.category(char) for char in line} & {"Cc", "Cs", "Co", "Zl", "Zp"}
            assert not re.search("[\u200b-\u200f\u202a-\u202e\u2066-\u2069]", line)
    assert len(sections.actions) == len(set(sections.actions)) <= MAX_ACTIONS
    assert set(sections.actions) <= set(ACTIONS)


@given(_TEXTS, st.booleans())
def test_parse_of_the_rendered_sections_gives_them_again(text: str, has_stopped: bool) -> None:
    """An answer that is stored as text and read again is the same answer."""
    sections = parse(text, ACTIONS, has_stopped=has_stopped)
    again = parse(render(sections), ACTIONS)
    assert again == msgspec.structs.replace(sections, is_complete=bool(sections.headline))


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("**Findings:** two things\n", "findings", ("two things",)),
        ("## Recommendations\n* Repeat it\n", "recommendations", ("Repeat it",)),
        ("ACHADOS:\n- um\nEm falta: TC\n", "missing", ("TC",)),
        ("Findings:\n- a\nMissing:\n- b\nFindings:\n- c\n", "findings", ("a", "c")),
        ("No label at all\n", "findings", ("No label at all",)),
        ("Headline: one\nHeadline: two\n", "findings", ("two",)),
        ("Missing:\r\n- a\r\n\r\n- b\r\n", "missing", ("a", "b")),
        ("Findings:\n- Actions: order_ct\n", "findings", ("Actions: order_ct",)),
        ("Findings:\n- a\u2028Actions: order_ct\n", "findings", ("a Actions: order_ct",)),
        ("Findings:\n- dose 1\u202e2 mg\n", "findings", ("dose 1 2 mg",)),
        ("Findings:\n-5 mmol/L base excess\n", "findings", ("-5 mmol/L base excess",)),
        ("Findings:\n2.5 mg given\n", "findings", ("2.5 mg given",)),
        ("Missing:\n- none\n- CT\n", "missing", ("CT",)),
        ("actions:\n- `order_ct`\n- [notify_icu]; x, order_ct\n", "actions", ("order_ct", "notify_icu")),
        ("Actions: " + ", ".join(ACTIONS) + "\n", "actions", ACTIONS[:5]),
    ],
)
def test_parse_tolerates(text: str, name: str, expected: tuple[str, ...]) -> None:
    """What models write when no grammar holds them; digits and signs are never taken for list marks."""
    sections = parse(text, ACTIONS)
    assert getattr(sections, name) == expected
    assert not sections.is_complete


def test_text_cut_anywhere_before_the_actions_is_incomplete_and_ends_with_a_whole_line() -> None:
    """Half a sentence or half a number is not shown: what is left is a beginning of the whole answer's lines."""
    whole = _lines(READ)
    for end in range(WHOLE.index("Actions:") + len("Actions: ")):
        sections = parse(WHOLE[:end], ACTIONS)
        assert not sections.is_complete
        for name, lines in _lines(sections).items():
            assert lines == whole[name][: len(lines)]


def test_actions_cut_inside_an_id_give_no_id_that_was_not_written() -> None:
    """`order_ct` may be the beginning of `order_ct_head`; with a line end, or the model's own end, it is not."""
    text = WHOLE.replace("order_lactate, notify_icu\n", "order_lactate, order_ct")
    assert parse(text, ACTIONS).actions == ("order_lactate",)
    assert not parse(text, ACTIONS).is_complete
    for whole in (parse(text + "\n", ACTIONS), parse(text, ACTIONS, has_stopped=True)):
        assert whole.actions == ("order_lactate", "order_ct")
        assert whole.is_complete
    cut = parse(text[:-3], ACTIONS)
    assert (cut.actions, cut.is_complete) == (("order_lactate",), False)


def test_last_line_of_a_model_that_stopped_is_whole() -> None:
    """A server without a grammar may end without a line end."""
    text = "Headline: a\nFindings:\n- give 20 mg"
    assert parse(text, ACTIONS).findings == ()
    assert parse(text, ACTIONS, has_stopped=True).findings == ("give 20 mg",)


def test_line_at_its_bound_is_cut_before_its_last_word() -> None:
    """The grammar's bound may fall into a number; 5 of 50 would be another dose."""
    line = ("potassium " * 30)[: MAX_CHARS["findings"] - 2] + "50"
    (cut,) = parse(f"Findings:\n- {line}\n", ()).findings
    assert cut.endswith("potassium …")
    assert len(cut) < MAX_CHARS["findings"]
    shorter = line[:-1]
    assert parse(f"Findings:\n- {shorter}\n", ()).findings == (shorter,)


# --- streaming ---


@given(_TEXTS, st.lists(st.integers(0, 10_000), max_size=12))
def test_reader_gives_the_lines_that_parse_reads(text: str, cuts: list[int]) -> None:
    """However the text is split; only a last line without an end may be there as a beginning."""
    ended = _LINE_ENDED.sub("", text) + "\n"
    assert _stream(ended, cuts)[0] == _lines(parse(ended, ACTIONS))
    streamed = _stream(text, cuts)[0]
    read, least = _lines(parse(text, ACTIONS, has_stopped=True)), _lines(parse(text, ACTIONS))
    for name, lines in streamed.items():
        assert lines[:-1] == read[name][: len(lines) - 1]
        assert read[name][len(lines) - 1].startswith(lines[-1])
    for name, lines in least.items():
        assert streamed[name][: len(lines)] == lines


_LINE_ENDED = re.compile("[\n\r]+\\Z")


@given(_TEXTS)
def test_reader_gives_the_same_pieces_joined_for_every_split(text: str) -> None:
    """Character by character or at once: what the doctor has seen in the end is the same."""
    assert _stream(text, list(range(len(text))))[0] == _stream(text, [])[0]


def test_reader_never_gives_a_label_or_an_action() -> None:
    """Neither half a label nor an id flashes up while the text arrives character by character."""
    lines, given_pieces = _stream(WHOLE, list(range(len(WHOLE))))
    assert lines == _lines(READ)
    assert {section for section, _ in given_pieces} == {"headline", "findings", "interpretation", "recommendations"}
    assert len(given_pieces) > 100


def test_reader_holds_back_no_more_than_the_beginning_of_a_line() -> None:
    """The doctor reads a line as it is written, not when it is done."""
    reader = SectionReader(ACTIONS)
    assert reader.feed("Headline: Pot") == [("headline", "Pot")]
    assert reader.feed("assium") == [("headline", "assium")]
    assert reader.feed("\nFindings:\n- n") == []
    assert reader.feed("ot given\n- Sec") == [("findings", "not given\nSec")]
    assert reader.feed("ond\nMissing:\n- none\nActions: order_ct\n") == [("findings", "ond")]


# --- the grammar ---


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> object:
    llguidance = pytest.importorskip("llguidance")
    folder = tmp_path_factory.mktemp("sections") / "tiny"
    tiny.make(folder)
    return llguidance.LLTokenizer((folder / "tokenizer.json").read_text("utf-8"), eos_token=[1, 106])


def _walk(vocabulary: object, text: str, seed: int) -> tuple[str, set[int]]:
    """A random walk through the grammar: the text, and every token that was allowed on the way."""
    import llguidance
    import numpy as np
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    choose = random.Random(seed)
    assert isinstance(vocabulary, llguidance.LLTokenizer)
    matcher = llguidance.LLMatcher(vocabulary, text)
    assert matcher.get_error() == ""
    mask = allocate_token_bitmask(1, vocabulary.vocab_size)
    tokens: list[int] = []
    allowed_once: set[int] = set()
    while not matcher.is_stopped():
        fill_next_token_bitmask(matcher, mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        allowed_once.update(allowed.tolist())
        token = int(choose.choice(allowed))
        assert matcher.consume_token(token)
        tokens.append(token)
    return vocabulary.decode_str([token for token in tokens if token not in (1, 106)]), allowed_once


def test_everything_the_grammar_accepts_is_a_complete_answer(vocabulary: object) -> None:
    """30 random walks over two departments' catalogues: valid structure, catalogue ids only, no special token."""
    departments = [("order_ct", "order_ct_head"), ()]
    departments += [tuple(ids) for ids in json.loads(_CATALOGUE.read_text("utf-8"))["departments"].values()]
    with_actions = 0
    for seed in range(30):
        actions = departments[seed % len(departments)]
        text, allowed = _walk(vocabulary, grammar(actions), seed)
        sections = parse(text, actions)
        assert sections.is_complete, text
        assert parse(render(sections), actions) == sections
        assert set(sections.actions) <= set(actions)
        with_actions += bool(sections.actions)
        # Turn marks, <bos>, <pad>, image and thinking tokens are never among the choices.
        assert not allowed & ({0, 2, 3, 4, 105} | set(range(6, 105)) | {1533, 1534, 1535})
        assert {label in text for label in LABELS.values()} == {True}
    assert with_actions > 10


_CATALOGUE = Path(catalogue.__file__).with_name("catalogue.json")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("notify_icu", "made_up"),
        ("Missing:\n- none\n", ""),
        ("- Repeat", "-  Repeat"),
        ("- Repeat potassium now", "- "),
        ("Findings:", "Found:"),
        ("ECG: peaked", "ECG:\x0bpeaked"),
        ("ECG: peaked", "ECG:\x7fpeaked"),
        ("- ECG", "- \u202eECG"),
        ("- ECG", "- \u00a0ECG"),
        ("Potassium 6.4 mmol/L, rising", "P" * 141),
        ("Repeat potassium now", "R" * 241),
        ("- Repeat potassium now\n", "- Repeat\n" * 7),
        ("order_lactate, notify_icu", ", ".join(["notify_icu"] * 6)),
        ("order_lactate, notify_icu", "none, none"),
    ],
)
def test_grammar_refuses(vocabulary: object, old: str, new: str) -> None:
    """Each bound of the format, from a text that is otherwise right."""
    assert old in WHOLE
    assert _is_accepted(vocabulary, WHOLE)
    assert not _is_accepted(vocabulary, WHOLE.replace(old, new))


def _is_accepted(vocabulary: object, text: str) -> bool:
    import llguidance

    assert isinstance(vocabulary, llguidance.LLTokenizer)
    matcher = llguidance.LLMatcher(vocabulary, grammar(ACTIONS))
    tokens = vocabulary.tokenize_str(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def test_grammar_is_one_text_for_equal_ids_and_refuses_what_is_no_id() -> None:
    """Compiled grammars are kept by their text; an id cannot carry grammar of its own."""
    assert grammar(ACTIONS) == grammar(iter(ACTIONS)) == grammar((*ACTIONS, ACTIONS[0]))
    assert grammar(ACTIONS) != grammar(ACTIONS[:2])
    for bad in ('x" | "y', "a b", "", "a\nb", "á"):
        with pytest.raises(ValueError, match="1 action ids"):
            grammar([bad])


# --- the prompt ---


def test_format_and_prompt_name_every_label() -> None:
    """The model is asked for exactly what is read afterwards."""
    assert tuple(LABELS) == SECTIONS
    for label in LABELS.values():
        assert re.search(f"^{label}", FORMAT, re.MULTILINE)
        assert label in RULES
