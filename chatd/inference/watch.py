"""Whether a model writes now, as this gateway sees it: from what the workers say of themselves, never from a port.

A worker proves itself by the age of the last token that its engine really made. One that is restarted at once is no
reason to send every waiting question away, so the last proof counts for ``model_down_s``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec
import structlog

from chatd import metrics
from chatd.clock import Clock, epoch_ms
from chatd.inference.jobs import WorkerState
from chatd.inference.lanes import LANES, LaneName
from chatd.inference.queue import GivenUp, JobQueue, QueueUnavailable
from chatd.logs import error_name
from protocols.frames import Mode, ModelState

log = structlog.get_logger(__name__)

#: A doctor who would wait longer than this for the first word is told that the model is slow.
SLOW_MS: Final = 15_000

State = Literal["none", "ready", "starting", "down"]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers amount to. ``proven_ms``: Unix time of the last token of a ready worker, 0 for never;
    ``is_ready``: one can take a question now."""

    is_ready: bool = False
    is_starting: bool = False
    proven_ms: int = 0
    model_id: str | None = None


def view(workers: Sequence[WorkerState], now_ms: int, fresh_ms: int) -> View:
    """Pure: workers whose beat and whose last token are at most ``fresh_ms`` old count."""
    alive = [worker for worker in workers if now_ms - worker.at_ms <= fresh_ms]
    ready = [worker for worker in alive if worker.state == "ready" and now_ms - worker.canary_ms <= fresh_ms]
    named = next((worker.model.id for worker in (*ready, *alive) if worker.model is not None), None)
    return View(
        is_ready=bool(ready),
        is_starting=any(worker.state == "starting" for worker in alive),
        proven_ms=max((worker.canary_ms for worker in ready), default=0),
        model_id=named,
    )


def state_of(seen: View, proven_ms: int, now_ms: int, down_ms: int) -> State:
    """Pure: ``ready`` until the last proof is ``down_ms`` old."""
    if seen.is_ready or (proven_ms and now_ms - proven_ms <= down_ms):
        return "ready"
    return "starting" if seen.is_starting else "down"


def mode_of(state: State, is_ready: bool, longest_wait_ms: int) -> Mode:
    """Pure: ``slow`` while all workers are lost but not given up, or while the queue is long."""
    if state != "ready":
        return "facts_only"
    return "normal" if is_ready and longest_wait_ms <= SLOW_MS else "slow"


class ModelWatch:
    """The model's state as of the last ``look``, which the gateway takes once a second.

    Without a queue there is no engine: ``none`` and ``facts_only``, for good.
    """

    def __init__(self, queue: JobQueue | None, *, clock: Clock, model_down_s: float) -> None:
        self._queue = queue
        self._clock = clock
        self._down_ms = round(model_down_s * 1000)
        self._proven_ms = 0
        self._model_id: str | None = None
        self._told: tuple[Mode, str, str | None] | None = None
        self._state: State = "none" if queue is None else "starting"
        self.mode: Mode = "facts_only"
        #: Answers that the queue gave up, newest first, as of the last look.
        self.given_up: tuple[GivenUp, ...] = ()

    @property
    def state(self) -> ModelState:
        """As ``welcome`` and ``mode`` tell it."""
        age_s = None
        if self._proven_ms:
            age_s = max(0, epoch_ms(self._clock.now()) - self._proven_ms) / 1000
        return ModelState(state=self._state, id=self._model_id, canary_age_s=age_s)

    @property
    def is_down(self) -> bool:
        """Whether nothing can be written now or soon."""
        return self.mode == "facts_only"

    async def look(self) -> None:
        """Ask once. While Redis does not answer, the last proof counts on and then ends."""
        if self._queue is None:
            return
        now_ms = epoch_ms(self._clock.now())
        seen, longest_wait_ms = View(), 0
        try:
            workers = await self._queue.workers(now_ms)
            seen = view(workers, now_ms, self._down_ms)
            depth = await self._queue.depth()
            if any(depth.values()):
                waits = (place.eta_ms or 0 for place in (await self._queue.places(now_ms)).values())
                longest_wait_ms = max(waits, default=0)
            self.given_up = tuple(await self._queue.given_up())
            metrics.MODEL_GIVEN_UP.set(len(self.given_up))
            self._measure(workers, depth)
        except QueueUnavailable as error:
            log.warning("model_not_seen", error=error_name(error))
        self._proven_ms = max(self._proven_ms, seen.proven_ms)
        self._model_id = seen.model_id or self._model_id
        self._state = state_of(seen, self._proven_ms, now_ms, self._down_ms)
        self.mode = mode_of(self._state, seen.is_ready, longest_wait_ms)
        told = (self.mode, self._state, self._model_id)
        if told != self._told:
            log.info("model_seen", mode=self.mode, state=self._state, model=self._model_id)
            self._told = told
            for mode in ("normal", "slow", "facts_only"):
                metrics.MODE.labels(mode).set(mode == self.mode)

    @staticmethod
    def _measure(workers: Sequence[WorkerState], depth: Mapping[LaneName, int]) -> None:
        for lane in LANES:
            metrics.QUEUE_WAITING.labels(lane.name).set(depth.get(lane.name, 0))
        states = Counter(worker.state for worker in workers)
        for state in ("starting", "ready", "draining"):
            metrics.MODEL_WORKERS.labels(state).set(states[state])
        ready = [worker for worker in workers if worker.state == "ready"]
        metrics.MODEL_SLOTS.labels("all").set(sum(worker.slots for worker in ready))
        metrics.MODEL_SLOTS.labels("active").set(sum(worker.active for worker in ready))
