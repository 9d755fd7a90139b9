"""What a phone says about alerts and about its person: raise, answer, be available. And the one gate for every way in.

All ways in (WebSocket, HTTP, FHIR, HL7, the command line) make an ``AlertRaise`` that the codec has checked, and pass
``command_of``: what may be said and who may say it is decided once.
"""

from __future__ import annotations

import asyncio
import secrets
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from chatd.actions.catalogue import alert_of
from chatd.actions.rules import Proposal
from chatd.alerts.model import RECEIPTS, Raise, Response
from chatd.alerts.permissions import may_answer, may_raise, raiser
from chatd.alerts.presence import MAX_STATE_S, Availed
from chatd.clock import iso_ms
from context.store import ContextStore, StoreError
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import Accepted, ActionCommand, AlertRaise, AlertResponse, AlertTarget, Presence, PresenceSet
from protocols.text import parse_time

if TYPE_CHECKING:
    from chatd.gateway.auth import Principal
    from chatd.gateway.connection import Connection

#: Begins the keys of the server's own commands; no client's id may begin with it (``protocols.frames.Id``).
_SERVER: Final = "!"

#: Nobody but the delegate can answer for themselves: it calls nobody else, and an acceptance lasts as long as a state.
_COVER_POLICY: Final = "cover"
_COVER_TEXT: Final = {
    "en": ("{name} asks you to take over their alerts until {until}.", "{name} asks you to take over their alerts."),
    "pt": ("{name} pede-lhe que receba os seus alertas até {until}.", "{name} pede-lhe que receba os seus alertas."),
}


#: An alert does not wait longer for the list of departments; what was known before still is.
_ANSWER_WITHIN_S: Final = 0.25


class Departments:
    """Which departments this hospital has, as far as it has ever been known here."""

    def __init__(self, store: ContextStore) -> None:
        self._store = store
        self._known: frozenset[str] = frozenset()

    async def has(self, department: str) -> bool | None:
        """Whether there is such a department; None: that cannot be asked now. Takes a quarter of a second at most."""
        if department in self._known:
            return True
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                self._known = frozenset(each.department_id for each in await self._store.departments())
        except (StoreError, TimeoutError):
            return None
        return department in self._known


def command_of(frame: AlertRaise, principal: Principal, *, department: str, is_drill: bool = False) -> Raise:
    """The command of a checked frame, under ``client_msg_id`` as its key.

    Args:
        department: Where a role or a user is looked for; an alert to a department goes to that one.
    Raises:
        RemoteProtocolError: forbidden, where the table of rights does not allow it.
    """
    where = frame.to.department or department
    if not may_raise(principal.roles, principal.departments, priority=frame.priority, department=where):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "this alert is not in your rights")
    return Raise(
        key=frame.client_msg_id,
        raised_by=raiser(principal.user_id, principal.roles),
        department=where,
        to=frame.to,
        priority=frame.priority,
        content=frame.content,
        requires_action=frame.requires_action,
        patient_id=frame.patient_id,
        policy=frame.template,
        dedup_key=frame.dedup_key,
        is_drill=is_drill,
    )


async def raise_alert(connection: Connection, frame: AlertRaise) -> None:
    """Raise an alert; ``accepted`` goes out when the ledger has it, with whom it can reach."""
    if frame.patient_id is not None and connection.active_patient_id not in (None, frame.patient_id):
        raise RemoteProtocolError(ErrorCode.PATIENT_MISMATCH)
    command = command_of(frame, _principal(connection), department=connection.department)
    alerts = connection.node.alerts
    raised = await alerts.raise_(command, alerts.now())
    connection.send(
        Accepted(
            client_msg_id=frame.client_msg_id,
            alert_id=raised.alert_id,
            duplicate=raised.is_duplicate,
            reach=raised.reach,
        )
    )


async def answer_alert(connection: Connection, frame: AlertResponse) -> None:
    """Take a person's answer; all phones hear of the change, and this one that it was taken. Receipts get no answer."""
    principal, alerts = _principal(connection), connection.node.alerts
    response = Response(
        key=frame.client_msg_id,
        # As for raising: a person whose id looks like a machine's does not end what that machine has raised.
        user_id=raiser(principal.user_id, principal.roles)
        if principal.user_id.startswith("service:")
        else principal.user_id,
        roles=principal.roles,
        department=connection.department,
        alert_id=frame.alert_id,
        answer=frame.answer,
        eta_min=frame.eta_min,
        reason=frame.reason,
        slot=frame.slot,
        colleague=frame.colleague,
    )
    if frame.answer in RECEIPTS:
        alerts.receipt(response)
        return
    if not may_answer(principal.roles):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "onlookers do not answer alerts")
    is_new = await alerts.respond(response, alerts.now())
    connection.send(Accepted(client_msg_id=frame.client_msg_id, alert_id=frame.alert_id, duplicate=not is_new))


async def set_presence(connection: Connection, frame: PresenceSet) -> None:
    """Note what the person is available for. A delegate is asked by an alert, and covers from their acceptance on.

    Raises:
        RemoteProtocolError: bad_request for a time that is over or half a day away, or a delegate who cannot be one.
        PresenceUnavailable, LedgerUnavailable: sent again under the same ``client_msg_id``, nobody is asked twice.
    """
    alerts, user_id = connection.node.alerts, connection.user_id
    now = alerts.now()
    until = None if frame.until is None else parse_time(frame.until)
    longest = now + timedelta(seconds=MAX_STATE_S)
    if until is not None and not now < until <= longest:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "until: within the next 12 hours")
    if until is None and frame.state != "available":
        until = longest  # told in the answer: a state that is forgotten ends by itself
    if frame.delegate_to is not None and (frame.state == "available" or frame.delegate_to == user_id):
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "delegate_to: somebody else, while you are not available")
    before = await alerts.presence.state_of(user_id)
    availed = Availed(state=frame.state, until=until, delegate_to=frame.delegate_to)
    if frame.delegate_to is not None:
        availed = await _ask(connection, frame, availed, before, now)
    await alerts.presence.set(user_id, availed, now=now)
    if before is not None and before.ask and before.ask != availed.ask:
        await _withdraw(connection, before.ask, now)
    connection.send(
        Presence(
            user_id=user_id,
            state=frame.state,
            until=None if until is None else iso_ms(until),
            delegate_to=frame.delegate_to,
            is_accepted=availed.is_accepted,
            client_msg_id=frame.client_msg_id,
        )
    )


async def _ask(
    connection: Connection, frame: PresenceSet, availed: Availed, before: Availed | None, now: datetime
) -> Availed:
    """Ask the delegate by an alert, unless they have accepted for that long already.

    Asked anew they would stand in for nobody until they have answered, though they had agreed.
    """
    alerts, delegate = connection.node.alerts, frame.delegate_to
    if before is not None and _has_agreed(before, availed):
        return msgspec.structs.replace(before, state=availed.state, until=availed.until)
    timed, untimed = _COVER_TEXT["pt" if connection.lang.lower().startswith("pt") else "en"]
    name = _principal(connection).name
    # As the frame has it: sent again, it must be the same request.
    until = None if frame.until is None else parse_time(frame.until)
    text = untimed.format(name=name) if until is None else timed.format(name=name, until=f"{until:%H:%M} UTC")
    raised = await alerts.raise_(
        Raise(
            key=f"{_SERVER}cover:{frame.client_msg_id or secrets.token_hex(8)}",
            raised_by=connection.user_id,
            department=connection.department,
            to=AlertTarget(user=delegate),
            priority="normal",
            content=text,
            requires_action=True,
            policy=_COVER_POLICY,
        ),
        now,
    )
    is_accepted = False
    if raised.is_duplicate:
        if before is not None and before.ask == raised.alert_id:
            return before
        view = await alerts.view(raised.alert_id)
        people = () if view is None else view.people
        is_accepted = any(each.user_id == delegate and each.answer == "accept" for each in people)
    return Availed(
        state=availed.state, until=availed.until, delegate_to=delegate, ask=raised.alert_id, is_accepted=is_accepted
    )


def _has_agreed(before: Availed, availed: Availed) -> bool:
    """Whether the delegate stands in now, and has said that they will until ``availed`` ends."""
    if not before.is_accepted or before.delegate_to != availed.delegate_to:
        return False
    return before.until is None or (availed.until is not None and availed.until <= before.until)


async def _withdraw(connection: Connection, alert_id: str, now: datetime) -> None:
    """A request to a delegate that nobody needs any more; one that is closed already stays as it is."""
    try:
        await connection.node.alerts.respond(
            Response(
                key=f"{_SERVER}uncover:{alert_id}",
                user_id=connection.user_id,
                roles=_principal(connection).roles,
                department=connection.department,
                alert_id=alert_id,
                answer="stand_down",
            ),
            now,
        )
    except RemoteProtocolError as error:
        if error.code not in (ErrorCode.ALERT_CLOSED, ErrorCode.BAD_REQUEST):
            raise


_HANDED_TEXT: Final = {"en": "Handed over: {label}", "pt": "Passagem de turno: {label}"}


async def alert_of_handover(proposal: Proposal, connection: Connection, frame: ActionCommand) -> Raise:
    """What a handed-over action goes on as: an alert that its person has, and that the colleague is asked to take.

    Raises:
        RemoteProtocolError: bad_request for a colleague whom nobody here knows.
    """
    await connection.node.alerts.require_colleague(connection.department, frame.colleague)
    text = _HANDED_TEXT["pt" if proposal.lang.lower().startswith("pt") else "en"]
    return Raise(
        key=f"{_SERVER}handover:{proposal.action_id}",
        raised_by=connection.user_id,
        department=proposal.department,
        to=AlertTarget(user=connection.user_id),
        priority="normal",
        content=text.format(label=proposal.label),
        requires_action=True,
        patient_id=proposal.patient_id,
        hand_to=frame.colleague,
    )


async def alert_of_action(proposal: Proposal, connection: Connection, _frame: ActionCommand) -> Raise | None:
    """The alert that a confirmed action raises; None for one that calls nobody.

    It says what the action's label says and whom it is about by id: no words of a model, no name.
    """
    call = alert_of(proposal.action.id)
    if call is None:
        return None
    department = call.department or proposal.department
    if await connection.node.alerts.is_department(department) is False:
        department = proposal.department
    return Raise(
        key=f"{_SERVER}action:{proposal.action_id}",
        raised_by=connection.user_id,
        department=department,
        to=AlertTarget(role=call.role) if call.role else AlertTarget(department=department),
        priority=call.priority,
        content=proposal.label,
        requires_action=True,
        patient_id=proposal.patient_id,
        policy=call.policy or None,
    )


def _principal(connection: Connection) -> Principal:
    assert connection.principal is not None  # noqa: S101 - authorised before it is opened
    return connection.principal
