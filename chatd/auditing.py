"""``chatd audit``: verify the chain, export it as FHIR, report who touched a patient or what a person did.

And what other commands use to leave their row: ``noted``.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chatd.audit import chain
from chatd.audit.chain import FAULTS, Checkpoint, Fault, Row, Verifier
from chatd.audit.events import EVENTS
from chatd.audit.fhir import audit_event
from chatd.audit.service import Audit, AuditUnavailable
from chatd.audit_place import audit_of, checkpoint_file, keeper_of
from chatd.clock import SystemClock, iso_ms
from chatd.ledger import Ledger, LedgerUnavailable, audit_rows
from chatd.ledger.audit_rows import ChainBroken, ChainKeeper
from chatd.ledger.pseudonym import pseudonym
from chatd.places import Places
from chatd.tasks import end
from context.seal import Sealer, SealError

#: Exit states of ``chatd audit verify``.
WHOLE: Final = 0
FAULTY: Final = 1
NOT_READ: Final = 2
WITHOUT_SEED: Final = 3

#: Rows of one read: some 300 bytes each.
PAGE_ROWS: Final = 5_000
#: A command may wait longer than a gateway: nobody stands before it.
_TIMEOUT_S: Final = 60.0
_BAR_AFTER_S: Final = 2.0
#: The node of rows that a command leaves.
_NODE: Final = "cli"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What ``verify`` found, for a person and for a health check.

    rows: how many hold. checkpoint_size: of the largest checkpoint that was compared; 0: none was.
    """

    chain: str
    rows: int
    fault: Fault | None
    has_seed: bool
    checkpoints: int
    checkpoint_size: int


# --- putting it together ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def auditing(places: Places) -> AsyncIterator[Audit]:
    """The audit of a command of the command line, running; its rows are on disk when this ends."""
    sealer, clock = Sealer(places.key_ring()), SystemClock()
    ledger = Ledger.open(places.ledger_url, timeout_s=_TIMEOUT_S)
    audit = audit_of(places, sealer, ledger, clock=clock, node_id=_NODE)
    task = asyncio.create_task(audit.run())
    try:
        yield audit
    finally:
        await end([task])
        await audit.flush()
        await ledger.close()


async def noted(places: Places, event: str, **fields: Any) -> None:
    """Leave one row of a command, by the user of this machine; it is on disk when this returns.

    Raises:
        AuditUnavailable: what the row tells of must not be done.
    """
    async with auditing(places) as audit:
        await audit.record(audit.row(event, user=operator(), **fields))


def operator() -> str:
    """Who gives commands on this machine, as rows name them."""
    try:
        return f"os:{getpass.getuser()}"
    except (KeyError, OSError):
        return "os:unknown"


# --- verify -------------------------------------------------------------------------------------------------


def verify(places: Places, *, seed: Path | None, checkpoints: Sequence[Path]) -> int:
    """Walk the chain and print what was found; the exit status.

    Args:
        seed: the chain's first key, where it was taken from the data directory.
        checkpoints: files of checkpoints that were sent away; none: this machine's own.
    """
    try:
        with _bar("verify") as advance:
            result = asyncio.run(_verify(places, seed, checkpoints, advance))
    except (LedgerUnavailable, SealError, ValueError, OSError) as error:
        return _fail(f"not verified: {_words(error)}", NOT_READ)
    try:
        asyncio.run(noted(places, "audit.verify", outcome="ok" if result.fault is None else result.fault.why))
    except (AuditUnavailable, OSError) as error:
        # What was found counts more than that it was looked for.
        print(f"chatd audit: that this was verified left no row: {error}", file=sys.stderr)
    if result.fault is not None:
        where = f"row {result.fault.seq}" if result.fault.seq else "the chain"
        print(f"{where}: {result.fault.why}: {FAULTS[result.fault.why]}; {result.rows} rows before it hold")
        return FAULTY
    print(f"{result.rows} rows hold; chain {result.chain or 'not begun'}")
    print(
        f"{result.checkpoints} checkpoints agree, the newest over {result.checkpoint_size} rows"
        if result.checkpoints
        else "no checkpoint was compared: that the end was cut off could not be seen"
    )
    if not result.has_seed and result.rows:
        print("the rows' keys were not checked: give --seed FILE", file=sys.stderr)
        return WITHOUT_SEED
    return WHOLE


async def examine(places: Places) -> Result:
    """What ``verify`` would find with what this machine has; for a health check. Raises as ``verify`` tells."""
    return await _verify(places, None, (), lambda _done, _total: None)


async def _verify(
    places: Places, seed: Path | None, files: Sequence[Path], advance: Callable[[int, int], None]
) -> Result:
    keeper = keeper_of(places, Sealer(places.key_ring()))
    sent = sent_checkpoints(files or [path for path in (checkpoint_file(places),) if path.exists()])
    ledger = Ledger.open(places.ledger_url, timeout_s=_TIMEOUT_S)
    try:
        return await _walk(ledger, keeper, seed, sent, advance)
    finally:
        await ledger.close()


async def _walk(
    ledger: Ledger,
    keeper: ChainKeeper,
    seed_file: Path | None,
    sent: Sequence[Checkpoint],
    advance: Callable[[int, int], None],
) -> Result:
    largest = max((each.size for each in sent), default=0)
    named = await ledger.read(audit_rows.chain_name)
    if named is None:
        fault = Fault(0, "no_chain") if sent else None
        return Result(chain="", rows=0, fault=fault, has_seed=False, checkpoints=0, checkpoint_size=largest)
    name, told_size = named
    seed = keeper.seed(name, seed_file)
    state, broken = None, None
    try:
        state = await ledger.read(keeper.state)
    except ChainBroken as error:
        broken = Fault(0, error.why)
    # Rows that come while this walks are the next verification's; so are checkpoints of them.
    up_to = told_size if state is None else state.size
    verifier = Verifier(name, seed, sent)
    after, has_more = 0, True
    while has_more and verifier.fault is None:
        page = await ledger.read(partial(audit_rows.entries, after=after, limit=PAGE_ROWS, up_to=up_to))
        for entry, columns in page:
            if verifier.feed(entry, columns) is not None:
                break
            after = entry.seq
        has_more = len(page) == PAGE_ROWS
        advance(verifier.size, up_to)
    fault = verifier.finish(state) or broken
    return Result(
        chain=name,
        rows=verifier.size,
        fault=fault,
        has_seed=seed is not None,
        checkpoints=len(sent),
        checkpoint_size=largest,
    )


def sent_checkpoints(files: Iterable[Path]) -> list[Checkpoint]:
    """The checkpoints of files, one JSON object a line; a line of syslog may stand before each. Raises ValueError."""
    sent = []
    for path in files:
        lines = path.read_bytes().split(b"\n")
        torn = lines.pop()  # what a crash has cut was not a whole line
        del torn
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    sent.append(chain.decode_checkpoint(line[max(line.find(b"{"), 0) :]))
                except msgspec.DecodeError:
                    raise ValueError(f"{path}: line {number} is no checkpoint") from None
    return sent


# --- export and report --------------------------------------------------------------------------------------


def export(places: Places) -> int:
    """Print every row as a FHIR AuditEvent, one a line; the export itself leaves a row first."""
    return _told(places, "audit.export", user=None, patient=None, tell=_resource, title="export")


def report(places: Places, *, patient: str | None, user: str | None) -> int:
    """Print what was done with a patient, or by a person, one line each: when, who, what, on whom, how it ended."""
    return _told(places, "audit.report", user=user, patient=patient, tell=_line, title="report")


def _told(
    places: Places,
    event: str,
    *,
    user: str | None,
    patient: str | None,
    tell: Callable[[Row, str], str],
    title: str,
) -> int:
    async def work(advance: Callable[[int, int], None]) -> int:
        async with auditing(places) as audit:
            # Whose rows were looked at is itself on record; a person by the row's detail.
            await audit.record(audit.row(event, user=operator(), patient_id=patient, detail=user))
        ledger = Ledger.open(places.ledger_url, timeout_s=_TIMEOUT_S)
        whose = None if patient is None else pseudonym(Sealer(places.key_ring()).derive("patient-pseudonym"), patient)
        try:
            named = await ledger.read(audit_rows.chain_name)
            name, size = ("", 0) if named is None else named
            after = 0
            while True:
                page = await ledger.read(
                    partial(audit_rows.found, after=after, limit=PAGE_ROWS, user=user, patient=whose)
                )
                for body in page:
                    row = chain.row_of(body)
                    sys.stdout.write(tell(row, name) + "\n")
                    after = row.seq
                advance(after, size)
                if len(page) < PAGE_ROWS:
                    return 0
        finally:
            await ledger.close()

    try:
        with _bar(title) as advance:
            return asyncio.run(work(advance))
    except (LedgerUnavailable, ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        return _fail(f"not read: {_words(error)}", NOT_READ)
    except AuditUnavailable as error:
        return _fail(str(error), NOT_READ)


def _resource(row: Row, name: str) -> str:
    return json.dumps(audit_event(row, name), ensure_ascii=False, separators=(",", ":"))


def _line(row: Row, _: str) -> str:
    at = iso_ms(datetime.fromtimestamp(row.at_ms / 1000, UTC))
    told = EVENTS[row.event].text if row.event in EVENTS else row.event
    parts = [at, row.user or "-", row.department or "-", row.event, row.outcome]
    parts += [value for value in (row.detail, row.response, row.action, row.alert, row.device) if value]
    if row.patient:
        parts.append(f"patient:{row.patient[:12]}")
    if row.count != 1:
        parts.append(f"x{row.count}")
    return f"{row.seq}\t" + "\t".join(parts) + f"\t{told}"


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where that is a terminal and it takes over two seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(title, total=None)
    began = time.monotonic()

    def advance(done: int, total: int) -> None:
        if not bar.live.is_started and time.monotonic() - began > _BAR_AFTER_S:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield advance
    finally:
        bar.stop()


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, SealError):
        return "the seed is another chain's, or of other keys"
    return str(error) or type(error).__name__


def _fail(text: str, status: int) -> int:
    print(f"chatd audit: {text}", file=sys.stderr)
    return status
