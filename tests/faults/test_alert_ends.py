"""How the alert campaign ends: its faults are lifted for certain, and what was not heard of is not judged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.faults.alert_faults import _meanwhile
from tests.faults.alert_promises import Judge, Verdict
from tests.faults.alert_stand import Caller, whole
from tests.faults.alerts import Campaign, Outcome

ANSWER = b'HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\n{"a"'


@pytest.mark.parametrize("kept", range(len(ANSWER)))
def test_answer_that_was_cut_off_is_no_answer(kept: int) -> None:
    """Of a gateway that was killed while it answered, no half of an answer is taken for one."""
    with pytest.raises(ConnectionError):
        whole(ANSWER[:kept])


def test_whole_answer_has_its_status_and_body() -> None:
    """The whole one is taken."""
    assert whole(ANSWER) == (201, b'{"a"')


async def test_fault_that_swallows_its_end_is_lifted_all_the_same() -> None:
    """redis-py may swallow a cancellation: what works meanwhile is asked again until it has ended."""
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 1:
                    raise

    async with asyncio.timeout(20), _meanwhile(stubborn()):
        await asyncio.sleep(0)
    assert swallowed == 2


async def test_end_of_the_campaign_is_not_taken_for_the_end_of_a_fault() -> None:
    """Who is cancelled while a fault is lifted ends, and does not go on to judge."""
    began = asyncio.Event()
    went_on = False

    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            began.set()
            await asyncio.sleep(0.05)

    async def fault() -> None:
        nonlocal went_on
        async with _meanwhile(slow_to_end()):
            await asyncio.sleep(0)
        went_on = True

    task = asyncio.create_task(fault())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not went_on


async def test_dead_raiser_ends_the_campaign_with_its_reason() -> None:
    """Without it nothing is answered any more: the fault that waits for an answer is broken off."""

    async def dies() -> None:
        raise ValueError("half an answer")

    async def waits() -> Outcome:
        await asyncio.sleep(3600)
        raise AssertionError

    with pytest.raises(ValueError, match="half an answer"):
        await Campaign._unless_ended(asyncio.create_task(dies()), waits())


def test_alert_that_was_not_judged_is_counted_and_not_lost() -> None:
    """What was accepted when the run was ended by hand is neither lost nor passed over."""
    judge = Judge(["phone.1"])
    judge.accepted("a", "al-a", 1, above=0)
    assert (judge.verdict, judge.unsettled_count, judge.accepted_count) == (Verdict(), 1, 1)
    judge.settle()
    assert (judge.verdict, judge.unsettled_count, judge.accepted_count) == (Verdict(lost=1), 0, 1)


class Line:
    """A socket to a gateway that keeps some answers to itself."""

    def __init__(self, silent: int) -> None:
        self.sent: list[bytes] = []
        self.silent = silent
        self.hear: Callable[[dict[str, Any]], None] = lambda _: None

    async def send(self, data: str) -> None:
        self.sent.append(data.encode())
        if len(self.sent) > self.silent:
            self.hear({"type": "accepted", "client_msg_id": "end-a"})


async def test_command_without_an_answer_on_a_living_line_is_counted_and_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gateway that owes an answer is found out, and the campaign goes on."""
    monkeypatch.setattr("tests.faults.alert_stand.ANSWER_S", 0.01)
    caller, line = Caller("dr.a", "token", [1]), Line(silent=2)
    line.hear = caller._hear
    caller._socket = cast(Any, line)
    async with asyncio.timeout(20):
        await caller.command({"client_msg_id": "end-a"})
    assert (caller.unanswered, len(line.sent)) == (2, 3)
