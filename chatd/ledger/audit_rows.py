"""The audit in the ledger: the statements that read and write its rows, each within one open transaction.

Nothing here awaits. The lock on the chain's one row is the last that a transaction takes: it is held until the
commit, so that the numbers have no gap and are in the order of the commits, on however many gateways.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import DBAPIError

from chatd.audit.chain import (
    KEY_BYTES,
    NAME_DIGITS,
    Checkpoint,
    Columns,
    Entry,
    Row,
    State,
    begin,
    checkpoint,
    columns_of,
)
from chatd.audit.chain import append as chained
from chatd.ledger.rows import Transaction
from chatd.ledger.tables import audit_chain, audit_rows
from context.seal import KeyRing, Sealer, SealError
from protocols.errors import ChatdError

_ONE: Final = 1
_CHAIN = select(audit_chain.c.chain, audit_chain.c.size, audit_chain.c.state_sealed).where(audit_chain.c.one == _ONE)
_CHAIN_LOCKED = _CHAIN.with_for_update()
_INSERT_CHAIN = insert(audit_chain)
_UPDATE_CHAIN = update(audit_chain).where(audit_chain.c.one == _ONE)
_INSERT_ROWS = insert(audit_rows)
_KNOWN = select(audit_rows.c.row_id).where(audit_rows.c.row_id.in_(bindparam("ids", expanding=True)))
_SINCE = (
    select(audit_rows)
    .where(audit_rows.c.seq > bindparam("after"), audit_rows.c.seq <= bindparam("up_to"))
    .order_by(audit_rows.c.seq)
    .limit(bindparam("limit"))
)

_encode_state = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(State).decode


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """When a checkpoint is due: after so many rows, or after so long where there are new ones."""

    rows: int
    every_ms: int
    now_ms: int

    def of(self, state: State) -> bool:
        new, since_ms = state.size - state.checkpoint_size, self.now_ms - state.checkpoint_ms
        # A clock that was set back makes one early rather than none.
        return new >= self.rows or (new > 0 and not 0 <= since_ms < self.every_ms)


class ChainBroken(ChatdError):
    """The chain takes no row: its state does not open or is not the chain's, or its seed cannot be put down.

    ``why`` is "state_sealed", "state_size" or "seed".
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"the audit's chain takes no row: {why}")
        self.why = why


class ChainKeeper:
    """Adds rows to the chain and knows the keys; holds no state of the chain, which is a row of the ledger.

    Whoever adds the first row makes the chain: a random seed goes, sealed under a key derived from the installation's
    root, into ``seeds``/audit-CHAIN.seed, and is on that disk before the chain is in the ledger. The file is needed to
    verify and never to write; an auditor takes it away.
    """

    def __init__(self, sealer: Sealer, seeds: Path) -> None:
        self._seeds = seeds
        # Derived from the root, which every ring keeps: neither the state nor a seed is lost by a rotation.
        self._sealer = Sealer(KeyRing({"audit": sealer.derive("audit-chain")}))

    # --- writing ---

    def append(
        self, tx: Transaction, rows: Sequence[Row], *, may_be_known: bool = False, due: Due | None = None
    ) -> Checkpoint | None:
        """Add rows, in order, under the chain's next numbers; the chain is held until the transaction ends.

        Args:
            may_be_known: Rows that are in the chain already, by their own ids, are left out.
            due: Make a checkpoint where one is due, and give it. Only for a transaction whose commit the caller hears
                of: a checkpoint of what was rolled back, sent away, would accuse the chain.
        Raises:
            ChainBroken: nothing was added.
        """
        state = self._hold(tx)
        if may_be_known and rows:
            known = set(tx.connection.execute(_KNOWN, {"ids": [row.id for row in rows]}).scalars())
            rows = [row for row in rows if row.id not in known]
        state, entries = chained(state, rows)
        made = None
        if due is not None and due.of(state):
            state, made = checkpoint(state, due.now_ms)
        if not entries and made is None:
            return None
        if entries:
            tx.connection.execute(_INSERT_ROWS, [_columns(*each) for each in zip(entries, rows, strict=True)])
        tx.connection.execute(_UPDATE_CHAIN, {"size": state.size, "state_sealed": self._seal(state)})
        return made

    def try_append(self, tx: Transaction, rows: Sequence[Row]) -> bool:
        """As ``append``; False where the chain takes no row, and the transaction is as if it had not been asked.

        What breaks the transaction itself, such as a full disk, is raised as by any statement.
        """
        connection = tx.connection
        try:
            with connection.begin_nested():
                self.append(tx, rows)
        except ChainBroken:
            return False
        except DBAPIError as error:
            # SQLite ends the whole transaction by itself after some failures.
            is_alive = connection.dialect.name != "sqlite" or connection.connection.dbapi_connection.in_transaction  # type: ignore[union-attr]
            if error.connection_invalidated or not is_alive:
                raise
            return False
        return True

    def _hold(self, tx: Transaction) -> State:
        found = tx.connection.execute(_CHAIN_LOCKED).one_or_none()
        if found is None:
            tx.alone("audit_chain")
            found = tx.connection.execute(_CHAIN_LOCKED).one_or_none()
        if found is None:
            return self._begin(tx)
        return self._open(found.chain, found.size, found.state_sealed)

    def _begin(self, tx: Transaction) -> State:
        chain, seed = secrets.token_hex(NAME_DIGITS // 2), secrets.token_bytes(KEY_BYTES)
        sealed = self._sealer.seal(seed, aad=_seed_place(chain))
        try:
            _write(self.seed_file(chain), base64.b64encode(sealed) + b"\n")
        except OSError:
            raise ChainBroken("seed") from None
        state = begin(chain, seed)
        values = {"one": _ONE, "chain": chain, "size": 0, "state_sealed": self._seal(state)}
        tx.connection.execute(_INSERT_CHAIN, values)
        return state

    # --- keys ---

    def seed_file(self, chain: str) -> Path:
        """Where the seed of a chain is put by the machine that makes it."""
        return self._seeds / f"audit-{chain}.seed"

    def seed(self, chain: str, path: Path | None = None) -> bytes | None:
        """The chain's first key out of its file; None where the file was taken away, and ``path`` was not given.

        Raises:
            SealError: the file is another chain's, or was sealed under another root. OSError.
        """
        try:
            text = (path or self.seed_file(chain)).read_bytes()
        except FileNotFoundError:
            if path is not None:
                raise
            return None
        try:
            sealed = base64.b64decode(text, validate=False)
        except ValueError:
            raise SealError("format") from None
        return self._sealer.open(sealed, aad=_seed_place(chain))

    def _seal(self, state: State) -> bytes:
        return self._sealer.seal(_encode_state(state), aad=_state_place(state.chain))

    def _open(self, chain: str, size: int, sealed: bytes) -> State:
        try:
            state = _decode_state(self._sealer.open(bytes(sealed), aad=_state_place(chain)))
        except (SealError, msgspec.MsgspecError):
            raise ChainBroken("state_sealed") from None
        if state.chain != chain or state.size != size:
            raise ChainBroken("state_size")
        return state

    # --- reading ---

    def state(self, tx: Transaction) -> State | None:
        """Where the chain stands; None: there is none yet. Raises ChainBroken."""
        found = tx.connection.execute(_CHAIN).one_or_none()
        return None if found is None else self._open(found.chain, found.size, found.state_sealed)


def chain_name(tx: Transaction) -> tuple[str, int] | None:
    """The chain's name and the number of its rows, as the table says it; None: there is none yet."""
    found = tx.connection.execute(_CHAIN).one_or_none()
    return None if found is None else (found.chain, found.size)


def entries(tx: Transaction, after: int, limit: int, up_to: int) -> list[tuple[Entry, Columns]]:
    """At most ``limit`` entries after number ``after`` as they stand in the table, with what they are searched by."""
    rows = tx.connection.execute(_SINCE, {"after": after, "limit": limit, "up_to": up_to})
    return [
        (
            Entry(each.seq, bytes(each.body), bytes(each.hash), bytes(each.mac)),
            Columns(each.row_id, each.at, each.event, each.user_id, each.patient_pseudonym),
        )
        for each in rows
    ]


def found(
    tx: Transaction, after: int, limit: int, *, user: str | None = None, patient: str | None = None
) -> list[bytes]:
    """At most ``limit`` bodies after number ``after`` of one person, one patient (a pseudonym), or both; in order."""
    query = select(audit_rows.c.body).where(audit_rows.c.seq > after).order_by(audit_rows.c.seq).limit(limit)
    if user is not None:
        query = query.where(audit_rows.c.user_id == user)
    if patient is not None:
        query = query.where(audit_rows.c.patient_pseudonym == patient)
    return [bytes(body) for body in tx.connection.execute(query).scalars()]


def _columns(entry: Entry, row: Row) -> dict[str, object]:
    said = columns_of(row)
    return {
        "seq": entry.seq,
        "row_id": said.row_id,
        "at": said.at_ms,
        "event": said.event,
        "user_id": said.user,
        "patient_pseudonym": said.patient,
        "body": entry.body,
        "hash": entry.hash,
        "mac": entry.mac,
    }


def _seed_place(chain: str) -> bytes:
    return f"audit_seed|{chain}".encode()


def _state_place(chain: str) -> bytes:
    return f"audit_chain|{chain}".encode()


def _write(path: Path, data: bytes) -> None:
    """A new file of mode 0600, on disk with its name when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
