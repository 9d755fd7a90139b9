"""Whom a target names now, who stands in, and who can be reached: rules on what presence knows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.alerts import reach
from chatd.alerts.model import PresenceRecord
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertTarget, Reach

EVERYBODY = AlertTarget(department="cardiology")
PHYSICIANS = AlertTarget(role="physician")


def person(user_id: str, *channels: str, **changes: object) -> PresenceRecord:
    fields: dict[str, object] = {"user_id": user_id, "roles": ("physician",), "channels": channels}
    return PresenceRecord(**(fields | changes))  # type: ignore[arg-type]


def test_reach_tells_each_once_by_the_best_line() -> None:
    """An open app counts before a push extension; who has neither is unreachable."""
    records = [person("a", "app", "push"), person("b", "push"), person("c")]
    found = reach.resolve(EVERYBODY, records)
    assert found.reach == Reach(online=("a",), push=("b",), unreachable=("c",))
    assert (found.people, found.delegates) == (("a", "b", "c"), ())


def test_reach_of_role_is_who_holds_it_now() -> None:
    """A role names its holders on duty and nobody else; a user is named whatever is known of them."""
    records = [person("a", "app"), person("n", "app", roles=("nurse",)), person("o", "app", state="off")]
    assert reach.resolve(PHYSICIANS, records).people == ("a",)
    assert reach.resolve(EVERYBODY, records).people == ("a", "n")
    for user in ("o", "x"):
        assert reach.resolve(AlertTarget(user=user), records).reach == Reach(unreachable=(user,))


def test_reach_of_role_without_holder_is_refused() -> None:
    """A role that nobody holds refuses a raiser aloud, not where presence is unknown, and never a step of a chain."""
    records = [person("n", "app", roles=("nurse",)), person("o", "app", state="off")]
    with pytest.raises(RemoteProtocolError) as caught:
        reach.resolve_or_refuse(PHYSICIANS, records)
    assert caught.value.code == ErrorCode.ROLE_UNASSIGNED
    unknown = reach.resolve_or_refuse(PHYSICIANS, (), is_whole=False)
    assert (unknown.people, unknown.reach.is_whole) == ((), False)
    for target in (EVERYBODY, AlertTarget(user="x")):
        assert reach.resolve_or_refuse(target, ()) == reach.resolve(target, ())
    assert reach.resolve(PHYSICIANS, records).people == ()


def test_reach_leaves_out_who_raises() -> None:
    """Whoever raises an alert is not called to it by their role or department, only by name."""
    records = [person("a", "app"), person("b", "app")]
    assert reach.resolve(EVERYBODY, records, raised_by="a").people == ("b",)
    assert reach.resolve(AlertTarget(user="a"), records, raised_by="a").people == ("a",)
    with pytest.raises(RemoteProtocolError):
        reach.resolve_or_refuse(PHYSICIANS, records[:1], raised_by="a")


@pytest.mark.parametrize(
    ("state", "people"), [("in_procedure", ("a", "d")), ("off", ("d",)), ("busy", ("a",)), ("available", ("a",))]
)
def test_delegate_is_called_for_who_cannot_come(state: str, people: tuple[str, ...]) -> None:
    """In a procedure both phones are called, off duty the delegate's alone, else none but one's own."""
    records = [
        person("a", "app", state=state, delegate_to="d", is_accepted=True),
        person("d", "app", roles=("nurse",)),
    ]
    found = reach.resolve(PHYSICIANS, records)
    assert found.people == people
    assert found.delegates == (("d",) if "d" in people else ())
    assert found.reach.covered == ({"a": "d"} if "d" in people else {})


@pytest.mark.parametrize(
    "delegate",
    [{"state": "busy"}, {"state": "in_procedure"}, {"state": "off"}, {"channels": ()}, {"user_id": "other"}],
    ids=str,
)
def test_delegate_who_cannot_come_covers_nobody(delegate: dict[str, object]) -> None:
    """A delegate counts only when available, with a phone that is heard."""
    away = person("a", "app", state="off", delegate_to="d", is_accepted=True)
    records = [away, person(**({"user_id": "d", "channels": ("app",), "roles": ("nurse",)} | delegate))]  # type: ignore[arg-type]
    with pytest.raises(RemoteProtocolError):
        reach.resolve_or_refuse(PHYSICIANS, records)
    assert reach.resolve(AlertTarget(user="a"), records).reach == Reach(unreachable=("a",))


def test_delegate_must_have_accepted() -> None:
    """Nobody is covered by somebody who has only been asked."""
    records = [person("a", "app", state="in_procedure", delegate_to="d"), person("d", "app", roles=("nurse",))]
    assert reach.resolve(PHYSICIANS, records).reach == Reach(online=("a",))


def test_delegate_of_a_delegate_comes() -> None:
    """A delegate who has gone into a procedure hands on; two who name each other cover nobody."""
    chain = [
        person("a", "app", state="off", delegate_to="b", is_accepted=True),
        person("b", "app", state="in_procedure", delegate_to="c", is_accepted=True),
        person("c", "push", roles=("nurse",)),
    ]
    assert reach.resolve(AlertTarget(user="a"), chain).reach.covered == {"a": "c"}
    ring = [*chain[:1], person("b", "app", state="off", delegate_to="a", is_accepted=True)]
    assert reach.resolve(AlertTarget(user="a"), ring).reach.covered == {}


USERS = ("a", "b", "c", "d")
RECORDS = st.lists(
    st.builds(
        PresenceRecord,
        user_id=st.sampled_from(USERS),
        roles=st.sampled_from(((), ("physician",), ("nurse", "physician"))),
        channels=st.sampled_from(((), ("app",), ("push",), ("app", "push"))),
        state=st.sampled_from(("available", "busy", "in_procedure", "off")),
        delegate_to=st.sampled_from((None, *USERS)),
        is_accepted=st.booleans(),
    ),
    unique_by=lambda record: record.user_id,
)


@given(
    target=st.sampled_from((EVERYBODY, PHYSICIANS, AlertTarget(user="a"))),
    records=RECORDS,
    raised_by=st.sampled_from(("", *USERS)),
)
def test_reach_adds_up(target: AlertTarget, records: list[PresenceRecord], raised_by: str) -> None:
    """Whoever is called is in the reach once; every delegate is there, reachable, and covers somebody who is away."""
    found = reach.resolve(target, records, raised_by=raised_by)
    told = (*found.reach.online, *found.reach.push, *found.reach.unreachable)
    assert sorted(told) == sorted(found.people)
    assert len(set(told)) == len(told)
    state = {record.user_id: record.state for record in records}
    for user_id, delegate in found.reach.covered.items():
        assert state[user_id] in {"in_procedure", "off"}
        assert state[delegate] == "available"
        assert delegate in (*found.reach.online, *found.reach.push)
        assert delegate not in {user_id, raised_by}
    assert set(found.delegates) <= set(found.reach.covered.values())
    assert target.user is not None or raised_by not in found.people


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_resolver_finds_what_resolve_finds(data: st.DataObject) -> None:
    """Whoever raises, whatever was asked before and whoever stands in for whom: the kept answer is the one of now."""
    names = ("a", "b", "c", "d", "e")
    resolver = reach.Resolver()
    for _ in range(3):
        records = tuple(
            person(
                user,
                *data.draw(st.sampled_from(((), ("app",), ("push",)))),
                state=data.draw(st.sampled_from(("available", "in_procedure", "off"))),
                delegate_to=data.draw(st.sampled_from((None, *names))),
                is_accepted=data.draw(st.booleans()),
                roles=data.draw(st.sampled_from((("physician",), ("nurse",)))),
            )
            for user in names
        )
        for _ in range(4):
            target = data.draw(st.sampled_from((EVERYBODY, PHYSICIANS, AlertTarget(user="a"))))
            given_: dict[str, Any] = {
                "is_whole": data.draw(st.booleans()),
                "raised_by": data.draw(st.sampled_from((*names, "x"))),
            }
            assert resolver.resolve(target, records, **given_) == reach.resolve(target, records, **given_)
