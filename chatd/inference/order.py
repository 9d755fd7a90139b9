"""In what order waiting jobs are begun, and when: pure rules over a snapshot of the queue.

The scripts decide in the same way (``place_of`` and ``forecast`` in common.lua); the tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from chatd.inference.lanes import LANES, STAT_RUN, Lane, LaneName

#: A text that has taken longer than the usual time is given this part of it once more: nobody knows how long it takes,
#: and the forecast must not say "now" for as long as it runs.
_OVERDUE_PART: Final = 4


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job waits. ``position`` 1 is next. ``eta_ms``: until its text begins; None while no worker lives."""

    lane: LaneName
    position: int
    eta_ms: int | None


def line(turns: Sequence[str], jobs: Mapping[str, Sequence[str]]) -> list[str]:
    """One lane's jobs in the order of their claims.

    Doctors are served in the order of ``turns``, one job each; who waits on then takes a turn behind all others.
    """
    order: list[str] = []
    left = [iter(jobs[doctor]) for doctor in turns if jobs.get(doctor)]
    while left:
        served = [(rest, job_id) for rest in left if (job_id := next(rest, None)) is not None]
        order += [job_id for _, job_id in served]
        left = [rest for rest, _ in served]
    return order


def claim_order(
    waiting: Mapping[LaneName, Sequence[str]], *, run: int, lanes: Sequence[Lane] = LANES, stat_run: int = STAT_RUN
) -> list[tuple[LaneName, str]]:
    """The jobs as (lane, id) in the order in which claims for slots that anything may take get them.

    Args:
        waiting: each lane's ``line``.
        run: claims in a row that have gone to the first lane while others waited.
        stat_run: of this many claims in a row one goes to another lane than the first, at least 2.
    """
    top = lanes[0].name
    urgent = [(top, job_id) for job_id in waiting.get(top, ())]
    others = [(lane.name, job_id) for lane in lanes[1:] for job_id in waiting.get(lane.name, ())]
    order: list[tuple[LaneName, str]] = []
    for other in others:
        turns = max(0, stat_run - 1 - run)
        order += urgent[:turns]
        urgent = urgent[turns:]
        order.append(other)
        run = 0
    return order + urgent


def slots_free_ms(*, slots: int, running_since: Sequence[int], service_ms: int, now_ms: int) -> tuple[int, ...]:
    """In how many ms each of ``slots`` slots comes free, soonest first, if every text takes ``service_ms``.

    Args:
        running_since: when each running text was begun; with more of them than slots, the first ones to end free none.
    """
    left = sorted(_left_ms(since + service_ms - now_ms, service_ms) for since in running_since)
    return tuple(([0] * (slots - len(left)) + left)[-slots:]) if slots > 0 else ()


def _left_ms(left_ms: int, service_ms: int) -> int:
    return min(left_ms, service_ms) if left_ms > 0 else service_ms // _OVERDUE_PART


def eta_ms(position: int, free_ms: Sequence[int], service_ms: int) -> int | None:
    """When the job at ``position`` begins; None without slots.

    No text is longer than another, so the slots come free in the same order in every round.
    """
    if not free_ms:
        return None
    rounds, nth = divmod(position - 1, len(free_ms))
    return free_ms[nth] + rounds * service_ms
