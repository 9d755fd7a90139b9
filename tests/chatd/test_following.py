"""Following jobs: what phones hear of a text that is being written, and what a run is told of its end."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from chatd.clock import SystemClock
from chatd.inference.jobs import Job, Outcome, Piece, Result
from chatd.inference.lanes import QueueLimits
from chatd.inference.queue import Emission, JobQueue
from chatd.inference.sections import SECTIONS, Sections, parse, render
from chatd.replies.following import Draft, Ended, Follower
from context.seal import KeyRing, Sealer
from protocols.frames import Queue
from tests.fakes.hand_worker import HandWorker, answer_text, now_ms

KEY = "dr.santos.cardio|cardiology|sess_1"


class Phone:
    """A connection that notes what it hears; ``ready`` False: it is still behind its log."""

    def __init__(self, ready: bool = True) -> None:
        self.ready = ready
        self.places: list[Queue] = []
        self.words: defaultdict[tuple[str, int], str] = defaultdict(str)
        self.heard: list[tuple[str, int, str, str]] = []

    def can_hear(self, response_id: str) -> bool:
        return self.ready

    def hear_place(self, frame: Queue) -> None:
        self.places.append(frame)

    def hear_words(self, response_id: str, section: str, text: str, attempt: int) -> None:
        self.heard.append((response_id, attempt, section, text))
        self.words[section, attempt] += text

    @property
    def states(self) -> list[str]:
        return [frame.state for frame in self.places]


class Clock(SystemClock):
    """The machine's clocks, and a monotonic one that a test may push on."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def monotonic_ms(self) -> int:
        return super().monotonic_ms() + self.ahead_ms


class Bench:
    """A queue, a worker by hand and a follower whose rounds the test takes."""

    def __init__(self, redis: Redis) -> None:
        self.clock = Clock()
        self.queue = JobQueue(redis, Sealer(KeyRing.generate()), QueueLimits(lease_ms=400))
        self.worker = HandWorker(self.queue)
        self.phones: list[Phone] = []
        self.is_down = False
        self.follower = self.make_follower(redis, self.phones)

    def make_follower(self, redis: Redis, phones: list[Phone]) -> Follower:
        follower = Follower(self.queue, redis, redis, clock=self.clock, silence_s=1.5, is_down=lambda: self.is_down)
        follower.phones_of = lambda key: phones if key == KEY else ()
        return follower

    async def enqueue(self, job_id: str, same_key: str = "", doctor: str = "dr.a") -> asyncio.Future[Ended]:
        job = Job(job_id=job_id, pieces=(Piece(name="question", text="?"),), actions=("order_ecg",), max_tokens=64)
        placed = await self.queue.enqueue(
            job, doctor=doctor, lane="routine", follower=job_id, now_ms=now_ms(), same_key=same_key
        )
        if placed.job_id != job_id:
            await self.follower.joined(job_id, placed.job_id, 60)
        return self.follower.follow(
            placed.job_id,
            job_id,
            KEY,
            lane="routine",
            position=placed.position,
            eta_ms=placed.eta_ms,
            started_ms=self.clock.monotonic_ms(),
        )


@pytest.fixture
def bench(redis: Redis) -> Bench:
    return Bench(redis)


# --- the draft ---

lines = st.lists(st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=20), max_size=3)


@given(
    st.builds(
        lambda headline, findings, missing: Sections(
            headline=headline, findings=tuple(findings), missing=tuple(missing)
        ),
        st.text(st.characters(codec="utf-8", categories=["L"]), min_size=1, max_size=30),
        lines,
        lines,
    ),
    st.data(),
)
def test_draft_shows_by_section_what_parse_reads(sections: Sections, data: st.DataObject) -> None:
    """However a text is cut into events, the pieces shown of a section are together what the answer's reader gets."""
    text = render(sections)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    draft = Draft()
    draft.take(Result(id="1-0", kind="begun", attempt=1), 0)
    told: defaultdict[str, str] = defaultdict(str)
    for n, piece in enumerate(pieces):
        for section, new in draft.take(Result(id=f"2-{n}", kind="text", attempt=1, text=piece), 0)[1]:
            told[section] += new
    read = parse(text, ())
    for section in SECTIONS[:-1]:
        whole = getattr(read, section)
        assert told[section] == (whole if section == "headline" else "\n".join(whole))
    assert dict(draft.shown) == {section: text for section, text in told.items() if text}
    assert draft.text == text


def test_draft_restart_voids_the_text() -> None:
    """After a restart nothing of the lost attempt is left, and late text of it is not taken."""
    draft = Draft()
    draft.take(Result(id="1-0", kind="begun", attempt=1), 0)
    draft.take(Result(id="1-1", kind="text", attempt=1, text="Headline: lost\n"), 0)
    assert draft.take(Result(id="1-2", kind="restart", attempt=1), 0) == ("restarted", ())
    assert (draft.text, draft.shown, draft.attempt) == ("", (), 2)
    assert draft.take(Result(id="1-3", kind="text", attempt=1, text="late"), 0) == (None, ())
    assert draft.take(Result(id="1-4", kind="begun", attempt=2), 0) == ("running", ())
    assert draft.text == ""


def test_draft_is_silent_once_until_it_speaks() -> None:
    """Silence is told once; text ends it; what waits or has ended is never silent."""
    draft = Draft()
    assert not draft.silent(10_000, 1_500)
    draft.take(Result(id="1-0", kind="begun", attempt=1), 0)
    assert not draft.silent(1_499, 1_500)
    assert draft.silent(1_500, 1_500)
    assert not draft.silent(3_000, 1_500)
    assert draft.take(Result(id="1-1", kind="text", attempt=1, text="Headline: x"), 3_000)[0] == "running"
    draft.take(Result(id="1-2", kind="ended", attempt=1, outcome=Outcome(reason="stop")), 3_001)
    assert not draft.silent(9_000, 1_500)


# --- the follower ---


async def test_phone_hears_place_then_running_then_text(bench: Bench) -> None:
    """A phone hears its place at once, that writing has begun, the text by section, and the run gets all of it."""
    phone = Phone()
    bench.phones.append(phone)
    await bench.worker.alive()
    done = await bench.enqueue("r-1")
    assert [(frame.state, frame.position) for frame in phone.places] == [("waiting", 1)]
    job = await bench.worker.claim()
    text = answer_text(recommendations=("Repeat the ECG", "Call the team"))
    await bench.worker.write(job, text[:25])
    await bench.follower.round()
    assert phone.states == ["waiting", "running"]
    await bench.worker.write(job, text[25:])
    await bench.worker.end(job)
    await bench.follower.round()
    assert done.result().text == text
    assert done.result().outcome is not None
    assert phone.words["headline", 1] == "Written by hand"
    assert phone.words["recommendations", 1] == "Repeat the ECG\nCall the team"


async def test_phone_that_comes_late_hears_all_so_far_once(bench: Bench) -> None:
    """A phone that catches up mid-stream hears the whole text so far, then goes on; it hears nothing before that."""
    early, late = Phone(), Phone(ready=False)
    bench.phones += [early, late]
    await bench.enqueue("r-1")
    job = await bench.worker.claim()
    text = answer_text(findings=("one", "two"))
    await bench.worker.write(job, text[:40])
    await bench.follower.round()
    assert late.heard == []
    assert late.places == []
    late.ready = True
    await bench.follower.round()
    assert late.states == ["running"]
    await bench.worker.write(job, text[40:])
    await bench.follower.round()
    assert late.words == early.words


async def test_attend_hears_on_another_gateway_also_a_joined_answer(bench: Bench, redis: Redis) -> None:
    """A gateway that only listens tells its phones the text, also where the question joined another's job."""
    elsewhere = [Phone()]
    other = bench.make_follower(redis, elsewhere)
    other.attend("r-2", KEY)
    await other.round()
    await bench.enqueue("r-1", same_key="same")
    await bench.enqueue("r-2", same_key="same", doctor="dr.b")
    job = await bench.worker.claim("r-1")
    await bench.worker.write(job, answer_text())
    bench.clock.ahead_ms += 2_000
    for _ in range(2):
        await other.round()
    assert {response_id for response_id, *_ in elsewhere[0].heard} == {"r-2"}
    assert elsewhere[0].words["headline", 1] == "Written by hand"
    assert await other.job_of("r-2") == "r-1"
    other.dismiss("r-2")
    await bench.worker.end(job)
    await other.round()


async def test_restart_is_told_and_the_text_begins_again(bench: Bench) -> None:
    """When the worker is lost the phone hears that the text is void, and the next one comes as attempt 2."""
    phone = Phone()
    bench.phones.append(phone)
    done = await bench.enqueue("r-1")
    job = await bench.worker.claim()
    await bench.worker.write(job, "Headline: void\n")
    await bench.follower.round()
    await bench.queue.release(bench.worker.worker_id, now_ms())
    await bench.follower.round()
    assert phone.states[-1] == "restarted"
    second = HandWorker(bench.queue, "w-2")
    await second.answer(await second.claim())
    assert not await bench.worker.write(job, "late words of the zombie")
    await bench.follower.round()
    assert done.result().attempt == 2
    assert (phone.words["headline", 1], phone.words["headline", 2]) == ("void", "Written by hand")


async def test_silence_is_told_and_ended(bench: Bench) -> None:
    """A text that stands still for longer than the bound is told as stalled, and as running when it goes on."""
    phone = Phone()
    bench.phones.append(phone)
    await bench.enqueue("r-1")
    job = await bench.worker.claim()
    await bench.follower.round()
    bench.clock.ahead_ms += 1_600
    await bench.follower.round()
    await bench.worker.write(job, "Headline: on\n")
    await bench.follower.round()
    assert phone.states == ["waiting", "running", "stalled", "running"]


async def test_engine_that_moves_without_words_is_not_silent(bench: Bench) -> None:
    """A long prompt is no standstill: only when the signs of its engine end too is the text told as stalled."""
    phone = Phone()
    bench.phones.append(phone)
    await bench.enqueue("r-1")
    job = await bench.worker.claim()
    await bench.follower.round()
    for _ in range(5):
        bench.clock.ahead_ms += 1_400
        await bench.queue.emit("w-hand", [Emission(job_id="r-1", fence=job.fence, kind="moving")])
        await bench.follower.round()
    assert phone.states == ["waiting", "running"]
    bench.clock.ahead_ms += 1_600
    await bench.follower.round()
    assert phone.states == ["waiting", "running", "stalled"]
    await bench.queue.emit("w-hand", [Emission(job_id="r-1", fence=job.fence, kind="moving")])
    await bench.follower.round()
    assert phone.states == ["waiting", "running", "stalled", "running"]
    assert phone.heard == []


async def test_places_are_told_on_change_only(bench: Bench) -> None:
    """Positions are told when they change, at most once a second, and not again when they stay."""
    phone = Phone()
    bench.phones.append(phone)
    await bench.worker.alive()
    await bench.enqueue("r-0", doctor="dr.z")
    await bench.enqueue("r-1")

    def mine() -> list[int]:
        return [frame.position for frame in phone.places if frame.response_id == "r-1"]

    assert mine() == [2]
    await bench.worker.claim("r-0")
    for _ in range(3):
        await bench.follower.round()
        bench.clock.ahead_ms += 1_000
    assert mine() == [2, 1]


async def test_down_ends_the_wait_of_every_run(bench: Bench) -> None:
    """When no model is left the runs are told; a job that has ended by then is read."""
    waiting, ended = await bench.enqueue("r-1"), await bench.enqueue("r-2", doctor="dr.b")
    await bench.worker.answer(await bench.worker.claim("r-2"))
    bench.is_down = True
    await bench.follower.round()
    assert (waiting.result().how, ended.result().how) == ("down", "ended")


async def test_lost_job_is_gone_for_its_run(bench: Bench, redis: Redis) -> None:
    """A job that Redis has lost is told as gone, so that the run can queue it again."""
    done = await bench.enqueue("r-1")
    await bench.follower.round()
    await redis.flushall()
    await bench.follower.round()
    assert done.result().how == "gone"


async def test_listening_ends_when_the_phones_have_gone(bench: Bench) -> None:
    """A gateway stops reading for phones that are gone, and reads nothing for nobody."""
    phone = Phone()
    bench.phones.append(phone)
    bench.follower.attend("r-1", KEY)
    await bench.enqueue("r-2")
    bench.follower.leave("r-2")
    bench.phones.clear()
    await bench.follower.round()
    assert await bench.follower.job_of("r-1") == "r-1"
    bench.phones.append(phone)
    job = await bench.worker.claim()
    await bench.worker.answer(job)
    await bench.follower.round()
    assert phone.heard == []


async def test_run_hears_the_bell(bench: Bench, redis: Redis) -> None:
    """The task reads on by itself and ends when it is cancelled."""
    phone = Phone()
    bench.phones.append(phone)
    task = asyncio.create_task(bench.follower.run())
    done = await bench.enqueue("r-1")
    await bench.worker.answer(await bench.worker.claim())
    async with asyncio.timeout(20):
        assert (await done).how == "ended"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
