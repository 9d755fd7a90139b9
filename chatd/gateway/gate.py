"""The one gate: every token that comes in, by socket or HTTP, passes here, and so does every command.

It brings together what a token says, what has been revoked since, which phones are known, and the table of roles.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal

import msgspec
import structlog

from chatd import tasks
from chatd.alerts.permissions import SERVICE
from chatd.clock import Clock
from chatd.gateway.auth import Principal, TokenError, TokenVerifier
from chatd.identity.break_glass import Glass
from chatd.identity.devices import Devices
from chatd.identity.register import Register, RegisterUnavailable
from chatd.identity.revocation import Revocations
from chatd.identity.roles import TABLE
from chatd.logs import error_name
from protocols.errors import CloseCode, ErrorCode, RemoteProtocolError

log = structlog.get_logger(__name__)

#: With the doorbell a revocation is known at once, without it within this and one wait for Redis: under 5 s.
LOOK_S: Final = 1.0
#: The details of refusals that have a close code of their own.
REVOKED: Final = "revoked"
DEVICE: Final = "device"
DEVICE_PENDING: Final = "device: waits until it is approved"
DEVICE_MISSING: Final = "device: the token names none"

IdentityKind = Literal["refused", "device_met", "break_glass"]


class IdentityEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit is told: who, from where, and how it ended; no token, no reason, no patient but by pseudonym."""

    kind: IdentityKind
    outcome: str
    user_id: str = ""
    department: str = ""
    device: str = ""
    token_id: str = ""
    patient_pseudonym: str = ""


async def no_audit(event: IdentityEvent) -> None:
    """Where nothing is audited."""


def is_our_page(origin: str | None, host: str, allowed: frozenset[str]) -> bool:
    """Whether a socket may be opened from this ``Origin``: none (no browser), a listed one, or where none is listed the
    page of this very host. A browser cannot be made to send another one (cross-site hijacking)."""
    if origin is None:
        return True
    if allowed:
        return origin.lower() in allowed
    return bool(host) and origin.lower() in (f"https://{host.lower()}", f"http://{host.lower()}")


class Gate:
    """Who may come in and what they may do; one for all connections and requests of a gateway.

    ``on_audit`` is awaited before an emergency access is given; where it raises, none is.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        *,
        revoked: Register,
        devices: Register,
        glass: Register,
        pseudonym_key: bytes,
        clock: Clock,
        needs_device: bool,
        break_glass_s: int,
        origins: frozenset[str] = frozenset(),
    ) -> None:
        self._verifier = verifier
        self._registers = (revoked, devices, glass)
        self._clock = clock
        self._needs_device = needs_device
        self._break_glass_s = break_glass_s
        self._origins = origins
        self._rung = asyncio.Event()
        self.revocations = Revocations(revoked)
        self.devices = Devices(devices)
        self.glass = Glass(glass, pseudonym_key)
        self.on_audit: Callable[[IdentityEvent], Awaitable[None]] = no_audit
        #: Called each second and after a ring: whoever is connected is to be looked at.
        self.on_change: Callable[[], None] = lambda: None

    # --- state, for readiness ---

    @property
    def is_current(self) -> bool:
        """The lists of what is revoked, known and open are those of all gateways, not only the last ones seen."""
        return all(register.is_current for register in self._registers)

    @property
    def has_keys(self) -> bool:
        """Tokens can be told good from bad."""
        return self._verifier.has_keys(self._clock.now())

    @property
    def keys_error(self) -> str | None:
        return self._verifier.keys_error

    # --- coming in ---

    def is_our_page(self, origin: str | None, host: str) -> bool:
        """As the function, with the list of this installation."""
        return is_our_page(origin, host, self._origins)

    async def admit(self, token: str, *, device_id: str | None = None) -> Principal:
        """Who comes with ``token``; ``device_id`` is what a phone says of itself.

        Raises TokenError: as the verifier; ``unauthorized`` with detail ``revoked``; ``forbidden`` with a detail that
        begins with ``device``.
        """
        principal = await self._verifier.authenticate(token, now=self._clock.now())
        try:
            await self._check(principal, device_id)
        except TokenError as error:
            await self.on_audit(_event("refused", error.detail or error.code.value, principal))
            raise
        return principal

    async def _check(self, principal: Principal, device_id: str | None) -> None:
        if self.is_revoked(principal, device_id):
            raise TokenError(ErrorCode.UNAUTHORIZED, REVOKED)
        if principal.device is not None and device_id not in (None, principal.device):
            raise TokenError(ErrorCode.FORBIDDEN, "device: the token is another's")
        if not self._needs_device or SERVICE in principal.roles:
            return
        if principal.device is None:
            raise TokenError(ErrorCode.FORBIDDEN, DEVICE_MISSING)
        standing = self.devices.standing(principal.user_id, principal.device)
        if standing is None:
            try:
                standing = await self.devices.meet(
                    principal.user_id, principal.device, now_s=self._clock.now().timestamp()
                )
            except RegisterUnavailable:
                raise TokenError(ErrorCode.INTERNAL, DEVICE) from None
            await self.on_audit(_event("device_met", standing, principal))
        if standing != "approved":
            raise TokenError(ErrorCode.FORBIDDEN, DEVICE_PENDING)

    def is_revoked(self, principal: Principal, device_id: str | None = None) -> bool:
        devices = tuple(device for device in (principal.device, device_id) if device is not None)
        return self.revocations.is_revoked(
            user_id=principal.user_id,
            token_id=principal.token_id,
            issued_at_s=principal.issued_at_s,
            devices=devices,
        )

    def standing(self, principal: Principal, device_id: str | None) -> CloseCode | None:
        """Why somebody who was let in is to go now; None: they may stay."""
        if self.is_revoked(principal, device_id):
            return CloseCode.REVOKED
        if not self._verifier.trusts(principal, self._clock.now()):
            return CloseCode.TOKEN_CHANGED
        return None

    # --- what they may do ---

    def may(self, principal: Principal, command: str, department: str | None) -> bool:
        """Whether the table of roles allows it."""
        return TABLE.may(principal.roles, principal.departments, command, department)

    def require(self, principal: Principal, command: str, department: str | None) -> None:
        """Raises RemoteProtocolError ``forbidden``, with nothing about the command."""
        if not self.may(principal, command, department):
            raise RemoteProtocolError(ErrorCode.FORBIDDEN, "this is not in your rights")

    def sees(self, principal: Principal, department: str, patient_id: str, departments: Iterable[str]) -> bool:
        """Whether a record that is in ``departments`` may be seen from ``department``, if need be by emergency."""
        return department in departments or self.glass.is_open(principal.user_id, department, patient_id)

    async def break_glass(self, principal: Principal, department: str, patient_id: str) -> float:
        """Open a record of another department for some hours; returns until when (seconds since 1970).

        The record's department has been told before. Raises RegisterUnavailable, and whatever ``on_audit`` raises.
        """
        until_s = self._clock.now().timestamp() + self._break_glass_s
        event = _event("break_glass", "opened", principal)
        await self.on_audit(
            msgspec.structs.replace(event, department=department, patient_pseudonym=self.glass.pseudonym(patient_id))
        )
        await self.glass.open(principal.user_id, department, patient_id, until_s=until_s)
        return until_s

    # --- what others have changed ---

    def ring(self) -> None:
        """Some register has changed, on some gateway."""
        self._rung.set()

    async def look(self) -> None:
        """Take what others have changed; what cannot be asked stays as it was last known."""
        for register in self._registers:
            with contextlib.suppress(RegisterUnavailable):
                await register.sync()
        # Keys may have been withdrawn, too.
        self.on_change()

    async def prepare(self) -> None:
        """Before anybody is let in: ask for the keys and the lists once; what is away is asked again by ``run``."""
        await self._verifier.refresh(self._clock.now())
        await self.look()

    async def run(self) -> None:
        """Keep keys and lists fresh until cancelled."""
        keys = asyncio.create_task(self._verifier.run())
        keys.add_done_callback(_report_end)
        try:
            while True:
                await self.look()
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._rung.wait()
                except TimeoutError:
                    continue
                self._rung.clear()
        finally:
            await tasks.end([keys])


def _event(kind: IdentityKind, outcome: str, principal: Principal) -> IdentityEvent:
    return IdentityEvent(
        kind=kind,
        outcome=outcome,
        user_id=principal.user_id,
        device=principal.device or "",
        token_id=principal.token_id,
    )


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("keys_not_kept", error=error_name(error))
