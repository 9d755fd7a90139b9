"""chatd.gateway.node: whose turn it is, without a socket, a Redis or a ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chatd.gateway import node as node_module
from chatd.gateway.node import Node, TurnNotReached
from chatd.replies.sessions import Kept, SessionsUnavailable
from chatd.settings import Settings
from context.store import ContextNotLoaded, DepartmentUnknown, StoreUnavailable
from protocols.errors import CloseCode


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000

    def monotonic_ms(self) -> int:
        return self.ms

    def now(self) -> Any:
        raise AssertionError("nobody asks for the time of day here")


class Store:
    """Departments, and how often they were read."""

    def __init__(self) -> None:
        self.names = ["cardiology"]
        self.reads = 0
        self.lost: Exception | None = None
        self.is_loaded: Any = None

    async def departments(self) -> tuple[Any, ...]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.lost is not None:
            raise self.lost
        return tuple(SimpleNamespace(department_id=name) for name in self.names)


class Sessions:
    """What the sweep asked for, round by round."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.opened: list[str] = []
        self.is_away = self.is_stuck = False
        self.kept: dict[tuple[str, str], Kept | None] = {}

    async def open(self, key: str, *, now_ms: int) -> str:
        self.opened.append(key)
        if self.is_stuck:
            await asyncio.sleep(3600)
        if self.is_away:
            raise SessionsUnavailable
        return f"session of {key}"

    async def keep(self, wanted: Sequence[tuple[str, str]], **_: Any) -> dict[tuple[str, str], Any]:
        self.asked.append({key for key, _ in wanted})
        return {each: self.kept[each] for each in wanted if each in self.kept}


class Phone:
    """A connection as the node sees it."""

    connection_id = "c-1"
    channel = "app"

    def __init__(self, key: str, *, due_ms: int | None = None, is_quiet: bool = True) -> None:
        self.key, self.epoch, self.due_ms, self.is_quiet = key, "e-1", due_ms, is_quiet
        self.turn = 0
        self.ticked: list[int] = []
        self.closed: list[CloseCode] = []
        self.is_broken = False
        self.is_alerts_only = False
        self.recalled: list[float] = []
        self.rung: list[int] = []
        self.gone_on: list[tuple[str, int]] = []

    def ring(self, seq: int, frame: bytes | None = None) -> None:
        self.rung.append(seq)

    def go_on(self, epoch: str, *, holds_to: int) -> None:
        self.gone_on.append((epoch, holds_to))
        self.epoch = epoch

    def recall(self, after_s: float) -> None:
        self.recalled.append(after_s)

    def tick(self, now_ms: int) -> None:
        if self.is_broken:
            raise ValueError("broken")
        self.ticked.append(now_ms)
        self.due_ms = now_ms + 1_000

    def close_soon(self, code: CloseCode) -> None:
        self.closed.append(code)


class Gateway:
    def __init__(self) -> None:
        self.clock, self.store, self.sessions = Clock(), Store(), Sessions()
        self.runs = SimpleNamespace(working={}, on_appended=None, on_refused=None)
        nothing: Any = SimpleNamespace()
        self.node = Node(
            settings=Settings(),
            clock=cast(Any, self.clock),
            redis=nothing,
            doorbell=nothing,
            store=cast(Any, self.store),
            sessions=cast(Any, self.sessions),
            runs=cast(Any, self.runs),
            actions=nothing,
            ledger=cast(Any, SimpleNamespace(healthy=None)),
            gate=nothing,
            audit=nothing,
            node_id="n-1",
            faults=nothing,
            watch=nothing,
        )

    def phone(self, key: str, **options: Any) -> Phone:
        phone = Phone(key, **options)
        self.node.opened(cast(Any, phone))
        return phone


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.setattr(node_module, "epoch_ms", lambda now: 0)
    monkeypatch.setattr(Clock, "now", lambda self: None)
    return Gateway()


async def test_tick_calls_those_that_are_due_and_no_others(gateway: Gateway) -> None:
    """A connection is called once its time has come, then again when the next one has."""
    due, later, never = gateway.phone("a", due_ms=1_000), gateway.phone("b", due_ms=1_001), gateway.phone("c")
    gateway.node.tick()
    gateway.node.tick()
    assert (due.ticked, later.ticked, never.ticked) == ([1_000], [], [])
    gateway.clock.ms = 2_000
    gateway.node.tick()
    assert (due.ticked, later.ticked, never.ticked) == ([1_000, 2_000], [2_000], [])


async def test_tick_that_fails_ends_that_connection_alone(gateway: Gateway) -> None:
    """One connection's fault closes it, once, and the others keep their time."""
    broken, other = gateway.phone("a", due_ms=0), gateway.phone("b", due_ms=0)
    broken.is_broken = True
    gateway.node.tick()
    gateway.node.tick()
    assert broken.closed == [CloseCode.RESTART]
    assert other.ticked == [1_000]


async def test_sweep_asks_for_those_at_rest_in_turn_and_for_the_others_each_time(gateway: Gateway) -> None:
    """Within five sweeps every session at rest is asked for once; one in which something goes on, five times."""
    for number in range(20):
        gateway.phone(f"rest-{number}")
    gateway.phone("busy", is_quiet=False)
    for _ in range(5):
        await gateway.node.sweep()
    asked = gateway.sessions.asked
    assert all("busy" in each for each in asked)
    resting = [key for each in asked for key in sorted(each) if key != "busy"]
    assert sorted(resting) == sorted(f"rest-{number}" for number in range(20))
    assert max(len(each) for each in asked) == 5


async def test_sweep_moves_phones_on_where_redis_continues_another_history(gateway: Gateway) -> None:
    """A phone of the former epoch is told which one counts now and how far the log is; a ring asks for a sweep."""
    phone = Phone("k-1")
    gateway.node.opened(cast(Any, phone))
    gateway.node.joined(cast(Any, phone), "k-1")
    phone.epoch = "e-1.aa"
    gateway.node.ring("k-1", "e-2.bb", 4)
    assert phone.rung == []
    gateway.node.ring("k-1", "e-1.bb", 4)
    assert phone.rung == []
    gateway.sessions.kept["k-1", "e-1.aa"] = Kept(seq=4, epoch="e-1.bb", holds_to=3, adopted=())
    await gateway.node.sweep()
    assert phone.gone_on == [("e-1.bb", 3)]
    assert phone.rung == [4]
    gateway.node.ring("k-1", "e-1.bb", 5)
    assert phone.rung == [4, 5]
    assert phone.closed == []


async def test_opening_lets_sixteen_in_at_a_time(gateway: Gateway) -> None:
    """The seventeenth waits until one of the others is done, and is then let in."""
    let_in: list[int] = []
    go_on = asyncio.Event()

    async def come(number: int) -> None:
        async with gateway.node.opening():
            let_in.append(number)
            await go_on.wait()

    coming = [asyncio.create_task(come(number)) for number in range(17)]
    await asyncio.wait(coming, timeout=0.01)
    assert let_in == list(range(16))
    go_on.set()
    await asyncio.gather(*coming)
    assert len(let_in) == 17


async def test_opening_gives_up_and_leaves_the_turn_to_others(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone that waits too long is told to come again; one whose opening fails gives its turn back."""
    monkeypatch.setattr(node_module, "_TURN_S", 0.01)
    for _ in range(20):
        with pytest.raises(ContextNotLoaded):
            async with gateway.node.opening():
                raise ContextNotLoaded("departments")
    held = [gateway.node.opening() for _ in range(16)]
    for each in held:
        await each.__aenter__()
    with pytest.raises(TurnNotReached):
        async with gateway.node.opening():
            pytest.fail("there are 16 already")
    for each in held:
        await each.__aexit__(None, None, None)
    async with gateway.node.opening():
        pass


async def test_department_is_read_once_for_all_who_ask(gateway: Gateway) -> None:
    """Those who ask together share a read; it is kept for a second; a name that is not known is read again."""
    ask = gateway.node.department
    found = await asyncio.gather(*(ask("cardiology") for _ in range(10)))
    assert {each.department_id for each in found} == {"cardiology"}
    await ask("cardiology")
    assert gateway.store.reads == 1
    gateway.store.names.append("emergency")
    assert (await ask("emergency")).department_id == "emergency"
    with pytest.raises(DepartmentUnknown):
        await ask("surgery")


@pytest.mark.parametrize("lost", [ContextNotLoaded("loaded"), StoreUnavailable()])
async def test_department_is_as_it_was_known_while_redis_has_lost_it(gateway: Gateway, lost: Exception) -> None:
    """A phone is let in by what was read before, or by the installation's files; a name that nobody knew must wait."""
    ask = gateway.node.department
    gateway.store.lost = lost
    with pytest.raises(type(lost)):
        await ask("cardiology")
    gateway.node.knows_departments([cast(Any, SimpleNamespace(department_id="cardiology", name="of the file"))])
    gateway.clock.ms += 1_000
    assert (await ask("cardiology")).name == "of the file"
    gateway.clock.ms += 1_000
    gateway.store.lost = None
    assert not hasattr(await ask("cardiology"), "name")
    gateway.clock.ms += 1_000
    gateway.store.lost = lost
    assert not hasattr(await ask("cardiology"), "name")
    gateway.clock.ms += 1_000
    with pytest.raises(type(lost)):
        await ask("emergency")


async def test_redis_that_is_away_is_asked_once_a_second_for_all_who_come(gateway: Gateway) -> None:
    """Only the first phone waits for it; the others are let in for their alerts at once, and it is tried again."""
    node = gateway.node
    await node.department("cardiology")
    gateway.sessions.is_away = True
    assert [await node.open_session(key) for key in "abc"] == [None] * 3
    assert gateway.sessions.opened == ["a"]
    reads = gateway.store.reads
    gateway.clock.ms += 999
    await node.department("cardiology")
    assert await node.open_session("d") is None
    assert (gateway.sessions.opened, gateway.store.reads) == (["a"], reads)
    gateway.clock.ms += 1
    gateway.sessions.is_away = False
    assert cast(Any, await node.open_session("e")) == "session of e"


async def test_session_that_is_not_found_in_time_is_redis_away(gateway: Gateway) -> None:
    """A Redis that stands still keeps a phone from its alerts for its one timeout, and not for each of its tries."""
    gateway.node.settings = Settings(redis_timeout_s=0.01)
    gateway.sessions.is_stuck = True
    async with asyncio.timeout(20):
        assert await gateway.node.open_session("a") is None


async def test_phones_without_a_session_are_called_back_once_redis_has_the_layers(gateway: Gateway) -> None:
    """Each at a moment of its own, those that have a session not at all, and nobody before that."""
    alone, other, whole = gateway.phone("a"), gateway.phone("b"), gateway.phone("c")
    alone.is_alerts_only = other.is_alerts_only = True
    found: Iterator[Exception | bool] = iter([StoreUnavailable(), False, True])

    async def is_loaded() -> bool:
        each = next(found)
        if isinstance(each, Exception):
            raise each
        return each

    gateway.store.is_loaded = is_loaded
    for _ in range(2):
        await gateway.node.recall()
    assert (alone.recalled, other.recalled) == ([], [])
    await gateway.node.recall()
    assert (len(alone.recalled), len(other.recalled), whole.recalled) == (1, 1, [])
    spread_s = gateway.node.settings.drain_spread_s
    assert alone.recalled != other.recalled
    assert all(0 <= after_s <= spread_s for after_s in (*alone.recalled, *other.recalled))
    alone.is_alerts_only = other.is_alerts_only = False
    await gateway.node.recall()
    assert next(found, "unasked") == "unasked"


async def test_department_asked_for_in_the_moment_of_the_first_read_is_known(gateway: Gateway) -> None:
    """Whoever comes between the end of the first read and those who waited for it finds what it found."""

    async def come_later(turns: int) -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await gateway.node.department("cardiology")

    found = await asyncio.gather(*(come_later(turns) for turns in range(12)))
    assert {each.department_id for each in found} == {"cardiology"}
    assert gateway.store.reads == 1
