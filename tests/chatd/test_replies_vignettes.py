"""Each vignette of the test data through the whole path: record, triage, protocols, checks, answer, quick actions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from chatd.actions.catalogue import catalogue_of
from chatd.replies.answer import respond
from chatd.replies.facts import FactsResult, build
from context.library.library import Library
from protocols.frames import AiResponse
from tests.clinical_data import clinical_path
from tests.vignettes import NOW, layers_of, patient_of, read_vignettes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def answered() -> list[tuple[dict[str, Any], FactsResult, AiResponse]]:
    """Every vignette with its facts and its answer."""
    library = Library.load()
    rows = []
    for row in read_vignettes(clinical_path("vignettes", "acute_vignettes.jsonl")):
        layers = layers_of(patient_of(row), row["department"])
        facts = build(layers, row["question"], library=library, now=NOW, lang="en")
        rows.append((row, facts, respond(facts, layers, response_id=f"resp_{row['id']}", now=NOW)))
    return rows


Answered = list[tuple[dict[str, Any], FactsResult, AiResponse]]


def _ids(answer: AiResponse) -> list[str]:
    return [action.catalog_id for action in answer.content.structured_data.actions]


def test_vignettes_table_is_printed(answered: Answered) -> None:
    """The table of all vignettes goes to out/vignettes.txt and to the output."""
    lines = [f"{'id':4} {'department':11} {'NEWS2':16} {'flags':6} {'protocols':34} quick actions"]
    for row, facts, answer in answered:
        news2 = next((f"{score.value} {score.band}" for score in facts.scores), "-")
        protocols = " ".join(dict.fromkeys(quote.id for quote in facts.protocols)) or "-"
        missing = sorted(set(row["expected"]["quick_actions"]) - set(_ids(answer)))
        note = f"  (not offered: {' '.join(missing)})" if missing else ""
        flags = str(len(facts.red_flags))
        start = f"{row['id']:4} {row['department']:11} {news2:16} {flags:6} {protocols:34}"
        lines.append(f"{start} {' '.join(_ids(answer)) or '-'}{note}")
    table = "\n".join(lines) + "\n"
    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    (out / "vignettes.txt").write_text(table, encoding="utf-8")
    print("\n" + table)
    assert len(lines) == len(answered) + 1


def test_vignettes_news2_is_exact(answered: Answered) -> None:
    """Score and band equal the expected ones, whatever was asked."""
    wrong = {}
    for row, facts, _ in answered:
        expected = (row["expected"]["news2"], row["expected"]["news2_risk"])
        if [(s.value, s.band) for s in facts.scores if s.name == "NEWS2"] != [expected]:
            wrong[row["id"]] = [(s.value, s.band) for s in facts.scores]
    assert wrong == {}


def test_vignettes_red_flags_exactly_where_expected(answered: Answered) -> None:
    """A red flag is raised where escalation is expected, and nowhere else."""
    wrong = [r["id"] for r, facts, _ in answered if bool(facts.red_flags) != r["expected"].get("escalate", False)]
    assert wrong == []


def test_vignettes_expected_protocols_are_quoted(answered: Answered) -> None:
    """Every expected protocol is among the quoted ones, and none where none is expected."""
    for row, facts, _ in answered:
        found = {quote.id for quote in facts.protocols}
        assert set(row["expected"]["protocols"]) <= found, row["id"]
        assert bool(found) == bool(row["expected"]["protocols"]), row["id"]


def test_vignettes_must_mention_stands_in_the_answer(answered: Answered) -> None:
    """The words that a good answer needs stand in the answer or in the quoted protocols."""
    for row, facts, answer in answered:
        told = (answer.content.text + "\n".join(quote.quote for quote in facts.protocols)).lower()
        assert [w for w in row["expected"].get("must_mention", []) if w.lower() not in told] == [], row["id"]


def test_vignettes_must_not_stands_in_no_recommendation(answered: Answered) -> None:
    """What must not be said is in no recommendation, and in no check beyond naming the recorded allergy itself."""
    for row, facts, answer in answered:
        told = " ".join(answer.content.structured_data.recommendations)
        told += " ".join(re.sub(r"^\w+: .*?;", "", check.text) for check in facts.checks)
        assert [w for w in row["expected"].get("must_not", []) if w.lower() in told.lower()] == [], row["id"]


def test_vignettes_blocked_drug_is_said_and_not_recommended(answered: Answered) -> None:
    """Where a drug is blocked a critical check says so first, and no recommendation names its class."""
    blocked = [(row, facts, answer) for row, facts, answer in answered if row["expected"].get("block")]
    assert blocked
    for _, facts, answer in blocked:
        assert facts.checks[0].level == "critical"
        data = answer.content.structured_data
        assert not re.search(r"heparin|enoxaparin", " ".join(data.recommendations), re.IGNORECASE)
        assert facts.checks[0].text[:40] in data.headline


def test_vignettes_quick_actions_come_from_the_catalogue(answered: Answered) -> None:
    """Every action is of the department's catalogue, and 9 of 10 expected ones are offered, all that it has."""
    expected = offered = 0
    for row, _, answer in answered:
        catalogue = {action.id for action in catalogue_of(row["department"])}
        assert set(_ids(answer)) <= catalogue
        assert len(_ids(answer)) <= 5
        wanted = set(row["expected"]["quick_actions"])
        expected += len(wanted)
        offered += len(wanted & set(_ids(answer)))
        assert (wanted & catalogue) <= set(_ids(answer)), row["id"]
        if not wanted:
            assert _ids(answer) == []
    assert offered >= 0.9 * expected


def test_vignettes_interactions_and_false_alerts(answered: Answered) -> None:
    """Expected interactions are told; furosemide with a sulfonamide allergy raises none."""
    for row, facts, _ in answered:
        told = [check.id for check in facts.checks if check.id.startswith("interaction")]
        if "ddi" in row["expected"]:
            assert bool(told) == bool(row["expected"]["ddi"]), row["id"]
        if any("furosemide" in words for words in row["expected"].get("must_not", [])):
            assert not any("furosemide" in check.text and check.id.startswith("allergy") for check in facts.checks)


def test_vignettes_out_of_scope_has_nothing_of_the_record(answered: Answered) -> None:
    """A question about the cafeteria gets a friendly sentence: no facts, no protocols, no actions."""
    for row, facts, answer in answered:
        if row["expected"].get("out_of_scope"):
            assert answer.response_type == "out_of_scope"
            assert (facts.facts, facts.protocols, facts.checks, facts.missing) == ((), (), (), ())
            assert row["patient"]["name"] not in answer.content.text
