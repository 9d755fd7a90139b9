"""Alerts on a real ledger and a real Redis: once is once, nothing is promised that is not on disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from chatd import tasks
from chatd.alerts import presence
from chatd.alerts.model import Answer, Change, Priority, Raise, Recorded, Response, Seen
from chatd.alerts.permissions import PRIORITIES, RIGHTS, may_answer, may_raise, raiser
from chatd.alerts.policies import Policies
from chatd.alerts.presence import MAX_LATELY, Availed, Here, Presence, PresenceUnavailable, Present
from chatd.alerts.service import MAX_FAILED, Alerts, _Heard, _Receipts
from chatd.clock import SteadyClock
from chatd.ledger import Ledger, LedgerUnavailable, Transaction
from chatd.ledger.day_keys import DayKeys
from context.seal import KeyRing, Sealer, SealError
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertTarget, Reach
from tests.redis_server import RedisServer

pytest_plugins = ("tests.chatd.pg",)

T0 = datetime(2026, 1, 15, 7, 45, tzinfo=UTC)
RING = KeyRing.generate()
DOCTORS = ("dr.mendes.cardio", "dr.santos.cardio")


class HandClock:
    """A wall clock and a monotonic one that a test moves, together or the one alone."""

    def __init__(self) -> None:
        self.wall, self.ms = T0, 1_000_000

    def now(self) -> datetime:
        return self.wall

    def monotonic_ms(self) -> int:
        return self.ms

    def pass_s(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.ms += round(seconds * 1000)


class Node:
    """One gateway's alerts with what it has handed to its phones."""

    def __init__(self, url: str, redis: Redis, name: str, *, timeout_s: float = 20.0, **options: Any) -> None:
        self.clock = HandClock()
        # Making the tables waits for a busy machine; only tests of a ledger that is away are quick to give up.
        self.ledger = Ledger.open(url, timeout_s=timeout_s)
        sealer = Sealer(RING)
        self.presence = Presence(redis)
        self.alerts = Alerts(
            self.ledger,
            DayKeys(sealer),
            Policies(),
            self.presence,
            clock=self.clock,
            mac_key=b"m" * 32,
            node_id=name,
            **options,
        )
        self.told: list[tuple[str, Recorded]] = []
        self.alerts.on_recorded = lambda department, events: self.told.extend((department, each) for each in events)

    def here(self, *users: str, department: str = "cardiology", role: str = "physician") -> None:
        """These people have their apps open on this gateway."""
        self.presence.phones = lambda: tuple(
            Here(department=department, user_id=user, channel="app", roles=(role,)) for user in users
        )

    def events(self) -> list[str]:
        """What was handed to phones, in order."""
        return [json.loads(each.frame)["event"] for _, each in self.told]


Make = Callable[..., Awaitable[Node]]


@pytest.fixture
async def make(tmp_path: Path, redis: Redis) -> AsyncIterator[Make]:
    """Makes gateways' alerts on one SQLite ledger (or the one that is given) and one Redis."""
    made: list[Node] = []

    async def new(name: str = "n-1", url: str = "", client: Redis | None = None, **options: Any) -> Node:
        url = url or f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
        made.append(Node(url, client or redis, name, **options))
        return made[-1]

    yield new
    for each in made:
        await each.ledger.close()


def command(key: str = "k-1", **changes: Any) -> Raise:
    """An alert for cardiology's physicians."""
    given: dict[str, Any] = {
        "key": key,
        "raised_by": "dr.lopes.emergency",
        "department": "cardiology",
        "to": AlertTarget(department="cardiology"),
        "priority": "critical",
        "content": "New STEMI patient, arriving in 5 minutes",
        "requires_action": True,
    }
    return Raise(**{**given, **changes})


def response(alert_id: str, answer: str, user: str = DOCTORS[0], key: str = "", **changes: Any) -> Response:
    """One person's answer under a key of its own."""
    given: dict[str, Any] = {
        "key": key or f"{user}-{answer}",
        "user_id": user,
        "roles": ("physician",),
        "department": "cardiology",
        "alert_id": alert_id,
        "answer": answer,
    }
    return Response(**{**given, **changes})


# --- raising ------------------------------------------------------------------------------------------------


async def test_raise_is_in_the_ledger_and_told(make: Make) -> None:
    """What raise_ returns can be read back, and the same bytes were handed to the phones."""
    node = await make()
    node.here(*DOCTORS)
    raised = await node.alerts.raise_(command(), T0)
    assert (raised.alert_seq, raised.is_duplicate) == (1, False)
    assert raised.reach.online == DOCTORS
    assert await node.alerts.since("cardiology", 0) == tuple(each for _, each in node.told)
    frame = json.loads(node.told[0][1].frame)
    assert (frame["type"], frame["event"], frame["alert_id"]) == ("system_notification", "raised", raised.alert_id)
    (opened,) = await node.alerts.open_alerts("cardiology")
    assert opened.alert_id == raised.alert_id


async def test_raise_twice_is_once(make: Make) -> None:
    """The same key on another gateway gives the same answer, also when other people are here by then."""
    first, second = await make("n-1"), await make("n-2")
    first.here(*DOCTORS)
    raised = await first.alerts.raise_(command(), T0)
    again = await second.alerts.raise_(command(), T0 + timedelta(seconds=9))
    assert (again.alert_id, again.alert_seq, again.reach) == (raised.alert_id, raised.alert_seq, raised.reach)
    assert again.is_duplicate
    assert second.told == []
    assert (await first.alerts.span("cardiology")).last_seq == 1


async def test_raise_of_another_body_under_a_known_key_is_refused(make: Make) -> None:
    """A key that was used for one alert is not taken for another, and nothing is added."""
    node = await make()
    await node.alerts.raise_(command(), T0)
    with pytest.raises(RemoteProtocolError) as refused:
        await node.alerts.raise_(command(content="Another patient"), T0)
    assert refused.value.code is ErrorCode.BAD_REQUEST
    assert (await node.alerts.span("cardiology")).last_seq == 1


async def test_raise_on_two_gateways_at_once_is_one_alert(make: Make, ledger_url: str) -> None:
    """Of many sendings of one key at once on two gateways, one alert comes, and all hear of it."""
    nodes = [await make("n-1", ledger_url), await make("n-2", ledger_url)]
    sent = [node.alerts.raise_(command(), T0) for node in nodes * 8]
    answers = await asyncio.gather(*sent)
    assert len({each.alert_id for each in answers}) == 1
    assert sum(not each.is_duplicate for each in answers) == 1
    assert (await nodes[0].alerts.span("cardiology")).last_seq == 1


async def test_raise_to_a_role_that_nobody_holds_is_refused_aloud(make: Make) -> None:
    """A role is resolved at the moment of sending; with nobody there, nothing is promised."""
    node = await make()
    node.here(*DOCTORS)
    with pytest.raises(RemoteProtocolError) as refused:
        await node.alerts.raise_(command(to=AlertTarget(role="charge_nurse")), T0)
    assert refused.value.code is ErrorCode.ROLE_UNASSIGNED
    assert (await node.alerts.span("cardiology")).last_seq == 0
    node.here("charge.rocha.cardio", role="charge_nurse")
    raised = await node.alerts.raise_(command(to=AlertTarget(role="charge_nurse")), T0)
    assert raised.reach.online == ("charge.rocha.cardio",)


async def test_raise_in_a_transaction_that_fails_leaves_nothing(make: Make) -> None:
    """An alert that an action raises is there with the action, or not at all."""
    node = await make()
    raising = await node.alerts.prepare(command(), T0)

    def work(tx: Transaction) -> None:
        raising.commit(tx)
        raise RemoteProtocolError(ErrorCode.ACTION_CONFLICT)

    with pytest.raises(RemoteProtocolError):
        await node.ledger.transact(work)
    assert (await node.alerts.span("cardiology")).last_seq == 0
    assert not (await node.alerts.raise_(command(), T0)).is_duplicate


async def test_raise_with_a_dedup_key_joins_the_open_alert(make: Make) -> None:
    """The same result twice is one alert, told as joined; after its end it is a new one."""
    node = await make()
    first = await node.alerts.raise_(command("k-1", dedup_key="lab.17"), T0)
    second = await node.alerts.raise_(command("k-2", dedup_key="lab.17"), T0 + timedelta(seconds=5))
    assert second.alert_id == first.alert_id
    assert node.events() == ["raised", "joined"]
    stop = response(first.alert_id, "stand_down", "dr.lopes.emergency", department="emergency")
    await node.alerts.respond(stop, T0 + timedelta(seconds=6))
    third = await node.alerts.raise_(command("k-3", dedup_key="lab.17"), T0 + timedelta(seconds=7))
    assert third.alert_id != first.alert_id


async def test_raise_in_a_storm_is_bundled(make: Make) -> None:
    """A sender that raises the same trouble again and again rings once a minute's first five and joins the rest."""
    node = await make()
    for n in range(8):
        await node.alerts.raise_(command(f"k-{n}", content=f"Pump {n} reports an occlusion"), T0)
    assert node.events() == ["raised"] * 5 + ["joined"] * 3
    await node.alerts.raise_(command("k-9", policy="stemi"), T0)
    assert node.events()[-1] == "raised"


async def test_raise_too_often_is_limited_per_raiser(make: Make) -> None:
    """A script in a loop is stopped, is told when to come again, and takes nobody else's alerts with it."""
    node = await make(raises_per_minute=3)
    for n in range(3):
        await node.alerts.raise_(command(f"k-{n}"), T0)
    with pytest.raises(RemoteProtocolError) as refused:
        await node.alerts.raise_(command("k-4"), T0)
    assert (refused.value.code, refused.value.retry_after_ms) == (ErrorCode.RATE_LIMITED, 60_000)
    await node.alerts.raise_(command("k-4", raised_by="nurse.cruz.emergency"), T0)
    node.clock.pass_s(60)
    await node.alerts.raise_(command("k-4"), T0)


async def test_raise_on_an_unknown_department_is_refused(make: Make) -> None:
    """No alert waits in a department that no phone will ever belong to."""
    node = await make()

    async def is_department(department: str) -> bool:
        return department == "icu"

    node.alerts.is_department = is_department
    with pytest.raises(RemoteProtocolError) as refused:
        await node.alerts.raise_(command(), T0)
    assert refused.value.code is ErrorCode.BAD_REQUEST


@settings(max_examples=200)
@given(
    roles=st.lists(st.sampled_from([*RIGHTS, "observer", "student", "board", "visitor", ""]), max_size=4),
    departments=st.lists(st.sampled_from(["icu", "surgery"]), max_size=2),
    priority=st.sampled_from(PRIORITIES),
)
def test_rights_are_denied_by_default(roles: list[str], departments: list[str], priority: Priority) -> None:
    """Only a role of the table raises, up to its priority, elsewhere only if it may; more roles never take a right."""
    allowed = may_raise(roles, departments, priority=priority, department="icu")
    rights = [RIGHTS[role] for role in roles if role in RIGHTS]
    if not rights:
        assert not allowed
    if "icu" not in departments and all(right.where == "own" for right in rights):
        assert not allowed
    if all(PRIORITIES.index(right.up_to) < PRIORITIES.index(priority) for right in rights):
        assert not allowed
    if {"physician", "nurse"} & set(roles):
        assert allowed
    if allowed:
        assert may_raise([*roles, "student"], departments, priority=priority, department="icu")
        assert may_raise(roles, departments, priority="low", department="icu")


def test_whoever_has_a_place_in_a_team_may_call_one() -> None:
    """No policy names a role, in a team or as being in charge, that the table of rights has forgotten."""
    named = {role for policy in Policies().all() for role in policy.stand_down}
    for policy in Policies().all():
        named |= {role for slot in policy.slots for role in (*slot.roles, *slot.roles_named)}
    assert {role for role in named if not may_raise((role,), ("icu",), priority="critical", department="icu")} == set()


def test_raisers_do_not_share_a_name() -> None:
    """A person whose id looks like a machine's is not that machine; an onlooker answers nothing, a nurse does."""
    assert raiser("lab", ("service",)) == raiser("service:lab", ("service",)) == "service:lab"
    assert raiser("service:lab", ("physician",)) != "service:lab"
    assert raiser("dr.a", ("physician",)) == "dr.a"
    assert [may_answer(roles) for roles in ((), ("nurse",), ("observer",), ("service",), ("student", "nurse"))] == [
        True,
        True,
        False,
        False,
        True,
    ]


# --- what is away -------------------------------------------------------------------------------------------


async def test_redis_away_the_alert_goes_out_and_says_so(
    make: Make, own_redis: Redis, own_redis_server: RedisServer
) -> None:
    """Without Redis the alert is in the ledger, reaches this gateway's phones, and its reach says it is not whole."""
    node = await make(client=own_redis)
    node.here("dr.mendes.cardio")
    own_redis_server.kill()
    raised = await node.alerts.raise_(command(), T0)
    assert (raised.reach.online, raised.reach.is_whole) == (("dr.mendes.cardio",), False)
    assert (await node.alerts.span("cardiology")).last_seq == 1
    to_role = await node.alerts.raise_(command("k-2", to=AlertTarget(role="charge_nurse")), T0)
    assert to_role.reach == Reach(is_whole=False)


async def test_ledger_away_nothing_is_promised_or_told(make: Make, tmp_path: Path) -> None:
    """While the database takes no writes, raising and answering fail, and afterwards the same key is the first."""
    url = f"sqlite:///{tmp_path / 'locked.sqlite3'}"
    first = await (await make(url=url)).alerts.raise_(command("k-0"), T0)
    node = await make(url=url, timeout_s=2.0)
    assert await node.alerts.sweep(T0) == 0  # it is connected, so what comes next is a lock and nothing else
    other = sqlite3.connect(tmp_path / "locked.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(LedgerUnavailable):
            await node.alerts.raise_(command(), T0)
        with pytest.raises(LedgerUnavailable):
            await node.alerts.respond(response(first.alert_id, "accept"), T0)
        assert node.told == []
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert not (await node.alerts.raise_(command(), T0)).is_duplicate
    assert await node.alerts.respond(response(first.alert_id, "accept"), T0)


# --- answering and time -------------------------------------------------------------------------------------


async def test_respond_twice_is_once(make: Make) -> None:
    """An answer that is sent again, on whatever gateway, changes nothing and is told as known."""
    first, second = await make("n-1"), await make("n-2")
    first.here(*DOCTORS)
    raised = await first.alerts.raise_(command(), T0)
    assert await first.alerts.respond(response(raised.alert_id, "accept"), T0)
    assert not await second.alerts.respond(response(raised.alert_id, "accept"), T0)
    with pytest.raises(RemoteProtocolError):
        await second.alerts.respond(response(raised.alert_id, "accept", eta_min=5), T0)
    view = await second.alerts.view(raised.alert_id)
    assert view is not None
    assert (view.state, [person.answer for person in view.people]) == ("in_progress", ["accept", "addressed"])


@pytest.mark.parametrize("answer", ["accept", "stand_down"])
async def test_respond_from_another_department_is_refused(make: Make, answer: str) -> None:
    """Nobody answers what does not concern them, and is not told whether there is such an alert."""
    node = await make()
    raised = await node.alerts.raise_(command(), T0)
    for alert_id in (raised.alert_id, "al-none"):
        with pytest.raises(RemoteProtocolError) as refused:
            await node.alerts.respond(response(alert_id, answer, department="surgery"), T0)
        assert (refused.value.code, refused.value.detail) == (ErrorCode.BAD_REQUEST, "alert_id: unknown")


async def test_accept_against_a_step_on_two_gateways_is_one_state(make: Make, ledger_url: str) -> None:
    """An acceptance and an escalation at one moment on two gateways end in one order that both tell alike."""
    nodes = [await make("n-1", ledger_url), await make("n-2", ledger_url)]
    for node in nodes:
        node.here(*DOCTORS)
    for n in range(4):
        now = T0 + timedelta(hours=n)
        raised = await nodes[0].alerts.raise_(command(f"k-{n}"), now)
        later = now + timedelta(seconds=61)
        accept = nodes[n % 2].alerts.respond(response(raised.alert_id, "accept", key=f"a-{n}"), later)
        await asyncio.gather(accept, nodes[0].alerts.sweep(later), nodes[1].alerts.sweep(later))
        view = await nodes[1].alerts.view(raised.alert_id)
        assert view is not None
        assert view.state == "in_progress"
        await nodes[0].alerts.respond(response(raised.alert_id, "done", key=f"d-{n}"), later)
    log = await nodes[0].alerts.since("cardiology", 0)
    assert [each.alert_seq for each in log] == list(range(1, len(log) + 1))
    by_alert: dict[str, list[str]] = {}
    for each in log:
        frame = json.loads(each.frame)
        by_alert.setdefault(frame["alert_id"], []).append(frame["event"])
    for events in by_alert.values():
        assert events[0] == "raised"
        assert events[-2:] == ["accepted", "resolved"]
        # Whatever came before the acceptance, nothing rings after it. The first step's role is held by nobody, so the
        # second may follow it at once; neither is taken twice.
        assert events.count("escalated") <= 2
        assert events.count("repeated") <= 1
    told = sorted(each.alert_seq for node in nodes for _, each in node.told)
    assert told == list(range(1, len(log) + 1))


async def test_timers_fire_once_with_two_gateways(make: Make, ledger_url: str) -> None:
    """Two gateways that sweep at once take every timer once between them, and none before it is due."""
    nodes = [await make("n-1", ledger_url), await make("n-2", ledger_url)]
    for n in range(4):
        await nodes[0].alerts.raise_(command(f"k-{n}"), T0)
    assert await nodes[0].alerts.sweep(T0 + timedelta(seconds=14)) == 0
    later = T0 + timedelta(seconds=15)
    taken = 0
    for _ in range(2):
        taken += sum(await asyncio.gather(*(node.alerts.sweep(later) for node in nodes)))
    assert taken == 4
    assert (nodes[0].events() + nodes[1].events()).count("repeated") == 4
    assert (await nodes[0].alerts.span("cardiology")).last_seq == 8


async def test_alert_that_an_outage_has_overtaken_rings_and_goes_on(make: Make) -> None:
    """Its end came while no gateway was there: it is called out again, and every step has its time before it ends."""
    node = await make()
    people = {**dict.fromkeys(DOCTORS, "physician"), "nurse.rocha": "charge_nurse"}
    node.presence.phones = lambda: tuple(
        Here(department="cardiology", user_id=user, channel="app", roles=(role,)) for user, role in people.items()
    )
    await node.alerts.raise_(command(policy="critical", requires_action=True), T0)
    node.told.clear()
    back = T0 + timedelta(hours=15)
    assert await node.alerts.sweep(back) == 3
    assert node.events() == ["repeated", "escalated"]
    for after_s in range(1, 400):
        await node.alerts.sweep(back + timedelta(seconds=after_s))
    events = node.events()
    assert events[-1] == "expired"
    assert events.count("escalated") == 2
    assert events.index("unanswered") < events.index("expired")


async def test_sweep_asks_a_redis_that_is_away_once_for_all_departments(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is due in many departments is taken with what is known here, after one wait and not after one for each."""
    node = await make()
    asked: list[str] = []

    async def away(_: Presence, department: str, *__: Any) -> Any:
        asked.append(department)
        raise OSError

    departments = [f"d{number}" for number in range(12)]
    for department in departments:
        to = AlertTarget(department=department)
        await node.alerts.raise_(command(f"k-{department}", to=to, department=department), T0)
    node.here("dr.a", department="d7")
    monkeypatch.setattr(Presence, "_heard", away)
    assert await node.alerts.sweep(T0 + timedelta(days=1)) >= len(departments)
    assert len(asked) == 1
    assert {department for department, _ in node.told} == set(departments)


async def test_a_role_that_nobody_holds_holds_up_no_step(make: Make) -> None:
    """The chain goes on past a role that nobody holds, until everybody is told that nobody has answered."""
    node = await make()
    node.here(*DOCTORS)
    raised = await node.alerts.raise_(command(), T0)
    for seconds in range(0, 400, 15):
        await node.alerts.sweep(T0 + timedelta(seconds=seconds))
    view = await node.alerts.view(raised.alert_id)
    assert view is not None
    assert view.state == "unanswered"
    events = node.events()
    assert events.count("escalated") == 2
    assert events.count("unanswered") == 1
    assert events[-1] == "repeated"


async def test_a_clock_that_is_set_makes_no_step_early(make: Make) -> None:
    """Two hours forward or back on the wall clock leave the time of alerts as it was, and are told."""
    node = await make()
    await node.alerts.raise_(command(), node.alerts.now())
    for hours in (2, -4):
        node.clock.wall += timedelta(hours=hours)
        assert await node.alerts.sweep(node.alerts.now()) == 0
        assert node.alerts.steady.is_stepped
        assert await node.alerts.retire(node.alerts.now() + timedelta(days=90)) == 0
    node.clock.ms += 15_000
    assert await node.alerts.sweep(node.alerts.now()) == 1


async def test_process_that_only_raises_keeps_to_the_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its machine slept for half a day its alerts begin now, and do not end in the moment they begin."""
    node = await make()
    node.alerts.steady = SteadyClock(node.clock, lambda: True)
    node.clock.wall += timedelta(hours=13)
    hear, heard = node.alerts.hear, asyncio.Event()

    async def hears() -> int:
        count = await hear()
        heard.set()
        return count

    monkeypatch.setattr(node.alerts, "hear", hears)
    task = asyncio.create_task(node.alerts.keep_hearing())
    try:
        async with asyncio.timeout(20):
            await heard.wait()
    finally:
        await tasks.end([task])
    await node.alerts.raise_(command(), node.alerts.now())
    assert await node.alerts.sweep(node.clock.wall) == 0
    assert node.events() == ["raised"]


async def test_one_alert_that_cannot_be_read_holds_up_no_other(make: Make, tmp_path: Path) -> None:
    """A damaged row is left where it is and the alerts behind it are taken."""
    node = await make()
    damaged = await node.alerts.raise_(command("k-1"), T0)
    await node.alerts.raise_(command("k-2"), T0 + timedelta(seconds=1))
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as other:
        other.execute("UPDATE alerts SET body_sealed = x'00' WHERE alert_id = ?", (damaged.alert_id,))
        other.commit()
    assert await node.alerts.sweep(T0 + timedelta(seconds=20)) == 1
    assert node.events() == ["raised", "raised", "repeated"]


async def test_many_alerts_that_cannot_be_read_hold_up_no_other(make: Make, tmp_path: Path) -> None:
    """Also where more are damaged than one round looks at, those behind them ring."""
    node = await make()
    for n in range(MAX_FAILED + 1):
        await node.alerts.raise_(command(f"k-{n}", raised_by=f"dr.{n}"), T0)
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as other:
        other.execute("UPDATE alerts SET body_sealed = x'00'")
        other.commit()
    await node.alerts.raise_(command("k-last"), T0 + timedelta(seconds=1))
    for _ in range(2):
        taken = await node.alerts.sweep(T0 + timedelta(seconds=20))
    assert taken == 1
    assert node.events()[-1] == "repeated"


async def test_alert_whose_change_cannot_be_written_holds_up_no_other(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault while a step is recorded undoes that step alone."""
    node = await make()
    broken = await node.alerts.raise_(command("k-1"), T0)
    await node.alerts.raise_(command("k-2"), T0 + timedelta(seconds=1))
    record = node.alerts.record

    def fails(tx: Transaction, change: Change, **options: bool) -> object:
        if change.alert.alert_id == broken.alert_id:
            raise SealError("key_unknown")
        return record(tx, change, **options)

    monkeypatch.setattr(node.alerts, "record", fails)
    assert await node.alerts.sweep(T0 + timedelta(seconds=20)) == 1
    monkeypatch.undo()
    assert await node.alerts.sweep(T0 + timedelta(seconds=20)) == 0
    node.clock.pass_s(10)
    assert await node.alerts.sweep(T0 + timedelta(seconds=30)) == 1
    assert node.events() == ["raised", "raised", "repeated", "repeated"]


async def test_damaged_rows_hide_no_other_alert(make: Make, tmp_path: Path) -> None:
    """Whoever comes in, asks again or raises in a storm gets what can be read."""
    node = await make()
    damaged = await node.alerts.raise_(command("k-1", dedup_key="d"), T0)
    whole = await node.alerts.raise_(command("k-2"), T0)
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as other:
        other.execute("UPDATE alerts SET body_sealed = x'00' WHERE alert_id = ?", (damaged.alert_id,))
        triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'alert_events'"
        for (name,) in other.execute(triggers).fetchall():
            other.execute(f"DROP TRIGGER {name}")
        other.execute("UPDATE alert_events SET frame_sealed = x'00' WHERE alert_seq = 1")
        other.commit()
    assert [each.alert_id for each in await node.alerts.open_alerts("cardiology")] == [whole.alert_id]
    assert [each.alert_seq for each in await node.alerts.since("cardiology", 0)] == [2]
    assert [each.alert_seq for each in await node.alerts.since("cardiology", 0, limit=1)] == [2]
    again = await node.alerts.raise_(command("k-3", dedup_key="d"), T0)
    assert again.alert_id != damaged.alert_id
    for n in range(8):
        await node.alerts.raise_(command(f"k-s{n}"), T0)
    with pytest.raises(RemoteProtocolError) as caught:
        await node.alerts.respond(response(damaged.alert_id, "accept"), T0)
    assert caught.value.code is ErrorCode.BAD_REQUEST


async def test_retention_destroys_and_moves_the_log(make: Make) -> None:
    """After the days of retention a closed alert is gone and the log begins behind it."""
    node = await make(retention_days=30)
    raised = await node.alerts.raise_(command(), T0)
    await node.alerts.respond(response(raised.alert_id, "stand_down", "dr.lopes.emergency"), T0)
    assert await node.alerts.retire(T0 + timedelta(days=30)) == 0
    assert await node.alerts.retire(T0 + timedelta(days=31)) == 1
    assert await node.alerts.view(raised.alert_id) is None
    span = await node.alerts.span("cardiology")
    assert (span.first_seq, span.last_seq) == (3, 2)


# --- receipts -----------------------------------------------------------------------------------------------


async def test_receipts_of_many_phones_are_one_event(make: Make) -> None:
    """Two hundred phones that received and showed an alert are one event with all of them counted."""
    node = await make()
    raised = await node.alerts.raise_(command(), T0)
    for n in range(200):
        node.alerts.receipt(response(raised.alert_id, "displayed", f"u-{n}"))
        node.alerts.receipt(response(raised.alert_id, "delivered", f"u-{n}"))
    node.alerts.receipt(response(raised.alert_id, "delivered", "spy", department="surgery"))
    await node.alerts.flush(T0)
    assert node.events() == ["raised", "receipts"]
    counts = json.loads(node.told[-1][1].frame)["counts"]
    assert (counts["delivered"], counts["displayed"]) == (200, 200)


def heard(answer: Answer, alert_id: str = "al-1", user_id: str = "u-1", at: datetime = T0) -> _Heard:
    seen = Seen(delivered_at=at, displayed_at=at if answer == "displayed" else None)
    return _Heard(response=response(alert_id, answer, user_id), seen=seen)


def test_receipts_wait_a_quarter_of_a_second_and_then_a_second() -> None:
    """The first ones are gathered for 250 ms, those after them until a second after the writing."""
    gathered = _Receipts()
    gathered.add(heard("delivered"), 1_000)
    assert (gathered.wait_ms(1_000), gathered.take(1_249)) == (250, {})
    gathered.add(heard("delivered", user_id="u-2"), 1_200)
    assert set(gathered.take(1_250)["al-1"]) == {"u-1", "u-2"}
    assert gathered.wait_ms(1_300) is None
    gathered.add(heard("displayed"), 1_300)
    gathered.add(heard("delivered", "al-2"), 1_300)
    assert set(gathered.take(1_550)) == {"al-2"}
    assert gathered.wait_ms(1_550) == 700
    assert gathered.take(2_250)["al-1"]["u-1"].response.answer == "displayed"


def test_receipts_keep_the_first_moment_of_each_kind() -> None:
    """Two phones of one person, heard in any order: when the first had it and when the first showed it."""
    gathered = _Receipts()
    for n, answer in ((3, "displayed"), (1, "delivered"), (5, "displayed"), (4, "delivered")):
        gathered.add(heard(answer, at=T0 + timedelta(seconds=n)), 1_000)  # type: ignore[arg-type]
    kept = gathered.take_all()["al-1"]["u-1"]
    assert kept.response.answer == "displayed"
    assert kept.seen == Seen(delivered_at=T0 + timedelta(seconds=1), displayed_at=T0 + timedelta(seconds=3))


async def test_view_tells_when_each_person_had_it(make: Make) -> None:
    """Delivered, displayed and accepted keep their own moments, also those that are written after the answer."""
    node = await make()
    raised = await node.alerts.raise_(command(), T0)
    began = node.alerts.now()
    node.alerts.receipt(response(raised.alert_id, "delivered"))
    node.alerts.receipt(response(raised.alert_id, "displayed"))
    await node.alerts.respond(response(raised.alert_id, "accept"), T0 + timedelta(seconds=2))
    accepted = node.events()
    await node.alerts.flush(T0 + timedelta(seconds=3))
    view = await node.alerts.view(raised.alert_id)
    assert view is not None
    person = next(each for each in view.people if each.user_id == response(raised.alert_id, "accept").user_id)
    assert (person.answer, person.accepted_at) == ("accept", T0 + timedelta(seconds=2))
    assert person.delivered_at is not None
    assert person.displayed_at is not None
    assert began - timedelta(milliseconds=1) <= person.delivered_at <= person.displayed_at <= node.alerts.now()
    # No phone need hear of a moment.
    assert node.events() == accepted


async def test_receipts_outlive_a_ledger_that_is_away(make: Make, tmp_path: Path) -> None:
    """What could not be written waits and is written later."""
    raised = await (await make()).alerts.raise_(command(), T0)
    node = await make(timeout_s=2.0)
    assert await node.alerts.sweep(T0) == 0
    node.alerts.receipt(response(raised.alert_id, "delivered"))
    other = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await node.alerts.flush(T0)
    other.execute("ROLLBACK")
    other.close()
    assert node.events() == []
    await node.alerts.flush(T0)
    assert node.events() == ["receipts"]


async def test_run_rings_again_and_writes_receipts(make: Make) -> None:
    """The background work does by itself what is due, and ends when it is cancelled."""
    node = await make()
    told = asyncio.Event()
    hand_on = node.alerts.on_recorded

    def on_recorded(department: str, events: tuple[Recorded, ...]) -> None:
        hand_on(department, events)
        if {"receipts", "repeated"} <= set(node.events()):
            told.set()

    node.alerts.on_recorded = on_recorded
    raised = await node.alerts.raise_(command(), node.alerts.now())
    node.alerts.receipt(response(raised.alert_id, "delivered"))
    node.clock.pass_s(15)
    running = asyncio.create_task(node.alerts.run())
    async with asyncio.timeout(30):
        await told.wait()
    await tasks.end([running])


# --- presence -----------------------------------------------------------------------------------------------


async def test_presence_knows_the_phones_of_all_gateways(make: Make, redis: Redis) -> None:
    """After a beat another gateway knows who is here, on which channel and in which role; a board is nobody."""
    first, second = await make("n-1"), await make("n-2")
    first.presence.phones = lambda: (
        Here(department="icu", user_id="dr.faria.icu", channel="push", roles=("physician",)),
        Here(department="icu", user_id="wall", channel="board"),
    )
    await first.presence.beat()
    found = await second.presence.of("icu")
    assert found.is_whole
    (record,) = found.records
    assert (record.user_id, record.channels, record.roles) == ("dr.faria.icu", ("push",), ("physician",))
    assert (await second.presence.of("cardiology")).records == ()


async def test_presence_of_newcomers_is_told_at_once(
    make: Make, patient_presence: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gateway hears of them without waiting for the beat; those who come together cost one round trip."""
    monkeypatch.setattr(presence, "BEAT_S", 3_600.0)
    first, second = await make("n-1"), await make("n-2")
    said, is_said = list[int](), asyncio.Event()
    say = first.presence._say

    async def counted(phones: Iterable[Here]) -> None:
        told = tuple(phones)
        await say(told)
        said.append(len(told))
        is_said.set()

    async def until(count: int) -> None:
        async with asyncio.timeout(20):
            while len(said) < count:
                is_said.clear()
                await is_said.wait()

    first.presence._say = counted  # type: ignore[method-assign]
    running = asyncio.create_task(first.presence.run())
    try:
        await until(1)
        for user in DOCTORS:
            first.presence.came(Here(department="icu", user_id=user, channel="app", roles=("physician",)))
        first.presence.came(Here(department="icu", user_id="wall", channel="board"))
        await until(2)
        found = await second.presence.of("icu")
        assert [(each.user_id, each.channels) for each in found.records] == [
            (user, ("app",)) for user in sorted(DOCTORS)
        ]
        first.presence.came(Here(department="icu", user_id="dr.faria.icu", channel="push"))
        await until(3)
        assert "dr.faria.icu" in {each.user_id for each in (await second.presence.of("icu")).records}
        assert said == [0, len(DOCTORS), 1]
    finally:
        await tasks.end([running])


async def test_presence_of_newcomers_that_failed_waits_for_the_beat(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Redis away, one newcomer who could not be told is enough until the next beat tells all."""
    monkeypatch.setattr(presence, "BEAT_S", 3_600.0)
    node = await make()
    asked: list[int] = []

    async def refuse(phones: Iterable[Here]) -> None:
        asked.append(len(tuple(phones)))
        if len(asked) > 1:
            raise PresenceUnavailable

    node.presence._say = refuse  # type: ignore[method-assign]
    node.presence.came(Here(department="icu", user_id="dr.a", channel="app"))
    running = asyncio.create_task(node.presence.run())
    try:
        for user in ("dr.b", "dr.c", "dr.d"):
            for _ in range(20):
                await asyncio.sleep(0)
            node.presence.came(Here(department="icu", user_id=user, channel="app"))
        assert asked == [0, 1]
    finally:
        await tasks.end([running])


async def test_presence_of_somebody_who_left_is_unreachable_and_then_gone(make: Make, redis: Redis) -> None:
    """Who was heard minutes ago belongs to the department without a phone; who was heard yesterday does not."""
    node = await make()
    seconds, _ = await redis.time()
    hour_ago, yesterday = (seconds - 3600) * 1000, (seconds - 24 * 3600) * 1000
    fields: dict[Any, Any] = {"dr.a|app": f"{hour_ago} physician", "dr.b|app": f"{yesterday} physician"}
    await redis.hset("chatd:presence:in:icu", mapping=fields)
    (record,) = (await node.presence.of("icu")).records
    assert (record.user_id, record.channels, record.roles) == ("dr.a", (), ("physician",))
    assert await redis.hkeys("chatd:presence:in:icu") == [b"dr.a|app"]


async def test_a_delegate_covers_from_their_acceptance_on(make: Make, redis: Redis) -> None:
    """Who asked somebody to take over is covered when that one has accepted, and not before, nor by anybody else."""
    node = await make()
    node.here(*DOCTORS)
    asked = Availed(state="in_procedure", delegate_to="dr.mendes.cardio", ask="al-1")
    await node.presence.set("dr.santos.cardio", asked, now=T0)
    assert (await node.alerts.raise_(command("k-1"), T0)).reach.covered == {}
    assert await node.presence.delegate_answered("al-1", "dr.vieira.surgery", accepts=True) is None
    assert await node.presence.delegate_answered("al-1", "dr.mendes.cardio", accepts=True) == "dr.santos.cardio"
    reach = (await node.alerts.raise_(command("k-2"), T0)).reach
    assert reach.covered == {"dr.santos.cardio": "dr.mendes.cardio"}
    await node.presence.set("dr.santos.cardio", Availed(state="available"), now=T0)
    assert await node.presence.delegate_answered("al-1", "dr.mendes.cardio", accepts=True) is None
    assert (await node.alerts.raise_(command("k-3"), T0)).reach.covered == {}


@pytest.fixture
def patient_presence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is not a Redis that is away."""
    monkeypatch.setattr(presence, "ANSWER_WITHIN_S", 20.0)


async def test_presence_is_read_once_a_second(make: Make, patient_presence: None) -> None:
    """A storm reads a department's people once a second; who comes here is known at once, with their state."""
    first, second = await make("n-1"), await make("n-2")
    second.here("dr.vieira.surgery")
    await second.presence.set("dr.santos.cardio", Availed(state="off"), now=T0)

    async def people(now_ms: int) -> dict[str, str]:
        found = await first.presence.lately("cardiology", now_ms)
        assert found.is_whole
        return {record.user_id: record.state for record in found.records}

    assert await people(0) == {}
    await second.presence.beat()
    assert await people(999) == {}
    first.here("dr.santos.cardio")
    assert await people(999) == {"dr.santos.cardio": "off", "dr.vieira.surgery": "available"}
    await second.presence.set("dr.santos.cardio", Availed(state="busy"), now=T0)
    assert (await people(1_998))["dr.santos.cardio"] == "off"
    assert (await people(1_999))["dr.santos.cardio"] == "busy"
    # A clock that was moved back keeps nothing alive.
    await second.presence.set("dr.santos.cardio", Availed(state="off"), now=T0)
    assert (await people(1_000))["dr.santos.cardio"] == "off"


async def test_presence_that_was_read_ends_with_a_write_of_this_gateway(make: Make, patient_presence: None) -> None:
    """Whoever has said here that they are away is away in the next alert, also where a read ran beside the writing."""
    node = await make()
    node.here(*DOCTORS)

    async def state() -> str:
        found = await node.presence.lately("cardiology", 0)
        return {record.user_id: record.state for record in found.records}[DOCTORS[0]]

    assert await state() == "available"
    await node.presence.set(DOCTORS[0], Availed(state="off", delegate_to=DOCTORS[1], ask="al-1"), now=T0)
    assert await state() == "off"
    await node.presence.delegate_answered("al-1", DOCTORS[1], accepts=True)
    assert (await node.presence.lately("cardiology", 0)).records[0].is_accepted
    states, has_read, go_on = node.presence._states, asyncio.Event(), asyncio.Event()

    async def late(users: Sequence[str]) -> dict[str, Availed]:
        found = await states(users)
        has_read.set()
        await go_on.wait()
        return found

    await node.presence.set(DOCTORS[0], Availed(state="off"), now=T0)
    node.presence._states = late  # type: ignore[method-assign]
    reading = asyncio.create_task(state())
    async with asyncio.timeout(20):
        await has_read.wait()
        await node.presence.set(DOCTORS[0], Availed(state="available"), now=T0)
        go_on.set()
        assert await reading == "off"
    node.presence._states = states  # type: ignore[method-assign]
    assert await state() == "available"


async def test_nobody_is_refused_by_what_was_known_a_second_ago(make: Make, patient_presence: None) -> None:
    """A role that somebody has taken on another gateway is found, though a raise has just found nobody in it."""
    first, second = await make("n-1"), await make("n-2")
    to_nurses = AlertTarget(role="nurse")
    with pytest.raises(RemoteProtocolError):
        await first.alerts.raise_(command("k-1", to=to_nurses), T0)
    second.here("nurse.almeida.cardio", role="nurse")
    await second.presence.beat()
    raised = await first.alerts.raise_(command("k-2", to=to_nurses), T0)
    assert raised.reach.online == ("nurse.almeida.cardio",)


async def test_presence_that_is_kept_is_bounded(make: Make, patient_presence: None) -> None:
    """However many departments are asked for, only so many are kept."""
    node = await make()
    for n in range(MAX_LATELY + 3):
        await node.presence.lately(f"d-{n}", 0)
    assert len(node.presence._lately) == MAX_LATELY
    assert "d-2" not in node.presence._lately


async def test_a_state_ends_by_itself(make: Make, redis: Redis) -> None:
    """Nobody stays in a procedure for longer than they said, nor longer than half a day."""
    node = await make()
    await node.presence.set("dr.a", Availed(state="off", until=T0 + timedelta(minutes=5)), now=T0)
    await node.presence.set("dr.b", Availed(state="off", until=T0 + timedelta(days=9)), now=T0)
    assert 290 <= await redis.ttl("chatd:presence:state:dr.a") <= 300
    assert 43_000 <= await redis.ttl("chatd:presence:state:dr.b") <= 43_200


async def test_presence_of_another_version_holds_up_no_alert(make: Make, redis: Redis) -> None:
    """What this gateway cannot read of one person is passed over, and the others are known."""
    node = await make()
    node.here(DOCTORS[0])
    await redis.set(f"chatd:presence:state:{DOCTORS[0]}", b'{"state":"resting"}')
    await redis.hset("chatd:presence:in:cardiology", "dr.new|app", "2 000")
    await redis.hset("chatd:presence:in:cardiology", "dr.newer|app", "soon physician")
    raised = await node.alerts.raise_(command(), T0)
    assert raised.reach.online == (DOCTORS[0],)
    assert raised.reach.is_whole
    assert await node.alerts.sweep(T0 + timedelta(seconds=20)) == 1


async def test_presence_that_redis_has_lost_refuses_nobody(make: Make, redis: Redis) -> None:
    """Until every gateway has told Redis anew who is here, a role that seems empty is called and said to be unsure."""
    here, there = await make(), await make("n-2")
    here.here(DOCTORS[0])
    there.here("charge.rocha", role="charge_nurse")
    await here.presence.beat()
    await there.presence.beat()
    to = AlertTarget(role="charge_nurse")
    assert (await here.alerts.raise_(command("k-1", to=to), T0)).reach.is_whole
    await redis.flushall()
    here.clock.pass_s(2)
    raised = await here.alerts.raise_(command("k-2", to=to), T0)
    assert not raised.reach.is_whole
    await here.presence.beat()
    assert not (await here.alerts.raise_(command("k-3", to=to), T0)).reach.is_whole
    await there.presence.beat()
    seconds, _ = await redis.time()
    await redis.set("chatd:presence:since", seconds * 1000 - 10_000)
    known = (await here.alerts.raise_(command("k-4", to=to), T0)).reach
    assert (known.is_whole, known.online) == (True, ("charge.rocha",))


async def test_presence_away_says_so(make: Make, own_redis: Redis, own_redis_server: RedisServer) -> None:
    """What could not be noted is not answered as if it were."""
    node = await make(client=own_redis)
    own_redis_server.kill()
    with pytest.raises(PresenceUnavailable):
        await node.presence.set("dr.a", Availed(state="busy"), now=T0)
    with pytest.raises(PresenceUnavailable):
        await node.presence.state_of("dr.a")
    assert await node.presence.of("icu") == Present(records=(), is_whole=False, has_answered=False)
