"""``chatd revoke`` and ``chatd device``: tell all gateways whom, or which phone, to let in or not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
from redis.asyncio import Redis

from chatd.clock import SystemClock
from chatd.identity.devices import APPROVED, Devices
from chatd.identity.register import Entry, Register, RegisterUnavailable
from chatd.identity.revocation import Kind, Revocations
from chatd.places import Places
from context.seal import Sealer
from context.store import connect
from protocols.frames import Id

KINDS: Final[tuple[Kind, ...]] = ("user", "token", "device")


def revoke(places: Places, kind: Kind, name: str, *, for_good: bool) -> int:
    """Exit status 0: every gateway that reaches Redis knows within 5 s; 1: it is not known whether any does."""
    _require_id(name)

    async def work(register: Register) -> int:
        now_s = datetime.now(UTC).timestamp()
        await Revocations(register).revoke(kind, name, now_s=now_s, for_good=for_good)
        print(f"revoked {kind} {name}")
        return 0

    return _with(places, "revoked", work)


def lift(places: Places, kind: Kind, name: str) -> int:
    """Exit status 0: let in again; 1: it was not revoked, or that could not be said."""
    _require_id(name)

    async def work(register: Register) -> int:
        if not await Revocations(register).lift(kind, name):
            print(f"chatd: {kind} {name} is not revoked", file=sys.stderr)
            return 1
        print(f"lifted {kind} {name}")
        return 0

    return _with(places, "revoked", work)


def list_revoked(places: Places) -> int:
    """One line each, oldest first: kind, name, how, since, until."""

    async def work(register: Register) -> int:
        await register.sync()
        for entry in Revocations(register).listed():
            print(f"{entry.key} {entry.value} {_times(entry)}")
        return 0

    return _with(places, "revoked", work)


def list_devices(places: Places) -> int:
    """One line each, those that wait first: user, device, standing, since, until."""

    async def work(register: Register) -> int:
        await register.sync()
        for entry in Devices(register).listed():
            print(f"{entry.key} {entry.value} {_times(entry)}")
        return 0

    return _with(places, "devices", work)


def approve(places: Places, user_id: str, device: str) -> int:
    """Exit status 0: the phone is let in for this person from the next second on."""
    _require_id(user_id)
    _require_id(device)

    async def work(register: Register) -> int:
        await Devices(register).approve(user_id, device)
        print(f"{APPROVED} {user_id} {device}")
        return 0

    return _with(places, "devices", work)


def _require_id(name: str) -> None:
    """Raises ValueError for what no token could name: a typing error must not look like a success."""
    try:
        msgspec.convert(name, Id)
    except msgspec.ValidationError:
        raise ValueError("this is not an id: letters, digits and ._:@+- only") from None


def _times(entry: Entry) -> str:
    until = "-" if entry.until_s is None else _iso(entry.until_s)
    return f"{_iso(entry.at_ms / 1000)} {until}"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _with(places: Places, name: str, work: Callable[[Register], Awaitable[int]]) -> int:
    """Run ``work`` with a register of its own; the gateway's file on this machine is not touched."""
    if not places.redis_url:
        print(f"chatd: no chatd up is running on {places.data}; start one, or give --redis URL", file=sys.stderr)
        return 1

    async def run() -> int:
        redis: Redis = connect(places.redis_url, timeout_s=places.settings.redis_timeout_s, max_connections=2)
        try:
            register = Register(redis, Sealer(places.key_ring()), name, clock=SystemClock(), file=None)
            return await work(register)
        except RegisterUnavailable as error:
            print(f"chatd: {error}; nothing was changed for certain, try again", file=sys.stderr)
            return 1
        finally:
            await redis.aclose()

    return asyncio.run(run())
