"""Who is called when, how often, and for how long: escalation policies as data (``data/policies.json``).

A policy belongs to a department and a priority, or is asked for by its id (``template`` on the wire: ``stemi``). A
hospital's own file has the same form: what it names takes the place of the shipped row of that name, all else stays.
Every policy says its reason; the clinical sources are in docs/alerts.md. No clinician has approved the shipped numbers.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from chatd.alerts.model import Alert, Priority, Slot
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertOption, AlertTarget, Id

#: A step's ``to``: everybody of the department, who holds a role there, or one person.
_TO = r"^(?:department|(?:role|user):[A-Za-z0-9][A-Za-z0-9._:@+\-]{0,127})\Z"

_Wait = Annotated[int, Meta(ge=5, le=86_400)]  # under 5 s nobody can have answered
_Roles = tuple[Id, ...]


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may take a slot: ``roles`` by accepting, ``named`` too, if they name it (an anaesthetist whose token says
    "physician" knows what they are; chatd must not guess it)."""

    roles: _Roles
    named: _Roles = ()


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of a chain: ``after_s`` seconds after the step before it was taken, whom it calls."""

    after_s: _Wait
    to: Annotated[str, Meta(pattern=_TO)]

    def target(self, department: str) -> AlertTarget:
        """Whom the step calls, for an alert of ``department``."""
        kind, _, who = self.to.partition(":")
        if kind == "department":
            return AlertTarget(department=department)
        return AlertTarget(role=who) if kind == "role" else AlertTarget(user=who)


class SlotRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place of a team as the file has it. ``role``: a family; empty: anybody in the department."""

    id: Id
    label: Annotated[str, Meta(min_length=1, max_length=60)]
    label_pt: Annotated[str, Meta(min_length=1, max_length=60)]
    role: str


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One policy as the file has it; see ``Policy``."""

    reason: Annotated[str, Meta(min_length=20, max_length=500)]
    repeat_s: Annotated[tuple[_Wait, ...], Meta(min_length=1, max_length=10)]
    steps: Annotated[tuple[Step, ...], Meta(max_length=10)]
    unanswered_after_s: _Wait
    resolve_within_s: _Wait
    remind_again_s: _Wait
    expires_after_s: _Wait
    stand_down: Annotated[_Roles, Meta(min_length=1)]
    dedup_within_s: _Wait
    slots: Annotated[tuple[SlotRow, ...], Meta(max_length=12)] = ()


class _Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    ask: tuple[AlertOption, ...] | None = None
    tell: tuple[AlertOption, ...] | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file. ``departments``: the policy of each priority; the department "" is every other one."""

    families: dict[str, Family] = {}
    options: _Options = _Options()
    policies: dict[Id, Row] = {}
    departments: dict[str, dict[Priority, str]] = {}


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How one alert behaves. All waits in whole seconds.

    ``repeat_s``: from one ring to the next, from the start of each step; the last one goes on. ``steps``: after the
    first, whom the raiser named. ``unanswered_after_s``: after the last step, until everybody is told that nobody has
    answered. ``resolve_within_s``: from an acceptance to the question whether it is done, ``remind_again_s``: from that
    until it rings again. ``stand_down``: roles that may call it off beside the raiser. ``dedup_within_s``: how long an
    alert with the same key is the same one. ``ask``, ``tell``: canned answers where something must be done, and where
    not.
    """

    id: str
    repeat_s: tuple[int, ...]
    steps: tuple[Step, ...]
    unanswered_after_s: int
    resolve_within_s: int
    remind_again_s: int
    expires_after_s: int
    stand_down: tuple[str, ...]
    dedup_within_s: int
    slots: tuple[Slot, ...] = ()
    ask: tuple[AlertOption, ...] = ()
    tell: tuple[AlertOption, ...] = ()

    def wait_after_step_s(self, step: int) -> int:
        """From the moment ``step`` (0: the raiser's own) is taken until the next, or until it is unanswered."""
        return self.steps[step].after_s if step < len(self.steps) else self.unanswered_after_s

    def ring_wait_s(self, rings: int) -> int:
        """From the ring number ``rings`` of a step (from 1) to the next one."""
        return self.repeat_s[min(rings, len(self.repeat_s)) - 1]


class Policies:
    """All policies of an installation. Raises ValueError where a file contradicts itself."""

    def __init__(self, own: bytes | None = None) -> None:
        file = _shipped()
        if own is not None:
            try:
                more = msgspec.json.decode(own, type=_File)
            except msgspec.DecodeError as error:  # ValidationError is one
                raise ValueError(f"alert policies: {error}") from None
            departments = {name: dict(table) for name, table in file.departments.items()}
            for name, table in more.departments.items():
                departments[name] = departments.get(name, {}) | table
            file = _File(
                families=file.families | more.families,
                options=_Options(
                    ask=file.options.ask if more.options.ask is None else more.options.ask,
                    tell=file.options.tell if more.options.tell is None else more.options.tell,
                ),
                policies=file.policies | more.policies,
                departments=departments,
            )
        self._policies = {id_: _policy(id_, row, file) for id_, row in file.policies.items()}
        self._departments = file.departments
        for name, table in self._departments.items():
            for id_ in table.values():
                if id_ not in self._policies:
                    raise ValueError(f"alert policies: department {name!r} names an unknown policy")
                if self._policies[id_].slots:
                    raise ValueError(f"alert policies: department {name!r} calls a team for a mere priority")

    def all(self) -> tuple[Policy, ...]:
        """Every policy, in the file's order."""
        return tuple(self._policies.values())

    def choose(self, department: str, priority: Priority, template: str | None = None) -> Policy:
        """The policy of a new alert. Raises RemoteProtocolError(bad_request) for a template that is not there."""
        if template is not None:
            if template not in self._policies:
                raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "template: unknown")
            return self._policies[template]
        own = self._departments.get(department, {})
        return self._policies[own.get(priority) or self._departments[""][priority]]

    def of(self, alert: Alert) -> Policy:
        """The policy of an alert that is there. One whose policy the file no longer has goes on by its priority."""
        return self._policies.get(alert.policy) or self.choose(alert.department, alert.priority)


@functools.cache
def _shipped() -> _File:
    text = (resources.files("chatd.alerts") / "data" / "policies.json").read_bytes()
    return msgspec.json.decode(text, type=_File)


#: What an option may ask a phone to send.
_OPTION_ANSWERS: Final = ("accept", "decline")


def _policy(id_: str, row: Row, file: _File) -> Policy:
    for option in (*(file.options.ask or ()), *(file.options.tell or ())):
        if option.answer not in _OPTION_ANSWERS:
            raise ValueError(f"alert policies: option {option.id!r} is neither accept nor decline")
    if len({slot.id for slot in row.slots}) != len(row.slots):
        raise ValueError(f"alert policies: {id_!r} has a slot twice")
    slots = []
    for slot in row.slots:
        if slot.role and slot.role not in file.families:
            raise ValueError(f"alert policies: {id_!r} names an unknown family")
        family = file.families[slot.role] if slot.role else Family(roles=())
        slots.append(
            Slot(
                id=slot.id,
                label=slot.label,
                label_pt=slot.label_pt,
                role=slot.role,
                roles=family.roles,
                roles_named=family.named,
            )
        )
    return Policy(
        id=id_,
        repeat_s=row.repeat_s,
        steps=row.steps,
        unanswered_after_s=row.unanswered_after_s,
        resolve_within_s=row.resolve_within_s,
        remind_again_s=row.remind_again_s,
        expires_after_s=row.expires_after_s,
        stand_down=row.stand_down,
        dedup_within_s=row.dedup_within_s,
        slots=tuple(slots),
        ask=file.options.ask or (),
        tell=file.options.tell or (),
    )
