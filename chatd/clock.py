"""Time as a parameter: the one place that reads a clock, and the forms in which times travel."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


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


def iso_ms(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, as the wire has it: "2026-01-15T07:45:20.114Z"."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch_ms(moment: datetime) -> int:
    """Milliseconds since 1970-01-01 UTC."""
    return round(moment.timestamp() * 1000)
