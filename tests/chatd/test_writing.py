"""A question on its way to the model: the job it becomes, and which questions one text may answer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from chatd.clock import SystemClock
from chatd.inference.lanes import QueueLimits
from chatd.inference.queue import JobQueue
from chatd.replies.facts import FactsResult, build
from chatd.replies.following import Follower
from chatd.replies.runs import Run
from chatd.replies.sessions import Request
from chatd.replies.writing import Prepared, Unwritten, Writer, prepare
from chatd.settings import Settings
from context.layers import Layers, versioned
from context.library.library import Library
from context.seal import KeyRing, Sealer
from protocols.errors import ErrorCode
from tests.context.sample_layers import DOCTOR, ICU, LAYERS, NOW

KEY = b"k" * 32
LIBRARY = Library.load()
QUESTION = "What is critical, and what now?"
SETTINGS = Settings(engine="scripted")


def run_of(content: str = QUESTION, **changes: Any) -> Run:
    request = Request(
        client_msg_id="m-1",
        content=content,
        user_id="dr.santos.cardio",
        department="cardiology",
        patient_id="7823",
        session_id="sess_1",
        lang="en",
        urgency="routine",
        received_at=NOW,
    )
    return Run(key="k", epoch="e", response_id="resp_1", request=msgspec.structs.replace(request, **changes))


def facts_of(run: Run, layers: Layers) -> FactsResult:
    return build(layers, run.request.content, library=LIBRARY, now=NOW, lang=run.request.lang)


def prepared_of(run: Run, layers: Layers = LAYERS) -> Prepared:
    return prepare(run, facts_of(run, layers), layers, settings=SETTINGS, digest_key=KEY)


def test_prepare_makes_the_job_of_the_prompt() -> None:
    """The job has the response's id, the prompt's segments as they are, and the department's catalogue."""
    prepared = prepared_of(run_of())
    job = prepared.job
    assert job.job_id == "resp_1"
    assert "".join(piece.text for piece in job.pieces) == prepared.prompt.text
    assert [piece.name for piece in job.pieces] == [segment.name for segment in prepared.prompt.segments]
    assert job.actions == tuple(action.id for action in LAYERS.department.actions)
    assert prepared_of(run_of()) == prepared


def test_same_question_of_a_colleague_has_the_same_key() -> None:
    """Who asks changes neither what is true nor what is written; the key tells nothing of the question."""
    colleague = msgspec.structs.replace(
        LAYERS, doctor=versioned(msgspec.structs.replace(DOCTOR, user_id="dr.x", name="Dr. X", preferences=("short",)))
    )
    mine, theirs = prepared_of(run_of()), prepared_of(run_of(user_id="dr.x", urgency="stat"), colleague)
    assert mine.job.pieces != theirs.job.pieces
    assert mine.same_key == theirs.same_key
    assert len(mine.same_key) == 32


@pytest.mark.parametrize(
    ("run", "layers"),
    [
        (run_of("What is critical, and what next?"), LAYERS),
        (run_of(lang="pt"), LAYERS),
        (run_of(department="icu"), msgspec.structs.replace(LAYERS, department=ICU)),
        (run_of(patient_id=None), msgspec.structs.replace(LAYERS, patient=None)),
    ],
)
def test_another_question_has_another_key(run: Run, layers: Layers) -> None:
    """Other words, language, department or patient: no text is shared."""
    assert prepared_of(run, layers).same_key != prepared_of(run_of()).same_key


def test_key_needs_the_installation() -> None:
    """Without the key of this installation nobody can tell from a name in Redis what was asked."""
    run = run_of()
    other = prepare(run, facts_of(run, LAYERS), LAYERS, settings=SETTINGS, digest_key=b"o" * 32)
    assert other.same_key != prepared_of(run).same_key


async def written(redis: Redis, settings: Settings, *, is_down: bool = False) -> object:
    queue = JobQueue(redis, Sealer(KeyRing.generate()), QueueLimits(max_waiting=1))
    clock = SystemClock()
    follower = Follower(queue, redis, redis, clock=clock, silence_s=1, is_down=lambda: is_down)
    writer = Writer(queue, follower, digest_key=KEY, settings=settings, clock=clock)

    async def at_once(work: Any, *args: Any, **kwargs: Any) -> Any:
        return work(*args, **kwargs)

    run = run_of()
    return await writer.write(run, facts_of(run, LAYERS), LAYERS, started_ms=0, is_down=is_down, off_loop=at_once)


async def test_write_while_down_queues_nothing(redis: Redis) -> None:
    """While no model is there the question is not queued: it is answered now."""
    got = await written(redis, SETTINGS, is_down=True)
    assert isinstance(got, Unwritten)
    assert (got.code, got.is_refused) == (ErrorCode.MODEL_UNAVAILABLE, False)
    assert await redis.keys("*") == []


async def test_write_without_room_for_the_prompt_queues_nothing(redis: Redis) -> None:
    """A record whose allergies and medicines alone pass the budget is answered from facts, never cut."""
    got = await written(redis, msgspec.structs.replace(SETTINGS, prompt_budget_tokens=50))
    assert isinstance(got, Unwritten)
    assert got.code is ErrorCode.TOO_LARGE
    assert await redis.keys("*") == []


async def test_write_to_a_full_queue_is_refused_with_a_time(redis: Redis) -> None:
    """A refusal says when to come back and leaves no job."""
    queue = JobQueue(redis, Sealer(KeyRing.generate()), QueueLimits())
    job = msgspec.structs.replace(prepared_of(run_of()).job, job_id="other")
    now_ms = round(datetime.now(UTC).timestamp() * 1000)
    await queue.enqueue(job, doctor="dr.other", lane="routine", follower="other", now_ms=now_ms)
    got = await written(redis, SETTINGS)
    assert isinstance(got, Unwritten)
    assert (got.code, got.is_refused, got.job_id) == (ErrorCode.QUEUE_FULL, True, "")
    assert got.retry_after_ms is not None
    assert got.retry_after_ms > 0
