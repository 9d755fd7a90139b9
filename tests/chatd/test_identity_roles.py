"""The table of roles, departments and commands: whole over all frames and routes, and everything else is refused."""

from __future__ import annotations

from typing import Final, get_args

import msgspec
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from chatd import demo, endpoints
from chatd.actions.rules import ONLOOKERS as NO_ACTORS
from chatd.actions.rules import PRESCRIBERS
from chatd.alerts.permissions import ONLOOKERS, RIGHTS, SERVICE
from chatd.gateway.emergency import COMMAND as BREAK_GLASS
from chatd.identity.roles import TABLE, Table
from protocols.frames import ClientFrame

FRAMES: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(ClientFrame))
PATIENTS: Final = frozenset(
    {"user_message", "cancel", "feedback", "context_set", "action", "GET /v1/departments/{department}/patients"}
)


def routes() -> set[str]:
    """Every route of a gateway by method and path; HEAD is GET without a body."""
    found = set()
    for route in endpoints.routes():
        match route:
            case Route():
                found |= {f"{method} {route.path}" for method in (route.methods or set()) - {"HEAD"}}
            case WebSocketRoute():
                found.add(f"WS {route.path}")
            case Mount():
                found.add(f"MOUNT {route.path}")
    return found


def test_table_has_every_frame_and_every_route_and_nothing_else() -> None:
    """Each frame a phone may send and each route stands in the table once: for groups, or as public."""
    assert TABLE.commands.keys() == FRAMES | {BREAK_GLASS} | (routes() - TABLE.public)
    assert TABLE.public <= routes()
    assert {name for name in TABLE.public if "{department}" in name} == {"WS /chat/{department}/{user_id}"}


def test_table_knows_every_role_that_anything_else_knows() -> None:
    """Roles that may raise, act, only look on, or stand in the demo are each in one group."""
    known = {role for group in TABLE.groups.values() for role in group}
    assert known >= set(RIGHTS) | ONLOOKERS | PRESCRIBERS | NO_ACTORS | {person.role for person in demo.staff()}


#: What each group may do, told a second time by hand: letters of a group stand where it is allowed in its own
#: department, in capitals where in any. p: physicians, n: nurses, a: advisers, o: office, l: onlookers, w: walls,
#: m: machines.
EXPECTED: Final[dict[str, str]] = {
    "hello": "p n a o l w",
    "ack": "p n a o l w",
    "ping": "p n a o l w",
    "refresh": "p n a o l w",
    "session_end": "p n a o l",
    "user_message": "p n a",
    "cancel": "p n a",
    "feedback": "p n a",
    "context_set": "p n a",
    "action": "p n a",
    "break_glass": "P N",
    "presence": "p n a o l",
    "alert_raise": "p n a o",
    "alert_response": "p n a o l w",
    "GET /v1/departments/{department}/patients": "p n a o",
    "GET /v1/departments/{department}/people": "p n a o",
    "POST /v1/departments/{department}/alerts": "P N A O m",
    "GET /v1/alerts/{alert_id}": "P N A O L M",
    "POST /v1/alerts/{alert_id}/stand_down": "P N A O M",
    "POST /v1/fhir/CommunicationRequest": "P N A O M",
}


@pytest.mark.parametrize("command", sorted(FRAMES | {BREAK_GLASS} | (routes() - TABLE.public)))
def test_each_role_may_exactly_what_is_expected(command: str) -> None:
    """For every role, in its own department, in another one and in none, the table says what is expected here."""
    letters = EXPECTED[command].split()
    for group, roles in TABLE.groups.items():
        own, everywhere = group[0] in letters or group[0].upper() in letters, group[0].upper() in letters
        if group == "onlookers":
            own, everywhere = "l" in letters or "L" in letters, "L" in letters
        for role in roles:
            assert TABLE.may([role], ["cardiology"], command, "cardiology") is own, (role, command)
            assert TABLE.may([role.upper()], ["cardiology"], command, "cardiology") is own, (role, command)
            for department in ("icu", "", None):
                assert TABLE.may([role], ["cardiology"], command, department) is everywhere, (role, command)
            assert TABLE.may([role], [], command, "cardiology") is everywhere, (role, command)


def test_nothing_is_allowed_by_default() -> None:
    """No role, an unknown role and an unknown command give nothing; a second role adds to the first."""
    for command in TABLE.commands:
        for roles in ([], ["visitor"], ["admin"], [""], ["*"], ["physicians"]):
            assert not TABLE.may(roles, ["cardiology"], command, "cardiology"), (roles, command)
    for command in ("", "teleport", "GET /", "DELETE /v1/alerts/{alert_id}", "user_message "):
        assert not TABLE.may(["physician"], ["cardiology"], command, "cardiology")
    assert TABLE.may(["visitor", "nurse"], ["cardiology"], "user_message", "cardiology")


def test_machines_and_walls_meet_no_patient() -> None:
    """Who is no person of the ward cannot ask, open, list or act."""
    for role in (SERVICE, *TABLE.groups["walls"], *TABLE.groups["onlookers"]):
        assert not any(TABLE.may([role], ["cardiology"], command, "cardiology") for command in PATIENTS)


@pytest.mark.parametrize(
    "table",
    [
        '{"groups": {"a": ["x"], "b": ["x"]}, "commands": {}, "public": []}',
        '{"groups": {"a": ["x"]}, "commands": {"ping": {"c": "own"}}, "public": []}',
        '{"groups": {"a": ["x"]}, "commands": {"ping": {"a": "all"}}, "public": []}',
        '{"groups": {"a": ["x"]}, "commands": {"GET /": {"a": "own"}}, "public": ["GET /"]}',
    ],
)
def test_table_that_contradicts_itself_is_none(table: str) -> None:
    """A role in two groups, a group or place that is none, and a public command with groups are refused."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(table, type=Table)
