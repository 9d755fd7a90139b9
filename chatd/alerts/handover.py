"""Handing an open alert over to a colleague, at the end of a shift for one: pure rules.

Whoever leaves offers each alert of theirs to a named colleague, and stays responsible until that colleague takes it.
An offer is part of the alert, so the ledger's row lock orders it with everything else: an alert that is taken over
changes its holder in one transaction, and of two people who act at once the second sees what the first has done.
``board`` calls these functions and makes events of what they do.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

import msgspec

from chatd.alerts.model import BYSTANDER, CLOSED, Alert, Handover, Person, Response, Slot
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertTarget

#: An offer stands for so long. A hand-over of a ward takes about half an hour; after it, whoever leaves has to hear
#: that nobody has taken their alert as long as they are still in the house. chatd's own choice.
OFFER_S: Final = 1_800

#: The policy of an alert that asks somebody to stand in for a colleague: nobody else can have agreed to that.
PERSONAL: Final = "cover"

#: Answers after which an alert is not, or no longer, an open loop of the person who gave them.
_AWAY: Final = frozenset(("decline", "handed_over", "done"))

_replace = msgspec.structs.replace


def is_loop(alert: Alert, person: Person, places: Iterable[str]) -> bool:
    """Whether an alert is an open loop of this person: they have it, or it calls them and nobody has answered for them.

    ``places``: of a team, those that they could fill; it calls them only as long as one of these is empty.
    """
    if alert.state in CLOSED or not alert.requires_action or person.answer in _AWAY:
        return False
    if person.answer == "accept":
        return True
    if person.step == BYSTANDER:
        return False
    if alert.slots:
        wanted = frozenset(places)
        return any(slot.by is None and slot.id in wanted for slot in alert.slots)
    return all(each.answer != "accept" for each in alert.people)


def standing(alert: Alert) -> tuple[Handover, ...]:
    """The offers that still are about something: their giver's loop is open. The others have ended by themselves."""
    people = {person.user_id: person for person in alert.people}
    return tuple(
        each
        for each in alert.handovers
        if (giver := people.get(each.giver)) is not None and is_loop(alert, giver, each.places)
    )


def lapses_at(alert: Alert) -> datetime | None:
    """When the first of the offers runs out; None: there is none."""
    return min((each.until for each in alert.handovers), default=None)


def offer(alert: Alert, giver: Person, response: Response, now: datetime, until: datetime) -> tuple[Alert, Handover]:
    """``giver`` asks ``response.colleague``; an earlier offer of theirs is replaced.

    Raises:
        RemoteProtocolError: bad_request without a colleague, or for oneself; forbidden where it is no open loop of
            theirs, or asks only them.
    """
    if alert.policy == PERSONAL:
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "alert_id: asks only you")
    taker = response.colleague
    if taker is None or taker == giver.user_id:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "colleague: somebody else")
    places = _calling(alert, frozenset(response.roles))
    if not is_loop(alert, giver, places):
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "alert_id: not yours to hand over")
    made = Handover(
        giver=giver.user_id,
        taker=taker,
        at=now,
        until=until,
        places=() if giver.answer == "accept" else places,
    )
    others = (each for each in alert.handovers if each.giver != giver.user_id)
    return _replace(alert, people=_with(alert.people, giver), handovers=(*others, made)), made


def offered_to(alert: Alert, taker: str, giver: str | None) -> Handover:
    """The offer to ``taker``, of ``giver`` or the first one. Raises RemoteProtocolError: handover_ended without one."""
    for each in alert.handovers:
        if each.taker == taker and giver in (None, each.giver):
            return each
    raise RemoteProtocolError(ErrorCode.HANDOVER_ENDED)


def offered_by(alert: Alert, giver: str) -> Handover:
    """The offer of ``giver``. Raises RemoteProtocolError: handover_ended without one."""
    for each in alert.handovers:
        if each.giver == giver:
            return each
    raise RemoteProtocolError(ErrorCode.HANDOVER_ENDED)


def without(alert: Alert, *ended: Handover) -> Alert:
    """The alert without these offers; whose it is does not change."""
    return _replace(alert, handovers=tuple(each for each in alert.handovers if each not in ended))


def take(alert: Alert, offered: Handover, taker: Person, response: Response, now: datetime) -> Alert:
    """``taker`` has from now on what ``offered.giver`` had or was called for: their rank among those who have accepted,
    and their place in the team. The giver has and is called for nothing any more.

    Args:
        taker: As they stand, or as somebody whom nobody has called yet.
    Raises:
        RemoteProtocolError: forbidden where the place is for other roles; bad_request where they sit in another one,
            or name one that is not offered.
    """
    giver = next(person for person in alert.people if person.user_id == offered.giver)
    holds = giver.answer == "accept"
    place = _place(alert, offered, giver, response)
    eta_at = None if response.eta_min is None else now + timedelta(minutes=response.eta_min)
    accepted = [person.at for person in alert.people if person.answer == "accept" and person.user_id != taker.user_id]
    since = giver.at if holds else max([now, *(at + timedelta(milliseconds=1) for at in accepted)])
    if taker.answer == "accept":
        since = min(since, taker.at)
    now_theirs = _replace(
        taker,
        answer="accept",
        at=since,
        step=alert.step if taker.step == BYSTANDER else taker.step,
        eta_at=eta_at,
        slot=place,
        reason=None,
        accepted_at=taker.accepted_at or now,
    )
    gone = _replace(giver, answer="handed_over", at=now, eta_at=None, slot=None, reason=None)
    called = AlertTarget(user=taker.user_id)
    return _replace(
        without(alert, offered),
        people=_with(_with(alert.people, gone), now_theirs),
        slots=tuple(
            _replace(slot, by=taker.user_id, eta_at=eta_at) if slot.id == place else slot for slot in alert.slots
        ),
        # Should it ever ring again, it rings where it was taken to.
        also=alert.also if called in (alert.to, *alert.also) else (*alert.also, called),
    )


def _place(alert: Alert, offered: Handover, giver: Person, response: Response) -> str | None:
    """Which place the taker gets: the giver's, or the first empty one of those that the giver was called for."""
    if not alert.slots:
        if response.slot is not None:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "slot: unknown")
        return None
    if any(slot.by == response.user_id for slot in alert.slots):
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "alert_id: you have another place in this team")
    if giver.answer == "accept":
        wanted = [slot for slot in alert.slots if slot.by == giver.user_id]
        if not wanted:
            return None  # ready behind a team that has its people
    else:
        wanted = [slot for slot in alert.slots if slot.by is None and slot.id in offered.places]
    if response.slot is not None:
        wanted = [slot for slot in wanted if slot.id == response.slot]
        if not wanted:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "slot: not offered")
    own = frozenset(response.roles)
    fitting = [slot.id for slot in wanted if _fits(slot, own)]
    if not fitting:
        raise RemoteProtocolError(ErrorCode.FORBIDDEN, "slot: for other roles")
    return fitting[0]


def _calling(alert: Alert, roles: frozenset[str]) -> tuple[str, ...]:
    """The empty places that a team calls these roles for: what they get by accepting, else what they may name."""
    empty = [slot for slot in alert.slots if slot.by is None]
    plain = tuple(slot.id for slot in empty if not slot.role or not roles.isdisjoint(slot.roles))
    return plain or tuple(slot.id for slot in empty if _fits(slot, roles))


def _fits(slot: Slot, roles: frozenset[str]) -> bool:
    return not slot.role or not roles.isdisjoint((*slot.roles, *slot.roles_named))


def _with(people: tuple[Person, ...], person: Person) -> tuple[Person, ...]:
    if any(each.user_id == person.user_id for each in people):
        return tuple(person if each.user_id == person.user_id else each for each in people)
    return (*people, person)
