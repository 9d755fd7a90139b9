"""What is no longer let in: a person's tokens, one token, or a phone, until told otherwise or for as long as needed."""

from __future__ import annotations

from typing import Final, Literal

from chatd.identity.register import Entry, Register

#: The longest life of a token and the difference of two clocks: what was revoked has ended by itself after this.
LONGEST_S: Final = 43_200 + 60
#: A provider's clock may be ahead of ours by this; a token made in these seconds counts as made before.
LEEWAY_S: Final = 5

Kind = Literal["user", "token", "device"]
REVOKED: Final = "revoked"
BLOCKED: Final = "blocked"
LIFTED: Final = "lifted"


class Revocations:
    """The list, as far as it is known here.

    A user: all tokens made until now, so that they can sign in again; ``for_good``: all tokens, until it is lifted.
    A token: by its ``jti``. A device: until it is lifted; a lost phone does not come back by itself.
    """

    def __init__(self, register: Register) -> None:
        self._register = register

    def is_revoked(self, *, user_id: str, token_id: str, issued_at_s: float, devices: tuple[str, ...]) -> bool:
        """Whether a token, used on these devices, is no longer let in."""
        user = self._register.get(f"user {user_id}")
        if user is not None:
            if user.value == BLOCKED:
                return True
            if user.value == REVOKED and issued_at_s <= user.at_ms / 1000 + LEEWAY_S:
                return True
        keys = (f"token {token_id}", *(f"device {device}" for device in devices))
        return any(_is_on(self._register.get(key)) for key in keys)

    async def revoke(self, kind: Kind, name: str, *, now_s: float, for_good: bool = False) -> None:
        """Raises RegisterUnavailable: nothing is promised. A second time begins the time anew."""
        until_s = None if for_good or kind == "device" else now_s + LONGEST_S
        await self._register.put(f"{kind} {name}", BLOCKED if for_good else REVOKED, until_s=until_s)

    async def lift(self, kind: Kind, name: str) -> bool:
        """Let it in again; False if it was not revoked. Raises RegisterUnavailable."""
        await self._register.sync()
        if not _is_on(self._register.get(f"{kind} {name}")):
            return False
        # It must win over the entry that other gateways still hold, for as long as those may come back.
        await self._register.put(f"{kind} {name}", LIFTED)
        return True

    def listed(self) -> list[Entry]:
        """What is revoked, oldest first."""
        return sorted((entry for entry in self._register.entries() if _is_on(entry)), key=lambda entry: entry.at_ms)


def _is_on(entry: Entry | None) -> bool:
    return entry is not None and entry.value != LIFTED
