"""Tasks end when they are told to, also those that overhear it once."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from chatd import tasks


async def test_end_task_that_swallows_a_cancellation() -> None:
    """A loop that goes on after its first cancellation is cancelled again until it ends."""
    heard = 0

    async def stubborn() -> None:
        nonlocal heard
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard += 1
                if heard == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await tasks.end([task])
    assert task.cancelled()
    assert heard == 3


async def test_end_leaves_nothing_of_a_task_that_ends_its_own() -> None:
    """However often the outer one is cancelled while it ends its tasks, all of them have ended when it has."""
    heard = 0

    async def inner() -> None:
        nonlocal heard
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard += 1
                if heard == 4:
                    raise

    inners: list[asyncio.Task[None]] = []

    async def outer() -> None:
        inners.append(asyncio.create_task(inner()))
        try:
            await asyncio.Event().wait()
        finally:
            await tasks.end(inners)

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await tasks.end([task])
    assert task.cancelled()
    assert [each.cancelled() for each in inners] == [True]


async def test_end_tells_nothing_of_what_a_task_raises() -> None:
    """A task that fails while it ends, and one that has ended before, are ended all the same."""

    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError

    async def done() -> None:
        return

    both = [asyncio.create_task(failing()), asyncio.create_task(done())]
    await asyncio.sleep(0)
    await tasks.end(both)
    await tasks.end(both)
    assert all(task.done() for task in both)


async def test_end_loops_on_redis_wherever_they_are(redis: Redis) -> None:
    """Loops that ask Redis end at whatever moment they are told to."""

    async def ask() -> None:
        while True:
            await redis.get("a")
            await asyncio.sleep(0.01)

    async with asyncio.timeout(60):
        for turns in range(20):
            loops = [asyncio.create_task(ask()) for _ in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            await tasks.end(loops)
            assert all(loop.cancelled() for loop in loops)


async def test_keep_begins_anew_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails or returns is run again, until it is cancelled."""
    monkeypatch.setattr(tasks, "_ANEW_S", 0)
    runs, ran = 0, asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError
        if runs == 3:
            ran.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(tasks.keep("work", work))
    async with asyncio.timeout(20):
        await ran.wait()
    await tasks.end([task])
    assert runs == 3
