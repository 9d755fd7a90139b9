"""Which phone is whose: the first one of a person is taken, each further one waits until somebody approves it.

A password can be given away in a moment; a phone that the hospital has not seen with this person is then not enough.
A phone may be several people's, as ward phones are: what is approved is the pair. The id counts only as a claim of the
token, which the provider has signed; what a phone says of itself proves nothing.
"""

from __future__ import annotations

from typing import Final, Literal

from chatd.identity.register import Entry, Register

Standing = Literal["approved", "pending"]
APPROVED: Final = "approved"
PENDING: Final = "pending"
#: A phone that waits is forgotten after a week; so nobody can fill the register by trying.
_PENDING_S: Final = 7 * 86_400.0
#: Phones of one person that may wait at the same time.
MAX_PENDING: Final = 5


class Devices:
    """The known pairs of person and phone, as far as they are known here."""

    def __init__(self, register: Register) -> None:
        self._register = register

    def standing(self, user_id: str, device: str) -> Standing | None:
        """None: this pair was never seen."""
        entry = self._register.get(f"{user_id} {device}")
        return None if entry is None else "approved" if entry.value == APPROVED else "pending"

    async def meet(self, user_id: str, device: str, *, now_s: float) -> Standing:
        """Note a pair: the first phone of a person is approved by that. Raises RegisterUnavailable."""
        await self._register.sync()
        known = self.standing(user_id, device)
        if known is not None:
            return known
        others = [entry for entry in self._register.entries() if entry.key.startswith(f"{user_id} ")]
        if not others:
            await self._register.put(f"{user_id} {device}", APPROVED)
            return "approved"
        if sum(entry.value == PENDING for entry in others) < MAX_PENDING:
            await self._register.put(f"{user_id} {device}", PENDING, until_s=now_s + _PENDING_S)
        return "pending"

    async def approve(self, user_id: str, device: str) -> None:
        """Let a pair in, also one that was never seen: a new phone can be made ready. Raises RegisterUnavailable."""
        await self._register.put(f"{user_id} {device}", APPROVED)

    def listed(self) -> list[Entry]:
        """All pairs, those that wait first."""
        return sorted(self._register.entries(), key=lambda entry: (entry.value != PENDING, entry.key))
