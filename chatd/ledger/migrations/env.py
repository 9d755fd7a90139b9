"""Run revisions on the connection that ``chatd.ledger.migrate`` brings, within its transaction."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
