"""Alerts: the rules, the ledger and presence brought together. One command or timer is one transaction.

An alert is in the ledger before anybody hears of it, and every change of it too: its frames are stored with their
``alert_seq`` in the same transaction and handed to ``on_recorded`` after the commit. What is handed over late, twice or
never does no harm: phones are healed from the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar

import msgspec
import structlog

from chatd import metrics, tasks
from chatd.alerts import board, reach
from chatd.alerts.model import (
    RECEIPTS,
    Alert,
    Answer,
    Change,
    Happened,
    Raise,
    Raised,
    Recorded,
    Response,
    Seen,
    Span,
    Timer,
    View,
)
from chatd.alerts.permissions import may_answer
from chatd.alerts.policies import Policies, Policy
from chatd.alerts.presence import Presence, PresenceUnavailable, Present
from chatd.clock import STEP, Clock, SteadyClock
from chatd.ledger import Ledger, LedgerUnavailable, Transaction, alert_rows
from chatd.ledger.day_keys import DayKeys
from chatd.logs import error_name
from context.seal import SealError
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import Reach, SystemNotification

log = structlog.get_logger(__name__)

#: Due timers are looked for this often; a step is taken at most this late.
SWEEP_S: Final = 1.0
#: Timers taken in one round, each in a transaction of its own: answers wait between them, not behind all.
SWEEP_ALERTS: Final = 64
#: A step that a refusal has made due at once is taken after this.
_AT_ONCE_S: Final = 0.005
#: Alerts that could not be dealt with, in one round; the next round goes on behind them.
MAX_FAILED: Final = 64
#: So long they are passed over, so that hundreds of them, as of a day whose key is lost, hold up no other.
PASSED_OVER_MS: Final = 10_000
#: Receipts are gathered for this long, and one alert's are written once in the other at most.
GATHER_MS: Final = 250
RECEIPTS_EVERY_MS: Final = 1_000
#: Receipts that wait: every phone of a large hospital for dozens of alerts. What is beyond is dropped and counted; the
#: alert rings on, and nobody is told that a phone has it.
MAX_RECEIPTS: Final = 100_000
RETIRE_EVERY_S: Final = 3_600.0
#: The ledger's clock is read this often.
HEAR_EVERY_MS: Final = 10_000
#: Open alerts of a department in a snapshot; a ward with more has other worries, and the ledger has them all.
MAX_OPEN: Final = 200
#: Departments whose open alerts are kept; the one that was read longest ago is forgotten.
MAX_OPEN_KEPT: Final = 32
#: A machine speaks for many patients: so many times a person's raises a minute.
SERVICE_TIMES: Final = 10
#: Raisers whose raises of the last minute are counted; the one that has been quiet longest is forgotten.
MAX_RAISERS: Final = 10_000
#: Answers of delegates that Redis has not taken yet.
MAX_COVERS: Final = 1_000

KEY_USED: Final = "client_msg_id: used for another command"
UNKNOWN_ALERT: Final = "alert_id: unknown"
DAMAGED_ALERT: Final = "alert_id: cannot be read"

T = TypeVar("T")

OnRecorded = Callable[[str, tuple[Recorded, ...]], None]
#: Called within the transaction, last.
OnRecord = Callable[[Transaction, Alert, Sequence[Happened]], None]

_encode = msgspec.json.Encoder(order="deterministic").encode


class Raising:
    """An alert that is ready for a transaction: its own, or that of the action which raises it.

    ``commit`` runs in the transaction; ``Alerts.committed`` is to be called when that is on disk.
    """

    def __init__(
        self,
        alerts: Alerts,
        command: Raise,
        now: datetime,
        policy: Policy,
        present: Present,
        *,
        may_be_storm: bool = False,
    ) -> None:
        self.command = command
        self._may_be_storm = may_be_storm
        self.outcome: _Outcome | None = None
        self._alerts = alerts
        self._now = now
        self._policy = policy
        self._present = present

    def commit(self, tx: Transaction) -> Raised:
        """Record the alert in ``tx``; the same key again finds the first one and changes nothing.

        Raises:
            RemoteProtocolError: bad_request for a known key with another body; role_unassigned where it is known that
                nobody holds the role now. Where presence is not known, the alert goes out all the same.
        """
        alerts, command, now, present = self._alerts, self.command, self._now, self._present
        mac = alerts.mac("raise", _encode(msgspec.structs.replace(command, key="", raised_by="")))
        known = alert_rows.remembered(tx, command.raised_by, command.key)
        if known is not None:
            if known.body_mac != mac:
                raise RemoteProtocolError(ErrorCode.BAD_REQUEST, KEY_USED)
            first = alert_rows.read(tx, alerts.keys, known.alert_id)
            told = Reach() if first is None else first.reach
            return Raised(alert_id=known.alert_id, alert_seq=known.alert_seq, reach=told, is_duplicate=True)
        found = alerts.resolver.resolve_or_refuse(
            command.to, present.records, is_whole=present.is_whole, raised_by=command.raised_by
        )
        like = self._like(tx)
        if like is None:
            alert_id = f"al-{secrets.token_hex(12)}"
            change = board.raise_(
                command, alert_id=alert_id, policy=self._policy, people=found.people, delegates=found.delegates, now=now
            )
        else:
            change = board.join(like, command, self._policy, now)
        change = msgspec.structs.replace(change, alert=msgspec.structs.replace(change.alert, reach=found.reach))
        self.outcome = alerts.record(tx, change, is_new=like is None)
        alert_seq = self.outcome.recorded[0].alert_seq
        alert_rows.remember(tx, command.raised_by, command.key, mac, change.alert.alert_id, alert_seq)
        return Raised(alert_id=change.alert.alert_id, alert_seq=alert_seq, reach=found.reach)

    def _like(self, tx: Transaction) -> Alert | None:
        """An open alert that this one is to be joined to, held: the same one again, or one of a storm."""
        alerts, command, policy, now = self._alerts, self.command, self._policy, self._now
        keys, department = alerts.keys, command.department
        if command.dedup_key is not None:
            not_before = now - timedelta(seconds=policy.dedup_within_s)
            mac = keys.dedup_mac(department, command.dedup_key)
            try:
                same = alert_rows.by_dedup(tx, keys, department, mac, not_before)
            except (SealError, msgspec.MsgspecError):
                same = None  # the sweep tells of it; what cannot be read must not keep a new one from being raised
            if same is not None and board.is_repetition(same, command, policy, now):
                return same
        if not self._may_be_storm or command.hand_to is not None:
            return None
        found = alert_rows.open_alerts(tx, keys, department, MAX_OPEN, who="nobody", damaged=[])
        target = board.storm_target(found, command, policy, now)
        held = None if target is None else alert_rows.lock(tx, keys, target.alert_id)
        return held if held is not None and board.may_join(held, command, now) else None


class Alerts:
    """Commands, receipts and timers of alerts. Holds no alert: any gateway answers for any other.

    ``on_recorded`` is set by the gateway: it hands a department's frames to its phones and rings the others' doorbell.
    ``now`` of every method is ``now()`` except in tests.
    """

    def __init__(
        self,
        ledger: Ledger,
        keys: DayKeys,
        policies: Policies,
        presence: Presence,
        *,
        clock: Clock,
        mac_key: bytes,
        node_id: str,
        retention_days: int = 30,
        raises_per_minute: int = 120,
    ) -> None:
        """``mac_key``: 32 bytes, the same on every gateway (``Sealer.derive``)."""
        self.keys = keys
        self.policies = policies
        self.presence = presence
        self.node_id = node_id
        self.steady = SteadyClock(clock)
        self.resolver = reach.Resolver()
        self.on_recorded: OnRecorded = _nobody
        #: The audit's rows of a change, in the change's own transaction.
        self.on_record: OnRecord = _no_rows
        #: Whether there is such a department; None: that cannot be asked now, and the alert goes out.
        self.is_department: Callable[[str], Awaitable[bool | None]] = _unknown
        self._ledger = ledger
        self._clock = clock
        self._mac_key = mac_key
        self._retention_days = retention_days
        self._raises_per_minute = raises_per_minute
        self._raises: OrderedDict[str, deque[int]] = OrderedDict()
        self._receipts = _Receipts()
        self._has_receipts = asyncio.Event()
        self._is_due = asyncio.Event()
        self._covers: dict[tuple[str, str], bool] = {}
        self._has_covers = asyncio.Event()
        self._open: OrderedDict[str, _Open] = OrderedDict()
        #: Alerts that could not be dealt with, and until when they are passed over.
        self._failed: dict[str, int] = {}

    def now(self) -> datetime:
        """The time by which alerts are raised, answered and escalated."""
        return self.steady.now()

    # --- raising ---

    async def raise_(self, command: Raise, now: datetime) -> Raised:
        """Raise an alert; when this returns, it is in the ledger. The same key again gives the same answer.

        Who may raise is the caller's to check (``permissions``).

        Raises:
            RemoteProtocolError: bad_request (a known key with another body, an unknown policy), role_unassigned,
                rate_limited.
            LedgerUnavailable: nothing is promised; sent again under the same key it is found, if it was committed.
        """
        self._count(command.raised_by)
        began_ms = self._clock.monotonic_ms()
        raising = await self.prepare(command, now)
        raised = await self._ledger.transact(raising.commit)
        metrics.ALERT_SECONDS.observe((self._clock.monotonic_ms() - began_ms) / 1000)
        self.committed(raising)
        return raised

    async def prepare(self, command: Raise, now: datetime) -> Raising:
        """What a transaction needs to raise ``command``: ``Raising.commit`` in it, ``committed`` after it.

        Takes a quarter of a second at most. Raises RemoteProtocolError: bad_request for an unknown policy.
        """
        policy = self.policies.choose(command.department, command.priority, command.policy)
        if await self.is_department(command.department) is False:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "to: no such department")
        present = await self.presence.lately(command.department, self._clock.monotonic_ms())
        if not self.resolver.resolve(
            command.to, present.records, is_whole=present.is_whole, raised_by=command.raised_by
        ).people:
            # Nobody is refused by what was true a second ago.
            present = await self.presence.of(command.department)
        # Opening a ward's alerts costs; only a raiser who is quick on this gateway makes it worth a look.
        lately = len(self._raises.get(command.raised_by, ()))
        return Raising(self, command, now, policy, present, may_be_storm=lately > board.STORM_ALERTS)

    def committed(self, raising: Raising) -> None:
        """The transaction that ``raising.commit`` ran in is on disk: tell the phones."""
        if raising.outcome is not None:
            if raising.outcome.is_new:
                metrics.ALERTS.labels(raising.command.priority).inc()
            self._tell(raising.outcome)

    def _count(self, raised_by: str) -> None:
        """Bound what one raiser can do to a ward; a person never meets it, a script in a loop does."""
        limit = self._raises_per_minute * (SERVICE_TIMES if raised_by.startswith("service:") else 1)
        now_ms = self._clock.monotonic_ms()
        times = self._raises.setdefault(raised_by, deque())
        self._raises.move_to_end(raised_by)
        while len(self._raises) > MAX_RAISERS:
            self._raises.popitem(last=False)
        while times and times[0] <= now_ms - 60_000:
            times.popleft()
        if len(times) >= limit:
            raise RemoteProtocolError(ErrorCode.RATE_LIMITED, retry_after_ms=times[0] + 60_000 - now_ms)
        times.append(now_ms)

    # --- answering ---

    async def respond(self, response: Response, now: datetime) -> bool:
        """Take one person's answer; when this returns True it is in the ledger, and all phones hear of the change.

        Receipts are gathered (``receipt``). The same key again changes nothing: False.

        Raises:
            RemoteProtocolError: bad_request for an alert that is unknown or cannot be read, or a known key with another
                body; alert_closed,
                forbidden and others by the board's rules.
            LedgerUnavailable: nothing is promised; it may be sent again.
        """
        if response.answer in RECEIPTS:
            self.receipt(response)
            return True
        if response.answer == "hand_over":
            await self.require_colleague(response.department, response.colleague)
        body = msgspec.structs.replace(response, key="", user_id="", roles=(), department="")
        mac = self.mac("respond", _encode(body))

        def work(tx: Transaction) -> _Outcome | None:
            known = alert_rows.remembered(tx, response.user_id, response.key)
            if known is not None:
                if known.body_mac != mac:
                    raise RemoteProtocolError(ErrorCode.BAD_REQUEST, KEY_USED)
                return None
            alert = alert_rows.lock(tx, self.keys, response.alert_id)
            if alert is None or not _concerns(alert, response):
                raise RemoteProtocolError(ErrorCode.BAD_REQUEST, UNKNOWN_ALERT)
            change = board.respond(alert, _at_home(response, alert), self.policies.of(alert), now)
            outcome = self.record(tx, change)
            last = outcome.recorded[-1].alert_seq if outcome.recorded else 0
            alert_rows.remember(tx, response.user_id, response.key, mac, response.alert_id, last)
            return outcome

        try:
            outcome = await self._ledger.transact(work)
        except SealError as error:
            # Raised further, it would close the phone, which comes back with the same answer for ever.
            log.error("alert_not_advanced", alert_id=response.alert_id, error=error_name(error))
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, DAMAGED_ALERT) from None
        if outcome is not None:
            self._tell(outcome)
        if response.answer in ("accept", "decline"):
            self._note_cover(response.alert_id, response.user_id, accepts=response.answer == "accept")
        return outcome is not None

    async def colleagues(self, department: str) -> Present:
        """Who may be asked to take an alert over: who was here within the last shift and may answer alerts."""
        return _colleagues(await self.presence.lately(department, self._clock.monotonic_ms()))

    async def require_colleague(self, department: str, user_id: str | None) -> None:
        """Whom nobody here knows cannot accept. Raises RemoteProtocolError: bad_request.

        Where presence is not known, the offer goes out all the same: until it is accepted nothing has changed.
        """
        if user_id is not None:
            present = await self.colleagues(department)
            if not _may_be(present, user_id):
                # Nobody is refused by what was true a second ago.
                present = _colleagues(await self.presence.of(department))
            if _may_be(present, user_id):
                return
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "colleague: not of this department, or not here today")

    def receipt(self, response: Response) -> None:
        """A phone has received or shown an alert. Gathered here and written by ``run`` within a second or so."""
        now = self.now()
        seen = Seen(delivered_at=now, displayed_at=now if response.answer == "displayed" else None)
        self._keep_receipt(_Heard(response=response, seen=seen))

    def _keep_receipt(self, heard: _Heard) -> None:
        if self._receipts.add(heard, self._clock.monotonic_ms()):
            self._has_receipts.set()
        else:
            metrics.ALERT_RECEIPTS_DROPPED.inc()

    async def flush(self, now: datetime | None = None) -> None:
        """Write every receipt that waits: when the gateway ends, and in tests."""
        await self._write_receipts(self._receipts.take_all(), now or self.now())

    # --- reading ---

    async def since(self, department: str, after_seq: int, limit: int = 256) -> tuple[Recorded, ...]:
        """At most ``limit`` frames of the department's log after ``after_seq``, in order, without holes.

        They begin later where the log does, and leave out what cannot be read: the caller has to tell the gap.

        Raises:
            LedgerUnavailable: The ledger does not answer.
        """
        while True:
            damaged: list[int] = []
            found = await self._ledger.read(
                partial(
                    alert_rows.since,
                    keys=self.keys,
                    department=department,
                    after_seq=after_seq,
                    limit=limit,
                    damaged=damaged,
                )
            )
            if damaged:
                log.error("alerts_damaged", department=department, first_seq=damaged[0], count=len(damaged))
            if found or not damaged:
                return found
            after_seq = damaged[-1]

    async def span(self, department: str) -> Span:
        """What the department's log holds. Raises LedgerUnavailable."""
        return await self._ledger.read(lambda tx: alert_rows.span(tx, department))

    async def open_alerts(self, department: str) -> tuple[SystemNotification, ...]:
        """What is not closed, most urgent first, at most 200: as their last frames would say it, without a number.

        What was read before is given again while the department's log has no newer event, whichever gateway writes
        it: phones that come back at once cost one row each.

        Raises:
            LedgerUnavailable: The ledger does not answer.
        """
        kept = self._open.get(department)
        damaged: list[str] = []

        def work(tx: Transaction) -> _Open:
            # The number first: what is read after it is as new as it, or newer.
            last_seq = alert_rows.span(tx, department).last_seq
            if kept is not None and kept.last_seq == last_seq:
                return kept
            # Who has a receipt and no answer is told by no notification.
            found = alert_rows.open_alerts(tx, self.keys, department, MAX_OPEN, who="answered", damaged=damaged)
            return _Open(last_seq=last_seq, alerts=tuple(self._notification(alert) for alert in found))

        found = await self._ledger.read(work)
        for alert_id in damaged:
            log.error("alert_not_advanced", alert_id=alert_id, error=SealError.__name__)
        if found is not kept:
            self._open[department] = found
            self._open.move_to_end(department)
            while len(self._open) > MAX_OPEN_KEPT:
                self._open.popitem(last=False)
        return found.alerts

    async def view(self, alert_id: str) -> View | None:
        """Who has an alert, and who of its department can be reached now; None if there is none.

        Raises:
            LedgerUnavailable: The ledger does not answer.
        """
        alert = await self._ledger.read(lambda tx: alert_rows.read(tx, self.keys, alert_id))
        if alert is None:
            return None
        present = await self.presence.lately(alert.department, self._clock.monotonic_ms())
        return View(
            notification=self._notification(alert),
            state=alert.state,
            people=alert.people,
            reach=self.resolver.resolve(
                alert.to, present.records, is_whole=present.is_whole, raised_by=alert.raised_by
            ).reach,
        )

    def _notification(self, alert: Alert) -> SystemNotification:
        happened = Happened(event="raised", at=alert.updated_at, by=alert.raised_by)
        return board.notification(alert, happened, 0, self.policies.of(alert))

    # --- the ledger ---

    def mac(self, what: str, body: bytes) -> str:
        """Tells one command from another under the same key, and shows nothing of either."""
        return hmac.new(self._mac_key, f"chatd alert {what} 1\n".encode() + body, hashlib.sha256).hexdigest()

    def record(self, tx: Transaction, change: Change, *, is_new: bool = False) -> _Outcome:
        """Write a change: how the alert stands, its timers, and its events under the department's next numbers."""
        alert, policy = change.alert, self.policies.of(change.alert)
        if is_new:
            alert_rows.insert(tx, self.keys, alert)
        else:
            alert_rows.store(tx, self.keys, alert)
        alert_rows.set_timers(tx, alert.alert_id, change.timers)

        def maker(happened: Happened) -> Callable[[int], bytes]:
            return lambda seq: msgspec.json.encode(board.frame(alert, happened, seq, policy))

        events = [(happened, maker(happened)) for happened in change.events]
        recorded = alert_rows.append(tx, self.keys, alert.department, alert.alert_id, events)
        self.on_record(tx, alert, change.events)
        return _Outcome(alert=alert, events=change.events, recorded=recorded, timers=change.timers, is_new=is_new)

    def _tell(self, outcome: _Outcome) -> None:
        """After the commit: count, log, and hand the frames to the phones."""
        alert = outcome.alert
        for happened, recorded in zip(outcome.events, outcome.recorded, strict=True):
            metrics.ALERT_EVENTS.labels(happened.event).inc()
            log.info(
                "alert",
                happened=happened.event,
                alert_id=alert.alert_id,
                alert_seq=recorded.alert_seq,
                department=alert.department,
                priority=alert.priority,
                state=alert.state,
                step=alert.step,
                is_drill=alert.is_drill,
            )
        soon = self.now() + timedelta(seconds=_AT_ONCE_S)
        if any(timer.due_at <= soon for timer in outcome.timers):
            self._is_due.set()
        if outcome.recorded:
            self.on_recorded(alert.department, outcome.recorded)

    # --- background ---

    async def run(self) -> None:
        """Timers, receipts, delegates and retention until cancelled. None of them ends at a ledger that is away."""
        loops = [
            asyncio.create_task(self._keep_time()),
            asyncio.create_task(self._keep_receipts()),
            asyncio.create_task(self._keep_covers()),
            asyncio.create_task(self._keep_retention()),
        ]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for loop in done:
                loop.result()
        finally:
            await tasks.end(loops)

    async def _keep_time(self) -> None:
        heard_ms: int | None = None
        while True:
            metrics.ALERT_CLOCK_STEPPED.set(self.steady.is_stepped)
            # Cleared before the sweep: what becomes due while it runs must not wait for the next one.
            self._is_due.clear()
            try:
                if heard_ms is None or self._clock.monotonic_ms() - heard_ms >= HEAR_EVERY_MS:
                    # Before the first sweep: a gateway whose clock is wrong takes no step by it.
                    await self.hear()
                    heard_ms = self._clock.monotonic_ms()
                await self.sweep(self.now())
            except LedgerUnavailable as error:
                log.warning("alerts_not_swept", error=error_name(error))
                await asyncio.sleep(SWEEP_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await self._is_due.wait()
                # What is due now is due at the next whole millisecond of the ledger.
                await asyncio.sleep(_AT_ONCE_S)

    async def keep_hearing(self) -> None:
        """Keep to the ledger's time until cancelled: for a process that raises alerts and advances none.

        Without it an alert would begin hours ago, or in hours, wherever this machine's clock is wrong or stood still.
        """
        while True:
            try:
                await self.hear()
            except LedgerUnavailable as error:
                log.warning("alerts_not_swept", error=error_name(error))
            await asyncio.sleep(HEAR_EVERY_MS / 1000)

    async def hear(self) -> int:
        """Read the ledger's clock, and set back what a wrong clock has put into the future; gives how many alerts.

        Raises:
            LedgerUnavailable: The time goes on as it did.
        """
        asked_ms = self._clock.monotonic_ms()
        by = self.steady.hear(await self._ledger.clock(), asked_ms)
        if by:
            log.warning("alert_time_set", by_s=round(by.total_seconds()))
        now = self.now()
        failed = count = 0
        self._forgive()
        while count < SWEEP_ALERTS and failed < MAX_FAILED:
            found = await self._advance(partial(self._set_back_next, now=now))
            if found is None:
                break
            if isinstance(found, _Failed):
                failed += 1
            else:
                count += 1
        if count:
            log.warning("alerts_set_back", count=count)
        return count

    def _set_back_next(self, tx: Transaction, at: list[str], now: datetime) -> _Outcome | None:
        ahead = alert_rows.ahead(tx, now + STEP, 1 + len(self._failed))
        alert_id = next((each for each in ahead if each not in self._failed), None)
        if alert_id is None:
            return None
        at.append(alert_id)
        alert = alert_rows.lock(tx, self.keys, alert_id)
        change = None if alert is None else board.set_back(alert, now)
        return None if change is None else self.record(tx, change)

    async def _advance(self, work: Callable[[Transaction, list[str]], T]) -> T | _Failed:
        """Run ``work`` in a transaction; it puts into its list which alert it is at, before it reads it.

        A fault of that alert is told, and undoes this transaction alone; for a while the alert is passed over.

        Raises:
            LedgerUnavailable: as ``Ledger.transact``.
        """
        at: list[str] = []
        try:
            return await self._ledger.transact(lambda tx: work(tx, at))
        except LedgerUnavailable:
            raise
        except Exception as error:
            if not at:
                raise
            log.error("alert_not_advanced", alert_id=at[0], error=error_name(error))
            self._failed[at[0]] = self._clock.monotonic_ms() + PASSED_OVER_MS
            return _Failed()

    def _forgive(self) -> None:
        """Alerts that were passed over long enough are tried again."""
        now_ms = self._clock.monotonic_ms()
        self._failed = {alert_id: until_ms for alert_id, until_ms in self._failed.items() if until_ms > now_ms}

    async def sweep(self, now: datetime) -> int:
        """Take what is due at ``now``, at most ``SWEEP_ALERTS``, each in a transaction of its own; gives how many.

        Two services on one ledger take each timer once between them. An alert that cannot be dealt with is named in
        the log and tried again after ``PASSED_OVER_MS``; it holds up no other. Redis that does not answer for one
        department is not asked for the others: what is due in many of them waits a quarter of a second in all.

        Raises:
            LedgerUnavailable: What was taken before is taken, the rest waits.
        """
        known: dict[str, Present] = {}
        answers, taken, failed = True, 0, 0
        self._forgive()
        for _ in range(3 * SWEEP_ALERTS):
            if taken >= SWEEP_ALERTS or failed >= MAX_FAILED:
                break
            found = await self._advance(partial(self._fire_next, known=known, now=now))
            match found:
                case None:
                    break
                case _Lacks(department=department):
                    present = await self.presence.of(department) if answers else self.presence.here(department)
                    known[department], answers = present, answers and present.has_answered
                case _Failed():
                    failed += 1
                case _Outcome():
                    taken += 1
                    self._tell(found)
        return taken

    def _fire_next(
        self, tx: Transaction, at: list[str], known: dict[str, Present], now: datetime
    ) -> _Outcome | _Lacks | None:
        """Take the timer that has been due longest; None if nothing is."""
        due = [each for each in alert_rows.due(tx, now, 1 + len(self._failed)) if each[0] not in self._failed]
        if not due:
            return None
        alert_id, timer = due[0]
        at.append(alert_id)
        # Before it is opened: an alert of a thousand people is opened once.
        department = alert_rows.department(tx, alert_id)
        present = known.get(department)
        if present is None:
            return _Lacks(department=department)
        alert = alert_rows.lock(tx, self.keys, alert_id)
        if alert is None:
            return None
        policy = self.policies.of(alert)
        target = (board.next_step_target(alert, policy) if timer.kind == "step" else None) or alert.to
        found = self.resolver.resolve(target, present.records, raised_by=alert.raised_by)
        change = board.fire(alert, timer, policy, found.people, now, delegates=found.delegates)
        metrics.ALERT_LATE_SECONDS.observe(max(0.0, (now - timer.due_at).total_seconds()))
        if change is None:
            alert_rows.set_timers(tx, alert_id, board.timers(alert))
            return _Outcome(alert=alert, events=(), recorded=(), timers=())
        return self.record(tx, change)

    async def _keep_receipts(self) -> None:
        while True:
            await self._has_receipts.wait()
            wait_ms = self._receipts.wait_ms(self._clock.monotonic_ms())
            if wait_ms is None:
                self._has_receipts.clear()
                continue
            if wait_ms > 0:
                await asyncio.sleep(wait_ms / 1000)
                continue
            await self._write_receipts(self._receipts.take(self._clock.monotonic_ms()), self.now())

    async def _write_receipts(self, gathered: dict[str, dict[str, _Heard]], now: datetime) -> None:
        for alert_id, answers in gathered.items():
            try:
                outcome = await self._ledger.transact(
                    partial(self._receive, alert_id=alert_id, answers=answers, now=now)
                )
            except LedgerUnavailable as error:
                log.warning("receipts_not_written", error=error_name(error))
                for heard in answers.values():
                    self._keep_receipt(heard)
            except Exception as error:  # of this alert alone
                log.error("alert_not_advanced", alert_id=alert_id, error=error_name(error))
            else:
                if outcome is not None:
                    self._tell(outcome)

    def _receive(self, tx: Transaction, *, alert_id: str, answers: dict[str, _Heard], now: datetime) -> _Outcome | None:
        alert = alert_rows.lock(tx, self.keys, alert_id)
        if alert is None:
            return None
        theirs = {user: each for user, each in answers.items() if _concerns(alert, each.response)}
        furthest: dict[str, Answer] = {user: each.response.answer for user, each in theirs.items()}
        seen = {user: each.seen for user, each in theirs.items()}
        change = board.receipts(alert, furthest, now, seen=seen) if theirs else None
        return None if change is None else self.record(tx, change)

    def _note_cover(self, alert_id: str, user_id: str, *, accepts: bool) -> None:
        self._covers[alert_id, user_id] = accepts
        while len(self._covers) > MAX_COVERS:
            self._covers.pop(next(iter(self._covers)))
        self._has_covers.set()

    async def _keep_covers(self) -> None:
        """Tell presence of delegates who have answered; an acceptance that Redis did not take is told again."""
        while True:
            await self._has_covers.wait()
            self._has_covers.clear()
            for (alert_id, user_id), accepts in list(self._covers.items()):
                try:
                    await self.presence.delegate_answered(alert_id, user_id, accepts=accepts)
                except PresenceUnavailable:
                    self._has_covers.set()
                    continue
                if self._covers.get((alert_id, user_id)) == accepts:
                    del self._covers[alert_id, user_id]
            if self._has_covers.is_set():
                await asyncio.sleep(SWEEP_S)

    async def _keep_retention(self) -> None:
        while True:
            try:
                await self.retire(self.now())
            except LedgerUnavailable as error:
                log.warning("alerts_not_retired", error=error_name(error))
            await asyncio.sleep(RETIRE_EVERY_S)

    async def retire(self, now: datetime) -> int:
        """Destroy the keys of the days before retention; gives how many. Twice, or on two nodes, it does it once.

        Raises:
            LedgerUnavailable: Nothing was destroyed; the next hour tries again.
        """
        # A clock that was set forward by weeks must not destroy what is young.
        if self.steady.is_stepped:
            log.warning("alerts_not_retired", error="clock stepped")
            return 0
        before = (now - timedelta(days=self._retention_days)).date()
        count = await self._ledger.transact(lambda tx: alert_rows.retire(tx, before))
        if count:
            log.info("alerts_retired", days=count)
        return count


class _Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a transaction recorded, for after its commit."""

    alert: Alert
    events: tuple[Happened, ...]
    recorded: tuple[Recorded, ...]
    timers: tuple[Timer, ...]
    is_new: bool = False


class _Open(msgspec.Struct, frozen=True, kw_only=True):
    """A department's open alerts, as the event ``last_seq`` of its log left them, or a later one."""

    last_seq: int
    alerts: tuple[SystemNotification, ...]


class _Lacks(msgspec.Struct, frozen=True, kw_only=True):
    """Something is due in a department whose people are not known yet."""

    department: str


class _Failed(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that is due and cannot be dealt with."""


class _Heard(msgspec.Struct, frozen=True, kw_only=True):
    """The furthest receipt of one person for one alert, and when each kind came first."""

    response: Response
    seen: Seen

    def with_later(self, later: _Heard) -> _Heard:
        """Both of them as one."""
        shown = [at for at in (self.seen.displayed_at, later.seen.displayed_at) if at is not None]
        return _Heard(
            response=later.response if self.response.answer == "delivered" else self.response,
            seen=Seen(
                delivered_at=min(self.seen.delivered_at, later.seen.delivered_at), displayed_at=min(shown, default=None)
            ),
        )


class _Receipts:
    """Receipts by alert and user, and when each alert's may be written."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[str, _Heard]] = {}
        self._since_ms: dict[str, int] = {}
        self._written_ms: dict[str, int] = {}
        self._count = 0

    def add(self, heard: _Heard, now_ms: int) -> bool:
        """Keep the furthest answer of each person; False where too many wait."""
        response = heard.response
        answers = self._waiting.setdefault(response.alert_id, {})
        before = answers.get(response.user_id)
        if before is None and self._count >= MAX_RECEIPTS:
            if not answers:
                del self._waiting[response.alert_id]
            return False
        self._since_ms.setdefault(response.alert_id, now_ms)
        self._count += before is None
        answers[response.user_id] = heard if before is None else before.with_later(heard)
        return True

    def _due_ms(self, alert_id: str) -> int:
        last = self._written_ms.get(alert_id)
        gathered = self._since_ms[alert_id] + GATHER_MS
        return gathered if last is None else max(gathered, last + RECEIPTS_EVERY_MS)

    def wait_ms(self, now_ms: int) -> int | None:
        """How long until the first are due; None if none wait."""
        return max(0, min(map(self._due_ms, self._waiting)) - now_ms) if self._waiting else None

    def take(self, now_ms: int) -> dict[str, dict[str, _Heard]]:
        """Those that are due, by alert and user; they are no longer here."""
        return self._take([alert_id for alert_id in self._waiting if self._due_ms(alert_id) <= now_ms], now_ms)

    def take_all(self) -> dict[str, dict[str, _Heard]]:
        """All of them."""
        return self._take(list(self._waiting), None)

    def _take(self, alert_ids: Sequence[str], now_ms: int | None) -> dict[str, dict[str, _Heard]]:
        taken = {}
        for alert_id in alert_ids:
            taken[alert_id] = self._waiting.pop(alert_id)
            del self._since_ms[alert_id]
            self._count -= len(taken[alert_id])
            if now_ms is not None:
                self._written_ms[alert_id] = now_ms
        if now_ms is not None:
            self._written_ms = {
                alert_id: at for alert_id, at in self._written_ms.items() if at > now_ms - RECEIPTS_EVERY_MS
            }
        return taken


def _concerns(alert: Alert, response: Response) -> bool:
    """Whether somebody may speak of an alert: its department's people, and who raised it, from wherever they are."""
    return alert.department == response.department or alert.raised_by == response.user_id


def _at_home(response: Response, alert: Alert) -> Response:
    """Who raised an alert for another department may end it from where they are."""
    if response.answer in ("stand_down", "done") and alert.raised_by == response.user_id:
        return msgspec.structs.replace(response, department=alert.department)
    return response


def _colleagues(present: Present) -> Present:
    records = tuple(record for record in present.records if may_answer(record.roles))
    return msgspec.structs.replace(present, records=records)


def _may_be(present: Present, user_id: str) -> bool:
    """Whether somebody is among these people, as far as is known."""
    return not present.is_whole or any(record.user_id == user_id for record in present.records)


def _nobody(_department: str, _recorded: tuple[Recorded, ...]) -> None:
    """Before a gateway is there to tell."""


def _no_rows(_tx: Transaction, _alert: Alert, _events: Sequence[Happened]) -> None:
    """Where nothing is audited."""


async def _unknown(_department: str) -> bool | None:
    """Before the layers are there to ask."""
    return None
