"""Time as a parameter: the one place that reads a clock, and the forms in which times travel."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

#: A clock that differs by more than this from what the monotonic one made of it was set; it did not drift.
STEP: Final = timedelta(seconds=60)
#: What is followed without asking: a second, and what a clock may drift since it was read last.
MAX_DRIFT: Final = timedelta(seconds=1)
MAX_DRIFT_PER_S: Final = 500e-6  # of what a clock's frequency may be corrected by; source: adjtimex(2)
#: Less than this is the time that a reading takes.
_NOISE: Final = timedelta(milliseconds=250)
#: A reading that took longer says too little.
_MAX_READING_MS: Final = 1_000
#: What ``adjtimex`` gives for a clock that nothing disciplines, or that somebody has set. Source: adjtimex(2)
_TIME_ERROR: Final = 5
#: ``struct timex`` has 208 bytes on Linux; the kernel writes no more.
_TIMEX_BYTES: Final = 512


class Clock(Protocol):
    """Two clocks: ``now`` for what people and tokens see, ``monotonic_ms`` for every timeout.

    A wall clock can be set back by hours; no wait may depend on it.
    """

    def now(self) -> datetime: ...

    def monotonic_ms(self) -> int: ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """The wall clock, UTC."""
        return datetime.now(UTC)

    def monotonic_ms(self) -> int:
        """Milliseconds that never go back, from an arbitrary start."""
        return time.monotonic_ns() // 1_000_000


def is_synchronised() -> bool:
    """Whether the kernel knows of this machine's wall clock that a time server keeps it.

    False as soon as somebody sets the clock by hand, until the time server has been heard again; False where there is
    none, and where the system does not tell (macOS).
    """
    if not sys.platform.startswith("linux"):
        return False
    # Zeroes ask and change nothing.
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _TIME_ERROR


class SteadyClock:
    """The time of alerts: one that is not set, on all gateways of a ledger the same.

    It is carried on by the monotonic clock from a reading of the ledger's own clock (PostgreSQL), or of the machine's
    (SQLite, and until the first reading). So a wall clock of a gateway that is wrong, or is set by hours, makes no
    step of an alert early and skips none.

    What is read later is followed while it differs by what a clock may drift. A larger difference is a clock that was
    set, and it cannot be told which of the two is right: the time goes on as it did. It is adopted once this machine's
    wall clock says the same and a time server keeps it (``is_synchronised``).
    """

    def __init__(self, clock: Clock, is_synchronised: Callable[[], bool] = is_synchronised) -> None:
        self._clock = clock
        self._is_synchronised = is_synchronised
        self._base, self._base_ms = clock.now(), clock.monotonic_ms()
        self._heard_ms = self._base_ms
        self._has_heard = False
        self._differs = False

    def now(self) -> datetime:
        """The time of alerts, in UTC."""
        return self._base + timedelta(milliseconds=self._clock.monotonic_ms() - self._base_ms)

    @property
    def is_stepped(self) -> bool:
        """Whether this machine's wall clock, or the ledger's when it was last read, is off by more than a minute."""
        return self._differs or abs(self._clock.now() - self.now()) > STEP

    def hear(self, said: datetime | None, asked_ms: int) -> timedelta:
        """Take a reading of the ledger's clock; gives by how much the time was set (zero: not by more than drift).

        ``said``: None where the ledger has none of its own. ``asked_ms``: the monotonic clock before it was asked. The
        reading is taken for one of this moment, so the time is late by as long as it took, and never early.
        """
        now, now_ms, wall = self.now(), self._clock.monotonic_ms(), self._clock.now()
        if said is not None and now_ms - asked_ms > _MAX_READING_MS:
            return timedelta()
        is_first = said is not None and not self._has_heard
        self._has_heard |= said is not None
        read = wall if said is None else said
        by = read - now
        drift = MAX_DRIFT + timedelta(milliseconds=(now_ms - self._heard_ms) * MAX_DRIFT_PER_S)
        self._heard_ms = now_ms
        self._differs = False
        if abs(by) <= drift:
            if abs(by) > _NOISE:
                self._base, self._base_ms = read, now_ms
            return timedelta()
        if is_first or (abs(read - wall) <= STEP and self._is_synchronised()):
            self._base, self._base_ms = read, now_ms
            return by
        self._differs = abs(by) > STEP
        return timedelta()


def iso_ms(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, as the wire has it: "2026-01-15T07:45:20.114Z"."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch_ms(moment: datetime) -> int:
    """Milliseconds since 1970-01-01 UTC."""
    return round(moment.timestamp() * 1000)
