"""What one line may cost the others: sizes, times and paces below the frames, in one place.

What a frame may hold stands in ``protocols.codec.CodecLimits``, when a connection ends in
``protocols.session.SessionRules``, and what an installation may set in ``chatd.settings``. ``docs/limits.md`` lists
all of them.
"""

from __future__ import annotations

from typing import Final

import msgspec


class LineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one TCP connection. A proxy in front is stricter; these hold where there is none, or it is wrong."""

    # A token has 4 KiB at most, and nginx takes four headers of 8 KiB: what is longer was not made by a client.
    head_bytes: int = 16_384
    # From the first byte, or from the connection on, to the end of the request's head.
    head_within_s: float = 10.0
    # The longest that a request may take in all, reading of its answer included.
    answer_within_s: float = 60.0
    # Bytes that are taken apart before others have their turn: at most 170 frames, some 2 ms.
    slice_bytes: int = 1_024
    # Frames of any kind, pings and fragments too. What comes faster waits in the sender's own buffer.
    frames_per_s: int = 1_000
    # How long the peer may take to answer a close, and to read what was written before it.
    close_within_s: float = 5.0


#: A pace's first burst is what it allows in this time.
BURST_S: Final = 2.0


class Pace:
    """How fast one sender may go on: ``per_s`` in the long run, twice as many at once. Time is a parameter.

    What exceeds it is not refused: ``spend`` says how long to wait before reading on, so that the sender's own
    buffer fills.
    """

    __slots__ = ("_at_ms", "_most", "_per_ms", "_saved")

    def __init__(self, per_s: float, now_ms: float) -> None:
        self._per_ms = per_s / 1000
        self._most = self._saved = per_s * BURST_S
        self._at_ms = now_ms

    def spend(self, cost: float, now_ms: float) -> float:
        """Take ``cost``; returns the milliseconds to wait, 0 while something is saved. A clock set back adds none."""
        self._saved = min(self._most, self._saved + max(0.0, now_ms - self._at_ms) * self._per_ms) - cost
        self._at_ms = now_ms
        return max(0.0, -self._saved / self._per_ms)
