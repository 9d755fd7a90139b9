"""A question's way through the model: compose its prompt, queue it, follow it, and let go of it.

The queue's job has the response's id, so a gateway that takes a run over finds the job that is being written. A run
that is drained or fenced leaves its job alone; one that nobody waits for any more gives its place back.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec
import structlog

from chatd import metrics
from chatd.clock import Clock, epoch_ms
from chatd.inference.jobs import Job, Outcome, Piece
from chatd.inference.lanes import LANE, LaneName
from chatd.inference.queue import JobQueue, Placed, QueueUnavailable
from chatd.logs import error_name
from chatd.replies.facts import FactsResult
from chatd.replies.following import Ended, Follower
from chatd.replies.sessions import Request
from chatd.settings import Settings
from context.budget import BudgetTooSmall, estimate_tokens
from context.compose import Prompt, compose
from context.layers import Layers
from protocols.errors import ErrorCode
from protocols.frames import ProtocolQuote

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Which lane a question waits in, by its ``urgency``.
LANE_OF: Final[dict[str, LaneName]] = {"stat": "stat", "urgent": "urgent", "routine": "routine"}
#: The queue ends a job at its deadline; a gateway that hears nothing of that waits this much longer.
_PAST_DEADLINE_MS: Final = 10_000
#: How often a job that Redis has lost is queued again.
_REQUEUES: Final = 1


class Asking(Protocol):
    """What writing needs to know of a run; ``runs.Run`` is one."""

    @property
    def key(self) -> str: ...
    @property
    def response_id(self) -> str: ...
    @property
    def request(self) -> Request: ...


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A question as the queue takes it. ``same_key``: equal for questions that one text answers."""

    job: Job
    same_key: str
    prompt: Prompt
    quotes: tuple[ProtocolQuote, ...]


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a model wrote, unread and unchecked. ``is_shared``: for a colleague's same question."""

    text: str
    outcome: Outcome
    attempt: int
    is_shared: bool
    lane: LaneName
    job_id: str
    prompt: Prompt
    quotes: tuple[ProtocolQuote, ...]


class Unwritten(msgspec.Struct, frozen=True, kw_only=True):
    """No model's words for this question. ``is_refused``: the queue did not take it; the phone is told so.

    ``job_id``: the job that gave none; empty where nothing was queued or is left.
    """

    code: ErrorCode
    retry_after_ms: int | None = None
    is_refused: bool = False
    lane: LaneName = "routine"
    job_id: str = ""


OffLoop = Callable[..., Awaitable[Any]]


class Writer:
    """Has answers written. ``off_loop`` runs pure computation beside the event loop.

    ``write`` raises QueueUnavailable while Redis does not answer; calling it again goes on with the same job.
    """

    def __init__(
        self, queue: JobQueue, follower: Follower, *, digest_key: bytes, settings: Settings, clock: Clock
    ) -> None:
        self._queue = queue
        self._follower = follower
        self._digest_key = digest_key
        self._settings = settings
        self._clock = clock

    async def write(
        self, run: Asking, facts: FactsResult, layers: Layers, *, started_ms: int, is_down: bool, off_loop: OffLoop
    ) -> Written | Unwritten:
        """The model's text for a question, or why there is none. ``started_ms``: when its run began, monotonic.

        Cancelled, it leaves the job as it is: whoever wants it ended calls ``cancel``. The run calls ``leave`` at its
        end, however it ends; until then its phones hear of the job once, also if ``write`` is called again.
        """
        lane = LANE_OF.get(run.request.urgency, "routine")
        if is_down:
            return Unwritten(code=ErrorCode.MODEL_UNAVAILABLE, lane=lane)
        try:
            prepared = await off_loop(prepare, run, facts, layers, settings=self._settings, digest_key=self._digest_key)
        except BudgetTooSmall as error:
            log.warning("prompt_too_large", response_id=run.response_id, needed_tokens=error.needed_tokens)
            return Unwritten(code=ErrorCode.TOO_LARGE, lane=lane)
        for _ in range(1 + _REQUEUES):
            placed = await self._queue.enqueue(
                prepared.job,
                doctor=run.request.user_id,
                lane=lane,
                follower=run.response_id,
                now_ms=self._now_ms(),
                same_key=prepared.same_key,
            )
            if placed.outcome in ("full", "deadline"):
                full = placed.outcome == "full"
                code = ErrorCode.QUEUE_FULL if full else ErrorCode.DEADLINE_UNREACHABLE
                return Unwritten(code=code, retry_after_ms=placed.retry_after_ms, is_refused=True, lane=lane)
            ended = await self._followed(run, placed, lane, started_ms)
            if ended.how == "ended":
                return self._result(ended, prepared, placed.job_id, lane)
            if ended.how == "down":
                break
        await self.cancel(run.response_id)
        return Unwritten(code=ErrorCode.MODEL_UNAVAILABLE, lane=lane)

    async def _followed(self, run: Asking, placed: Placed, lane: LaneName, started_ms: int) -> Ended:
        """Wait for the job's end, for as long as it may take."""
        if placed.job_id != run.response_id:
            await self._follower.joined(run.response_id, placed.job_id, round(self._settings.session_timeout_s))
        done = self._follower.follow(
            placed.job_id,
            run.response_id,
            run.key,
            lane=lane,
            position=placed.position,
            eta_ms=placed.eta_ms,
            started_ms=started_ms,
        )
        try:
            async with asyncio.timeout((LANE[lane].deadline_ms + _PAST_DEADLINE_MS) / 1000):
                return await done
        except TimeoutError:
            log.warning("job_overdue", response_id=run.response_id)
            await self.cancel(run.response_id)
            return Ended(how="ended", outcome=Outcome(reason="deadline"))

    def _result(self, ended: Ended, prepared: Prepared, job_id: str, lane: LaneName) -> Written | Unwritten:
        outcome = ended.outcome
        is_shared = job_id != prepared.job.job_id
        assert outcome is not None  # noqa: S101 - an ended job has one
        metrics.MODEL_ENDS.labels(outcome.reason).inc()
        if outcome.reason in ("cancelled", "error") or not ended.text.strip():
            return Unwritten(code=_code_of(outcome), lane=lane, job_id=job_id)
        if is_shared:
            metrics.MODEL_SHARED.inc()
        else:
            _observe(outcome, lane)
        return Written(
            text=ended.text,
            outcome=outcome,
            attempt=ended.attempt,
            is_shared=is_shared,
            lane=lane,
            job_id=job_id,
            prompt=prepared.prompt,
            quotes=prepared.quotes,
        )

    def leave(self, response_id: str) -> None:
        """The run has ended, here at least: follow its job no more."""
        self._follower.leave(response_id)

    async def cancel(self, response_id: str) -> None:
        """Nobody wants this response any more, on whatever gateway it was asked; twice does no harm.

        While Redis does not answer the job goes on to its end or its deadline, and nobody reads it.
        """
        try:
            job_id = await self._follower.job_of(response_id)
            await self._queue.cancel(job_id, follower=response_id, now_ms=self._now_ms())
        except QueueUnavailable as error:
            log.warning("job_not_cancelled", response_id=response_id, error=error_name(error))

    async def forget(self, response_id: str, job_id: str) -> None:
        """The answer stands in the session's log; what is left of the job ends by itself if Redis is away now."""
        if not job_id:
            return
        try:
            await self._queue.forget(job_id, response_id)
        except QueueUnavailable as error:
            log.warning("job_not_forgotten", response_id=response_id, error=error_name(error))

    def _now_ms(self) -> int:
        return epoch_ms(self._clock.now())


def prepare(run: Asking, facts: FactsResult, layers: Layers, *, settings: Settings, digest_key: bytes) -> Prepared:
    """Compose the prompt and the job. Pure; raises BudgetTooSmall."""
    request = run.request
    prompt = compose(
        layers,
        request.content,
        quotes=facts.protocols,
        now=request.received_at,
        budget_tokens=settings.prompt_budget_tokens,
        count_tokens=estimate_tokens,
        must_keep=frozenset(flag.ref for flag in facts.red_flags if flag.ref is not None),
    )
    job = Job(
        job_id=run.response_id,
        pieces=tuple(Piece(name=segment.name, text=segment.text) for segment in prompt.segments),
        actions=tuple(action.id for action in layers.department.actions),
        max_tokens=settings.answer_max_tokens,
        temperature=settings.answer_temperature,
        salt=hmac.new(digest_key, layers.hospital.name.encode(), hashlib.sha256).hexdigest()[:16],
    )
    # Everything the words depend on but who asks.
    asked = (
        request.department,
        request.lang,
        request.patient_id,
        job.actions,
        [piece.text for piece in job.pieces if piece.name != "doctor"],
    )
    digest = hmac.new(digest_key, msgspec.json.encode(asked), hashlib.sha256).hexdigest()[:32]
    return Prepared(job=job, same_key=digest, prompt=prompt, quotes=facts.protocols)


def _code_of(outcome: Outcome) -> ErrorCode:
    """Why there is no text, as a phone is told."""
    if outcome.reason == "deadline":
        return ErrorCode.MODEL_TIMEOUT
    if outcome.reason == "error":
        try:
            return ErrorCode(outcome.error)
        except ValueError:
            return ErrorCode.MODEL_UNAVAILABLE
    return ErrorCode.MODEL_UNAVAILABLE if outcome.reason == "cancelled" else ErrorCode.OUTPUT_INVALID


def _observe(outcome: Outcome, lane: LaneName) -> None:
    for metric, value_ms in (
        (metrics.QUEUE_SECONDS, outcome.queue_ms),
        (metrics.MODEL_TTFT_SECONDS, outcome.ttft_ms),
        (metrics.MODEL_SECONDS, outcome.generation_ms),
    ):
        if value_ms is not None:
            metric.labels(lane).observe(value_ms / 1000)
    metrics.MODEL_TOKENS.labels("in").inc(outcome.tokens_in)
    metrics.MODEL_TOKENS.labels("out").inc(outcome.tokens_out)
    metrics.MODEL_TOKENS.labels("reused").inc(outcome.prefix_hit_tokens)
