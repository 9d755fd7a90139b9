"""Who may do what, where: ``data/roles.json``, and everything that does not stand in it is refused.

A command is a frame by its ``type``, an HTTP route by its method and path, or ``break_glass``. "own" is a department
that the token names, "any" every one; what a command itself then allows (which priority of alert, which step of an
action, whose alert) is decided where it is carried out. A role that stands in no group gives nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

Where = Literal["own", "any"]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``groups``: the roles of each. ``commands``: which groups may, and where. ``public``: routes without a token."""

    groups: Mapping[str, tuple[str, ...]]
    commands: Mapping[str, Mapping[str, Where]]
    public: frozenset[str]

    def __post_init__(self) -> None:
        roles = [role for group in self.groups.values() for role in group]
        if len(roles) != len(set(roles)):
            raise ValueError("a role stands in two groups")
        strangers = {group for row in self.commands.values() for group in row} - self.groups.keys()
        if strangers or self.public & self.commands.keys():
            raise ValueError("a command names no group of the table, or is public and is not")

    def may(self, roles: Iterable[str], departments: Iterable[str], command: str, department: str | None) -> bool:
        """Whether one of ``roles`` allows ``command`` in ``department``, for a token that names ``departments``.

        None: the command names no department by itself; then only "any" allows it.
        """
        row = self.commands.get(command, {})
        is_own = department is not None and department in departments
        wanted: frozenset[Where] = frozenset(("own", "any") if is_own else ("any",))
        held = {role.lower() for role in roles}
        return any(where in wanted and not held.isdisjoint(self.groups[group]) for group, where in row.items())


TABLE: Final = msgspec.json.decode((Path(__file__).parent / "data" / "roles.json").read_bytes(), type=Table)
