"""Keys of the days: what is sealed on a day becomes unreadable, in every copy, when the day's key is destroyed.

A day's key is 32 random bytes in ``ledger_keys``, sealed under the installation's ring. The first transaction that
seals on a day makes it; of two at once one waits for the other and takes its key. A destroyed day is never given
another key, so that whatever was sealed under the first stays what it is.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

from chatd.ledger.rows import Transaction
from chatd.ledger.tables import ledger_keys
from context.seal import KEY_BYTES, KeyRing, Sealer, SealError

#: Days whose keys are held ready in memory: the retention that chatd comes with and some more. Beyond it the oldest
#: entry is unsealed again when it is needed, which takes some ten microseconds.
MAX_READY: Final = 64

#: Shared on PostgreSQL: many seal at once, and whoever wants to destroy the key waits for them.
_KEY = select(ledger_keys.c.key_sealed).where(ledger_keys.c.day == bindparam("of"))
_KEY_SHARED = _KEY.with_for_update(read=True)
_NEW_KEY: Final[dict[str, Any]] = {
    "sqlite": sqlite.insert(ledger_keys).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(ledger_keys).on_conflict_do_nothing(),
}


def day_of(moment: datetime) -> str:
    """The UTC day of an aware moment, as ``2026-01-15``."""
    return moment.astimezone(UTC).date().isoformat()


class DayKeys:
    """Seals with the key of a moment's day, and opens what any living day sealed.

    Each transaction reads a day's row once and, when it seals, holds it: nobody destroys a key under a transaction
    that is using it, and a key whose making was rolled back is used by nobody. Memory only saves the unsealing.
    May be shared by ledgers of one process and one ring.
    """

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self._mac_key = sealer.derive("alert-dedup")
        #: By the sealed key itself, so that an entry is right whatever became of the row it was read from.
        self._ready: dict[tuple[str, bytes], Sealer] = {}

    def dedup_mac(self, department: str, dedup_key: str) -> str:
        """What tells equal dedup keys of a department and does not show them; 64 hex digits."""
        message = f"{department}\n{dedup_key}".encode()
        return hmac.new(self._mac_key, message, hashlib.sha256).hexdigest()

    def hold(self, tx: Transaction, at: datetime) -> str:
        """The day under which something of ``at`` is sealed, its key there and held until the transaction ends.

        Usually the day of ``at``. Where that day's key is destroyed, the clock of who says ``at`` stands weeks back:
        then the first living day after all that were destroyed, because an alert with a wrong date is still an alert.

        Raises:
            SealError: the ring does not open the day's key.
        """
        day = day_of(at)
        if day in tx.held_days:
            return day
        sealed = self._living(tx, day)
        if sealed is None:
            last = tx.connection.execute(select(func.max(ledger_keys.c.day)).where(ledger_keys.c.key_sealed.is_(None)))
            day = (date.fromisoformat(last.scalar_one()) + timedelta(days=1)).isoformat()
            if day in tx.held_days:
                return day
            sealed = self._living(tx, day)
        if sealed is None:
            raise SealError("key_unknown", day)
        tx.held_days[day] = self._unsealed(day, sealed)
        return day

    def seal(self, tx: Transaction, day: str, plaintext: bytes, *, aad: bytes) -> bytes:
        """Seal for the place that ``aad`` names; ``day`` is what ``hold`` gave in this transaction."""
        return tx.held_days[day].seal(plaintext, aad=aad)

    def open(self, tx: Transaction, day: str, sealed: bytes, *, aad: bytes) -> bytes:
        """What was sealed on ``day`` for the place ``aad``.

        Raises:
            SealError: the day's key is destroyed ("key_unknown"), or the record is not the one of this place.
        """
        ready = tx.held_days.get(day) or tx.read_days.get(day)
        if ready is None:
            found = tx.connection.execute(_KEY, {"of": day}).one_or_none()
            if found is None or found.key_sealed is None:
                raise SealError("key_unknown", day)
            ready = tx.read_days[day] = self._unsealed(day, found.key_sealed)
        return ready.open(sealed, aad=aad)

    def _living(self, tx: Transaction, day: str) -> bytes | None:
        """The day's sealed key, made if the day never had one, and held; None if it is destroyed."""
        found = tx.connection.execute(_KEY_SHARED, {"of": day}).one_or_none()
        if found is None:
            new = self._sealer.seal(secrets.token_bytes(KEY_BYTES), aad=_place(day))
            made = {"day": day, "key_sealed": new}
            # On PostgreSQL this waits for another transaction that is making the same day, and leaves it its key.
            tx.connection.execute(_NEW_KEY[tx.connection.dialect.name], made)
            found = tx.connection.execute(_KEY_SHARED, {"of": day}).one()
        return None if found.key_sealed is None else bytes(found.key_sealed)

    def _unsealed(self, day: str, sealed: bytes) -> Sealer:
        ready = self._ready.get((day, sealed))
        if ready is None:
            key = self._sealer.open(sealed, aad=_place(day))
            ready = Sealer(KeyRing({day: key}))
            while len(self._ready) >= MAX_READY:
                self._ready.pop(next(iter(self._ready)), None)
            self._ready[day, sealed] = ready
        return ready


def _place(day: str) -> bytes:
    return f"ledger_key|{day}".encode()
