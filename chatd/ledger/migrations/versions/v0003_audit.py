"""The audit: its rows, and where its chain stands."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# Rows are added and never changed or removed, and the chain only grows. Whoever owns the database can take triggers
# away; what they change then, the chain shows.
_SQLITE = (
    """
    CREATE TRIGGER audit_rows_no_update BEFORE UPDATE ON audit_rows
    BEGIN SELECT RAISE(ABORT, 'audit_rows is append-only'); END
    """,
    """
    CREATE TRIGGER audit_rows_no_delete BEFORE DELETE ON audit_rows
    BEGIN SELECT RAISE(ABORT, 'audit_rows is append-only'); END
    """,
    """
    CREATE TRIGGER audit_chain_grows BEFORE UPDATE ON audit_chain
    WHEN NEW.one <> OLD.one OR NEW.chain <> OLD.chain OR NEW.size < OLD.size
    BEGIN SELECT RAISE(ABORT, 'audit_chain only grows'); END
    """,
    """
    CREATE TRIGGER audit_chain_stays BEFORE DELETE ON audit_chain
    BEGIN SELECT RAISE(ABORT, 'audit_chain only grows'); END
    """,
)
_POSTGRESQL = (
    """
    CREATE FUNCTION audit_rows_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION 'audit_rows is append-only'; END$$
    """,
    """
    CREATE TRIGGER audit_rows_append_only BEFORE UPDATE OR DELETE ON audit_rows
    FOR EACH ROW EXECUTE FUNCTION audit_rows_append_only()
    """,
    """
    CREATE FUNCTION audit_chain_grows() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN
      IF TG_OP = 'UPDATE' AND NEW.one = OLD.one AND NEW.chain = OLD.chain AND NEW.size >= OLD.size
      THEN RETURN NEW; END IF;
      RAISE EXCEPTION 'audit_chain only grows';
    END$$
    """,
    """
    CREATE TRIGGER audit_chain_grows BEFORE UPDATE OR DELETE ON audit_chain
    FOR EACH ROW EXECUTE FUNCTION audit_chain_grows()
    """,
)


def upgrade() -> None:
    """Make the two tables; nothing of what is there changes."""
    op.create_table(
        "audit_rows",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("row_id", sa.String(32), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(256), nullable=False),
        sa.Column("patient_pseudonym", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    op.create_index("audit_rows_by_id", "audit_rows", ["row_id"], unique=True)
    op.create_index("audit_rows_by_user", "audit_rows", ["user_id", "seq"])
    op.create_index("audit_rows_by_patient", "audit_rows", ["patient_pseudonym", "seq"])
    op.create_table(
        "audit_chain",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("chain", sa.String(32), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("state_sealed", sa.LargeBinary, nullable=False),
        sa.CheckConstraint("one = 1", name="audit_chain_one"),
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
