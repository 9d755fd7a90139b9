"""The ledger's tables, the same on SQLite and PostgreSQL.

No column holds chat text. What names a patient is sealed (``*_sealed``, bytes) or a keyed pseudonym
(``*_pseudonym``, hex). Times are integers, milliseconds since 1970 in UTC: SQLite has no type for a moment, and
two databases that round differently would give one command two answers.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    event,
)

#: Raised when a table changes its shape; a ledger of another number is refused, not guessed at.
SCHEMA_VERSION = 1

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class Moment(TypeDecorator[datetime]):
    """An aware datetime in UTC, kept as whole milliseconds; a naive one is refused."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Round down to the millisecond, which is what the wire carries too."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment in the ledger needs a time zone")
        return (value - _EPOCH) // _MS

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """The moment in UTC."""
        return None if value is None else _EPOCH + value * _MS


metadata = MetaData()

#: SQLAlchemy leaves this constructor without types.
_ddl: Callable[[str], DDL] = DDL

#: ``schema``: the number above; ``checked``: when the ledger was last seen to take a write.
facts = Table(
    "ledger_facts",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

#: One row per quick action that somebody has touched: where it stands now. ``action_events`` says how it got there.
actions = Table(
    "actions",
    metadata,
    Column("action_id", String(128), primary_key=True),
    Column("session_id", String(128), nullable=False),
    Column("response_id", String(128), nullable=False),
    Column("catalog_id", String(128), nullable=False),
    Column("department", String(128), nullable=False),
    Column("user_id", String(256), nullable=False),
    Column("patient_pseudonym", String(64), nullable=True),
    Column("context_hash", String(128), nullable=False),
    Column("risk", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("proposal_sealed", LargeBinary, nullable=False),
    Column("draft_sealed", LargeBinary, nullable=True),
    Index("actions_by_session", "session_id", "status"),
    Index("actions_by_expiry", "status", "expires_at"),
    Index("actions_by_patient", "patient_pseudonym"),
)

#: Every step of every action, in order from ``n`` = 1; rows are added, never changed.
#: ``client_msg_id`` is the idempotency key of ``by_user``; ``body_mac`` tells the same command from another under
#: the same id. ``nonce`` and ``token_expires_at`` make the same confirm token again; the token itself is not kept.
action_events = Table(
    "action_events",
    metadata,
    Column("action_id", String(128), ForeignKey("actions.action_id"), primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("status", String(16), nullable=False),
    Column("by_user", String(256), nullable=False),
    Column("at", Moment, nullable=False),
    Column("reason", String(64), nullable=True),
    Column("client_msg_id", String(128), nullable=True),
    Column("body_mac", String(64), nullable=True),
    Column("nonce", String(64), nullable=True),
    Column("token_expires_at", Moment, nullable=True),
    UniqueConstraint("action_id", "by_user", "client_msg_id", name="action_events_once"),
)

# Append-only is kept by the database itself, so that no later line of code can forget it.
for _verb in ("UPDATE", "DELETE"):
    event.listen(
        action_events,
        "after_create",
        _ddl(
            f"CREATE TRIGGER action_events_no_{_verb.lower()} BEFORE {_verb} ON action_events "
            "BEGIN SELECT RAISE(ABORT, 'action_events is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )
event.listen(
    action_events,
    "after_create",
    _ddl(
        "CREATE OR REPLACE FUNCTION action_events_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'action_events is append-only'; END$$"
    ).execute_if(dialect="postgresql"),
)
event.listen(
    action_events,
    "after_create",
    _ddl(
        "CREATE TRIGGER action_events_append_only BEFORE UPDATE OR DELETE ON action_events "
        "FOR EACH ROW EXECUTE FUNCTION action_events_append_only()"
    ).execute_if(dialect="postgresql"),
)
