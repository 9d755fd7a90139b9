"""A check of the table is asked once for all who come at once, stands for as long as told, and never hangs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from chatd.checks import table
from chatd.checks.table import CHECKS, Check
from chatd.readiness import Cached


class Hands:
    """A clock that goes by hand."""

    def __init__(self) -> None:
        self.ms = 1_000

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_ms(self) -> int:
        return self.ms


async def test_answer_stands_and_its_age_is_known() -> None:
    """Callers that come at once share one question; a further one is asked when the answer is too old."""
    clock, asked = Hands(), []

    async def ask() -> int:
        asked.append(1)
        await asyncio.sleep(0)
        return len(asked)

    cached = Cached("ledger", ask, clock, lambda: 0)
    assert cached.age_ms == 0
    assert await asyncio.gather(*(cached.get() for _ in range(20))) == [1] * 20
    clock.ms += CHECKS["ledger"].fresh_ms - 1
    assert (await cached.get(), cached.age_ms) == (1, CHECKS["ledger"].fresh_ms - 1)
    clock.ms += 1
    assert (await cached.get(), cached.age_ms) == (2, 0)


async def test_failure_is_asked_again_soon() -> None:
    """A question that failed stands for a second at most, also where an answer would stand for half a minute."""
    clock = Hands()
    answers: list[int | OSError] = [1, OSError(), 2]

    async def ask() -> int:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    cached = Cached("redis_safe", ask, clock, lambda: -1)
    assert await cached.get() == 1
    clock.ms += CHECKS["redis_safe"].fresh_ms
    assert await cached.get() == -1
    clock.ms += 999
    assert await cached.get() == -1
    clock.ms += 1
    assert await cached.get() == 2


async def test_question_that_hangs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the table's bound; a caller that is cancelled takes no other one's answer away."""
    monkeypatch.setitem(table.CHECKS, "ledger", Check("ledger", "cheap", 0.05, 2_000))
    cached = Cached("ledger", asyncio.Event().wait, Hands(), lambda: False)
    impatient, patient = (asyncio.create_task(cached.get()) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient is False
    assert impatient.cancelled()
