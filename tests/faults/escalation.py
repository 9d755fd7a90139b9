"""Chains of alerts while gateways are killed and clocks are set: each step once, none early, none left out.

``python -m tests.faults.escalation --runs 10`` prints what was measured and exits with 1 on the first broken promise,
naming its seed; ``--seed N --runs 1`` takes that run's chances again. One run is two gateways on PostgreSQL, of which
one has its wall clock set by two hours again and again, and one gateway on SQLite. They are killed with SIGKILL, in
every gap of a chain, and started again, while alerts take all steps of it. What is judged is the ledger, what phones
have heard, and the test's own monotonic clock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from sqlalchemy import select
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from chatd.gateway.auth import mint
from chatd.ledger import Ledger
from chatd.ledger.tables import alert_events
from chatd.places import Places
from chatd.settings import Settings
from tests.chat_client import Broken, ChatClient
from tests.redis_server import RedisServer
from tests.server import Process

if TYPE_CHECKING:
    from tests.chatd.pg import PostgresServer

Name = Literal["postgresql", "sqlite"]
#: An event in the ledger: its number, its alert, what happened, when.
Row = tuple[int, str, str, datetime]

DEPARTMENT: Final = "cardiology"
POLICY: Final = "chain"
REPEAT_S, STEP_S, REMIND_S, EXPIRE_S = 5, 8, 5, 90
#: A chain with every kind of step. The second wait between rings is a day: each step rings again once.
POLICIES: Final = {
    "policies": {
        POLICY: {
            "reason": "Of the tests: every kind of step within a minute.",
            "repeat_s": [REPEAT_S, 86_400],
            "steps": [
                {"after_s": STEP_S, "to": "department"},
                {"after_s": STEP_S, "to": "user:dr.mendes.cardio"},
            ],
            "unanswered_after_s": STEP_S,
            "resolve_within_s": REMIND_S,
            "remind_again_s": REMIND_S,
            "expires_after_s": EXPIRE_S,
            "stand_down": ["charge_nurse"],
            "dedup_within_s": 60,
            "slots": [{"id": "one", "label": "One", "label_pt": "Um", "role": ""}],
        }
    }
}
#: What happens to each alert, in this order, whatever fails meanwhile.
CHAIN: Final = (
    "raised",
    "repeated",
    "escalated",
    "repeated",
    "escalated",
    "repeated",
    "unanswered",
    "accepted",
    "reminded",
    "expired",
)
#: How long each of them waits, at least, and after which: pairs of place in ``CHAIN`` and seconds. Whoever accepts does
#: so ``ACCEPT_S`` after they were told that nobody has.
ACCEPT_S: Final = 3.0
WAITS: Final[Mapping[int, tuple[tuple[int, float], ...]]] = {
    1: ((0, REPEAT_S),),
    2: ((0, STEP_S),),
    3: ((2, REPEAT_S),),
    4: ((2, STEP_S),),
    5: ((4, REPEAT_S),),
    6: ((4, STEP_S),),
    8: ((7, REMIND_S),),
    9: ((0, EXPIRE_S), (8, REMIND_S)),
}
_BY_PEOPLE: Final = 7
#: The gaps between them, and how long each is if nothing is late.
GAPS: Final = tuple(f"{n} {before} > {after}" for n, (before, after) in enumerate(itertools.pairwise(CHAIN), 1))
GAPS_S: Final = (5.0, 3.0, 5.0, 3.0, 5.0, 3.0, 3.0, 5.0, 20.0)
#: Alerts of a run. Their number is at least the first, and then so many as it takes to kill in every gap.
ALERTS: Final = (12, 60)
RAISE_EVERY_S: Final = (1.5, 3.5)
#: From the moment that a gateway which was killed is there again to the next kill; and so many times as long as its
#: start took at least, so that also on a busy machine chains get on.
KILL_AFTER_S: Final[Mapping[Name, tuple[float, float]]] = {"postgresql": (3.0, 6.0), "sqlite": (8.0, 12.0)}
REST_OF_START: Final[Mapping[Name, float]] = {"postgresql": 0.5, "sqlite": 2.0}
#: What a wall clock is off by, one after the other.
CLOCKS: Final = ("+2h", "-2h", "+0")
CLOCK_EVERY_S: Final = (4.0, 9.0)
#: A chain that takes longer has lost a step.
CHAIN_S: Final = 180.0
#: Gateways' times of alerts may differ by so much, and the ledger keeps whole milliseconds.
APART_S: Final = 0.5
MS: Final = timedelta(milliseconds=1)

ENV: Final = {
    "CHATD_DEMO": "true",
    "CHATD_SWEEP_INTERVAL_S": "0.5",
    "CHATD_ALERT_RAISES_PER_MINUTE": "100000",
    "CHATD_MESSAGES_PER_MINUTE": "100000",
}
_AWAY: Final = (ConnectionClosed, InvalidHandshake, InvalidMessage, OSError, TimeoutError)


def faketime_library() -> Path | None:
    """Where Debian's faketime has its library; None without it."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


# --- gateways -----------------------------------------------------------------------------------------------


class Gateway:
    """One ``chatd serve`` on a port of its own, with a wall clock that can be set if ``clock`` is a file."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], clock: Path | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        self.kills = 0
        self._arguments = ["serve", *arguments, "--port", str(port)]
        self._env = dict(env)
        self._clock = clock
        self._process: Process | None = None
        library = faketime_library()
        if clock is not None and library is not None:
            self.set_clock("+0")
            self._env |= {
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_CACHE_DURATION": "1",
            }

    def set_clock(self, off: str) -> None:
        """Set its wall clock, also while it runs: "+2h", "-2h", "+0". Its monotonic clock goes on."""
        assert self._clock is not None
        new = self._clock.with_suffix(".new")
        new.write_text(off)
        new.replace(self._clock)

    def start(self) -> None:
        self._process = Process(self._arguments, self._env)
        self._process.wait_ready()

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self.kills += 1
            process.kill()
            process.close()

    def log(self) -> str:
        return "" if self._process is None else self._process.log()


class Stand:
    """Two gateways on PostgreSQL, or one on SQLite, with a Redis of their own."""

    def __init__(self, name: Name) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="ces-"))
        self._redis = RedisServer()
        self._postgres: PostgresServer | None = None
        self.gateways: list[Gateway] = []
        self.ledger_url = f"sqlite:///{self.folder / 'ledger.sqlite3'}"

    def start(self) -> None:
        """Start all; raises RuntimeError where PostgreSQL is not installed."""
        self._redis.start()
        if self.name == "postgresql":
            # Here, so that a test file may have it as a plugin too.
            from tests.chatd.pg import PostgresServer, postgres_folder

            binaries = postgres_folder()
            if binaries is None:
                raise RuntimeError("PostgreSQL is not installed")
            self._postgres = PostgresServer(binaries)
            self._postgres.start()
            self.ledger_url = self._postgres.new_database()
        places = Places(Settings(data_dir=str(self.folder), demo=True))
        self._secret = places.jwt_secret()
        places.key_ring()
        policies = self.folder / "policies.json"
        policies.write_text(json.dumps(POLICIES))
        arguments = ["--data-dir", str(self.folder), "--redis", self._redis.chatd_url, "--ledger", self.ledger_url]
        env = ENV | {"CHATD_ALERT_POLICIES_FILE": str(policies)}
        clocks = (None, self.folder / "clock") if self.name == "postgresql" else (None,)
        self.gateways = [Gateway(arguments, env, clock) for clock in clocks]
        for gateway in self.gateways:
            gateway.start()

    def stop(self) -> None:
        """End all and remove their files."""
        for gateway in self.gateways:
            gateway.kill()
        self._redis.close()
        if self._postgres is not None:
            self._postgres.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def urls(self) -> list[str]:
        return [gateway.url for gateway in self.gateways]

    def token(self, user: str) -> str:
        """A token that is good by every clock of the run: three hours old, and for eight more."""
        return mint(
            self._secret,
            user_id=user,
            departments=(DEPARTMENT,),
            roles=("physician",),
            ttl_s=43_000,
            now=datetime.now(UTC) - timedelta(hours=3),
        )


@contextlib.contextmanager
def standing(name: Name) -> Iterator[Stand]:
    """A stand that runs; ended whatever happens."""
    stand = Stand(name)
    try:
        stand.start()
        yield stand
    finally:
        stand.stop()


# --- phones -------------------------------------------------------------------------------------------------


class Heard(msgspec.Struct, frozen=True):
    """One event as a phone got it; ``at`` by this process's monotonic clock."""

    alert_seq: int
    alert_id: str
    event: str
    at: float
    frame: dict[str, Any]


class Phone(ChatClient):
    """Keeps its place among alerts over every connection; raises Broken on a hole or a repetition."""

    def __init__(self, stand: Stand, user: str, first: int) -> None:
        super().__init__(stand.urls()[0], department=DEPARTMENT, user_id=user, token=stand.token(user), wait_s=CHAIN_S)
        urls = stand.urls()
        self._urls = itertools.cycle(urls[first % len(urls) :] + urls[: first % len(urls)])
        self.heard: list[Heard] = []
        self.alert_seq: int | None = None
        self.news = asyncio.Event()

    async def send(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "hello" and "resume" in frame:
            frame["resume"]["alert_seq"] = self.alert_seq
        await super().send(frame)

    async def connect(self, url: str | None = None) -> dict[str, Any]:
        welcome = await super().connect(url)
        if self.alert_seq is None:
            self.alert_seq = welcome["alert_seq"]
        elif welcome["resumed"] and welcome["alert_seq"] < self.alert_seq:
            raise Broken("welcome stands before the phone")
        elif not welcome["resumed"]:
            raise Broken(f"a phone that was away for seconds cannot resume: {welcome['gap_reason']}")
        return welcome

    async def receive(self) -> dict[str, Any]:
        frame = await super().receive()
        if frame["type"] in ("system_notification", "alert_update"):
            assert self.alert_seq is not None
            if frame["alert_seq"] != self.alert_seq + 1:
                raise Broken(f"alert_seq {frame['alert_seq']} after {self.alert_seq}")
            self.alert_seq = frame["alert_seq"]
            heard = Heard(frame["alert_seq"], frame["alert_id"], frame["event"], time.monotonic(), frame)
            self.heard.append(heard)
            self.news.set()
        return frame

    async def reconnect(self) -> None:
        """Go round the gateways until one takes the phone."""
        while True:
            with contextlib.suppress(*_AWAY):
                async with asyncio.timeout(3):
                    await self.connect(next(self._urls))
                return
            # It may have been connected, and not been welcomed.
            await self.cut()
            await asyncio.sleep(0.1)

    async def leave(self) -> None:
        """Close the connection, whatever has become of it."""
        with contextlib.suppress(*_AWAY):
            async with asyncio.timeout(3):
                await self.close()
        await self.cut()

    async def listen(self) -> None:
        """Hear everything until cancelled, wherever a gateway is."""
        while True:
            with contextlib.suppress(*_AWAY):
                while True:
                    await self.receive()
            await self.cut()
            await self.reconnect()

    async def until_seq(self, alert_seq: int) -> None:
        """Wait until this phone, which ``listen``s, has heard so far."""
        while (self.alert_seq or 0) < alert_seq:
            self.news.clear()
            await self.news.wait()

    async def until_event(self, alert_id: str, event: str) -> None:
        """Wait until this phone, which ``listen``s, has heard of it."""
        while not any(each.alert_id == alert_id and each.event == event for each in self.heard):
            self.news.clear()
            await self.news.wait()

    async def command(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Send a command until it is answered, under the same id wherever a gateway is; returns ``accepted``.

        Raises:
            Broken: It was refused.
        """
        msg_id = f"c-{secrets.token_hex(8)}"
        while True:
            with contextlib.suppress(*_AWAY):
                if self.socket is None:
                    await self.reconnect()
                await self.send({**frame, "client_msg_id": msg_id})
                async with asyncio.timeout(3):
                    while True:
                        answer = await self.receive()
                        if answer.get("client_msg_id") != msg_id:
                            continue
                        if answer["type"] == "accepted":
                            return answer
                        if answer.get("retry_after_ms") is None:
                            raise Broken(f"refused: {answer}")
                        break
            await self.cut()


# --- one run ------------------------------------------------------------------------------------------------


class Told(msgspec.Struct):
    """When a chain's people did something, just before they did it; by the monotonic clock."""

    raised: float = 0.0
    accepted: float = 0.0


class Measured(msgspec.Struct):
    """What runs have shown. ``late_s``: per kind of step, by how much each came after it was due."""

    alerts: int = 0
    kills: int = 0
    clocks_set: int = 0
    gaps: Counter[str] = msgspec.field(default_factory=Counter)
    late_s: dict[str, list[float]] = msgspec.field(default_factory=dict)

    def add(self, other: Measured) -> None:
        self.alerts += other.alerts
        self.kills += other.kills
        self.clocks_set += other.clocks_set
        self.gaps += other.gaps
        for kind, late in other.late_s.items():
            self.late_s.setdefault(kind, []).extend(late)


async def chain(stand: Stand, n: int, listener: Phone, told: dict[str, Told]) -> None:
    """Raise one alert, accept it when nobody has, and wait for its end."""
    # A user of its own: two connections of one are the most.
    person = Phone(stand, f"dr.chain{n}.cardio", n)
    mine = Told(raised=time.monotonic())
    raising = {"type": "alert_raise", "to": {"user": "dr.santos.cardio"}, "priority": "critical"}
    raised = await person.command({**raising, "content": f"Chain {n}", "template": POLICY})
    await person.leave()
    alert_id = raised["alert_id"]
    told[alert_id] = mine
    try:
        async with asyncio.timeout(CHAIN_S):
            await listener.until_event(alert_id, "unanswered")
            await asyncio.sleep(ACCEPT_S)
            mine.accepted = time.monotonic()
            await person.command({"type": "alert_response", "alert_id": alert_id, "answer": "accept"})
            await person.leave()
            await listener.until_event(alert_id, "expired")
    except TimeoutError:
        names = [event for _, of, event, _ in await ledger_log(stand) if of == alert_id]
        heard = [each.event for each in listener.heard if each.alert_id == alert_id]
        where = listener.url if listener.socket else "nowhere"
        raise Broken(f"{stand.name}: {alert_id}: the ledger has {names}, a phone on {where} heard {heard}") from None


class Killer:
    """Kills one gateway after the other and starts it again, until it is told to ``end``."""

    def __init__(self, stand: Stand, chance: random.Random, listeners: Sequence[Phone]) -> None:
        self.kills: list[datetime] = []
        self.hits: Counter[str] = Counter()
        self._stand, self._chance, self._listeners = stand, chance, listeners
        self._rest = REST_OF_START[stand.name]
        self._is_over = asyncio.Event()

    async def run(self) -> None:
        """Kill until each gap of a chain has been met; gaps that were met least come first."""
        gateways = itertools.cycle(self._stand.gateways)
        while not self.has_met_all:
            wanted = min(range(len(GAPS)), key=lambda n: (self.hits[GAPS[n]], self._chance.random()))
            while not any(passed == wanted + 1 for passed in self._passed().values()):
                await self._wait(0.05)
                if self._is_over.is_set():
                    return
            await self._wait(self._chance.uniform(0, 0.6) * GAPS_S[wanted])
            gateway, killed_at, began = next(gateways), datetime.now(UTC), time.monotonic()
            await asyncio.to_thread(gateway.kill)
            self.kills.append(killed_at)
            self.hits += met(await ledger_log(self._stand), killed_at)
            await asyncio.to_thread(gateway.start)
            rest_s = (time.monotonic() - began) * self._rest
            await self._wait(max(self._chance.uniform(*KILL_AFTER_S[self._stand.name]), rest_s))

    def _passed(self) -> Counter[str]:
        """How many events of its chain each alert has behind it, by the phone that has heard most."""
        most = max(self._listeners, key=lambda phone: len(phone.heard))
        return Counter(each.alert_id for each in most.heard if each.event != "receipts")

    @property
    def has_met_all(self) -> bool:
        """Whether alerts were in every gap when a gateway was killed."""
        return all(self.hits[gap] for gap in GAPS)

    def end(self) -> None:
        """``run`` ends once the gateway that it has killed is there again; it must not be cancelled while it starts."""
        self._is_over.set()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_over.wait()


async def set_clocks_all_the_time(stand: Stand, chance: random.Random, measured: Measured) -> None:
    """Set the last gateway's wall clock again and again, on PostgreSQL."""
    if stand.name == "sqlite" or faketime_library() is None:
        return
    for off in itertools.cycle(CLOCKS):
        stand.gateways[-1].set_clock(off)
        measured.clocks_set += 1
        await asyncio.sleep(chance.uniform(*CLOCK_EVERY_S))


async def wave(stand: Stand, seed: int) -> Measured:
    """Let chains run under faults; raises Broken on the first promise that is not kept."""
    chance = random.Random(f"{seed} {stand.name}")
    measured = Measured()
    listeners = [Phone(stand, f"dr.listener{n}.cardio", n) for n in range(3)]
    for each in listeners:
        await each.reconnect()
    told: dict[str, Told] = {}
    killer = Killer(stand, chance, listeners)
    killing = asyncio.create_task(killer.run())
    running = [asyncio.create_task(each.listen()) for each in listeners]
    setting = asyncio.create_task(set_clocks_all_the_time(stand, chance, measured))

    async def chains() -> None:
        least, most = ALERTS
        async with asyncio.TaskGroup() as group:
            for n in range(most):
                if n >= least and killer.has_met_all:
                    break
                group.create_task(chain(stand, n, listeners[n % 3], told))
                await asyncio.sleep(chance.uniform(*RAISE_EVERY_S))

    try:
        await _until_all([chains()], beside=[*running, setting, killing])
        killer.end()
        await killing
        log = await ledger_log(stand)
        await _until_all([each.until_seq(log[-1][0]) for each in listeners], beside=running)
    finally:
        killer.end()
        await asyncio.wait([killing])
        await _end([*running, setting])
        for phone in listeners:
            await phone.leave()
    judge(log, [each.heard for each in listeners], told, killer.kills, measured)
    return measured


async def races(stand: Stand, seed: int, count: int) -> Counter[str]:
    """Let so many alerts be accepted around the moment of their first step, on two gateways; raises Broken.

    Gives how often the acceptance came before the step, and after it.
    """
    chance = random.Random(f"{seed} races")
    listener = Phone(stand, "dr.listener0.cardio", 0)
    await listener.reconnect()
    listening = asyncio.create_task(listener.listen())
    raised: list[str] = []

    async def one(n: int) -> None:
        await asyncio.sleep(chance.uniform(0, STEP_S))
        person = Phone(stand, f"dr.race{n}.cardio", n)
        calling = {"type": "alert_raise", "to": {"department": DEPARTMENT}, "priority": "critical"}
        alert_id = (await person.command({**calling, "content": f"Race {n}", "template": POLICY}))["alert_id"]
        raised.append(alert_id)
        # Both gateways look for what is due once a second: within this time one of them takes the step.
        await asyncio.sleep(STEP_S + chance.uniform(0, 1.0))
        await person.command({"type": "alert_response", "alert_id": alert_id, "answer": "accept"})
        await person.leave()
        await listener.until_event(alert_id, "reminded")

    try:
        await _until_all([one(n) for n in range(count)], beside=[listening])
    finally:
        await _end([listening])
        await listener.leave()
    orders: Counter[str] = Counter()
    log = await ledger_log(stand)
    for alert_id in raised:
        events = tuple(event for _, of, event, _ in log if of == alert_id and event != "receipts")
        # What comes after the question whether it is done is not part of the race.
        events = events[: events.index("reminded") + 1]
        if events == ("raised", "repeated", "accepted", "reminded"):
            orders["accepted before the step"] += 1
        elif events == ("raised", "repeated", "escalated", "accepted", "reminded"):
            orders["accepted after the step"] += 1
        else:
            raise Broken(f"{alert_id}: {events}")
    return orders


async def ledger_log(stand: Stand) -> list[Row]:
    """All events of alerts, in order."""
    ledger = Ledger.open(stand.ledger_url, timeout_s=20)
    try:
        query = select(
            alert_events.c.alert_seq, alert_events.c.alert_id, alert_events.c.event, alert_events.c.at
        ).order_by(alert_events.c.alert_seq)
        rows = await ledger.read(lambda tx: tx.connection.execute(query).all())
    finally:
        await ledger.close()
    return [(int(row.alert_seq), str(row.alert_id), str(row.event), row.at) for row in rows]


async def _until_all(stories: Sequence[Coroutine[Any, Any, None]], beside: Sequence[asyncio.Task[None]]) -> None:
    """Wait for all stories; raise what the first of them, or of what runs beside them, raises. Stories end with it."""
    told = [asyncio.create_task(each) for each in stories]
    left: set[asyncio.Task[None]] = {*told, *beside}
    try:
        async with asyncio.timeout(3 * CHAIN_S):
            while not all(each.done() for each in told):
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    each.result()
    finally:
        await _end(told)


async def _end(running: Sequence[asyncio.Task[None]]) -> None:
    for each in running:
        each.cancel()
    await asyncio.gather(*running, return_exceptions=True)


# --- what was promised --------------------------------------------------------------------------------------


def judge(
    log: Sequence[Row],
    heard: Sequence[Sequence[Heard]],
    told: Mapping[str, Told],
    kills: Sequence[datetime],
    measured: Measured,
) -> None:
    """Check the ledger's log and what each phone has heard; raises Broken.

    Each alert has each event of the chain once and in order; none before it was due by the ledger's moments, none
    before it could be by a clock that nobody has set; each phone has heard the log and nothing else.
    """
    if [seq for seq, *_ in log] != list(range(1, len(log) + 1)):
        raise Broken("the log has a hole")
    for phone in heard:
        if [(each.alert_seq, each.alert_id, each.event) for each in phone] != [row[:3] for row in log]:
            raise Broken("a phone has heard something else than the ledger has")
    by_alert: defaultdict[str, list[tuple[int, str, datetime]]] = defaultdict(list)
    for seq, alert_id, event, at in log:
        if event != "receipts":
            by_alert[alert_id].append((seq, event, at))
    if by_alert.keys() != told.keys():
        raise Broken("an alert was lost, or is there twice")
    first_heard = {each.alert_seq: each.at for phone in heard[::-1] for each in phone}
    for phone in heard:
        for each in phone:
            first_heard[each.alert_seq] = min(first_heard[each.alert_seq], each.at)
    for alert_id, events in by_alert.items():
        names = tuple(event for _, event, _ in events)
        if names != CHAIN:
            raise Broken(f"{alert_id}: {names}")
        moments = [at for _, _, at in events]
        earliest = {0: told[alert_id].raised, _BY_PEOPLE: told[alert_id].accepted}
        for place, waits in WAITS.items():
            due_at = max(moments[after] + timedelta(seconds=wait_s) for after, wait_s in waits)
            if moments[place] < due_at - MS:
                raise Broken(f"{alert_id}: {names[place]} {due_at - moments[place]} early by the ledger")
            earliest[place] = max(earliest[after] + wait_s for after, wait_s in waits)
            if first_heard[events[place][0]] < earliest[place] - APART_S:
                early_s = earliest[place] - first_heard[events[place][0]]
                raise Broken(f"{alert_id}: {names[place]} {early_s:.3f} s early by the test's clock")
            measured.late_s.setdefault(names[place], []).append((moments[place] - due_at).total_seconds())
    for killed_at in kills:
        measured.gaps += met(log, killed_at)
    measured.alerts += len(by_alert)
    measured.kills += len(kills)


def met(log: Sequence[Row], killed_at: datetime) -> Counter[str]:
    """In which gaps of their chains alerts were at that moment."""
    passed = Counter(alert_id for _, alert_id, event, at in log if event != "receipts" and at <= killed_at)
    return Counter(GAPS[count - 1] for count in passed.values() if count < len(CHAIN))


def run(seed: int, names: Sequence[Name] = ("postgresql", "sqlite")) -> dict[Name, Measured]:
    """One run on each ledger, side by side; raises Broken."""

    async def all_of(stands: Sequence[Stand]) -> list[Measured]:
        async with asyncio.TaskGroup() as group:
            waves = [group.create_task(wave(stand, seed)) for stand in stands]
        return [each.result() for each in waves]

    with contextlib.ExitStack() as stack:
        stands = [stack.enter_context(standing(name)) for name in names]
        try:
            return dict(zip(names, asyncio.run(all_of(stands)), strict=True))
        except* (Broken, TimeoutError) as group:
            logs = "\n".join(gateway.log()[-2000:] for stand in stands for gateway in stand.gateways)
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise Broken(f"seed {seed}: {first!r}\n{logs}") from first


def table(measured: Mapping[Name, Measured]) -> str:
    """What was measured, in words for a page."""
    lines = []
    for name, each in measured.items():
        lines.append(f"{name}: {each.alerts} chains, {each.kills} kills, clock set {each.clocks_set} times")
        lines += [f"  killed between {gap:26} {each.gaps[gap]:5}" for gap in GAPS]
        for kind, late in each.late_s.items():
            found = sorted(late)
            p99 = found[min(len(found) - 1, round(0.99 * len(found)))]
            middle = found[len(found) // 2]
            lines.append(
                f"  {kind:10} {len(found):5} times, late p50 {middle:.2f} s, p99 {p99:.2f} s, most {found[-1]:.2f} s"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="runs, each of about two minutes")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    arguments = parser.parse_args()
    if faketime_library() is None:
        print("faketime is not installed: no clock is set", file=sys.stderr)
    total: dict[Name, Measured] = {"postgresql": Measured(), "sqlite": Measured()}
    began = time.monotonic()
    try:
        for seed in range(arguments.seed, arguments.seed + arguments.runs):
            for name, found in run(seed).items():
                total[name].add(found)
            print(f"seed {seed}: every step once, none early, none left out", flush=True)
    except Broken as broken:
        print(broken, file=sys.stderr)
        return 1
    print(table(total))
    print(f"{arguments.runs} runs in {time.monotonic() - began:.0f} s, CPU {_cpu_s():.0f} s")
    return 0


def _cpu_s() -> float:
    """What this process and those it has started and ended have used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    raise SystemExit(main())
