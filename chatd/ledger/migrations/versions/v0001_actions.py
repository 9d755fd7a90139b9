"""Quick actions and their steps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SQLITE = (
    """
    CREATE TRIGGER action_events_no_update BEFORE UPDATE ON action_events
    BEGIN SELECT RAISE(ABORT, 'action_events is append-only'); END
    """,
    """
    CREATE TRIGGER action_events_no_delete BEFORE DELETE ON action_events
    BEGIN SELECT RAISE(ABORT, 'action_events is append-only'); END
    """,
)
_POSTGRESQL = (
    """
    CREATE FUNCTION action_events_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION 'action_events is append-only'; END$$
    """,
    """
    CREATE TRIGGER action_events_append_only BEFORE UPDATE OR DELETE ON action_events
    FOR EACH ROW EXECUTE FUNCTION action_events_append_only()
    """,
)


def upgrade() -> None:
    """Make the tables of the first ledger, and the two facts."""
    facts = op.create_table(
        "ledger_facts",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "actions",
        sa.Column("action_id", sa.String(128), primary_key=True),
        sa.Column("session_id", sa.String(128), nullable=False),
        sa.Column("response_id", sa.String(128), nullable=False),
        sa.Column("catalog_id", sa.String(128), nullable=False),
        sa.Column("department", sa.String(128), nullable=False),
        sa.Column("user_id", sa.String(256), nullable=False),
        sa.Column("patient_pseudonym", sa.String(64), nullable=True),
        sa.Column("context_hash", sa.String(128), nullable=False),
        sa.Column("risk", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("proposal_sealed", sa.LargeBinary, nullable=False),
        sa.Column("draft_sealed", sa.LargeBinary, nullable=True),
    )
    op.create_index("actions_by_session", "actions", ["session_id", "status"])
    op.create_index("actions_by_expiry", "actions", ["status", "expires_at"])
    op.create_index("actions_by_patient", "actions", ["patient_pseudonym"])
    op.create_table(
        "action_events",
        sa.Column("action_id", sa.String(128), sa.ForeignKey("actions.action_id"), primary_key=True),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("by_user", sa.String(256), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.String(64), nullable=True),
        sa.Column("client_msg_id", sa.String(128), nullable=True),
        sa.Column("body_mac", sa.String(64), nullable=True),
        sa.Column("nonce", sa.String(64), nullable=True),
        sa.Column("token_expires_at", sa.BigInteger, nullable=True),
        sa.UniqueConstraint("action_id", "by_user", "client_msg_id", name="action_events_once"),
    )
    # Append-only is kept by the database itself, so that no later line of code can forget it.
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
    op.bulk_insert(facts, [{"name": "schema", "value": 1}, {"name": "checked", "value": 0}])
