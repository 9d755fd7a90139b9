"""The judge of the escalation campaign sees every broken promise, and a kept one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.chat_client import Broken
from tests.faults.escalation import CHAIN, GAPS, Heard, Measured, Row, Told, judge

T0 = datetime(2026, 1, 15, 7, 45, tzinfo=UTC)
#: When each event of a chain comes if none is late; it is accepted after 27 s.
AT_S = (0.0, 5.0, 8.0, 13.0, 16.0, 21.0, 24.0, 27.0, 32.0, 90.0)


def a_log() -> list[Row]:
    """Two alerts, one half a second after the other, with receipts between."""
    rows = [(at, "al-1", event) for at, event in zip(AT_S, CHAIN, strict=True)]
    rows += [(at + 0.5, "al-2", event) for at, event in zip(AT_S, CHAIN, strict=True)]
    rows.append((0.6, "al-2", "receipts"))
    return [
        (seq, alert_id, event, T0 + timedelta(seconds=at)) for seq, (at, alert_id, event) in enumerate(sorted(rows), 1)
    ]


def judged(log: list[Row], *, heard: list[Row] | None = None, clock_s: float = 0.0) -> Measured:
    """``clock_s``: by how much the second alert was raised and accepted later than the ledger's clock says."""
    measured = Measured()
    told = {"al-1": Told(raised=0.0, accepted=27.0), "al-2": Told(raised=0.5 + clock_s, accepted=27.5 + clock_s)}
    phone = [
        Heard(seq, alert_id, event, (at - T0).total_seconds() + 0.01, {})
        for seq, alert_id, event, at in (log if heard is None else heard)
    ]
    judge(log, [phone, phone], told, [T0 + timedelta(seconds=6)], measured)
    return measured


def test_kept_promises_are_counted() -> None:
    """Both alerts, the kill between their first repetition and step, and nothing late."""
    measured = judged(a_log())
    assert (measured.alerts, measured.kills) == (2, 1)
    assert measured.gaps == {GAPS[1]: 2}
    assert max(max(late) for late in measured.late_s.values()) == 0


def numbered(rows: list[Row]) -> list[Row]:
    return [(seq, *row[1:]) for seq, row in enumerate(rows, 1)]


def moved(rows: list[Row], event: str, seconds: float) -> list[Row]:
    """The first such event of the first alert at another time."""
    at = next(n for n, row in enumerate(rows) if row[1:3] == ("al-1", event))
    seq, alert_id, _, moment = rows[at]
    return [*rows[:at], (seq, alert_id, event, moment + timedelta(seconds=seconds)), *rows[at + 1 :]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: numbered([row for row in rows if row[1:3] != ("al-1", "unanswered")]),
        lambda rows: numbered([*rows, rows[-1]]),
        lambda rows: [*rows[:4], *rows[5:]],
        lambda rows: numbered([row for row in rows if row[1] != "al-1"]),
        lambda rows: moved(rows, "repeated", -0.1),
        lambda rows: moved(rows, "escalated", -0.1),
        lambda rows: moved(rows, "unanswered", -0.1),
        lambda rows: moved(rows, "reminded", -0.1),
        lambda rows: moved(rows, "expired", -0.1),
    ],
    ids=[
        "left out",
        "twice",
        "hole",
        "lost",
        *(f"early {event}" for event in ("ring", "step", "end", "ask", "expiry")),
    ],
)
def test_ledger_that_broke_a_promise_is_seen(spoil: Callable[[list[Row]], list[Row]]) -> None:
    """A step left out, twice or early, a hole, a lost alert."""
    with pytest.raises(Broken):
        judged(spoil(a_log()))


def test_phone_that_heard_something_else_is_seen() -> None:
    """A phone that lacks the last event, though the ledger has it."""
    with pytest.raises(Broken, match="a phone"):
        judged(a_log(), heard=a_log()[:-1])


def test_steps_early_by_a_clock_that_nobody_has_set_are_seen() -> None:
    """The ledger's moments agree with each other, but in truth the alert was raised later."""
    judged(a_log(), clock_s=0.3)
    with pytest.raises(Broken, match="by the test's clock"):
        judged(a_log(), clock_s=1.0)
