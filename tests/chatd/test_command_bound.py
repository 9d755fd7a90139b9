"""chatd.gateway.commands: every command ends in an answer or an error, whatever it waits for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chatd.gateway import commands
from protocols import codec
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import Hello

GOLDEN = sorted((Path(__file__).parent.parent / "protocols" / "golden").glob("client.*.json"))
LIMITS = codec.CodecLimits()
READ = (codec.decode(path.read_bytes(), limits=LIMITS) for path in GOLDEN)
FRAMES = [frame for frame in READ if not isinstance(frame, Hello)]
#: Everything is permitted, and what is told of it nobody keeps.
GATE = SimpleNamespace(require=lambda *_: None)
AUDIT = SimpleNamespace(refused=lambda *_, **__: None)
SOMEBODY: dict[str, Any] = {
    "connection_id": "c-1",
    "principal": SimpleNamespace(roles=(), device=None),
    "session_id": "s",
    "device_id": None,
}
PHONE = cast(
    Any,
    SimpleNamespace(
        **SOMEBODY, is_alerts_only=False, key="k", department="d", node=SimpleNamespace(gate=GATE, audit=AUDIT)
    ),
)


def test_every_command_is_among_these() -> None:
    """A command that is added later is held to the same."""
    assert {type(frame) for frame in FRAMES} == set(commands._COMMANDS)


@pytest.mark.parametrize("frame", FRAMES, ids=[path.stem for path in GOLDEN if "hello" not in path.name])
async def test_command_that_waits_without_end_is_refused(frame: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told under its own id that it may be sent again; the next one has its turn."""

    async def stuck(_connection: object, _frame: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setitem(commands._COMMANDS, type(frame), stuck)
    monkeypatch.setattr(commands, "ANSWER_WITHIN_S", 0.01)
    with pytest.raises(RemoteProtocolError) as refused:
        async with asyncio.timeout(20):
            await commands.handle(PHONE, frame)
    error = refused.value
    assert (error.code, error.detail) == (ErrorCode.INTERNAL, commands.TOO_LATE)
    assert error.client_msg_id == getattr(frame, "client_msg_id", None)
    assert commands.is_retryable(error.code)
    assert error.retry_after_ms


@pytest.mark.parametrize("kind", ["user_message", "cancel", "context_set", "action", "feedback"])
async def test_command_that_needs_a_session_is_refused_where_there_is_none(kind: str) -> None:
    """A phone that was let in for alerts alone hears at once that the rest must wait; nothing is asked of Redis."""
    time = SimpleNamespace(monotonic_ms=lambda: 0, now=lambda: None)
    for frame in FRAMES:
        if frame.__struct_config__.tag != kind:
            continue
        node = SimpleNamespace(
            gate=GATE,
            audit=AUDIT,
            clock=time,
            faults=SimpleNamespace(reached=lambda _: None),
            # Called, they would fail.
            store=SimpleNamespace(read=None),
            sessions=SimpleNamespace(event=None),
        )
        phone = SimpleNamespace(
            **SOMEBODY,
            is_alerts_only=True,
            key=None,
            node=node,
            department=getattr(frame, "department", None),
            user_id=getattr(frame, "user_id", None),
            active_patient_id=None,
        )
        with pytest.raises(RemoteProtocolError) as refused:
            await commands.handle(cast(Any, phone), frame)
        assert (refused.value.code, refused.value.detail) == (ErrorCode.INTERNAL, commands.STATE_AWAY)
