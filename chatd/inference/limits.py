"""The queue's bounds out of the settings: gateways and workers must hold the same ones."""

from __future__ import annotations

from chatd.inference.lanes import QueueLimits
from chatd.settings import Settings


def limits_of(settings: Settings) -> QueueLimits:
    """The bounds that ``settings`` set; a job's results outlive its end for as long as a session waits for a phone."""
    return QueueLimits(
        max_waiting=settings.queue_max_waiting,
        max_per_doctor=settings.queue_max_per_doctor,
        lease_ms=round(settings.job_lease_s * 1000),
        max_attempts=settings.job_attempts,
        keep_ms=round(settings.session_timeout_s * 1000),
        same_ms=round(settings.same_question_s * 1000),
    )
