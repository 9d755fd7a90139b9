"""Every frame of ``chatd.v1`` as a frozen Struct.

A new field gets a default; a field is never retyped or reused. Unknown fields are ignored on decoding
(msgspec's default), so an older server reads a newer client. Times on the wire are RFC 3339 strings in UTC with
milliseconds ("2026-01-15T07:45:20.114Z"). ``SPEC.md`` beside this file says what the fields mean together.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

PROTOCOL = "chatd.v1"
PROTOCOL_MSGPACK = "chatd.v1.msgpack"
VERSION = 1

#: Ids that clients choose or echo. The pattern keeps control characters, paths and key separators out of
#: Redis keys, logs and file names.
Id = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@+\-]*\Z")]
OptionalText = Annotated[str, Meta(max_length=2000)]

Urgency = Literal["routine", "urgent", "stat"]
Status = Literal["completed", "cancelled", "incomplete", "failed", "blocked", "degraded"]
Mode = Literal["normal", "slow", "facts_only"]
QueueState = Literal["waiting", "running", "stalled", "restarted"]
GapReason = Literal["first", "epoch_changed", "expired", "too_far"]


class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of all frames: one JSON object whose ``type`` selects the Struct."""


# --- client to server ---------------------------------------------------------------------------------------


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """Where the client's two cursors stand: the last ``seq`` of ``epoch`` and the last ``alert_seq`` it holds."""

    epoch: Annotated[str, Meta(max_length=64)] = ""
    seq: Annotated[int, Meta(ge=0)] = 0
    alert_seq: Annotated[int, Meta(ge=0)] = 0


class Hello(Frame, frozen=True, kw_only=True, tag="hello"):
    """First frame of a ``chatd.v1`` client, within 5 s; ``token`` only where the header cannot be set.

    ``device_kind``: ``phone`` is whatever its owner carries, ``computer`` what stays where it is.
    """

    token: Annotated[str, Meta(max_length=4096)] | None = None
    device_id: Id | None = None
    device_kind: Literal["phone", "computer"] | None = None
    channel: Literal["app", "push", "board"] = "app"
    lang: Annotated[str, Meta(max_length=35)] = ""
    session_id: Id | None = None
    resume: Resume | None = None


class UserMessage(Frame, frozen=True, kw_only=True, tag="user_message"):
    """A doctor's question. ``user_id`` and ``department`` must equal the path's when given."""

    client_msg_id: Id
    content: str
    user_id: Id | None = None
    department: Id | None = None
    patient_id: Id | None = None
    timestamp: Annotated[str, Meta(max_length=64)] | None = None
    session_id: Id | None = None
    urgency: Urgency = "routine"
    input: Literal["text", "voice", "action"] = "text"
    lang: Annotated[str, Meta(max_length=35)] = ""


class Cancel(Frame, frozen=True, kw_only=True, tag="cancel"):
    """Stop a question by its ``client_msg_id`` or ``response_id``; one of the two is required."""

    client_msg_id: Id | None = None
    response_id: Id | None = None


class Ack(Frame, frozen=True, kw_only=True, tag="ack"):
    """The client holds every durable frame up to and including ``seq`` of ``epoch``."""

    epoch: Annotated[str, Meta(max_length=64)]
    seq: Annotated[int, Meta(ge=0)]


class AlertTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Whom an alert is for: exactly one of the three."""

    department: Id | None = None
    role: Id | None = None
    user: Id | None = None


class AlertRaise(Frame, frozen=True, kw_only=True, tag="alert_raise"):
    """Raise an alert; ``accepted`` says who can be reached, after the ledger has it."""

    client_msg_id: Id
    to: AlertTarget
    priority: Literal["low", "normal", "high", "critical"]
    content: str
    requires_action: bool = False
    patient_id: Id | None = None
    template: Id | None = None
    dedup_key: Id | None = None


class AlertResponse(Frame, frozen=True, kw_only=True, tag="alert_response"):
    """One person's answer to an alert. ``colleague``: with ``hand_over``, who is asked; with ``take_over`` and
    ``refuse_handover``, whose it is where several ask."""

    client_msg_id: Id
    alert_id: Id
    answer: Literal[
        "delivered",
        "displayed",
        "accept",
        "decline",
        "done",
        "stand_down",
        "hand_over",
        "take_over",
        "refuse_handover",
        "revoke_handover",
    ]
    eta_min: Annotated[int, Meta(ge=0, le=1440)] | None = None
    reason: OptionalText | None = None
    slot: Id | None = None
    colleague: Id | None = None


class ActionCommand(Frame, frozen=True, kw_only=True, tag="action"):
    """One step of a quick action: prepare gives a token, confirm spends it, dismiss needs a reason code, and hand_over
    makes an alert of it that ``colleague`` is asked to take over."""

    client_msg_id: Id
    action_id: Id
    step: Literal["prepare", "confirm", "dismiss", "hand_over"]
    confirm_token: Annotated[str, Meta(max_length=512)] | None = None
    second_identifier: Annotated[str, Meta(max_length=128)] | None = None
    reason: OptionalText | None = None
    colleague: Id | None = None


class ContextSet(Frame, frozen=True, kw_only=True, tag="context_set"):
    """Switch the session's active patient; None closes the record. ``reason``: why a record of another department
    must be opened in an emergency; that department is told."""

    client_msg_id: Id
    patient_id: Id | None = None
    second_identifier: Annotated[str, Meta(max_length=128)] | None = None
    reason: OptionalText | None = None


class PresenceSet(Frame, frozen=True, kw_only=True, tag="presence"):
    """What the person is available for."""

    state: Literal["available", "busy", "in_procedure", "off"]
    client_msg_id: Id | None = None
    until: Annotated[str, Meta(max_length=64)] | None = None
    delegate_to: Id | None = None


class Feedback(Frame, frozen=True, kw_only=True, tag="feedback"):
    """Whether an answer was useful."""

    client_msg_id: Id
    response_id: Id
    useful: bool
    codes: Annotated[tuple[Id, ...], Meta(max_length=16)] = ()
    text: OptionalText | None = None


class Refresh(Frame, frozen=True, kw_only=True, tag="refresh"):
    """A new token for the same user, sent before the old one runs out."""

    token: Annotated[str, Meta(max_length=4096)]
    client_msg_id: Id | None = None


class SessionEnd(Frame, frozen=True, kw_only=True, tag="session_end"):
    """Shred everything of the session and close with 1000."""


class Ping(Frame, frozen=True, kw_only=True, tag="ping"):
    """Is the line alive? ``t`` comes back in ``pong``."""

    t: int | float | Annotated[str, Meta(max_length=64)] | None = None


ClientFrame = (
    Hello
    | UserMessage
    | Cancel
    | Ack
    | AlertRaise
    | AlertResponse
    | ActionCommand
    | ContextSet
    | PresenceSet
    | Feedback
    | Refresh
    | SessionEnd
    | Ping
)


# --- server to client: parts --------------------------------------------------------------------------------


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    interval_s: int = 10
    timeout_s: int = 10


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    messages_per_minute: int = 10
    remaining: int = 10
    max_message_bytes: int = 65536
    max_content_chars: int = 4000


class User(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    name: str
    roles: tuple[str, ...] = ()
    departments: tuple[str, ...] = ()


class ActionInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    label: str
    risk: str = "confirm"


class DepartmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    actions: tuple[ActionInfo, ...] = ()


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """``state``: "none" (no engine configured), "ready", "starting", "down"."""

    state: str = "none"
    id: str | None = None
    canary_age_s: float | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    revision: str = ""
    quantization: str = ""
    prompt: str = ""


class QueuePosition(msgspec.Struct, frozen=True, kw_only=True):
    lane: str
    position: int
    eta_ms: int | None = None


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    remaining: int
    reset_s: int


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """Whom an alert can reach now: an open app, a push extension alone, or neither; each user once.

    ``covered``: of those who are away or in a procedure, who has taken over for them (user to delegate). ``is_whole``
    false: who is here is not fully known at this moment; others may get it too.
    """

    online: tuple[str, ...] = ()
    push: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()
    covered: dict[str, str] = {}
    is_whole: bool = True


class PatientInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The patient banner: enough to see at once whose record is open."""

    patient_id: str
    name: str
    age_years: int | None = None
    sex: str = "unknown"
    birth_date: str | None = None
    deceased: bool = False
    allergies: tuple[str, ...] = ()
    allergy_status: str = "not_recorded"


class LayerInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str
    as_of: str


class ContextInfo(msgspec.Struct, frozen=True, kw_only=True):
    """``hash``: digest of the layers' versions; an action's confirm token is bound to it."""

    hash: str
    layers: tuple[LayerInfo, ...] = ()


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the record says. ``text`` stands alone; ``ref`` names the chart item it comes from."""

    kind: Literal[
        "value",
        "report",
        "condition",
        "medication",
        "allergy",
        "procedure",
        "encounter",
        "demographic",
        "note",
    ]
    name: str
    text: str
    value: float | int | str | None = None
    unit: str | None = None
    flag: str = ""
    range: str = ""
    trend: str = ""
    as_of: str | None = None
    ref: str | None = None


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A score by its table. ``value`` None: it could not be calculated, ``text`` says why."""

    name: str
    value: float | int | None
    band: str = ""
    parts: dict[str, int] = {}
    as_of: str | None = None
    text: str = ""
    missing: tuple[str, ...] = ()


class RedFlag(msgspec.Struct, frozen=True, kw_only=True):
    """Something that must be escalated; an empty list means "no escalation"."""

    id: str
    trigger: Literal["news2", "critical_result", "emergency"]
    text: str
    ref: str | None = None


class ProtocolQuote(msgspec.Struct, frozen=True, kw_only=True):
    """A section of a clinical protocol, quoted byte for byte."""

    id: str
    title: str
    section: str
    quote: str
    source: str
    year: int | None = None
    superseded_by: str | None = None
    review_due: str | None = None
    approved_by: str | None = None
    notice: str = ""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A safety check's finding. ``level``: info, warning or critical; critical interrupts."""

    id: str
    level: Literal["info", "warning", "critical"]
    text: str
    ref: str | None = None


class Citation(msgspec.Struct, frozen=True, kw_only=True):
    n: int
    kind: Literal["chart", "protocol"]
    ref: str
    as_of: str | None = None
    title: str = ""
    quote: str = ""
    source: str = ""
    year: int | None = None


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    patient_id: str | None
    context: str


class ProposedAction(msgspec.Struct, frozen=True, kw_only=True):
    action_id: str
    catalog_id: str
    label: str
    risk: str
    intent: str = "proposal"
    expires_at: str
    bound: Bound


class StructuredData(msgspec.Struct, frozen=True, kw_only=True):
    """``findings``, ``recommendations``, ``quick_actions`` are the original design's; the rest stands beside them."""

    findings: tuple[str, ...] = ()
    recommendations: tuple[str, ...] = ()
    quick_actions: tuple[str, ...] = ()
    headline: str = ""
    interpretation: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    red_flags: tuple[RedFlag, ...] = ()
    checks: tuple[Check, ...] = ()
    citations: tuple[Citation, ...] = ()
    actions: tuple[ProposedAction, ...] = ()


class Content(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    structured_data: StructuredData


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    queue_ms: int | None = None
    ttft_ms: int | None = None
    generation_ms: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    prefix_hit_tokens: int | None = None


# --- server to client: frames -------------------------------------------------------------------------------


class OwnPresence(msgspec.Struct, frozen=True, kw_only=True):
    """What the person has said that they are available for. ``is_accepted``: the delegate has, and stands in."""

    state: str
    until: str | None = None
    delegate_to: str | None = None
    is_accepted: bool = False


class Welcome(Frame, frozen=True, kw_only=True, tag="welcome"):
    """Answer to ``hello``. ``resumed`` true: nothing is missing, ``replay`` frames follow.

    ``presence``: the person's own; null where it is not known now, and on a wall board. ``alerts_only``: nothing is
    known of the session now, whose cursor stays where the client has it.
    """

    connection_id: str
    session_id: str
    server_time: str
    epoch: str
    seq: int
    alert_seq: int
    resumed: bool
    replay: int
    gap_reason: GapReason | None
    heartbeat: Heartbeat
    limits: Limits
    user: User
    department: DepartmentInfo
    model: ModelState
    mode: Mode
    version: int = VERSION
    presence: OwnPresence | None = None
    alerts_only: bool = False


class Snapshot(Frame, frozen=True, kw_only=True, tag="snapshot"):
    """The state a client starts from when ``resumed`` is false."""

    open_alerts: tuple[SystemNotification, ...] = ()
    open_responses: tuple[OpenResponse, ...] = ()
    pending_actions: tuple[ProposedAction, ...] = ()
    active_patient: PatientInfo | None = None


class OpenResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A question that is still being answered."""

    response_id: str
    client_msg_id: str
    patient_id: str | None = None


class Accepted(Frame, frozen=True, kw_only=True, tag="accepted"):
    """The command is taken. ``duplicate``: it was taken before, this is the original answer again."""

    client_msg_id: str | None = None
    response_id: str | None = None
    alert_id: str | None = None
    duplicate: bool = False
    queue: QueuePosition | None = None
    rate: Rate | None = None
    reach: Reach | None = None


class Queue(Frame, frozen=True, kw_only=True, tag="queue"):
    """Where a question stands with the model; only on change, positions at most once a second.

    ``state``: ``waiting`` at ``position`` (1 is next) for about ``eta_ms``; ``running``; ``stalled``: it is being
    written, and neither words nor a sign of work have come for a while; ``restarted``: its worker was lost or
    restarted, or its engine failed; what was shown is void, it waits again. ``position`` is 0 where it does not wait
    or its place is not known.
    """

    response_id: str
    lane: str
    position: int
    eta_ms: int | None = None
    state: QueueState = "waiting"


class Facts(Frame, frozen=True, kw_only=True, tag="facts"):
    """What the server knows by itself, before any model word. Durable."""

    response_id: str
    client_msg_id: str | None
    patient_id: str | None
    facts: tuple[Fact, ...] = ()
    scores: tuple[Score, ...] = ()
    red_flags: tuple[RedFlag, ...] = ()
    protocols: tuple[ProtocolQuote, ...] = ()
    checks: tuple[Check, ...] = ()
    missing: tuple[str, ...] = ()
    context: ContextInfo
    epoch: str = ""
    seq: int = 0


class AiDelta(Frame, frozen=True, kw_only=True, tag="ai_delta"):
    """A piece of text as it is generated. Ephemeral: the final frame is authoritative.

    ``idx`` counts from 0 on each connection. ``attempt``: a higher one than before starts the text over, because
    another worker has taken the question.
    """

    response_id: str
    idx: int
    section: str
    text: str
    attempt: int = 1


class AiResponse(Frame, frozen=True, kw_only=True, tag="ai_response"):
    """The one final answer to an accepted question. Durable.

    ``is_shared``: the words were written for the same question of a colleague a moment ago.
    """

    response_id: str
    content: Content
    processing_time_ms: int
    confidence: float | None = None
    confidence_basis: str = "none"
    status: Status = "completed"
    finish_reason: str = "stop"
    client_msg_id: str | None = None
    session_id: str = ""
    department: str = ""
    patient_id: str | None = None
    response_type: str = "medical_analysis"
    timestamp: str = ""
    timing: Timing = Timing()
    model: ModelInfo | None = None
    attempt: int = 1
    mode: Mode = "facts_only"
    notice: str = ""
    is_shared: bool = False
    epoch: str = ""
    seq: int = 0


class AlertOption(msgspec.Struct, frozen=True, kw_only=True):
    """One canned answer: what an ``alert_response`` with it holds, and its label in English and Portuguese."""

    id: str
    label: str
    label_pt: str = ""
    answer: str = ""
    eta_min: int | None = None
    reason: str | None = None


class AlertSlot(msgspec.Struct, frozen=True, kw_only=True):
    """One place in a team that an alert calls together; ``by`` None: still empty.

    ``roles``: those that get it by a plain accept, and ``roles_named`` those that get it by naming it as well; both
    empty: anybody.
    """

    id: str
    label: str
    by: str | None = None
    eta_at: str | None = None
    label_pt: str = ""
    roles: tuple[str, ...] = ()
    roles_named: tuple[str, ...] = ()


class AlertHolder(msgspec.Struct, frozen=True, kw_only=True):
    """One person's answer to an alert. ``answer``: accept, decline, handed_over or done; the last one counts."""

    user_id: str
    answer: str
    at: str
    eta_at: str | None = None
    slot: str | None = None
    reason: str | None = None


class AlertHandover(msgspec.Struct, frozen=True, kw_only=True):
    """``from`` asks ``to`` to take an alert over. Until they do it is ``from``'s; the offer ends at ``until``."""

    from_: str = msgspec.field(name="from")
    to: str
    at: str
    until: str


class SystemNotification(Frame, frozen=True, kw_only=True, tag="system_notification"):
    """An alert, the same bytes for every phone of the department. Durable by ``alert_seq``.

    ``event``: ``raised``, ``repeated`` and ``escalated`` ring where ``to`` or one of ``also`` names the phone's user,
    one of its roles or the department; ``joined`` brings new words and does not ring; ``stood_down``, ``resolved`` and
    ``expired`` end it. ``state`` is the alert's after the event. ``raised_at``: of the alert; ``timestamp``: of this
    event. ``bundled``: alerts like it that were joined to it. ``by``: through whom it happened. ``who``: as in
    ``alert_update``. ``reached``: with ``stood_down``, the users whose phones have it. ``handovers``: the offers to
    take it over that stand.
    """

    priority: str
    content: str
    department: str
    requires_action: bool
    alert_id: str = ""
    alert_seq: int = 0
    event: str = "raised"
    from_: str = msgspec.field(name="from", default="")
    patient_id: str | None = None
    options: tuple[AlertOption, ...] = ()
    next_escalation_at: str | None = None
    expires_at: str | None = None
    dedup_key: str | None = None
    timestamp: str = ""
    state: str = ""
    to: AlertTarget | None = None
    step: int = 0
    slots: tuple[AlertSlot, ...] = ()
    bundled: int = 0
    raised_at: str = ""
    drill: bool = False
    by: str = ""
    also: tuple[AlertTarget, ...] = ()
    who: tuple[AlertHolder, ...] = ()
    reached: tuple[str, ...] = ()
    resolve_by: str | None = None
    handovers: tuple[AlertHandover, ...] = ()


class AlertCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many people: each includes those who went further. ``unreachable``: addressed, and no phone has it yet."""

    delivered: int = 0
    displayed: int = 0
    accepted: int = 0
    declined: int = 0
    unreachable: int = 0


class AlertUpdate(Frame, frozen=True, kw_only=True, tag="alert_update"):
    """A change of an alert's state. Durable by ``alert_seq``. ``event``: what happened, ``by``: through whom.

    ``who``: the answers of people so far, without those whose phones have merely received it (``counts`` has these),
    in the order in which they were given: of those who accept, the first has it. ``handovers``: the offers to take it
    over that stand; ``handover``: the one that this event is about.
    """

    alert_id: str
    state: str
    by: str = ""
    counts: AlertCounts = AlertCounts()
    step: int = 0
    next_escalation_at: str | None = None
    alert_seq: int = 0
    event: str = ""
    who: tuple[AlertHolder, ...] = ()
    slots: tuple[AlertSlot, ...] = ()
    resolve_by: str | None = None
    timestamp: str = ""
    handovers: tuple[AlertHandover, ...] = ()
    handover: AlertHandover | None = None


class ActionUpdate(Frame, frozen=True, kw_only=True, tag="action_update"):
    """What has become of a quick action. Durable; ``confirm_token`` goes only to the one who prepared it."""

    action_id: str
    status: Literal[
        "prepared", "confirmed", "sent", "accepted", "done", "failed", "expired", "dismissed", "handed_over"
    ]
    by: str = ""
    at: str = ""
    confirm_token: str | None = None
    client_msg_id: str | None = None
    catalog_id: str = ""
    label: str = ""
    patient_id: str | None = None
    expires_at: str | None = None
    reason: str | None = None
    draft_ref: str | None = None
    second_identifier_required: bool = False
    summary: str = ""
    epoch: str = ""
    seq: int = 0


class Context(Frame, frozen=True, kw_only=True, tag="context"):
    """Which patient the session is about now, and how fresh each layer is. Durable."""

    patient: PatientInfo | None
    layers: tuple[LayerInfo, ...] = ()
    reason: Literal["set", "switched", "stale"] = "set"
    client_msg_id: str | None = None
    epoch: str = ""
    seq: int = 0


class Stale(Frame, frozen=True, kw_only=True, tag="stale"):
    """An answer rests on a value that has been replaced. Durable."""

    response_id: str
    cause: StaleCause
    epoch: str = ""
    seq: int = 0


class StaleCause(msgspec.Struct, frozen=True, kw_only=True):
    layer: str
    field: str
    new_as_of: str


class Presence(Frame, frozen=True, kw_only=True, tag="presence"):
    """The state that is now known for a person. ``is_accepted``: the delegate has agreed already, and stands in."""

    user_id: str
    state: str
    until: str | None = None
    delegate_to: str | None = None
    is_accepted: bool = False
    client_msg_id: str | None = None


class ModeChange(Frame, frozen=True, kw_only=True, tag="mode"):
    """The model has come, gone, or become slow; to every open connection, whoever asks what."""

    mode: Mode
    model: ModelState


class Pong(Frame, frozen=True, kw_only=True, tag="pong"):
    t: Any = None
    server_time: str = ""


class Error(Frame, frozen=True, kw_only=True, tag="error"):
    """Why a command was not taken. ``message`` and ``detail`` never hold what the client sent."""

    code: str
    message: str
    retryable: bool
    retry_after_ms: int | None = None
    client_msg_id: str | None = None
    detail: str | None = None


class Goaway(Frame, frozen=True, kw_only=True, tag="goaway"):
    """The connection will be closed with ``code``; ``reconnect`` says whether to come back, ``after_ms`` when."""

    code: int
    reconnect: bool
    after_ms: int
    reason: str


ServerFrame = (
    Welcome
    | Snapshot
    | Accepted
    | Queue
    | Facts
    | AiDelta
    | AiResponse
    | SystemNotification
    | AlertUpdate
    | ActionUpdate
    | Context
    | Stale
    | Presence
    | ModeChange
    | Pong
    | Error
    | Goaway
)

#: Durable by the session's log: they carry ``epoch`` and ``seq`` and are replayed on resume.
SESSION_DURABLE: Final = (Facts, AiResponse, ActionUpdate, Context, Stale)
#: Durable by the department's ledger: they carry ``alert_seq``.
ALERT_DURABLE: Final = (SystemNotification, AlertUpdate)
#: Commands that stop or answer something, or keep the line alive: never rate limited.
RATE_EXEMPT: tuple[type[Frame], ...] = (Hello, Cancel, Ack, AlertResponse, Refresh, SessionEnd, Ping)
