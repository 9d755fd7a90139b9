"""Jobs, workers and short calls for the tests of the inference queue."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, cast

from redis.asyncio import Redis

from chatd.inference.jobs import Claimed, Job, Outcome, Piece, Result, WorkerState
from chatd.inference.lanes import LaneName
from chatd.inference.queue import Emission, JobQueue, Placed

NOW = 1_800_000_000_000
STOP = Outcome(reason="stop", tokens_out=3, generation_ms=4_000)


def job(job_id: str, text: str = "prompt") -> Job:
    """A job whose prompt is ``text``."""
    return Job(job_id=job_id, pieces=(Piece(name="rules", text=text),), actions=("order_ecg",), max_tokens=10)


def worker(
    worker_id: str = "w1",
    slots: int = 2,
    reserved: int = 0,
    at_ms: int = NOW,
    state: Literal["starting", "ready", "draining"] = "ready",
) -> WorkerState:
    """What a worker says of itself."""
    return WorkerState(worker_id=worker_id, engine="scripted", state=state, at_ms=at_ms, slots=slots, reserved=reserved)


async def put(
    queue: JobQueue,
    job_id: str,
    doctor: str | None = None,
    lane: LaneName = "urgent",
    now_ms: int = NOW,
    same_key: str = "",
    follower: str | None = None,
) -> Placed:
    """Queue one job, followed under its own id, of a doctor of its own unless one is named."""
    return await queue.enqueue(
        job(job_id),
        doctor=doctor or f"dr.{job_id}",
        lane=lane,
        follower=follower or job_id,
        now_ms=now_ms,
        same_key=same_key,
    )


async def claim(
    queue: JobQueue, open_slots: int = 1, urgent_slots: int = 0, now_ms: int = NOW, worker_id: str = "w1"
) -> list[Claimed]:
    """Claim for slots that anything may take, unless told otherwise."""
    return await queue.claim(worker_id, open_slots=open_slots, urgent_slots=urgent_slots, now_ms=now_ms)


async def announce(queue: JobQueue, state: WorkerState) -> None:
    """Let a worker that holds nothing be known."""
    await queue.beat(state, {}, is_progressing=True, now_ms=state.at_ms)


def text(held: Claimed, content: str) -> Emission:
    """More text of a claimed job."""
    return Emission(job_id=held.job_id, fence=held.fence, kind="text", text=content)


async def end(queue: JobQueue, held: Claimed, outcome: Outcome = STOP, worker_id: str = "w1") -> frozenset[str]:
    """End a claimed job; returns what was refused."""
    emission = Emission(job_id=held.job_id, fence=held.fence, kind="ended", outcome=outcome)
    return await queue.emit(worker_id, [emission])


async def events(queue: JobQueue, job_id: str) -> list[Result]:
    """All events of a job that is there."""
    found = (await queue.read({job_id: "0"}))[job_id]
    assert found is not None
    return found


async def kinds(queue: JobQueue, job_id: str) -> list[str]:
    """The kinds of a job's events; an end with its reason and error."""
    found = await events(queue, job_id)
    return [f"ended {e.outcome.reason} {e.outcome.error}".strip() if e.outcome else e.kind for e in found]


async def all_keys(redis: Redis) -> list[str]:
    """Every key there is."""
    return [key.decode() for key in cast("list[bytes]", await redis.keys("*"))]


async def keys_that_stay(redis: Redis) -> list[str]:
    """The keys that would stay in Redis for ever."""
    return [key for key in await all_keys(redis) if await redis.pttl(key) < 0]


async def dump(redis: Redis) -> str:
    """Everything that lies in Redis, keys and values, as Redis itself would show it to an intruder."""
    readers: dict[bytes, Any] = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"set": redis.smembers,
        b"zset": partial(redis.zrange, start=0, end=-1, withscores=True),
        b"list": partial(redis.lrange, start=0, end=-1),
        b"stream": redis.xrange,
    }
    found = []
    for key in await all_keys(redis):
        found += [key, repr(await readers[cast(bytes, await redis.type(key))](key))]
    return "\n".join(found)
