"""The life of an alert as a table, and what each command and timer does, as plain functions that never await.

Every function takes an alert as it stands and gives the ``Change`` to store; the same alert and command give the same
change. Two nodes that answer at once are ordered by the ledger's row lock: the second sees what the first has done. All
of an alert's timers follow from the alert (``timers``), so none outlives the state that it belongs to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from chatd.alerts import handover
from chatd.alerts.model import (
    BYSTANDER,
    CLOSED,
    NOTIFYING,
    RECEIPTS,
    Alert,
    Answer,
    Change,
    Event,
    Handover,
    Happened,
    Person,
    Priority,
    Raise,
    Response,
    Seen,
    Slot,
    State,
    Timer,
)
from chatd.alerts.policies import Policy
from chatd.clock import STEP, iso_ms
from protocols.codec import CodecLimits
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import (
    AlertCounts,
    AlertHandover,
    AlertHolder,
    AlertSlot,
    AlertTarget,
    AlertUpdate,
    Reach,
    SystemNotification,
)

Cause = Literal[
    "accept",
    "decline",
    "done",
    "stand_down",
    "hand_over",
    "take_over",
    "refuse_handover",
    "revoke_handover",
    "join",
    "repeat",
    "step",
    "remind",
    "expire",
    "lapse",
]
Effect = Literal[
    "take",
    "decline",
    "resolve",
    "stand_down",
    "offer",
    "take_over",
    "refuse",
    "revoke",
    "join",
    "ring",
    "escalate",
    "remind",
    "expire",
    "lapse",
]

_OPEN: Final[dict[Cause, Effect]] = {
    "accept": "take",
    "decline": "decline",
    "done": "resolve",
    "stand_down": "stand_down",
    "hand_over": "offer",
    "take_over": "take_over",
    "refuse_handover": "refuse",
    "revoke_handover": "revoke",
    "join": "join",
    "expire": "expire",
    "lapse": "lapse",
}
#: What may happen in which state. What a row lacks does not: a person is told ``alert_closed``, a timer came late.
LIFE: Final[dict[State, dict[Cause, Effect]]] = {
    "delivering": {**_OPEN, "repeat": "ring", "step": "escalate"},
    "unanswered": {**_OPEN, "repeat": "ring"},
    "in_progress": {**_OPEN, "remind": "remind"},
    "resolved": {},
    "stood_down": {},
    "expired": {},
}

#: How far a person has come with an alert; an answer of a higher rank is not undone by one of a lower.
_RANK: Final = {"addressed": 0, "delivered": 1, "displayed": 2, "accept": 3, "decline": 3, "handed_over": 3, "done": 4}
_PRIORITIES: Final[tuple[Priority, ...]] = ("low", "normal", "high", "critical")
#: This many alerts of one raiser in one minute are a storm: nobody reads a sixth while five are ringing.
STORM_ALERTS: Final = 5
STORM_WITHIN: Final = timedelta(seconds=60)
#: What comes later than this was looked at by no gateway meanwhile, and nobody could answer. A sweep is a second late,
#: one that meets a busy ledger two or three.
LATE: Final = timedelta(seconds=10)
_MAX_CONTENT_CHARS: Final = CodecLimits().max_content_chars


# --- what an alert says of itself ---------------------------------------------------------------------------


def timers(alert: Alert) -> tuple[Timer, ...]:
    """All timers of an alert: at most one of each kind, none of a closed one."""
    if alert.state in CLOSED:
        return ()
    found = []
    lapses_at = handover.lapses_at(alert)
    if lapses_at is not None:
        found.append(Timer(kind="lapse", due_at=lapses_at))
    if alert.state == "in_progress":
        # Somebody is at it: it does not end by itself before they were asked.
        if alert.resolve_by is not None:
            found.append(Timer(kind="remind", due_at=alert.resolve_by))
        elif alert.expires_at is not None:
            found.append(Timer(kind="expire", due_at=alert.expires_at))
        return tuple(found)
    if alert.next_ring_at is not None:
        found.append(Timer(kind="repeat", due_at=alert.next_ring_at))
    if alert.next_step_at is not None and alert.state == "delivering":
        found.append(Timer(kind="step", due_at=alert.next_step_at))
    if alert.expires_at is not None:
        found.append(Timer(kind="expire", due_at=alert.expires_at))
    return tuple(found)


def next_step_target(alert: Alert, policy: Policy) -> AlertTarget | None:
    """Whom the next step calls; None: every step has been taken."""
    return policy.steps[alert.step].target(alert.department) if alert.step < len(policy.steps) else None


def names(target: AlertTarget, user_id: str, roles: Iterable[str], department: str) -> bool:
    """Whether a target names this person."""
    if target.department is not None:
        return target.department == department
    return target.role in roles if target.role is not None else target.user == user_id


def is_addressed(alert: Alert, user_id: str, roles: Sequence[str], department: str) -> bool:
    """Whether a step so far has called this person, by name, role or department, or as somebody's delegate."""
    person = _person(alert, user_id)
    return (person is not None and person.step != BYSTANDER) or any(
        names(target, user_id, roles, department) for target in (alert.to, *alert.also)
    )


def holders(alert: Alert) -> tuple[Person, ...]:
    """Who has accepted and not given it back, first come first: the first of them has it."""
    return tuple(sorted((p for p in alert.people if p.answer == "accept"), key=lambda p: (p.at, p.user_id)))


def is_held(alert: Alert) -> bool:
    """Whether nobody need be called any more: each slot has somebody, or, without slots, anybody has accepted."""
    return all(slot.by for slot in alert.slots) if alert.slots else bool(holders(alert))


def may_stand_down(alert: Alert, user_id: str, roles: Iterable[str], policy: Policy) -> bool:
    """Whether this person may call it off: who raised it, and the policy's roles (in charge)."""
    return user_id == alert.raised_by or not set(policy.stand_down).isdisjoint(roles)


def may_finish(alert: Alert, response: Response, policy: Policy) -> bool:
    """Whether this person may say that it is done.

    Whoever may call it off; who holds it, once no place in the team is empty; and, while nobody has it, anybody whom
    it calls: they have done it on their way. Nobody ends what somebody else is at.
    """
    if may_stand_down(alert, response.user_id, response.roles, policy):
        return True
    if alert.slots or not alert.requires_action:
        return bool(alert.slots) and is_held(alert) and any(slot.by == response.user_id for slot in alert.slots)
    if holders(alert):
        return any(person.user_id == response.user_id for person in holders(alert))
    return is_addressed(alert, response.user_id, response.roles, response.department)


# --- raising ------------------------------------------------------------------------------------------------


def raise_(
    command: Raise,
    *,
    alert_id: str,
    policy: Policy,
    people: Sequence[str],
    now: datetime,
    delegates: Sequence[str] = (),
    reach: Reach | None = None,
) -> Change:
    """A new alert. ``people``: whom ``command.to`` names now; ``delegates``: those of them who stand in for others."""
    alert = Alert(
        alert_id=alert_id,
        department=command.department,
        to=command.to,
        priority=command.priority,
        content=command.content,
        requires_action=command.requires_action or bool(policy.slots),
        raised_by=command.raised_by,
        raised_at=now,
        updated_at=now,
        policy=policy.id,
        patient_id=command.patient_id,
        dedup_key=command.dedup_key,
        slots=policy.slots,
        expires_at=_due(now, policy.expires_after_s),
        is_drill=command.is_drill,
        reach=reach or Reach(),
    )
    alert = _call(_ring_first(alert, policy, now), people, delegates, now)
    if command.hand_to is None:
        return _change(alert, now, ("raised", command.raised_by))
    return _raised_to_hand_over(alert, command, policy, now)


def _raised_to_hand_over(alert: Alert, command: Raise, policy: Policy, now: datetime) -> Change:
    """An alert that its raiser has from the first moment, and offers: it never was nobody's, and rings nobody."""
    raiser = Person(user_id=command.raised_by, at=now, step=alert.step, answer="accept", accepted_at=now)
    alert = _held_if_whole(_replace(alert, people=_with(alert.people, raiser)), policy, now)
    asking = Response(
        key=command.key,
        user_id=command.raised_by,
        roles=(),
        department=command.department,
        alert_id=alert.alert_id,
        answer="hand_over",
        colleague=command.hand_to,
    )
    alert, made = handover.offer(alert, raiser, asking, now, _due(now, handover.OFFER_S))
    change = _handed(alert, "handover_offered", command.raised_by, made, now)
    raised = Happened(event="raised", at=now, by=command.raised_by)
    return _replace(change, events=(raised, *change.events))


def may_join(alert: Alert, command: Raise, now: datetime) -> bool:
    """Whether ``command`` can become part of an open alert without anything of it being lost or mixed up.

    The same patient, the same people, nothing asked that the alert does not ask, room for its words; and what somebody
    is at already gets no new words or higher priority, because it no longer rings.
    """
    same_words = _has_words(alert, command.content)
    is_higher = _is_higher(command.priority, alert.priority)
    return (
        "join" in LIFE[alert.state]
        and alert.department == command.department
        and alert.patient_id == command.patient_id
        and alert.is_drill == command.is_drill
        and _first_target(alert) == command.to
        and (alert.requires_action or not command.requires_action)
        and (same_words or len(alert.content) + 1 + len(command.content) <= _MAX_CONTENT_CHARS)
        and (alert.state != "in_progress" or (same_words and not is_higher))
    )


def is_repetition(alert: Alert, command: Raise, policy: Policy, now: datetime) -> bool:
    """Whether ``command`` is the alert again: its deduplication key within the policy's window (and ``may_join``).

    ``policy`` is the command's. A team is called again only into the same team.
    """
    return (
        command.dedup_key is not None
        and alert.dedup_key == command.dedup_key
        and now - alert.raised_at < timedelta(seconds=policy.dedup_within_s)
        and (not (alert.slots or policy.slots) or alert.policy == policy.id)
        and may_join(alert, command, now)
    )


def storm_target(open_alerts: Sequence[Alert], command: Raise, policy: Policy, now: datetime) -> Alert | None:
    """The alert that takes ``command`` in because its raiser has raised ``STORM_ALERTS`` within a minute; else None.

    A team is always called, and a storm about other patients or to other people is not one: each stays an alert.
    """
    recent = [
        each for each in open_alerts if each.raised_by == command.raised_by and now - each.raised_at < STORM_WITHIN
    ]
    if len(recent) < STORM_ALERTS or policy.slots:
        return None
    fitting = (each for each in recent if not each.slots and may_join(each, command, now))
    return min(fitting, key=lambda each: (each.raised_at, each.alert_id), default=None)


def join(alert: Alert, command: Raise, policy: Policy, now: datetime) -> Change:
    """Count ``command`` with ``alert``, for which ``may_join`` has been asked. ``policy`` is the command's.

    New words are added on a line of their own, and the next ring comes as soon as after a first one. A higher priority
    rings at once and brings its own policy; the step that was reached stays, and where that policy has further steps,
    they follow, also when every step of the lower one had been taken.
    """
    has_words = _has_words(alert, command.content)
    is_higher = _is_higher(command.priority, alert.priority)
    alert = _replace(
        alert,
        bundled=alert.bundled + 1,
        content=alert.content if has_words else f"{alert.content}\n{command.content}",
    )
    if is_higher:
        chosen = alert.policy if alert.slots else policy.id
        before, alert = alert.next_step_at, _replace(alert, priority=command.priority, policy=chosen)
        if alert.state == "unanswered" and next_step_target(alert, policy) is not None:
            alert = _replace(alert, state="delivering")
        alert = _ring_first(alert, policy, now)
        if before is not None and alert.next_step_at is not None:
            alert = _replace(alert, next_step_at=min(before, alert.next_step_at))
        return _change(alert, now, ("joined", command.raised_by), ("repeated", ""))
    if not has_words and alert.next_ring_at is not None:
        alert = _replace(alert, next_ring_at=min(alert.next_ring_at, _due(now, policy.ring_wait_s(1))))
    return _change(alert, now, ("joined", command.raised_by))


# --- people -------------------------------------------------------------------------------------------------


def respond(alert: Alert, response: Response, policy: Policy, now: datetime) -> Change:
    """What a person's answer does. Raises RemoteProtocolError: alert_closed, forbidden, slot_taken, bad_request.

    Whether somebody with these roles may answer at all is ``permissions.may_answer``, asked before. A decline by the
    last one of a step makes the next step due at once: the caller may ``fire`` it in the same transaction, or leave it
    to the sweep.
    """
    if response.department != alert.department:
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "alert_id: of another department")
    if response.answer in RECEIPTS:
        return receipts(alert, {response.user_id: response.answer}, now) or _change(alert, alert.updated_at)
    cause = _CAUSES[response.answer]
    effect = LIFE[alert.state].get(cause)
    if effect is None:
        raise RemoteProtocolError(ErrorCode.ALERT_CLOSED)
    return _BY_PEOPLE[effect](alert, response, policy, now)


def receipts(
    alert: Alert, answers: Mapping[str, Answer], now: datetime, *, seen: Mapping[str, Seen] | None = None
) -> Change | None:
    """What phones have said by themselves, many at once; None: nothing new, or the alert is closed.

    ``answers``: ``delivered`` or ``displayed`` per user, the furthest of each. ``seen``: when they said so; without it
    ``now``. A moment of somebody who has answered since is noted, and is no event.
    """
    if alert.state in CLOSED:
        return None
    people = {person.user_id: person for person in alert.people}
    is_new = False
    for user_id, answer in answers.items():
        if answer not in RECEIPTS:
            continue
        known = people.get(user_id)
        if known is None:
            # A look through all people for each of a department's receipts would be its square.
            is_called = any(names(target, user_id, (), alert.department) for target in (alert.to, *alert.also))
            known = Person(user_id=user_id, at=now, step=alert.step if is_called else BYSTANDER)
        when = (seen or {}).get(user_id) or Seen(delivered_at=now, displayed_at=now if answer == "displayed" else None)
        is_further = _RANK[answer] > _RANK[known.answer]
        people[user_id] = _replace(
            known,
            delivered_at=_earlier(known.delivered_at, when.delivered_at),
            displayed_at=_earlier(known.displayed_at, when.displayed_at),
            answer=answer if is_further else known.answer,
            at=now if is_further else known.at,
        )
        is_new = is_new or is_further
    changed = _replace(alert, people=tuple(people.values()))
    if is_new:
        return _change(changed, now, ("receipts", ""))
    return None if changed == alert else _change(changed, alert.updated_at)


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    if one is None or other is None:
        return one or other
    return min(one, other)


def _take(alert: Alert, response: Response, policy: Policy, now: datetime) -> Change:
    user_id, roles = response.user_id, response.roles
    place = _place(alert, response)
    if not (
        place is not None
        or is_addressed(alert, user_id, roles, response.department)
        or may_stand_down(alert, user_id, roles, policy)
    ):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "alert_id: calls others")
    eta_at = now + timedelta(minutes=response.eta_min) if response.eta_min is not None else None
    known = _known(alert, response, now)
    if known.answer == "accept":
        since, eta_at = known.at, eta_at or known.eta_at
    else:
        # Two nodes' clocks differ by milliseconds: who came first is told by the ledger's order, not by them.
        since = max([now, *(person.at + timedelta(milliseconds=1) for person in holders(alert))])
    person = _replace(
        known,
        answer="accept",
        at=since,
        eta_at=eta_at,
        slot=place,
        reason=response.reason,
        accepted_at=known.accepted_at or now,
    )
    alert = _replace(
        alert,
        people=_with(alert.people, person),
        slots=tuple(_seated(slot, user_id, place, eta_at) for slot in alert.slots),
    )
    if not alert.requires_action:
        # Seen by somebody: it need not be brought to others, and stays for those who have not seen it.
        alert = _replace(alert, state="delivering", next_step_at=None)
    else:
        alert = _held_if_whole(alert, policy, now)
    return _change(alert, now, ("accepted", user_id))


def _held_if_whole(alert: Alert, policy: Policy, now: datetime) -> Alert:
    """After somebody has come: quiet, and asked about later, if nobody else need come. Said again, the time is new."""
    if not is_held(alert) or (alert.state == "in_progress" and not alert.is_reminded):
        return alert
    return _replace(
        alert,
        state="in_progress",
        next_ring_at=None,
        next_step_at=None,
        is_reminded=False,
        resolve_by=_due(now, policy.resolve_within_s),
    )


def _decline(alert: Alert, response: Response, policy: Policy, now: datetime) -> Change:
    user_id = response.user_id
    known = _known(alert, response, now)
    gives_back = known.answer == "accept" and alert.requires_action
    if not gives_back and not is_addressed(alert, user_id, response.roles, response.department):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "alert_id: calls others")
    person = _replace(known, answer="decline", at=now, eta_at=None, slot=None, reason=response.reason)
    alert = _replace(
        alert,
        people=_with(alert.people, person),
        slots=tuple(_seated(slot, user_id, None, None) for slot in alert.slots),
    )
    if gives_back and not is_held(alert):
        return _change(_call_again(alert, policy, now), now, ("declined", user_id), ("repeated", ""))
    if alert.next_step_at is not None and _all_declined(alert):
        alert = _replace(alert, next_step_at=min(alert.next_step_at, _due(now, 0)))
    return _change(alert, now, ("declined", user_id))


def _resolve(alert: Alert, response: Response, policy: Policy, now: datetime) -> Change:
    if not may_finish(alert, response, policy):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "answer: others are at it")
    known = _known(alert, response, now)
    # Who ends what others are at, being in charge or its raiser, has not done it themselves.
    if known.answer == "accept" or (alert.requires_action and not holders(alert) and known.step != BYSTANDER):
        done = _replace(known, answer="done", at=now, reason=response.reason)
        alert = _replace(alert, people=_with(alert.people, done))
    return _close(alert, "resolved", response.user_id, now)


def _stand_down(alert: Alert, response: Response, policy: Policy, now: datetime) -> Change:
    if not may_stand_down(alert, response.user_id, response.roles, policy):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "answer: for the raiser or who is in charge")
    return _close(alert, "stood_down", response.user_id, now)


# --- handing over -------------------------------------------------------------------------------------------


def _offer(alert: Alert, response: Response, _policy: Policy, now: datetime) -> Change:
    known = _known(alert, response, now)
    alert, made = handover.offer(alert, known, response, now, _due(now, handover.OFFER_S))
    return _handed(alert, "handover_offered", response.user_id, made, now)


def _take_over(alert: Alert, response: Response, policy: Policy, now: datetime) -> Change:
    offered = handover.offered_to(alert, response.user_id, response.colleague)
    taken = handover.take(alert, offered, _known(alert, response, now), response, now)
    return _handed(_held_if_whole(taken, policy, now), "handed_over", response.user_id, offered, now)


def _refuse(alert: Alert, response: Response, _policy: Policy, now: datetime) -> Change:
    offered = handover.offered_to(alert, response.user_id, response.colleague)
    return _handed(handover.without(alert, offered), "handover_refused", response.user_id, offered, now)


def _revoke(alert: Alert, response: Response, _policy: Policy, now: datetime) -> Change:
    offered = handover.offered_by(alert, response.user_id)
    return _handed(handover.without(alert, offered), "handover_revoked", response.user_id, offered, now)


def _lapse(alert: Alert, now: datetime) -> Change:
    """What nobody has taken stays with who offered it, and all hear so."""
    lapsed = tuple(each for each in alert.handovers if each.until <= now)
    change = _change(handover.without(alert, *lapsed), now)
    events = tuple(Happened(event="handover_lapsed", at=now, handover=each) for each in lapsed)
    return _replace(change, events=events)


def _handed(alert: Alert, event: Event, by: str, about: Handover, now: datetime) -> Change:
    change = _change(alert, now)
    return _replace(change, events=(Happened(event=event, at=now, by=by, handover=about),))


_CAUSES: Final[dict[Answer, Cause]] = {
    "accept": "accept",
    "decline": "decline",
    "done": "done",
    "stand_down": "stand_down",
    "hand_over": "hand_over",
    "take_over": "take_over",
    "refuse_handover": "refuse_handover",
    "revoke_handover": "revoke_handover",
}
_BY_PEOPLE: Final[dict[Effect, Callable[[Alert, Response, Policy, datetime], Change]]] = {
    "take": _take,
    "decline": _decline,
    "resolve": _resolve,
    "stand_down": _stand_down,
    "offer": _offer,
    "take_over": _take_over,
    "refuse": _refuse,
    "revoke": _revoke,
}


# --- timers -------------------------------------------------------------------------------------------------


def fire(
    alert: Alert,
    timer: Timer,
    policy: Policy,
    people_of_step: Sequence[str],
    now: datetime,
    *,
    delegates: Sequence[str] = (),
) -> Change | None:
    """What a timer does; None: the alert has no such timer, or it is not due. Then write ``timers(alert)`` to its rows.

    ``people_of_step``: for ``step`` whom ``next_step_target`` names now, for the others whom ``alert.to`` does: who has
    come since is called too. A node that was away fires one step, not all that it missed: people get their time. So an
    alert whose end has come while no node was there (``LATE``) goes on until every step has had its time.
    """
    own = next((each for each in timers(alert) if each.kind == timer.kind), None)
    if own is None or own.due_at > now:
        return None
    effect = LIFE[alert.state][timer.kind]
    if effect == "ring":
        alert = _replace(alert, rings=alert.rings + 1, next_ring_at=_due(now, policy.ring_wait_s(alert.rings + 1)))
        return _change(_call(alert, people_of_step, delegates, now), now, ("repeated", ""))
    if effect == "escalate":
        return _escalate(alert, policy, people_of_step, delegates, now)
    if effect == "remind":
        return _remind(alert, policy, people_of_step, delegates, now)
    if effect == "lapse":
        return _lapse(alert, now)
    if now - own.due_at > LATE:
        return _change(_replace(alert, expires_at=_due(now, _time_left_s(alert, policy))), now)
    return _close(alert, "expired", "", now)


def _time_left_s(alert: Alert, policy: Policy) -> int:
    """What those whom an alert has yet to call, and those it calls now, have until it is over for all of them."""
    if alert.state == "in_progress":
        return policy.remind_again_s
    last = len(policy.steps)
    return sum(policy.wait_after_step_s(step) for step in range(min(alert.step, last), last + 1))


def set_back(alert: Alert, now: datetime) -> Change | None:
    """An alert that was last changed in what is the future now: by a clock that was wrong. None: it was not.

    Every timer waits from now as long as it had to wait from that change on: none comes early, and none comes hours
    late because the clock was put right.
    """
    by = now - alert.updated_at
    if alert.state in CLOSED or -by <= STEP:
        return None

    def back(moment: datetime | None) -> datetime | None:
        return None if moment is None else _due(moment + by, 0)

    alert = _replace(
        alert,
        raised_at=min(alert.raised_at, now),
        next_ring_at=back(alert.next_ring_at),
        next_step_at=back(alert.next_step_at),
        resolve_by=back(alert.resolve_by),
        expires_at=back(alert.expires_at),
        handovers=tuple(_replace(each, until=_due(each.until + by, 0)) for each in alert.handovers),
    )
    return _change(alert, now)


def _escalate(alert: Alert, policy: Policy, people: Sequence[str], delegates: Sequence[str], now: datetime) -> Change:
    target = next_step_target(alert, policy)
    if target is None:
        return _change(_replace(alert, state="unanswered", next_step_at=None), now, ("unanswered", ""))
    alert = _replace(alert, step=alert.step + 1, to=target, also=(alert.to, *alert.also))
    alert = _call(_ring_first(alert, policy, now), people, delegates, now)
    if (not people and target.department is None) or _all_declined(alert):
        # Nobody holds this role now, or all who do have declined before: nobody is waited for.
        alert = _replace(alert, next_step_at=_due(now, 0))
    return _change(alert, now, ("escalated", ""))


def _remind(alert: Alert, policy: Policy, people: Sequence[str], delegates: Sequence[str], now: datetime) -> Change:
    again_at = _due(now, policy.remind_again_s)
    if alert.slots:
        # The team is there. Ringing it together anew because nobody said "done" would call it from the patient.
        ends_at = max(alert.expires_at or again_at, again_at)
        alert = _replace(alert, is_reminded=True, resolve_by=None, expires_at=ends_at)
        return _change(alert, now, ("reminded", ""))
    if not alert.is_reminded:
        return _change(_replace(alert, is_reminded=True, resolve_by=again_at), now, ("reminded", ""))
    # Asked twice and silent: whoever accepted does not have it any more.
    lapsed = tuple(
        _replace(person, answer="displayed", at=now, eta_at=None) if person.answer == "accept" else person
        for person in alert.people
    )
    alert = _call_again(_replace(alert, people=lapsed), policy, now)
    return _change(_call(alert, people, delegates, now), now, ("repeated", ""))


# --- on the wire --------------------------------------------------------------------------------------------


def frame(alert: Alert, happened: Happened, alert_seq: int, policy: Policy) -> SystemNotification | AlertUpdate:
    """The frame of one event, the same for every phone; ``alert`` as it stands after the whole change."""
    if happened.event in NOTIFYING:
        return notification(alert, happened, alert_seq, policy)
    return AlertUpdate(
        alert_id=alert.alert_id,
        state=alert.state,
        by=happened.by,
        counts=counts(alert),
        step=alert.step,
        next_escalation_at=_iso(alert.next_step_at),
        alert_seq=alert_seq,
        event=happened.event,
        who=_who(alert),
        slots=_slots(alert),
        resolve_by=_iso(alert.resolve_by),
        timestamp=iso_ms(happened.at),
        handovers=_handovers(alert.handovers),
        handover=None if happened.handover is None else _handovers((happened.handover,))[0],
    )


def notification(alert: Alert, happened: Happened, alert_seq: int, policy: Policy) -> SystemNotification:
    """The alert with its text: for the events that bring it, for a snapshot, and for who asks (``View``)."""
    covers_all = alert.to.department is not None
    return SystemNotification(
        priority=alert.priority,
        content=alert.content,
        department=alert.department,
        requires_action=alert.requires_action,
        alert_id=alert.alert_id,
        alert_seq=alert_seq,
        event=happened.event,
        from_=alert.raised_by,
        patient_id=alert.patient_id,
        options=() if alert.state in CLOSED else policy.ask if alert.requires_action else policy.tell,
        next_escalation_at=_iso(alert.next_step_at),
        expires_at=_iso(alert.expires_at),
        dedup_key=alert.dedup_key,
        timestamp=iso_ms(happened.at),
        state=alert.state,
        to=alert.to,
        step=alert.step,
        slots=_slots(alert),
        bundled=alert.bundled,
        raised_at=iso_ms(alert.raised_at),
        drill=alert.is_drill,
        by=happened.by,
        also=() if covers_all else tuple(each for i, each in enumerate(alert.also) if each not in alert.also[:i]),
        who=_who(alert),
        reached=reached(alert) if happened.event == "stood_down" else (),
        resolve_by=_iso(alert.resolve_by),
        handovers=_handovers(alert.handovers),
    )


def counts(alert: Alert) -> AlertCounts:
    """How many people have come how far; see ``AlertCounts``."""
    answers = Counter([person.answer for person in alert.people])
    called = sum([person.answer == "addressed" and person.step != BYSTANDER for person in alert.people])
    return AlertCounts(
        delivered=len(alert.people) - answers["addressed"],
        displayed=len(alert.people) - answers["addressed"] - answers["delivered"],
        accepted=answers["accept"] + answers["done"],
        declined=answers["decline"],
        unreachable=called,
    )


def reached(alert: Alert) -> tuple[str, ...]:
    """Whose phones have the alert: who must hear that it is off."""
    return tuple(sorted(person.user_id for person in alert.people if person.answer != "addressed"))


def _who(alert: Alert) -> tuple[AlertHolder, ...]:
    answered = sorted((p for p in alert.people if _RANK[p.answer] >= _RANK["accept"]), key=lambda p: (p.at, p.user_id))
    return tuple(
        AlertHolder(
            user_id=person.user_id,
            answer=person.answer,
            at=iso_ms(person.at),
            eta_at=_iso(person.eta_at),
            slot=person.slot,
            reason=person.reason,
        )
        for person in answered
    )


def _slots(alert: Alert) -> tuple[AlertSlot, ...]:
    return tuple(
        AlertSlot(
            id=slot.id,
            label=slot.label,
            by=slot.by,
            eta_at=_iso(slot.eta_at),
            label_pt=slot.label_pt,
            roles=slot.roles,
            roles_named=slot.roles_named,
        )
        for slot in alert.slots
    )


def _handovers(offers: Iterable[Handover]) -> tuple[AlertHandover, ...]:
    return tuple(
        AlertHandover(from_=each.giver, to=each.taker, at=iso_ms(each.at), until=iso_ms(each.until)) for each in offers
    )


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else iso_ms(moment)


# --- parts --------------------------------------------------------------------------------------------------

_replace = msgspec.structs.replace


def _due(now: datetime, after_s: int) -> datetime:
    """``after_s`` seconds from now, rounded up to the millisecond that every ledger keeps: never early."""
    due_at = now + timedelta(seconds=after_s)
    return due_at + timedelta(microseconds=-due_at.microsecond % 1000)


def _change(alert: Alert, now: datetime, *events: tuple[Event, str]) -> Change:
    alert = _replace(alert, updated_at=now, handovers=handover.standing(alert))
    return Change(
        alert=alert,
        events=tuple(Happened(event=event, at=now, by=by) for event, by in events),
        timers=timers(alert),
    )


def _close(alert: Alert, state: State, by: str, now: datetime) -> Change:
    event: Event = state  # type: ignore[assignment]  # the closed states are events of the same name
    alert = _replace(alert, state=state, next_ring_at=None, next_step_at=None, resolve_by=None)
    return _change(alert, now, (event, by))


def _ring_first(alert: Alert, policy: Policy, now: datetime) -> Alert:
    """The first ring of a step, and the time that its people have."""
    return _replace(
        alert,
        rings=1,
        next_ring_at=_due(now, policy.ring_wait_s(1)) if alert.requires_action else None,
        next_step_at=_due(now, policy.wait_after_step_s(alert.step)) if alert.state == "delivering" else None,
    )


def _call_again(alert: Alert, policy: Policy, now: datetime) -> Alert:
    """A place is empty again: it rings at once, where the chain stood, and has its whole time until it expires."""
    state: State = "unanswered" if alert.state == "unanswered" else "delivering"
    waiting = alert.next_step_at
    alert = _replace(alert, state=state, resolve_by=None, is_reminded=False)
    alert = _ring_first(alert, policy, now)
    if waiting is not None:
        # The others of a team that is not whole wait no longer because one has come and gone.
        alert = _replace(alert, next_step_at=waiting)
    full = _due(now, policy.expires_after_s)
    alert = _replace(alert, expires_at=max(alert.expires_at or full, full))
    if alert.next_step_at is not None and _all_declined(alert):
        alert = _replace(alert, next_step_at=_due(now, 0))
    return alert


def _call(alert: Alert, people: Sequence[str], delegates: Sequence[str], now: datetime) -> Alert:
    """Address people in the present step, and let delegates' phones ring. Who raised it is not called to it."""
    called = {person.user_id: person for person in alert.people}
    for user_id in people:
        if user_id == alert.raised_by and alert.to.user != user_id:
            continue
        known = called.get(user_id)
        if known is None:
            called[user_id] = Person(user_id=user_id, at=now, step=alert.step)
        elif known.step != alert.step:
            called[user_id] = _replace(known, step=alert.step)
    also = list(alert.also)
    also += [target for target in (AlertTarget(user=each) for each in delegates) if target not in also]
    return _replace(alert, people=tuple(called.values()), also=tuple(also))


def _all_declined(alert: Alert) -> bool:
    """Whether the present step has people and every one of them has declined, or has given it to one who has."""
    answers = {person.answer for person in alert.people if person.step == alert.step}
    return "decline" in answers and answers <= {"decline", "handed_over"}


def _first_target(alert: Alert) -> AlertTarget:
    """Whom the raiser named: each step since has put the one before it in front of ``also``."""
    return alert.also[alert.step - 1] if alert.step else alert.to


def _person(alert: Alert, user_id: str) -> Person | None:
    return next((person for person in alert.people if person.user_id == user_id), None)


def _known(alert: Alert, response: Response, now: datetime) -> Person:
    """The person who answers; somebody who came after the step was taken is one of its people if it names them."""
    person = _person(alert, response.user_id) or Person(user_id=response.user_id, at=now, step=BYSTANDER)
    if person.step == BYSTANDER and is_addressed(alert, response.user_id, response.roles, response.department):
        return _replace(person, step=alert.step)
    return person


def _with(people: tuple[Person, ...], person: Person) -> tuple[Person, ...]:
    if any(each.user_id == person.user_id for each in people):
        return tuple(person if each.user_id == person.user_id else each for each in people)
    return (*people, person)


def _place(alert: Alert, response: Response) -> str | None:
    """Which slot an acceptance fills: the named one, the one they have, or the first that their roles may take."""
    own = set(response.roles)
    if response.slot is not None:
        slot = next((each for each in alert.slots if each.id == response.slot), None)
        if slot is None:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "slot: unknown")
        if slot.by not in {None, response.user_id}:
            raise RemoteProtocolError(ErrorCode.SLOT_TAKEN)
        if slot.role and own.isdisjoint((*slot.roles, *slot.roles_named)):
            raise RemoteProtocolError(ErrorCode.FORBIDDEN, "slot: for other roles")
        return slot.id
    empty = [each for each in alert.slots if each.by is None]
    found = (
        *(each for each in alert.slots if each.by == response.user_id),
        *(each for each in empty if each.role and not own.isdisjoint(each.roles)),
        *(each for each in empty if not each.role),
    )
    return found[0].id if found else None


def _seated(slot: Slot, user_id: str, place: str | None, eta_at: datetime | None) -> Slot:
    """The slot after this person has taken ``place``: they sit there and nowhere else; others stay where they are."""
    if slot.id == place:
        return _replace(slot, by=user_id, eta_at=eta_at)
    return _replace(slot, by=None, eta_at=None) if slot.by == user_id else slot


def _has_words(alert: Alert, content: str) -> bool:
    return content == alert.content or f"\n{content}\n" in f"\n{alert.content}\n"


def _is_higher(priority: Priority, than: Priority) -> bool:
    return _PRIORITIES.index(priority) > _PRIORITIES.index(than)
