"""What the ledger's tables hold, as Structs, and the few statements that read and write them.

Everything here runs inside one transaction on the ledger's own thread and never awaits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, Select, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from chatd.alerts.model import Alert, Person
from chatd.ledger.tables import action_events, actions
from context.seal import Sealer


class ActionRow(msgspec.Struct, frozen=True, kw_only=True):
    """Where one quick action stands. ``proposal_sealed`` and ``draft_sealed`` open with the caller's key only."""

    action_id: str
    session_id: str
    response_id: str
    catalog_id: str
    department: str
    user_id: str
    patient_pseudonym: str | None
    context_hash: str
    risk: str
    status: str
    created_at: datetime
    expires_at: datetime
    updated_at: datetime
    proposal_sealed: bytes
    draft_sealed: bytes | None = None


class ActionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a quick action; ``n`` counts from 1 without gaps."""

    action_id: str
    n: int
    status: str
    by_user: str
    at: datetime
    reason: str | None = None
    client_msg_id: str | None = None
    body_mac: str | None = None
    nonce: str | None = None
    token_expires_at: datetime | None = None


class HeldAlert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that a transaction holds, and how its people are kept: ``answered`` have rows; ``called`` have none,
    and are in a record that the key of ``called_day`` has sealed (empty: there is no record)."""

    alert: Alert
    answered: frozenset[str] = frozenset()
    called: tuple[Person, ...] = ()
    called_day: str = ""


_ALONE = text("SELECT pg_advisory_xact_lock(:key)")


class Transaction:
    """The typed statements of one open transaction; it commits when the work it was given returns.

    What it holds besides the connection is known within this transaction only, and gone with it.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        #: Alerts as they stood when this transaction locked, made or stored them.
        self.held_alerts: dict[str, HeldAlert] = {}
        #: Keys of days that this transaction seals with, locked; and those that it has only read.
        self.held_days: dict[str, Sealer] = {}
        self.read_days: dict[str, Sealer] = {}

    def alone(self, purpose: str) -> None:
        """Wait until no other transaction is here with the same ``purpose``, and hold it until the commit."""
        if self.connection.dialect.name == "postgresql":
            digest = hashlib.sha256(purpose.encode()).digest()
            key = int.from_bytes(digest[:8], "big", signed=True)
            self.connection.execute(_ALONE, {"key": key})

    def locked(self, query: Select[Any], *, skip_locked: bool = False) -> Select[Any]:
        """``query`` holding its rows until the commit; SQLite locks the whole file when the transaction begins."""
        if self.connection.dialect.name == "postgresql":
            return query.with_for_update(skip_locked=skip_locked)
        return query

    def ensure_action(self, row: ActionRow) -> None:
        """Insert ``row`` unless its ``action_id`` is there; waits for another transaction that is inserting it."""
        values = msgspec.structs.asdict(row)
        if self.connection.dialect.name == "postgresql":
            self.connection.execute(postgresql.insert(actions).values(values).on_conflict_do_nothing())
        else:
            self.connection.execute(sqlite.insert(actions).values(values).on_conflict_do_nothing())

    def lock_action(self, action_id: str) -> ActionRow | None:
        """The action, held against every other writer until the commit; None if nobody has touched it."""
        query = self.locked(select(actions).where(actions.c.action_id == action_id))
        found = self.connection.execute(query).mappings().one_or_none()
        return None if found is None else _action(found)

    def action(self, action_id: str) -> ActionRow | None:
        """The action as last committed; None if nobody has touched it."""
        found = (
            self.connection.execute(select(actions).where(actions.c.action_id == action_id)).mappings().one_or_none()
        )
        return None if found is None else _action(found)

    def statuses(self, action_ids: Iterable[str]) -> dict[str, str]:
        """Status by ``action_id`` of those actions that somebody has touched."""
        query = select(actions.c.action_id, actions.c.status).where(actions.c.action_id.in_(tuple(action_ids)))
        return {action_id: status for action_id, status in self.connection.execute(query)}

    def actions_of_session(self, session_id: str, status: str, *, limit: int) -> tuple[ActionRow, ...]:
        """At most ``limit`` actions of a session in a status, oldest first."""
        query = (
            select(actions)
            .where(actions.c.session_id == session_id, actions.c.status == status)
            .order_by(actions.c.created_at, actions.c.action_id)
            .limit(limit)
        )
        return tuple(_action(found) for found in self.connection.execute(query).mappings())

    def lock_overdue(self, statuses: Iterable[str], now: datetime, *, limit: int) -> tuple[ActionRow, ...]:
        """At most ``limit`` actions in one of ``statuses`` whose time is up, longest overdue first.

        On PostgreSQL those that another node is working on are left to it.
        """
        query = (
            select(actions)
            .where(actions.c.status.in_(tuple(statuses)), actions.c.expires_at <= now)
            .order_by(actions.c.expires_at, actions.c.action_id)
            .limit(limit)
        )
        rows = self.connection.execute(self.locked(query, skip_locked=True)).mappings()
        return tuple(_action(found) for found in rows)

    def events(self, action_id: str) -> tuple[ActionEvent, ...]:
        """All steps of an action in order."""
        query = select(action_events).where(action_events.c.action_id == action_id).order_by(action_events.c.n)
        return tuple(ActionEvent(**found) for found in self.connection.execute(query).mappings())

    def append(self, event: ActionEvent, *, draft_sealed: bytes | None = None) -> None:
        """Add a step and move the action to its status; ``draft_sealed`` is kept when given."""
        changes: dict[str, Any] = {"status": event.status, "updated_at": event.at}
        if draft_sealed is not None:
            changes["draft_sealed"] = draft_sealed
        self.connection.execute(insert(action_events).values(msgspec.structs.asdict(event)))
        self.connection.execute(update(actions).where(actions.c.action_id == event.action_id).values(changes))


def _action(found: RowMapping) -> ActionRow:
    return ActionRow(**found)
