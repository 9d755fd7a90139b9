"""Who may raise which alert to where: a table, and everything that does not stand in it is refused.

A false alarm costs a minute, one that was not allowed costs more: whoever treats patients may call everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from chatd.alerts.model import Priority

#: In order: a right to raise one is a right to raise those before it.
PRIORITIES: Final[tuple[Priority, ...]] = ("low", "normal", "high", "critical")
#: What a machine's token has as its role.
SERVICE: Final = "service"


class Right(msgspec.Struct, frozen=True):
    """``up_to``: the highest priority. ``where``: "any" department, or those that the token names ("own")."""

    up_to: Priority
    where: Literal["own", "any"]


_TREATS: Final = Right("critical", "any")
#: A role that is not here raises nothing: onlookers, boards, and what an identity provider has made up.
RIGHTS: Final[Mapping[str, Right]] = {
    "physician": _TREATS,
    "doctor": _TREATS,
    "resident": _TREATS,
    "consultant": _TREATS,
    "surgeon": _TREATS,
    "anaesthetist": _TREATS,
    "intensivist": _TREATS,
    "cardiologist": _TREATS,
    "neurologist": _TREATS,
    "anaesthesiologist": _TREATS,
    "emergency_physician": _TREATS,
    "charge_doctor": _TREATS,
    "nurse": _TREATS,
    "charge_nurse": _TREATS,
    "midwife": _TREATS,
    "paramedic": _TREATS,
    # The switchboard calls the teams.
    "operator": _TREATS,
    "pharmacist": Right("high", "any"),
    "technician": Right("critical", "own"),
    "radiographer": Right("critical", "own"),
    "cath_lab_technician": Right("critical", "own"),
    "clerk": Right("normal", "own"),
    # The laboratory's critical results come from a machine; which departments it may call stands in its token.
    SERVICE: Right("critical", "own"),
}


def may_raise(roles: Iterable[str], departments: Iterable[str], *, priority: Priority, department: str) -> bool:
    """Whether one of ``roles`` gives the right to raise ``priority`` in ``department``, for a token that names
    ``departments``."""
    own = department in departments
    return any(
        PRIORITIES.index(priority) <= PRIORITIES.index(right.up_to) and (own or right.where == "any")
        for right in (RIGHTS[role] for role in roles if role in RIGHTS)
    )


def raiser(user_id: str, roles: Iterable[str]) -> str:
    """Under which name a token's holder raises: a person's user id, or ``service:NAME`` for a machine."""
    is_named = user_id.startswith(f"{SERVICE}:")
    if SERVICE in roles:
        return user_id if is_named else f"{SERVICE}:{user_id}"
    # A person whose id looks like a machine's is not that machine.
    return f"person:{user_id}" if is_named else user_id


#: Who reads along and has nobody to send: their acceptance would stop an alert that nobody comes for.
ONLOOKERS: Final = frozenset({"observer", "student", "board", "push", "device", SERVICE})


def may_answer(roles: Iterable[str]) -> bool:
    """Whether somebody with these roles may accept, decline or end an alert. Receipts are everybody's.

    A person whose token names no role was called as one of the department, and may come.
    """
    held = set(roles)
    return not held or not held <= ONLOOKERS
