"""How a session begins on a connection: find or make it, say where the two cursors stand, replay or snapshot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from chatd.actions.rules import Proposal
from chatd.alerts.presence import ANSWER_WITHIN_S, PresenceUnavailable
from chatd.clock import iso_ms
from chatd.gateway.auditing import AuditUnavailable, ahead
from chatd.ledger import LedgerUnavailable
from chatd.replies.sessions import Opened, Request, session_key
from context.layers import DepartmentLayer, PatientLayer
from context.store import PatientUnknown
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import (
    ActionInfo,
    DepartmentInfo,
    Heartbeat,
    Hello,
    Limits,
    OpenResponse,
    OwnPresence,
    PatientInfo,
    Resume,
    Snapshot,
    SystemNotification,
    User,
    Welcome,
)
from protocols.session import AlertPlan, ResumePlan, alert_plan, resume_plan

if TYPE_CHECKING:
    from datetime import date

    from chatd.gateway.connection import Connection

#: All phones of the original design that a user holds share one session: they cannot name one on connecting.
COMPAT_SESSION_ID = "compat"
#: Told to a phone that is let in while the ledger does not answer: it must not believe that it knows every alert.
ALERTS_AWAY = "alerts: the ledger does not answer, they will follow"


async def welcome(connection: Connection, hello: Hello) -> int:
    """Open the session and queue ``welcome``, and ``snapshot`` where the client cannot go on from what it has.

    The connection is joined to the session's appends and to the department's alerts before the logs are looked at,
    so nothing falls between. Both cursors go on, or neither does.

    While the ledger does not answer, the phone is let in all the same and is told so: questions must work. One that
    knows where it stands in the alerts gets what follows as soon as the ledger answers; one that does not is closed
    with 4003 then, and begins anew with a snapshot.

    While Redis does not answer, it is let in for its alerts alone (``alerts_only``), because they rest on the ledger.
    Nothing is known of its session, so its cursor stays where the client has it, and the snapshot, where one must
    follow for the alerts' sake, tells of alerts only. Once Redis answers it is closed with 4000 and comes for its
    session, as if it had not been here.

    Returns:
        The ``seq`` after which the connection goes on; what follows is in the log.

    Raises:
        SessionsUnavailable, StoreUnavailable, ContextNotLoaded: come back in a moment. The first: Redis went away
            between two questions.
        DepartmentUnknown: the path names no department of this hospital.
    """
    node = connection.node
    department = await node.department(connection.department)
    session_id = COMPAT_SESSION_ID if connection.compat else hello.session_id or f"sess_{connection.connection_id[2:]}"
    key = session_key(connection.user_id, connection.department, session_id)
    connection.session_id, resume = session_id, hello.resume
    found = await node.open_session(key)
    opened = _as_it_was(key, resume) if found is None else found
    if found is None:
        connection.is_alerts_only = True
    else:
        connection.key, connection.epoch = key, found.epoch
        connection.active_patient_id, connection.opened_seq = found.patient_id, found.seq
        if connection.channel == "app":
            node.joined(connection, key)
    connection.join_alerts()
    alerts = await _alerts(connection, hello)
    epoch = opened.told_as(resume)
    plan = resume_plan(
        resume,
        epoch=epoch,
        first_seq=opened.first_seq,
        last_seq=opened.seq,
        known=opened.existed or (resume is not None and opened.was_lost(resume.epoch)),
    )
    if plan.resumed and alerts.gap_reason is not None:
        plan = ResumePlan(resumed=False, replay_from=opened.seq + 1, replay=0, gap_reason=alerts.gap_reason)
    # After the position was found: an alert raised in between comes twice, and one is never in neither.
    open_alerts = None if plan.resumed else await _open_alerts(connection, alerts)
    if not plan.resumed:
        epoch = opened.epoch
        # Without the open alerts it stands before all of them: it must not come back as one that has shown them.
        last_seq = 0 if open_alerts is None else alerts.last_seq
        alerts = AlertPlan(after=last_seq, last_seq=last_seq, is_away=open_alerts is None)
        connection.is_stranger = open_alerts is None
    resume_from = plan.replay_from - 1
    # What a client that resumed says it holds is never sent to it again; one that begins anew may ask for it.
    connection.repeats_up_to = 0 if plan.resumed else resume_from
    connection.session.opened(
        epoch, resume_from, alerts.after, now_ms=node.clock.monotonic_ms(), idle_ms=opened.idle_ms
    )
    if connection.compat:
        for notification in open_alerts or ():
            connection.send(notification)
        return resume_from
    presence = await _own_presence(connection)
    connection.mode_told = node.mode_now
    connection.send(_welcome(connection, opened, epoch, department, plan, alerts, presence))
    if not plan.resumed:
        # Of a session that nobody has had before there is nothing to tell, and of one that cannot be asked for nothing
        # is known.
        is_empty = connection.is_alerts_only or (not opened.existed and resume is None)
        snapshot = Snapshot() if is_empty else await _snapshot(connection, opened)
        connection.send(msgspec.structs.replace(snapshot, open_alerts=open_alerts or ()))
    if alerts.is_away:
        connection.send_error(RemoteProtocolError(ErrorCode.INTERNAL, ALERTS_AWAY))
    return resume_from


def _as_it_was(key: str, resume: Resume | None) -> Opened:
    """A session that Redis cannot tell of, as the client knows it: it stands where it stood, and nothing follows."""
    epoch, seq = ("", 0) if resume is None else (resume.epoch, resume.seq)
    return Opened(
        key=key, epoch=epoch, seq=seq, existed=True, era="", idle_ms=0, first_seq=seq + 1, asked=0, patient_id=None
    )


async def _alerts(connection: Connection, hello: Hello) -> AlertPlan:
    """Where the phone stands in its department's alerts, and where these end."""
    pools = connection.node.pools
    if pools is None:
        return AlertPlan(after=0, last_seq=0)
    stands_at = 0 if hello.resume is None else hello.resume.alert_seq
    span = await pools.span(connection.department, at_least=stands_at)
    if span is not None:
        return alert_plan(hello.resume, first_seq=span.first_seq, last_seq=span.last_seq)
    return AlertPlan(after=stands_at, last_seq=stands_at, is_away=True)


async def _open_alerts(connection: Connection, alerts: AlertPlan) -> tuple[SystemNotification, ...] | None:
    """The department's open alerts, as this channel may see them; None: the ledger does not answer."""
    pools = connection.node.pools
    if pools is None:
        return ()
    found = None if alerts.is_away else await pools.open_alerts(connection.department, at_least=alerts.last_seq)
    if found is not None and connection.channel == "push":
        return tuple(msgspec.structs.replace(each, patient_id=None, dedup_key=None) for each in found)
    return found


async def _own_presence(connection: Connection) -> OwnPresence | None:
    """What the person has said of themselves; None: a wall's, or not known within a quarter of a second."""
    if connection.channel == "board" or connection.node.pools is None or connection.is_alerts_only:
        return None
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            said = await connection.node.alerts.presence.state_of(connection.user_id)
    except (PresenceUnavailable, TimeoutError):
        return None
    if said is None:
        return OwnPresence(state="available")
    until = None if said.until is None else iso_ms(said.until)
    return OwnPresence(state=said.state, until=until, delegate_to=said.delegate_to, is_accepted=said.is_accepted)


def _welcome(
    connection: Connection,
    opened: Opened,
    epoch: str,
    department: DepartmentLayer,
    plan: ResumePlan,
    alerts: AlertPlan,
    presence: OwnPresence | None,
) -> Welcome:
    node, principal = connection.node, connection.principal
    assert principal is not None  # noqa: S101 - authorised before it is opened
    now = node.clock.now()
    limit = node.settings.messages_per_minute
    portuguese = connection.lang.lower().startswith("pt")
    return Welcome(
        connection_id=connection.connection_id,
        session_id=connection.session_id,
        server_time=iso_ms(now),
        epoch=epoch,
        seq=opened.seq,
        alert_seq=alerts.last_seq,
        resumed=plan.resumed,
        replay=plan.replay,
        gap_reason=plan.gap_reason,
        heartbeat=Heartbeat(
            interval_s=round(node.settings.ping_interval_s), timeout_s=round(node.settings.ping_timeout_s)
        ),
        limits=Limits(
            messages_per_minute=limit,
            remaining=max(0, limit - opened.asked),
            max_message_bytes=node.settings.max_frame_bytes,
            max_content_chars=node.settings.max_content_chars,
        ),
        user=User(
            user_id=principal.user_id,
            name=principal.name,
            roles=tuple(principal.roles),
            departments=tuple(principal.departments),
        ),
        department=DepartmentInfo(
            id=department.department_id,
            name=department.name_pt if portuguese else department.name,
            actions=tuple(
                ActionInfo(id=action.id, label=action.label_pt if portuguese else action.label, risk=action.risk)
                for action in department.actions
            ),
        ),
        model=node.watch.state,
        mode=node.watch.mode,
        presence=presence,
        alerts_only=connection.is_alerts_only,
    )


async def _snapshot(connection: Connection, opened: Opened) -> Snapshot:
    """What a client starts from: the running questions, the proposals that wait, the open record."""
    if connection.channel != "app":
        return Snapshot()
    node, now = connection.node, connection.node.clock.now()
    running = [
        (response_id, msgspec.json.decode(request, type=Request))
        for response_id, request in await node.sessions.open_requests(opened.key)
    ]
    proposals = [msgspec.json.decode(raw, type=Proposal) for raw in await node.sessions.proposals(opened.key)]
    try:
        pending = await node.actions.pending(opened.key, now, proposals)
    except LedgerUnavailable:
        # Which of them are decided is not known, and none can be decided now: show none.
        pending = ()
    patient = None
    if opened.patient_id is not None:
        try:
            layer = await permitted_patient(connection, opened.patient_id)
            await ahead(connection, "patient.open", patient_id=opened.patient_id, detail="resumed")
            patient = patient_info(layer, now.date())
        except RemoteProtocolError:
            # The record was withdrawn or moved: the session starts without an open patient.
            connection.active_patient_id = None
        except AuditUnavailable:
            # Nothing of a patient is shown without a row; the fence stands, and alerts come.
            patient = None
    return Snapshot(
        open_responses=tuple(
            OpenResponse(response_id=response_id, client_msg_id=run.client_msg_id, patient_id=run.patient_id)
            for response_id, run in running
        ),
        pending_actions=pending,
        active_patient=patient,
    )


async def permitted_patient(connection: Connection, patient_id: str) -> PatientLayer:
    """The patient's layer, if this department may see it, or this person by emergency.

    Raises:
        RemoteProtocolError: ``patient_unknown`` or ``forbidden``, with nothing about the patient.
        ContextNotLoaded, StoreUnavailable.
    """
    try:
        layer = await connection.node.store.patient(patient_id)
    except PatientUnknown:
        raise RemoteProtocolError(ErrorCode.PATIENT_UNKNOWN) from None
    if not may_see(connection, layer):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN)
    return layer


def may_see(connection: Connection, layer: PatientLayer) -> bool:
    """Whether the record is one of this connection's department, or open to this person by emergency."""
    principal = connection.principal
    assert principal is not None  # noqa: S101 - authorised before it is opened
    return connection.node.gate.sees(principal, connection.department, layer.patient_id, layer.departments)


def patient_info(layer: PatientLayer, today: date) -> PatientInfo:
    """The patient banner out of the record."""
    return PatientInfo(
        patient_id=layer.patient_id,
        name=layer.name,
        age_years=layer.age_years(today),
        sex=layer.sex,
        birth_date=layer.birth_date.isoformat() if layer.birth_date else None,
        deceased=bool(layer.deceased),
        allergies=tuple(allergy.name for allergy in layer.allergies if allergy.active),
        allergy_status=layer.allergy_status,
    )
