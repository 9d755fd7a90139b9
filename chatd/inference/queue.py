"""The queue between gateways and workers, in Redis: fair, bounded, sealed, and at most one end for every job.

Each script beside this file is one atomic step; ``common.lua`` stands before all of them and says which keys there
are. Times are Unix ms given by the caller, so machines whose clocks differ by a good part of a lease are not
supported. Every step may be sent twice. A bell (``rings``) says when to look again; it is only a matter of speed.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Final, Literal, cast

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatd import metrics
from chatd.inference.jobs import Claimed, FinishReason, Job, Outcome, Result, ResultKind, WorkerState
from chatd.inference.lanes import LANES, STAT_RUN, Lane, LaneName, QueueLimits
from chatd.inference.order import Place, claim_order, eta_ms, line, slots_free_ms
from chatd.logs import error_name
from context.seal import Sealer, SealError
from protocols.errors import ChatdError, ErrorCode

log = structlog.get_logger(__name__)

#: One hash tag for all keys: the queue lives in one slot of a cluster, as its scripts must.
PREFIX: Final = "chatd:{queue}:"
BELL: Final = f"{PREFIX}bell"
#: A worker that has not been heard of for this many leases counts as gone.
STALE_LEASES: Final = 3
#: Events of one job. A text of 700 tokens has at most 700, and the ten minutes of the slowest lane have 2,400 signs of
#: an engine that moves; a job that writes more is ended as too long.
MAX_RESULTS: Final = 4_096
#: Jobs that ended without an answer because their attempts were spent, for a person to look at.
MAX_DEAD: Final = 100
#: Weight of the newest text in the mean service time: about the last eight count.
SERVICE_WEIGHT: Final = 0.125
#: Life of the queue's own numbers (mean service time, counters) without any use.
_STATE_MS: Final = 86_400_000
#: A bell whose connection broke is opened again after this; everybody polls meanwhile.
_BELL_RETRY_S: Final = 0.5
#: A bell that says nothing for so long is asked whether it is still there.
_BELL_IDLE_S: Final = 30.0
_SCRIPTS: Final = ("enqueue", "claim", "beat", "emit", "cancel", "reap")


class QueueUnavailable(ChatdError):
    """Redis did not answer in time; the step may or may not have been done, and may be done again."""


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job to be queued.

    ``queued``; ``known``: this id is there already, in whatever state; ``joined``: ``job_id`` is another job that
    answers the same question; ``full``: too many wait, or too many of this doctor's; ``deadline``: it could not be
    done in time. ``position`` and ``eta_ms``: while it waits, ``eta_ms`` None without a worker.
    ``retry_after_ms``: after ``full`` and ``deadline``, at least 1.
    """

    outcome: Literal["queued", "known", "joined", "full", "deadline"]
    job_id: str
    position: int | None = None
    eta_ms: int | None = None
    retry_after_ms: int | None = None


class GivenUp(msgspec.Struct, frozen=True, kw_only=True):
    """A job that ended without an answer because its attempts were spent; holds no text and nobody's name.

    ``asked_ms`` and ``begun_ms``: Unix ms of its question and of its last attempt. ``attempts``: times it was begun.
    ``reason``: what became of the last attempt: ``lost`` (its worker died or stood still), ``failed`` (its engine did).
    """

    job_id: str
    lane: LaneName
    asked_ms: int
    begun_ms: int
    attempts: int
    reason: Literal["lost", "failed"]


class Emission(msgspec.Struct, frozen=True, kw_only=True):
    """Something a worker has made: text that goes on where the last one ended, or the ``outcome`` of ``ended``.

    ``moving``: no text, but the engine has made a step since the last event.
    ``failed``: its engine failed on it. The job waits again in front of its lane, its reader told by ``restart``; after
    the last attempt it ends with ``outcome``.
    """

    job_id: str
    fence: int
    kind: Literal["text", "moving", "failed", "ended"]
    text: str = ""
    outcome: Outcome | None = None


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """``stop``: nobody wants these any more, or their time is over: end them. ``lost``: not this worker's any more."""

    stop: tuple[str, ...]
    lost: tuple[str, ...]


class Ring(msgspec.Struct, frozen=True, kw_only=True):
    """The bell. ``work``: these wait; ``results``: these have new events; ``cancel``: these are to be stopped;
    ``lost``: these were taken from their worker. ``lost`` without ids: the bell itself was away, look everywhere."""

    kind: Literal["work", "results", "cancel", "lost"]
    job_ids: tuple[str, ...] = ()


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turns every fault of Redis within into QueueUnavailable, and counts it."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        metrics.REDIS_ERRORS.inc()
        raise QueueUnavailable from error


class JobQueue:
    """All jobs of all gateways and workers; every method is one round trip and may be called again.

    Every method raises QueueUnavailable when Redis fails; cancelling one is safe, it may or may not have taken effect.
    """

    def __init__(self, redis: Redis, sealer: Sealer, limits: QueueLimits, *, lanes: Sequence[Lane] = LANES) -> None:
        self._redis = redis
        self._sealer = sealer
        self._limits = limits
        self._lanes = tuple(lanes)
        self._stale_ms = STALE_LEASES * limits.lease_ms
        self._sender = secrets.token_hex(8)
        self._batch = 0
        self._unsure: tuple[Emission, ...] = ()
        self._emitting = asyncio.Lock()
        self._packed = msgspec.msgpack.encode(
            {
                **msgspec.structs.asdict(limits),
                # Lua's table has no place for None.
                "lanes": [
                    {name: value for name, value in msgspec.structs.asdict(lane).items() if value is not None}
                    for lane in lanes
                ],
                "stat_run": STAT_RUN,
                "stale_ms": self._stale_ms,
                "life_ms": max(lane.deadline_ms for lane in lanes) + limits.keep_ms,
                "state_ms": _STATE_MS,
                "max_results": MAX_RESULTS,
                "max_dead": MAX_DEAD,
                "service_weight": SERVICE_WEIGHT,
            }
        )
        folder = resources.files(__package__)
        common = folder.joinpath("common.lua").read_text()
        self._scripts = {
            name: redis.register_script(common + folder.joinpath(f"{name}.lua").read_text()) for name in _SCRIPTS
        }

    async def _run(self, name: str, now_ms: int, *args: Any) -> Any:
        with _answering():
            return await self._scripts[name](keys=[f"{PREFIX}state"], args=[self._packed, now_ms, *args])

    def _seal(self, job_id: str, what: str, content: bytes) -> bytes:
        return self._sealer.seal(content, aad=f"{job_id}|{what}".encode())

    def _open(self, job_id: str, what: str, sealed: bytes) -> bytes:
        return self._sealer.open(sealed, aad=f"{job_id}|{what}".encode())

    # --- the gateway's side ---

    async def enqueue(
        self, job: Job, *, doctor: str, lane: LaneName, follower: str, now_ms: int, same_key: str = ""
    ) -> Placed:
        """Put a job into its lane and follow it; a refused one leaves nothing behind.

        Args:
            doctor: whose question it is; holds no ``|``, as no user id does.
            follower: who waits for it, until ``cancel`` or ``forget`` by the same name.
            same_key: equal for jobs whose answers are interchangeable; "" joins nothing.
        """
        if "|" in doctor:
            raise ValueError("a doctor's id holds no |")
        sealed = self._seal(job.job_id, "job", msgspec.json.encode(job))
        outcome, job_id, position, eta, retry = await self._run(
            "enqueue", now_ms, job.job_id, doctor, lane, follower, same_key, sealed
        )
        return Placed(
            outcome=outcome.decode(),
            job_id=job_id.decode(),
            position=position or None,
            eta_ms=eta if eta >= 0 else None,
            retry_after_ms=max(1, retry) if outcome in (b"full", b"deadline") else None,
        )

    async def cancel(self, job_id: str, *, follower: str, now_ms: int) -> bool:
        """Stop following. A job that nobody follows ends ``cancelled``: at once while it waits, by its worker's hand
        while it runs; either way it counts for its doctor no more. Returns whether nobody follows any more."""
        return bool(await self._run("cancel", now_ms, job_id, follower, 0))

    async def forget(self, job_id: str, follower: str) -> None:
        """Stop following a job whose answer is safe elsewhere. What nobody follows is deleted: at once, or when
        nobody can join it any more. A live job that nobody follows is cancelled."""
        await self._run("cancel", 0, job_id, follower, 1)

    async def read(self, cursors: Mapping[str, str]) -> dict[str, list[Result] | None]:
        """The events of each job after the given event id, "0" for all; None: the job is gone, queue it again.

        An event that does not open (its key has left the ring) reads as the job's end with an error.
        """
        if not cursors:
            return {}
        jobs = [f"{PREFIX}job:{job_id}" for job_id in cursors]
        with _answering():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xread({f"{PREFIX}results:{job_id}": after for job_id, after in cursors.items()})
                # After the events, so that those of a job that goes away in between are not taken for all there are.
                pipe.exists(*jobs)
                streams, existing = await pipe.execute()
            are_there: Sequence[int] = [1] * len(jobs)
            if existing < len(jobs):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for job in jobs:
                        pipe.exists(job)
                    are_there = await pipe.execute()
        found: dict[str, list[Result] | None] = {
            job_id: [] if is_there else None for job_id, is_there in zip(cursors, are_there, strict=True)
        }
        for key, rows in streams:
            job_id = key.decode().removeprefix(f"{PREFIX}results:")
            if found[job_id] is not None:
                found[job_id] = [self._result(job_id, *row) for row in rows]
        return found

    def _result(self, job_id: str, event_id: bytes, fields: dict[bytes, bytes]) -> Result:
        text, outcome = "", None
        kind = cast(ResultKind, fields[b"k"].decode())
        try:
            if b"s" in fields:
                content = self._open(job_id, kind, fields[b"s"])
                if kind == "text":
                    text = content.decode()
                else:
                    outcome = msgspec.json.decode(content, type=Outcome)
            elif kind == "ended":
                outcome = Outcome(reason=cast(FinishReason, fields[b"r"].decode()), error=fields[b"e"].decode())
        except (SealError, msgspec.MsgspecError) as error:
            log.error("result_unreadable", job_id=job_id, error=error_name(error))
            kind, outcome = "ended", Outcome(reason="error", error=ErrorCode.INTERNAL)
        return Result(id=event_id.decode(), kind=kind, attempt=int(fields[b"a"]), text=text, outcome=outcome)

    async def places(self, now_ms: int) -> dict[str, Place]:
        """Where every waiting job stands, exactly as claims for slots that anything may take would come.

        A claim for a reserved slot takes the first ``stat`` job out of turn.
        """
        with _answering():
            async with self._redis.pipeline(transaction=True) as pipe:
                for lane in self._lanes:
                    pipe.zrange(f"{PREFIX}lane:{lane.name}", 0, -1)
                    pipe.zrange(f"{PREFIX}turns:{lane.name}", 0, -1)
                pipe.zrangebyscore(f"{PREFIX}deadlines", "-inf", now_ms)
                pipe.zrange(f"{PREFIX}running", 0, -1, withscores=True)
                pipe.hmget(f"{PREFIX}state", ["run", "service"])
                pipe.hvals(f"{PREFIX}workers")
                *lines, late, running, (run, service), states = await pipe.execute()
        ended = set(late)
        waiting: dict[LaneName, list[str]] = {}
        for lane, members, turns in zip(self._lanes, lines[::2], lines[1::2], strict=True):
            jobs: defaultdict[str, list[str]] = defaultdict(list)
            for member in members:
                doctor, _, job_id = member.split(b"|", 2)
                if job_id not in ended:
                    jobs[doctor.decode()].append(job_id.decode())
            waiting[lane.name] = line([doctor.decode() for doctor in turns], jobs)
        live = [state for state in map(_state, states) if now_ms - state.at_ms <= self._stale_ms]
        live = [state for state in live if state.state == "ready"]
        every, reserved = sum(state.slots for state in live), sum(state.reserved for state in live)
        since = [int(score) for _, score in running]
        service_ms = int(service or self._limits.service_ms)
        free_ms = {
            is_top: slots_free_ms(
                slots=every if is_top else every - reserved,
                running_since=since,
                service_ms=service_ms,
                now_ms=now_ms,
            )
            for is_top in (True, False)
        }
        top = self._lanes[0].name
        return {
            job_id: Place(lane=name, position=position, eta_ms=eta_ms(position, free_ms[name == top], service_ms))
            for position, (name, job_id) in enumerate(claim_order(waiting, run=int(run or 0), lanes=self._lanes), 1)
        }

    async def workers(self, now_ms: int) -> list[WorkerState]:
        """What the workers last said of themselves, by id, without those that have been silent for three leases."""
        with _answering():
            states = [_state(raw) for raw in await cast(Any, self._redis.hvals(f"{PREFIX}workers"))]
        fresh = [state for state in states if now_ms - state.at_ms <= self._stale_ms]
        return sorted(fresh, key=lambda state: state.worker_id)

    # --- the worker's side ---

    async def claim(self, worker_id: str, *, open_slots: int, urgent_slots: int, now_ms: int) -> list[Claimed]:
        """The next jobs, best first: ``open_slots`` of any lane, then ``urgent_slots`` more of ``stat`` alone.

        Writes ``begun`` for each. A job that does not open (its key has left the ring) ends with an error.
        """
        if open_slots <= 0 and urgent_slots <= 0:
            return []
        rows = await self._run("claim", now_ms, worker_id, open_slots, urgent_slots)
        claimed, broken = [], []
        for raw_id, fence, attempt, lane, deadline, queue, sealed in rows:
            job_id = raw_id.decode()
            try:
                job = msgspec.json.decode(self._open(job_id, "job", sealed), type=Job)
            except (SealError, msgspec.MsgspecError) as error:
                log.error("job_unreadable", job_id=job_id, error=error_name(error))
                outcome = Outcome(reason="error", error=ErrorCode.INTERNAL)
                broken.append(Emission(job_id=job_id, fence=int(fence), kind="ended", outcome=outcome))
                continue
            claimed.append(
                Claimed(
                    job_id=job_id,
                    fence=int(fence),
                    attempt=attempt,
                    lane=cast(LaneName, lane.decode()),
                    deadline_ms=deadline,
                    queue_ms=max(0, queue),
                    job=job,
                )
            )
        if broken:
            await self.emit(worker_id, broken)
        return claimed

    async def beat(self, state: WorkerState, held: Mapping[str, int], *, is_progressing: bool, now_ms: int) -> Beat:
        """Say that this worker lives, and, only if its engine moves, keep what it holds.

        Args:
            held: the fence of each job it works on.
        """
        pairs = [part for pair in held.items() for part in pair]
        kept = f"{state.at_ms} {state.state} {state.slots} {state.reserved} ".encode() + msgspec.json.encode(state)
        stop, lost = await self._run("beat", now_ms, state.worker_id, kept, int(is_progressing), *pairs)
        return Beat(stop=tuple(i.decode() for i in stop), lost=tuple(i.decode() for i in lost))

    async def emit(self, worker_id: str, events: Sequence[Emission]) -> frozenset[str]:
        """Write events in order; returns the ids whose events were refused because the job is not this worker's.

        A batch is written once, however often it is sent: after QueueUnavailable call again with the same events, new
        ones behind them. ``failed`` and ``ended`` need their outcome, and what follows them is refused.
        """
        refused: frozenset[str] = frozenset()
        async with self._emitting:
            unsure = len(self._unsure)
            if unsure and tuple(events[:unsure]) == self._unsure:
                refused = await self._send(worker_id, self._unsure)
                events = events[unsure:]
            if events:
                self._batch += 1
                refused |= await self._send(worker_id, events)
        return refused

    async def _send(self, worker_id: str, events: Sequence[Emission]) -> frozenset[str]:
        args: list[Any] = [worker_id, self._sender, self._batch]
        for event in events:
            reason, service, content = "", "", event.text.encode()
            if event.kind in {"failed", "ended"}:
                outcome = event.outcome
                if outcome is None:
                    raise ValueError("an end needs its outcome")
                content, reason = msgspec.json.encode(outcome), outcome.reason
                # Texts that were broken off say nothing about how long one takes.
                if reason in ("stop", "length") and outcome.generation_ms is not None:
                    service = str(max(1, outcome.generation_ms))
            # What failed is written as an end, or not at all.
            sealed = b""
            if event.kind != "moving":
                sealed = self._seal(event.job_id, "text" if event.kind == "text" else "ended", content)
            args += [event.job_id, event.fence, event.kind, sealed, reason, service]
        self._unsure = tuple(events)
        refused = await self._run("emit", 0, *args)
        self._unsure = ()
        return frozenset(job_id.decode() for job_id in refused)

    # --- both ---

    async def reap(self, now_ms: int) -> int:
        """Take jobs from workers that lost their lease, end what is past its deadline, promote what has waited long.

        Everybody calls it about once a second. Returns how many jobs were touched.
        """
        return int(await self._run("reap", now_ms, "", 0))

    async def release(self, worker_id: str, now_ms: int, *, is_planned: bool = False) -> int:
        """Take all jobs from a worker that is known to be gone, and strike it off. Returns how many it had.

        Args:
            is_planned: it was told to go, and what it had begun is no attempt that failed. A job may be begun again
                after that as often as its deadline allows.
        """
        return int(await self._run("reap", now_ms, worker_id, int(is_planned)))

    async def depth(self) -> dict[LaneName, int]:
        """How many wait in each lane."""
        with _answering():
            async with self._redis.pipeline(transaction=False) as pipe:
                for lane in self._lanes:
                    pipe.zcard(f"{PREFIX}lane:{lane.name}")
                counts = await pipe.execute()
        return {lane.name: count for lane, count in zip(self._lanes, counts, strict=True)}

    async def given_up(self) -> list[GivenUp]:
        """The last jobs whose attempts were spent, newest first, at most ``MAX_DEAD``; gone a day after the newest."""
        with _answering():
            rows = await cast(Any, self._redis.lrange(f"{PREFIX}dead", 0, -1))
        found = []
        for row in rows:
            # A row of another version is nothing to stumble over.
            with contextlib.suppress(ValueError, msgspec.MsgspecError):
                words = dict(zip(GivenUp.__struct_fields__, row.decode().split(" "), strict=True))
                found.append(msgspec.convert(words, GivenUp, strict=False))
        return found

    @staticmethod
    def rings(redis: Redis) -> AsyncGenerator[Ring, None]:
        """``rings`` of this module, for who has the queue at hand."""
        return rings(redis)


def _state(kept: bytes) -> WorkerState:
    return msgspec.json.decode(kept.split(b" ", 4)[4], type=WorkerState)


async def rings(redis: Redis) -> AsyncGenerator[Ring, None]:
    """The bell, for ever: connects again by itself, and then says ``lost`` without ids, once it hears again.

    The first ring comes as soon as it hears. Nothing that rings after it is missed while the connection stands.
    Ends by cancellation or ``aclose`` only.
    """
    while True:
        pubsub = redis.pubsub(ignore_subscribe_messages=False)
        try:
            await pubsub.subscribe(BELL)
            while True:
                message = await pubsub.get_message(timeout=_BELL_IDLE_S)
                if message is None:
                    await pubsub.ping()
                elif message["type"] == "subscribe":
                    yield Ring(kind="lost")
                elif message["type"] == "message":
                    kind, *job_ids = message["data"].decode().split(" ")
                    yield Ring(kind=kind, job_ids=tuple(job_ids))
        except (RedisError, OSError, TimeoutError) as error:
            metrics.REDIS_ERRORS.inc()
            log.warning("bell_lost", error=error_name(error))
            await asyncio.sleep(_BELL_RETRY_S)
        finally:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]
