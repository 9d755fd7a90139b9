"""One gateway's shared state: who is connected, the doorbell, the sweep that heals what a doorbell lost, the drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatd import metrics, tasks
from chatd.actions.service import Actions
from chatd.alerts.model import Recorded
from chatd.alerts.presence import Here
from chatd.audit.service import Audit
from chatd.clock import Clock, epoch_ms
from chatd.faults import FaultPoints
from chatd.gateway.gate import Gate
from chatd.gateway.namesakes import Namesakes
from chatd.gateway.pools import Pools
from chatd.gateway.seats import BOARDS, Seats
from chatd.identity.register import DOORBELL as REGISTER_DOORBELL
from chatd.inference.queue import JobQueue, QueueUnavailable
from chatd.inference.watch import ModelWatch
from chatd.ledger import Ledger, LedgerUnavailable
from chatd.logs import error_name
from chatd.readiness import NodeChecks
from chatd.replies.following import Follower
from chatd.replies.runs import Run, Runs
from chatd.replies.sessions import (
    DOORBELL,
    Opened,
    Request,
    SessionLost,
    Sessions,
    SessionsUnavailable,
    same_session,
)
from chatd.settings import Settings
from context import memo
from context.layers import DepartmentLayer
from context.store import ContextNotLoaded, ContextStore, DepartmentUnknown, StoreUnavailable
from protocols.errors import ChatdError, CloseCode, RemoteProtocolError
from protocols.frames import ModeChange

if TYPE_CHECKING:
    from chatd.alerts.service import Alerts
    from chatd.gateway.connection import Connection

log = structlog.get_logger(__name__)

#: Rings after alerts: ``DEPARTMENT ALERT_SEQ NODE``.
ALERT_DOORBELL = "chatd:alerts"
#: A doorbell connection that broke is opened again after this; the sweep covers the time between.
_DOORBELL_RETRY_S = 0.5
#: How often the model's workers are looked at.
WATCH_S = 1.0
#: Sessions that are opened at the same time, and how long a phone waits for its turn. A ward that comes back at once
#: would otherwise queue in this process between the questions to Redis, until those run out of time.
_OPENING = 16
_TURN_S = 5.0
#: How exactly connections keep their deadlines; the shortest of them is 5 s.
_TICK_S = 0.25
#: Phones whose sessions rest are swept in turn, all of them once in so many sweeps. A ring that is lost for such a
#: session is noticed within these; where all rings may have been lost, all are swept at once.
_TURNS = 5
#: A department's name and actions in a welcome are at most this old, while Redis has them.
_DEPARTMENTS_MS = 1_000
#: After Redis did not answer, newcomers do not wait for it for this long: they are let in for their alerts at once.
_AWAY_MS = 1_000
#: How long the last frames of a connection may take to leave before it is closed all the same; and the closing.
FLUSH_S = 1.0
#: What a phone may take to be gone once it is to be closed.
_GONE_S = 2 * FLUSH_S + 0.5
#: How late a phone may hear that a prepared action has run out; confirming it late is refused at once anyway.
_EXPIRE_S = 10.0
#: How long a word that somebody wrote may stay in the tables' caches; what is needed again costs milliseconds.
_FORGET_S = 60.0


class TurnNotReached(ChatdError):
    """Too many phones came before this one, or what they ask does not answer: it comes again in a moment."""


class Node:
    """What all connections of this process share; made once by ``app``.

    ``run`` owns the background tasks and ends by cancellation.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        redis: Redis,
        doorbell: Redis,
        store: ContextStore,
        sessions: Sessions,
        runs: Runs,
        actions: Actions,
        ledger: Ledger,
        gate: Gate,
        audit: Audit,
        node_id: str,
        faults: FaultPoints,
        watch: ModelWatch,
        queue: JobQueue | None = None,
        follower: Follower | None = None,
        alerts: Alerts | None = None,
    ) -> None:
        self.faults = faults
        self.settings = settings
        self.clock = clock
        self.redis = redis
        self.store = store
        self.namesakes = Namesakes()
        self.sessions = sessions
        self.runs = runs
        self.actions = actions
        self.ledger = ledger
        self.checks = NodeChecks(redis, store, ledger, clock)
        self.gate = gate
        self.audit = audit
        gate.on_change = self.look_at_standings
        self.node_id = node_id
        self.draining = False
        self._doorbell = doorbell
        self._connections: set[Connection] = set()
        #: Their phones, until one comes or goes.
        self._here: tuple[Here, ...] | None = None
        self._by_session: defaultdict[str, set[Connection]] = defaultdict(set)
        self._seats: Seats[Connection] = Seats()
        self.watch = watch
        self._queue = queue
        self._follower = follower
        self._newcomers: set[Connection] = set()
        self._has_newcomers = asyncio.Event()
        self._alerts = alerts
        self.pools = None if alerts is None else Pools(alerts, clock)
        if alerts is not None:
            alerts.on_recorded = self.recorded
            alerts.presence.phones = self.phones_here
        self._opening = asyncio.Semaphore(_OPENING)
        self._turn = self._next_turn = 0
        self._may_have_missed = False
        self._departments: tuple[DepartmentLayer, ...] = ()
        self._departments_at_ms: int | None = None
        self._departments_read: asyncio.Task[None] | None = None
        #: Redis did not answer; until then newcomers do not ask it.
        self._away_until_ms: int | None = None
        self._to_ring: dict[str, int] = {}
        self._has_to_ring = asyncio.Event()
        runs.on_appended = self.ring
        runs.on_refused = self.refused
        if follower is not None:
            follower.phones_of = self.phones_of

    @property
    def connections(self) -> int:
        """Open WebSockets on this node."""
        return len(self._connections)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait in all outboxes."""
        return sum(connection.waiting_bytes for connection in self._connections)

    @property
    def full(self) -> bool:
        return len(self._connections) >= self.settings.max_connections

    def new_connection_id(self) -> str:
        return f"c-{secrets.token_hex(6)}"

    # --- who is connected ---

    def opened(self, connection: Connection) -> None:
        """Count an accepted WebSocket; a second call changes nothing."""
        self._connections.add(connection)
        self._next_turn += 1
        connection.turn = self._next_turn
        metrics.CONNECTIONS.labels(connection.channel).inc()

    def joined(self, connection: Connection, key: str) -> None:
        """From here on the connection hears of every append to the session, before it replays."""
        self._by_session[key].add(connection)

    def seat(self, connection: Connection) -> None:
        """The connection's session is open; where its person holds too many of its kind, an older one is closed.

        That one is not to come back by itself, or the two would close each other in turn. Phones and computers are
        counted apart: the one in the pocket is the one that an alert has to reach.
        """
        kind, most = connection.device_kind, self.settings.connections_per_user
        if connection.channel == "board":
            # An account stands for many walls, and each of them is looked at.
            kind, most = None, max(most, BOARDS)
        place = (connection.user_id, connection.department, connection.channel, kind)
        going = self._seats.take(connection, place, connection.device_id, most)
        if going is not None:
            going.close_soon(CloseCode.TOO_MANY_CONNECTIONS)

    def left(self, connection: Connection) -> None:
        """Forget a connection; a second call changes nothing."""
        self._seats.leave(connection)
        self._newcomers.discard(connection)
        if self.pools is not None and connection.member is not None:
            self.pools.leave(connection.member)
        if connection in self._connections:
            self._connections.discard(connection)
            self._here = None
            metrics.CONNECTIONS.labels(connection.channel).dec()
        if connection.key is not None:
            members = self._by_session.get(connection.key)
            if members is not None:
                members.discard(connection)
                if not members:
                    del self._by_session[connection.key]

    @contextlib.asynccontextmanager
    async def opening(self) -> AsyncIterator[None]:
        """A phone's turn to have its session opened.

        Raises:
            TurnNotReached: It has waited for 5 s.
        """
        try:
            async with asyncio.timeout(_TURN_S):
                await self._opening.acquire()
        except TimeoutError:
            raise TurnNotReached from None
        try:
            yield
        finally:
            self._opening.release()

    def phones_of(self, key: str) -> tuple[Connection, ...]:
        """This node's connections of a session."""
        return tuple(self._by_session.get(key, ()))

    def ring(self, key: str, epoch: str, seq: int, frame: bytes | None = None) -> None:
        """Tell this node's phones of a session that its log of this epoch has grown to ``seq``."""
        for connection in self.phones_of(key):
            # One that still stands in another epoch counts other events; the sweep moves it on or closes it.
            if connection.epoch == epoch:
                connection.ring(seq, frame)
            elif same_session(connection.epoch, epoch):
                self._may_have_missed = True

    def knows_departments(self, departments: Sequence[DepartmentLayer]) -> None:
        """What the installation's own files say, until Redis has said it."""
        if self._departments_at_ms is None:
            self._departments = tuple(departments)

    def knows(self, department_id: str) -> bool:
        """Whether the hospital had a department of this name when it was last looked at."""
        return any(each.department_id == department_id for each in self._departments)

    async def department(self, department_id: str) -> DepartmentLayer:
        """A department as phones are told it, at most a second old; those who ask at the same time share one read.

        While Redis does not answer, or has lost the layers, it is as it was known last: a phone needs no more of it
        than its name to hear of alerts.

        Raises:
            DepartmentUnknown: This hospital has none of this name.
            ContextNotLoaded, StoreUnavailable: as the store, for one that was not known before.
        """
        read_ms = self._departments_at_ms
        known = next((each for each in self._departments if each.department_id == department_id), None)
        if known is not None and self._is_away:
            return known
        try:
            if read_ms is None or self.clock.monotonic_ms() - read_ms >= _DEPARTMENTS_MS:
                await self._read_departments()
            for again in (True, False):
                for department in self._departments:
                    if department.department_id == department_id:
                        return department
                if again and read_ms == self._departments_at_ms:
                    await self._read_departments()
        except (ContextNotLoaded, StoreUnavailable) as error:
            if isinstance(error, StoreUnavailable):
                self._note_away()
            if known is None:
                raise
            return known
        raise DepartmentUnknown

    @property
    def _is_away(self) -> bool:
        return self._away_until_ms is not None and self.clock.monotonic_ms() < self._away_until_ms

    def _note_away(self) -> None:
        self._away_until_ms = self.clock.monotonic_ms() + _AWAY_MS

    async def open_session(self, key: str) -> Opened | None:
        """Find a session or make it; None: Redis does not answer. Takes ``redis_timeout_s`` at most."""
        if self._is_away:
            return None
        try:
            async with asyncio.timeout(self.settings.redis_timeout_s):
                return await self.sessions.open(key, now_ms=epoch_ms(self.clock.now()))
        except (SessionsUnavailable, TimeoutError):
            self._note_away()
            return None

    async def _read_departments(self) -> None:
        if self._departments_read is None:
            self._departments_read = asyncio.create_task(self._ask_for_departments())
            # Whoever asked may be gone before it fails.
            self._departments_read.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._departments_read)

    async def _ask_for_departments(self) -> None:
        try:
            self._departments = await self.store.departments()
            self._departments_at_ms = self.clock.monotonic_ms()
        finally:
            # Not in a callback of the task: somebody may ask between its end and that.
            self._departments_read = None

    # --- alerts ---

    @property
    def alerts(self) -> Alerts:
        """The department's alerts, raised and answered."""
        assert self._alerts is not None  # noqa: S101 - app gives it
        return self._alerts

    def recorded(self, department: str, events: Sequence[Recorded]) -> None:
        """Events of a department that this node has just committed: to its own phones, then to the other nodes.

        Never waits. The order of the calls does not matter, and a second call with the same events changes nothing.
        """
        if self.pools is None or not events:
            return
        self.pools.fan_out(department, events)
        self._to_ring[department] = max(self._to_ring.get(department, 0), events[-1].alert_seq)
        self._has_to_ring.set()

    def phones_here(self) -> tuple[Here, ...]:
        """This node's open phones, each connection once; the same object as long as none comes or goes."""
        if self._here is None:
            self._here = tuple(connection.here for connection in self._connections if connection.here is not None)
        return self._here

    def came(self, here: Here) -> None:
        """Whose phone this is was just found out: the other nodes hear of it at once, not only with the next beat."""
        self._here = None
        if self._alerts is not None:
            self._alerts.presence.came(here)

    async def _ring_out(self) -> None:
        """Tell the other nodes how far the departments' logs have grown; a ring that is lost, their sweep mends."""
        while True:
            await self._has_to_ring.wait()
            self._has_to_ring.clear()
            rings, self._to_ring = self._to_ring, {}
            try:
                async with self.redis.pipeline(transaction=False) as pipe:
                    for department, alert_seq in rings.items():
                        pipe.publish(ALERT_DOORBELL, f"{department} {alert_seq} {self.node_id}")
                    await pipe.execute()
            except (RedisError, OSError, TimeoutError) as error:
                metrics.REDIS_ERRORS.inc()
                log.warning("alerts_not_rung", error=error_name(error))

    # --- who is no longer let in ---

    def look_at_standings(self) -> None:
        """Close whoever was revoked since they were let in."""
        for connection in tuple(self._connections):
            connection.look_at_standing()

    # --- answers that are being written ---

    def attend(self, connection: Connection) -> None:
        """The phone's session is open: what is being written for it, on whatever gateway, is to be heard here too."""
        if self._follower is not None and not connection.compat:
            self._newcomers.add(connection)
            self._has_newcomers.set()

    def begun(self, connection: Connection, response_id: str) -> None:
        """The phone was sent the facts of a question; the run that writes its answer may be another gateway's."""
        if self._follower is not None and not connection.compat and connection.key is not None:
            self._follower.attend(response_id, connection.key)

    def answered(self, connection: Connection, response_id: str) -> None:
        """The phone was sent the answer: nothing more is to be heard of it."""
        if self._follower is not None and connection.key is not None:
            self._follower.dismiss(response_id)

    def refused(self, key: str, error: RemoteProtocolError) -> None:
        """Tell the phones that the model's queue did not take their question; its answer comes from facts."""
        for connection in self.phones_of(key):
            # One of the original design would take an error for its answer.
            if not connection.compat and connection.session.is_welcomed:
                connection.send_error(error)

    @property
    def mode_now(self) -> ModeChange:
        """The model's state as phones are told it."""
        return ModeChange(mode=self.watch.mode, model=self.watch.state)

    async def _tell_mode(self) -> None:
        """Look at the model, and tell every phone that knows otherwise; one that was just being welcomed too."""
        while True:
            await self.watch.look()
            mode = self.mode_now
            self._say(mode)
            await asyncio.sleep(WATCH_S)

    def _say(self, mode: ModeChange) -> None:
        # Apart from the loop above: its names would keep the last phone, and what it last sent, until another comes.
        for connection in tuple(self._connections):
            connection.hear_mode(mode)

    async def _welcome_newcomers(self) -> None:
        """Find what is being written for phones that have just come, with one question to the log for each."""
        while True:
            await self._has_newcomers.wait()
            self._has_newcomers.clear()
            while self._newcomers:
                await self._find_writing(self._newcomers.pop())

    async def _find_writing(self, connection: Connection) -> None:
        if connection.key is None or self._follower is None:
            return
        try:
            for response_id, _ in await self.sessions.open_requests(connection.key):
                self._follower.attend(response_id, connection.key)
        except SessionsUnavailable:
            # Its answer comes all the same; only the text before it is not seen.
            log.warning("not_attended", connection_id=connection.connection_id)

    # --- background ---

    async def run(self) -> None:
        """Serve the doorbell and the sweep until cancelled."""
        loops = [
            asyncio.create_task(self._listen()),
            asyncio.create_task(self._sweep()),
            asyncio.create_task(self._tick()),
            asyncio.create_task(self._expire()),
            asyncio.create_task(self._forget()),
            asyncio.create_task(self._tell_mode()),
            asyncio.create_task(self.gate.run()),
        ]
        if self._follower is not None:
            loops += [asyncio.create_task(self._follower.run()), asyncio.create_task(self._welcome_newcomers())]
        if self.pools is not None:
            loops += [asyncio.create_task(self.pools.run()), asyncio.create_task(self._ring_out())]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for loop in done:
                loop.result()  # none of them ends by itself: it raises what went wrong
        finally:
            # A TaskGroup would cancel its tasks once, which is not enough.
            await tasks.end(loops)

    async def _listen(self) -> None:
        while True:
            pubsub = self._doorbell.pubsub(ignore_subscribe_messages=True)
            try:
                await pubsub.subscribe(DOORBELL, ALERT_DOORBELL, REGISTER_DOORBELL)
                # Whatever was rung while nobody listened.
                self._may_have_missed = True
                self.gate.ring()
                while True:
                    message = await pubsub.get_message(timeout=30.0)
                    if message is None:
                        continue
                    if message["channel"] == REGISTER_DOORBELL.encode():
                        self.gate.ring()
                    else:
                        self._rung(message["channel"] == ALERT_DOORBELL.encode(), message["data"].decode())
            except (RedisError, OSError, TimeoutError) as error:
                metrics.REDIS_ERRORS.inc()
                log.warning("doorbell_lost", error=error_name(error))
                await asyncio.sleep(_DOORBELL_RETRY_S)
            finally:
                with contextlib.suppress(RedisError, OSError, TimeoutError):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _rung(self, is_alert: bool, ring: str) -> None:
        """One ring. What this node appends or records it hands to its phones itself, with the frame."""
        told, _, node_id = ring.rpartition(" ")
        if node_id == self.node_id:
            return
        if not is_alert:
            key, epoch, seq = told.rsplit(" ", 2)
            self.ring(key, epoch, int(seq))
        elif self.pools is not None:
            department, alert_seq = told.rsplit(" ", 1)
            self.pools.heard(department, int(alert_seq))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.settings.sweep_interval_s)
            try:
                await self.sweep()
                await self.recall()
            except SessionsUnavailable as error:
                log.warning("sweep_failed", error=error_name(error))
            if self._queue is not None:
                try:
                    metrics.JOBS_REAPED.inc(await self._queue.reap(epoch_ms(self.clock.now())))
                except QueueUnavailable as error:
                    log.warning("jobs_not_reaped", error=error_name(error))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self.tick()

    def tick(self) -> None:
        """Have every connection do what its time asks for."""
        now_ms = self.clock.monotonic_ms()
        for connection in tuple(self._connections):
            due_ms = connection.due_ms
            if due_ms is not None and due_ms <= now_ms:
                try:
                    connection.tick(now_ms)
                except Exception as error:  # one connection's fault is not the others'
                    log.error("connection_failed", connection_id=connection.connection_id, error=error_name(error))
                    connection.due_ms = None
                    connection.close_soon(CloseCode.RESTART)

    async def sweep(self) -> None:
        """One round: keep the sessions of this node's phones and runs, take over lapsed runs, heal lost rings.

        Sessions in which something is under way have a turn in each round, those that rest in every fifth.
        """
        working = self.runs.working
        self._turn = (self._turn + 1) % _TURNS
        all_at_once, self._may_have_missed = self._may_have_missed, False
        wanted = {
            (connection.key, connection.epoch)
            for connection in self._connections
            if connection.key and (all_at_once or connection.turn % _TURNS == self._turn or not connection.is_quiet)
        }
        sessions = sorted({(key, epoch) for key, epoch in wanted if key and epoch} | working.keys())
        if not sessions:
            return
        kept = await self.sessions.keep(
            sessions,
            owner=self.node_id,
            now_ms=epoch_ms(self.clock.now()),
            lease_ms=round(self.settings.run_lease_s * 1000),
            working=working,
            take_over=not self.draining,
        )
        for (key, epoch), found in kept.items():
            if found is None:
                for connection in self.phones_of(key):
                    if connection.epoch == epoch:
                        connection.close_soon(CloseCode.INSUFFICIENT_STATE)
                continue
            if found.epoch != epoch:
                # Redis continues another history; what its old primary took last may be missing in it.
                for connection in self.phones_of(key):
                    if connection.epoch == epoch:
                        connection.go_on(found.epoch, holds_to=found.holds_to)
            self.adopt(key, found.epoch, found.adopted)
            self.ring(key, found.epoch, found.seq)

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_S)
            memo.forget()
            # What holds itself in a ring is freed, and wiped, by the collector alone, which may not look for hours.
            gc.collect()

    async def recall(self) -> None:
        """Redis answers again and has the layers: whoever was let in for alerts alone is to come for their session.

        Each at a moment of their own within ``drain_spread_s``. Until then they hear of every alert, and what falls
        between is replayed.
        """
        waiting = [connection for connection in self._connections if connection.is_alerts_only]
        if not waiting or self.draining:
            return
        try:
            # Before the layers are there a session would be of little use, and loading them needs the processor.
            if not await self.store.is_loaded():
                return
        except StoreUnavailable:
            return
        self._away_until_ms = None
        for connection in waiting:
            connection.recall(random.uniform(0, self.settings.drain_spread_s))  # noqa: S311 - spreading, not secrecy

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_S)
            try:
                await self.expire()
            except (LedgerUnavailable, SessionsUnavailable) as error:
                log.warning("actions_not_expired", error=error_name(error))

    async def expire(self) -> None:
        """Let prepared actions run out and tell their sessions; a session that is gone needs no telling."""
        for key, update in await self.actions.expire(self.clock.now()):
            epoch = await self.sessions.epoch(key)
            if epoch is None:
                continue
            frame = msgspec.json.encode(update)
            with contextlib.suppress(SessionLost):
                seq, new, now = await self.sessions.append(key, epoch, f"action:{update.action_id}:expired", frame)
                if new:
                    self.ring(key, now, seq, frame)

    def adopt(self, key: str, epoch: str, runs: tuple[tuple[str, bytes], ...]) -> None:
        """Go on with runs whose node has stopped renewing their lease."""
        for response_id, request in runs:
            metrics.RUNS_ADOPTED.inc()
            log.info("run_adopted", response_id=response_id, node=self.node_id)
            self.runs.start(
                Run(
                    key=key,
                    epoch=epoch,
                    response_id=response_id,
                    request=msgspec.json.decode(request, type=Request),
                )
            )

    # --- the end ---

    async def drain(self) -> None:
        """Take nothing new, finish what runs, say goodbye to every phone at a moment of its own.

        Ends within ``drain_timeout_s``, or ``drain_spread_s`` and the time to close a phone that does not read,
        whichever is longer. A second call waits for nothing new.
        """
        if self.draining:
            return
        self.draining = True
        log.info("draining", connections=len(self._connections))
        spread_s = self.settings.drain_spread_s
        leaving = [
            asyncio.create_task(connection.leave(random.uniform(0, spread_s)))  # noqa: S311 - spreading, not secrecy
            for connection in tuple(self._connections)
        ]
        began_ms = self.clock.monotonic_ms()
        if leaving:
            await asyncio.wait(leaving, timeout=spread_s + _GONE_S)
        # Afterwards, because a question that was being accepted when the drain began starts its run only now.
        took_s = (self.clock.monotonic_ms() - began_ms) / 1000
        await self.runs.drain(max(0.0, self.settings.drain_timeout_s - took_s))
