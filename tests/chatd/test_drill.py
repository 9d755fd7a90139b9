"""Drills: who counts, when it is over, what it has come to, and what is written."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd import drill
from chatd.cli import main
from chatd.drill import Seen, figures_of, is_over, quantile, rows_of, shown, status_of
from chatd.raising import Raised
from protocols.frames import Reach

AT = datetime(2026, 1, 15, 7, 45, 20, 114000, tzinfo=UTC)


def raised(*online: str, push: tuple[str, ...] = (), away: tuple[str, ...] = (), is_whole: bool = True) -> Raised:
    reach = Reach(online=online, push=push, unreachable=away, is_whole=is_whole)
    return Raised(alert_id="al-1", alert_seq=7, reach=reach)


def seen(*people: tuple[str, str, int | None, int | None, int | None], state: str = "delivering") -> Seen:
    """People as user, answer, and milliseconds to delivered, displayed, accepted; as the gateway's JSON has them."""

    def at(ms: int | None) -> str | None:
        return None if ms is None else (AT + timedelta(milliseconds=ms)).isoformat()

    rows = [
        {
            "user_id": user_id,
            "answer": answer,
            "delivered_at": at(delivered),
            "displayed_at": at(displayed),
            "accepted_at": at(accepted),
            "step": 0,
        }
        for user_id, answer, delivered, displayed, accepted in people
    ]
    body = {"state": state, "raised_at": AT.isoformat(), "people": rows, "content": "not for drills"}
    return msgspec.json.decode(msgspec.json.encode(body), type=Seen)


def test_rows_tell_who_had_it_when() -> None:
    """Reachable people come first; who has accepted has it; who came later is shown and not counted on."""
    rows = rows_of(
        raised("b", "a", push=("p",), away=("x",)),
        seen(
            ("a", "displayed", 40, 90, None), ("b", "accept", None, None, 1500), ("late", "delivered", 9000, None, None)
        ),
    )
    assert [(row.user_id, row.reach) for row in rows] == [
        ("a", "online"),
        ("b", "online"),
        ("p", "push"),
        ("x", "unreachable"),
        ("late", "other"),
    ]
    assert [(row.delivered_ms, row.displayed_ms, row.accepted_ms) for row in rows] == [
        (40, 90, None),
        (1500, None, 1500),
        (None, None, None),
        (None, None, None),
        (9000, None, None),
    ]
    assert [row.user_id for row in rows_of(raised("a"), None)] == ["a"]


def test_moments_before_the_raise_are_none_of_a_clock_apart() -> None:
    """A second gateway's clock may be some milliseconds behind; nothing is told to come before it was raised."""
    (row,) = rows_of(raised("a"), seen(("a", "delivered", -4, None, None)))
    assert row.delivered_ms == 0


@pytest.mark.parametrize(
    ("people", "state", "over"),
    [
        ([("a", "accept", 1, 2, 3), ("b", "decline", 1, 2, None)], "in_progress", True),
        ([("a", "accept", 1, 2, 3), ("b", "displayed", 1, 2, None)], "in_progress", False),
        ([("a", "accept", 1, None, 3), ("b", "accept", 1, 2, 3)], "in_progress", False),
        ([("a", "addressed", None, None, None)], "stood_down", True),
    ],
)
def test_drill_is_over(people: list[tuple[str, str, int, int, int]], state: str, over: bool) -> None:
    """When somebody has ended it, or all who can be reached have shown it and answered; not before."""
    told = seen(*people, state=state)
    assert is_over(rows_of(raised("a", "b", away=("x",)), told), told) is over


def test_drill_that_reaches_nobody_waits_for_those_who_come() -> None:
    """With nobody to be reached it is not over at once."""
    assert is_over(rows_of(raised(away=("x",)), seen()), seen()) is False


def test_figures_are_of_those_who_could_be_reached() -> None:
    """Missing are those who could be reached and did not get it; the others do not spoil the times."""
    figures = figures_of(
        "cardiology",
        raised("a", "b", push=("p",), away=("x",)),
        seen(("a", "delivered", 40, None, None), ("b", "accept", 60, 80, 900), ("x", "delivered", 30_000, None, None)),
    )
    assert (figures.reachable, figures.delivered, figures.displayed, figures.accepted) == (3, 2, 1, 1)
    assert (figures.delivered_median_ms, figures.delivered_p99_ms) == (40, 60)
    assert (figures.missing, status_of(figures)) == (("p",), drill.SOMEBODY_DID_NOT)


@pytest.mark.parametrize(
    ("alert", "told", "status"),
    [
        (raised("a"), seen(("a", "delivered", 40, None, None)), drill.EVERYBODY),
        (raised("a", away=("x",)), seen(("a", "delivered", 40, None, None)), drill.EVERYBODY),
        (raised("a"), seen(), drill.SOMEBODY_DID_NOT),
        (raised(away=("x",)), seen(), drill.SOMEBODY_DID_NOT),
        (raised("a", is_whole=False), seen(("a", "delivered", 40, None, None)), drill.SOMEBODY_DID_NOT),
    ],
    ids=["all", "one away", "none", "nobody reachable", "reach not known"],
)
def test_status_is_success_only_of_what_was_shown(alert: Raised, told: Seen, status: int) -> None:
    """0 means that everybody who could be reached got it, and that there was somebody."""
    assert status_of(figures_of("cardiology", alert, told)) == status


@given(st.lists(st.integers(0, 10_000), min_size=1).map(sorted), st.floats(0.01, 1.0))
def test_quantile_is_a_value_that_the_share_does_not_exceed(values: list[int], share: float) -> None:
    """The least value that at least ``share`` of them do not exceed."""
    found = quantile(values, round(share, 2))
    assert found in values
    assert sum(value <= (found or 0) for value in values) >= round(share, 2) * len(values) - 1e-6
    smaller = [value for value in values if value < (found or 0)]
    assert not smaller or sum(value <= smaller[-1] for value in values) < round(share, 2) * len(values) + 1e-6


def test_quantile_of_nothing_is_none() -> None:
    """No value, no quantile; times are shown in the unit that fits."""
    assert quantile([], 0.5) is None
    assert [shown(None), shown(999), shown(1000), shown(61_250)] == ["–", "999 ms", "1.0 s", "61.2 s"]


def test_write_names_department_and_moment(tmp_path: Path) -> None:
    """Figures and picture lie side by side, and nothing of the alert's text is in them."""
    told = seen(("a", "accept", 0, 80, 900), ("x", "delivered", 30_000, None, None))
    figures = figures_of("cardiology", raised("a", "b", away=("x",)), told)
    drill._write(figures, tmp_path / "drills")
    folder = tmp_path / "drills"
    assert sorted(path.name for path in folder.iterdir()) == [
        "drill-cardiology-20260115T074520Z.json",
        "drill-cardiology-20260115T074520Z.png",
    ]
    written = (folder / "drill-cardiology-20260115T074520Z.json").read_text()
    assert json.loads(written)["missing"] == ["b"]
    assert "not for drills" not in written
    assert (folder / "drill-cardiology-20260115T074520Z.png").read_bytes()[1:4] == b"PNG"


def test_write_without_matplotlib_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures are written all the same, and one line says what is missing."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    drill._write(figures_of("icu", raised("a"), None), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["drill-icu.json"]
    first, second = capsys.readouterr().err.splitlines()
    assert "matplotlib" in first
    assert second.startswith("wrote drill-icu.json")


def test_first_signal_is_noted_and_the_second_one_counts() -> None:
    """Ctrl-C lets the drill be called off; another one meets the handler that was there before."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with drill._stopping() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stop.is_set(), heard) == (True, [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("wait", ["0", "-1", "601", "nan"])
def test_wait_is_bounded(wait: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A drill ends."""
    assert main(["drill", "--data-dir", str(tmp_path), "icu", "--wait", wait]) == drill.NOT_DRILLED
    assert "--wait" in capsys.readouterr().err


def test_drill_without_a_server_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No ``chatd up`` on the directory: nobody was alerted, and that is said."""
    assert main(["drill", "--data-dir", str(tmp_path), "icu"]) == drill.NOT_DRILLED
    assert "nobody was alerted" in capsys.readouterr().err
