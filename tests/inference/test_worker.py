"""The worker on the real queue, in a real Redis, with the scripted engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from chatd import tasks
from chatd.clock import SystemClock, epoch_ms
from chatd.inference.engine import Generation
from chatd.inference.jobs import Job, Outcome, Piece, Result
from chatd.inference.lanes import LANES, LaneName, QueueLimits
from chatd.inference.queue import JobQueue, QueueUnavailable
from chatd.inference.scripted import Fault, Script, ScriptedEngine, ScriptedTokens, write_sections
from chatd.inference.sections import grammar, parse
from chatd.inference.worker import MERGE_MS, Beginning, Beginnings, Outflow, Worker
from chatd.settings import Settings
from context.seal import KeyRing, Sealer
from tests.redis_server import RedisServer

PATIENCE_S = 30.0
ACTIONS = ("order_ecg", "notify_icu")
HOSPITAL = Piece(name="hospital", text="Hospital rules that all share.\n\n")
DEPARTMENT = Piece(name="department", text="Cardiology and its catalogue.\n\n")


def endless(generation: Generation) -> str:
    """Words up to the bound of tokens; the canary's text is short by its own bound."""
    return "going on " * generation.max_tokens


def job(job_id: str, question: str = "Why?", max_tokens: int = 400) -> Job:
    pieces = (HOSPITAL, DEPARTMENT, Piece(name="question", text=f"{question}\n\n"))
    return Job(job_id=job_id, pieces=pieces, actions=ACTIONS, max_tokens=max_tokens, salt="hospital")


def generation_of(one: Job) -> Generation:
    """What the worker makes of a job, as far as the scripted engine's text depends on it."""
    segments = ScriptedTokens().prompt(one.pieces)
    return Generation(id=one.job_id, segments=segments, grammar=grammar(one.actions), max_tokens=one.max_tokens)


def now_ms() -> int:
    return epoch_ms(datetime.now(UTC))


class Ward:
    """A queue in Redis, workers on it, and what a gateway does."""

    def __init__(self, redis: Redis, limits: QueueLimits | None = None) -> None:
        self.redis = redis
        self.sealer = Sealer(KeyRing.generate())
        self.queue = JobQueue(redis, self.sealer, limits or QueueLimits(lease_ms=600, max_per_doctor=50))
        self._running: list[tuple[Worker, asyncio.Task[None]]] = []

    def settings(self, **fields: Any) -> Settings:
        values = {"job_beat_s": 0.15, "job_lease_s": 0.6, "canary_interval_s": 1.0, "model_down_s": 3.0}
        return Settings(**{"engine": "scripted", **values, **fields})

    def worker(
        self, engine: ScriptedEngine | None = None, *, tokens: ScriptedTokens | None = None, **fields: Any
    ) -> Worker:
        """A worker that runs until the ward closes."""
        worker = Worker(
            engine or ScriptedEngine(slots=4, reserved=1),
            self.queue,
            tokens or ScriptedTokens(),
            clock=SystemClock(),
            worker_id=f"w{len(self._running) + 1}",
            settings=self.settings(**fields),
            redis=self.redis,
            beginnings=Beginnings(self.redis, self.sealer),
        )
        self._running.append((worker, asyncio.create_task(worker.run())))
        return worker

    def task(self, worker: Worker) -> asyncio.Task[None]:
        return next(task for other, task in self._running if other is worker)

    async def ask(self, *jobs: Job, lane: LaneName = "routine") -> None:
        for one in jobs:
            placed = await self.queue.enqueue(one, doctor=f"dr.{one.job_id}", lane=lane, follower="g", now_ms=now_ms())
            assert placed.outcome == "queued"

    async def results(self, job_id: str, until: Callable[[Sequence[Result]], bool]) -> list[Result]:
        """All events of a job once ``until`` is so."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = (await self.queue.read({job_id: "0"}))[job_id]
                if found is not None and until(found):
                    return found
                await self.queue.reap(now_ms())
                await asyncio.sleep(0.01)

    async def answer(self, job_id: str) -> tuple[str, Outcome, list[Result]]:
        """The last attempt's text and outcome; the end is the last event and the only one of its kind."""
        events = await self.results(job_id, lambda events: any(event.kind == "ended" for event in events))
        assert [event.kind for event in events].count("ended") == 1
        assert events[-1].kind == "ended"
        outcome = events[-1].outcome
        assert outcome is not None
        text = "".join(event.text for event in events if event.attempt == events[-1].attempt)
        return text, outcome, events

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():  # noqa: ASYNC110 - looks at others' state
                await asyncio.sleep(0.005)

    async def ready(self, worker: Worker) -> None:
        await self.until(lambda: worker.pulse().state == "ready")

    async def close(self) -> None:
        await tasks.end(task for _, task in self._running)


@pytest.fixture
async def ward(redis: Redis) -> AsyncIterator[Ward]:
    ward = Ward(redis)
    yield ward
    await ward.close()


def texts(events: Sequence[Result]) -> list[Result]:
    return [event for event in events if event.kind == "text"]


async def test_job_is_written_and_ends_once_with_its_outcome(ward: Ward) -> None:
    """Begun, texts that join to the engine's text, one end that says what it took."""
    ward.worker()
    await ward.ask(job("a"))
    text, outcome, events = await ward.answer("a")
    assert events[0].kind == "begun"
    assert parse(text, ACTIONS).is_complete
    assert (outcome.reason, outcome.error) == ("stop", "")
    assert outcome.tokens_in > 0
    assert outcome.tokens_out > 0
    assert outcome.ttft_ms is not None
    assert outcome.generation_ms is not None
    assert outcome.queue_ms is not None
    assert outcome.model is not None
    assert outcome.model.id == "scripted"


async def test_more_jobs_than_slots_all_end_once_and_leave_the_engine_free(ward: Ward) -> None:
    """Forty questions for four slots; nothing is left over in worker or engine."""
    engine = ScriptedEngine(slots=4, reserved=1)
    ward.worker(engine)
    jobs = [job(f"j{n}", question=f"Question {n}?") for n in range(40)]
    await ward.ask(*jobs)
    for one in jobs:
        text, outcome, _ = await ward.answer(one.job_id)
        assert outcome.reason == "stop"
        assert parse(text, ACTIONS).is_complete
    await ward.until(lambda: engine.capacity().active == 0)


async def test_stat_question_begins_while_every_ordinary_slot_is_taken(ward: Ward) -> None:
    """The reserved slot takes it; the ordinary ones that wait go on waiting."""
    ward.worker(ScriptedEngine(Script(write=endless), slots=3, reserved=1, step_ms=1))
    await ward.ask(*[job(f"long{n}", max_tokens=100_000) for n in range(4)])
    for n in range(2):
        await ward.results(f"long{n}", lambda events: bool(texts(events)))
    await ward.ask(job("now", max_tokens=20), lane="stat")
    _, outcome, _ = await ward.answer("now")
    assert outcome.reason == "length"
    assert sum([bool((await ward.queue.read({f"long{n}": "0"}))[f"long{n}"]) for n in range(4)]) == 2


async def test_cancelled_job_ends_cancelled_and_frees_its_slot(ward: Ward) -> None:
    """By the bell, in mid-stream: one end, the slot goes to the next."""
    engine = ScriptedEngine(Script(write=endless), slots=2, reserved=1, step_ms=1)
    ward.worker(engine)
    await ward.ask(job("unwanted", max_tokens=100_000))
    await ward.results("unwanted", lambda events: bool(texts(events)))
    assert await ward.queue.cancel("unwanted", follower="g", now_ms=now_ms())
    _, outcome, _ = await ward.answer("unwanted")
    assert outcome.reason == "cancelled"
    await ward.ask(job("next", max_tokens=5))
    assert (await ward.answer("next"))[1].reason == "length"


async def test_deadline_of_the_lane_ends_a_running_text(redis: Redis) -> None:
    """The queue's Unix time becomes the engine's monotonic time."""
    ward = Ward(redis)
    lanes = tuple(msgspec.structs.replace(lane, deadline_ms=1_000) for lane in LANES)
    limits = QueueLimits(lease_ms=600, service_ms=1)
    ward.queue = JobQueue(redis, ward.sealer, limits, lanes=lanes)
    try:
        ward.worker(ScriptedEngine(Script(write=endless), slots=2, reserved=1, step_ms=2))
        await ward.ask(job("slow", max_tokens=100_000))
        text, outcome, _ = await ward.answer("slow")
        assert outcome.reason == "deadline"
        assert "going on".startswith(text[:8])  # on a busy machine the second may be over before the first word
    finally:
        await ward.close()


class Leaky(ScriptedTokens):
    """A tokenizer that lets the text of a question become a special token."""

    def prompt(self, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], ...]:
        segments = super().prompt(pieces)
        if pieces[-1].name == "question":
            return (*segments[:-1], (next(iter(self.special_ids)), *segments[-1]))
        return segments


async def test_prompt_with_a_special_id_in_its_body_never_reaches_the_engine(ward: Ward) -> None:
    """The worker looks at the ids again; the job ends with a code and without a text."""
    seen: list[str] = []

    def write(generation: Generation) -> str:
        seen.append(generation.id)
        return write_sections(generation)

    ward.worker(ScriptedEngine(Script(write=write), slots=4, reserved=1), tokens=Leaky())
    await ward.ask(job("evil"))
    text, outcome, _ = await ward.answer("evil")
    assert (text, outcome.reason, outcome.error) == ("", "error", "safety_blocked")
    assert all(generation_id.startswith("canary/") for generation_id in seen)


async def test_prompt_that_does_not_fit_ends_with_too_large(ward: Ward) -> None:
    """It is not tried again: another attempt would not fit either."""
    ward.worker()
    await ward.ask(job("huge", question="x" * 200_000))
    _, outcome, events = await ward.answer("huge")
    assert (outcome.reason, outcome.error, events[-1].attempt) == ("error", "too_large", 1)


async def test_failed_engine_means_a_second_attempt_whose_text_stands_alone(ward: Ward) -> None:
    """All texts fail at one step; each is begun again, and the reader sees where the first text became void."""
    # Step 1 is the canary's prompt, 2 its token, 3 its end; then a prompt's step and some words.
    engine = ScriptedEngine(Script(write=write_sections, faults=(Fault(step=9, kind="fail"),)), slots=4, reserved=1)
    ward.worker(engine)
    await ward.ask(job("a"), job("b"))
    for job_id in ("a", "b"):
        text, outcome, events = await ward.answer(job_id)
        assert outcome.reason == "stop"
        assert parse(text, ACTIONS).is_complete
        kinds = [event.kind for event in events]
        assert kinds.count("restart") == events[-1].attempt - 1
    assert engine.progress().steps > 9


async def test_failed_text_is_begun_again_without_waiting_for_its_lease(redis: Redis) -> None:
    """With leases of ten minutes the second attempt still comes: the worker itself gives the job back."""
    ward = Ward(redis, QueueLimits(lease_ms=600_000))
    try:
        faults = (Fault(step=9, kind="fail"),)
        ward.worker(ScriptedEngine(Script(write=write_sections, faults=faults), slots=4, reserved=1), job_lease_s=600.0)
        await ward.ask(job("a"))
        _, outcome, events = await ward.answer("a")
        assert (outcome.reason, events[-1].attempt) == ("stop", 2)
        assert [event.kind for event in events if event.kind != "text"] == ["begun", "restart", "begun", "ended"]
    finally:
        await ward.close()


async def test_engine_that_fails_twice_ends_the_job_as_model_unavailable(ward: Ward) -> None:
    """At most as many attempts as the setting says, then an end that the gateway can tell."""
    faults = tuple(Fault(step=step, kind="fail") for step in (5, 12))
    ward.worker(ScriptedEngine(Script(write=endless, faults=faults), slots=4, reserved=1, step_ms=1))
    await ward.ask(job("unlucky", max_tokens=100_000))
    _, outcome, events = await ward.answer("unlucky")
    assert (outcome.reason, outcome.error) == ("error", "model_unavailable")
    assert [event.kind for event in events].count("begun") == 2


async def test_job_of_a_hung_engine_goes_to_another_worker_once(ward: Ward) -> None:
    """No step, no lease: the other worker writes it, and the hung one's later words are refused."""
    hung = ScriptedEngine(Script(write=endless, faults=(Fault(step=30, kind="hang"),)), slots=2, reserved=1, step_ms=1)
    first = ward.worker(hung)
    await ward.ready(first)
    await ward.ask(job("a", max_tokens=60))
    await ward.results("a", lambda events: bool(texts(events)))
    ward.worker()
    text, outcome, events = await ward.answer("a")
    assert outcome.reason in {"stop", "length"}
    assert text.startswith("Headline:")
    assert [event.kind for event in events].count("restart") == 1


def signs(events: Sequence[Result]) -> int:
    return sum(event.kind == "moving" for event in events)


async def test_long_prompt_tells_that_its_engine_moves(ward: Ward) -> None:
    """While the engine works on a prompt its reader hears so, again and again, before the first word."""
    ward.worker(ScriptedEngine(slots=2, reserved=1, step_ms=30))
    await ward.ask(job("a", question="x" * 100_000, max_tokens=5))
    _, outcome, events = await ward.answer("a")
    assert outcome.reason == "length"
    assert outcome.ttft_ms is not None
    first = next(n for n, event in enumerate(events) if event.kind == "text")
    assert signs(events[:first]) >= 2


async def test_hung_engine_gives_no_sign(redis: Redis) -> None:
    """Its worker lives and beats for seven looks at the steps; none of them finds one."""
    ward = Ward(redis, QueueLimits(lease_ms=1_800))
    try:
        # The canary is over after three steps, so the job's very first one is not made.
        hung = ScriptedEngine(Script(write=endless, faults=(Fault(step=4, kind="hang"),)), slots=2, reserved=1)
        worker = ward.worker(hung, job_lease_s=1.8, model_down_s=20.0)
        await ward.ready(worker)
        await ward.ask(job("a", question="x" * 100_000))
        events = await ward.results("a", lambda events: any(event.kind == "restart" for event in events))
        assert texts(events) == []
        assert signs(events) <= 1  # of the canary's steps, if no look fell between them and the claim
    finally:
        await ward.close()


async def test_zombie_is_refused_by_the_fence_and_drops_the_job(ward: Ward) -> None:
    """A worker whose job was given to another writes on for a moment: none of it stands in the second attempt."""
    slow = ScriptedEngine(Script(write=endless), slots=2, reserved=1, step_ms=1)
    first = ward.worker(slow)
    await ward.ready(first)
    await ward.ask(job("a", max_tokens=100_000))
    await ward.results("a", lambda events: len(texts(events)) > 1)
    draining = asyncio.create_task(first.drain(PATIENCE_S))  # so that it does not claim the job again itself
    await asyncio.sleep(0)
    await ward.queue.release(first.worker_id, now_ms())
    ward.worker()
    text, outcome, events = await ward.answer("a")
    await draining
    assert outcome.reason == "stop"
    assert text == write_sections(generation_of(job("a", max_tokens=100_000)))
    assert [event.kind for event in events].count("restart") == 1
    await ward.until(lambda: slow.capacity().active == 0)


async def test_drain_ends_what_runs_and_leaves_the_rest_waiting(ward: Ward) -> None:
    """Running texts get their end; nothing new is claimed; ``run`` returns."""
    worker = ward.worker(ScriptedEngine(slots=2, reserved=1, step_ms=2))
    await ward.ready(worker)
    await ward.ask(job("running"), job("waiting"))
    await ward.results("running", lambda events: bool(texts(events)))
    await worker.drain(PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S):
        await ward.task(worker)
    assert (await ward.answer("running"))[1].reason == "stop"
    assert (await ward.queue.read({"waiting": "0"}))["waiting"] == []
    assert (await ward.queue.depth())["routine"] == 1


async def test_drain_that_is_too_short_gives_jobs_back_at_once(ward: Ward) -> None:
    """Another worker begins the job again without waiting for a lease."""
    worker = ward.worker(ScriptedEngine(Script(write=endless), slots=2, reserved=1, step_ms=1))
    await ward.ready(worker)
    await ward.ask(job("a", max_tokens=100_000))
    await ward.results("a", lambda events: bool(texts(events)))
    await worker.drain(0)
    async with asyncio.timeout(PATIENCE_S):
        await ward.task(worker)
    assert [event.kind for event in (await ward.queue.read({"a": "0"}))["a"] or ()][-1] == "restart"
    ward.worker()
    assert (await ward.answer("a"))[1].reason == "stop"


async def test_drains_that_give_a_job_back_are_no_attempts(ward: Ward) -> None:
    """Three workers in a row are restarted in the middle of an answer; the fourth writes it to its end."""
    await ward.ask(job("a", max_tokens=100_000))
    for attempt in range(1, 4):
        worker = ward.worker(ScriptedEngine(Script(write=endless), slots=2, reserved=1, step_ms=1))
        await ward.results("a", lambda events, n=attempt: any(event.attempt == n for event in texts(events)))  # type: ignore[misc]
        await worker.drain(0)
        async with asyncio.timeout(PATIENCE_S):
            await ward.task(worker)
    ward.worker()
    _, outcome, events = await ward.answer("a")
    assert (outcome.reason, events[-1].attempt) == ("stop", 4)


async def test_loop_that_breaks_counts_as_an_attempt(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the worker itself is no plan: a job that brings it about twice is given up."""
    await ward.ask(job("a", max_tokens=100_000))
    for attempt in range(1, 3):
        worker = ward.worker(ScriptedEngine(Script(write=endless), slots=2, reserved=1, step_ms=1))
        await ward.results("a", lambda events, n=attempt: any(event.attempt == n for event in texts(events)))  # type: ignore[misc]
        monkeypatch.setattr(worker, "_let_lapse", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await ward.task(worker)
    _, outcome, events = await ward.answer("a")
    assert (outcome.error, events[-1].attempt) == ("model_unavailable", 2)


async def test_next_worker_makes_met_beginnings_ready_before_it_claims(ward: Ward) -> None:
    """Hospital and department of an earlier job are at hand for the first job of a new worker; sealed in Redis."""
    first = ward.worker()
    await ward.ask(job("a"))
    await ward.answer("a")
    async with asyncio.timeout(PATIENCE_S):
        while not await ward.redis.exists("chatd:{queue}:warm"):  # noqa: ASYNC110 - asks Redis each time
            await asyncio.sleep(0.005)
    await first.drain(0)
    await ward.task(first)
    ward.worker()
    await ward.ask(job("b", question="Something else?"))
    _, outcome, _ = await ward.answer("b")
    shared = ScriptedTokens().prompt((HOSPITAL, DEPARTMENT, Piece(name="question", text="")))[:2]
    assert outcome.prefix_hit_tokens == sum(map(len, shared))
    for key in await ward.redis.keys("*"):
        kind = await ward.redis.type(key)
        if kind == b"list":
            for row in await ward.redis.lrange(key, 0, -1):
                assert b"Hospital rules" not in row


async def test_beginnings_are_bounded_distinct_and_survive_unreadable_rows(redis: Redis) -> None:
    """Told twice it stands once; only the newest stay; a row of a key that is gone is passed over."""
    sealer = Sealer(KeyRing.generate())
    beginnings = Beginnings(redis, sealer, most=3)
    told = [Beginning(pieces=(Piece(name="hospital", text=f"h{n}"),), salt="s") for n in range(5)]
    for beginning in (*told, told[-1]):
        await beginnings.tell(beginning)
    assert await beginnings.read() == [told[4], told[3], told[2]]
    assert 0 < await redis.ttl("chatd:{queue}:warm") <= 86_400
    assert await Beginnings(redis, Sealer(KeyRing.generate()), most=3).read() == []


async def test_canary_opens_the_claims_and_is_skipped_while_texts_are_written(ward: Ward) -> None:
    """The state is ``ready`` after a real token only; while a text runs no canary is needed."""
    seen: list[str] = []

    def write(generation: Generation) -> str:
        seen.append(generation.id)
        return endless(generation)

    worker = ward.worker(
        ScriptedEngine(Script(write=write), slots=2, reserved=1, step_ms=1), canary_interval_s=0.1, model_down_s=3.0
    )
    await ward.ready(worker)
    assert seen == ["canary/1"]
    await ward.until(lambda: seen.count("canary/2") == 1)  # idle, so a second one comes
    states = await ward.queue.workers(now_ms())
    assert states[0].canary_ms > 0
    await ward.ask(job("a", max_tokens=700))
    await ward.answer("a")
    during = seen[next(n for n, generation_id in enumerate(seen) if generation_id.startswith("a/")) :]
    # None while it wrote, which would be seven or more; a few may come between its last word and this line.
    assert len(during) <= 5
    assert states[0].slots == 2
    assert states[0].reserved == 1


@pytest.mark.parametrize("lease_s", [0.6, 20.0], ids=["longer than the lease", "shorter than the lease"])
async def test_redis_that_stands_still_loses_no_job_and_doubles_no_text(
    own_redis_server: RedisServer, lease_s: float
) -> None:
    """Frozen in mid-stream for longer than a command may take: one end, one whole text; within the lease the text
    that was begun goes on, with nothing in it twice."""
    redis = own_redis_server.client(socket_timeout=0.3, retry=None)
    ward = Ward(redis, QueueLimits(lease_ms=round(lease_s * 1000), max_attempts=4))
    try:
        worker = ward.worker(ScriptedEngine(slots=4, reserved=1, step_ms=4), job_attempts=4, job_lease_s=lease_s)
        await ward.ready(worker)
        await ward.ask(job("a"), job("b"))
        await ward.results("a", lambda events: bool(texts(events)))
        own_redis_server.freeze()
        await asyncio.sleep(1.0)  # the length of the outage, not a wait for something
        own_redis_server.thaw()
        for job_id in ("a", "b"):
            answer = None
            async with asyncio.timeout(PATIENCE_S):
                while answer is None:
                    with contextlib.suppress(QueueUnavailable):
                        answer = await ward.answer(job_id)
            text, outcome, events = answer
            assert outcome.reason == "stop"
            assert text == write_sections(generation_of(job(job_id)))
            if lease_s > 1:
                assert {event.attempt for event in events} == {1}
    finally:
        own_redis_server.thaw()
        await ward.close()
        await redis.aclose()


# --- what is sent when: pure ---


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.text(max_size=3), st.integers(0, 40), st.booleans()), min_size=1, max_size=60
    )
)
def test_outflow_sends_every_text_once_in_order_and_its_end_last(moves: list[tuple[int, str, int, bool]]) -> None:
    """Whatever comes when: joined texts equal what was added, at most one taking per tick, the end is the last."""
    outflow, now = Outflow(), 0
    added: dict[int, str] = {}
    got: dict[int, str] = {}
    ended: set[int] = set()
    taken_at: dict[int, list[int]] = {}

    def take() -> None:
        for key, text, outcome in outflow.take(now):
            assert key not in ended
            got[key] = got.get(key, "") + text
            if outcome is not None:
                ended.add(key)
            else:
                taken_at.setdefault(key, []).append(now)

    for key, text, wait, is_end in moves:
        now += wait
        if key not in ended:
            if text:
                added[key] = added.get(key, "") + text
                outflow.add(key, text, now)
            if is_end:
                outflow.end(key, Outcome(reason="stop"), now)
                assert outflow.due_ms() is not None
        take()
    now += 2 * MERGE_MS
    take()
    assert outflow.due_ms() is None
    assert got.items() >= added.items()
    for times in taken_at.values():
        ticks = [time // MERGE_MS for time in times]
        assert len(set(ticks)) == len(ticks)


def test_outflow_sends_a_first_text_at_once_and_the_next_with_the_tick() -> None:
    """Nothing waits for the first words; afterwards all jobs share the ticks."""
    outflow = Outflow()
    outflow.add(1, "a", 1_007)
    assert [text for _, text, _ in outflow.take(1_007)] == ["a"]
    outflow.add(1, "b", 1_010)
    outflow.add(1, "c", 1_011)
    assert outflow.due_ms() == 1_050
    assert outflow.take(1_049) == []
    assert [text for _, text, _ in outflow.take(1_050)] == ["bc"]
    outflow.add(1, "d", 1_060)
    outflow.drop(1)
    assert outflow.due_ms() is None


def test_outflow_sign_of_life_gives_way_to_text_and_delays_none() -> None:
    """It is sent at once, alone; the first text after it is due at once all the same; beside text it is nothing."""
    outflow = Outflow()
    outflow.add(1, "", 1_007)
    assert outflow.take(1_007) == [(1, "", None)]
    outflow.add(1, "first", 1_008)
    assert outflow.take(1_008) == [(1, "first", None)]
    outflow.add(1, "", 1_051)
    outflow.add(1, "on", 1_052)
    assert outflow.take(1_052) == [(1, "on", None)]
