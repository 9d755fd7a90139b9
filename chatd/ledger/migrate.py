"""Bring a ledger to the shape that this chatd knows, inside the transaction that found it otherwise."""

from __future__ import annotations

import logging
import threading

from sqlalchemy import Connection, inspect, text

#: The newest revision in ``migrations/versions/``; a ledger that stands there needs nothing, alembic included.
HEAD = "0004"
#: A ledger from before the revisions carries this number in ``ledger_facts``, and has the tables of ``FIRST``.
FIRST = "0001"
_FIRST_SCHEMA = 1

#: alembic hands the revisions their connection through module variables: one at a time in this process.
_ONE_AT_A_TIME = threading.Lock()


class UnknownRevision(Exception):
    """The ledger was written by a chatd that is newer than this one, or by something else."""


def migrate(connection: Connection, target: str = HEAD) -> None:
    """Bring the ledger behind ``connection`` to ``target``; the caller holds the lock and commits.

    Raises:
        UnknownRevision: its shape is none that this chatd knows; nothing was changed.
    """
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
        if found == [target]:
            return
        if len(found) != 1:
            raise UnknownRevision
        current = found[0]
    elif "ledger_facts" in tables:
        schema = connection.execute(text("SELECT value FROM ledger_facts WHERE name = 'schema'")).scalar()
        if schema != _FIRST_SCHEMA:
            raise UnknownRevision
        current = None
    else:
        current = ""
    # Imported here: it takes a fifth of a second, and a ledger is brought forward once in a release.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "chatd.ledger:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    if current and current not in {each.revision for each in ScriptDirectory.from_config(config).walk_revisions()}:
        raise UnknownRevision
    with _ONE_AT_A_TIME:
        if current is None:
            command.stamp(config, FIRST)
        command.upgrade(config, target)
