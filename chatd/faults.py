"""Points at which a test may kill the process, so that "the process dies right after this step" can be shown.

Off unless ``CHATD_FAULT_KILL_AT`` is set ("facts:2": at the second time step ``facts`` is reached).
"""

from __future__ import annotations

import os
import signal

#: The steps of "how a question travels" (docs/architecture.md) that a gateway takes itself.
STEPS = ("receive", "check", "accept", "facts", "answer", "deliver")


class FaultPoints:
    """Counts steps and kills this process with SIGKILL at the chosen one."""

    def __init__(self, kill_at: str = "") -> None:
        step, _, count = kill_at.partition(":")
        if kill_at and step not in STEPS:
            raise ValueError(f"fault_kill_at names no step; known: {', '.join(STEPS)}")
        self._step = step
        self._left = int(count or 1) if kill_at else 0

    def reached(self, step: str) -> None:
        """The step has just been finished."""
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
