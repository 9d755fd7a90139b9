"""Following answers that are being written: one reader for all of a gateway's, told to every phone that may hear.

Whoever writes for a phone's session, on whatever gateway, the text comes from the job's stream in Redis. A run of
this gateway waits for the end of it; a phone whose question another gateway answers only listens. What is told here
is ephemeral: losing it loses no promise, the answer in the session's log is the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal, Protocol, cast

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatd import metrics, tasks
from chatd.clock import Clock, epoch_ms
from chatd.inference.jobs import Outcome, Result
from chatd.inference.order import Place
from chatd.inference.queue import PREFIX, JobQueue, QueueUnavailable, rings
from chatd.inference.sections import SectionReader
from chatd.logs import error_name
from protocols.frames import Queue, QueueState

log = structlog.get_logger(__name__)

#: A bell that was lost costs at most this; with the bell a read follows at once.
POLL_S: Final = 0.25
#: Between two reads: what the workers write within it is read together.
_FLOOR_S: Final = 0.01
#: Places in the queue are told at most this often, and an estimate again when it has moved by as much.
PLACES_MS: Final = 1_000
#: After Redis failed the next read waits this long.
_RETRY_S: Final = 0.5
#: A phone that listens for an answer which never came to the queue stops after this.
_PATIENCE_MS: Final = 600_000


class Phone(Protocol):
    """A connection, as far as an answer in the making concerns it; none of its methods waits."""

    def can_hear(self, response_id: str) -> bool: ...
    def hear_place(self, frame: Queue) -> None: ...
    def hear_words(self, response_id: str, section: str, text: str, attempt: int) -> None: ...


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended for the run that waited. ``text``: all of the last attempt.

    ``how``: ``ended`` (then ``outcome`` is there), ``gone`` (Redis does not know the job), ``down`` (no model is left
    that could write it).
    """

    how: Literal["ended", "gone", "down"]
    text: str = ""
    attempt: int = 1
    outcome: Outcome | None = None


class Draft:
    """One job's text as read so far; pure: events and times in, what changed out."""

    def __init__(self) -> None:
        self.cursor = "0"
        self.attempt = 1
        self.state: QueueState = "waiting"
        self.outcome: Outcome | None = None
        self.heard_ms = 0
        self._pieces: list[str] = []
        self._reader = SectionReader()
        self._shown: list[tuple[str, str]] = []

    @property
    def text(self) -> str:
        """Everything of this attempt, as the model wrote it."""
        return "".join(self._pieces)

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """(section, text) of this attempt as phones see it, each section once, in the order of writing."""
        merged: dict[str, str] = {}
        for section, text in self._shown:
            merged[section] = merged.get(section, "") + text
        self._shown = list(merged.items())
        return tuple(self._shown)

    def take(self, event: Result, now_ms: int) -> tuple[QueueState | None, tuple[tuple[str, str], ...]]:
        """Note one event; returns the new state, if it is another one, and the text to show."""
        self.cursor, self.heard_ms = event.id, now_ms
        before = self.state
        new: tuple[tuple[str, str], ...] = ()
        match event.kind:
            case "begun":
                self._begin(event.attempt)
                self.state = "running"
            case "text":
                if event.attempt == self.attempt:
                    self.state = "running"
                    self._pieces.append(event.text)
                    new = self._show(event.text)
            case "moving":
                if event.attempt == self.attempt:
                    self.state = "running"
            case "restart":
                self._begin(event.attempt + 1)
                self.state = "restarted"
            case "ended":
                self.outcome = event.outcome
        return (self.state if self.state != before else None), new

    def _begin(self, attempt: int) -> None:
        self.attempt = max(attempt, 1)
        self._pieces, self._shown, self._reader = [], [], SectionReader()

    def _show(self, text: str) -> tuple[tuple[str, str], ...]:
        new = tuple(self._reader.feed(text))
        self._shown += new
        return new

    @property
    def ended(self) -> Ended:
        """How it ended, once there is an ``outcome``."""
        return Ended(how="ended", text=self.text, attempt=self.attempt, outcome=self.outcome)

    @property
    def is_waiting(self) -> bool:
        """Whether nobody writes it now."""
        return self.state in ("waiting", "restarted") and self.outcome is None

    def silent(self, now_ms: int, silence_ms: int) -> bool:
        """Whether it is being written and nothing was heard of it for ``silence_ms``; true once, until that ends.

        A long prompt gives no words for long, but its worker says meanwhile that the engine moves.
        """
        if self.state != "running" or self.outcome is not None or now_ms - self.heard_ms < silence_ms:
            return False
        self.state = "stalled"
        return True


class _Listener:
    """One question that a job answers, and who has been told what of it."""

    def __init__(self, response_id: str, key: str, now_ms: int) -> None:
        self.response_id = response_id
        self.key = key
        self.since_ms = now_ms
        self.ended: asyncio.Future[Ended] | None = None
        #: When its run began; None once its first text has been seen, or for one that only listens.
        self.started_ms: int | None = None
        self.told: set[Phone] = set()


class _Stream:
    """A job that is followed here."""

    def __init__(self, job_id: str, now_ms: int) -> None:
        self.job_id = job_id
        self.draft = Draft()
        self.draft.heard_ms = now_ms
        self.lane = "routine"
        #: As last told; None while it does not wait.
        self.place: Queue | None = None
        self.is_found = False
        self.listeners: dict[str, _Listener] = {}


class Follower:
    """All jobs that this gateway follows: one task and one round trip for all of them.

    ``phones_of`` gives the phones of a session here; ``is_down`` says that no model is left that could write. Both
    are asked in each round. Every method but ``run`` returns at once.
    """

    def __init__(
        self,
        queue: JobQueue,
        redis: Redis,
        doorbell: Redis,
        *,
        clock: Clock,
        silence_s: float,
        is_down: Callable[[], bool],
    ) -> None:
        self._queue = queue
        self._redis = redis
        self._doorbell = doorbell
        self._clock = clock
        self._silence_ms = round(silence_s * 1000)
        self._is_down = is_down
        self._streams: dict[str, _Stream] = {}
        self._job_of: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._placed_ms = 0
        self.phones_of: Callable[[str], Iterable[Phone]] = lambda _: ()

    # --- who follows what ---

    def follow(
        self,
        job_id: str,
        response_id: str,
        key: str,
        *,
        lane: str,
        position: int | None,
        eta_ms: int | None,
        started_ms: int,
    ) -> asyncio.Future[Ended]:
        """Follow a job for a run of this gateway, until ``leave``; the future is done with its end and never fails.

        The phones of the run's session hear its place at once; those that have heard of the job before, because they
        listened or because the run is tried again, go on where they stand. ``started_ms``: when the run began,
        monotonic.
        """
        listener = self._listener(response_id)
        if listener is None or self._job_of[response_id] != job_id:
            self.leave(response_id)
            listener = self._listen(job_id, response_id, key)
        if listener.ended is not None:
            listener.ended.cancel()
        else:
            listener.started_ms = started_ms
        listener.ended = asyncio.get_running_loop().create_future()
        stream = self._streams[job_id]
        stream.lane = lane
        if position and stream.draft.state == "waiting":
            frame = Queue(response_id=response_id, lane=lane, position=position, eta_ms=eta_ms)
            stream.place = stream.place or frame
            for phone in self.phones_of(key):
                if phone not in listener.told and phone.can_hear(response_id):
                    phone.hear_place(frame)
                    listener.told.add(phone)
        if stream.draft.outcome is not None:
            self._end(stream, stream.draft.ended)
        self._wake.set()
        return listener.ended

    def attend(self, response_id: str, key: str) -> None:
        """Let the session's phones here hear an answer; one that is followed already is heard anyway."""
        if response_id not in self._job_of:
            self._listen(response_id, response_id, key)
        self._wake.set()

    def dismiss(self, response_id: str) -> None:
        """The answer stands: end an ``attend``; a run that follows ends by itself."""
        listener = self._listener(response_id)
        if listener is not None and listener.ended is None:
            self.leave(response_id)

    def leave(self, response_id: str) -> None:
        """Stop following for this response; twice does no harm. The job goes on."""
        stream = self._streams.get(self._job_of.pop(response_id, ""))
        if stream is None:
            return
        listener = stream.listeners.pop(response_id)
        if listener.ended is not None:
            listener.ended.cancel()
        if not stream.listeners:
            del self._streams[stream.job_id]

    def _listen(self, job_id: str, response_id: str, key: str) -> _Listener:
        now_ms = self._clock.monotonic_ms()
        stream = self._streams.setdefault(job_id, _Stream(job_id, now_ms))
        listener = stream.listeners[response_id] = _Listener(response_id, key, now_ms)
        self._job_of[response_id] = job_id
        return listener

    def _listener(self, response_id: str) -> _Listener | None:
        stream = self._streams.get(self._job_of.get(response_id, ""))
        return None if stream is None else stream.listeners[response_id]

    # --- answers that joined another's job ---

    async def joined(self, response_id: str, job_id: str, keep_s: int) -> None:
        """Note for all gateways that this response is written as another one's job."""
        with answering():
            await self._redis.set(_alias(response_id), job_id, ex=keep_s)

    async def job_of(self, response_id: str) -> str:
        """The job that writes this response: its own unless it joined another's."""
        known = self._job_of.get(response_id)
        if known is not None and known != response_id:
            return known
        with answering():
            found = cast("bytes | None", await self._redis.get(_alias(response_id)))
        return response_id if found is None else found.decode()

    async def _find(self) -> None:
        """Attended responses of which there is no job of their own may have joined another's."""
        lost = [stream for stream in self._streams.values() if not stream.is_found]
        waiting = [each for stream in lost for each in stream.listeners.values() if each.ended is None]
        if not waiting:
            return
        with answering():
            keys = [_alias(each.response_id) for each in waiting]
            found = cast("list[bytes | None]", await self._redis.mget(keys))
        for listener, job_id in zip(waiting, found, strict=True):
            if job_id is not None:
                self.leave(listener.response_id)
                self._listen(job_id.decode(), listener.response_id, listener.key)

    # --- the one reader ---

    async def run(self) -> None:
        """Read and tell until cancelled."""
        bell = asyncio.create_task(self._hear_bell())
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S if self._streams else None):
                        await self._wake.wait()
                self._wake.clear()
                try:
                    await self.round()
                except QueueUnavailable as error:
                    log.warning("answers_not_read", error=error_name(error))
                    await asyncio.sleep(_RETRY_S)
                await asyncio.sleep(_FLOOR_S)
        finally:
            await tasks.end([bell])

    async def _hear_bell(self) -> None:
        async for ring in rings(self._doorbell):
            if ring.kind == "lost" or any(job_id in self._streams for job_id in ring.job_ids):
                self._wake.set()

    async def round(self) -> None:
        """One round: read what is new of every job, tell the phones, wake the runs whose job has ended.

        Raises QueueUnavailable; what was read before is told.
        """
        self._drop_unheard()
        streams = dict(self._streams)
        if not streams:
            return
        found = await self._queue.read({job_id: stream.draft.cursor for job_id, stream in streams.items()})
        now_ms = self._clock.monotonic_ms()
        for job_id, stream in streams.items():
            events = found.get(job_id)
            if events is None:
                self._gone(stream)
                continue
            stream.is_found = True
            for event in events:
                self._tell(stream, *stream.draft.take(event, now_ms))
            if stream.draft.silent(now_ms, self._silence_ms):
                self._tell(stream, "stalled", ())
            self._tell_newcomers(stream)
            if stream.draft.outcome is not None:
                self._end(stream, stream.draft.ended)
        if self._is_down():
            for stream in streams.values():
                self._end(stream, Ended(how="down", attempt=stream.draft.attempt))
        if now_ms - self._placed_ms >= PLACES_MS:
            self._placed_ms = now_ms
            await self._find()
            await self._tell_places()

    def _drop_unheard(self) -> None:
        """Stop listening for phones that have gone, or for an answer that never came to the queue."""
        now_ms = self._clock.monotonic_ms()
        for stream in list(self._streams.values()):
            for listener in list(stream.listeners.values()):
                here = set(self.phones_of(listener.key))
                listener.told &= here
                is_late = not stream.is_found and now_ms - listener.since_ms > _PATIENCE_MS
                if listener.ended is None and (not here or is_late):
                    self.leave(listener.response_id)

    def _gone(self, stream: _Stream) -> None:
        """Redis has no such job: it has lost it, or nobody has put it there yet."""
        self._end(stream, Ended(how="gone", attempt=stream.draft.attempt))
        if stream.is_found:
            # A stream that begins again under the same id begins with nothing read.
            stream.draft, stream.is_found = Draft(), False
            stream.draft.heard_ms = self._clock.monotonic_ms()
            for listener in stream.listeners.values():
                listener.told.clear()

    def _end(self, stream: _Stream, ended: Ended) -> None:
        for listener in stream.listeners.values():
            if listener.ended is not None and not listener.ended.done():
                listener.ended.set_result(ended)

    # --- telling ---

    def _tell(self, stream: _Stream, state: QueueState | None, new: Sequence[tuple[str, str]]) -> None:
        """Tell the phones that have been told all before."""
        if state in ("running", "restarted"):
            stream.place = None
        if state == "restarted":
            metrics.JOB_RESTARTS.inc()
        for listener in stream.listeners.values():
            if new and listener.started_ms is not None:
                metrics.FIRST_TEXT_SECONDS.observe((self._clock.monotonic_ms() - listener.started_ms) / 1000)
                listener.started_ms = None
            for phone in listener.told:
                if state is not None:
                    phone.hear_place(_where(stream, listener.response_id))
                for section, text in new:
                    phone.hear_words(listener.response_id, section, text, stream.draft.attempt)

    def _tell_newcomers(self, stream: _Stream) -> None:
        """Tell all there is so far to phones that have come, or have caught up with their session's log."""
        for listener in stream.listeners.values():
            for phone in self.phones_of(listener.key):
                if phone in listener.told or not phone.can_hear(listener.response_id):
                    continue
                listener.told.add(phone)
                if stream.place is not None or stream.draft.state != "waiting":
                    phone.hear_place(_where(stream, listener.response_id))
                for section, text in stream.draft.shown:
                    phone.hear_words(listener.response_id, section, text, stream.draft.attempt)

    async def _tell_places(self) -> None:
        """Tell places and estimates that have changed."""
        waiting = [stream for stream in self._streams.values() if stream.is_found and stream.draft.is_waiting]
        if not waiting:
            return
        places = await self._queue.places(epoch_ms(self._clock.now()))
        for stream in waiting:
            place = places.get(stream.job_id)
            # A job that was begun between the reading and now has no place: its text will say so.
            if place is None or not stream.draft.is_waiting or not _is_news(stream.place, place):
                continue
            stream.draft.state, stream.lane = "waiting", place.lane
            stream.place = Queue(response_id="", lane=place.lane, position=place.position, eta_ms=place.eta_ms)
            for listener in stream.listeners.values():
                for phone in listener.told:
                    phone.hear_place(_where(stream, listener.response_id))


def _where(stream: _Stream, response_id: str) -> Queue:
    """Where a job stands, as one of its questions is told."""
    if stream.place is None:
        return Queue(response_id=response_id, lane=stream.lane, position=0, state=stream.draft.state)
    return msgspec.structs.replace(stream.place, response_id=response_id, state=stream.draft.state)


def _is_news(told: Queue | None, place: Place) -> bool:
    if told is None or (told.lane, told.position) != (place.lane, place.position):
        return True
    if told.eta_ms is None or place.eta_ms is None:
        return told.eta_ms is not place.eta_ms
    return abs(told.eta_ms - place.eta_ms) >= PLACES_MS


def _alias(response_id: str) -> str:
    return f"{PREFIX}alias:{response_id}"


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turns every fault of Redis within into QueueUnavailable, and counts it."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        metrics.REDIS_ERRORS.inc()
        raise QueueUnavailable from error
