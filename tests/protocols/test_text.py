"""Characters and times: what passes, what is refused, and what a time means."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.text import LINE_BREAKS, REFUSED, parse_time, refused


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-15T07:45:20Z", utc(2026, 1, 15, 7, 45, 20)),
        ("2026-01-15T07:45:20.114Z", utc(2026, 1, 15, 7, 45, 20, 114_000)),
        ("2026-01-15T07:45:20.1234567Z", utc(2026, 1, 15, 7, 45, 20, 123_456)),
        ("2026-01-15T07:45:20+01:00", utc(2026, 1, 15, 6, 45, 20)),
        ("2026-01-15T23:45:20-03:30", utc(2026, 1, 16, 3, 15, 20)),
        ("2026-01-15 07:45:20-00:00", utc(2026, 1, 15, 7, 45, 20)),
        ("2016-12-31T23:59:60Z", utc(2016, 12, 31, 23, 59, 59)),
        ("2000-01-01T00:00:00Z", utc(2000, 1, 1)),
        ("2100-12-31T23:59:59Z", utc(2100, 12, 31, 23, 59, 59)),
        ("1999-12-31T23:59:59Z", None),
        ("2101-01-01T00:00:00Z", None),
        ("2026-01-15T07:45:61Z", None),
        ("2026-01-15T07:45Z", None),
        ("2026-01-15", None),
        ("2026-01-15T07:45:20", None),
        ("2026-01-15T07:45:20 +0000", None),
        ("2026-01-15T07:45:20+24:00", None),
        ("2026-01-15T07:45:20+01:60", None),
        ("2025-02-29T00:00:00Z", None),
    ],
)
def test_parse_time(text: str, moment: datetime | None) -> None:
    """A time is the moment it names, in UTC, or none."""
    assert parse_time(text) == moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-01-15T07:45:20Z", utc(2024, 1, 15, 7, 45, 20)),
        ("2024-01-15T07:45:20", utc(2024, 1, 15, 7, 45, 20)),
        ("2024-01-15T07:45:20.123456", utc(2024, 1, 15, 7, 45, 20, 123_456)),
        ("2024-01-15 07:45:20 +0000", utc(2024, 1, 15, 7, 45, 20)),
        ("2024-01-15 07:45:20 -0500", utc(2024, 1, 15, 12, 45, 20)),
        ("9999-01-15T07:45:20", None),
        ("now", None),
    ],
)
def test_parse_time_original(text: str, moment: datetime | None) -> None:
    """Clients of the original design may leave the zone out, or print it as Swift does."""
    assert parse_time(text, original=True) == moment


@given(
    st.datetimes(datetime(2000, 1, 2), datetime(2100, 12, 30)),  # noqa: DTZ001 - the zone comes below
    st.integers(-23 * 60, 23 * 60),
)
def test_parse_time_reads_what_python_writes(moment: datetime, offset_min: int) -> None:
    """Whatever moment is written in whatever zone is the moment that is read."""
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset_min)))
    assert parse_time(aware.isoformat()) == aware


@given(st.characters())
def test_refused_by_category(character: str) -> None:
    """A character is refused for its kind alone: controls, private use, surrogates, directions, noncharacters, tags."""
    code, category = ord(character), unicodedata.category(character)
    is_bad = (
        (category == "Cc" and character not in "\n\t")
        or category in ("Co", "Cs")
        or unicodedata.bidirectional(character) in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
        or code in (0x061C, 0x200E, 0x200F)
        or 0xFDD0 <= code <= 0xFDEF
        or code & 0xFFFE == 0xFFFE
        or 0xE0000 <= code <= 0xE007F
    )
    assert (refused(character, multiline=True) is not None) == is_bad
    assert (refused(f"a{character}b", multiline=True) is not None) == is_bad


@pytest.mark.parametrize(
    "character", [chr(code) for code in (0x00, 0x1B, 0x7F, 0x202E, 0x2069, 0xE000, 0xFFFF, 0x10FFFF)]
)
def test_refused_names_one_rule(character: str) -> None:
    """The answer is a rule of the table and holds nothing of the text."""
    assert refused(f"João {character}", multiline=True) in {rule for rule, _ in REFUSED}


def test_refused_line_breaks() -> None:
    """Newline and tab pass in prose and nowhere else."""
    assert refused("a\n\tb", multiline=True) is None
    assert refused("a\nb", multiline=False) == refused("a\tb", multiline=False) == LINE_BREAKS


def test_refused_tags_outside_flags() -> None:
    """A flag may be made of tags; tags after, before or without one may not."""
    scotland = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
    assert refused(f"{scotland}{scotland} ok", multiline=False) is None
    assert refused(f"{scotland}\U000e0069", multiline=False) is not None
    assert refused(scotland[1:], multiline=False) is not None
