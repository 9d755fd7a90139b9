"""The inference queue on a real Redis: fair, bounded, fenced, and exactly one end for every job."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from chatd.inference.jobs import Claimed, Job, Outcome, Piece, Result, WorkerState
from chatd.inference.lanes import LaneName, QueueLimits
from chatd.inference.queue import Emission, JobQueue, Placed
from context.seal import KeyRing, Sealer

NOW = 1_800_000_000_000
STOP = Outcome(reason="stop", tokens_out=3, generation_ms=4_000)


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    """A queue with the limits of service."""
    return JobQueue(redis, Sealer(KeyRing.generate()), QueueLimits())


def job(job_id: str, text: str = "prompt") -> Job:
    """A job whose prompt is ``text``."""
    return Job(job_id=job_id, pieces=(Piece(name="rules", text=text),), actions=("order_ecg",), max_tokens=10)


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


async def claim(queue: JobQueue, open_slots: int = 1, now_ms: int = NOW, worker: str = "w1") -> list[Claimed]:
    """Claim for slots that anything may take."""
    return await queue.claim(worker, open_slots=open_slots, urgent_slots=0, now_ms=now_ms)


async def events(queue: JobQueue, job_id: str) -> list[Result]:
    """All events of a job."""
    found = (await queue.read({job_id: "0"}))[job_id]
    assert found is not None
    return found


async def test_job_goes_through_to_its_reader(queue: JobQueue) -> None:
    """What was queued is claimed, and what was emitted is read in order, with one end."""
    placed = await put(queue, "r1")
    assert (placed.outcome, placed.position, placed.eta_ms) == ("queued", 1, None)
    (held,) = await claim(queue, now_ms=NOW + 500)
    assert (held.job, held.attempt, held.queue_ms, held.lane) == (job("r1"), 1, 500, "urgent")
    assert held.deadline_ms == NOW + 120_000
    batch = [
        Emission(job_id="r1", fence=held.fence, kind="text", text="Pressão "),
        Emission(job_id="r1", fence=held.fence, kind="text", text="120/80"),
        Emission(job_id="r1", fence=held.fence, kind="ended", outcome=STOP),
    ]
    assert await queue.emit("w1", batch) == frozenset()
    found = await events(queue, "r1")
    assert [(e.kind, e.text, e.attempt) for e in found] == [
        ("begun", "", 1),
        ("text", "Pressão ", 1),
        ("text", "120/80", 1),
        ("ended", "", 1),
    ]
    assert found[-1].outcome == STOP
    assert (await queue.read({"r1": found[1].id}))["r1"] == found[2:]


def worker(
    worker_id: str = "w1", slots: int = 2, reserved: int = 0, at_ms: int = NOW, state: str = "ready"
) -> WorkerState:
    """What a worker says of itself."""
    return WorkerState(worker_id=worker_id, engine="scripted", state=state, at_ms=at_ms, slots=slots, reserved=reserved)  # type: ignore[arg-type]


async def end(queue: JobQueue, held: Claimed, outcome: Outcome = STOP, worker_id: str = "w1") -> frozenset[str]:
    """End a claimed job."""
    return await queue.emit(worker_id, [Emission(job_id=held.job_id, fence=held.fence, kind="ended", outcome=outcome)])


async def kinds(queue: JobQueue, job_id: str) -> list[str]:
    """The kinds of a job's events; an end with its reason."""
    found = await events(queue, job_id)
    return [f"ended {e.outcome.reason} {e.outcome.error}".strip() if e.outcome else e.kind for e in found]


# --- once is once ---


async def test_enqueue_known_id_changes_nothing(queue: JobQueue) -> None:
    """A resend or an adoption finds the job as it is, waiting, running or ended."""
    await put(queue, "r1")
    again = await put(queue, "r1", now_ms=NOW + 10)
    assert (again.outcome, again.position) == ("known", 1)
    (held,) = await claim(queue)
    assert (await put(queue, "r1")).outcome == "known"
    await end(queue, held)
    last = await put(queue, "r1")
    assert (last.outcome, last.position, last.eta_ms) == ("known", None, None)
    assert await claim(queue) == []
    assert await kinds(queue, "r1") == ["begun", "ended stop"]


async def test_second_end_and_late_text_are_refused(queue: JobQueue) -> None:
    """After its end nothing more is written for a job, and the writer is told."""
    await put(queue, "r1")
    (held,) = await claim(queue)
    assert await end(queue, held) == frozenset()
    assert await end(queue, held, Outcome(reason="length")) == {"r1"}
    late = Emission(job_id="r1", fence=held.fence, kind="text", text="late")
    assert await queue.emit("w1", [late]) == {"r1"}
    assert await kinds(queue, "r1") == ["begun", "ended stop"]


async def test_lost_lease_is_given_to_another_and_the_zombie_refused(queue: JobQueue) -> None:
    """A worker whose lease ran out can neither write nor take its job back; the next one starts again."""
    await put(queue, "r1")
    (old,) = await claim(queue)
    assert await queue.reap(NOW + 4_999) == 0
    assert await queue.reap(NOW + 5_000) == 1
    beat = await queue.beat(worker(), {"r1": old.fence}, is_progressing=True, now_ms=NOW + 5_001)
    assert (beat.stop, beat.lost) == ((), ("r1",))
    (new,) = await claim(queue, worker="w2", now_ms=NOW + 5_002)
    assert new.fence > old.fence
    assert new.attempt == 2
    assert (await queue.beat(worker(), {"r1": old.fence}, is_progressing=True, now_ms=NOW + 5_003)).lost == ("r1",)
    text = Emission(job_id="r1", fence=old.fence, kind="text", text="zombie")
    assert await queue.emit("w1", [text]) == {"r1"}
    assert await end(queue, old) == {"r1"}
    assert await end(queue, new, worker_id="w2") == frozenset()
    assert await kinds(queue, "r1") == ["begun", "restart", "begun", "ended stop"]
    assert [e.attempt for e in await events(queue, "r1")] == [1, 1, 2, 2]


async def test_beat_keeps_the_lease_only_while_the_engine_moves(queue: JobQueue) -> None:
    """A beat with progress extends the lease; one without lets it run out."""
    await put(queue, "r1")
    (held,) = await claim(queue)
    for moves, at_ms in ((True, NOW + 3_000), (False, NOW + 6_000)):
        await queue.beat(worker(at_ms=at_ms), {"r1": held.fence}, is_progressing=moves, now_ms=at_ms)
    assert await queue.reap(NOW + 7_999) == 0
    assert await queue.reap(NOW + 8_000) == 1


async def test_spent_attempts_end_the_job(queue: JobQueue, redis: Redis) -> None:
    """A job whose workers died twice ends as ``model_unavailable`` and stands in the list of the dead."""
    await put(queue, "r1")
    for _ in range(2):
        await claim(queue)
        assert await queue.release("w1", NOW) == 1
    assert await claim(queue) == []
    assert await kinds(queue, "r1") == ["begun", "restart", "begun", "ended error model_unavailable"]
    assert await redis.lrange("chatd:{queue}:dead", 0, -1) == [b"r1"]


async def test_cancel_while_waiting_ends_at_once(queue: JobQueue) -> None:
    """A job taken back before its turn never reaches a worker."""
    await put(queue, "r1")
    assert await queue.cancel("r1", follower="r1", now_ms=NOW)
    assert await queue.cancel("r1", follower="r1", now_ms=NOW)
    assert await claim(queue) == []
    assert await kinds(queue, "r1") == ["ended cancelled"]


async def test_cancel_while_running_stops_it_by_the_beat(queue: JobQueue) -> None:
    """The worker hears with its next beat, and the end it writes is the only one."""
    await put(queue, "r1")
    (held,) = await claim(queue)
    assert await queue.cancel("r1", follower="r1", now_ms=NOW)
    beat = await queue.beat(worker(), {"r1": held.fence}, is_progressing=True, now_ms=NOW + 1)
    assert beat.stop == ("r1",)
    await end(queue, held, Outcome(reason="cancelled"))
    assert await queue.cancel("r1", follower="r1", now_ms=NOW)
    assert await kinds(queue, "r1") == ["begun", "ended cancelled"]
