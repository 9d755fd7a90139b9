"""The inference queue on a real Redis: fair, bounded, fenced, and exactly one end for every job."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from redis.asyncio import Redis

from chatd import tasks
from chatd.inference.jobs import Claimed, Outcome
from chatd.inference.lanes import LaneName, QueueLimits
from chatd.inference.queue import MAX_DEAD, MAX_RESULTS, Emission, GivenUp, JobQueue, QueueUnavailable, Ring, rings
from context.seal import KeyRing, Sealer
from tests.inference.queue_jobs import (
    NOW,
    STOP,
    all_keys,
    announce,
    claim,
    dump,
    end,
    events,
    job,
    keys_that_stay,
    kinds,
    put,
    text,
    worker,
)
from tests.redis_server import RedisServer


def queue_on(redis: Redis, **limits: int) -> JobQueue:
    """A queue with these limits, the others as in service."""
    return JobQueue(redis, Sealer(KeyRing.generate()), QueueLimits(**limits))


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    """A queue with the limits of service."""
    return queue_on(redis)


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
    assert await queue.emit("w1", [text(held, "late")]) == {"r1"}
    assert await kinds(queue, "r1") == ["begun", "ended stop"]


async def test_lost_lease_is_given_to_another_and_the_zombie_refused(queue: JobQueue) -> None:
    """A worker whose lease ran out can neither write nor take its job back; the next one starts again."""
    await put(queue, "r1")
    (old,) = await claim(queue)
    assert await queue.reap(NOW + 4_999) == 0
    assert await queue.reap(NOW + 5_000) == 1
    beat = await queue.beat(worker(), {"r1": old.fence}, is_progressing=True, now_ms=NOW + 5_001)
    assert (beat.stop, beat.lost) == ((), ("r1",))
    (new,) = await claim(queue, worker_id="w2", now_ms=NOW + 5_002)
    assert new.fence > old.fence
    assert new.attempt == 2
    assert (await queue.beat(worker(), {"r1": old.fence}, is_progressing=True, now_ms=NOW + 5_003)).lost == ("r1",)
    assert await queue.emit("w1", [text(old, "zombie")]) == {"r1"}
    assert await end(queue, old) == {"r1"}
    assert await end(queue, new, worker_id="w2") == frozenset()
    assert await kinds(queue, "r1") == ["begun", "restart", "begun", "ended stop"]
    assert [e.attempt for e in await events(queue, "r1")] == [1, 1, 2, 2]


async def test_old_fence_of_the_same_worker_holds_nothing(queue: JobQueue) -> None:
    """A worker that lost its job and got it again has it by the new fence alone."""
    await put(queue, "r1")
    (old,) = await claim(queue)
    await queue.reap(NOW + 5_000)
    (new,) = await claim(queue, now_ms=NOW + 5_000)
    assert (await queue.beat(worker(), {"r1": old.fence}, is_progressing=True, now_ms=NOW + 9_000)).lost == ("r1",)
    assert await queue.emit("w1", [text(old, "stale")]) == {"r1"}
    assert (await queue.beat(worker(), {"r1": new.fence}, is_progressing=False, now_ms=NOW + 9_000)).lost == ()
    assert await queue.reap(NOW + 10_000) == 1


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
    asked = {"lane": "urgent", "asked_ms": NOW, "begun_ms": NOW, "attempts": 2}
    await redis.rpush("chatd:{queue}:dead", "r0")
    assert await queue.given_up() == [msgspec.convert({"job_id": "r1", "reason": "lost", **asked}, GivenUp)]
    assert 0 < await redis.pttl("chatd:{queue}:dead") <= 86_400_000


def failed(held: Claimed) -> Emission:
    """The engine failed on a claimed job."""
    outcome = Outcome(reason="error", error="model_unavailable", tokens_in=7)
    return Emission(job_id=held.job_id, fence=held.fence, kind="failed", outcome=outcome)


async def test_failed_job_is_begun_again_at_once_before_those_who_came_later(queue: JobQueue) -> None:
    """No lease is waited for: it is at the front of its lane, what was written is void, and the attempt counts."""
    await put(queue, "r1")
    await put(queue, "r2")
    (held,) = await claim(queue)
    assert await queue.emit("w1", [text(held, "half a"), failed(held), text(held, "word")]) == {"r1"}
    (again,) = await claim(queue, worker_id="w2")
    assert (again.job_id, again.attempt) == ("r1", 2)
    assert again.fence > held.fence
    assert await queue.emit("w1", [failed(held)]) == {"r1"}
    assert await kinds(queue, "r1") == ["begun", "text", "restart", "begun"]


async def test_failed_job_ends_with_its_outcome_after_the_last_attempt(queue: JobQueue, redis: Redis) -> None:
    """Two attempts and no third; the last engine's own words about it are the end."""
    await put(queue, "r1")
    for _ in range(2):
        (held,) = await claim(queue)
        assert await queue.emit("w1", [failed(held)]) == frozenset()
    assert await claim(queue) == []
    last = (await events(queue, "r1"))[-1]
    assert (last.outcome, last.attempt) == (failed(held).outcome, 2)
    assert [(one.job_id, one.reason) for one in await queue.given_up()] == [("r1", "failed")]
    assert await redis.zcard("chatd:{queue}:leases") == 0


async def test_failed_job_that_nobody_wants_ends_cancelled(queue: JobQueue) -> None:
    """It is not begun again for nobody."""
    await put(queue, "r1")
    (held,) = await claim(queue)
    await queue.cancel("r1", follower="r1", now_ms=NOW)
    await queue.emit("w1", [failed(held)])
    assert await kinds(queue, "r1") == ["begun", "ended cancelled"]


async def test_failed_job_rings_for_who_can_begin_it(queue: JobQueue, redis: Redis) -> None:
    """Other workers hear that it waits, as they do of a new one."""
    await put(queue, "r1")
    (held,) = await claim(queue)
    bell = rings(redis)
    async with asyncio.timeout(20):
        assert (await anext(bell)).kind == "lost"
        await queue.emit("w1", [failed(held)])
        heard = [await anext(bell) for _ in range(2)]
    await bell.aclose()
    assert heard == [Ring(kind="work", job_ids=("r1",)), Ring(kind="results", job_ids=("r1",))]


async def test_planned_release_is_no_attempt_but_has_a_number(queue: JobQueue) -> None:
    """However many workers are restarted on purpose, two of the others must fail before a job is given up."""
    await put(queue, "r1")
    for attempt in range(1, 6):
        (held,) = await claim(queue)
        assert held.attempt == attempt
        assert await queue.release("w1", NOW, is_planned=attempt not in (2, 5)) == 1
    assert await claim(queue) == []
    assert await kinds(queue, "r1") == [*(["begun", "restart"] * 4), "begun", "ended error model_unavailable"]


async def test_planned_release_does_not_revive_what_is_over(queue: JobQueue) -> None:
    """A job that nobody wants, and one that is late, end all the same."""
    await put(queue, "r1")
    await put(queue, "r2", lane="stat")
    await claim(queue, 2)
    await queue.cancel("r1", follower="r1", now_ms=NOW)
    await queue.release("w1", NOW + 60_000, is_planned=True)
    assert await kinds(queue, "r1") == ["begun", "ended cancelled"]
    assert await kinds(queue, "r2") == ["begun", "ended deadline"]


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


async def test_emit_after_a_lost_reply_writes_once(redis: Redis) -> None:
    """The same batch sent again, new text behind it, stands once; the reply says what the first one would have."""
    queue = queue_on(redis)
    await put(queue, "r1")
    await put(queue, "r2")
    one, two = await claim(queue, 2)
    await queue.cancel("r2", follower="r2", now_ms=NOW)
    await end(queue, two)
    batch = [text(one, "a"), text(two, "late")]
    run, queue._run = queue._run, _losing_one_reply(queue)  # type: ignore[method-assign]
    with pytest.raises(QueueUnavailable):
        await queue.emit("w1", batch)
    queue._run = run  # type: ignore[method-assign]
    assert await queue.emit("w1", [*batch, text(one, "b")]) == {"r2"}
    assert [e.text for e in await events(queue, "r1")] == ["", "a", "b"]


def _losing_one_reply(queue: JobQueue):  # type: ignore[no-untyped-def]
    run = queue._run

    async def lose(*args: object) -> None:
        await run(*args)  # type: ignore[arg-type]
        raise QueueUnavailable

    return lose


async def test_moving_is_an_event_of_the_holder_alone(queue: JobQueue) -> None:
    """A sign of life without text is read in its place, and a zombie's is refused."""
    await put(queue, "r1")
    (old,) = await claim(queue)
    sign = Emission(job_id="r1", fence=old.fence, kind="moving")
    assert await queue.emit("w1", [sign, text(old, "a"), sign]) == frozenset()
    await queue.release("w1", NOW)
    await claim(queue, worker_id="w2")
    assert await queue.emit("w1", [sign]) == {"r1"}
    found = await events(queue, "r1")
    assert [e.kind for e in found] == ["begun", "moving", "text", "moving", "restart", "begun"]
    assert "".join(e.text for e in found) == "a"


async def test_emit_that_comes_late_is_refused(redis: Redis) -> None:
    """A batch that overtakes another one of its sender is written; the overtaken one is refused, not mixed in."""
    queue = queue_on(redis)
    await put(queue, "r1")
    (held,) = await claim(queue)
    await queue.emit("w1", [text(held, "first")])
    await queue.emit("w1", [text(held, "second")])
    queue._batch = 0
    assert await queue.emit("w1", [text(held, "first")]) == {"r1"}
    assert [e.text for e in await events(queue, "r1")] == ["", "first", "second"]


async def test_texts_of_other_queues_do_not_hinder_each_other(redis: Redis) -> None:
    """A restarted worker's process begins to count its batches anew and is heard."""
    sealer = Sealer(KeyRing.generate())
    first, second = (JobQueue(redis, sealer, QueueLimits()) for _ in range(2))
    await put(first, "r1")
    (held,) = await claim(first)
    for number in range(3):
        await first.emit("w1", [text(held, str(number))])
    assert await second.emit("w1", [text(held, "3")]) == frozenset()
    assert "".join(e.text for e in await events(first, "r1")) == "0123"


async def test_endless_text_is_ended(queue: JobQueue) -> None:
    """A job that writes more events than any text has ends as too long, whole up to there, and the worker is told."""
    await put(queue, "r1")
    (held,) = await claim(queue)
    batch = [text(held, "x")] * 1_024
    refused = [await queue.emit("w1", batch) for _ in range(MAX_RESULTS // len(batch))]
    assert refused == [frozenset()] * 3 + [frozenset({"r1"})]
    found = await events(queue, "r1")
    assert len(found) == MAX_RESULTS + 1
    assert (await kinds(queue, "r1"))[-1] == "ended length"


# --- followers ---


async def test_same_question_joins_the_running_answer(queue: JobQueue) -> None:
    """A second asker gets the first one's job; it goes on until neither wants it."""
    await put(queue, "r1", same_key="k")
    (held,) = await claim(queue)
    joined = await put(queue, "r2", same_key="k", now_ms=NOW + 59_999)
    assert (joined.outcome, joined.job_id) == ("joined", "r1")
    assert (await queue.read({"r2": "0"}))["r2"] is None
    assert not await queue.cancel("r1", follower="r1", now_ms=NOW)
    assert (await queue.beat(worker(), {"r1": held.fence}, is_progressing=True, now_ms=NOW)).stop == ()
    assert await queue.cancel("r1", follower="r2", now_ms=NOW)
    assert (await queue.beat(worker(), {"r1": held.fence}, is_progressing=True, now_ms=NOW)).stop == ("r1",)


async def test_same_question_after_a_minute_is_asked_anew(queue: JobQueue) -> None:
    """An answer that is a minute old may be out of date."""
    await put(queue, "r1", same_key="k")
    await end(queue, (await claim(queue))[0])
    assert (await put(queue, "r2", same_key="k", now_ms=NOW + 59_999)).outcome == "joined"
    assert (await put(queue, "r3", same_key="k", now_ms=NOW + 60_000)).outcome == "queued"
    assert (await put(queue, "r4", same_key="k", now_ms=NOW + 60_001)).job_id == "r3"


@pytest.mark.parametrize("reason", ["cancelled", "deadline", "error"])
async def test_same_question_does_not_join_what_ended_badly(queue: JobQueue, reason: str) -> None:
    """An answer that was broken off helps nobody."""
    await put(queue, "r1", same_key="k")
    (held,) = await claim(queue)
    await end(queue, held, Outcome(reason=reason))  # type: ignore[arg-type]
    assert (await put(queue, "r2", same_key="k")).outcome == "queued"


async def test_same_question_does_not_join_what_is_being_cancelled(queue: JobQueue) -> None:
    """A text that its worker has been told to stop is no answer to come."""
    await put(queue, "r1", same_key="k")
    await claim(queue)
    await queue.cancel("r1", follower="r1", now_ms=NOW)
    assert (await put(queue, "r2", same_key="k")).outcome == "queued"


async def test_stat_question_does_not_wait_with_a_routine_one(queue: JobQueue) -> None:
    """Joining must not make an asker wait longer: a job in a lower lane is joined once it runs."""
    await put(queue, "r1", lane="routine", same_key="k")
    assert (await put(queue, "r2", lane="stat", same_key="k")).outcome == "queued"
    assert (await put(queue, "r3", lane="routine", same_key="k")).job_id == "r2"
    assert (await put(queue, "r4", lane="routine", same_key="other")).outcome == "queued"


async def test_forget_deletes_what_nobody_follows(queue: JobQueue, redis: Redis) -> None:
    """The last follower's leave deletes job and text; a second call changes nothing."""
    await put(queue, "r1")
    await put(queue, "r1", follower="other")
    await end(queue, (await claim(queue))[0])
    await queue.forget("r1", "r1")
    assert await kinds(queue, "r1") == ["begun", "ended stop"]
    await queue.forget("r1", "other")
    await queue.forget("r1", "other")
    assert (await queue.read({"r1": "0"}))["r1"] is None
    assert not await redis.keys("*r1*")


async def test_forgotten_answer_can_be_joined_for_its_minute(queue: JobQueue, redis: Redis) -> None:
    """Who asks the same just after still gets the answer, and then it goes."""
    await put(queue, "r1", same_key="k")
    await end(queue, (await claim(queue))[0])
    await queue.forget("r1", "r1")
    assert 0 < await redis.pttl("chatd:{queue}:job:r1") <= 60_000
    assert (await put(queue, "r2", same_key="k")).outcome == "joined"
    assert await kinds(queue, "r1") == ["begun", "ended stop"]


async def test_forget_of_a_live_job_cancels_it(queue: JobQueue) -> None:
    """Nobody reads what would be written: a waiting job goes, a running one is stopped."""
    await put(queue, "r1")
    await put(queue, "r2")
    (held,) = await claim(queue)
    await queue.forget("r1", "r1")
    await queue.forget("r2", "r2")
    assert (await queue.beat(worker(), {"r1": held.fence}, is_progressing=True, now_ms=NOW)).stop == ("r1",)
    assert (await queue.read({"r2": "0"}))["r2"] is None
    assert await claim(queue) == []


# --- bounds and refusals ---


async def test_doctor_over_the_cap_is_refused_until_one_is_done(redis: Redis) -> None:
    """A doctor's jobs count while they wait or run; an end or a cancellation frees a place at once."""
    queue = queue_on(redis, max_per_doctor=3)
    for i in range(3):
        await put(queue, f"r{i}", "dr.a")
    refused = await put(queue, "r3", "dr.a")
    assert (refused.outcome, refused.position) == ("full", None)
    assert refused.retry_after_ms == 10_000
    (held,) = await claim(queue)
    assert (await put(queue, "r3", "dr.a")).outcome == "full"
    await end(queue, held)
    assert (await put(queue, "r3", "dr.a")).outcome == "queued"
    for waiting in ("r3", "r2"):
        await queue.cancel(waiting, follower=waiting, now_ms=NOW)
    assert [(await put(queue, f"r{i}", "dr.a")).outcome for i in (4, 5, 6)] == ["queued", "queued", "full"]
    (running,) = await claim(queue)
    await queue.cancel(running.job_id, follower=running.job_id, now_ms=NOW)
    assert (await put(queue, "r6", "dr.a")).outcome == "queued"
    await end(queue, running)
    assert (await put(queue, "r7", "dr.a")).outcome == "full"


async def test_full_queue_refuses_and_keeps_nothing(redis: Redis) -> None:
    """Past the bound of all waiting jobs nothing is stored of the next one."""
    queue = queue_on(redis, max_waiting=2)
    await announce(queue, worker(slots=4))
    await put(queue, "r1")
    await put(queue, "r2", lane="background")
    refused = await put(queue, "r3", lane="stat")
    assert (refused.outcome, refused.retry_after_ms) == ("full", 2_500)
    assert not await redis.keys("*r3*")
    await claim(queue)
    assert (await put(queue, "r3")).outcome == "queued"


async def test_job_that_could_not_be_done_in_time_is_refused(redis: Redis) -> None:
    """Urgent text must be done in 120 s: with one slot and 30 s each the fourth fits and the fifth does not."""
    queue = queue_on(redis, service_ms=30_000)
    await announce(queue, worker(slots=1))
    etas = [(await put(queue, f"r{i}")).eta_ms for i in range(4)]
    assert etas == [0, 30_000, 60_000, 90_000]
    refused = await put(queue, "r4")
    assert (refused.outcome, refused.eta_ms, refused.retry_after_ms) == ("deadline", 120_000, 30_000)
    assert not await redis.keys("*r4*")
    assert (await put(queue, "r5", lane="stat")).outcome == "queued"


async def test_no_worker_makes_no_promise_and_no_refusal(redis: Redis) -> None:
    """Without a live worker the forecast is unknown; nothing is refused because of it."""
    queue = queue_on(redis, service_ms=100_000)
    for state in (worker("starting", state="starting"), worker("draining", state="draining"), worker("gone", at_ms=1)):
        await announce(queue, state)
    placed = [await put(queue, f"r{i}") for i in range(5)]
    assert [(p.outcome, p.position, p.eta_ms) for p in placed] == [("queued", i, None) for i in range(1, 6)]


async def test_state_older_than_three_leases_is_stale(queue: JobQueue, redis: Redis) -> None:
    """A silent worker gives no slots and is not shown; the reaper strikes it off."""
    await announce(queue, worker(slots=3))
    await put(queue, "r1")
    assert (await queue.places(NOW + 15_000))["r1"].eta_ms == 0
    assert [w.worker_id for w in await queue.workers(NOW + 15_000)] == ["w1"]
    assert (await queue.places(NOW + 15_001))["r1"].eta_ms is None
    assert await queue.workers(NOW + 15_001) == []
    await queue.reap(NOW + 15_001)
    assert await redis.hlen("chatd:{queue}:workers") == 0


async def test_service_time_is_learnt_from_texts_that_were_written(queue: JobQueue) -> None:
    """The mean follows finished texts by an eighth each; broken ones teach nothing."""
    await announce(queue, worker(slots=1))
    for i, outcome in enumerate(
        (
            Outcome(reason="stop", generation_ms=2_000),
            Outcome(reason="cancelled", generation_ms=5),
            Outcome(reason="length"),
        )
    ):
        await put(queue, f"r{i}")
        await end(queue, (await claim(queue))[0], outcome)
    await put(queue, "a")
    assert (await put(queue, "b")).eta_ms == 9_000


async def test_stat_may_use_reserved_slots(queue: JobQueue) -> None:
    """The forecast of a stat question counts all slots, that of others the open ones."""
    await announce(queue, worker(slots=2, reserved=1))
    await put(queue, "r1")
    await claim(queue)
    assert (await put(queue, "r2", now_ms=NOW + 4_000)).eta_ms == 6_000
    assert (await put(queue, "r3", lane="stat", now_ms=NOW + 4_000)).eta_ms == 0
    assert [c.job_id for c in await claim(queue, 0, urgent_slots=2)] == ["r3"]


# --- time ---


async def test_waiting_job_past_its_deadline_ends(queue: JobQueue) -> None:
    """Neither the reaper nor a claim lets a late job begin, and its doctor's place is free."""
    await put(queue, "r1", "dr.a", lane="stat")
    await put(queue, "r2", "dr.a", lane="stat", now_ms=NOW + 1)
    assert await queue.reap(NOW + 60_000) == 1
    assert list(await queue.places(NOW + 60_001)) == []
    assert await claim(queue, now_ms=NOW + 60_001) == []
    assert [await kinds(queue, i) for i in ("r1", "r2")] == [["ended deadline"]] * 2
    assert await queue.depth() == {"stat": 0, "urgent": 0, "routine": 0, "background": 0}


async def test_running_job_past_its_deadline_is_stopped(queue: JobQueue) -> None:
    """The worker is told; one that beats on and never ends it loses it three leases later."""
    await put(queue, "r1", lane="stat")
    (held,) = await claim(queue)
    for at_ms in range(NOW, NOW + 75_000, 2_500):
        beat = await queue.beat(worker(), {"r1": held.fence}, is_progressing=True, now_ms=at_ms)
        assert beat.stop == (("r1",) if at_ms >= NOW + 60_000 else ())
        assert await queue.reap(at_ms) == 0
    assert await queue.reap(NOW + 75_000) == 1
    assert await kinds(queue, "r1") == ["begun", "ended deadline"]
    assert await end(queue, held) == {"r1"}


async def test_lost_job_past_its_deadline_is_not_begun_again(queue: JobQueue) -> None:
    """A job whose worker died too late ends instead of waiting."""
    await put(queue, "r1")
    await claim(queue)
    await queue.release("w1", NOW + 120_000)
    assert await kinds(queue, "r1") == ["begun", "ended deadline"]


async def test_long_waiting_jobs_move_up(queue: JobQueue) -> None:
    """Background goes to routine after 120 s and from there to urgent after 45 s more; stat stays for itself."""
    await put(queue, "b", lane="background")
    await put(queue, "r", lane="routine", now_ms=NOW + 80_000)
    lanes: list[dict[str, LaneName]] = []
    for at_ms in (119_999, 120_000, 124_999, 125_000, 164_999, 165_000, 200_000):
        await queue.reap(NOW + at_ms)
        lanes.append({job_id: place.lane for job_id, place in (await queue.places(NOW + at_ms)).items()})
    assert [found.get("b") for found in lanes] == ["background", *["routine"] * 4, *["urgent"] * 2]
    assert [found.get("r") for found in lanes] == ["routine"] * 3 + ["urgent"] * 4
    assert [c.job_id for c in await claim(queue, 2, now_ms=NOW + 200_000)] == ["r", "b"]


async def test_lost_job_stands_first_again(queue: JobQueue) -> None:
    """Who lost a worker has waited already: the job goes before all that came later, its doctor's others too."""
    for name in ("a1", "b1", "a2", "b2"):
        await put(queue, name, f"dr.{name[0]}")
    (held,) = await claim(queue)
    assert held.job_id == "a1"
    await queue.release("w1", NOW)
    assert list(await queue.places(NOW)) == ["a1", "b1", "a2", "b2"]
    assert [c.job_id for c in await claim(queue, 4)] == ["a1", "b1", "a2", "b2"]


async def test_lost_job_that_waits_again_can_be_cancelled_at_once(queue: JobQueue) -> None:
    """It waits like any other: no worker is needed to end it."""
    await put(queue, "r1")
    await claim(queue)
    await queue.release("w1", NOW)
    assert await queue.cancel("r1", follower="r1", now_ms=NOW)
    assert await kinds(queue, "r1") == ["begun", "restart", "ended cancelled"]


async def test_doctor_who_took_all_back_joins_at_the_end(queue: JobQueue) -> None:
    """Nobody keeps a turn without a question: the place told counts those who wait, and the line is joined behind."""
    await put(queue, "a1", "dr.a")
    await put(queue, "b1", "dr.b")
    await queue.cancel("a1", follower="a1", now_ms=NOW)
    assert (await put(queue, "a2", "dr.a")).position == 2
    assert list(await queue.places(NOW)) == ["b1", "a2"]


async def test_question_taken_back_passes_its_turn_to_the_doctors_next(queue: JobQueue) -> None:
    """Taking a question back costs its doctor nothing and delays nobody."""
    for name in ("a1", "b1", "a2"):
        await put(queue, name, f"dr.{name[0]}")
    await queue.cancel("a1", follower="a1", now_ms=NOW)
    assert list(await queue.places(NOW)) == ["a2", "b1"]


async def test_cancelled_job_of_a_dead_worker_ends_cancelled(queue: JobQueue) -> None:
    """A job that nobody wants is not begun again."""
    await put(queue, "r1")
    await claim(queue)
    await queue.cancel("r1", follower="r1", now_ms=NOW)
    await queue.release("w1", NOW)
    assert await kinds(queue, "r1") == ["begun", "ended cancelled"]
    assert await claim(queue) == []


async def test_release_takes_only_the_dead_workers_jobs(queue: JobQueue) -> None:
    """The other workers keep what they hold, and the dead one is struck off."""
    for name in ("w1", "w2"):
        await announce(queue, worker(name))
        await put(queue, f"r.{name}")
        await claim(queue, worker_id=name)
    assert await queue.release("w1", NOW) == 1
    assert await queue.release("w1", NOW) == 0
    assert [w.worker_id for w in await queue.workers(NOW)] == ["w2"]
    assert await kinds(queue, "r.w1") == ["begun", "restart"]
    assert await kinds(queue, "r.w2") == ["begun"]


async def test_list_of_the_dead_is_bounded(queue: JobQueue, redis: Redis) -> None:
    """Only the last hundred stay."""
    queue = queue_on(redis, max_attempts=1)
    for i in range(MAX_DEAD + 5):
        await put(queue, f"r{i}")
        await claim(queue)
        await queue.release("w1", NOW)
    dead = [one.job_id for one in await queue.given_up()]
    assert dead == [f"r{i}" for i in range(MAX_DEAD + 4, 4, -1)]


# --- what lies in Redis ---


async def test_nothing_readable_lies_in_redis(queue: JobQueue, redis: Redis) -> None:
    """Prompt, text and outcome are sealed in every state of a job."""
    secret = "Maria Fernandes tem lactato 4,1"
    for i, job_id in enumerate(("waiting", "running", "ended")):
        await queue.enqueue(
            job(job_id, secret), doctor="dr.a", lane="urgent", follower="f", now_ms=NOW, same_key=f"k{i}"
        )
    held = await claim(queue, 2)
    assert held[0].job.pieces[0].text == secret
    for one in held:
        await queue.emit("w1", [text(one, secret), text(one, "order_ecg")])
    await end(queue, held[0], Outcome(reason="stop", tokens_in=987_654))
    found = await dump(redis)
    assert "waiting" in found
    for piece in ("Maria", "lactato", "4,1", "order_ecg", "987654", "rules"):
        assert piece not in found


async def test_no_key_stays_for_ever(queue: JobQueue, redis: Redis) -> None:
    """Whatever happened to a job, all its keys and the queue's own run out."""
    await announce(queue, worker())
    for i, lane in enumerate(("stat", "urgent", "routine", "background", "routine", "urgent")):
        await put(queue, f"r{i}", f"dr.{i % 2}", lane=lane, same_key=f"k{i}")  # type: ignore[arg-type]
    assert await keys_that_stay(redis) == []
    one, *_ = await claim(queue, 3)
    await queue.cancel("r4", follower="r4", now_ms=NOW)
    await queue.emit("w1", [text(one, "x")])
    assert await keys_that_stay(redis) == []
    await end(queue, one)
    await queue.reap(NOW + 130_000)
    await claim(queue, 5, now_ms=NOW + 130_000)
    await queue.release("w1", NOW + 130_000)
    await queue.reap(NOW + 700_000)
    assert await keys_that_stay(redis) == []
    # The ended jobs wait for their readers; of the queue itself only what is bounded is left.
    found = {key.removeprefix("chatd:{queue}:").split(":")[0] for key in await all_keys(redis)}
    assert found == {"job", "results", "followers", "same", "state", "sent"}


async def test_all_keys_share_one_slot(queue: JobQueue, redis: Redis) -> None:
    """The scripts work on a cluster: one hash tag."""
    await announce(queue, worker())
    await put(queue, "r1", same_key="k")
    await end(queue, (await claim(queue))[0])
    assert all(key.startswith("chatd:{queue}:") for key in await all_keys(redis))


async def test_gone_job_reads_as_none(queue: JobQueue, redis: Redis) -> None:
    """After Redis lost its memory the reader knows to queue again, and jobs that are there are read beside it."""
    assert await queue.read({}) == {}
    await put(queue, "r1")
    await redis.flushall()
    await put(queue, "r2")
    await claim(queue)
    found = await queue.read({"r1": "0", "r2": "0"})
    assert found["r1"] is None
    assert [e.kind for e in found["r2"] or ()] == ["begun"]
    assert (await put(queue, "r1")).outcome == "queued"


async def test_zombie_of_a_lost_memory_is_refused(queue: JobQueue, redis: Redis) -> None:
    """Fences go on above the old ones though Redis has forgotten them."""
    await put(queue, "r1")
    (old,) = await claim(queue)
    await redis.flushall()
    await put(queue, "r1")
    (new,) = await claim(queue, now_ms=NOW + 1)
    assert new.fence > old.fence
    assert await queue.emit("w1", [text(old, "zombie")]) == {"r1"}


async def test_unreadable_job_ends_and_the_others_go_on(redis: Redis) -> None:
    """A job under a key that the worker does not have ends with an error instead of blocking a slot for ever."""
    stranger, queue = queue_on(redis), queue_on(redis)
    await put(stranger, "r1")
    await put(queue, "r2")
    assert [c.job_id for c in await claim(queue, 2)] == ["r2"]
    assert await kinds(queue, "r1") == ["begun", "ended error internal"]


async def test_unreadable_text_reads_as_an_error(redis: Redis) -> None:
    """A reader without the key learns that this answer will not come."""
    queue, stranger = queue_on(redis), queue_on(redis)
    await put(queue, "r1")
    (held,) = await claim(queue)
    await queue.emit("w1", [text(held, "x")])
    found = await events(stranger, "r1")
    assert [(e.kind, e.text) for e in found] == [("begun", ""), ("ended", "")]
    assert found[1].outcome == Outcome(reason="error", error="internal")


# --- Redis and the bell ---


async def test_every_call_says_that_redis_is_away(own_redis_server: RedisServer) -> None:
    """No call waits or fails in another way when nobody answers."""
    redis = own_redis_server.client(retry=None)
    queue = queue_on(redis)
    own_redis_server.kill()
    calls = [
        put(queue, "r1"),
        queue.cancel("r1", follower="f", now_ms=NOW),
        queue.read({"r1": "0"}),
        queue.places(NOW),
        queue.forget("r1", "f"),
        queue.workers(NOW),
        claim(queue),
        announce(queue, worker()),
        queue.emit("w1", [Emission(job_id="r1", fence=1, kind="text", text="x")]),
        queue.reap(NOW),
        queue.release("w1", NOW),
        queue.depth(),
    ]
    for call in calls:
        with pytest.raises(QueueUnavailable):
            await call
    await redis.aclose()


async def test_scripts_are_loaded_again_after_a_restart(own_redis_server: RedisServer, own_redis: Redis) -> None:
    """A restarted Redis knows no scripts; the queue works on."""
    queue = queue_on(own_redis)
    await put(queue, "r1")
    own_redis_server.restart()
    assert (await put(queue, "r1")).outcome == "queued"
    assert [c.job_id for c in await claim(queue)] == ["r1"]


async def test_bell_rings_for_work_results_cancel_and_loss(queue: JobQueue, redis: Redis) -> None:
    """Each ring names its jobs, in the order of what happened."""
    bell = rings(redis)
    assert await anext(bell) == Ring(kind="lost")
    await put(queue, "r1")
    await put(queue, "r2")
    one, _ = await claim(queue, 2)
    await queue.emit("w1", [text(one, "x"), text(one, "y")])
    await queue.cancel("r1", follower="r1", now_ms=NOW)
    await end(queue, one)
    await queue.release("w1", NOW)
    assert [await anext(bell) for _ in range(9)] == [
        Ring(kind="work", job_ids=("r1",)),
        Ring(kind="work", job_ids=("r2",)),
        Ring(kind="results", job_ids=("r1", "r2")),
        Ring(kind="results", job_ids=("r1",)),
        Ring(kind="cancel", job_ids=("r1",)),
        Ring(kind="results", job_ids=("r1",)),
        Ring(kind="lost", job_ids=("r2",)),
        Ring(kind="work", job_ids=("r2",)),
        Ring(kind="results", job_ids=("r2",)),
    ]
    await bell.aclose()


async def test_bell_hears_again_after_redis_was_away(own_redis_server: RedisServer, own_redis: Redis) -> None:
    """A broken bell connects again by itself and says that it has missed something."""
    queue = queue_on(own_redis)
    bell = queue.rings(own_redis)
    assert await anext(bell) == Ring(kind="lost")
    own_redis_server.restart()
    assert await anext(bell) == Ring(kind="lost")
    await put(queue, "r1")
    assert await anext(bell) == Ring(kind="work", job_ids=("r1",))
    await bell.aclose()


async def test_bell_ends_with_its_task(redis: Redis) -> None:
    """A listener that is cancelled leaves no connection subscribed."""
    heard = asyncio.Event()

    async def listen() -> None:
        async for _ in rings(redis):
            heard.set()

    task = asyncio.create_task(listen())
    await heard.wait()
    await tasks.end([task])
    assert task.cancelled()
    assert await redis.pubsub_numsub("chatd:{queue}:bell") == [(b"chatd:{queue}:bell", 0)]
