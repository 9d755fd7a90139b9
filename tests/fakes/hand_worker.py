"""A worker whose every step a test takes by hand, on the real queue: no gateway can tell it from one with an engine."""

from __future__ import annotations

import asyncio
import time

from chatd.inference.jobs import Claimed, FinishReason, ModelCard, Outcome, WorkerState
from chatd.inference.queue import Emission, JobQueue
from chatd.inference.sections import Sections, render

MODEL = ModelCard(id="by-hand", revision="0" * 64, quantization="none")
#: No single wait of a test is longer.
WAIT_S = 20.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def answer_text(**parts: object) -> str:
    """A text as a well-behaved model writes it."""
    sections = {"headline": "Written by hand", "findings": ("Nothing that the record does not say",), **parts}
    return render(Sections(**sections))  # type: ignore[arg-type]


class HandWorker:
    """Claims, writes and ends jobs when it is told to; ``alive`` says that its engine has just made a token."""

    def __init__(self, queue: JobQueue, worker_id: str = "w-hand", *, slots: int = 4, reserved: int = 0) -> None:
        self.queue = queue
        self.worker_id = worker_id
        self.slots, self.reserved = slots, reserved
        self.held: dict[str, Claimed] = {}

    async def alive(self, *, state: str = "ready", is_progressing: bool = True) -> None:
        """One beat, with a canary of this moment."""
        at = now_ms()
        said = WorkerState(
            worker_id=self.worker_id,
            engine="hand",
            state=state,  # type: ignore[arg-type]
            at_ms=at,
            canary_ms=at,
            slots=self.slots,
            reserved=self.reserved,
            active=len(self.held),
            model=MODEL,
        )
        fences = {job_id: job.fence for job_id, job in self.held.items()}
        beat = await self.queue.beat(said, fences, is_progressing=is_progressing, now_ms=at)
        self.stopped = beat.stop
        for job_id in beat.lost:
            del self.held[job_id]

    async def claim(self, job_id: str | None = None) -> Claimed:
        """Wait for a job, or for this very one, and take it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for job in await self.queue.claim(self.worker_id, open_slots=1, urgent_slots=0, now_ms=now_ms()):
                    self.held[job.job_id] = job
                    if job_id in (None, job.job_id):
                        return job
                await asyncio.sleep(0.02)

    async def write(self, job: Claimed, text: str) -> bool:
        """The next piece of a job's text; False where the queue refused it."""
        emission = Emission(job_id=job.job_id, fence=job.fence, kind="text", text=text)
        return not await self.queue.emit(self.worker_id, [emission])

    async def end(self, job: Claimed, reason: FinishReason = "stop", error: str = "") -> bool:
        """The job's end; False where the queue refused it."""
        outcome = Outcome(
            reason=reason, error=error, tokens_in=100, tokens_out=20, prefix_hit_tokens=80, ttft_ms=40,
            generation_ms=400, queue_ms=job.queue_ms, model=MODEL,
        )  # fmt: skip
        self.held.pop(job.job_id, None)
        emission = Emission(job_id=job.job_id, fence=job.fence, kind="ended", outcome=outcome)
        return not await self.queue.emit(self.worker_id, [emission])

    async def answer(self, job: Claimed, text: str | None = None) -> None:
        """Write a whole text and end it."""
        await self.write(job, text or answer_text())
        await self.end(job)
