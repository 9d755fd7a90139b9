"""Alerts to all phones of a department: each event is encoded once and the same bytes are written to every phone.

A phone stands at its session's ``alert_seq`` and gets the events of its department's log in order, without a hole,
whatever the order in which they are heard of here. A phone that has everything and reads is written to directly.
One that does not read gets its events through its outbox, and behind a bound it waits until it has read and then
gets the rest from the ledger. One that reads nothing for ``STALLED_MS`` is closed with 4002 and resumes.

Nothing here waits for a phone. ``Pools.run`` is the only task; it alone reads the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import msgspec
import structlog

from chatd import metrics, tasks
from chatd.alerts.model import CLOSED, Recorded, Span
from chatd.clock import Clock
from chatd.gateway.outbox import Lane, Outbox, SlowConsumer
from chatd.gateway.transport import Transport, ws_frame
from chatd.ledger import LedgerUnavailable
from chatd.logs import error_name
from protocols import codec
from protocols.errors import CloseCode, LocalProtocolError, RemoteProtocolError
from protocols.frames import AlertTarget, AlertUpdate, SystemNotification
from protocols.session import Session, State

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Events of one read. Phones that resume are served from the same pages, wherever between them they stand.
PAGE: Final = 128
#: Pages that a department keeps for those who are behind, and events for those who have just missed some.
_PAGES: Final = 8
_RECENT: Final = 256
#: What a phone may leave unread in its alert lane before it has to take the rest from the ledger.
LANE_BYTES: Final = 131_072
#: A phone that takes nothing of what waits for it for this long does not read. Radio gaps last 2 to 6 s, and the
#: kernel holds much more than a gap's alerts before anything waits here.
STALLED_MS: Final = 8_000
#: What is written to a phone in one call, at most, beside a frame that is longer by itself: the transport's
#: high-water mark, so that whoever does not read is noticed as soon as with single frames.
BATCH_BYTES: Final = 65_536
#: The longest head of a frame that is not masked. Source: RFC 6455, section 5.2.
_HEAD_BYTES: Final = 10
#: Phones that are written to directly from which on events are held: writing to this many takes a millisecond or two.
CROWD: Final = 200
#: How long after writing to a crowd the next events are held, to leave together: the kernel's ``send`` is more than
#: half of what a delivered frame costs, and it costs the same for several frames. The first is never held.
HOLD_MS: Final = 5
#: A lost doorbell is noticed within this.
SWEEP_S: Final = 2.0
#: After the ledger did not answer, newcomers do not wait for it for this long: the sweep asks again anyway.
_AWAY_MS: Final = 1_000


class AlertSource(Protocol):
    """Where alerts come from; ``chatd.alerts.service.Alerts``. Each method may raise LedgerUnavailable."""

    async def since(self, department: str, after_seq: int, limit: int = ...) -> tuple[Recorded, ...]: ...

    async def span(self, department: str) -> Span: ...

    async def open_alerts(self, department: str) -> tuple[SystemNotification, ...]: ...


# --- one event, encoded for all -----------------------------------------------------------------------------


class Variant(msgspec.Struct, frozen=True):
    """What a connection reads. ``original``: a client of the original design, which gets notifications only.
    ``push``: without the patient's id."""

    msgpack: bool = False
    push: bool = False
    original: bool = False


_PLAIN: Final = Variant()


class Event:
    """One recorded event and its encodings, each made when the first phone needs it.

    ``frame`` is the WebSocket frame, ``payload`` the message in it; None: nothing is sent to this variant.
    """

    __slots__ = ("_frames", "_payloads", "alert_seq", "body", "tag")

    def __init__(self, recorded: Recorded) -> None:
        self.alert_seq = recorded.alert_seq
        #: None: a newer gateway's frame, which this one passes on without understanding it.
        self.body: SystemNotification | AlertUpdate | None = None
        with contextlib.suppress(RemoteProtocolError):
            body = codec.decode_server(recorded.frame)
            self.body = body if isinstance(body, SystemNotification | AlertUpdate) else None
        self.tag = "unknown" if self.body is None else str(self.body.__struct_config__.tag)
        self._payloads: dict[Variant, bytes | None] = {_PLAIN: recorded.frame}
        self._frames: dict[Variant, bytes | None] = {}

    def payload(self, variant: Variant) -> bytes | None:
        if variant not in self._payloads:
            self._payloads[variant] = self._encoded(variant)
        return self._payloads[variant]

    def frame(self, variant: Variant) -> bytes | None:
        if variant not in self._frames:
            payload = self.payload(variant)
            made = None if payload is None else ws_frame(payload, binary=variant.msgpack)
            self._frames[variant] = made
        return self._frames[variant]

    def _encoded(self, variant: Variant) -> bytes | None:
        if variant.original:
            return self._payloads[_PLAIN] if isinstance(self.body, SystemNotification) else None
        plain = cast(bytes, self._payloads[_PLAIN])
        if variant.push:
            fields = msgspec.json.decode(plain)
            # A dedup key may be made of the patient's number.
            named = [name for name in ("patient_id", "dedup_key") if fields.get(name) is not None]
            if named:
                plain = msgspec.json.encode({**fields, **dict.fromkeys(named)})
        return codec.json_to_msgpack(plain) if variant.msgpack else plain


# --- one phone ----------------------------------------------------------------------------------------------


class Member:
    """One connection as its department's pool sees it.

    ``session.alert_seq`` is where the phone stands. ``close_soon`` must not wait. ``user_id`` and ``roles`` say
    which alerts are to it.
    """

    __slots__ = (
        "close_soon",
        "is_placed",
        "is_stranger",
        "outbox",
        "pool",
        "roles",
        "session",
        "stalled_since_ms",
        "stalled_written",
        "transport",
        "user_id",
        "variant",
        "write",
    )

    def __init__(
        self,
        *,
        session: Session,
        outbox: Outbox,
        variant: Variant,
        close_soon: Callable[[CloseCode], None],
        transport: Transport | None = None,
        user_id: str = "",
        roles: Sequence[str] = (),
    ) -> None:
        self.session = session
        self.outbox = outbox
        self.variant = variant
        self.close_soon = close_soon
        self.transport = transport
        self.user_id = user_id
        self.roles = roles
        self.pool: Pool | None = None
        #: Its welcome has left: alerts may follow.
        self.is_placed = False
        #: It has no position, because the ledger could not be asked.
        self.is_stranger = False
        self.stalled_since_ms: int | None = None
        self.stalled_written = 0
        #: Bound once: this call is what one delivered frame costs here. Only for a member that is writable.
        self.write: Callable[[bytes], None] | None = None if transport is None else transport.write

    @property
    def is_writable(self) -> bool:
        """A frame may be written directly: nothing of the alerts waits before it, and the phone reads."""
        return self.transport is not None and self.transport.is_writable and not self.outbox.has_alerts

    def offer(self, event: Event) -> None:
        """Queue an event in the alert lane; the phone then stands at it.

        Raises:
            SlowConsumer: The outbox is full. LocalProtocolError: it is not the phone's next event.
        """
        self.session.alert_sent(event.alert_seq)
        payload = event.payload(self.variant)
        if payload is not None:
            self.outbox.offer(payload, Lane.ALERT)

    @property
    def is_rung(self) -> bool:
        """An alert to this person waits for an answer."""
        return self.pool is not None and self.pool.rings_for(self.user_id, self.roles)

    def settle(self) -> None:
        """Something that held it up may be over: its alerts have been written, or its buffer has drained."""
        if self.pool is not None:
            self.pool.settle(self)

    def on_writable(self, is_writable: bool) -> None:
        """The transport's hook."""
        if self.pool is not None:
            if is_writable:
                self.pool.settle(self)
            else:
                self.pool.paused(self)


# --- one department -----------------------------------------------------------------------------------------


class _Ringing:
    """Alerts that wait for an answer: to whom, and who has given one."""

    __slots__ = ("answered", "targets")

    def __init__(self) -> None:
        self.targets: list[AlertTarget | None] = []
        self.answered: frozenset[str] = frozenset()

    def is_to(self, user_id: str, roles: Sequence[str]) -> bool:
        return user_id not in self.answered and any(
            to is None or to.department is not None or to.user == user_id or to.role in roles for to in self.targets
        )


class Pool:
    """The phones of one department on this node.

    ``head`` is the newest event that has been handed out here; None until the ledger has said where it stands. A
    member is in exactly one of: ``_fast`` (stands at the head, is written to directly), ``_lane`` (stands at the
    head, gets events through its outbox), ``_behind`` (stands elsewhere, or may not be sent anything yet).
    """

    def __init__(self, department: str, wake: Callable[[], None]) -> None:
        self.department = department
        self.head: int | None = None
        self.rung = 0
        #: The oldest event that the ledger held at the last look.
        self.first_seq = 1
        #: The open alerts, read when the ledger had the number beside them.
        self.open_at: tuple[int, tuple[SystemNotification, ...]] | None = None
        self.must_check = True
        self._wake = wake
        self._fast: dict[Member, None] = {}
        self._lane: dict[Member, None] = {}
        self._behind: dict[Member, None] = {}
        #: Members of ``_fast`` by variant; None: to be made again.
        self._groups: dict[Variant, list[Member]] | None = None
        self._recent: deque[Event] = deque(maxlen=_RECENT)
        #: Committed, and to leave together with what comes until ``HOLD_MS`` after the last write to a crowd.
        self._held: list[Recorded] = []
        self.is_held = False
        self._pages: OrderedDict[int, tuple[Event, ...]] = OrderedDict()
        self._ringing: dict[str, _Ringing] = {}
        self.knows_open = False

    # --- who is here ---

    @property
    def is_empty(self) -> bool:
        return not (self._fast or self._lane or self._behind)

    @property
    def members(self) -> tuple[Member, ...]:
        return (*self._fast, *self._lane, *self._behind)

    @property
    def behind(self) -> tuple[Member, ...]:
        return tuple(self._behind)

    @property
    def fast(self) -> int:
        """How many are written to directly."""
        return len(self._fast)

    def join(self, member: Member) -> None:
        member.pool = self
        self._behind[member] = None

    def leave(self, member: Member) -> None:
        member.pool = None
        self._drop(member)

    def _drop(self, member: Member) -> None:
        if member in self._fast:
            del self._fast[member]
            self._groups = None
        self._lane.pop(member, None)
        self._behind.pop(member, None)

    def settle(self, member: Member) -> None:
        """Put a member where it belongs now."""
        if not member.is_placed or member.is_stranger or member in self._fast:
            return
        if member.session.alert_seq != self.head:
            if member in self._lane:
                self._drop(member)
                self._behind[member] = None
            self._wake()
        elif member.is_writable and member.session.is_welcomed:
            self._drop(member)
            self._fast[member] = None
            self._groups = None
        elif member not in self._lane and not member.outbox.has_alerts:
            self._drop(member)
            self._lane[member] = None

    def paused(self, member: Member) -> None:
        """Its transport takes no more, or is closing; what comes next goes through its outbox."""
        if member in self._fast:
            self._drop(member)
            self._lane[member] = None

    # --- what happens ---

    def learn(self, span: Span, *, head_before: int | None = None) -> None:
        """What the ledger's log holds, or held a moment ago.

        ``head_before``: the head when it was asked, where it was asked after that.
        """
        if head_before is not None and span.last_seq < head_before:
            self.went_back(span.last_seq)
        self.first_seq = max(self.first_seq, span.first_seq)
        if self.head is None:
            self.head = span.last_seq
            for member in self.behind:
                self.settle(member)
        self.heard(span.last_seq)

    def heard(self, alert_seq: int) -> None:
        """There is an event of this number; what is not known here is to be read."""
        self.rung = max(self.rung, alert_seq)
        if self.head is None or self.rung > self.head:
            self._wake()

    def deliver(self, events: Iterable[Recorded]) -> int:
        """Hand events on, in the order of their numbers; returns how many frames were written directly.

        One that has been handed out already is passed over. One that leaves a hole is read from the ledger together
        with what is missing before it. What follows each other leaves in one write for each phone.
        """
        written, fresh, waiting_bytes = 0, list[Event](), 0
        for recorded in events:
            if self.head is not None and recorded.alert_seq <= self.head and self._is_another(recorded):
                written += self._flush(fresh)
                fresh, waiting_bytes = [], 0
                self.went_back(recorded.alert_seq - 1)
            if self.head is None or recorded.alert_seq > self.head + 1:
                self.heard(recorded.alert_seq)
            elif recorded.alert_seq == self.head + 1:
                size_bytes = len(recorded.frame) + _HEAD_BYTES
                if waiting_bytes + size_bytes > BATCH_BYTES:
                    written += self._flush(fresh)
                    fresh, waiting_bytes = [], 0
                waiting_bytes += size_bytes
                fresh.append(self._take(Event(recorded)))
        return written + self._flush(fresh)

    def hold(self, events: Sequence[Recorded]) -> bool:
        """Keep events that another call will hand on (``release``); whether there is room for more."""
        self._held.extend(events)
        return len(self._held) < PAGE

    def release(self) -> int:
        """Hand on what was held; returns as ``deliver``."""
        held, self._held = self._held, []
        return self.deliver(held)

    def _is_another(self, recorded: Recorded) -> bool:
        """Whether an event of this number was handed out that says something else."""
        at = recorded.alert_seq - self._recent[0].alert_seq if self._recent else -1
        return at >= 0 and self._recent[at].payload(_PLAIN) != recorded.frame

    def went_back(self, alert_seq: int) -> None:
        """The log ends before what was handed out here: a copy of the ledger without its last events took its place.

        Its numbers are given anew, to other events. Whoever has the old ones begins anew, and nobody would take the
        new ones for what they have.
        """
        log.error("alerts_went_back", department=self.department, by=cast(int, self.head) - alert_seq)
        self.rung, self.open_at, self.knows_open = alert_seq, None, False
        self._pages.clear()
        self._ringing.clear()
        self.jump(alert_seq)

    def _take(self, event: Event) -> Event:
        """The event is the head now, and in the outboxes of those who get it from there; ``_flush`` does the rest."""
        self.head = event.alert_seq
        self._recent.append(event)
        if event.body is not None:
            self.note(event.body)
        for member in tuple(self._lane):
            self._offer(member, event)
        return event

    def _flush(self, events: Sequence[Event]) -> int:
        """Write events that follow each other, the last of them the head, to all who are written to directly."""
        if not events:
            return 0
        before, head, written = events[0].alert_seq - 1, events[-1].alert_seq, 0
        if self._groups is None:
            self._groups = {}
            for member in self._fast:
                self._groups.setdefault(member.variant, []).append(member)
        for variant, members in self._groups.items():
            frames = [(event.tag, frame) for event in events if (frame := event.frame(variant)) is not None]
            took = self._write(members, b"".join(frame for _, frame in frames), before, head)
            for tag, _ in frames:
                metrics.FRAMES_OUT.labels(tag).inc(took)
            written += took * len(frames)
        if self._behind:
            self._wake()  # somebody ahead of the head may have been reached
        return written

    def _write(self, members: list[Member], data: bytes, before: int, head: int) -> int:
        """Write whole frames to phones that stand at ``before``, and put them at ``head``; returns to how many.

        The innermost loop of the server: nothing is asked of a phone here. Whoever is in ``members`` has been
        welcomed and reads; its transport has it taken out as soon as that is not so (``paused``). What is the one to
        fill a phone's buffer is in the buffer all the same.
        """
        failed = 0
        for member in members:
            session = member.session
            try:
                if session.alert_seq != before:
                    raise LocalProtocolError(f"alert_seq {before + 1} after {session.alert_seq}")
                session.alert_seq = head
                if data:
                    member.write(data)  # type: ignore[misc]
            except (LocalProtocolError, RuntimeError, OSError) as error:
                failed += 1
                self._fail(member, error)
        return len(members) - failed

    def _offer(self, member: Member, event: Event) -> bool:
        """Through the outbox, or not now: then the member takes it from the ledger when it has read."""
        if member not in self._lane and member not in self._behind:
            return False
        if member.session.state is State.CLOSED:
            self.leave(member)  # its end has been asked for, and is under way
            return False
        if member.outbox.alert_bytes > LANE_BYTES:
            self._drop(member)
            self._behind[member] = None
            return False
        try:
            member.offer(event)
        except SlowConsumer as slow:
            self._too_slow(member, slow.waiting_bytes)
            return False
        except LocalProtocolError as error:
            self._fail(member, error)
            return False
        metrics.FRAMES_OUT.labels(event.tag).inc()
        return True

    def _too_slow(self, member: Member, waiting_bytes: int) -> None:
        metrics.SLOW_CONSUMERS.inc()
        log.warning("slow_consumer", waiting_bytes=waiting_bytes)
        self.leave(member)
        member.close_soon(CloseCode.SLOW_CONSUMER)

    def _fail(self, member: Member, error: Exception) -> None:
        """The one phone cannot go on; all others can."""
        log.error("connection_failed", error=error_name(error))
        self.leave(member)
        member.close_soon(CloseCode.RESTART)

    # --- those who are behind ---

    def known_after(self, alert_seq: int) -> tuple[Event, ...] | None:
        """The events after this one that are at hand; None: read their page. Never past the head."""
        if self.head is not None and self._recent and self._recent[0].alert_seq <= alert_seq + 1:
            skip = alert_seq + 1 - self._recent[0].alert_seq
            return tuple(self._recent)[skip : skip + PAGE]
        page = self._pages.get(alert_seq // PAGE)
        if page is None:
            return None
        self._pages.move_to_end(alert_seq // PAGE)
        found = tuple(each for each in page if alert_seq < each.alert_seq <= (self.head or 0))
        # The page was read before this event was there.
        return found or None

    def keep_page(self, number: int, recorded: Iterable[Recorded]) -> None:
        """Keep a page that was read: the events after ``number * PAGE``, at most ``PAGE``."""
        self._pages[number] = tuple(Event(each) for each in recorded)
        self._pages.move_to_end(number)
        while len(self._pages) > _PAGES:
            self._pages.popitem(last=False)

    def feed(self, member: Member, events: Sequence[Event]) -> None:
        """Give a member that is behind what comes next, as much as it may leave unread."""
        if not events or events[0].alert_seq != member.session.alert_seq + 1:
            self.dismiss(member)
            return
        for event in events:
            if not self._offer(member, event):
                return
        self.reached(member)

    def jump(self, alert_seq: int) -> None:
        """The log goes on behind a hole: retention has passed the head, and everybody here lacks something."""
        self.head = alert_seq
        self._recent.clear()
        for member in self.members:
            if member.is_placed:
                self.dismiss(member)

    def dismiss(self, member: Member) -> None:
        """What the member lacks is not to be had: it begins anew, and is told of the gap."""
        self.leave(member)
        member.close_soon(CloseCode.INSUFFICIENT_STATE)

    def reached(self, member: Member) -> None:
        """A member that was behind and may have reached the head."""
        if member in self._behind and member.session.alert_seq == self.head:
            self._drop(member)
            self._lane[member] = None
            self.settle(member)

    def check_stalled(self, now_ms: int) -> None:
        """Close those who take nothing of what waits for them."""
        for member in (*self._lane, *self._behind):
            written = member.outbox.alerts_written
            if not member.outbox.has_alerts or written != member.stalled_written:
                member.stalled_since_ms, member.stalled_written = None, written
            elif member.stalled_since_ms is None:
                member.stalled_since_ms = now_ms
            elif now_ms - member.stalled_since_ms >= STALLED_MS:
                self._too_slow(member, member.outbox.waiting_bytes)

    # --- who has to answer ---

    def note(self, body: SystemNotification | AlertUpdate) -> None:
        """Keep in mind which alerts wait for whose answer."""
        if body.state in CLOSED or body.state == "in_progress":
            self._ringing.pop(body.alert_id, None)
        elif isinstance(body, AlertUpdate):
            if body.alert_id in self._ringing:
                self._ringing[body.alert_id].answered = frozenset(holder.user_id for holder in body.who)
        elif body.requires_action:
            ringing = self._ringing.setdefault(body.alert_id, _Ringing())
            if body.to not in ringing.targets:
                ringing.targets.append(body.to)

    def rings_for(self, user_id: str, roles: Sequence[str]) -> bool:
        """Whether an alert to this person waits for an answer."""
        return any(each.is_to(user_id, roles) for each in self._ringing.values())


# --- all departments ----------------------------------------------------------------------------------------


class _Shared(Generic[T]):
    """One read for all who ask at the same time; each gets one that began after it asked. None: it failed."""

    def __init__(self, read: Callable[[], Awaitable[T]], running: set[asyncio.Task[Any]]) -> None:
        self._read = read
        self._all = running
        self._running: asyncio.Task[T | None] | None = None
        self._next: asyncio.Task[T | None] | None = None

    async def get(self) -> T | None:
        # One that was ended before it began, with the task that reads for all, would answer nobody any more.
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._after(self._running))
            self._all.add(self._next)
            self._next.add_done_callback(self._all.discard)
        return await asyncio.shield(self._next)

    async def _after(self, before: asyncio.Task[T | None] | None) -> T | None:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        try:
            return await self._read()
        except LedgerUnavailable as error:
            log.warning("alerts_not_read", error=error_name(error))
            return None


class Pools:
    """The phones of all departments on this node, and the one task that reads the ledger for them."""

    def __init__(self, alerts: AlertSource, clock: Clock) -> None:
        self._alerts = alerts
        self._clock = clock
        self._pools: dict[str, Pool] = {}
        self._work = asyncio.Event()
        self._reads: set[asyncio.Task[Any]] = set()
        self._spans: dict[str, _Shared[Span]] = {}
        self._open: dict[str, _Shared[tuple[SystemNotification, ...]]] = {}
        #: The last read failed; until then newcomers do not wait for another one.
        self._away_until_ms: int | None = None

    def __getitem__(self, department: str) -> Pool | None:
        return self._pools.get(department)

    def join(self, department: str, member: Member) -> Pool:
        """From here on no event passes this phone by; nothing is sent before ``place``."""
        pool = self._pools.get(department)
        if pool is None:
            pool = self._pools[department] = Pool(department, self._work.set)
            self._work.set()
        pool.join(member)
        return pool

    def place(self, member: Member, *, is_stranger: bool = False) -> None:
        """Its welcome has left: it gets what comes after its session's ``alert_seq``.

        Args:
            is_stranger: That position means nothing, because the ledger could not be asked. As soon as it can, the
                phone is closed with 4003 if there is anything that it might lack, and begins anew.
        """
        member.is_placed, member.is_stranger = True, is_stranger
        pool = member.pool
        if pool is None:
            return
        if not is_stranger and pool.head is not None and member.session.alert_seq > pool.head:
            pool.heard(member.session.alert_seq)
        pool.settle(member)
        self._work.set()

    def leave(self, member: Member) -> None:
        """Forget a phone; a second call changes nothing."""
        pool = member.pool
        if pool is None:
            return
        pool.leave(member)
        self._forget(pool)

    def _forget(self, pool: Pool) -> None:
        if pool.is_empty and self._pools.get(pool.department) is pool:
            del self._pools[pool.department]
            self._spans.pop(pool.department, None)
            self._open.pop(pool.department, None)

    # --- events ---

    def fan_out(self, department: str, recorded: Sequence[Recorded]) -> int:
        """Hand a department's new events to its phones here; never waits. Returns the number of frames written.

        Called for events that are committed. Known ones change nothing, and the order of the calls does not matter.
        Events that come within ``HOLD_MS`` of a write to a crowd leave together when that time is over.
        """
        pool = self._pools.get(department)
        if pool is None:
            return 0
        if pool.is_held:
            return 0 if pool.hold(recorded) else pool.release()
        written = pool.deliver(recorded)
        if written and pool.fast >= CROWD:
            self._hold(pool)
        return written

    def _hold(self, pool: Pool) -> None:
        pool.is_held = True
        asyncio.get_running_loop().call_later(HOLD_MS / 1000, self._release, pool)

    def _release(self, pool: Pool) -> None:
        pool.is_held = False
        if pool.release() and pool.fast >= CROWD:
            self._hold(pool)

    def heard(self, department: str, alert_seq: int) -> None:
        """The doorbell: another node has recorded an event."""
        pool = self._pools.get(department)
        if pool is not None:
            pool.heard(alert_seq)

    # --- what newcomers ask ---

    async def span(self, department: str, *, at_least: int = 0) -> Span | None:
        """What the department's log holds for one that has joined; None: the ledger does not answer.

        While this node knows the log, it is asked nothing: what the ledger has beyond the head comes after the head to
        this phone as to all others.

        Args:
            at_least: Where the phone says it stands; beyond the head, the ledger is asked after this was called.
        """
        if self._away_until_ms is not None and self._clock.monotonic_ms() < self._away_until_ms:
            return None
        known = self._pools.get(department)
        if known is not None and known.head is not None and at_least <= known.head and self._away_until_ms is None:
            return Span(first_seq=known.first_seq, last_seq=known.head)
        shared = self._spans.setdefault(department, _Shared(lambda: self._alerts.span(department), self._reads))
        span = await shared.get()
        self._answered(span is not None)
        pool = self._pools.get(department)
        if span is not None and pool is not None:
            pool.learn(span)
        return span

    async def open_alerts(self, department: str, *, at_least: int = 0) -> tuple[SystemNotification, ...] | None:
        """The alerts that are not closed, as new as the head and ``at_least``; None: the ledger does not answer.

        Args:
            at_least: A number that the ledger has told for this department. Beyond the head (``span`` asked, because
                the phone knew more than this node) what was read at the head lacks what came between.
        """
        pool = self._pools.get(department)
        head = None if pool is None else pool.head
        as_of = max(head or 0, at_least)
        if pool is not None and pool.open_at is not None and pool.open_at[0] == as_of:
            return pool.open_at[1]
        shared = self._open.setdefault(department, _Shared(lambda: self._alerts.open_alerts(department), self._reads))
        found = await shared.get()
        self._answered(found is not None)
        # Not where the log went back meanwhile: its numbers are given anew.
        if found is not None and pool is not None and head is not None and cast(int, pool.head) >= head:
            pool.open_at = as_of, found
        return found

    def _answered(self, has_answered: bool) -> None:
        self._away_until_ms = None if has_answered else self._clock.monotonic_ms() + _AWAY_MS

    # --- background ---

    async def run(self) -> None:
        """Read what is missing, for as long as the node lives; ends by cancellation."""
        sweeping = asyncio.create_task(self._sweep())
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                for pool in tuple(self._pools.values()):
                    try:
                        await self.feed(pool)
                    except LedgerUnavailable as error:
                        # The sweep tries again.
                        self._answered(False)
                        log.warning("alerts_not_read", error=error_name(error))
                    except Exception as error:  # one department's fault is not the others'
                        log.error("alerts_not_read", error=error_name(error))
        finally:
            await tasks.end([sweeping, *self._reads])

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep(self._clock.monotonic_ms())

    def sweep(self, now_ms: int) -> None:
        """Have every department's log looked at, and close the phones that take nothing."""
        for pool in tuple(self._pools.values()):
            pool.check_stalled(now_ms)
            pool.must_check = True
            self._forget(pool)
        self._work.set()

    async def feed(self, pool: Pool) -> None:
        """One round for one department: its log's new end, then those who are behind.

        Raises:
            LedgerUnavailable: What is at hand has been given to those who lack it.
        """
        ahead = self._ahead(pool)
        away: LedgerUnavailable | None = None
        try:
            await self._look(pool)
        except LedgerUnavailable as error:
            away = error
        for member in pool.behind:
            if not member.is_placed or member.pool is not pool or pool.head is None:
                continue
            if member.is_stranger:
                if away is None:
                    await self._introduce(pool, member)
            elif member.session.alert_seq >= pool.head:
                # The ledger was asked since the phone came: it lost what the phone knows, or it is another ledger.
                if away is None and member in ahead and member.session.alert_seq > pool.head:
                    pool.dismiss(member)
                pool.reached(member)
            elif not member.outbox.has_alerts:
                try:
                    await self._feed(pool, member)
                except LedgerUnavailable as error:
                    away = error
        if away is not None:
            raise away

    def _ahead(self, pool: Pool) -> set[Member]:
        """Phones that know of more than this node does; the ledger is to be asked for it."""
        found = {
            member
            for member in pool.behind
            if member.is_placed and not member.is_stranger and member.session.alert_seq > (pool.head or 0)
        }
        for member in found:
            pool.rung = max(pool.rung, member.session.alert_seq)
        return found

    async def _look(self, pool: Pool) -> None:
        """Read what has been recorded after the head, if there may be something."""
        if pool.head is None:
            pool.must_check = True
        if pool.must_check:
            pool.must_check = False
            head = pool.head
            pool.learn(await self._alerts.span(pool.department), head_before=head)
            self._answered(True)
        if not pool.knows_open:
            found_open = await self.open_alerts(pool.department)
            for notification in found_open or ():
                pool.note(notification)
            pool.knows_open = found_open is not None
        while pool.rung > cast(int, pool.head):
            wanted, head = pool.rung, cast(int, pool.head)
            found = await self._alerts.since(pool.department, head, PAGE)
            self._answered(True)
            pool.deliver(found)
            if pool.head == head and found:
                pool.jump(found[-1].alert_seq)
            elif not found and pool.rung == wanted:
                # What was rung for is not there, nor was anything recorded meanwhile.
                pool.rung = cast(int, pool.head)
            await asyncio.sleep(0)

    async def _introduce(self, pool: Pool, member: Member) -> None:
        """The ledger answers again: a phone without a position has missed nothing, or begins anew.

        One of the original design might not come back. It has no position to lose, and gets what is open now.
        """
        if member.variant.original:
            member.session.alerts_from(cast(int, pool.head))
            found = await self._alerts.open_alerts(pool.department)
            for notification in found if member.pool is pool else ():
                member.outbox.offer(codec.encode(notification), Lane.ALERT)
        elif not pool.head == member.session.alert_seq == 0:
            pool.dismiss(member)
            return
        member.is_stranger = False
        pool.reached(member)

    async def _feed(self, pool: Pool, member: Member) -> None:
        """Give one phone that is behind the next events, from memory or from their page of the ledger."""
        after = member.session.alert_seq
        events = pool.known_after(after)
        if events is None:
            number = after // PAGE
            pool.keep_page(number, await self._alerts.since(pool.department, number * PAGE, PAGE))
            events = pool.known_after(after)
        if member.pool is pool and member.session.alert_seq == after:
            pool.feed(member, events or ())
        if member.pool is pool and not member.outbox.has_alerts:
            self._work.set()
        # Others have a turn between two phones.
        await asyncio.sleep(0)
