"""The order of the queue on a real Redis: predicted exactly, fair to every doctor, and mostly falling."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from chatd.inference.jobs import Claimed
from chatd.inference.lanes import LANES, LaneName, QueueLimits
from chatd.inference.order import Place
from chatd.inference.queue import JobQueue
from context.seal import KeyRing, Sealer
from tests.inference.queue_jobs import NOW, announce, claim, end, job, put, worker
from tests.redis_server import RedisServer

SEALER = Sealer(KeyRing.generate())
RANK: dict[LaneName, int] = {lane.name: i for i, lane in enumerate(LANES)}
DOCTORS = st.sampled_from(["dr.a", "dr.ab", "dr.b", "dr.c", "dr.d"])
LANE_NAMES = st.sampled_from([lane.name for lane in LANES])
#: What happens: somebody asks, slots come free, somebody takes a question back, time passes, a worker dies.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), DOCTORS, LANE_NAMES),
        st.tuples(st.just("ask"), DOCTORS, LANE_NAMES),
        st.tuples(st.just("claim"), st.integers(1, 4), st.just("")),
        st.tuples(st.just("urgent"), st.integers(1, 2), st.just("")),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just("")),
        st.tuples(st.just("pass"), st.integers(1, 60_000), st.just("")),
        st.tuples(st.just("die"), st.just(0), st.just("")),
    ),
    max_size=40,
)


def on_redis(server: RedisServer, story: Callable[[JobQueue], Awaitable[None]], **limits: int) -> None:
    """Run one example against an empty Redis in an event loop of its own."""

    async def run() -> None:
        redis = server.client()
        await story(JobQueue(redis, SEALER, QueueLimits(**limits)))
        await redis.aclose()

    server.flush()
    asyncio.run(run())


def may_rise(job_id: str, before: dict[str, Place], doctors: dict[str, str], new: str, lane: LaneName) -> bool:
    """Whether the new job may push this one back: it is in a higher lane, or takes the stat lane's turn for others,
    or its doctor has a turn before this job's doctor has another one."""
    mine = before[job_id]
    if lane == mine.lane:
        ahead = [other for other, place in before.items() if place.lane == lane and place.position < mine.position]
        return doctors[new] != doctors[job_id] and any(doctors[other] == doctors[job_id] for other in ahead)
    return RANK[lane] < RANK[mine.lane] or mine.lane == "stat"


@settings(max_examples=60)
@given(steps=STEPS)
def test_places_are_the_order_of_claims_and_only_fall(redis_server: RedisServer, steps: list[tuple[str, ...]]) -> None:
    """Whatever happens, the next claims are the first places; the place and time told at once are those of the
    snapshot; a place rises only where a rule says so."""

    async def story(queue: JobQueue) -> None:
        now_ms, doctors, number = NOW, dict[str, str](), 0
        await announce(queue, worker(slots=3, reserved=1, at_ms=NOW + 10**9))
        before = dict[str, Place]()
        for what, argument, lane in steps:
            risers = set[str]()
            if what == "ask":
                number += 1
                new = f"r{number}"
                doctors[new] = str(argument)
                placed = await put(queue, new, str(argument), lane=lane, now_ms=now_ms)  # type: ignore[arg-type]
                risers = {i for i in before if may_rise(i, before, doctors, new, lane)}  # type: ignore[arg-type]
                after = await queue.places(now_ms)
                if placed.outcome == "queued":
                    assert (placed.position, placed.eta_ms) == (after[new].position, after[new].eta_ms)
                    again = await put(queue, new, str(argument), now_ms=now_ms)
                    assert (again.outcome, again.position, again.eta_ms) == ("known", placed.position, placed.eta_ms)
                else:
                    assert placed.outcome == "deadline"
                    assert after.keys() == before.keys()
            elif what == "claim":
                taken = await claim(queue, int(argument), now_ms=now_ms)
                assert [c.job_id for c in taken] == list(before)[: int(argument)]
            elif what == "urgent":
                taken = await claim(queue, 0, urgent_slots=int(argument), now_ms=now_ms)
                assert [c.job_id for c in taken] == [i for i in before if before[i].lane == "stat"][: int(argument)]
            elif what == "cancel" and before:
                chosen = list(before)[int(argument) % len(before)]
                assert await queue.cancel(chosen, follower=chosen, now_ms=now_ms)
            elif what == "pass":
                now_ms += int(argument)
                await queue.reap(now_ms)
                after = await queue.places(now_ms)
                moved = any(after[i].lane != before[i].lane for i in before.keys() & after.keys())
                risers = set(before) if moved or after.keys() - before.keys() else set()
            elif what == "die":
                await queue.release("w1", now_ms)
                await announce(queue, worker(slots=3, reserved=1, at_ms=NOW + 10**9))
                risers = set(before)
            after = await queue.places(now_ms)
            assert [place.position for place in after.values()] == list(range(1, len(after) + 1))
            for job_id in before.keys() & after.keys() - risers:
                assert after[job_id].position <= before[job_id].position
            for job_id in risers & after.keys() if what == "ask" else ():
                assert after[job_id].position <= before[job_id].position + 1
            depth = await queue.depth()
            assert depth == {name: sum(place.lane == name for place in after.values()) for name in depth}
            before = after
        rest = list(before)
        for left in range(len(rest)):
            assert [c.job_id for c in await claim(queue, now_ms=now_ms)] == [rest[left]]
        assert await claim(queue, now_ms=now_ms) == []

    on_redis(redis_server, story, max_per_doctor=100, service_ms=1_000)


@pytest.mark.parametrize("seed", range(3))
async def test_place_told_at_once_is_that_of_the_snapshot(queue: JobQueue, seed: int) -> None:
    """In a crowded queue, the place and time that an asker hears at once are those that everybody hears later."""
    chance, told = random.Random(seed), 0
    await announce(queue, worker(slots=40, reserved=10))
    for number in range(90):
        lane = chance.choice(["stat", "stat", "stat", "urgent", "routine"])
        placed = await put(queue, f"r{number}", chance.choice(["dr.a", "dr.b", "dr.c"]), lane=lane)  # type: ignore[arg-type]
        found = await queue.places(NOW)
        if placed.outcome == "queued":
            place = found[f"r{number}"]
            assert (placed.position, placed.eta_ms) == (place.position, place.eta_ms)
            again = chance.choice(list(found))
            known = await put(queue, again)
            assert (known.outcome, known.position, known.eta_ms) == (
                "known",
                found[again].position,
                found[again].eta_ms,
            )
            told += 1
        if number % 3 == 0:
            expected = list(found)[: chance.randint(1, 2)]
            assert [c.job_id for c in await claim(queue, len(expected))] == expected
    assert told > 80


@settings(max_examples=40)
@given(
    steps=st.lists(st.one_of(DOCTORS, st.just("claim")), max_size=60),
    open_slots=st.integers(1, 3),
)
def test_nobody_waits_for_two_questions_of_another(
    redis_server: RedisServer, steps: list[str], open_slots: int
) -> None:
    """Between a doctor's question and its claim each other doctor gets at most one claim more than the doctor had
    questions waiting, however many they have queued."""

    async def story(queue: JobQueue) -> None:
        doctors, claims = dict[str, str](), list[str]()
        waiting, entered = defaultdict[str, int](int), dict[str, tuple[int, int]]()

        async def take() -> None:
            for held in await claim(queue, open_slots):
                doctor = doctors[held.job_id]
                number, own = entered[held.job_id]
                for other in set(claims[number:]) - {doctor}:
                    assert claims[number:].count(other) <= own + 1
                claims.append(doctor)
                waiting[doctor] -= 1

        for step in steps:
            if step == "claim":
                await take()
                continue
            new = f"r{len(doctors)}"
            doctors[new], entered[new] = step, (len(claims), waiting[step])
            waiting[step] += 1
            assert (await put(queue, new, step)).outcome == "queued"
        while sum(waiting.values()):
            await take()

    on_redis(redis_server, story, max_per_doctor=100)


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    """A queue that lets one doctor ask very much."""
    return JobQueue(redis, SEALER, QueueLimits(max_per_doctor=60))


async def test_one_doctor_with_fifty_questions_delays_nobody_by_two(queue: JobQueue) -> None:
    """Nineteen others who ask one question after the other, each as soon as the last one began, get their claims
    in rounds: at most one of the fifty stands between a question and its claim."""
    for i in range(50):
        await put(queue, f"hog{i}", "dr.hog")
    others = [f"dr.{i}" for i in range(19)]
    for doctor in others:
        await put(queue, f"{doctor}:0", doctor)
    asked, claims = {f"{doctor}:0": 0 for doctor in others}, list[str]()
    for _ in range(120):
        (held,) = await claim(queue)
        claims.append(held.job_id)
        if held.job_id in asked:
            between = claims[asked[held.job_id] : -1]
            assert sum(job_id.startswith("hog") for job_id in between) <= 1
            assert len(between) <= len(others)
            doctor, number = held.job_id.split(":")
            follow_up = f"{doctor}:{int(number) + 1}"
            asked[follow_up] = len(claims)
            await put(queue, follow_up, doctor)
    assert sum(job_id.startswith("hog") for job_id in claims) == 6


async def test_stat_goes_first_and_a_flood_lets_others_pass(queue: JobQueue) -> None:
    """Of four claims in a row one goes elsewhere while somebody waits there; reserved slots are for stat alone."""
    for i in range(10):
        await put(queue, f"s{i}", lane="stat")
    for i in range(3):
        await put(queue, f"r{i}", lane="routine")
    await put(queue, "u0", lane="urgent")
    order = [c.job_id for c in await claim(queue, 9)]
    assert order == ["s0", "s1", "s2", "u0", "s3", "s4", "s5", "r0", "s6"]
    assert [c.job_id for c in await claim(queue, 0, urgent_slots=2)] == ["s7", "s8"]
    assert [c.job_id for c in await claim(queue, 9, urgent_slots=2)] == ["s9", "r1", "r2"]


async def test_forecast_holds_when_texts_take_their_usual_time(queue: JobQueue) -> None:
    """With two slots and texts of 4 s each job begins exactly when its first forecast said."""
    await announce(queue, worker(slots=2))
    for i in range(40):  # teaches the mean
        await put(queue, f"t{i}")
        await end(queue, (await claim(queue))[0])
    promised = dict[str, int]()
    for i in range(9):
        placed = await put(queue, f"r{i}")
        assert placed.eta_ms is not None
        promised[f"r{i}"] = NOW + placed.eta_ms
    running, began, now_ms = list[tuple[int, Claimed]](), dict[str, int](), NOW
    while len(began) < 9:
        for held in await claim(queue, 2 - len(running), now_ms=now_ms):
            began[held.job_id] = now_ms
            running.append((now_ms + 4_000, held))
        now_ms, first = min(running, key=lambda one: one[0])
        await end(queue, first)
        running.remove((now_ms, first))
    slip_ms = {job_id: abs(began[job_id] - promised[job_id]) for job_id in began}
    assert max(slip_ms.values()) < 200


async def test_doctors_whose_names_begin_alike_are_kept_apart(queue: JobQueue) -> None:
    """One name being the beginning of another mixes neither lines nor counts."""
    for name in ("dr.a", "dr.ab", "dr.a}", "dr.a", "dr.ab"):
        await queue.enqueue(
            job(f"{name}:{len(await queue.places(NOW))}"), doctor=name, lane="urgent", follower="f", now_ms=NOW
        )
    assert [c.job_id for c in await claim(queue, 5)] == ["dr.a:0", "dr.ab:1", "dr.a}:2", "dr.a:3", "dr.ab:4"]
    with pytest.raises(ValueError, match="holds no"):
        await put(queue, "r", "dr|a")
