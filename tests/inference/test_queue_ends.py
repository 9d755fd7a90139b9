"""Whatever the order of events, every job has one end, one holder and one count: the queue against a small model."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from chatd.inference.jobs import Claimed, Outcome
from chatd.inference.lanes import LANE, LaneName, QueueLimits
from chatd.inference.queue import Emission, JobQueue
from context.seal import KeyRing, Sealer
from tests.inference.queue_jobs import NOW, all_keys, job, keys_that_stay, worker
from tests.redis_server import RedisServer

LIMITS = QueueLimits(max_per_doctor=4, max_waiting=12)
DOCTORS, WORKERS, FOLLOWERS = ("dr.a", "dr.b", "dr.c"), ("w1", "w2"), ("f1", "f2")
LANE_NAMES: tuple[LaneName, ...] = ("stat", "urgent", "routine", "background")


@dataclass
class Expected:
    """What the model knows of a job."""

    doctor: str
    deadline_ms: int
    followers: set[str]
    state: str = "waiting"
    attempt: int = 0
    spared: int = 0
    stop: bool = False
    holder: Claimed | None = None
    worker: str = ""
    lease_ms: int = 0
    events: list[str] = field(default_factory=list)


class Ends(RuleBasedStateMachine):
    """Gateways, workers and reapers in any order, with a clock that only they know."""

    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        self.server.flush()
        self.loop = asyncio.Runner()
        self.redis = self.server.client()
        self.queue = JobQueue(self.redis, Sealer(KeyRing.generate()), LIMITS)
        self.now_ms = NOW
        self.jobs: dict[str, Expected] = {}
        #: Everything that any worker was ever given: a zombie may come back with any of it.
        self.given: list[tuple[str, Claimed]] = []

    def do(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(call)

    def teardown(self) -> None:
        try:
            self.now_ms += 2_000_000
            for _ in range(2):
                self.reap()
            for job_id, expected in self.jobs.items():
                assert expected.state == "ended"
                assert [kind for kind in self.seen(job_id) if kind.startswith("ended")] == expected.events[-1:]
            assert self.do(self.queue.places(self.now_ms)) == {}
            assert self.do(keys_that_stay(self.redis)) == []
            left = {key.removeprefix("chatd:{queue}:").split(":")[0] for key in self.do(all_keys(self.redis))}
            assert left <= {"job", "results", "followers", "state", "sent", "dead"}
        finally:
            self.do(self.redis.aclose())
            self.loop.close()

    # --- what the model expects ---

    def finish(self, expected: Expected, how: str) -> None:
        assert expected.state != "ended"
        expected.state, expected.holder = "ended", None
        expected.events.append(f"ended {how}")

    def end_late(self) -> None:
        for expected in self.jobs.values():
            if expected.state == "waiting" and expected.deadline_ms <= self.now_ms:
                self.finish(expected, "deadline ")

    def lose(self, expected: Expected, now_ms: int | None = None, is_planned: bool = False) -> None:
        if expected.stop:
            self.finish(expected, "cancelled ")
        elif expected.deadline_ms <= (self.now_ms if now_ms is None else now_ms):
            self.finish(expected, "deadline ")
        elif not is_planned and expected.attempt - expected.spared == LIMITS.max_attempts:
            self.finish(expected, "error model_unavailable")
        else:
            expected.state, expected.holder = "waiting", None
            expected.spared += is_planned
            expected.events.append("restart")

    def live(self, doctor: str) -> int:
        return sum(e.doctor == doctor and e.state != "ended" and not e.stop for e in self.jobs.values())

    def seen(self, job_id: str) -> list[str]:
        found = self.do(self.queue.read({job_id: "0"}))[job_id]
        assert found is not None
        return [f"ended {e.outcome.reason} {e.outcome.error}" if e.outcome else e.kind + e.text for e in found]

    # --- what may happen ---

    @rule(doctor=st.sampled_from(DOCTORS), lane=st.sampled_from(LANE_NAMES), follower=st.sampled_from(FOLLOWERS))
    def ask(self, doctor: str, lane: LaneName, follower: str) -> None:
        job_id = f"r{len(self.jobs)}"
        placed = self.do(
            self.queue.enqueue(job(job_id), doctor=doctor, lane=lane, follower=follower, now_ms=self.now_ms)
        )
        self.end_late()
        waiting = sum(e.state == "waiting" for e in self.jobs.values())
        if self.live(doctor) >= LIMITS.max_per_doctor or waiting >= LIMITS.max_waiting:
            assert placed.outcome == "full"
            return
        assert placed.outcome == "queued"
        self.jobs[job_id] = Expected(doctor, self.now_ms + LANE[lane].deadline_ms, {follower})

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), follower=st.sampled_from(FOLLOWERS))
    def ask_again(self, data: st.DataObject, follower: str) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        placed = self.do(
            self.queue.enqueue(
                job(job_id), doctor=self.jobs[job_id].doctor, lane="stat", follower=follower, now_ms=self.now_ms
            )
        )
        self.end_late()
        assert placed.outcome == "known"
        assert (placed.position is None) == (self.jobs[job_id].state != "waiting")
        self.jobs[job_id].followers.add(follower)

    @rule(name=st.sampled_from(WORKERS), slots=st.integers(1, 3), urgent=st.integers(0, 1))
    def claim(self, name: str, slots: int, urgent: int) -> None:
        claimed = self.do(self.queue.claim(name, open_slots=slots, urgent_slots=urgent, now_ms=self.now_ms))
        self.end_late()
        waiting = sum(e.state == "waiting" for e in self.jobs.values())
        assert min(waiting, slots) <= len(claimed) <= slots + urgent
        for held in claimed:
            expected = self.jobs[held.job_id]
            assert expected.state == "waiting"
            assert all(held.fence > old.fence for _, old in self.given)
            expected.state, expected.holder, expected.worker = "running", held, name
            expected.attempt += 1
            expected.lease_ms = self.now_ms + LIMITS.lease_ms
            expected.events.append("begun")
            assert held.attempt == expected.attempt
            self.given.append((name, held))

    @precondition(lambda self: self.given)
    @rule(data=st.data(), is_end=st.booleans(), reason=st.sampled_from(["stop", "length", "cancelled", "error"]))
    def emit(self, data: st.DataObject, is_end: bool, reason: Any) -> None:
        name, held = data.draw(st.sampled_from(self.given))
        expected = self.jobs[held.job_id]
        is_holder = expected.holder is held
        first = Emission(job_id=held.job_id, fence=held.fence, kind="text", text="x")
        last = Emission(job_id=held.job_id, fence=held.fence, kind="ended", outcome=Outcome(reason=reason))
        refused = self.do(self.queue.emit(name, [first, *([last] * is_end)]))
        assert refused == (frozenset() if is_holder else {held.job_id})
        if is_holder:
            expected.events.append("textx")
            if is_end:
                self.finish(expected, f"{reason} ")

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        name, held = data.draw(st.sampled_from(self.given))
        expected = self.jobs[held.job_id]
        is_holder = expected.holder is held
        outcome = Outcome(reason="error", error="model_unavailable")
        failed = Emission(job_id=held.job_id, fence=held.fence, kind="failed", outcome=outcome)
        assert self.do(self.queue.emit(name, [failed])) == (frozenset() if is_holder else {held.job_id})
        if is_holder:
            # Its deadline is looked at when it is to be begun again.
            self.lose(expected, now_ms=0)

    @rule(name=st.sampled_from(WORKERS), moves=st.booleans())
    def beat(self, name: str, moves: bool) -> None:
        # A worker beats with all that it ever got and did not end itself: zombies' fences are among them.
        held = {one.job_id: one.fence for owner, one in self.given if owner == name}
        state = worker(name, slots=0, at_ms=self.now_ms)
        beat = self.do(self.queue.beat(state, held, is_progressing=moves, now_ms=self.now_ms))
        mine = {
            job_id: e
            for job_id, e in self.jobs.items()
            if e.holder is not None and e.worker == name and held.get(job_id) == e.holder.fence
        }
        assert set(beat.lost) == held.keys() - mine.keys()
        assert set(beat.stop) == {i for i, e in mine.items() if e.stop or e.deadline_ms <= self.now_ms}
        for expected in mine.values() if moves else ():
            expected.lease_ms = self.now_ms + LIMITS.lease_ms

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), follower=st.sampled_from(FOLLOWERS))
    def cancel(self, data: st.DataObject, follower: str) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        expected = self.jobs[job_id]
        is_alone = self.do(self.queue.cancel(job_id, follower=follower, now_ms=self.now_ms))
        expected.followers.discard(follower)
        assert is_alone == (not expected.followers)
        if is_alone and expected.state == "waiting":
            self.finish(expected, "cancelled ")
        elif is_alone and expected.state == "running":
            expected.stop = True

    @rule(ms=st.integers(1, 20_000))
    def wait(self, ms: int) -> None:
        self.now_ms += ms

    @rule()
    def reap(self) -> None:
        self.do(self.queue.reap(self.now_ms))
        for expected in self.jobs.values():
            overdue = expected.deadline_ms + 3 * LIMITS.lease_ms <= self.now_ms
            if expected.state == "running" and (expected.lease_ms <= self.now_ms or overdue):
                self.lose(expected)
        self.end_late()

    @rule(name=st.sampled_from(WORKERS), is_planned=st.booleans())
    def release(self, name: str, is_planned: bool) -> None:
        self.do(self.queue.release(name, self.now_ms, is_planned=is_planned))
        for expected in self.jobs.values():
            if expected.state == "running" and expected.worker == name:
                self.lose(expected, is_planned=is_planned)

    # --- what always holds ---

    @invariant()
    def queue_is_as_expected(self) -> None:
        found, lists, places = self.do(self.look())
        for job_id, expected in self.jobs.items():
            told = [
                f"ended {e.outcome.reason} {e.outcome.error}" if e.outcome else e.kind + e.text for e in found[job_id]
            ]
            assert told == expected.events
        assert lists[: len(DOCTORS)] == [self.live(doctor) for doctor in DOCTORS]
        running = {job_id.encode() for job_id, e in self.jobs.items() if e.state == "running"}
        assert [set(ids) for ids in lists[len(DOCTORS) :]] == [running, running]
        assert places.keys() == {
            job_id for job_id, e in self.jobs.items() if e.state == "waiting" and e.deadline_ms > self.now_ms
        }

    async def look(self) -> tuple[Any, list[Any], Any]:
        async with self.redis.pipeline() as pipe:
            for doctor in DOCTORS:
                pipe.scard(f"chatd:{{queue}}:doctor:{doctor}")
            for name in ("running", "leases"):
                pipe.zrange(f"chatd:{{queue}}:{name}", 0, -1)
            lists = await pipe.execute()
        found = await self.queue.read(dict.fromkeys(self.jobs, "0"))
        return found, lists, await self.queue.places(self.now_ms)


def test_every_job_has_one_end_whatever_happens(redis_server: RedisServer) -> None:
    """Exactly one end each, none lost and none twice; zombies refused; counts and leases true after every step."""
    machine = type("EndsOnRedis", (Ends,), {"server": redis_server})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=40))
