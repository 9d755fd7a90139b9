"""Alerts: the departments' logs, how each alert stands, people, timers, commands, and the keys of the days."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# An event is never changed, and goes only when its department's log begins after it. The log's two numbers only rise,
# and a key that was destroyed stays so: a bug in the code above, or somebody's hand, meets the database itself.
_SQLITE = (
    """
    CREATE TRIGGER alert_events_no_update BEFORE UPDATE ON alert_events
    BEGIN SELECT RAISE(ABORT, 'alert_events is append-only'); END
    """,
    """
    CREATE TRIGGER alert_events_no_delete BEFORE DELETE ON alert_events
    WHEN OLD.alert_seq >= COALESCE((SELECT first_seq FROM alert_counters WHERE department = OLD.department), 0)
    BEGIN SELECT RAISE(ABORT, 'alert_events is append-only'); END
    """,
    """
    CREATE TRIGGER alert_counters_rise BEFORE UPDATE ON alert_counters
    WHEN NEW.department <> OLD.department OR NEW.alert_seq < OLD.alert_seq OR NEW.first_seq < OLD.first_seq
    BEGIN SELECT RAISE(ABORT, 'alert_counters only rise'); END
    """,
    """
    CREATE TRIGGER alert_counters_stay BEFORE DELETE ON alert_counters
    BEGIN SELECT RAISE(ABORT, 'alert_counters only rise'); END
    """,
    """
    CREATE TRIGGER ledger_keys_no_return BEFORE UPDATE ON ledger_keys
    WHEN NEW.day <> OLD.day OR NEW.key_sealed IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'ledger_keys are destroyed, never changed'); END
    """,
    """
    CREATE TRIGGER ledger_keys_stay BEFORE DELETE ON ledger_keys
    BEGIN SELECT RAISE(ABORT, 'ledger_keys are destroyed, never removed'); END
    """,
)
_POSTGRESQL = (
    """
    CREATE FUNCTION alert_events_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN
      IF TG_OP = 'DELETE' AND OLD.alert_seq < (SELECT first_seq FROM alert_counters WHERE department = OLD.department)
      THEN RETURN OLD; END IF;
      RAISE EXCEPTION 'alert_events is append-only';
    END$$
    """,
    """
    CREATE TRIGGER alert_events_append_only BEFORE UPDATE OR DELETE ON alert_events
    FOR EACH ROW EXECUTE FUNCTION alert_events_append_only()
    """,
    """
    CREATE FUNCTION alert_counters_rise() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN
      IF TG_OP = 'UPDATE' AND NEW.department = OLD.department
         AND NEW.alert_seq >= OLD.alert_seq AND NEW.first_seq >= OLD.first_seq
      THEN RETURN NEW; END IF;
      RAISE EXCEPTION 'alert_counters only rise';
    END$$
    """,
    """
    CREATE TRIGGER alert_counters_rise BEFORE UPDATE OR DELETE ON alert_counters
    FOR EACH ROW EXECUTE FUNCTION alert_counters_rise()
    """,
    """
    CREATE FUNCTION ledger_keys_no_return() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN
      IF TG_OP = 'UPDATE' AND NEW.day = OLD.day AND NEW.key_sealed IS NULL THEN RETURN NEW; END IF;
      RAISE EXCEPTION 'ledger_keys are destroyed, never changed';
    END$$
    """,
    """
    CREATE TRIGGER ledger_keys_no_return BEFORE UPDATE OR DELETE ON ledger_keys
    FOR EACH ROW EXECUTE FUNCTION ledger_keys_no_return()
    """,
)


def upgrade() -> None:
    """Make the tables for alerts; nothing of quick actions changes."""
    op.create_table(
        "ledger_keys",
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("key_sealed", sa.LargeBinary, nullable=True),
    )
    op.create_table(
        "alert_counters",
        sa.Column("department", sa.String(128), primary_key=True),
        sa.Column("alert_seq", sa.BigInteger, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.CheckConstraint("first_seq >= 1 AND first_seq <= alert_seq + 1", name="alert_counters_order"),
    )
    op.create_table(
        "alerts",
        sa.Column("alert_id", sa.String(128), primary_key=True),
        sa.Column("department", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("urgency", sa.Integer, nullable=False),
        sa.Column("raised_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("dedup_mac", sa.String(64), nullable=True),
        sa.Column("next_due_at", sa.BigInteger, nullable=True),
        sa.Column("key_day", sa.String(10), nullable=False),
        sa.Column("body_sealed", sa.LargeBinary, nullable=False),
    )
    op.create_index("alerts_by_department", "alerts", ["department", "state"])
    op.create_index("alerts_by_dedup", "alerts", ["dedup_mac"])
    op.create_index("alerts_by_due", "alerts", ["next_due_at"])
    op.create_index("alerts_by_key", "alerts", ["key_day"])
    op.create_table(
        "alert_people",
        sa.Column("alert_id", sa.String(128), sa.ForeignKey("alerts.alert_id"), primary_key=True),
        sa.Column("user_id", sa.String(256), primary_key=True),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("answer", sa.String(16), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("eta_at", sa.BigInteger, nullable=True),
        sa.Column("slot", sa.String(128), nullable=True),
        sa.Column("delivered_at", sa.BigInteger, nullable=True),
        sa.Column("displayed_at", sa.BigInteger, nullable=True),
        sa.Column("accepted_at", sa.BigInteger, nullable=True),
    )
    op.create_table(
        "alert_events",
        sa.Column("department", sa.String(128), sa.ForeignKey("alert_counters.department"), primary_key=True),
        sa.Column("alert_seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("alert_id", sa.String(128), sa.ForeignKey("alerts.alert_id"), nullable=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("by_user", sa.String(256), nullable=False),
        sa.Column("key_day", sa.String(10), nullable=False),
        sa.Column("frame_sealed", sa.LargeBinary, nullable=False),
    )
    op.create_index("alert_events_by_alert", "alert_events", ["alert_id"])
    op.create_index("alert_events_by_key", "alert_events", ["key_day"])
    op.create_table(
        "alert_timers",
        sa.Column("alert_id", sa.String(128), sa.ForeignKey("alerts.alert_id"), primary_key=True),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "alert_commands",
        sa.Column("by_user", sa.String(256), primary_key=True),
        sa.Column("command_key", sa.String(256), primary_key=True),
        sa.Column("body_mac", sa.String(64), nullable=False),
        sa.Column("alert_id", sa.String(128), sa.ForeignKey("alerts.alert_id"), nullable=False),
        sa.Column("alert_seq", sa.BigInteger, nullable=False),
    )
    op.create_index("alert_commands_by_alert", "alert_commands", ["alert_id"])
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
    # A chatd from before the revisions knows this number only, and refuses a ledger of another one.
    op.execute("UPDATE ledger_facts SET value = 2 WHERE name = 'schema'")
