"""The canary campaign's own rules: what it plants can be told apart, and it fails where it should."""

from __future__ import annotations

import random
import re

from protocols.frames import Id
from tests.faults.canary import KINDS, Finding, Marks, Result, is_good, marks_id, windows
from tests.faults.canary_search import Searcher


def test_words_of_each_kind_are_told_apart() -> None:
    """A word is found under its own kind's mark and under no other."""
    marks = Marks(random.Random(3))
    searcher = Searcher(marks.of.values())
    for kind in KINDS:
        hits = searcher.find(f"he said {marks.word(kind)} twice".encode())
        assert {marks.kind_of[hit.text] for hit in hits} == {kind}
    assert marks.word("said") != marks.word("said")


def test_ids_of_the_campaign_are_ids_of_the_protocol() -> None:
    """Else each frame with one would be refused, and nothing would be tried."""
    pattern = Id.__metadata__[0].pattern
    assert re.fullmatch(pattern, marks_id(Marks(random.Random(4))))


def test_a_run_fails_by_a_hit_and_by_what_it_did_not_find() -> None:
    """Silence of a search is no proof."""
    found = {"disk": True, "live memory": True}
    assert is_good(Result(seed=1, engine="scripted", controls=found))
    assert not is_good(Result(seed=1, engine="scripted", controls=found, hits=[Finding("said", "a file", "utf-8")]))
    assert not is_good(Result(seed=1, engine="scripted", controls={**found, "core": False}))
    assert not is_good(Result(seed=1, engine="scripted"))


def test_windows_of_an_answer_are_taken_from_long_lines() -> None:
    """Labels and short lines stand in other texts too."""
    text = "Findings:\n- a line of nonsense that nobody else has written\nshort\n"
    assert windows(text) == {"a line of nonsense that nobo", "sense that nobody else has written"[-28:]}
    assert windows("Findings:\n- short") == set()
