"""docs/limits.md says what the code does: each row's number is the one that stands in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chatd.gateway import auth, seats
from chatd.gateway.limits import BURST_S, LineLimits
from chatd.settings import Settings
from protocols.codec import CodecLimits
from protocols.session import SessionRules

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "limits.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and "`" in line
]


def number_in_code(where: str) -> float | None:
    """The default behind a row's third column; None for one that is no number."""
    settings, name = Settings(), where.strip("`")
    if name.startswith("CHATD_"):
        return float(getattr(settings, name.removeprefix("CHATD_").lower()))
    if name == "auth.MAX_TOKEN_BYTES":
        return auth.MAX_TOKEN_BYTES
    if name == "seats.BOARDS":
        return seats.BOARDS
    owner, _, field = name.partition(".")
    found = {"LineLimits": LineLimits(), "CodecLimits": CodecLimits()}.get(owner)
    return None if found is None else float(getattr(found, field))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_limit_is_the_codes(row: list[str]) -> None:
    """The first number of a row is the default that the row names."""
    _, told, where, beyond = row
    expected = number_in_code(where)
    assert beyond
    if expected is None:
        assert (told, where) == ("none", "`chatd.serve`")
        return
    first = re.match(r"[\d,]+", told)
    assert first is not None
    assert float(first[0].replace(",", "")) == expected


def test_the_table_is_whole() -> None:
    """Each bound of a line has its row, bursts are what the pace allows, and the codec's and session's are the same."""
    named = {row[2].strip("`") for row in ROWS}
    assert {f"LineLimits.{name}" for name in LineLimits.__struct_fields__ if name != "frames_per_s"} <= named
    assert LineLimits().frames_per_s == Settings().frames_per_second
    assert BURST_S == 2.0
    assert CodecLimits().max_bytes == Settings().max_frame_bytes
    assert CodecLimits().max_content_chars == Settings().max_content_chars
    assert SessionRules().max_strikes == Settings().max_strikes
    assert SessionRules().strike_window_ms == 60_000
