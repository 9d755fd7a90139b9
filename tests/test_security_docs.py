"""SECURITY.md, the threat model and the hazards name only what is there: tests, files, functions, commands, targets."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.test_docs import PAGES as OTHERS
from tests.test_docs import anchors, code, commands_of, help_of, options_in, table

ROOT = Path(__file__).resolve().parent.parent
THREATS = "docs/threat-model.md"
HAZARDS = "docs/hazards.md"
PAGES = {name: (ROOT / name).read_text("utf-8") for name in ("SECURITY.md", THREATS, HAZARDS)}
#: What a page may name by its path.
TOPS = "chatd|context|protocols|clients|deploy|scripts|requirements|tests|docs|loadtest"
LIKELIHOODS = ("Very high", "High", "Medium", "Low", "Very low")


@cache
def defined(path: Path) -> frozenset[str]:
    """Functions and classes of a file, methods as ``Class.method`` too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return frozenset(found)


def named_tests(text: str) -> list[tuple[str, str]]:
    """File and name of each ``file::test`` in a text."""
    return re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)


def chosen(path: Path, expression: str) -> set[str]:
    """The tests of a file that ``-k "A or B"`` takes."""
    words = expression.split(" or ")
    return {name for name in defined(path) if name.startswith("test_") and any(word in name for word in words)}


def sections(page: str) -> dict[str, str]:
    """Title of each section of a page to its text."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", PAGES)
def test_security_pages_name_tests_that_exist(name: str) -> None:
    """Each ``file::test`` is a function of that file, and no test is named in another form."""
    told = named_tests(PAGES[name])
    for file, test in told:
        assert (ROOT / file).is_file(), file
        assert test in defined(ROOT / file), f"{file}::{test}"
    loose = [word for word in code(PAGES[name]) if "::" in word and word != "file::test"]
    assert len(loose) == len(told)


@pytest.mark.parametrize("name", PAGES)
def test_security_pages_name_files_and_functions_that_exist(name: str) -> None:
    """Each path is there; a name that follows a file's path in the same brackets is defined in that file."""
    for path in re.findall(rf"(?<![\w./-])((?:{TOPS})/[\w./@-]+)", PAGES[name]):
        assert (ROOT / path.rstrip(".")).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", PAGES[name]):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
    for path, what in re.findall(r"`([\w./]+\.py)`, `([A-Za-z_][\w.]*)`", PAGES[name]):
        assert what in defined(ROOT / path), (path, what)


def test_evidence_chooses_tests() -> None:
    """Each pytest command of the evidence takes files that are there, and its ``-k`` takes some tests of the last."""
    commands = [word for word in code(PAGES["SECURITY.md"]) if word.startswith(".venv/bin/pytest ")]
    assert len(commands) >= 10
    for command in commands:
        files = re.findall(r"tests/[\w/]+\.py", command)
        assert files, command
        for file in files:
            assert any(name.startswith("test_") for name in defined(ROOT / file)), file
        for quoted, bare in re.findall(r'-k (?:"([^"]+)"|(\w+))', command):
            assert chosen(ROOT / files[-1], quoted or bare), command


@pytest.mark.parametrize("name", PAGES)
def test_security_pages_name_commands_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each chatd command answers ``--help`` and has the options beside it; each make target is there."""
    there = set(commands_of(capsys))
    for usage in code(PAGES[name]):
        if call := re.match(r"chatd ([a-z].*)", usage):
            words = re.findall(r"[a-z][a-z0-9]*", re.split(r" [^a-z]|$", call[1])[0])
            known = next((tuple(words[:count]) for count in (2, 1) if tuple(words[:count]) in there), None)
            known = known or next((each for each in there if each[0] == words[0] and len(words) == 1), None)
            assert known is not None, usage
            if len(words) >= len(known):
                assert options_in(call[1]) <= options_in(help_of(capsys, *known)), usage
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", PAGES[name])) <= targets


@pytest.mark.parametrize("name", PAGES)
def test_security_pages_links_resolve(name: str) -> None:
    """Each relative link leads to a file of the repository, and its anchor to a heading there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.resolve().is_relative_to(ROOT), target
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target


def test_security_pages_are_linked() -> None:
    """The index leads to all three, and they lead to each other."""
    assert {"(threat-model.md)", "(hazards.md)", "(../SECURITY.md)"} <= set(
        re.findall(r"\([\w./-]+\.md\)", OTHERS["docs/index.md"])
    )
    assert "(docs/threat-model.md)" in PAGES["SECURITY.md"]
    assert "(hazards.md)" in PAGES[THREATS]
    assert "(threat-model.md)" in PAGES[HAZARDS]


def test_each_threat_has_a_control_and_a_test() -> None:
    """Each row has a number of its own in order, says what stops it, and names a test that is there."""
    rows = table(PAGES[THREATS], "tries", "stopped by", "shown by", "stays open")
    assert len(rows) >= 40
    numbers: dict[str, int] = {}
    for row in rows:
        found = re.match(r"([A-Z])(\d+) \S", row[0])
        assert found is not None, row[0]
        numbers[found[1]] = numbers.get(found[1], 0) + 1
        assert int(found[2]) == numbers[found[1]], row[0]
        assert row[1], row[0]
        assert named_tests(row[2]), row[0]


def test_each_hazard_is_rated_by_the_matrix() -> None:
    """Each row's numbers are those of the matrix, and no control is said to make a hazard likelier."""
    page = PAGES[HAZARDS]
    severities = ("Minor", "Significant", "Considerable", "Major", "Catastrophic")
    matrix = {
        (likelihood, severity): cell
        for likelihood, *cells in table(page, "likelihood", *severities)
        for severity, cell in zip(severities, cells, strict=True)
    }
    assert {likelihood for likelihood, _ in matrix} == set(LIKELIHOODS)
    for number, (identity, _, severity, before, after) in enumerate(table(page, "id", "hazard"), start=1):
        assert identity == f"H{number}"
        rated = [cell.rpartition(", ")[::2] for cell in (before, after)]
        for likelihood, rating in rated:
            assert rating == matrix[likelihood, severity], identity
        assert LIKELIHOODS.index(rated[1][0]) >= LIKELIHOODS.index(rated[0][0]), identity
        assert rated[1][0] != "Very low", "nothing has shown that yet"


def test_each_hazard_has_cause_control_test_and_what_stays() -> None:
    """Each row of the log has its section of the same name, with all four parts."""
    page = PAGES[HAZARDS]
    log = {f"{row[0]} {row[1]}".casefold() for row in table(page, "id", "hazard")}
    told = {title.casefold(): text for title, text in sections(page).items() if re.match(r"H\d+ ", title)}
    assert set(told) == log
    for title, text in told.items():
        parts = re.split(r"^\*\*(\w+)\*\*: ", text, flags=re.MULTILINE)
        assert parts[1::2] == ["Cause", "Control", "Test", "Stays"], title
        assert re.search(rf"`(?:{TOPS})/", parts[4]), title
        assert len(named_tests(parts[6])) >= 2, title
        assert len(parts[8].strip()) > 10, title
