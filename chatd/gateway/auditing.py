"""What a gateway's connections and routes tell the audit."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from chatd.audit.service import Audit, AuditUnavailable
from protocols.errors import RemoteProtocolError
from protocols.frames import (
    ActionCommand,
    AlertRaise,
    AlertResponse,
    Cancel,
    ClientFrame,
    ContextSet,
    Feedback,
    PresenceSet,
    Refresh,
    SessionEnd,
    UserMessage,
)

if TYPE_CHECKING:
    from chatd.gateway.connection import Connection
    from chatd.gateway.gate import IdentityEvent

#: What is noted of a command once it was taken; the others write their rows themselves, before or in a transaction.
_TAKEN: Final[dict[type[Any], str]] = {
    Cancel: "question.cancel",
    Feedback: "feedback",
    PresenceSet: "presence",
    Refresh: "token.renewed",
    SessionEnd: "session.end",
}
#: What is noted of a command that was refused.
_REFUSED: Final[dict[type[Any], str]] = {
    **_TAKEN,
    UserMessage: "question",
    ContextSet: "patient.open",
    ActionCommand: "action",
    AlertRaise: "alert.refused",
    AlertResponse: "alert.refused",
    Refresh: "token.refused",
}
_CODE: Final = re.compile(r"[a-z_]{1,32}")


def _who(connection: Connection) -> dict[str, Any]:
    principal = connection.principal
    return {
        "user": connection.user_id,
        "roles": () if principal is None else tuple(principal.roles),
        "session": connection.session_id,
        "device": (principal.device if principal is not None else None) or connection.device_id,
        "department": connection.department,
    }


async def ahead(connection: Connection, event: str, **fields: Any) -> None:
    """Have a row on a disk before what it tells of is done. Raises AuditUnavailable: it must not be done."""
    audit = connection.node.audit
    await audit.record(audit.row(event, **_who(connection), **fields))


def note(connection: Connection, event: str, **fields: Any) -> None:
    """Note what shows nothing of a patient; never waits."""
    audit = connection.node.audit
    audit.note(audit.row(event, **_who(connection), **fields))


def taken(connection: Connection, frame: ClientFrame) -> None:
    """A command was carried out."""
    event = _TAKEN.get(type(frame))
    if event is not None:
        note(connection, event, response=getattr(frame, "response_id", None), detail=getattr(frame, "state", None))


def refused(connection: Connection, frame: ClientFrame, error: RemoteProtocolError) -> None:
    """A command was not carried out."""
    event = _REFUSED.get(type(frame))
    if event is not None:
        fields = _who(connection)
        user, department = fields.pop("user"), fields.pop("department")
        connection.node.audit.refused(event, error.code.value, user=user, department=department, **fields)


def token_refused(audit: Audit, error: RemoteProtocolError, *, user: str = "", department: str = "") -> None:
    """A token was not taken, or not for this place. ``user``: whom it proves, else ``Audit.named`` of whom it names."""
    # The rule that it broke, in one word where it is one.
    rule = (error.detail or "").partition(":")[0]
    detail = rule if _CODE.fullmatch(rule) else None
    audit.refused("token.refused", error.code.value, user=user, department=department, detail=detail)


def of_identity(audit: Audit) -> Callable[[IdentityEvent], Awaitable[None]]:
    """Takes the gate's events. Refusals are told by who closes or answers, emergencies by who opens the record."""

    async def take(event: IdentityEvent) -> None:
        if event.kind == "device_met":
            audit.note(audit.row("device.met", user=event.user_id, device=event.device, detail=event.outcome))

    return take


__all__ = ["AuditUnavailable", "ahead", "note", "of_identity", "refused", "taken", "token_refused"]
