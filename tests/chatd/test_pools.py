"""Alerts to a department's phones: in order, without a hole, the same bytes to all, and nobody waits for a slow one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from chatd.alerts.model import Recorded, Span
from chatd.gateway.outbox import Outbox
from chatd.gateway.pools import BATCH_BYTES, LANE_BYTES, PAGE, STALLED_MS, Event, Member, Pool, Pools, Variant
from chatd.gateway.transport import ws_frame
from chatd.ledger import LedgerUnavailable, Why
from chatd.tasks import end
from protocols.errors import CloseCode
from protocols.frames import AlertHolder, AlertTarget, AlertUpdate, Resume, SessionEnd, SystemNotification
from protocols.session import AlertPlan, Session, SessionRules, alert_plan

CARDIOLOGY = "cardiology"
APP, PUSH, PACKED, ORIGINAL = Variant(), Variant(push=True), Variant(msgpack=True), Variant(original=True)
VARIANTS = (APP, PUSH, PACKED, Variant(msgpack=True, push=True), ORIGINAL)


def recorded(alert_seq: int, *, content: str = "New STEMI patient", update: bool = False) -> Recorded:
    """An event as the ledger holds it."""
    frame: SystemNotification | AlertUpdate
    if update:
        frame = AlertUpdate(alert_id="a-1", state="delivering", event="receipts", alert_seq=alert_seq)
    else:
        frame = SystemNotification(
            priority="critical",
            content=content,
            department=CARDIOLOGY,
            requires_action=True,
            alert_id="a-1",
            alert_seq=alert_seq,
            patient_id="7823",
            dedup_key="stemi-7823",
            state="delivering",
            to=AlertTarget(department=CARDIOLOGY),
        )
    return Recorded(alert_seq=alert_seq, frame=msgspec.json.encode(frame))


class Clock:
    """Stands still."""

    ms = 0

    def now(self) -> datetime:
        return datetime(2026, 1, 15, 7, 45, tzinfo=UTC)

    def monotonic_ms(self) -> int:
        return self.ms


class Log:
    """A department's alert log, which can be away."""

    def __init__(self) -> None:
        self.events: list[Recorded] = []
        self.first_seq = 1
        self.reads: list[int] = []
        self.spans = 0
        self.is_away = False
        self.open: tuple[SystemNotification, ...] = ()

    def add(self, **options: bool | str) -> Recorded:
        self.events.append(recorded(len(self.events) + 1, **options))  # type: ignore[arg-type]
        return self.events[-1]

    def _check(self) -> None:
        if self.is_away:
            raise LedgerUnavailable(Why.TIMEOUT)

    async def since(self, department: str, after_seq: int, limit: int = 256) -> tuple[Recorded, ...]:
        await asyncio.sleep(0)
        self._check()
        self.reads.append(after_seq)
        found = [each for each in self.events if each.alert_seq > after_seq and each.alert_seq >= self.first_seq]
        return tuple(found[:limit])

    async def span(self, department: str) -> Span:
        last_seq = len(self.events)
        await asyncio.sleep(0)
        self._check()
        self.spans += 1
        return Span(first_seq=self.first_seq, last_seq=last_seq)

    async def open_alerts(self, department: str) -> tuple[SystemNotification, ...]:
        self._check()
        return self.open


class Wire:
    """A transport whose phone may stop reading, and the frames that have been written to it."""

    def __init__(self, written: list[bytes]) -> None:
        self.written = written
        self.writes = 0
        self.wrote = asyncio.Event()
        self.is_writable = True

    def write(self, data: bytes) -> None:
        assert self.is_writable
        assert len(data) <= BATCH_BYTES or len(list(frames_in(data))) == 1
        self.writes += 1
        self.wrote.set()
        self.written.extend(frames_in(data))


class Phone:
    """One connection below the gateway: real session and outbox, and a wire."""

    def __init__(self, pools: Pools, after: int, variant: Variant = APP, *, direct: bool = True) -> None:
        self.frames: list[bytes] = []
        self.closed: list[CloseCode] = []
        self.session = Session(compat=True, now_ms=0, rules=SessionRules())
        self.session.opened("e-1", 0, after)
        self.after = after
        self.outbox = Outbox(1_048_576)
        self.wire = Wire(self.frames)
        self.pools = pools
        self.member = Member(
            session=self.session,
            outbox=self.outbox,
            variant=variant,
            close_soon=self.closed.append,
            transport=self.wire if direct else None,  # type: ignore[arg-type]
            user_id="dr.santos.cardio",
        )
        pools.join(CARDIOLOGY, self.member)

    async def read(self) -> None:
        """Read whatever the outbox holds, as the connection's write loop does."""
        while self.outbox.has_alerts and self.wire.is_writable:
            frame = await self.outbox.take()
            assert isinstance(frame, bytes)
            self.frames.append(ws_frame(frame, binary=self.member.variant.msgpack))
            self.outbox.written()
        if not self.outbox.has_alerts:
            self.member.settle()

    def stop(self) -> None:
        """The phone does not read: the transport's buffer has filled."""
        self.wire.is_writable = False
        self.member.on_writable(False)

    def go_on(self) -> None:
        self.wire.is_writable = True
        self.member.on_writable(True)

    @property
    def seqs(self) -> list[int]:
        return [position(frame) for frame in self.frames]


def position(frame: bytes) -> int:
    """The alert_seq in a WebSocket frame."""
    payload = unframed(frame)
    fields = msgspec.msgpack.decode(payload) if frame[0] == 0x82 else msgspec.json.decode(payload)
    return int(fields["alert_seq"])


def frames_in(data: bytes) -> Iterator[bytes]:
    """The unmasked WebSocket frames that stand one behind the other, each whole."""
    while data:
        end = sum(_lengths(data))
        assert len(data) >= end
        yield data[:end]
        data = data[end:]


def _lengths(frame: bytes) -> tuple[int, int]:
    """Of the head and of the message of the first frame."""
    head = {126: 4, 127: 10}.get(frame[1], 2)
    return head, int.from_bytes(frame[2:head], "big") if head > 2 else frame[1]


def unframed(frame: bytes) -> bytes:
    """The message of an unmasked WebSocket frame."""
    head, length = _lengths(frame)
    assert len(frame) == head + length
    return frame[head:]


def pool_of(pools: Pools) -> Pool:
    pool = pools[CARDIOLOGY]
    assert pool is not None
    return pool


async def rounds(pools: Pools, *phones: Phone, count: int = 1) -> None:
    """Let the pools' task do its rounds, and the phones that read, read."""
    for _ in range(count):
        for _ in range(4):
            pool = pools[CARDIOLOGY]
            if pool is not None:
                with contextlib.suppress(LedgerUnavailable):
                    await pools.feed(pool)
            for phone in phones:
                await phone.read()


async def welcomed(pools: Pools, log: Log, *phones: Phone) -> None:
    for phone in phones:
        await pools.span(CARDIOLOGY)
        pools.place(phone.member)
    await rounds(pools, *phones)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def pools(log: Log) -> Pools:
    return Pools(log, Clock())


def test_ws_frame_is_as_the_rfc_says() -> None:
    """A message of any length is one whole unmasked frame, text or binary."""
    for size, head in (
        (5, b"\x81\x05"),
        (126, b"\x81\x7e\x00\x7e"),
        (70_000, b"\x81\x7f" + (70_000).to_bytes(8, "big")),
    ):
        assert ws_frame(b"x" * size) == head + b"x" * size
    assert ws_frame(b"x", binary=True) == b"\x82\x01x"


async def test_event_same_bytes_to_every_phone(pools: Pools, log: Log) -> None:
    """All phones of one kind are written the very same object, made once, with the ledger's bytes in it."""
    phones = [Phone(pools, 0) for _ in range(3)]
    await welcomed(pools, log, *phones)
    event = log.add()
    assert pools.fan_out(CARDIOLOGY, [event]) == 3
    assert phones[0].frames == [ws_frame(event.frame)]
    assert phones[0].frames[0] is phones[1].frames[0] is phones[2].frames[0]


def test_event_variants_hold_what_their_reader_may_see() -> None:
    """A push extension gets no patient's id, msgpack the same object, an original client whole notifications only."""
    event = Event(recorded(1))
    plain = msgspec.json.decode(event.payload(APP) or b"")
    assert plain["patient_id"] == "7823"
    assert msgspec.json.decode(event.payload(PUSH) or b"") == {**plain, "patient_id": None, "dedup_key": None}
    assert msgspec.msgpack.decode(event.payload(PACKED) or b"") == plain
    assert msgspec.msgpack.decode(event.payload(Variant(msgpack=True, push=True)) or b"") == {
        **plain,
        "patient_id": None,
        "dedup_key": None,
    }
    assert b"7823" not in (event.payload(PUSH) or b"7823")
    assert event.payload(ORIGINAL) == event.payload(APP)
    assert (event.frame(PACKED) or b"")[0] == 0x82
    assert Event(recorded(2, update=True)).payload(ORIGINAL) is None


def test_event_of_a_newer_gateway_is_passed_on() -> None:
    """What this version does not know goes to its phones as it is, without a patient's id where none may be."""
    event = Event(Recorded(alert_seq=3, frame=b'{"type":"alert_poem","alert_seq":3,"patient_id":"7823"}'))
    assert event.payload(APP) == b'{"type":"alert_poem","alert_seq":3,"patient_id":"7823"}'
    assert b"7823" not in (event.payload(PUSH) or b"7823")
    assert event.payload(ORIGINAL) is None


async def test_fan_out_update_moves_the_original_client_without_a_frame(pools: Pools, log: Log) -> None:
    """An original client gets no alert_update, and its next notification is no hole."""
    phone = Phone(pools, 0, ORIGINAL)
    await welcomed(pools, log, phone)
    pools.fan_out(CARDIOLOGY, [log.add(), log.add(update=True), log.add()])
    assert phone.seqs == [1, 3]
    assert phone.session.alert_seq == 3


async def test_fan_out_doubled_and_reordered_events_go_out_once_in_order(pools: Pools, log: Log) -> None:
    """The order of calls does not matter: a hole is read from the ledger, a repetition is nothing."""
    phone = Phone(pools, 0)
    await welcomed(pools, log, phone)
    one, two, three = log.add(), log.add(), log.add()
    pools.fan_out(CARDIOLOGY, [two])
    pools.fan_out(CARDIOLOGY, [one, one])
    pools.fan_out(CARDIOLOGY, [three, two])
    assert phone.seqs == [1, 2]
    await rounds(pools, phone)
    pools.fan_out(CARDIOLOGY, [three])
    assert phone.seqs == [1, 2, 3]


async def test_events_that_follow_each_other_leave_in_one_write(pools: Pools, log: Log) -> None:
    """Three events at once are one write for each phone, in order; what is longer than a write's bound is several."""
    phones = [Phone(pools, 0, variant) for variant in (APP, APP, VARIANTS[-1])]
    await welcomed(pools, log, *phones)
    pools.fan_out(CARDIOLOGY, [log.add() for _ in range(3)])
    assert [phone.wire.writes for phone in phones] == [1, 1, 1]
    pools.fan_out(CARDIOLOGY, [log.add(content="x" * 30_000) for _ in range(3)])
    assert [phone.wire.writes for phone in phones] == [3, 3, 3]
    assert all(phone.seqs == [1, 2, 3, 4, 5, 6] for phone in phones)


async def test_event_after_a_write_to_a_crowd_waits_for_the_next_ones(
    pools: Pools, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first event leaves at once; what comes right after it leaves soon, together, without anybody's doing."""
    monkeypatch.setattr("chatd.gateway.pools.CROWD", 2)
    phones = Phone(pools, 0), Phone(pools, 0)
    await welcomed(pools, log, *phones)
    pools.fan_out(CARDIOLOGY, [log.add()])
    assert [phone.seqs for phone in phones] == [[1], [1]]
    for _ in range(3):
        pools.fan_out(CARDIOLOGY, [log.add()])
    assert [phone.seqs for phone in phones] == [[1], [1]]
    phones[1].wire.wrote.clear()
    await asyncio.wait_for(phones[1].wire.wrote.wait(), 5)
    assert [phone.seqs for phone in phones] == [[1, 2, 3, 4]] * 2
    assert [phone.wire.writes for phone in phones] == [2, 2]


async def test_events_are_not_held_without_bound(pools: Pools, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of held events is handed on at once."""
    monkeypatch.setattr("chatd.gateway.pools.CROWD", 1)
    phone = Phone(pools, 0)
    await welcomed(pools, log, phone)
    for _ in range(PAGE + 1):
        pools.fan_out(CARDIOLOGY, [log.add()])
    assert phone.seqs == list(range(1, PAGE + 2))


async def test_heard_reads_what_another_node_recorded(pools: Pools, log: Log) -> None:
    """A ring makes one read for all phones; a ring of the past makes none."""
    phones = [Phone(pools, 0) for _ in range(5)]
    await welcomed(pools, log, *phones)
    log.add(), log.add()
    log.reads.clear()
    pools.heard(CARDIOLOGY, 2)
    await pools.feed(pool_of(pools))
    pools.heard(CARDIOLOGY, 1)
    await pools.feed(pool_of(pools))
    assert log.reads == [0]
    assert all(phone.seqs == [1, 2] for phone in phones)


async def test_sweep_finds_what_no_ring_told(pools: Pools, log: Log) -> None:
    """With every ring lost, the sweep reads on."""
    phone = Phone(pools, 0)
    await welcomed(pools, log, phone)
    log.add()
    pools.sweep(0)
    await rounds(pools, phone)
    assert phone.seqs == [1]


async def test_join_before_placing_misses_nothing(pools: Pools, log: Log) -> None:
    """Events between joining, the look at the ledger and the welcome's leaving come in order, once."""
    log.add()
    phone = Phone(pools, 1)
    reading = asyncio.create_task(pools.span(CARDIOLOGY))
    await asyncio.sleep(0)
    pools.fan_out(CARDIOLOGY, [log.add()])
    await reading
    pools.fan_out(CARDIOLOGY, [log.add()])
    assert phone.frames == []
    pools.place(phone.member)
    pools.fan_out(CARDIOLOGY, [log.add()])
    await rounds(pools, phone)
    pools.fan_out(CARDIOLOGY, [log.add()])
    assert phone.seqs == [2, 3, 4, 5]


async def test_resume_of_many_shares_reads(pools: Pools, log: Log) -> None:
    """Five hundred phones that stand at different places are served from a handful of reads."""
    for _ in range(3 * PAGE):
        log.add(content="x")
    phones = [Phone(pools, n % (2 * PAGE)) for n in range(500)]
    await asyncio.gather(*(pools.span(CARDIOLOGY) for _ in phones))
    for phone in phones:
        pools.place(phone.member)
    await rounds(pools, *phones, count=2)
    assert all(phone.seqs == list(range(phone.after + 1, 3 * PAGE + 1)) for phone in phones)
    assert log.spans <= 2
    assert len(log.reads) <= 8
    assert pool_of(pools).fast == 500


async def test_span_begins_after_it_was_asked(pools: Pools, log: Log) -> None:
    """A caller that comes while a read runs gets the next one's result, which is as new as the caller."""
    Phone(pools, 0)
    first = asyncio.create_task(pools.span(CARDIOLOGY))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    log.add()
    second = await pools.span(CARDIOLOGY)
    assert second is not None
    assert second.last_seq == 1
    await first


async def test_phone_that_knows_more_than_this_node_is_shown_no_older_list(pools: Pools, log: Log) -> None:
    """It came from another node, whose alert this one has not heard of, and begins anew: its snapshot holds it."""

    def notified(number: int) -> SystemNotification:
        return msgspec.json.decode(recorded(number).frame, type=SystemNotification)

    Phone(pools, 0)
    log.add()
    log.open = (notified(1),)
    assert await pools.span(CARDIOLOGY) == Span(first_seq=1, last_seq=1)
    assert await pools.open_alerts(CARDIOLOGY, at_least=1) == log.open
    log.add()
    log.open = (notified(1), notified(2))
    span = await pools.span(CARDIOLOGY, at_least=2)
    assert span == Span(first_seq=1, last_seq=2)
    assert pool_of(pools).head == 1
    assert await pools.open_alerts(CARDIOLOGY, at_least=span.last_seq) == log.open


async def test_open_alerts_read_before_the_log_went_back_are_not_kept(
    pools: Pools, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of the ledger that was lost is shown to nobody once its numbers are given anew."""
    Phone(pools, 0)
    log.add()
    await pools.span(CARDIOLOGY)
    waiting = asyncio.Event()

    async def slow(_department: str) -> tuple[SystemNotification, ...]:
        await waiting.wait()
        return ()

    with monkeypatch.context() as patch:
        patch.setattr(log, "open_alerts", slow)
        asking = asyncio.create_task(pools.open_alerts(CARDIOLOGY, at_least=1))
        await asyncio.sleep(0)
        pool_of(pools).went_back(0)
        waiting.set()
        assert await asking == ()
    assert pool_of(pools).open_at is None


async def test_read_that_was_ended_before_it_began_is_begun_anew(
    pools: Pools, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that reads for all was ended by a fault and begins anew: whoever asks after that is answered."""

    async def stuck(_department: str) -> Span:
        await asyncio.Event().wait()
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(log, "span", stuck)
        # The second read waits for the end of the first.
        asking = []
        for _ in range(2):
            asking.append(asyncio.create_task(pools.span(CARDIOLOGY)))
            await asyncio.sleep(0.01)
        await end(pools._reads)
        await asyncio.wait(asking)
    async with asyncio.timeout(20):
        assert await pools.span(CARDIOLOGY) == Span(first_seq=1, last_seq=0)


async def test_slow_phone_holds_up_nobody_and_loses_nothing(pools: Pools, log: Log) -> None:
    """A phone that stops reading gets the rest later, from its lane and from the ledger; others get all at once."""
    quick, slow = Phone(pools, 0), Phone(pools, 0)
    await welcomed(pools, log, quick, slow)
    pools.fan_out(CARDIOLOGY, [log.add()])
    slow.stop()
    for _ in range(300):
        pools.fan_out(CARDIOLOGY, [log.add(content="x" * 1000)])
    assert quick.seqs == list(range(1, 302))
    assert slow.seqs == [1]
    assert slow.outbox.waiting_bytes <= LANE_BYTES + 2000
    slow.go_on()
    await rounds(pools, quick, slow, count=3)
    assert slow.seqs == quick.seqs
    assert pool_of(pools).fast == 2
    assert not slow.closed


async def test_slow_phone_that_takes_nothing_is_closed(pools: Pools, log: Log) -> None:
    """Close 4002 once nothing of what waits was taken for the bound, and not before; one that reads a little stays."""
    slow, slower = Phone(pools, 0), Phone(pools, 0)
    await welcomed(pools, log, slow, slower)
    slow.stop()
    slower.stop()
    pools.fan_out(CARDIOLOGY, [log.add(), log.add(), log.add()])
    pools.sweep(0)
    pools.sweep(STALLED_MS - 1)
    assert not slow.closed
    assert isinstance(await slower.outbox.take(), bytes)
    slower.outbox.written()
    pools.sweep(STALLED_MS)
    assert slow.closed == [CloseCode.SLOW_CONSUMER]
    assert not slower.closed
    pools.sweep(2 * STALLED_MS)
    assert not slower.closed
    pools.sweep(3 * STALLED_MS)
    assert slower.closed == [CloseCode.SLOW_CONSUMER]


async def test_write_that_fills_the_buffer_counts_and_the_next_ones_wait(pools: Pools, log: Log) -> None:
    """The transport says within a write that it is full: that frame is in it, later ones go through the outbox."""
    phone, other = Phone(pools, 0), Phone(pools, 0)
    await welcomed(pools, log, phone, other)
    write = phone.wire.write

    def fill(frame: bytes) -> None:
        write(frame)
        phone.stop()

    phone.member.write = fill
    pools.fan_out(CARDIOLOGY, [log.add()])
    pools.fan_out(CARDIOLOGY, [log.add()])
    phone.member.write = write
    assert (phone.seqs, other.seqs, pool_of(pools).fast) == ([1], [1, 2], 1)
    phone.go_on()
    pools.fan_out(CARDIOLOGY, [log.add()])
    await phone.read()
    pools.fan_out(CARDIOLOGY, [log.add()])
    assert phone.seqs == other.seqs == [1, 2, 3, 4]
    assert pool_of(pools).fast == 2


async def test_phone_that_is_not_welcomed_is_never_written_to(pools: Pools, log: Log) -> None:
    """Placed too early, before its welcome has left, a phone is closed with an error; the others get the event."""
    good, early = Phone(pools, 0), Phone(pools, 0)
    early.session = early.member.session = Session(compat=False, now_ms=0, rules=SessionRules())
    await welcomed(pools, log, good, early)
    pools.fan_out(CARDIOLOGY, [log.add()])
    assert (good.seqs, early.seqs) == ([1], [])
    assert early.closed == [CloseCode.RESTART]


async def test_alert_meets_a_session_whose_end_was_asked_for(pools: Pools, log: Log) -> None:
    """While a session is being shredded an alert passes its phone by: it is no fault, and says nothing of a restart."""
    good, ending = Phone(pools, 0, direct=False), Phone(pools, 0, direct=False)
    await welcomed(pools, log, good, ending)
    ending.session.receive(SessionEnd(), 0)
    with capture_logs() as logged:
        pools.fan_out(CARDIOLOGY, [log.add()])
        await rounds(pools, good, ending)
    assert (good.seqs, ending.seqs) == ([1], [])
    assert ending.closed == []
    assert logged == []


async def test_alert_being_written_is_not_overtaken(pools: Pools, log: Log) -> None:
    """While the write loop holds an alert in its hands, the next one does not go past it."""
    phone = Phone(pools, 0)
    await welcomed(pools, log, phone)
    phone.stop()
    pools.fan_out(CARDIOLOGY, [log.add()])
    frame = await phone.outbox.take()
    assert isinstance(frame, bytes)
    phone.go_on()
    pools.fan_out(CARDIOLOGY, [log.add()])
    phone.frames.append(ws_frame(frame))
    phone.outbox.written()
    await phone.read()
    assert phone.seqs == [1, 2]


async def test_member_whose_write_raises_is_closed_alone(pools: Pools, log: Log) -> None:
    """A broken transport or a hole in one phone's counting ends that phone; the others get the event."""
    good, bad, wrong = Phone(pools, 0), Phone(pools, 0), Phone(pools, 0)
    await welcomed(pools, log, good, bad, wrong)

    def broken(_: bytes) -> None:
        raise RuntimeError("closed")

    bad.member.write = broken
    wrong.session.alert_seq = 7
    pools.fan_out(CARDIOLOGY, [log.add()])
    assert (good.seqs, bad.seqs, wrong.seqs) == ([1], [], [])
    assert bad.closed == wrong.closed == [CloseCode.RESTART]


async def test_phone_without_a_transport_gets_all_through_its_outbox(pools: Pools, log: Log) -> None:
    """On a server without the extension the same pool uses the outbox."""
    phone = Phone(pools, 0, direct=False)
    await welcomed(pools, log, phone)
    assert pools.fan_out(CARDIOLOGY, [log.add(), log.add()]) == 0
    await phone.read()
    assert phone.seqs == [1, 2]


async def test_phone_below_retention_begins_anew(pools: Pools, log: Log) -> None:
    """What the ledger has forgotten is no silent gap: the phone is closed with 4003 and told at its return."""
    for _ in range(5):
        log.add()
    log.first_seq = 4
    phone, near = Phone(pools, 1), Phone(pools, 3)
    await welcomed(pools, log, phone, near)
    assert phone.closed == [CloseCode.INSUFFICIENT_STATE]
    assert phone.frames == []
    assert near.seqs == [4, 5]


async def test_phone_ahead_of_its_ledger_begins_anew(pools: Pools, log: Log) -> None:
    """A phone that knows alerts which the ledger lost is not left to wait for numbers it would take for old ones."""
    log.is_away = True
    phone = Phone(pools, 9)
    assert await pools.span(CARDIOLOGY) is None
    pools.place(phone.member)
    await rounds(pools, phone)
    assert not phone.closed
    log.is_away = False
    log.add()
    await rounds(pools, phone)
    assert phone.closed == [CloseCode.INSUFFICIENT_STATE]


@pytest.mark.parametrize("told", ["sweep", "own", "own and more"])
async def test_log_that_lost_its_end_hides_no_new_event(pools: Pools, log: Log, told: str) -> None:
    """A standby that lagged takes the ledger's place: its new events bear old numbers and are not passed over."""
    for _ in range(5):
        log.add()
    phone = Phone(pools, 5)
    await welcomed(pools, log, phone)
    pools.fan_out(CARDIOLOGY, [log.add()])
    assert phone.seqs == [6]
    del log.events[3:]
    if told != "sweep":
        pools.fan_out(CARDIOLOGY, [log.add(content="Arrest, bay 2")])
    if told == "own and more":
        # The sweep alone would not see it: the log is as long as before.
        pools.fan_out(CARDIOLOGY, [log.add(content="Arrest, bay 3") for _ in range(4)])
    pools.sweep(0)
    await rounds(pools, phone)
    assert phone.closed == [CloseCode.INSUFFICIENT_STATE]
    again = Phone(pools, 3)
    await welcomed(pools, log, again)
    pools.fan_out(CARDIOLOGY, [log.add()])
    await rounds(pools, again)
    assert again.seqs == list(range(4, len(log.events) + 1))


async def test_event_that_cannot_be_read_is_a_gap_that_is_told(pools: Pools, log: Log) -> None:
    """Phones that lack it begin anew; what comes after it reaches them all."""
    log.add()
    phone = Phone(pools, 1)
    await welcomed(pools, log, phone)
    log.add()
    pools.fan_out(CARDIOLOGY, [log.add()])
    del log.events[1]
    await rounds(pools, phone)
    assert phone.closed == [CloseCode.INSUFFICIENT_STATE]
    again = Phone(pools, 3)
    await welcomed(pools, log, again)
    pools.fan_out(CARDIOLOGY, [recorded(4)])
    assert again.seqs == [4]


async def test_fault_of_one_department_ends_nothing(pools: Pools, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in a round is that round's matter: the next one is made."""
    phone = Phone(pools, 0)
    span, failed = log.span, asyncio.Event()

    async def fails(department: str) -> Span:
        failed.set()
        raise ValueError

    monkeypatch.setattr(log, "span", fails)
    pools.place(phone.member)
    task = asyncio.create_task(pools.run())
    try:
        await failed.wait()
        monkeypatch.setattr(log, "span", span)
        log.add()
        async with asyncio.timeout(20):
            while not phone.frames:
                pools.sweep(0)
                await phone.read()
                await asyncio.sleep(0)
    finally:
        await end([task])
    assert phone.seqs == [1]


async def test_ledger_away_at_welcome_then_replays(pools: Pools, log: Log) -> None:
    """A phone that knows where it stands gets what it lacks once the ledger answers."""
    log.add(), log.add()
    log.is_away = True
    phone = Phone(pools, 1)
    assert await pools.span(CARDIOLOGY) is None
    assert await pools.span(CARDIOLOGY) is None  # without asking again
    pools.place(phone.member)
    await rounds(pools, phone)
    log.is_away = False
    await rounds(pools, phone)
    assert phone.seqs == [2]


@pytest.mark.parametrize(("events", "codes"), [(0, []), (1, [CloseCode.INSUFFICIENT_STATE])])
async def test_stranger_begins_anew_where_there_was_anything(
    pools: Pools, log: Log, events: int, codes: list[CloseCode]
) -> None:
    """A phone that was let in without a position goes on only if there has never been an alert."""
    log.is_away = True
    phone = Phone(pools, 0)
    pools.place(phone.member, is_stranger=True)
    await rounds(pools, phone)
    log.is_away = False
    for _ in range(events):
        log.add()
    await rounds(pools, phone)
    assert phone.closed == codes
    pools.fan_out(CARDIOLOGY, [log.add()])
    assert phone.seqs == ([] if codes else [1])


async def test_stranger_of_the_original_design_gets_what_is_open(pools: Pools, log: Log) -> None:
    """It is not closed, since it might not come back: it gets the open alerts and goes on from the newest."""
    log.is_away = True
    phone = Phone(pools, 0, ORIGINAL)
    pools.place(phone.member, is_stranger=True)
    await rounds(pools, phone)
    log.is_away = False
    log.open = (msgspec.json.decode(log.add().frame, type=SystemNotification),)
    await rounds(pools, phone)
    pools.fan_out(CARDIOLOGY, [log.add()])
    assert phone.seqs == [1, 2]


async def test_leave_forgets_an_empty_department(pools: Pools, log: Log) -> None:
    """A phone that left gets nothing more, a second leave is nothing, and an empty pool is no more."""
    phone = Phone(pools, 0)
    await welcomed(pools, log, phone)
    pools.leave(phone.member)
    pools.leave(phone.member)
    assert pools[CARDIOLOGY] is None
    assert pools.fan_out(CARDIOLOGY, [log.add()]) == 0
    assert phone.frames == []


async def test_is_rung_while_an_alert_to_the_person_waits(pools: Pools, log: Log) -> None:
    """An alert to a person's department, role or name rings until they have answered or somebody has it."""
    phone = Phone(pools, 0)
    await welcomed(pools, log, phone)
    pool, member = pool_of(pools), phone.member
    raised = msgspec.json.decode(recorded(1).frame, type=SystemNotification)
    for to, is_to_it in (
        (AlertTarget(department=CARDIOLOGY), True),
        (AlertTarget(user="dr.santos.cardio"), True),
        (AlertTarget(user="dr.lima.cardio"), False),
        (AlertTarget(role="nurse"), False),
    ):
        pool.note(msgspec.structs.replace(raised, to=to))
        assert member.is_rung is is_to_it
        pool.note(AlertUpdate(alert_id="a-1", state="in_progress"))
        assert not member.is_rung
    pool.note(msgspec.structs.replace(raised, to=AlertTarget(role="nurse")))
    member.roles = ("nurse",)
    assert member.is_rung
    holder = AlertHolder(user_id="dr.santos.cardio", answer="decline", at="")
    pool.note(AlertUpdate(alert_id="a-1", state="delivering", who=(holder,)))
    assert not member.is_rung


async def test_run_feeds_and_ends(pools: Pools, log: Log) -> None:
    """The task serves rings by itself and ends when it is cancelled."""
    phone = Phone(pools, 0, direct=False)
    running = asyncio.create_task(pools.run())
    await pools.span(CARDIOLOGY)
    pools.place(phone.member)
    log.add()
    pools.heard(CARDIOLOGY, 1)
    async with asyncio.timeout(5):
        frame = await phone.outbox.take()
    assert frame == log.events[0].frame
    await end([running])


@pytest.mark.parametrize(
    ("client", "span", "expected"),
    [
        (None, (1, 7), AlertPlan(after=7, last_seq=7, gap_reason="first")),
        (Resume(), (1, 7), AlertPlan(after=7, last_seq=7, gap_reason="first")),
        (Resume(epoch="e"), (1, 7), AlertPlan(after=0, last_seq=7)),
        (Resume(epoch="e"), (1, 256), AlertPlan(after=0, last_seq=256)),
        (Resume(epoch="e"), (1, 257), AlertPlan(after=257, last_seq=257, gap_reason="too_far")),
        (Resume(epoch="e"), (2, 7), AlertPlan(after=7, last_seq=7, gap_reason="too_far")),
        (Resume(epoch="e", alert_seq=7), (8, 7), AlertPlan(after=7, last_seq=7)),
        (Resume(epoch="e", alert_seq=6), (8, 7), AlertPlan(after=7, last_seq=7, gap_reason="too_far")),
        (Resume(epoch="e", alert_seq=3), (4, 7), AlertPlan(after=3, last_seq=7)),
        (Resume(epoch="e", alert_seq=3), (5, 7), AlertPlan(after=7, last_seq=7, gap_reason="too_far")),
        (Resume(epoch="e", alert_seq=8), (1, 7), AlertPlan(after=7, last_seq=7, gap_reason="epoch_changed")),
        (Resume(alert_seq=5), (1, 7), AlertPlan(after=5, last_seq=7)),
    ],
)
def test_alert_plan(client: Resume | None, span: tuple[int, int], expected: AlertPlan) -> None:
    """A client goes on from where it stands if the ledger holds all that follows, else from the newest."""
    assert alert_plan(client, first_seq=span[0], last_seq=span[1]) == expected


steps = st.lists(
    st.one_of(
        st.tuples(st.just("raise"), st.sampled_from(["own", "held", "rung", "unrung", "late"]), st.booleans()),
        st.tuples(st.just("join"), st.integers(0, 5), st.integers(0, len(VARIANTS) - 1)),
        st.tuples(st.sampled_from(["stop", "go", "read", "leave"]), st.integers(0, 5)),
        st.tuples(st.sampled_from(["feed", "sweep", "away", "back"])),
    ),
    max_size=40,
)


def _indices(phones: list[Phone], number: int) -> Iterator[Phone]:
    if phones:
        yield phones[number % len(phones)]


@settings(max_examples=150, deadline=None)
@given(steps)
async def test_any_course_every_phone_gets_all_in_order(sequence: list[tuple[object, ...]]) -> None:
    """Whatever joins, leaves, stops, is raised here or elsewhere and is rung or not: no hole, no repetition, all."""
    log = Log()
    pools = Pools(log, Clock())
    phones: list[Phone] = []
    late: list[Recorded] = []
    for step in sequence:
        match step:
            case ("raise", how, bool(update)):
                event = log.add(update=update, content="x" * (1 if update else 30_000))
                if how == "own":
                    pools.fan_out(CARDIOLOGY, [event])
                elif how == "held" and (pool := pools[CARDIOLOGY]) is not None:
                    pool.hold([event])
                elif how == "rung":
                    pools.heard(CARDIOLOGY, event.alert_seq)
                elif how == "late":
                    late.append(event)
            case ("join", int(back), int(kind)):
                # Resumed a few events back; its span may not be had.
                phone = Phone(pools, max(0, len(log.events) - back), VARIANTS[kind], direct=back != 5)
                await pools.span(CARDIOLOGY)
                pools.place(phone.member)
                phones.append(phone)
            case ("stop", int(number)):
                for phone in _indices(phones, number):
                    phone.stop()
            case ("go", int(number)):
                for phone in _indices(phones, number):
                    phone.go_on()
            case ("read", int(number)):
                for phone in _indices(phones, number):
                    await phone.read()
            case ("leave", int(number)):
                for phone in _indices(phones, number):
                    pools.leave(phone.member)
                    phones.remove(phone)
            case ("sweep",):
                pools.sweep(0)
                pools.fan_out(CARDIOLOGY, late)
                if (pool := pools[CARDIOLOGY]) is not None:
                    pool.release()
            case ("away",):
                log.is_away = True
            case ("back",):
                log.is_away = False
            case _:
                await rounds(pools)
    log.is_away = False
    for phone in phones:
        phone.go_on()
    pools.sweep(0)
    await rounds(pools, *phones, count=len(log.events) + 1)
    for phone in phones:
        assert not phone.closed
        expected = [
            event.alert_seq
            for event in log.events[phone.after :]
            if not phone.member.variant.original or b"system_notification" in event.frame
        ]
        assert phone.seqs == expected
        assert phone.session.alert_seq == len(log.events)
