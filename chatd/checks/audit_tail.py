"""The newest rows of the audit, verified among themselves and against what is known of their end: seconds, not the
whole chain. What was changed before them, and MACs, are for ``chatd audit verify``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from chatd.audit.chain import Checkpoint, Columns, Entry, Fault, State, begin, columns_of, row_of
from chatd.ledger import audit_rows
from chatd.ledger.audit_rows import ChainBroken, ChainKeeper
from chatd.ledger.rows import Transaction

#: Rows of one look; more where a checkpoint is older, up to the second.
ROWS: Final = 1_000
MOST_ROWS: Final = 20_000


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. ``rows``: that were looked at, of ``size``. ``checkpoint_size``: of the newest one that was
    compared; 0: none was."""

    chain: str
    size: int
    rows: int
    checkpoint_size: int
    fault: Fault | None


def tail_fault(
    before: bytes,
    first: int,
    entries: Sequence[tuple[Entry, Columns]],
    *,
    size: int,
    state: State | None,
    sent: Sequence[Checkpoint],
) -> Fault | None:
    """The first thing that is wrong with the rows from number ``first`` to the end.

    Args:
        before: The hash before row ``first``.
        size: How many rows the chain says that it has.
        state: What the chain says of itself; None where it does not open here.
        sent: Checkpoints of this chain; those of earlier rows are passed over.
    """
    head, expected = before, {each.size: each for each in sent}
    seq = first - 1
    for entry, columns in entries:
        seq += 1
        if entry.seq != seq:
            return Fault(seq, "gap")
        try:
            said = row_of(entry.body)
        except ValueError:
            return Fault(seq, "body")
        if said.seq != seq:
            return Fault(seq, "gap")
        if columns != columns_of(said):
            return Fault(seq, "columns")
        head = hashlib.sha256(head + entry.body).digest()
        if head != entry.hash:
            return Fault(seq, "hash")
        if seq in expected and expected[seq].head != head.hex():
            return Fault(seq, "checkpoint_root")
    if seq != size:
        return Fault(min(seq, size) + 1, "state_size")
    if any(each.size > size for each in sent):
        return Fault(size + 1, "checkpoint_beyond")
    if state is not None and state.head != head:
        return Fault(0, "state_head")
    return None


def tail(tx: Transaction, keeper: ChainKeeper, sent: Sequence[Checkpoint]) -> Tail | None:
    """Look at the newest rows within one transaction; None: there is no chain and no checkpoint knows one."""
    named = audit_rows.chain_name(tx)
    if named is None:
        missing = Tail(chain="", size=0, rows=0, checkpoint_size=0, fault=Fault(0, "no_chain"))
        return missing if sent else None
    name, size = named
    found = partial(Tail, chain=name, size=size)
    others = [each for each in sent if each.chain != name]
    if others:
        return found(rows=0, checkpoint_size=0, fault=Fault(0, "checkpoint_chain"))
    newest = max((each.size for each in sent if each.size <= size), default=0)
    first = max(1, min(size - ROWS + 1, newest or size), size - MOST_ROWS + 1)
    state, broken = None, None
    try:
        state = keeper.state(tx)
    except ChainBroken as error:
        broken = Fault(0, error.why)
    before = begin(name, b"").head
    if first > 1:
        previous = audit_rows.entries(tx, first - 2, 1, first - 1)
        if not previous:
            return found(rows=0, checkpoint_size=0, fault=Fault(first - 1, "gap"))
        before = previous[0][0].hash
    rows = audit_rows.entries(tx, first - 1, MOST_ROWS, size)
    fault = tail_fault(before, first, rows, size=size, state=state, sent=sent) or broken
    return found(rows=len(rows), checkpoint_size=newest if newest >= first else 0, fault=fault)
