"""What each command of a phone does; ``connection`` reads it, this room answers it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from chatd import metrics
from chatd.actions.identifiers import second_identifier
from chatd.actions.rules import Actor, Proposal
from chatd.alerts.permissions import may_raise
from chatd.alerts.presence import PresenceUnavailable
from chatd.alerts.service import Raising
from chatd.clock import epoch_ms
from chatd.gateway.alerting import alert_of_action, alert_of_handover, answer_alert, raise_alert, set_presence
from chatd.gateway.auditing import AuditUnavailable, ahead, note, refused, taken
from chatd.gateway.emergency import open_by_emergency
from chatd.gateway.namesakes import tells_apart
from chatd.gateway.welcome import may_see, patient_info, permitted_patient
from chatd.identity.register import RegisterUnavailable
from chatd.ledger import LedgerUnavailable
from chatd.replies.facts import context_hash, context_info
from chatd.replies.question import language_of
from chatd.replies.runs import Run
from chatd.replies.sessions import Request, SessionLost, SessionsUnavailable, response_id_of
from context import memo
from context.layers import PatientLayer
from context.store import ContextNotLoaded, DepartmentUnknown, PatientUnknown, StoreUnavailable
from context.text import fold
from protocols.errors import ERRORS, CloseCode, ErrorCode, RemoteProtocolError
from protocols.frames import (
    Accepted,
    Ack,
    ActionCommand,
    AlertRaise,
    AlertResponse,
    Cancel,
    ClientFrame,
    Context,
    ContextSet,
    Feedback,
    Ping,
    Pong,
    PresenceSet,
    Rate,
    Refresh,
    SessionEnd,
    UserMessage,
)

if TYPE_CHECKING:
    from chatd.gateway.connection import Connection

log = structlog.get_logger(__name__)

#: When a place for state does not answer, a client tries again after this.
_RETRY_MS = 1_000
#: A command is answered or refused within this, whatever it waits for: more than all that one of them may wait for in
#: Redis and in the ledger, one after the other, as long as each wait keeps its own end.
ANSWER_WITHIN_S = 15.0
LOADING = "the records are being loaded"
STATE_AWAY = "the session store does not answer"
LEDGER_AWAY = "nothing can be recorded now"
TOO_LATE = "no answer in time"


def is_retryable(code: ErrorCode) -> bool:
    return ERRORS[code].retryable


async def handle(connection: Connection, frame: ClientFrame) -> None:
    """Carry out one command that the session's rules allow.

    Raises:
        RemoteProtocolError: it was not taken; nothing was done. Expected faults of Redis become one here. So does
            what takes longer than ``ANSWER_WITHIN_S``: that may have been done, and sent again does nothing twice.
        SessionLost: the session is gone; the connection must be closed and begun anew.
    """
    command = _COMMANDS.get(type(frame))
    client_msg_id = getattr(frame, "client_msg_id", None)
    if command is None:
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED_TYPE, client_msg_id=client_msg_id)
    principal = connection.principal
    assert principal is not None  # noqa: S101 - authorised before it is opened
    try:
        connection.node.gate.require(principal, str(frame.__struct_config__.tag), connection.department)
        async with asyncio.timeout(ANSWER_WITHIN_S):
            await command(connection, frame)
        taken(connection, frame)
    except TimeoutError:
        log.error("command_too_late", connection_id=connection.connection_id, command=str(frame.__struct_config__.tag))
        raise _later(TOO_LATE, client_msg_id) from None
    except RemoteProtocolError as error:
        error.client_msg_id = error.client_msg_id or client_msg_id
        refused(connection, frame, error)
        raise
    except ContextNotLoaded:
        raise _later(LOADING, client_msg_id) from None
    except (SessionsUnavailable, StoreUnavailable, PresenceUnavailable, RegisterUnavailable):
        raise _later(STATE_AWAY, client_msg_id) from None
    except (LedgerUnavailable, AuditUnavailable):
        raise _later(LEDGER_AWAY, client_msg_id) from None
    except DepartmentUnknown:
        raise _not_found(connection, frame, ErrorCode.FORBIDDEN) from None
    except PatientUnknown:
        raise _not_found(connection, frame, ErrorCode.PATIENT_UNKNOWN) from None


def _not_found(connection: Connection, frame: ClientFrame, code: ErrorCode) -> RemoteProtocolError:
    error = RemoteProtocolError(code, client_msg_id=getattr(frame, "client_msg_id", None))
    refused(connection, frame, error)
    return error


def _later(detail: str, client_msg_id: str | None) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.INTERNAL, detail, client_msg_id=client_msg_id, retry_after_ms=_RETRY_MS)


# --- questions ----------------------------------------------------------------------------------------------


async def _user_message(connection: Connection, frame: UserMessage) -> None:
    """Check, accept once, answer ``accepted``, and let the run go on by itself."""
    node = connection.node
    received_ms = node.clock.monotonic_ms()
    now = node.clock.now()
    node.faults.reached("receive")
    if frame.department not in (None, connection.department) or frame.user_id not in (None, connection.user_id):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "not this connection's department or user")
    patient_id = _fenced(connection, frame.patient_id)
    layers = await node.store.read(
        department_id=connection.department,
        user_id=connection.user_id,
        patient_id=patient_id,
        session_key=_key(connection),
    )
    if layers.patient is not None and not may_see(connection, layers.patient):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN)
    node.faults.reached("check")
    lang = frame.lang or language_of(
        frame.content, hint="", default="pt" if connection.lang.lower().startswith("pt") else "en"
    )
    request = Request(
        client_msg_id=frame.client_msg_id,
        content=frame.content,
        user_id=connection.user_id,
        department=connection.department,
        patient_id=patient_id,
        session_id=(frame.session_id or connection.session_id) if connection.compat else connection.session_id,
        lang="pt" if lang.lower().startswith("pt") else "en",
        urgency=frame.urgency,
        received_at=now,
        input=frame.input,
    )
    key = _key(connection)
    response_id = response_id_of(key, connection.epoch, frame.client_msg_id)
    # The record is read for this question: no row, no question.
    await ahead(connection, "question", patient_id=patient_id, response=response_id, detail=frame.input)
    accepted = await node.sessions.accept(
        key,
        connection.epoch,
        user_id=connection.user_id,
        client_msg_id=frame.client_msg_id,
        body=msgspec.json.encode((frame.content, frame.patient_id, frame.urgency, frame.input)),
        response_id=response_id,
        request=msgspec.json.encode(request),
        owner=node.node_id,
        now_ms=epoch_ms(now),
        lease_ms=round(node.settings.run_lease_s * 1000),
        messages_per_minute=node.settings.messages_per_minute,
    )
    if accepted.outcome == "conflict":
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "client_msg_id: known with another body")
    if accepted.outcome == "limited":
        raise RemoteProtocolError(ErrorCode.RATE_LIMITED, retry_after_ms=accepted.reset_ms)
    node.faults.reached("accept")
    duplicate = accepted.outcome == "duplicate"
    connection.send(
        Accepted(
            client_msg_id=frame.client_msg_id,
            response_id=accepted.response_id,
            duplicate=duplicate,
            rate=Rate(remaining=accepted.remaining, reset_s=-(-accepted.reset_ms // 1000)),
        )
    )
    if duplicate:
        await _repeat(connection, f"facts:{accepted.response_id}")
        await _repeat(connection, f"final:{accepted.response_id}")
        return
    metrics.ACCEPT_SECONDS.observe((node.clock.monotonic_ms() - received_ms) / 1000)
    node.runs.start(Run(key=key, epoch=connection.epoch, response_id=response_id, request=request), layers)


def _fenced(connection: Connection, patient_id: str | None) -> str | None:
    """Whom the message is about: while a record is open, no other patient."""
    active = connection.active_patient_id
    if active is None:
        return patient_id
    if patient_id not in (None, active):
        raise RemoteProtocolError(ErrorCode.PATIENT_MISMATCH)
    return active


async def _repeat(connection: Connection, event_id: str) -> bool:
    """Send an event again to a phone that asked again and was not sent it on this connection.

    What lies after the point where this connection began was or will be sent on it in its turn.
    """
    event = await connection.node.sessions.event(_key(connection), connection.epoch, event_id)
    if event is None:
        return False
    if connection.may_repeat(event.seq):
        connection.send_event(event.seq, event.frame, again=True)
    return True


async def _cancel(connection: Connection, frame: Cancel) -> None:
    """Stop a question; whatever happens, it ends in its one ``ai_response``."""
    node, key = connection.node, _key(connection)
    response_id = frame.response_id
    if response_id is None:
        response_id = await node.sessions.response_of(key, frame.client_msg_id or "")
    running = dict(await node.sessions.open_requests(key))
    if response_id is not None and response_id in running:
        request = msgspec.json.decode(running[response_id], type=Request)
        await node.runs.cancel(Run(key=key, epoch=connection.epoch, response_id=response_id, request=request))
        return
    if response_id is None or not await _repeat(connection, f"final:{response_id}"):
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "nothing of this name is being answered")
    connection.send(Accepted(client_msg_id=frame.client_msg_id, response_id=response_id, duplicate=True))


# --- the open record ----------------------------------------------------------------------------------------


async def _context_set(connection: Connection, frame: ContextSet) -> None:
    """Open a patient's record in this session, or close it; from then on the fence stands."""
    node, key = connection.node, _key(connection)
    patient: PatientLayer | None = None
    if frame.patient_id is not None:
        if frame.reason is not None:
            await open_by_emergency(connection, frame.patient_id, frame.reason, frame.client_msg_id)
        patient = await permitted_patient(connection, frame.patient_id)
        await _require_identity(connection, patient, frame.second_identifier)
    layers = await node.store.read(
        department_id=connection.department,
        user_id=connection.user_id,
        patient_id=frame.patient_id,
        session_key=key,
    )
    if frame.patient_id is None:
        note(connection, "patient.close", patient_id=connection.active_patient_id)
    else:
        await ahead(connection, "patient.open", patient_id=frame.patient_id)
    switched = connection.active_patient_id not in (None, frame.patient_id)
    context = Context(
        patient=None if patient is None else patient_info(patient, node.clock.now().date()),
        layers=context_info(layers).layers,
        reason="switched" if switched else "set",
        client_msg_id=frame.client_msg_id,
    )
    await _append(
        connection,
        f"context:{frame.client_msg_id}",
        msgspec.json.encode(context),
        frame.client_msg_id,
        patient_id=frame.patient_id,
    )
    for each in node.phones_of(key):
        each.active_patient_id = frame.patient_id


async def _require_identity(connection: Connection, patient: PatientLayer, given: str | None) -> None:
    """Two patients of one department whose names look alike: the record opens with what tells them apart only."""
    kind = None if given is None else second_identifier(given, patient)
    if given is not None and kind is None:
        raise RemoteProtocolError(ErrorCode.SECOND_IDENTIFIER_REQUIRED, "second_identifier: does not match")
    node, department = connection.node, connection.department
    cards = await node.store.cards_of(department)
    alike = (await node.namesakes.among(department, cards, patient)).get(patient.patient_id, frozenset())
    others = [card for card in cards if card.patient_id in alike]
    if others and not tells_apart(kind, patient, others):
        same = fold(patient.name)
        what = "this name" if any(fold(card.name) == same for card in others) else "a name like this"
        raise RemoteProtocolError(ErrorCode.SECOND_IDENTIFIER_REQUIRED, f"another patient here has {what}")


# --- quick actions ------------------------------------------------------------------------------------------


async def _action(connection: Connection, frame: ActionCommand) -> None:
    """One step of a quick action: the ledger has it before the phone hears of it."""
    node, key = connection.node, _key(connection)
    raw = await node.sessions.proposal(key, frame.action_id)
    proposal = None if raw is None else msgspec.json.decode(raw, type=Proposal)
    # The action is about the patient it was proposed for, and the fence must not stand elsewhere. A proposal that
    # Redis has lost may still stand in the ledger; then it must be about the record that is open now.
    # Handing it over does nothing to anybody, whoever is open.
    about = connection.active_patient_id if frame.step == "hand_over" or proposal is None else proposal.patient_id
    patient_id = _fenced(connection, about)
    layers = await node.store.read(
        department_id=connection.department,
        user_id=connection.user_id,
        patient_id=patient_id,
        session_key=key,
    )
    if layers.patient is not None and not may_see(connection, layers.patient):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN)
    principal = connection.principal
    assert principal is not None  # noqa: S101 - authorised before it is opened
    raising = await _calling(connection, frame, proposal)
    update = await node.actions.command(
        frame,
        proposal,
        actor=Actor(
            user_id=principal.user_id,
            department=connection.department,
            roles=tuple(principal.roles),
            name=principal.name,
        ),
        patient=layers.patient,
        context_hash=context_hash(layers),
        now=node.clock.now(),
        also=None if raising is None else raising.commit,
    )
    if raising is not None:
        node.alerts.committed(raising)
    metrics.ACTIONS.labels(update.status).inc()
    await _append(
        connection, f"action:{frame.action_id}:{frame.client_msg_id}", msgspec.json.encode(update), frame.client_msg_id
    )
    log.info(
        "action",
        action_id=frame.action_id,
        catalog_id=update.catalog_id,
        status=update.status,
        user_id=connection.user_id,
        department=connection.department,
    )


async def _calling(connection: Connection, frame: ActionCommand, proposal: Proposal | None) -> Raising | None:
    """The alert that this command raises in the same transaction; None if it calls nobody."""
    if frame.step not in ("confirm", "hand_over"):
        return None
    node, principal = connection.node, connection.principal
    assert principal is not None  # noqa: S101 - authorised before it is opened
    # The session may have been lost since it was prepared; the ledger then has the proposal.
    proposal = proposal or await node.actions.proposal(frame.action_id)
    make = alert_of_handover if frame.step == "hand_over" else alert_of_action
    command = None if proposal is None else await make(proposal, connection, frame)
    if command is None:
        return None
    if not may_raise(principal.roles, principal.departments, priority=command.priority, department=command.department):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "this alert is not in your rights")
    return await node.alerts.prepare(command, node.alerts.now())


# --- the rest -----------------------------------------------------------------------------------------------


async def _feedback(connection: Connection, frame: Feedback) -> None:
    """Count a judgement; its words are not kept anywhere, they may name a patient.

    Its codes and its response id are the client's words too: only an id that this session knows goes to the log.
    """
    answer = await connection.node.sessions.event(_key(connection), connection.epoch, f"final:{frame.response_id}")
    metrics.FEEDBACK.labels(str(frame.useful).lower()).inc()
    known = frame.response_id if answer is not None else None
    log.info("feedback", response_id=known, useful=frame.useful, codes=len(frame.codes))
    connection.send(Accepted(client_msg_id=frame.client_msg_id, response_id=frame.response_id))


async def _refresh(connection: Connection, frame: Refresh) -> None:
    await connection.renew(frame.token)
    connection.send(Accepted(client_msg_id=frame.client_msg_id))


async def _session_end(connection: Connection, _: SessionEnd) -> None:
    """Shred everything of the session and close all its phones."""
    key = _key(connection)
    await connection.node.runs.abandon(key)
    await connection.node.sessions.shred(key)
    await connection.node.store.forget(key)
    memo.forget()
    for each in connection.node.phones_of(key):
        each.close_soon(CloseCode.NORMAL)


async def _ping(connection: Connection, frame: Ping) -> None:
    connection.send(Pong(t=frame.t, server_time=connection.now_iso()))


async def _ack(connection: Connection, _: Ack) -> None:
    """The session's rules have noted it; the log is bounded by itself."""


async def _append(
    connection: Connection,
    event_id: str,
    frame: bytes,
    client_msg_id: str,
    *,
    patient_id: str | bool | None = False,
) -> None:
    node, key = connection.node, _key(connection)
    seq, new, epoch = await node.sessions.append(
        key, connection.epoch, event_id, frame, patient_id=patient_id, is_act=True
    )
    if new:
        node.ring(key, epoch, seq, frame)
        return
    await _repeat(connection, event_id)
    connection.send(Accepted(client_msg_id=client_msg_id, duplicate=True))


def _key(connection: Connection) -> str:
    if connection.is_alerts_only:
        raise SessionsUnavailable
    if connection.key is None:
        raise SessionLost
    return connection.key


_COMMANDS: dict[type[Any], Callable[[Connection, Any], Awaitable[None]]] = {
    UserMessage: _user_message,
    Cancel: _cancel,
    ContextSet: _context_set,
    ActionCommand: _action,
    AlertRaise: raise_alert,
    AlertResponse: answer_alert,
    PresenceSet: set_presence,
    Feedback: _feedback,
    Refresh: _refresh,
    SessionEnd: _session_end,
    Ping: _ping,
    Ack: _ack,
}
