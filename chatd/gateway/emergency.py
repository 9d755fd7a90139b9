"""Emergency access to a record of another department: told to that department first, then open for some hours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chatd.alerts.model import Raise
from chatd.alerts.permissions import raiser
from chatd.gateway.auditing import ahead
from chatd.identity.break_glass import MIN_REASON_CHARS
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertTarget

if TYPE_CHECKING:
    from chatd.gateway.connection import Connection

#: The name of this right in the table of roles.
COMMAND: Final = "break_glass"
_TOLD: Final = {
    "en": "Emergency access to this record by {name}, {department}. Reason: {reason}",
    "pt": "Acesso de emergência a este processo por {name}, {department}. Motivo: {reason}",
}


async def open_by_emergency(connection: Connection, patient_id: str, reason: str, client_msg_id: str) -> None:
    """Let this person see the record from this department; nothing happens where they may already.

    Each department of the record gets an alert with the reason, in the ledger before anything is shown; sent again
    under the same id nobody is told twice. Elsewhere the reason is written nowhere.

    Raises:
        RemoteProtocolError: forbidden by the table of roles; bad_request without a reason that says something;
            rate_limited, as alerts are.
        PatientUnknown, StoreError, LedgerUnavailable, RegisterUnavailable, AuditUnavailable: then nothing is open.
    """
    node, principal, department = connection.node, connection.principal, connection.department
    assert principal is not None  # noqa: S101 - authorised before it is opened
    # Before the record is looked for: who may not, does not learn whether there is one.
    node.gate.require(principal, COMMAND, department)
    reason = reason.strip()
    if len(reason) < MIN_REASON_CHARS:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, f"reason: at least {MIN_REASON_CHARS} characters")
    layer = await node.store.patient(patient_id)
    if node.gate.sees(principal, department, patient_id, layer.departments):
        return
    text = _TOLD["pt" if connection.lang.lower().startswith("pt") else "en"]
    for told in layer.departments or (department,):
        await node.alerts.raise_(
            Raise(
                # No client's key begins so.
                key=f"!glass:{client_msg_id}:{told}",
                raised_by=raiser(principal.user_id, principal.roles),
                department=told,
                to=AlertTarget(department=told),
                priority="normal",
                content=text.format(name=principal.name, department=department, reason=reason),
                patient_id=patient_id,
            ),
            node.alerts.now(),
        )
    await ahead(connection, "break_glass", patient_id=patient_id)
    await node.gate.break_glass(principal, department, patient_id)
