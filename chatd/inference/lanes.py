"""The lanes of the inference queue and their numbers, as one table.

A lane is a promise about waiting, not about the answer: a doctor's word for urgency chooses it, and a job that has
waited long moves up, so that no lane starves.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

LaneName = Literal["stat", "urgent", "routine", "background"]


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One lane.

    ``deadline_ms``: from being queued to the last word; a job that cannot be done by then is refused before it waits.
    ``promote_after_ms``: a job that has waited this long moves to ``promote_to``; None: it stays.
    """

    name: LaneName
    deadline_ms: int
    promote_after_ms: int | None = None
    promote_to: LaneName | None = None


#: Highest first. ``stat`` alone may use the reserved slots; nothing is promoted into it.
LANES: Final[tuple[Lane, ...]] = (
    Lane(name="stat", deadline_ms=60_000),
    Lane(name="urgent", deadline_ms=120_000),
    Lane(name="routine", deadline_ms=180_000, promote_after_ms=45_000, promote_to="urgent"),
    Lane(name="background", deadline_ms=600_000, promote_after_ms=120_000, promote_to="routine"),
)
LANE: Final[dict[str, Lane]] = {lane.name: lane for lane in LANES}

#: Of this many claims in a row at least one goes to another lane than ``stat`` if one waits there: a flood of stat
#: questions slows the others down and does not stop them.
STAT_RUN: Final = 4


class QueueLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the queue; the settings of the same names set them."""

    #: Jobs that wait in all lanes together.
    max_waiting: int = 400
    #: Jobs of one doctor, waiting or running, in all lanes together.
    max_per_doctor: int = 5
    #: A worker that has not shown progress for this long has lost its jobs.
    lease_ms: int = 5_000
    #: How often a job is begun before it ends without an answer; those of workers that went as planned do not count.
    max_attempts: int = 2
    #: How long a job and its results outlive their end: as long as a session waits for its phone.
    keep_ms: int = 1_800_000
    #: A second asker of the same question joins a job this young.
    same_ms: int = 60_000
    #: Service time that is assumed until one has been measured.
    service_ms: int = 10_000
