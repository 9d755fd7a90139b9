"""A worker: takes jobs from the queue into an engine's free slots and sends back what is written.

It reports that it holds its jobs (``beat``), and to readers of jobs without words that they are worked on
(``moving``), only while the engine makes progress: the jobs of a hung engine go to another worker, and phones hear of
its silence. Redis may go away: texts go on for as long as the lease would, then they are given up, because
somebody else may be writing them by then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import lru_cache
from typing import Final, Literal, Protocol, cast

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatd import tasks
from chatd.clock import Clock, epoch_ms
from chatd.inference.engine import Delta, Engine, EngineError, EngineFull, Finished, Generation
from chatd.inference.jobs import Claimed, FinishReason, Job, Outcome, Piece, WorkerState
from chatd.inference.queue import PREFIX, Emission, JobQueue, QueueUnavailable, rings
from chatd.inference.sections import grammar
from chatd.logs import error_name
from chatd.settings import Settings
from context.seal import Sealer, SealError
from protocols.errors import ErrorCode

log = structlog.get_logger(__name__)

#: After its first words a text travels at most this often: faster than people read, and one round trip for all.
MERGE_MS: Final = 50
#: A lost bell costs no more than this.
_POLL_S: Final = 0.5
_FULL_POLL_S: Final = 0.02
#: How often a job without words is told that its engine moves. Phones hear of a silence of ``CHATD_SILENCE_S`` (1.5 s):
#: a vLLM server's steps are seen once a second, so this must stay well below the half second that is left.
_MOVING_S: Final = 0.25
_BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
#: Beginnings are made ready for no longer than this before the first claim.
_WARM_S: Final = 60.0
#: A prompt's first pieces that whole hospitals and departments share, by the names that ``context.compose`` gives.
_SHARED_PIECES: Final = ("hospital", "department")
_CANARY: Final = (Piece(name="canary", text="Reply with one word.\n\n"),)
_GRAMMARS: Final = 64
#: The error of an outcome after which the job may be tried again.
_ENGINE_FAILED: Final = ErrorCode.MODEL_UNAVAILABLE.value


class PromptTokens(Protocol):
    """What a worker needs of ``tokens.Tokens``."""

    @property
    def special_ids(self) -> Collection[int]: ...

    def prompt(self, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], ...]: ...


class PromptRefused(Exception):
    """A prompt that no engine gets: it does not fit, or text in it has become a special token."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.value)
        self.code = code


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor is told twice a second. ``age_ms``: since the engine's last step while it has work.
    ``canary_age_ms``: since the last real token, from being loaded at the earliest; None until loaded."""

    worker_id: str
    state: Literal["starting", "ready", "draining"]
    steps: int = 0
    age_ms: int = 0
    active: int = 0
    slots: int = 0
    model: str = ""
    canary_age_ms: int | None = None


class Outflow:
    """What is to be sent, merged by job; pure. Keys are those of the caller, one for each time a job is begun.

    A job's first text and its end are due at once, text after that with the next tick of ``MERGE_MS``: all jobs
    share the ticks, so that they share the round trips. An empty text is a sign of life, and is sent if no other came.
    """

    def __init__(self) -> None:
        self._parts: dict[int, list[str]] = {}
        self._due_ms: dict[int, int] = {}
        self._next_ms: dict[int, int] = {}
        self._outcomes: dict[int, Outcome] = {}

    def add(self, key: int, text: str, now_ms: int) -> None:
        """More text of a job that has not ended."""
        self._parts.setdefault(key, []).append(text)
        self._due_ms.setdefault(key, max(now_ms, self._next_ms.get(key, now_ms)))

    def end(self, key: int, outcome: Outcome, now_ms: int) -> None:
        """The job's end; nothing may be added after it."""
        self._outcomes[key] = outcome
        self._due_ms[key] = now_ms

    def drop(self, key: int) -> None:
        """Forget a job with all that was not sent; an unknown one changes nothing."""
        for table in (self._parts, self._due_ms, self._next_ms, self._outcomes):
            table.pop(key, None)

    def due_ms(self) -> int | None:
        """When something is to be sent; None when nothing waits."""
        return min(self._due_ms.values(), default=None)

    def take(self, now_ms: int) -> list[tuple[int, str, Outcome | None]]:
        """What is due: (key, text, outcome), text before its outcome, each once; neither is a sign of life."""
        taken = []
        for key in [key for key, due_ms in self._due_ms.items() if due_ms <= now_ms]:
            del self._due_ms[key]
            outcome = self._outcomes.pop(key, None)
            text = "".join(self._parts.pop(key, ()))
            taken.append((key, text, outcome))
            if outcome is not None:
                self._next_ms.pop(key, None)
            elif text:
                self._next_ms[key] = (now_ms // MERGE_MS + 1) * MERGE_MS
        return taken


class Beginning(msgspec.Struct, frozen=True, kw_only=True):
    """The shared first pieces of a prompt, and the salt under which work on them may be shared."""

    pieces: tuple[Piece, ...]
    salt: str


class Beginnings:
    """The last few shared beginnings that workers have met, sealed in Redis: a worker that starts makes them ready.

    One list, newest first, at most ``most`` entries, gone a day after the last one was told. It may hold one twice
    when two workers tell it at once; ``read`` gives each once.
    """

    def __init__(self, redis: Redis, sealer: Sealer, *, most: int = 24, ttl_s: int = 86_400) -> None:
        self._redis = redis
        self._sealer = sealer
        self._key = f"{PREFIX}warm"
        self._most = most
        self._ttl_s = ttl_s

    async def read(self) -> list[Beginning]:
        """Newest first, each once; those that cannot be opened are left out. Raises RedisError."""
        rows = cast("list[bytes]", await self._redis.lrange(self._key, 0, self._most - 1))
        found: dict[Beginning, None] = {}
        for row in rows:
            with contextlib.suppress(SealError, msgspec.DecodeError):
                record = self._sealer.open(row, aad=self._key.encode())
                found[msgspec.msgpack.decode(record, type=Beginning)] = None
        return list(found)

    async def tell(self, beginning: Beginning) -> None:
        """Keep one that is not kept yet. Raises RedisError."""
        known = beginning in await self.read()
        async with self._redis.pipeline(transaction=True) as pipe:
            if not known:
                pipe.lpush(self._key, self._sealer.seal(msgspec.msgpack.encode(beginning), aad=self._key.encode()))
                pipe.ltrim(self._key, 0, self._most - 1)
            pipe.expire(self._key, self._ttl_s)
            await pipe.execute()


class _Held:
    """A job in this worker's hands."""

    def __init__(self, claimed: Claimed, key: int, now_ms: int) -> None:
        self.claimed = claimed
        self.key = key
        # The fence in it: the same job may come back while the engine still ends what was begun before.
        self.generation_id = f"{claimed.job_id}/{claimed.fence}"
        self.begun_ms = now_ms
        self.first_ms: int | None = None
        self.is_stopped = False
        self.is_submitted = False
        self.is_ended = False
        #: Since the last look at the engine's steps.
        self.has_spoken = False
        self.task: asyncio.Task[None] | None = None


class Worker:
    """One engine at the queue. ``run`` once; ``drain`` ends it.

    Args:
        redis: For the queue's bell, with a long read timeout; None: the queue is only polled, every ``_POLL_S``.
        beginnings: Where shared beginnings are remembered; None: nothing is made ready ahead.
    """

    def __init__(
        self,
        engine: Engine,
        queue: JobQueue,
        tokens: PromptTokens,
        *,
        clock: Clock,
        worker_id: str,
        settings: Settings,
        redis: Redis | None = None,
        beginnings: Beginnings | None = None,
    ) -> None:
        self._engine = engine
        self._queue = queue
        self._tokens = tokens
        self._clock = clock
        self.worker_id = worker_id
        self._settings = settings
        self._redis = redis
        self._beginnings = beginnings
        self._state: Literal["starting", "ready", "draining"] = "starting"
        self._is_loaded = False
        self._is_well = False
        self._held: dict[str, _Held] = {}
        self._by_key: dict[int, _Held] = {}
        self._keys = 0
        self._outflow = Outflow()
        self._to_send = asyncio.Event()
        self._room = asyncio.Event()
        self._nothing_held = asyncio.Event()
        self._nothing_held.set()
        self._over = asyncio.Event()
        self._ask_canary = asyncio.Event()
        self._token_ms = 0
        self._token_unix_ms = 0
        self._beat_now = asyncio.Event()
        self._beaten_ms = 0
        self._beaten_steps = -1
        self._warmed_steps = 0
        self._told: set[Beginning] = set()
        self._tellings: set[asyncio.Task[None]] = set()
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._frame: tuple[int, ...] = ()
        self._grammar: Callable[[tuple[str, ...]], str] = lru_cache(_GRAMMARS)(grammar)

    # --- life ---

    async def run(self) -> None:
        """Load, make ready, claim and write until ``drain`` is over. Raises EngineError when the engine cannot start.

        Cancelling it gives the jobs back as ``drain(0)`` does; neither counts as an attempt.
        """
        is_planned = False
        over = asyncio.create_task(self._over.wait(), name="over")
        opening = asyncio.create_task(self._open(), name="open")
        loops = [asyncio.create_task(self._beats(), name="beats")]
        try:
            await asyncio.wait([over, opening, *loops], return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                opening.result()
                working = (self._claims(), self._sends(), self._moves(), self._canaries(), self._hears())
                loops += [asyncio.create_task(loop) for loop in working]
                await asyncio.wait([over, *loops], return_when=asyncio.FIRST_COMPLETED)
            for task in loops:
                if task.done():
                    task.result()  # a loop ends only by a bug: this process is better started again
            is_planned = over.done()
        except asyncio.CancelledError:
            is_planned = True
            raise
        finally:
            writing = [held.task for held in self._held.values() if held.task is not None]
            await tasks.end([over, opening, *loops, *self._tellings, *writing])
            await self._engine.stop(0)
            self._tokenizing.shutdown(wait=False, cancel_futures=True)
            with contextlib.suppress(QueueUnavailable):
                await self._queue.release(self.worker_id, self._now_ms(), is_planned=is_planned)

    async def _open(self) -> None:
        """Load the model and make ready what is shared; claims begin with the first token of the canary."""
        await self._engine.start()
        self._frame = self._specials(self._tokens.prompt(_CANARY))
        self._is_loaded = True
        self._token_ms = self._clock.monotonic_ms()
        await self._warm()

    async def drain(self, drain_s: float) -> None:
        """Claim nothing more, let running texts end for ``drain_s``, give the rest back and let ``run`` return."""
        if self._state != "draining":
            self._state = "draining"
            self._beat_now.set()
            log.info("worker_draining", worker=self.worker_id, held=len(self._held))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._nothing_held.wait()
        self._over.set()

    def pulse(self) -> Pulse:
        """As of now."""
        if not self._is_loaded:
            return Pulse(worker_id=self.worker_id, state=self._state)
        progress, capacity = self._engine.progress(), self._engine.capacity()
        if self._state == "starting" and progress.steps > self._warmed_steps:
            # Work on a long beginning makes no token and is no standstill.
            self._warmed_steps, self._token_ms = progress.steps, self._clock.monotonic_ms()
        return Pulse(
            worker_id=self.worker_id,
            state=self._state,
            steps=progress.steps,
            age_ms=progress.age_ms,
            active=capacity.active,
            slots=capacity.slots,
            model=self._engine.info.model.id,
            canary_age_ms=self._clock.monotonic_ms() - self._token_ms,
        )

    def _now_ms(self) -> int:
        return epoch_ms(self._clock.now())

    # --- making ready ---

    async def _warm(self) -> None:
        """The work on the shared beginnings that were met before, for at most ``_WARM_S``."""
        if self._beginnings is None:
            return
        try:
            async with asyncio.timeout(_WARM_S):
                for beginning in await self._beginnings.read():
                    segments = await self._segments((*beginning.pieces, *_CANARY))
                    tokens = await self._engine.warm(segments[: len(beginning.pieces)], beginning.salt)
                    self._token_ms = self._clock.monotonic_ms()
                    self._told.add(beginning)
                    log.info("beginning_ready", worker=self.worker_id, tokens=tokens)
        except TimeoutError:
            log.warning("warming_cut_short", worker=self.worker_id)
        except (RedisError, OSError, EngineError, PromptRefused) as error:
            log.warning("warming_failed", worker=self.worker_id, error=error_name(error))

    def _remember(self, job: Job) -> None:
        """Tell the job's beginning to workers to come, once."""
        count = 0
        while count < len(job.pieces) and job.pieces[count].name in _SHARED_PIECES:
            count += 1
        beginning = Beginning(pieces=job.pieces[:count], salt=job.salt)
        if self._beginnings is None or not count or beginning in self._told:
            return
        if len(self._told) > _GRAMMARS:
            self._told.clear()
        self._told.add(beginning)
        task = asyncio.create_task(self._tell(self._beginnings, beginning))
        self._tellings.add(task)
        task.add_done_callback(self._tellings.discard)

    async def _tell(self, beginnings: Beginnings, beginning: Beginning) -> None:
        try:
            await beginnings.tell(beginning)
        except (RedisError, OSError) as error:
            self._told.discard(beginning)
            log.info("beginning_not_kept", worker=self.worker_id, error=error_name(error))

    # --- claiming ---

    async def _claims(self) -> None:
        failures = 0
        while True:
            self._room.clear()
            claimed: list[Claimed] = []
            began = False
            open_slots, urgent_slots = self._free()
            if self._state == "ready" and self._is_well and open_slots + urgent_slots > 0:
                try:
                    claimed = await self._queue.claim(
                        self.worker_id, open_slots=open_slots, urgent_slots=urgent_slots, now_ms=self._now_ms()
                    )
                    failures = 0
                except QueueUnavailable:
                    await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                    failures += 1
                    continue
            while claimed:
                # Taken out: a name that went on meaning the last job would keep its prompt until the next one.
                self._begin(claimed.pop(0))
                began = True
            if not began:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await self._room.wait()

    def _free(self) -> tuple[int, int]:
        """Slots for any lane, and further ones for urgent jobs; those of jobs that are being prepared are taken."""
        capacity = self._engine.capacity()
        taken = capacity.active + sum(not held.is_submitted for held in self._held.values())
        anything = max(0, capacity.slots - capacity.reserved - taken)
        return anything, max(0, capacity.slots - taken) - anything

    def _begin(self, claimed: Claimed) -> None:
        before = self._held.get(claimed.job_id)
        if before is not None:
            self._drop(before)
        self._keys += 1
        held = _Held(claimed, self._keys, self._clock.monotonic_ms())
        self._held[claimed.job_id] = held
        self._by_key[held.key] = held
        self._nothing_held.clear()
        held.task = asyncio.create_task(self._write(held), name="write")

    # --- writing one ---

    async def _write(self, held: _Held) -> None:
        """From the claim to the outcome; every way out has one."""
        try:
            outcome = await self._outcome(held)
        except PromptRefused as error:
            log.error("prompt_refused", worker=self.worker_id, job=held.claimed.job_id, code=error.code)
            outcome = self._failed(held, error.code)
        except EngineError as error:
            outcome = self._ended(held, Finished(reason="error", text="", error=error_name(error)))
        except Exception as error:  # a bug must not leave the job without an end
            log.error("writing_failed", worker=self.worker_id, job=held.claimed.job_id, error=error_name(error))
            outcome = self._failed(held, ErrorCode.INTERNAL)
        if self._by_key.get(held.key) is not held:
            return
        held.is_ended = True
        self._outflow.end(held.key, outcome, self._clock.monotonic_ms())
        self._to_send.set()
        self._room.set()
        if outcome.reason in {"stop", "length"}:
            self._remember(held.claimed.job)

    async def _outcome(self, held: _Held) -> Outcome:
        claimed = held.claimed
        job = claimed.job
        segments = await self._segments(job.pieces)
        if sum(map(len, segments)) + job.max_tokens > self._engine.info.context_tokens:
            raise PromptRefused(ErrorCode.TOO_LARGE)
        generation = Generation(
            id=held.generation_id,
            segments=segments,
            grammar=self._grammar(job.actions),
            max_tokens=job.max_tokens,
            temperature=job.temperature,
            deadline_ms=self._clock.monotonic_ms() + claimed.deadline_ms - self._now_ms(),
            is_urgent=claimed.lane == "stat",
            salt=job.salt,
        )
        while not held.is_stopped:
            try:
                finished = await self._generate(held, generation)
            except EngineFull:
                # The canary is in the slot, or a text whose end the engine has not noticed: a moment.
                held.is_submitted = False
                held.is_stopped |= self._now_ms() >= claimed.deadline_ms
                await asyncio.sleep(_FULL_POLL_S)
                continue
            return self._ended(held, finished)
        return self._ended(held, Finished(reason="cancelled", text=""))

    async def _generate(self, held: _Held, generation: Generation) -> Finished:
        held.is_submitted = True
        async with aclosing(self._engine.generate(generation)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return event
                self._text(held, event)
        raise EngineError("ended without an end")

    def _text(self, held: _Held, delta: Delta) -> None:
        now_ms = self._clock.monotonic_ms()
        self._real_token()
        if held.first_ms is None:
            held.first_ms = now_ms
        held.has_spoken = True
        if self._by_key.get(held.key) is held:
            self._outflow.add(held.key, delta.text, now_ms)
            self._to_send.set()

    def _ended(self, held: _Held, finished: Finished) -> Outcome:
        claimed = held.claimed
        reason: FinishReason = finished.reason
        now_ms = self._clock.monotonic_ms()
        if reason == "cancelled" and self._now_ms() >= claimed.deadline_ms:
            reason = "deadline"
        log.info(
            "written",
            worker=self.worker_id,
            job=claimed.job_id,
            lane=claimed.lane,
            attempt=claimed.attempt,
            reason=reason,
            tokens_in=finished.tokens_in,
            tokens_out=finished.tokens_out,
            prefix_hit_tokens=finished.prefix_hit_tokens,
            queue_ms=claimed.queue_ms,
            ms=now_ms - held.begun_ms,
            error=finished.error or None,
        )
        if reason == "error":
            self._is_well = False
            self._ask_canary.set()
        return Outcome(
            reason=reason,
            error=_ENGINE_FAILED if reason == "error" else "",
            tokens_in=finished.tokens_in,
            tokens_out=finished.tokens_out,
            prefix_hit_tokens=finished.prefix_hit_tokens,
            ttft_ms=None if held.first_ms is None else held.first_ms - held.begun_ms,
            generation_ms=now_ms - held.begun_ms,
            queue_ms=claimed.queue_ms,
            model=self._engine.info.model,
            choice_logprobs=finished.choice_logprobs,
        )

    def _failed(self, held: _Held, code: ErrorCode) -> Outcome:
        return Outcome(
            reason="error",
            error=code.value,
            generation_ms=self._clock.monotonic_ms() - held.begun_ms,
            queue_ms=held.claimed.queue_ms,
            model=self._engine.info.model,
        )

    async def _segments(self, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], ...]:
        """The prompt's ids, made beside the loop: a long prompt takes milliseconds. Raises PromptRefused."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, self._checked, tuple(pieces))

    def _checked(self, pieces: tuple[Piece, ...]) -> tuple[tuple[int, ...], ...]:
        segments = self._tokens.prompt(pieces)
        if self._specials(segments) != self._frame:
            raise PromptRefused(ErrorCode.SAFETY_BLOCKED)
        return segments

    def _specials(self, segments: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        special = self._tokens.special_ids
        return tuple(token for segment in segments for token in segment if token in special)

    # --- letting go ---

    def _stop(self, held: _Held) -> None:
        """End it in the engine; its outcome is sent as every other."""
        held.is_stopped = True
        self._engine.cancel(held.generation_id)

    def _drop(self, held: _Held) -> None:
        """Somebody else has the job, or nobody: nothing of it is sent any more."""
        self._stop(held)
        self._forget(held)
        log.info("job_dropped", worker=self.worker_id, job=held.claimed.job_id, fence=held.claimed.fence)

    def _forget(self, held: _Held) -> None:
        self._outflow.drop(held.key)
        self._by_key.pop(held.key, None)
        if self._held.get(held.claimed.job_id) is held:
            del self._held[held.claimed.job_id]
        if not self._held:
            self._nothing_held.set()
        self._room.set()

    # --- sending ---

    async def _sends(self) -> None:
        while True:
            self._to_send.clear()
            now_ms = self._clock.monotonic_ms()
            due_ms = self._outflow.due_ms()
            if due_ms is None or due_ms > now_ms:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if due_ms is None else (due_ms - now_ms) / 1000):
                        await self._to_send.wait()
                continue
            await self._send(self._outflow.take(now_ms))

    async def _send(self, batch: Sequence[tuple[int, str, Outcome | None]]) -> None:
        """One round trip for what all jobs have. What Redis does not take is sent again, as one and the same batch, so
        that no text stands twice or is left out; until none of its jobs is this worker's any more."""
        emissions, sent = [], []
        for key, text, outcome in batch:
            held = self._by_key.get(key)
            if held is None:
                continue
            sent.append((held, outcome))
            job_id, fence = held.claimed.job_id, held.claimed.fence
            if text:
                emissions.append(Emission(job_id=job_id, fence=fence, kind="text", text=text))
            if not text and outcome is None:
                emissions.append(Emission(job_id=job_id, fence=fence, kind="moving"))
            if outcome is not None:
                # Another engine may write what this one could not; what this worker itself refuses stays refused.
                kind: Literal["failed", "ended"] = "failed" if outcome.error == _ENGINE_FAILED else "ended"
                emissions.append(Emission(job_id=job_id, fence=fence, kind=kind, outcome=outcome))
        failures = 0
        while any(self._by_key.get(held.key) is held for held, _ in sent):
            try:
                refused = await self._queue.emit(self.worker_id, emissions)
            except QueueUnavailable:
                log.warning("sending_failed", worker=self.worker_id, events=len(emissions))
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                continue
            for held, outcome in sent:
                if self._by_key.get(held.key) is not held:
                    continue
                if held.claimed.job_id in refused:
                    self._drop(held)
                elif outcome is not None:
                    self._forget(held)
            return

    # --- saying that it lives ---

    async def _moves(self) -> None:
        """Tell readers of jobs without words that the engine is at work, while it makes steps and only then."""
        steps = self._engine.progress().steps
        while True:
            await asyncio.sleep(_MOVING_S)
            before, steps = steps, self._engine.progress().steps
            self._move(is_moving=steps > before)

    def _move(self, *, is_moving: bool) -> None:
        # Apart from the loop above: its names would keep the last job's prompt until another comes. So below.
        now_ms = self._clock.monotonic_ms()
        for held in self._by_key.values():
            if is_moving and not held.has_spoken and not held.is_ended:
                self._outflow.add(held.key, "", now_ms)
                self._to_send.set()
            held.has_spoken = False

    async def _beats(self) -> None:
        while True:
            self._beat_now.clear()
            try:
                await self._beat()
                await self._queue.reap(self._now_ms())
            except QueueUnavailable:
                log.warning("beat_failed", worker=self.worker_id, held=len(self._held))
            self._let_lapse()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.job_beat_s):
                    await self._beat_now.wait()

    async def _beat(self) -> None:
        now_ms = self._clock.monotonic_ms()
        active = self._engine.capacity().active if self._is_loaded else 0
        steps = self._engine.progress().steps if self._is_loaded else 0
        held = {job_id: held.claimed.fence for job_id, held in self._held.items()}
        beat = await self._queue.beat(
            self._report(active),
            held,
            is_progressing=active == 0 or steps > self._beaten_steps,
            now_ms=self._now_ms(),
        )
        self._beaten_ms = now_ms
        self._beaten_steps = steps
        for job_id in beat.stop:
            self._with_fence(job_id, held, self._stop)
        for job_id in beat.lost:
            self._with_fence(job_id, held, self._drop)

    def _with_fence(self, job_id: str, fences: dict[str, int], act: Callable[[_Held], None]) -> None:
        """Act on a job if it is still the one that was asked about: it may have been claimed again meanwhile."""
        held = self._held.get(job_id)
        if held is not None and held.claimed.fence == fences.get(job_id):
            act(held)

    def _report(self, active: int) -> WorkerState:
        capacity = self._engine.capacity() if self._is_loaded else None
        return WorkerState(
            worker_id=self.worker_id,
            engine=self._settings.engine,
            state=self._state,
            at_ms=self._now_ms(),
            canary_ms=self._token_unix_ms,
            slots=capacity.slots if capacity is not None else 0,
            reserved=capacity.reserved if capacity is not None else 0,
            active=active,
            model=self._engine.info.model if self._is_loaded else None,
        )

    def _let_lapse(self) -> None:
        """Without a beat for as long as a lease, others may have the jobs: writing on would be for nobody."""
        now_ms, lease_ms = self._clock.monotonic_ms(), round(self._settings.job_lease_s * 1000)
        for held in list(self._held.values()):
            if now_ms - max(self._beaten_ms, held.begun_ms) > lease_ms:
                self._drop(held)

    async def _hears(self) -> None:
        """The queue's bell: cancelled jobs end at once, waiting ones are claimed at once."""
        if self._redis is None:
            await asyncio.Event().wait()
            return
        async for ring in rings(self._redis):
            if ring.kind == "cancel":
                self._stop_all(ring.job_ids)
            elif ring.kind == "work":
                self._room.set()
            elif ring.kind == "lost" and (not ring.job_ids or not self._held.keys().isdisjoint(ring.job_ids)):
                self._room.set()
                self._beat_now.set()

    def _stop_all(self, job_ids: Sequence[str]) -> None:
        for held in filter(None, map(self._held.get, job_ids)):
            self._stop(held)

    # --- the canary ---

    async def _canaries(self) -> None:
        """One real token every ``canary_interval_s`` unless texts give them; the first one opens the claims."""
        failures = 0
        interval_s = self._settings.canary_interval_s
        while True:
            self._ask_canary.clear()
            idle_ms = self._clock.monotonic_ms() - self._token_ms
            if not self._is_well or idle_ms >= interval_s * 1000:
                failures = 0 if await self._canary() else failures + 1
            wait_s = min(interval_s, _BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1]) if failures else interval_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._ask_canary.wait()

    async def _canary(self) -> bool:
        """Whether the engine made a token, or has no room for one because it is at work."""
        bound_s = self._settings.model_down_s
        self._keys += 1
        generation = Generation(
            id=f"canary/{self._keys}",
            segments=self._tokens.prompt(_CANARY),
            max_tokens=1,
            deadline_ms=self._clock.monotonic_ms() + round(bound_s * 1000),
            is_urgent=True,
        )
        finished: Finished | None = None
        try:
            async with asyncio.timeout(bound_s), aclosing(self._engine.generate(generation)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        finished = event
        except EngineFull:
            return True
        except (EngineError, TimeoutError) as error:
            log.warning("canary_failed", worker=self.worker_id, error=error_name(error))
        self._room.set()
        was_well, self._is_well = self._is_well, finished is not None and finished.reason in {"stop", "length"}
        if not self._is_well:
            log.warning("canary_silent", worker=self.worker_id, reason=finished.reason if finished else None)
            return False
        self._real_token()
        if self._state == "starting":
            self._state = "ready"
        if not was_well:
            log.info("worker_ready", worker=self.worker_id)
            self._beat_now.set()
        return True

    def _real_token(self) -> None:
        self._token_ms = self._clock.monotonic_ms()
        self._token_unix_ms = self._now_ms()
