"""The audit's tables: every frame, route and command has its events, or a reason why it leaves none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import get_args

import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from chatd import endpoints
from chatd.audit.events import CLI, COMMANDS, EVENTS, ROUTES, NoRow
from chatd.cli import main
from protocols.frames import ClientFrame

TABLES: Mapping[str, Mapping[str, tuple[str, ...] | NoRow]] = {"frames": COMMANDS, "routes": ROUTES, "commands": CLI}


def frames() -> set[str]:
    """The tags of all frames that a client may send."""
    return {str(frame.__struct_config__.tag) for frame in get_args(ClientFrame)}


def routes() -> set[str]:
    """Method and path of all routes; a socket's method is WS, that of a folder MOUNT."""
    found = set()
    for route in endpoints.routes():
        if isinstance(route, Route):
            found |= {f"{method} {route.path}" for method in (route.methods or set()) - {"HEAD"}}
        else:
            assert isinstance(route, WebSocketRoute | Mount)
            found.add(f"{'WS' if isinstance(route, WebSocketRoute) else 'MOUNT'} {route.path}")
    return found


def commands(capsys: pytest.CaptureFixture[str], *words: str) -> Iterator[str]:
    """Every command of the command line that does something, out of the help texts."""
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    inner = re.search(r"^commands:\n(.*?)(?:\n\n|\Z)", capsys.readouterr().out, flags=re.DOTALL | re.MULTILINE)
    if inner is None:
        yield " ".join(words)
        return
    for name in re.findall(r"^ {4}([a-z][a-z0-9]*)", inner[1], flags=re.MULTILINE):
        yield from commands(capsys, *words, name)


def test_every_frame_has_its_events() -> None:
    """The table has each frame that a client may send, and no other."""
    assert set(COMMANDS) == frames()


def test_every_route_has_its_events() -> None:
    """The table has each HTTP route with its method, and no other."""
    assert set(ROUTES) == routes()


def test_every_command_has_its_events(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has each command of the command line, and no other."""
    assert set(CLI) == set(commands(capsys))


@pytest.mark.parametrize("name", TABLES)
def test_tables_name_events_that_exist_and_reasons(name: str) -> None:
    """What leaves rows names events of the one table; what leaves none says why in some words."""
    for what, told in TABLES[name].items():
        if isinstance(told, NoRow):
            assert len(told.why.split()) > 3, what
        else:
            assert told, what
            assert set(told) <= EVENTS.keys(), what


def test_each_event_can_come_about() -> None:
    """No event stands in the table that no way in leaves, those apart that time or the audit itself brings."""
    named = {event for table in TABLES.values() for told in table.values() if isinstance(told, tuple) for event in told}
    by_time = {"alert.repeated", "alert.escalated", "alert.unanswered", "alert.reminded", "alert.expired"}
    assert EVENTS.keys() - named == by_time | {"alert.handover_lapsed", "audit.missed"}


def test_what_shows_a_patient_is_ahead() -> None:
    """An event by which somebody sees a patient's data is on disk before they do."""
    for name in ("question", "patient.open", "patient.list", "patient.show", "break_glass", "audit.report"):
        assert EVENTS[name].is_ahead
