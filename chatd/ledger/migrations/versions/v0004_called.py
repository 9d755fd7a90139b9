"""Alerts: who was called and has not answered is kept once, sealed, and no longer as a row for each person."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table; people of alerts that are there keep the rows they have."""
    op.create_table(
        "alert_called",
        sa.Column("alert_id", sa.String(128), sa.ForeignKey("alerts.alert_id"), primary_key=True),
        sa.Column("key_day", sa.String(10), nullable=False),
        sa.Column("people_sealed", sa.LargeBinary, nullable=False),
    )
    op.create_index("alert_called_by_key", "alert_called", ["key_day"])
