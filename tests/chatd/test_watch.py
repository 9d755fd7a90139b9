"""The model's state as a gateway sees it: proofs by age, a grace for restarts, and modes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from chatd import metrics
from chatd.clock import SystemClock, epoch_ms
from chatd.inference.jobs import Job, Piece, WorkerState
from chatd.inference.lanes import QueueLimits
from chatd.inference.queue import JobQueue, QueueUnavailable
from chatd.inference.watch import SLOW_MS, ModelWatch, mode_of, state_of, view
from context.seal import KeyRing, Sealer
from tests.fakes.hand_worker import MODEL, HandWorker, now_ms

FRESH_MS = 12_000
NOW_MS = 1_800_000_000_000


def worker(**changes: object) -> WorkerState:
    fields = {"worker_id": "w", "engine": "mlx", "state": "ready", "at_ms": NOW_MS, "canary_ms": NOW_MS, "model": MODEL}
    return WorkerState(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("workers", "is_ready", "is_starting"),
    [
        ([], False, False),
        ([worker()], True, False),
        ([worker(at_ms=NOW_MS - FRESH_MS - 1)], False, False),
        ([worker(canary_ms=NOW_MS - FRESH_MS - 1)], False, False),
        ([worker(canary_ms=0)], False, False),
        ([worker(state="draining")], False, False),
        ([worker(state="starting", canary_ms=0)], False, True),
        ([worker(state="starting"), worker(worker_id="v")], True, True),
    ],
)
def test_view_counts_proven_workers_only(workers: list[WorkerState], is_ready: bool, is_starting: bool) -> None:
    """A worker that has not been heard of, has made no token lately or is going away takes no question."""
    seen = view(workers, NOW_MS, FRESH_MS)
    assert (seen.is_ready, seen.is_starting) == (is_ready, is_starting)


@given(st.integers(0, 40_000), st.booleans())
def test_state_is_down_only_after_the_grace(age_ms: int, is_starting: bool) -> None:
    """Without a ready worker the state stays ready until the last proof is too old, and never longer."""
    seen = view([worker(state="starting")] if is_starting else [], NOW_MS, FRESH_MS)
    state = state_of(seen, NOW_MS - age_ms, NOW_MS, FRESH_MS)
    assert state == ("ready" if age_ms <= FRESH_MS else "starting" if is_starting else "down")


async def test_look_sees_what_was_given_up(redis: Redis) -> None:
    """Texts whose attempts were spent are there for ``/health/model``, newest first, and counted."""
    queue = JobQueue(redis, Sealer(KeyRing.generate()), QueueLimits(max_attempts=1))
    watch = ModelWatch(queue, clock=SystemClock(), model_down_s=12)
    hand = HandWorker(queue)
    for job_id in ("r-1", "r-2"):
        job = Job(job_id=job_id, pieces=(Piece(name="question", text="secret"),), actions=(), max_tokens=9)
        await queue.enqueue(job, doctor="dr.a", lane="stat", follower=job_id, now_ms=now_ms())
        await hand.claim(job_id)
        await queue.release(hand.worker_id, now_ms())
    await watch.look()
    assert [(one.job_id, one.lane, one.attempts, one.reason) for one in watch.given_up] == [
        ("r-2", "stat", 1, "lost"),
        ("r-1", "stat", 1, "lost"),
    ]
    assert metrics.MODEL_GIVEN_UP._value.get() == 2
    await redis.flushall()
    await watch.look()
    assert watch.given_up == ()


def test_state_without_any_proof_is_no_grace() -> None:
    """A gateway that has never seen a token does not promise one."""
    assert state_of(view([], NOW_MS, FRESH_MS), 0, NOW_MS, FRESH_MS) == "down"


def test_mode_says_slow_and_facts_only() -> None:
    """Without a model facts only; slow while all workers are lost or the wait is long; else normal."""
    assert mode_of("down", False, 0) == mode_of("starting", False, 0) == mode_of("none", False, 0) == "facts_only"
    assert mode_of("ready", True, SLOW_MS) == "normal"
    assert mode_of("ready", False, 0) == mode_of("ready", True, SLOW_MS + 1) == "slow"


class Clock:
    def __init__(self) -> None:
        self.at = datetime.fromtimestamp(now_ms() / 1000, UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic_ms(self) -> int:
        return epoch_ms(self.at)


async def test_watch_sees_a_worker_come_and_go(redis: Redis) -> None:
    """The mode follows the worker's proofs, and keeps the model's name when it has gone."""
    queue = JobQueue(redis, Sealer(KeyRing.generate()), QueueLimits())
    clock = Clock()
    watch = ModelWatch(queue, clock=clock, model_down_s=12)
    await watch.look()
    assert (watch.mode, watch.state.state, watch.is_down) == ("facts_only", "down", True)
    await HandWorker(queue).alive()
    await watch.look()
    assert (watch.mode, watch.state.state, watch.state.id) == ("normal", "ready", "by-hand")
    clock.at += timedelta(seconds=13)
    await watch.look()
    assert (watch.mode, watch.state.state, watch.state.id) == ("facts_only", "down", "by-hand")
    assert watch.state.canary_age_s is not None
    assert watch.state.canary_age_s >= 12


async def test_watch_keeps_the_last_proof_while_redis_is_away(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that fails is no proof of a dead model: slow at once, facts only when the proof has grown old."""
    queue = JobQueue(redis, Sealer(KeyRing.generate()), QueueLimits())
    clock = Clock()
    watch = ModelWatch(queue, clock=clock, model_down_s=12)
    await HandWorker(queue).alive()
    await watch.look()

    async def away(_: int) -> list[WorkerState]:
        raise QueueUnavailable

    monkeypatch.setattr(queue, "workers", away)
    await watch.look()
    assert (watch.mode, watch.state.state) == ("slow", "ready")
    clock.at += timedelta(seconds=13)
    await watch.look()
    assert watch.mode == "facts_only"


async def test_watch_without_an_engine_is_none_for_good() -> None:
    """Without an engine there is nothing to look at."""
    watch = ModelWatch(None, clock=Clock(), model_down_s=12)
    await watch.look()
    assert (watch.mode, watch.state.state, watch.state.canary_age_s) == ("facts_only", "none", None)
