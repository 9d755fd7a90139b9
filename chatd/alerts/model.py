"""What an alert is: the words and shapes that the board, the ledger, the gateway and the ways in share.

Plain data. Moments are aware datetimes in UTC; what is sealed on disk is said in ``chatd.ledger``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

import msgspec

from protocols.frames import AlertTarget, Reach, SystemNotification

Priority = Literal["low", "normal", "high", "critical"]

#: ``delivering``: open, repeated and escalated. ``unanswered``: every step has been taken and nobody has it; repeated
#: on. ``in_progress``: somebody has it (every slot, where it has slots); quiet until ``resolve_by``. The others are
#: the end.
State = Literal["delivering", "unanswered", "in_progress", "resolved", "stood_down", "expired"]
CLOSED: Final[frozenset[State]] = frozenset(("resolved", "stood_down", "expired"))

#: Every change is one event with the next ``alert_seq`` of its department. ``receipts``: phones have received or shown
#: it (many at once). ``joined``: another alert like it came and was bundled. ``reminded``: accepted, not done in time.
#: ``handover_*`` and ``handed_over``: what ``chatd.alerts.handover`` tells.
Event = Literal[
    "raised",
    "repeated",
    "escalated",
    "joined",
    "receipts",
    "accepted",
    "declined",
    "unanswered",
    "reminded",
    "resolved",
    "stood_down",
    "expired",
    "handover_offered",
    "handed_over",
    "handover_refused",
    "handover_revoked",
    "handover_lapsed",
]
#: Sent as ``system_notification``, with the alert's text; every other event as ``alert_update``.
NOTIFYING: Final[frozenset[Event]] = frozenset(
    ("raised", "repeated", "escalated", "joined", "stood_down", "resolved", "expired")
)
#: Those of them that ring; ``joined`` brings changed words and rings no phone by itself.
RINGING: Final[frozenset[Event]] = frozenset(("raised", "repeated", "escalated"))

Answer = Literal[
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
#: What phones say by themselves; nobody has decided anything.
RECEIPTS: Final[frozenset[Answer]] = frozenset(("delivered", "displayed"))

#: ``repeat``: ring again. ``step``: the policy's next step. ``remind``: accepted and not done. ``expire``: the end.
#: ``lapse``: an offer to take it over that nobody has taken.
TimerKind = Literal["repeat", "step", "remind", "expire", "lapse"]


#: Where a phone may be heard from. A wall board is nobody's.
Channel = Literal["app", "push"]
Availability = Literal["available", "busy", "in_procedure", "off"]


class PresenceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one person in one department now; content-free, and gone with Redis.

    ``channels``: those on which a phone of theirs has been heard lately; empty: they were here within the last shift
    and are not now. ``roles``: of the tokens of these phones. ``delegate_to``: whom they have asked to take over;
    nobody is covered before ``is_accepted``. What has run out (``until``) is no longer told here.
    """

    user_id: str
    roles: tuple[str, ...] = ()
    channels: tuple[Channel, ...] = ()
    state: Availability = "available"
    until: datetime | None = None
    delegate_to: str | None = None
    is_accepted: bool = False


class Raise(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants an alert. ``key`` is the caller's idempotency key: the same one again is the same alert.

    ``department``: whose phones get it. ``raised_by``: a user id, or ``service:NAME``. ``policy``: an id of
    ``policies``; None: by the department and priority. ``hand_to``: the raiser has it from the first moment, rings
    nobody, and offers it to this colleague: how a proposed action is handed over.
    """

    key: str
    raised_by: str
    department: str
    to: AlertTarget
    priority: Priority
    content: str
    requires_action: bool = False
    patient_id: str | None = None
    policy: str | None = None
    dedup_key: str | None = None
    is_drill: bool = False
    hand_to: str | None = None


class Raised(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger has it. ``is_duplicate``: this key was known; the alert is the first one's."""

    alert_id: str
    alert_seq: int
    reach: Reach
    is_duplicate: bool = False


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """One person's answer. ``key``: the idempotency key of ``user_id``. ``colleague``: to whom it is handed over, or
    from whom it is taken; None there: the first who asks."""

    key: str
    user_id: str
    roles: tuple[str, ...]
    department: str
    alert_id: str
    answer: Answer
    eta_min: int | None = None
    reason: str | None = None
    slot: str | None = None
    colleague: str | None = None


#: ``Person.step`` of somebody whom no step has addressed.
BYSTANDER: Final = -1


class Person(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where one person stands with one alert. ``answer``: the furthest: addressed, delivered, displayed, accept,
    decline, handed_over, done. ``at``: since when. ``step``: the last of the policy's steps that addressed them;
    ``BYSTANDER``: none has, their phone has it because every phone of the department has. ``delivered_at``,
    ``displayed_at``: when the first of their phones said so, as the gateway heard it; None: no phone has.
    ``accepted_at``: the first time."""

    user_id: str
    answer: str = "addressed"
    at: datetime
    step: int = 0
    eta_at: datetime | None = None
    slot: str | None = None
    reason: str | None = None
    delivered_at: datetime | None = None
    displayed_at: datetime | None = None
    accepted_at: datetime | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """When one person's phones said ``delivered`` and ``displayed``; what is shown has come, said or not."""

    delivered_at: datetime
    displayed_at: datetime | None = None


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One place in a team. ``role``: the family of ``policies`` that may take it; empty: anybody in the department.

    ``roles``: those that get it by accepting; ``roles_named``: those that get it too, by naming it.
    """

    id: str
    label: str
    label_pt: str
    role: str = ""
    by: str | None = None
    eta_at: datetime | None = None
    roles: tuple[str, ...] = ()
    roles_named: tuple[str, ...] = ()


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """``giver`` asks ``taker`` to take an alert over from them, from ``at`` to ``until``; until it is taken it stays
    the giver's. ``places``: in a team, the ids of the places that the giver could have filled when they had none."""

    giver: str
    taker: str
    at: datetime
    until: datetime
    places: tuple[str, ...] = ()


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert as it stands.

    ``step``: the policy's step that was taken last, from 0. ``rings``: how often it has rung since then. ``to``: whom
    the present step addresses. ``also``: whom it rings beside them: earlier steps' targets, and delegates of people who
    cannot come. ``next_step_at``, ``next_ring_at``, ``resolve_by``, ``expires_at``: its timers (``board.timers``), in
    whole milliseconds. ``is_reminded``: accepted, and the holders were asked once whether it is done. ``reach``: whom
    it could reach when it was raised; what the raiser was told, and is told again under the same key. ``handovers``:
    the offers that stand, at most one of each giver.
    """

    alert_id: str
    department: str
    to: AlertTarget
    priority: Priority
    content: str
    requires_action: bool
    raised_by: str
    raised_at: datetime
    updated_at: datetime
    policy: str
    state: State = "delivering"
    step: int = 0
    rings: int = 0
    patient_id: str | None = None
    dedup_key: str | None = None
    bundled: int = 0
    slots: tuple[Slot, ...] = ()
    people: tuple[Person, ...] = ()
    expires_at: datetime | None = None
    resolve_by: datetime | None = None
    is_drill: bool = False
    also: tuple[AlertTarget, ...] = ()
    next_step_at: datetime | None = None
    next_ring_at: datetime | None = None
    is_reminded: bool = False
    reach: Reach = Reach()
    handovers: tuple[Handover, ...] = ()


class Timer(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is due. A change of the alert replaces all its timers, so each fires once or not at all."""

    kind: TimerKind
    due_at: datetime


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """One event of an alert; it gets its ``alert_seq`` in the transaction that records it. ``handover``: the offer that
    it is about, for the events of a hand-over."""

    event: Event
    at: datetime
    by: str = ""
    handover: Handover | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a command or a timer does to an alert: how it stands now, what happened in order, and every timer it has
    from now on (those it had before are gone)."""

    alert: Alert
    events: tuple[Happened, ...]
    timers: tuple[Timer, ...]


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One durable frame of a department's alert log, as stored: the encoded JSON object with its ``alert_seq``."""

    alert_seq: int
    frame: bytes


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """What a department's alert log holds: from ``first_seq`` to ``last_seq``; empty where first is last plus 1."""

    first_seq: int
    last_seq: int


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Who has it: the alert as its raiser sees it."""

    notification: SystemNotification
    state: State
    people: tuple[Person, ...]
    reach: Reach
