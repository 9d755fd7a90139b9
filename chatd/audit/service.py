"""The audit of one process: rows in, futures out, one commit for all that come at the same time.

``record`` returns when the row is on a disk: in the ledger's chain, or, while the ledger is away, in a file of this
machine from which it goes into the chain later. Where neither takes it, ``AuditUnavailable`` is raised and what was to
be done must not be done: a patient's data stays closed. Alerts bring their rows in their own transactions
(``within``), and are the one thing that goes on without.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, TypeVar

import msgspec
import structlog

from chatd import metrics, tasks
from chatd.alerts.model import Alert, Happened
from chatd.audit.chain import Checkpoint, Row, checked, new_id
from chatd.audit.events import EVENTS
from chatd.audit.sinks import Carrier, Sink
from chatd.audit.spool import Spool
from chatd.clock import Clock, epoch_ms
from chatd.ledger import ActionEvent, ActionRow, Ledger, LedgerUnavailable, Transaction, Why
from chatd.ledger.audit_rows import ChainBroken, ChainKeeper, Due
from chatd.ledger.pseudonym import pseudonym
from chatd.logs import error_name
from protocols.errors import ChatdError

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: ``spooling``: rows wait in this machine's file. ``closed``: no disk takes one, patients' data is refused.
#: ``unsent``: a place for checkpoints takes none.
AuditState = Literal["ok", "spooling", "closed", "unsent"]

#: Commits begin at most so often; a row that comes when none was lately is committed at once.
BATCH_MS: Final = 10
#: Rows of one commit.
BATCH_ROWS: Final = 256
#: Rows that wait for a commit; more of them mean that no disk answers, and the caller is told so at once.
MAX_WAITING: Final = 2_048
#: Notes that wait: nobody is told when one is dropped, so they are counted in a row of their own.
MAX_NOTES: Final = 1_024
#: Kinds of refusal told apart within a second; further ones go without their user.
MAX_REFUSALS: Final = 64
#: How long this machine's own disk may take.
SPOOL_WITHIN_S: Final = 2.0
#: The ledger is tried again this often while it is away, and refusals are gathered for as long.
TEND_S: Final = 1.0
#: Stands in a row for what has no form that a row may have.
MALFORMED: Final = "malformed"
#: 64 bits: two of a billion names are taken for each other with one chance in forty.
_NAMED_DIGITS: Final = 16


class AuditUnavailable(ChatdError):
    """The row is on no disk: what it tells of must not be done."""


class Audit:
    """Rows of this process for the chain. ``run`` owns the tasks; without it ``record`` waits for ever.

    A row may be lost for a ``note`` only, and then it is counted in ``chatd_audit_missed_total`` and, as soon as rows
    are taken again, in a row "audit.missed".
    """

    def __init__(
        self,
        ledger: Ledger,
        keeper: ChainKeeper,
        spool: Spool,
        *,
        clock: Clock,
        node_id: str,
        pseudonym_key: bytes,
        sinks: Sequence[Sink] = (),
        checkpoint_rows: int = 1_000,
        checkpoint_s: float = 60.0,
    ) -> None:
        """``pseudonym_key``: that of the ledger, so that one patient has one name in both."""
        self._ledger = ledger
        self._keeper = keeper
        self._spool = spool
        self._clock = clock
        self._node_id = node_id
        self._pseudonym_key = pseudonym_key
        self._carriers = tuple(Carrier(sink) for sink in sinks)
        self._checkpoint_rows = checkpoint_rows
        self._checkpoint_ms = round(checkpoint_s * 1000)
        self._waiting: deque[tuple[Row, asyncio.Future[None] | None]] = deque()
        self._has_waiting = asyncio.Event()
        self._notes = 0
        self._refusals: dict[tuple[str, str, str, str], Row] = {}
        #: Rows of transactions that the chain did not take; appended by the ledger's thread.
        self._left_out: deque[Row] = deque(maxlen=MAX_WAITING)
        self._missed = 0
        self._is_away = False
        self._is_writing = False
        self._checked_ms: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        #: Whether the last row found a disk. False: patients' data and the model are refused, alerts go on.
        self.is_open = True
        #: Rows that wait in this machine's file for the ledger.
        self.spooled = 0
        metrics.AUDIT_OPEN.set(1)

    @property
    def state(self) -> AuditState:
        """As the last row and the last checkpoint found it; the worst where several are so."""
        if not self.is_open:
            return "closed"
        if self._is_away or self.spooled:
            return "spooling"
        return "ok" if all(carrier.is_well for carrier in self._carriers) else "unsent"

    @property
    def is_whole(self) -> bool:
        """Whether rows go into the chain itself and its checkpoints leave."""
        return self.state == "ok"

    # --- rows ---

    def row(self, event: str, *, patient_id: str | None = None, **fields: Any) -> Row:
        """A row of now and here. ``fields``: those of ``Row``; None is the default.

        What has no form that a row may have becomes "malformed", or nothing where the form is that of chatd's own ids.
        """
        if event not in EVENTS:
            raise ValueError(f"{event} is no event of the audit")
        given = {name: value for name, value in fields.items() if value is not None}
        if patient_id is not None:
            given["patient"] = pseudonym(self._pseudonym_key, patient_id)
        given |= {"at_ms": epoch_ms(self._clock.now()), "id": new_id(), "node": self._node_id}
        row = Row(event=event, **given)
        try:
            return checked(row)
        except ValueError:
            return msgspec.structs.replace(row, **{name: _fit(name, value) for name, value in given.items()})

    def named(self, user_id: str) -> str:
        """Stands for a name that nobody has proved: the same for the same name, and none of its words."""
        return f"named:{pseudonym(self._pseudonym_key, user_id)[:_NAMED_DIGITS]}"

    async def record(self, *rows: Row) -> None:
        """Have rows on a disk, together; returns when they are. A caller that is cancelled leaves them written.

        Raises:
            AuditUnavailable: neither the ledger nor this machine's file took them, or too many wait.
        """
        if len(self._waiting) + len(rows) > MAX_WAITING:
            raise AuditUnavailable("too many rows of the audit wait")
        futures = [asyncio.get_running_loop().create_future() for _ in rows]
        self._waiting.extend(zip(rows, futures, strict=True))
        self._has_waiting.set()
        await asyncio.gather(*futures)

    def note(self, row: Row) -> None:
        """Have a row written soon; for what shows nothing of a patient. Never waits, and drops what is too much."""
        if self._notes >= MAX_NOTES or len(self._waiting) >= MAX_WAITING:
            self._miss(1)
            return
        self._notes += 1
        self._waiting.append((row, None))
        self._has_waiting.set()

    def refused(self, event: str, outcome: str, *, user: str = "", department: str = "", **fields: Any) -> None:
        """Note a refusal. Equal ones within a second are one row with their count: a flood is not to fill the disk."""
        known = (event, outcome, user, department)
        if known not in self._refusals and len(self._refusals) >= MAX_REFUSALS:
            known = (event, outcome, "", "")
        before = self._refusals.get(known)
        if before is not None:
            self._refusals[known] = msgspec.structs.replace(before, count=before.count + 1)
        elif len(self._refusals) < 2 * MAX_REFUSALS:
            self._refusals[known] = self.row(event, outcome=outcome, user=known[2], department=known[3], **fields)
        else:
            self._miss(1)

    def within(self, tx: Transaction, rows: Sequence[Row], *, is_needed: bool) -> None:
        """Add rows in a transaction of the ledger: committed with it, or not at all. On the ledger's thread.

        Nothing is locked after it in the transaction. ``is_needed`` False (alerts): where the chain takes no row, the
        transaction goes on without, and the rows go to this machine's file; also, then, where it fails later.

        Raises:
            LedgerUnavailable: the chain takes no row, and one is needed.
        """
        if self._keeper.try_append(tx, rows):
            metrics.AUDIT_ROWS.labels("chain").inc(len(rows))
        elif is_needed:
            raise LedgerUnavailable(Why.FAILED)
        else:
            self._left_out.extend(rows)

    def of_alert(self, tx: Transaction, alert: Alert, events: Sequence[Happened]) -> None:
        """The rows of what happened to an alert, in its transaction; it goes on where the chain takes none."""
        rows = [
            self.row(
                f"alert.{happened.event}",
                user=happened.by,
                department=alert.department,
                patient_id=alert.patient_id,
                alert=alert.alert_id,
                detail=alert.priority,
            )
            for happened in events
        ]
        if rows:
            self.within(tx, rows, is_needed=False)

    def of_action(self, tx: Transaction, action: ActionRow, event: ActionEvent, roles: tuple[str, ...] = ()) -> None:
        """The row of a step of a quick action, in its transaction. Raises LedgerUnavailable: it is not taken."""
        row = self.row(
            "action",
            user=event.by_user,
            roles=roles,
            department=action.department,
            patient=action.patient_pseudonym,
            action=action.action_id,
            response=action.response_id,
            detail=event.status,
        )
        self.within(tx, [row], is_needed=True)

    # --- background ---

    async def run(self) -> None:
        """Write rows, bring what waits into the chain, and send checkpoints, until cancelled."""
        loops = [
            asyncio.create_task(self._write()),
            asyncio.create_task(self._tend()),
            *(asyncio.create_task(carrier.run()) for carrier in self._carriers),
        ]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for loop in done:
                loop.result()
        finally:
            await tasks.end(loops)

    async def flush(self) -> None:
        """Write what waits and let go of the file; after ``run`` has ended, before the ledger is closed."""
        self._gather()
        while self._waiting:
            await self._write_batch()
        await self._off_loop(self._spool.close)
        self._thread.shutdown(wait=False)

    async def _write(self) -> None:
        last_ms = -BATCH_MS
        while True:
            await self._has_waiting.wait()
            wait_ms = last_ms + BATCH_MS - self._clock.monotonic_ms()
            if wait_ms > 0:
                await asyncio.sleep(wait_ms / 1000)
            last_ms = self._clock.monotonic_ms()
            await self._write_batch()
            if not self._waiting:
                self._has_waiting.clear()

    async def _write_batch(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(BATCH_ROWS, len(self._waiting)))]
        self._notes -= sum(future is None for _, future in batch)
        try:
            await self._keep([row for row, _ in batch])
        except AuditUnavailable as error:
            self._miss(sum(future is None for _, future in batch))
            for _, future in batch:
                if future is not None and not future.done():
                    future.set_exception(error)
        except BaseException:
            for _, future in batch:
                if future is not None and not future.done():
                    future.set_exception(AuditUnavailable("the audit has ended"))
            raise
        else:
            for _, future in batch:
                if future is not None and not future.done():
                    future.set_result(None)

    async def _keep(self, rows: Sequence[Row]) -> None:
        """Rows into the chain, or into this machine's file. Raises AuditUnavailable."""
        if not self._is_away:
            try:
                await self._commit(rows)
            except (LedgerUnavailable, ChainBroken) as error:
                # Not asked again for each batch: a ledger that does not answer would hold up everybody for seconds.
                self._is_away = True
                log.error("audit_ledger_away", error=error_name(error))
            else:
                self._is_here()
                return
        try:
            await self._off_loop(self._spool.append, rows)
        except (OSError, TimeoutError) as error:
            if self.is_open:
                log.error("audit_closed", error=error_name(error))
            self.is_open = False
            metrics.AUDIT_OPEN.set(0)
            raise AuditUnavailable("the audit cannot be written") from None
        self.spooled += len(rows)
        metrics.AUDIT_ROWS.labels("file").inc(len(rows))
        metrics.AUDIT_SPOOLED.set(self.spooled)
        self._is_here()

    def _is_here(self) -> None:
        if not self.is_open:
            log.warning("audit_open")
        self.is_open = True
        metrics.AUDIT_OPEN.set(1)

    async def _commit(self, rows: Sequence[Row], *, may_be_known: bool = False) -> None:
        due = Due(rows=self._checkpoint_rows, every_ms=self._checkpoint_ms, now_ms=epoch_ms(self._clock.now()))

        def work(tx: Transaction) -> Checkpoint | None:
            return self._keeper.append(tx, rows, may_be_known=may_be_known, due=due)

        # Not given up by a cancellation: it ends by itself, within the ledger's bound, and before the ledger is closed.
        commit = asyncio.ensure_future(self._ledger.transact(work))
        commit.add_done_callback(_seen)
        made = await asyncio.shield(commit)
        metrics.AUDIT_ROWS.labels("chain").inc(len(rows))
        if made is not None:
            log.info("audit_checkpoint", rows=made.size)
            for carrier in self._carriers:
                carrier.offer(made)

    async def _tend(self) -> None:
        """Each second: gather refusals, look whether the ledger is back, see to checkpoints."""
        has_adopted = False
        while True:
            self._gather()
            try:
                if not has_adopted:
                    await self._adopt()
                    has_adopted = True
                if self._is_away or self.spooled:
                    await self._unspool()
                elif self._checkpoint_is_due():
                    await self._commit(())
            except (LedgerUnavailable, ChainBroken, OSError, TimeoutError) as error:
                log.warning("audit_not_tended", error=error_name(error))
            await asyncio.sleep(TEND_S)

    def _checkpoint_is_due(self) -> bool:
        now_ms = self._clock.monotonic_ms()
        if self._checked_ms is not None and now_ms - self._checked_ms < self._checkpoint_ms:
            return False
        self._checked_ms = now_ms
        return True

    def _gather(self) -> None:
        refusals, self._refusals = self._refusals, {}
        for row in refusals.values():
            self.note(row)
        while self._left_out:
            self.note(self._left_out.popleft())
        if self._missed and self._notes < MAX_NOTES:
            missed, self._missed = self._missed, 0
            self.note(self.row("audit.missed", outcome="lost", count=missed))

    def _miss(self, count: int) -> None:
        self._missed += count
        if count:
            metrics.AUDIT_MISSED.inc(count)

    async def _unspool(self) -> None:
        """Bring this machine's file into the chain; on return rows go into the chain again."""
        if not await self._bring(self._spool):
            await self._commit(())  # nothing waits: does it take rows?
        self.spooled = 0
        metrics.AUDIT_SPOOLED.set(0)
        if self._is_away:
            self._is_away = False
            log.warning("audit_ledger_back")
        self._is_here()

    async def _bring(self, spool: Spool) -> bool:
        """All rows of a file into the chain, each once, then forget them; whether there were any."""
        brought = 0
        while True:
            rows, bad, size_bytes = await self._off_loop(spool.read)
            if bad:
                log.error("audit_file_damaged", lines=bad)
                rows.append(self.row("audit.missed", outcome="damaged", count=bad))
            for first in range(brought, len(rows), BATCH_ROWS):
                await self._commit(rows[first : first + BATCH_ROWS], may_be_known=True)
            # What came while these were written is read before anything is forgotten.
            if await self._off_loop(spool.clear, size_bytes):
                return bool(rows)
            brought = len(rows) - bool(bad)

    async def _adopt(self) -> None:
        """What processes that are gone have left in their files."""
        left = await self._off_loop(self._spool.left_behind)
        try:
            for each in left:
                await self._bring(each)
        finally:
            for each in left:
                await self._off_loop(each.close)

    async def _off_loop(self, work: Callable[..., T], *given: Any) -> T:
        async with asyncio.timeout(SPOOL_WITHIN_S):
            return await asyncio.wrap_future(self._thread.submit(work, *given))


def _seen(commit: asyncio.Future[Any]) -> None:
    if not commit.cancelled():
        commit.exception()  # so that asyncio does not complain about it where nobody waits any more


#: What a field gets whose value has no form that a row may have.
_EMPTY: Final = frozenset({"patient", "alert", "action", "response"})


def _fit(name: str, value: Any) -> Any:
    try:
        return getattr(checked(Row(**{"event": "-", "at_ms": 0, "id": "-", name: value})), name)
    except ValueError:
        if name == "roles":
            return (MALFORMED,)
        return "" if name in _EMPTY else MALFORMED
