"""The time of alerts: not set by a wrong clock, put right by a right one."""

from __future__ import annotations

import ctypes
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.clock import MAX_DRIFT, STEP, SteadyClock, is_synchronised

T0 = datetime(2026, 1, 15, 7, 45, tzinfo=UTC)
HOURS = timedelta(hours=2)
#: Who tells the time: a database with a clock of its own, or the machine alone.
OWN = pytest.mark.parametrize("has_own", [True, False], ids=["postgresql", "sqlite"])


class Machine:
    """The true time, a wall clock that is off by ``off``, the ledger's that is off by ``ledger_off``."""

    def __init__(self, off: timedelta = timedelta(), ledger_off: timedelta = timedelta()) -> None:
        self.true, self.ms = T0, 5_000
        self.off, self.ledger_off = off, ledger_off
        self.is_synchronised = False
        self.steady = SteadyClock(self, lambda: self.is_synchronised)

    def now(self) -> datetime:
        return self.true + self.off

    def monotonic_ms(self) -> int:
        return self.ms

    def pass_s(self, seconds: float) -> None:
        self.true += timedelta(seconds=seconds)
        self.ms += round(seconds * 1000)

    def hear(self, *, has_own: bool = True, took_ms: int = 0) -> timedelta:
        said = self.true + self.ledger_off if has_own else None
        self.ms += took_ms
        self.true += timedelta(milliseconds=took_ms)
        return self.steady.hear(said, self.ms - took_ms)

    @property
    def error(self) -> timedelta:
        """By how much the time of alerts is off."""
        return self.steady.now() - self.true


@pytest.mark.parametrize("hours", [2, -2])
def test_gateway_that_starts_with_a_wrong_clock_takes_the_ledgers_time(hours: int) -> None:
    """With PostgreSQL the first reading counts, whatever this machine's clock says; that it is wrong is told."""
    machine = Machine(off=hours * timedelta(hours=1))
    assert machine.hear() == -hours * timedelta(hours=1)
    assert machine.error == timedelta()
    assert machine.steady.is_stepped


@OWN
@pytest.mark.parametrize("hours", [2, -2])
def test_wall_clock_that_is_set_changes_nothing(hours: int, *, has_own: bool) -> None:
    """The time of alerts goes on; it is told until the clock is right again."""
    machine = Machine()
    machine.hear(has_own=has_own)
    machine.off = hours * timedelta(hours=1)
    for _ in range(20):
        machine.pass_s(10)
        assert machine.hear(has_own=has_own) == timedelta()
        assert machine.error == timedelta()
        assert machine.steady.is_stepped
    machine.off = timedelta()
    machine.hear(has_own=has_own)
    assert not machine.steady.is_stepped


@OWN
@pytest.mark.parametrize("hours", [2, -2])
def test_correction_is_adopted_once_a_time_server_keeps_the_clock(hours: int, *, has_own: bool) -> None:
    """All clocks were wrong at the start; put right by hand they are not believed, kept by a time server they are."""
    wrong = hours * timedelta(hours=1)
    machine = Machine(off=wrong, ledger_off=wrong)
    machine.hear(has_own=has_own)
    assert machine.error == wrong
    machine.off = machine.ledger_off = timedelta()
    machine.pass_s(10)
    assert machine.hear(has_own=has_own) == timedelta()
    assert machine.steady.is_stepped
    machine.is_synchronised = True
    assert machine.hear(has_own=has_own) == -wrong
    assert machine.error == timedelta()
    assert not machine.steady.is_stepped


def test_ledger_clock_that_is_set_is_held_against_a_right_one() -> None:
    """A database whose clock jumps convinces nobody whose own clock says otherwise, synchronised or not."""
    machine = Machine()
    machine.hear()
    machine.is_synchronised = True
    machine.ledger_off = HOURS
    machine.pass_s(10)
    assert machine.hear() == timedelta()
    assert machine.error == timedelta()
    assert machine.steady.is_stepped


def test_reading_that_took_long_is_not_taken() -> None:
    """A ledger that stalls does not make the time late."""
    machine = Machine()
    machine.hear()
    assert machine.hear(took_ms=1_500) == timedelta()
    assert machine.error == timedelta()


def test_drift_is_followed_after_a_long_silence() -> None:
    """A clock that was not heard for a day and has drifted by 100 ppm is followed, and that is no step."""
    machine = Machine()
    machine.hear()
    machine.pass_s(86_400)
    machine.ledger_off = timedelta(seconds=8.64)
    assert machine.hear() == timedelta()
    assert machine.error == timedelta(seconds=8.64)
    assert not machine.steady.is_stepped


@given(
    st.lists(
        st.tuples(
            st.integers(min_value=1, max_value=7200),
            st.sampled_from([timedelta(), HOURS, -HOURS, timedelta(seconds=61), timedelta(seconds=-61)]),
            st.integers(min_value=0, max_value=2_000),
        ),
        max_size=20,
    ),
    st.sampled_from([timedelta(), HOURS, -HOURS]),
)
def test_time_is_never_early_while_the_ledgers_clock_is_right(
    life: list[tuple[int, timedelta, int]], start: timedelta
) -> None:
    """However this machine's clock is set and however slow the readings are: no step early, late by a reading."""
    machine = Machine(off=start)
    machine.hear()
    for seconds, off, took_ms in life:
        machine.off = off
        machine.pass_s(seconds)
        machine.hear(took_ms=took_ms)
        assert -MAX_DRIFT - timedelta(milliseconds=1) <= machine.error <= timedelta(milliseconds=1)


@given(st.integers(min_value=-10_000, max_value=10_000))
def test_small_differences_are_no_step(ms: int) -> None:
    """Whatever is within a minute is not told as a step; what is beyond drift is not followed either."""
    machine = Machine()
    machine.hear()
    machine.ledger_off = timedelta(milliseconds=ms)
    machine.hear()
    assert not machine.steady.is_stepped
    assert abs(machine.error) <= MAX_DRIFT < STEP


@pytest.mark.parametrize(("state", "is_kept"), [(-1, False), (0, True), (1, True), (4, True), (5, False)])
def test_kernel_tells_whether_a_time_server_keeps_the_clock(
    monkeypatch: pytest.MonkeyPatch, state: int, *, is_kept: bool
) -> None:
    """Refused and unsynchronised mean no; leap seconds under way do not."""

    class Kernel:
        def adjtimex(self, asked: ctypes.Array[ctypes.c_char]) -> int:
            assert asked.raw == bytes(len(asked)), "anything else would set the clock"
            return state

    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Kernel())
    assert is_synchronised() is (is_kept and sys.platform.startswith("linux"))
