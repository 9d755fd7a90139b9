"""The ledger's tables, the same on SQLite and PostgreSQL: how the code sees them.

``migrations/`` makes them, and with them the triggers by which the database itself keeps what is append-only.

No column holds chat text. What names a patient is sealed (``*_sealed``, bytes) or a keyed pseudonym
(``*_pseudonym``, hex). Times are integers, milliseconds since 1970 in UTC: SQLite has no type for a moment, and
two databases that round differently would give one command two answers.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
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
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def kept_ms(value: datetime | None) -> int | None:
    """A moment as it is kept: whole milliseconds since 1970, rounded down.

    Raises:
        ValueError: it has no time zone.
    """
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValueError("a moment in the ledger needs a time zone")
    return (value - _EPOCH) // _MS


class Moment(TypeDecorator[datetime]):
    """An aware datetime in UTC, kept as whole milliseconds; a naive one is refused."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Round down to the millisecond, which is what the wire carries too."""
        return kept_ms(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """The moment in UTC."""
        return None if value is None else _EPOCH + value * _MS


metadata = MetaData()

#: ``checked``: when the ledger was last seen to take a write; ``schema``: see the revision 0002.
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

#: The keys that seal alert texts: one for each UTC day (``2026-01-15``), itself sealed under the installation's ring.
#: ``key_sealed`` NULL: destroyed, for good; the row stays so that the day is never given another key.
ledger_keys = Table(
    "ledger_keys",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("key_sealed", LargeBinary, nullable=True),
)

#: Where each department's alert log stands: the number given last, and the oldest that is still kept. The lock on a
#: department's row orders the commits, so that a reader who sees a number has seen all before it.
alert_counters = Table(
    "alert_counters",
    metadata,
    Column("department", String(128), primary_key=True),
    Column("alert_seq", BigInteger, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    CheckConstraint("first_seq >= 1 AND first_seq <= alert_seq + 1", name="alert_counters_order"),
)

#: One row per alert: how it stands now. In the clear is what is searched by; ``urgency`` is 3 for critical to 0 for
#: low. ``next_due_at``: of its earliest timer. ``key_day``: the key that sealed ``body_sealed``.
alerts = Table(
    "alerts",
    metadata,
    Column("alert_id", String(128), primary_key=True),
    Column("department", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("urgency", Integer, nullable=False),
    Column("raised_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("dedup_mac", String(64), nullable=True),
    Column("next_due_at", Moment, nullable=True),
    Column("key_day", String(10), nullable=False),
    Column("body_sealed", LargeBinary, nullable=False),
    Index("alerts_by_department", "department", "state"),
    Index("alerts_by_dedup", "dedup_mac"),
    Index("alerts_by_due", "next_due_at"),
    Index("alerts_by_key", "key_day"),
)

#: Who was called to an alert, or whose phone has it, and who has not answered: all of them in one record, because a
#: department's are a thousand. ``key_day``: the key that sealed it.
alert_called = Table(
    "alert_called",
    metadata,
    Column("alert_id", String(128), ForeignKey("alerts.alert_id"), primary_key=True),
    Column("key_day", String(10), nullable=False),
    Column("people_sealed", LargeBinary, nullable=False),
    Index("alert_called_by_key", "key_day"),
)

#: Where each person stands with an alert who has ever answered it, ``n`` in the alert's own order (with those of
#: ``alert_called`` between them). Who has a row keeps it. What they wrote is in the alert's body.
alert_people = Table(
    "alert_people",
    metadata,
    Column("alert_id", String(128), ForeignKey("alerts.alert_id"), primary_key=True),
    Column("user_id", String(256), primary_key=True),
    Column("n", Integer, nullable=False),
    Column("answer", String(16), nullable=False),
    Column("at", Moment, nullable=False),
    Column("step", Integer, nullable=False),
    Column("eta_at", Moment, nullable=True),
    Column("slot", String(128), nullable=True),
    Column("delivered_at", Moment, nullable=True),
    Column("displayed_at", Moment, nullable=True),
    Column("accepted_at", Moment, nullable=True),
)

#: Every event of every department in order, with the frame that all its phones get; rows are added, never changed,
#: and removed only below the department's ``first_seq``.
alert_events = Table(
    "alert_events",
    metadata,
    Column("department", String(128), ForeignKey("alert_counters.department"), primary_key=True),
    Column("alert_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("alert_id", String(128), ForeignKey("alerts.alert_id"), nullable=False),
    Column("event", String(16), nullable=False),
    Column("at", Moment, nullable=False),
    Column("by_user", String(256), nullable=False),
    Column("key_day", String(10), nullable=False),
    Column("frame_sealed", LargeBinary, nullable=False),
    Index("alert_events_by_alert", "alert_id"),
    Index("alert_events_by_key", "key_day"),
)

#: What is due when; a change of an alert replaces all its rows.
alert_timers = Table(
    "alert_timers",
    metadata,
    Column("alert_id", String(128), ForeignKey("alerts.alert_id"), primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("due_at", Moment, nullable=False),
)

#: Commands that were taken, by whom and under which of their ids; kept as long as the alert.
alert_commands = Table(
    "alert_commands",
    metadata,
    Column("by_user", String(256), primary_key=True),
    Column("command_key", String(256), primary_key=True),
    Column("body_mac", String(64), nullable=False),
    Column("alert_id", String(128), ForeignKey("alerts.alert_id"), nullable=False),
    Column("alert_seq", BigInteger, nullable=False),
    Index("alert_commands_by_alert", "alert_id"),
)

#: Every row of the audit, in one order for all gateways; rows are added, never changed or removed. ``body`` counts; the
#: columns before it repeat it to be searched by. ``row_id``: the row's own id, so that none is there twice.
audit_rows = Table(
    "audit_rows",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("row_id", String(32), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("event", String(64), nullable=False),
    Column("user_id", String(256), nullable=False),
    Column("patient_pseudonym", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    Index("audit_rows_by_id", "row_id", unique=True),
    Index("audit_rows_by_user", "user_id", "seq"),
    Index("audit_rows_by_patient", "patient_pseudonym", "seq"),
)

#: Where the audit's chain stands, one row (``one`` = 1). The lock on it orders the commits, so that ``seq`` has no gap.
#: ``state_sealed`` holds the key of the next row and nothing of the keys before it.
audit_chain = Table(
    "audit_chain",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("chain", String(32), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("state_sealed", LargeBinary, nullable=False),
    CheckConstraint("one = 1", name="audit_chain_one"),
)
