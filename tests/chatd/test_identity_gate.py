"""The gate: what a token says, what has been revoked since, which phone it is, and emergency access."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from chatd.gateway.auth import Principal, TokenConfig, TokenError, TokenVerifier, mint
from chatd.gateway.gate import Gate, IdentityEvent
from chatd.identity.register import REGISTERS, Register
from context.seal import KeyRing, Sealer
from protocols.errors import CloseCode, ErrorCode, RemoteProtocolError
from tests.redis_server import RedisServer

NOW = datetime(2026, 1, 15, 7, 45, 20, tzinfo=UTC)
SECRET = b"a demo secret of at least 32 bytes"


class HandClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.wall = NOW

    def now(self) -> datetime:
        return self.wall

    def monotonic_ms(self) -> int:
        return round(self.wall.timestamp() * 1000)


class AuditAway(Exception):
    """The audit cannot be written."""


def gate_on(redis: Redis, clock: HandClock, **options: Any) -> Gate:
    sealer = Sealer(KeyRing.generate())
    revoked, devices, glass = (Register(redis, sealer, name, clock=clock, file=None) for name in REGISTERS)
    known: dict[str, Any] = {"needs_device": False, "break_glass_s": 3_600, "pseudonym_key": b"k" * 32}
    return Gate(
        TokenVerifier(TokenConfig(secret=SECRET), clock),
        revoked=revoked,
        devices=devices,
        glass=glass,
        clock=clock,
        **(known | options),
    )


@pytest.fixture
def gate(redis: Redis) -> Callable[..., Gate]:
    """Makes gates on one Redis at one time."""
    clock = HandClock()
    return lambda **options: gate_on(redis, options.pop("clock", clock), **options)


def token(user_id: str = "dr.a", *, role: str = "physician", device: str | None = None) -> str:
    return mint(SECRET, user_id=user_id, departments=("cardiology",), roles=(role,), ttl_s=600, now=NOW, device=device)


async def refusal(gate: Gate, text: str, **options: Any) -> tuple[ErrorCode, str | None]:
    with pytest.raises(TokenError) as error:
        await gate.admit(text, **options)
    return error.value.code, error.value.detail


async def test_revoked_token_is_refused_and_audited(gate: Callable[..., Gate]) -> None:
    """What was revoked is not let in, what was let in is to go, and the audit hears of it without the token."""
    one, events = gate(), []

    async def note(event: IdentityEvent) -> None:
        events.append(event)

    one.on_audit = note
    principal = await one.admit(token())
    assert one.standing(principal, None) is None
    await one.revocations.revoke("user", "dr.a", now_s=NOW.timestamp())
    assert one.standing(principal, None) is CloseCode.REVOKED
    assert await refusal(one, token()) == (ErrorCode.UNAUTHORIZED, "revoked")
    assert [(event.kind, event.outcome, event.user_id) for event in events] == [("refused", "revoked", "dr.a")]


async def test_revoked_phone_is_refused_by_claim_and_by_what_it_says(gate: Callable[..., Gate]) -> None:
    """A lost phone is out by the token's claim, and by its own word."""
    one = gate()
    await one.revocations.revoke("device", "d-lost", now_s=NOW.timestamp())
    assert (await refusal(one, token(device="d-lost")))[1] == "revoked"
    assert (await refusal(one, token(), device_id="d-lost"))[1] == "revoked"
    assert (await one.admit(token(device="d-2"), device_id="d-2")).device == "d-2"
    assert await refusal(one, token(device="d-2"), device_id="d-3") == (
        ErrorCode.FORBIDDEN,
        "device: the token is another's",
    )


async def test_approval_asks_people_for_their_device_and_machines_for_none(gate: Callable[..., Gate]) -> None:
    """With approval a person's token names a known device, in every way in; a machine's need not."""
    strict = gate(needs_device=True)
    assert await refusal(strict, token()) == (ErrorCode.FORBIDDEN, "device: the token names none")
    assert await refusal(strict, token(), device_id="d-1") == (ErrorCode.FORBIDDEN, "device: the token names none")
    await strict.admit(token(device="d-1"))
    assert (await refusal(strict, token(device="d-2")))[1] == "device: waits until it is approved"
    await strict.admit(token("lab", role="service"))


async def test_unknown_phone_is_told_to_come_again_while_redis_is_away(
    own_redis_server: RedisServer, own_redis: Redis
) -> None:
    """A first phone cannot be noted without Redis: that is not its fault; a known one comes in."""
    strict = gate_on(own_redis, HandClock(), needs_device=True)
    await strict.admit(token(device="d-1"))
    own_redis_server.kill()
    await strict.look()
    assert not strict.is_current
    await strict.admit(token(device="d-1"))
    assert (await refusal(strict, token("dr.b", device="d-1")))[0] is ErrorCode.INTERNAL


async def test_emergency_access_ends_and_is_not_given_without_audit(gate: Callable[..., Gate]) -> None:
    """No row, no access; with it the record is open until its time, under a pseudonym in the audit."""
    clock = HandClock()
    one = gate(clock=clock)
    principal = await one.admit(token())
    events: list[IdentityEvent] = []

    async def away(event: IdentityEvent) -> None:
        events.append(event)
        raise AuditAway

    async def note(event: IdentityEvent) -> None:
        events.append(event)

    one.on_audit = away
    with pytest.raises(AuditAway):
        await one.break_glass(principal, "cardiology", "p-er")
    assert not one.sees(principal, "cardiology", "p-er", ("emergency",))
    one.on_audit = note
    until_s = await one.break_glass(principal, "cardiology", "p-er")
    assert until_s == NOW.timestamp() + 3_600
    assert one.sees(principal, "cardiology", "p-er", ("emergency",))
    assert not one.sees(principal, "icu", "p-er", ("emergency",))
    assert events[0] == events[1]
    assert (events[0].kind, events[0].department) == ("break_glass", "cardiology")
    assert "p-er" not in repr(events)
    clock.wall += timedelta(seconds=3_600)
    assert not one.sees(principal, "cardiology", "p-er", ("emergency",))


def test_gate_refuses_what_the_table_does_not_allow(redis_server: RedisServer) -> None:
    """The refusal says nothing of the command."""
    one = gate_on(redis_server.client(), HandClock())
    person = Principal(user_id="x", name="x", roles=("clerk",), departments=("icu",), expires_at_s=0.0, token_id="t")
    with pytest.raises(RemoteProtocolError) as error:
        one.require(person, "user_message", "icu")
    assert (error.value.code, error.value.detail) == (ErrorCode.FORBIDDEN, "this is not in your rights")
