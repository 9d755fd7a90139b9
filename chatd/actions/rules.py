"""The life of a quick action as a table, and what each command needs, as plain functions that never await.

``proposed`` is said in an answer and is written nowhere but in the session: an answer never waits for the ledger.
The first command on it binds everything in the ledger; from there on the ledger's word counts.
"""

from __future__ import annotations

import enum
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from chatd.actions.identifiers import second_identifier
from chatd.actions.reasons import is_dismiss_reason
from context.layers import Action, PatientLayer
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import ActionCommand, Bound, ProposedAction

#: What is proposed rests on the record of that moment; a quarter of an hour later it is better asked again.
PROPOSAL_TTL = timedelta(minutes=15)


class Status(enum.StrEnum):
    """Where an action stands; the wire's ``action_update.status``, and ``proposed`` before it."""

    PROPOSED = "proposed"
    PREPARED = "prepared"
    CONFIRMED = "confirmed"
    SENT = "sent"
    ACCEPTED = "accepted"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    DISMISSED = "dismissed"
    HANDED_OVER = "handed_over"


class Step(enum.StrEnum):
    """What can happen to an action: the first four by a person's command, the others by the server."""

    PREPARE = "prepare"
    CONFIRM = "confirm"
    DISMISS = "dismiss"
    HAND_OVER = "hand_over"
    EXPIRE = "expire"
    SEND = "send"
    ACCEPT = "accept"
    FINISH = "finish"
    FAIL = "fail"


LIFE: dict[Status, dict[Step, Status]] = {
    Status.PROPOSED: {
        Step.PREPARE: Status.PREPARED,
        Step.CONFIRM: Status.CONFIRMED,  # one tap, risk "none" only; ``decide`` asks the others for a token
        Step.DISMISS: Status.DISMISSED,
        Step.HAND_OVER: Status.HANDED_OVER,
        Step.EXPIRE: Status.EXPIRED,
    },
    Status.PREPARED: {
        Step.PREPARE: Status.PREPARED,  # a second device, or a token that ran out
        Step.CONFIRM: Status.CONFIRMED,
        Step.DISMISS: Status.DISMISSED,
        Step.HAND_OVER: Status.HANDED_OVER,
        Step.EXPIRE: Status.EXPIRED,
    },
    # Confirmed is a draft in the ledger. Nothing leaves by itself; a connected system moves it on.
    Status.CONFIRMED: {Step.SEND: Status.SENT, Step.FINISH: Status.DONE, Step.FAIL: Status.FAILED},
    Status.SENT: {Step.ACCEPT: Status.ACCEPTED, Step.FINISH: Status.DONE, Step.FAIL: Status.FAILED},
    Status.ACCEPTED: {Step.FINISH: Status.DONE, Step.FAIL: Status.FAILED},
    Status.DONE: {},
    Status.FAILED: {},
    Status.EXPIRED: {},
    Status.DISMISSED: {},
    # It was bound to what one person's session knew, so nobody else can confirm it: it goes on as an alert.
    Status.HANDED_OVER: {},
}

#: Still to be decided by a person.
OPEN: tuple[Status, ...] = tuple(status for status, steps in LIFE.items() if Step.EXPIRE in steps)

#: FHIR R4 resources that cannot be drafted without a patient: their subject, patient or participant is required.
_PATIENT_REQUIRED = frozenset({"ServiceRequest", "MedicationRequest", "AllergyIntolerance", "Appointment"})

#: Who may put a medicine forward. All else of the catalogue is open to everybody who is not an onlooker.
PRESCRIBERS = frozenset(
    {
        "physician",
        "doctor",
        "resident",
        "consultant",
        "surgeon",
        "anaesthetist",
        "intensivist",
        "cardiologist",
        "pharmacist",
    }
)
#: Who reads and does not act.
ONLOOKERS = frozenset({"observer", "student", "board", "push", "device"})


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who gives a command, as the token of this connection says."""

    user_id: str
    department: str
    roles: tuple[str, ...] = ()
    name: str = ""


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """All that was true when an action was proposed; the caller keeps it sealed with the session.

    ``action`` is the catalogue's row of that moment, so that a changed catalogue does not change what was agreed to.
    """

    action_id: str
    action: Action
    response_id: str
    session_id: str
    department: str
    user_id: str
    patient_id: str | None
    patient_name: str
    context_hash: str
    created_at: datetime
    expires_at: datetime
    lang: str = "en"

    @property
    def label(self) -> str:
        """What people read, in the language of the answer."""
        return self.action.label_pt if self.lang.lower().startswith("pt") else self.action.label


#: What a confirm token is worth.
Proof = Literal["none", "valid", "expired", "invalid"]


def needs_patient(action: Action) -> bool:
    """True if the action cannot be prepared without an open patient: do not propose it without one."""
    return action.fhir in _PATIENT_REQUIRED or action.risk == "confirm_id"


def propose(
    action: Action,
    *,
    response_id: str,
    session_id: str,
    department: str,
    user_id: str,
    patient: PatientLayer | None,
    context_hash: str,
    now: datetime,
    lang: str = "en",
    ttl: timedelta = PROPOSAL_TTL,
) -> Proposal:
    """Propose ``action`` in an answer; writes nothing.

    The id is a digest of the answer, the action and the context: an answer that is finished twice, after a crash,
    proposes the same action under the same id, and one that was finished on another record does not.
    """
    identity = msgspec.json.encode((response_id, session_id, action.id, user_id, context_hash))
    return Proposal(
        action_id=f"act_{hashlib.sha256(identity).hexdigest()[:24]}",
        action=action,
        response_id=response_id,
        session_id=session_id,
        department=department,
        user_id=user_id,
        patient_id=None if patient is None else patient.patient_id,
        patient_name="" if patient is None else patient.name,
        context_hash=context_hash,
        created_at=whole_ms(now),
        expires_at=whole_ms(now + ttl),
        lang=lang,
    )


def proposed_action(proposal: Proposal) -> ProposedAction:
    """The proposal as the wire shows it: a chip under the answer."""
    return ProposedAction(
        action_id=proposal.action_id,
        catalog_id=proposal.action.id,
        label=proposal.label,
        risk=proposal.action.risk,
        expires_at=wire_time(proposal.expires_at),
        bound=Bound(patient_id=proposal.patient_id, context=proposal.context_hash),
    )


def decide(
    command: ActionCommand,
    proposal: Proposal,
    status: Status,
    *,
    actor: Actor,
    patient: PatientLayer | None,
    context_hash: str,
    proof: Proof,
    now: datetime,
) -> Status:
    """The status that ``command`` leads to; the order of the checks is the order of the harm they prevent.

    Args:
        status: Where the action stands now, by the ledger.
        patient: The patient that is open in the session now.
        context_hash: Digest of the layers as they are now.
        proof: What ``command.confirm_token`` is worth: "valid" was issued to this person for this action.
    Raises:
        RemoteProtocolError: forbidden, action_conflict, action_expired, bad_request, patient_mismatch,
            stale_context, second_identifier_required or confirm_required; nothing changes then.
    """
    refuse = _Refusal(command.client_msg_id)
    step = Step(command.step)
    if actor.user_id != proposal.user_id or actor.department != proposal.department:
        raise refuse(ErrorCode.FORBIDDEN, "proposed to somebody else")
    if step != Step.HAND_OVER and not _may_act(actor, proposal.action):
        raise refuse(ErrorCode.FORBIDDEN, "role")
    if status == Status.EXPIRED or (status in OPEN and now >= proposal.expires_at):
        raise refuse(ErrorCode.ACTION_EXPIRED)
    following = LIFE[status].get(step)
    if following is None:
        raise refuse(ErrorCode.ACTION_CONFLICT, status.value)
    if step == Step.DISMISS:
        # Nothing is done to anybody: neither patient nor context needs to be the one of the proposal.
        if not is_dismiss_reason(command.reason):
            raise refuse(ErrorCode.BAD_REQUEST, "reason: a code of the dismiss reasons")
        return following
    if step == Step.HAND_OVER:
        if command.colleague in (None, actor.user_id):
            raise refuse(ErrorCode.BAD_REQUEST, "colleague: somebody else")
        return following
    if proposal.patient_id is None and needs_patient(proposal.action):
        raise refuse(ErrorCode.BAD_REQUEST, "this action needs a patient")
    if proposal.patient_id != (None if patient is None else patient.patient_id):
        raise refuse(ErrorCode.PATIENT_MISMATCH)
    if proposal.context_hash != context_hash:
        raise refuse(ErrorCode.STALE_CONTEXT)
    if step == Step.PREPARE:
        return following
    if proof == "invalid" or (proof == "none" and proposal.action.risk != "none"):
        raise refuse(ErrorCode.CONFIRM_REQUIRED)
    if proof == "expired":
        raise refuse(ErrorCode.CONFIRM_REQUIRED, "the confirmation has run out: prepare again")
    if proposal.action.risk == "confirm_id" and (
        patient is None or second_identifier(command.second_identifier, patient) is None
    ):
        raise refuse(ErrorCode.SECOND_IDENTIFIER_REQUIRED)
    return following


def _may_act(actor: Actor, action: Action) -> bool:
    roles = frozenset(role.lower() for role in actor.roles)
    if action.fhir == "MedicationRequest":
        return bool(roles & PRESCRIBERS)
    return not roles or bool(roles - ONLOOKERS)


class _Refusal:
    """Makes the errors of one command, each naming it."""

    def __init__(self, client_msg_id: str) -> None:
        self._client_msg_id = client_msg_id

    def __call__(self, code: ErrorCode, detail: str | None = None) -> RemoteProtocolError:
        return RemoteProtocolError(code, detail, client_msg_id=self._client_msg_id)


def whole_ms(moment: datetime) -> datetime:
    """``moment`` in UTC, rounded down to the millisecond, which is what wire and ledger carry."""
    in_utc = moment.astimezone(UTC)
    return in_utc.replace(microsecond=in_utc.microsecond // 1000 * 1000)


def wire_time(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: "2026-01-15T07:45:20.114Z"."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
