"""A page that says which test holds a promise names one that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TESTS = {path: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
NAMES = {path.stem for path in TESTS} | {
    name for text in TESTS.values() for name in re.findall(r"def (test_\w+)", text)
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_are_there(page: Path) -> None:
    """Each test's name, and each file of tests, that stands on the page."""
    told = page.read_text("utf-8")
    assert set(re.findall(r"\btest_\w+", told)) <= NAMES
    for path in re.findall(r"`(tests/[\w/]+\.py)", told):
        assert (ROOT / path).is_file(), path
