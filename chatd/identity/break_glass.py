"""Emergency access: for some hours, one person may open one record of another department from the own one.

Which record it is stands here as a pseudonym only. The reason stands in the alert that the record's department gets,
sealed in the ledger, and nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac

from chatd.identity.register import Register

#: A reason of this many characters says something; "x" does not.
MIN_REASON_CHARS = 8


class Glass:
    """What is open, as far as it is known here."""

    def __init__(self, register: Register, key: bytes) -> None:
        """``key``: for the pseudonyms, derived for this purpose alone."""
        self._register = register
        self._key = key

    def pseudonym(self, patient_id: str) -> str:
        """The same for the same patient in one installation; leads back to nobody."""
        return hmac.digest(self._key, patient_id.encode(), hashlib.sha256)[:16].hex()

    def is_open(self, user_id: str, department: str, patient_id: str) -> bool:
        """Whether this person may open this record from this department now."""
        return self._register.get(f"{user_id} {department} {self.pseudonym(patient_id)}") is not None

    async def open(self, user_id: str, department: str, patient_id: str, *, until_s: float) -> None:
        """Open it on all gateways until then. Raises RegisterUnavailable: then it is not open."""
        key = f"{user_id} {department} {self.pseudonym(patient_id)}"
        await self._register.put(key, "open", until_s=until_s)
