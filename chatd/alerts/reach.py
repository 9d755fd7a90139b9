"""Whom an alert's target names now, who stands in for whom, and which of them can be reached.

Plain rules on what presence knows at this moment. A target is resolved when the alert is raised and again at each ring:
on call is who is on call then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from chatd.alerts.model import PresenceRecord
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertTarget, Reach

NOBODY: Final = Reach()
#: Targets of one department that are kept, a role each.
_MAX_TARGETS: Final = 32
#: For these a delegate is called too, or instead.
_AWAY: Final = frozenset(("in_procedure", "off"))


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """``people``: whom to call, each once, delegates among them; ``delegates``: those of them whom the target itself
    does not name, so their phones must be told to ring."""

    people: tuple[str, ...]
    delegates: tuple[str, ...]
    reach: Reach


def resolve_or_refuse(
    target: AlertTarget, records: Sequence[PresenceRecord], *, is_whole: bool = True, raised_by: str = ""
) -> Found:
    """``resolve`` for an alert that somebody raises: they must hear it at once if it would call nobody.

    Raises:
        RemoteProtocolError: role_unassigned: a role that nobody holds now, no delegate either. Not where presence is
            not ``is_whole``: nobody can know it then, and whoever is known is called.
    """
    return _or_refuse(resolve(target, records, is_whole=is_whole, raised_by=raised_by), target, is_whole)


def _or_refuse(found: Found, target: AlertTarget, is_whole: bool) -> Found:
    if target.role is not None and not found.people and is_whole:
        raise RemoteProtocolError(ErrorCode.ROLE_UNASSIGNED)
    return found


def resolve(
    target: AlertTarget, records: Sequence[PresenceRecord], *, is_whole: bool = True, raised_by: str = ""
) -> Found:
    """Whom ``target`` names, by the ``records`` of its department; ``raised_by`` is not called to their own alert.

    A user is called whatever is known of them. A role or department names who is not ``off``; whoever is ``off`` or
    ``in_procedure`` has their delegate called, if that one has accepted, has a phone open and is available, or has
    such a delegate in turn. Nobody at all is an outcome like any other: a step of a chain has its next one.
    """
    known = {record.user_id: record for record in records}
    if target.user is not None:
        named = [known.get(target.user) or PresenceRecord(user_id=target.user)]
    else:
        named = [
            record
            for record in records
            if (target.role is None or target.role in record.roles) and record.user_id != raised_by
        ]
    covered = {
        record.user_id: delegate
        for record in named
        if (delegate := _delegate(record, known)) is not None and delegate != raised_by
    }
    own = {record.user_id: None for record in named if record.state != "off" or target.user is not None}
    people = tuple(dict.fromkeys((*own, *covered.values())))
    delegates = tuple(user_id for user_id in people if user_id not in own)
    return Found(people=people, delegates=delegates, reach=_reach(people, covered, known, is_whole))


class Resolver:
    """``resolve`` for alerts that come one after the other: the same people and target are gone through once.

    What differs by raiser is one name. Any thread may ask; at worst something is worked out twice.
    """

    def __init__(self) -> None:
        #: Of which records, and by target and whether they are whole. One object, so that no thread sees half of it.
        self._kept: tuple[Sequence[PresenceRecord], dict[tuple[AlertTarget, bool], Found]] = ((), {})

    def resolve(
        self, target: AlertTarget, records: Sequence[PresenceRecord], *, is_whole: bool = True, raised_by: str = ""
    ) -> Found:
        """As the function of that name. ``records`` must not be changed afterwards."""
        if target.user is not None:
            return resolve(target, records, is_whole=is_whole, raised_by=raised_by)
        found = self._of_all(target, records, is_whole)
        if raised_by in found.reach.covered or raised_by in found.reach.covered.values():
            # Without them others stand in for somebody, or nobody does.
            return resolve(target, records, is_whole=is_whole, raised_by=raised_by)
        return _without(found, raised_by) if raised_by in found.people else found

    def resolve_or_refuse(
        self, target: AlertTarget, records: Sequence[PresenceRecord], *, is_whole: bool = True, raised_by: str = ""
    ) -> Found:
        """As the function of that name."""
        return _or_refuse(self.resolve(target, records, is_whole=is_whole, raised_by=raised_by), target, is_whole)

    def _of_all(self, target: AlertTarget, records: Sequence[PresenceRecord], is_whole: bool) -> Found:
        kept = self._kept
        if kept[0] is not records or len(kept[1]) >= _MAX_TARGETS:
            kept = self._kept = (records, {})
        found = kept[1].get((target, is_whole))
        if found is None:
            found = kept[1][target, is_whole] = resolve(target, records, is_whole=is_whole)
        return found


def _without(found: Found, user_id: str) -> Found:
    """The same without one of its people who stands in for nobody and for whom nobody does."""

    def rest(users: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(each for each in users if each != user_id)

    told = found.reach
    told = msgspec.structs.replace(
        told, online=rest(told.online), push=rest(told.push), unreachable=rest(told.unreachable)
    )
    return msgspec.structs.replace(found, people=rest(found.people), reach=told)


def _delegate(record: PresenceRecord, known: Mapping[str, PresenceRecord]) -> str | None:
    """Who comes in this person's place; None: nobody need, or nobody can."""
    seen = {record.user_id}
    while record.state in _AWAY and record.delegate_to is not None and record.is_accepted:
        following = known.get(record.delegate_to)
        if following is None or following.user_id in seen:
            return None
        if following.state == "available" and following.channels:
            return following.user_id
        seen.add(following.user_id)
        record = following
    return None


def _reach(
    people: Sequence[str], covered: Mapping[str, str], known: Mapping[str, PresenceRecord], is_whole: bool
) -> Reach:
    """Each of ``people`` once. Who is ``off`` is not counted on, whichever phone they have left open."""
    online: list[str] = []
    push: list[str] = []
    unreachable: list[str] = []
    for user_id in people:
        record = known.get(user_id)
        if record is None or record.state == "off" or not record.channels:
            unreachable.append(user_id)
        else:
            (online if "app" in record.channels else push).append(user_id)
    return Reach(
        online=tuple(online),
        push=tuple(push),
        unreachable=tuple(unreachable),
        covered=dict(covered),
        is_whole=is_whole,
    )
