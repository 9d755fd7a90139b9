"""Handing alerts over: it is always exactly somebody's, whatever is offered, taken, refused and forgotten, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.alerts import board, handover
from chatd.alerts.model import CLOSED, Alert, Answer, Change, Raise, Response, Timer, TimerKind
from chatd.alerts.policies import Policies
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertTarget, AlertUpdate, SystemNotification

NOW = datetime(2026, 1, 15, 19, 45, 0, 250, tzinfo=UTC)
POLICIES = Policies()
STAFF = {
    "dr.santos": ("physician",),
    "dr.mendes": ("cardiologist",),
    "dr.pires": ("anaesthetist",),
    "nurse.almeida": ("nurse",),
    "nurse.costa": ("nurse",),
    "charge.rocha": ("charge_nurse",),
}
HALF_HOUR = timedelta(seconds=handover.OFFER_S)


def command(**changes: object) -> Raise:
    fields: dict[str, object] = {
        "key": "k-1",
        "raised_by": "service:lab",
        "department": "cardiology",
        "to": AlertTarget(department="cardiology"),
        "priority": "critical",
        "content": "Potassium 7.1 mmol/L",
        "requires_action": True,
        "patient_id": "7823",
    }
    return Raise(**(fields | changes))  # type: ignore[arg-type]


def raised(policy: str = "critical", people: tuple[str, ...] = tuple(STAFF), **changes: object) -> Alert:
    rules = POLICIES.choose("", "low", policy)
    return board.raise_(command(**changes), alert_id="alert-1", policy=rules, people=people, now=NOW).alert


def answered(alert: Alert, user_id: str, answer: str, after_s: float = 5, **changes: object) -> Change:
    fields: dict[str, object] = {
        "key": "r-1",
        "user_id": user_id,
        "roles": STAFF.get(user_id, ()),
        "department": "cardiology",
        "alert_id": alert.alert_id,
        "answer": answer,
    }
    response = Response(**(fields | changes))  # type: ignore[arg-type]
    return board.respond(alert, response, POLICIES.of(alert), NOW + timedelta(seconds=after_s))


def refusal(alert: Alert, user_id: str, answer: str, **changes: Any) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        answered(alert, user_id, answer, **changes)
    return caught.value.code


def after(alert: Alert, *steps: tuple[str, str, dict[str, Any]]) -> Alert:
    """The alert after these answers, a minute apart."""
    for n, (user_id, answer, changes) in enumerate(steps, start=1):
        alert = answered(alert, user_id, answer, 60 * n, **changes).alert
    return alert


def offered(alert: Alert, giver: str = "dr.santos", taker: str = "dr.mendes", after_s: float = 3600) -> Alert:
    return answered(alert, giver, "hand_over", after_s, colleague=taker).alert


def holders(alert: Alert) -> list[str]:
    return [person.user_id for person in board.holders(alert)]


def answers(alert: Alert) -> dict[str, str]:
    return {person.user_id: person.answer for person in alert.people if person.answer not in {"addressed"}}


# --- who has it ---------------------------------------------------------------------------------------------


def test_offer_leaves_it_with_the_giver() -> None:
    """What is offered is still the giver's: state, holder and timers are as before, and an end of the offer is due."""
    before = after(raised(), ("dr.santos", "accept", {}))
    change = answered(before, "dr.santos", "hand_over", 3600, colleague="dr.mendes")
    assert [(each.event, each.by) for each in change.events] == [("handover_offered", "dr.santos")]
    assert (change.alert.state, holders(change.alert)) == ("in_progress", ["dr.santos"])
    assert {each.kind for each in change.timers} == {"remind", "lapse"}
    (made,) = change.alert.handovers
    assert (made.giver, made.taker) == ("dr.santos", "dr.mendes")
    assert HALF_HOUR <= made.until - made.at < HALF_HOUR + timedelta(milliseconds=1)


def test_taking_over_changes_the_holder_at_once() -> None:
    """One change has the old holder out and the new one in; the event says who gave, who took, and when."""
    alert = offered(after(raised(), ("dr.santos", "accept", {"eta_min": 4})))
    change = answered(alert, "dr.mendes", "take_over", 3700, eta_min=10)
    assert holders(change.alert) == ["dr.mendes"]
    assert answers(change.alert) == {"dr.santos": "handed_over", "dr.mendes": "accept"}
    assert (change.alert.state, change.alert.handovers) == ("in_progress", ())
    sent = board.frame(change.alert, change.events[0], 9, POLICIES.of(change.alert))
    assert isinstance(sent, AlertUpdate)
    assert (sent.event, sent.by, sent.timestamp) == ("handed_over", "dr.mendes", "2026-01-15T20:46:40.000Z")
    assert sent.handover is not None
    assert (sent.handover.from_, sent.handover.to, sent.handover.at) == (
        "dr.santos",
        "dr.mendes",
        "2026-01-15T20:45:00.000Z",
    )
    assert [(who.user_id, who.answer) for who in sent.who] == [("dr.mendes", "accept"), ("dr.santos", "handed_over")]
    assert sent.who[0].eta_at == "2026-01-15T20:56:40.000Z"
    assert sent.handovers == ()


def test_taking_over_keeps_the_rank() -> None:
    """Who takes over from the first of two has it; the second stays behind them."""
    alert = after(raised(), ("dr.santos", "accept", {}), ("dr.pires", "accept", {}))
    assert holders(answered(offered(alert), "dr.mendes", "take_over", 3700).alert) == ["dr.mendes", "dr.pires"]
    last = offered(alert, giver="dr.pires", taker="dr.mendes")
    assert holders(answered(last, "dr.mendes", "take_over", 3700).alert) == ["dr.santos", "dr.mendes"]
    among = offered(alert, giver="dr.santos", taker="dr.pires")
    assert holders(answered(among, "dr.pires", "take_over", 3700).alert) == ["dr.pires"]


def test_unanswered_alert_is_taken_by_the_successor() -> None:
    """An alert that calls who leaves rings on while it is offered, and is held by the successor when they take it."""
    alert = raised(to=AlertTarget(user="dr.santos"), people=("dr.santos",))
    change = answered(alert, "dr.santos", "hand_over", 5, colleague="dr.mendes")
    assert (change.alert.state, change.alert.next_step_at) == ("delivering", alert.next_step_at)
    assert {each.kind for each in change.timers} == {"repeat", "step", "expire", "lapse"}
    taken = answered(change.alert, "dr.mendes", "take_over", 9)
    assert (taken.alert.state, holders(taken.alert)) == ("in_progress", ["dr.mendes"])
    assert {each.kind for each in taken.timers} == {"remind"}


def test_alert_taken_over_and_given_back_rings_where_it_was_taken_to() -> None:
    """A successor who gives it back makes it ring; the one who left is not waited for, the next step is due at once."""
    alert = raised(to=AlertTarget(user="dr.santos"), people=("dr.santos",))
    alert = after(
        alert,
        ("dr.santos", "hand_over", {"colleague": "dr.mendes"}),
        ("dr.mendes", "take_over", {}),
    )
    change = answered(alert, "dr.mendes", "decline", 400)
    assert [each.event for each in change.events] == ["declined", "repeated"]
    sent = board.frame(change.alert, change.events[1], 9, POLICIES.of(alert))
    assert isinstance(sent, SystemNotification)
    assert AlertTarget(user="dr.mendes") in sent.also
    assert next(each for each in change.timers if each.kind == "step").due_at <= NOW + timedelta(seconds=401)


def test_acceptance_that_lapses_rings_for_the_successor() -> None:
    """A successor who says nothing for long enough is called again, as anybody who has accepted is."""
    alert = after(offered(after(raised(), ("dr.santos", "accept", {}))), ("dr.mendes", "take_over", {}))
    for _ in range(2):
        timer = next(each for each in board.timers(alert) if each.kind == "remind")
        change = board.fire(alert, timer, POLICIES.of(alert), tuple(STAFF), timer.due_at)
        assert change is not None
        alert = change.alert
    assert (alert.state, holders(alert)) == ("delivering", [])
    assert answers(alert) == {"dr.santos": "handed_over", "dr.mendes": "displayed"}


# --- who may ------------------------------------------------------------------------------------------------


def test_only_ones_own_open_loop_is_handed_over() -> None:
    """Not what others have, what one has declined, what only informs, what is closed, nor to oneself or nobody."""
    held = after(raised(), ("dr.santos", "accept", {}))
    assert refusal(held, "dr.pires", "hand_over", colleague="dr.mendes") == ErrorCode.FORBIDDEN
    assert refusal(held, "dr.santos", "hand_over", colleague="dr.santos") == ErrorCode.BAD_REQUEST
    assert refusal(held, "dr.santos", "hand_over") == ErrorCode.BAD_REQUEST
    declined = after(raised(), ("dr.santos", "decline", {}))
    assert refusal(declined, "dr.santos", "hand_over", colleague="dr.mendes") == ErrorCode.FORBIDDEN
    told = raised("low", requires_action=False)
    assert refusal(told, "dr.santos", "hand_over", colleague="dr.mendes") == ErrorCode.FORBIDDEN
    not_called = raised(to=AlertTarget(role="nurse"), people=("nurse.almeida",))
    assert refusal(not_called, "dr.santos", "hand_over", colleague="dr.mendes") == ErrorCode.FORBIDDEN
    closed = answered(held, "dr.santos", "done").alert
    assert refusal(closed, "dr.santos", "hand_over", colleague="dr.mendes") == ErrorCode.ALERT_CLOSED
    assert refusal(offered(held), "dr.mendes", "take_over", department="icu") == ErrorCode.FORBIDDEN


def test_standing_in_for_a_colleague_is_not_handed_over() -> None:
    """Who has agreed to get somebody's alerts goes on getting them: nobody else has agreed to it."""
    asked = raised("cover", to=AlertTarget(user="dr.santos"), people=("dr.santos",), raised_by="dr.pires")
    assert refusal(asked, "dr.santos", "hand_over", colleague="dr.mendes") == ErrorCode.FORBIDDEN
    held = after(asked, ("dr.santos", "accept", {}))
    assert refusal(held, "dr.santos", "hand_over", colleague="dr.mendes") == ErrorCode.FORBIDDEN


def test_only_the_one_who_is_asked_takes_over() -> None:
    """Nobody else takes, refuses or withdraws an offer, and one that has ended says so."""
    alert = offered(after(raised(), ("dr.santos", "accept", {})))
    for answer in ("take_over", "refuse_handover"):
        assert refusal(alert, "dr.pires", answer) == ErrorCode.HANDOVER_ENDED
        assert refusal(alert, "dr.mendes", answer, colleague="dr.pires") == ErrorCode.HANDOVER_ENDED
    assert refusal(alert, "dr.mendes", "revoke_handover") == ErrorCode.HANDOVER_ENDED
    taken = answered(alert, "dr.mendes", "take_over", 3700).alert
    assert refusal(taken, "dr.mendes", "take_over") == ErrorCode.HANDOVER_ENDED
    assert refusal(taken, "dr.santos", "revoke_handover") == ErrorCode.HANDOVER_ENDED


@pytest.mark.parametrize(
    ("user", "answer", "event"),
    [
        ("dr.mendes", "refuse_handover", "handover_refused"),
        ("dr.santos", "revoke_handover", "handover_revoked"),
    ],
)
def test_offer_that_is_refused_or_withdrawn_leaves_it_with_the_giver(user: str, answer: str, event: str) -> None:
    """The giver has it as before, and everybody hears how the offer has ended."""
    change = answered(offered(after(raised(), ("dr.santos", "accept", {}))), user, answer, 3700)
    assert [(each.event, each.by) for each in change.events] == [(event, user)]
    assert (holders(change.alert), change.alert.handovers) == (["dr.santos"], ())
    assert change.events[0].handover is not None


def test_offer_lapses_after_half_an_hour_and_not_before() -> None:
    """Nobody took it: it stays the giver's, and it is said aloud; taken a moment before, there is nothing to lapse."""
    alert = offered(after(raised(), ("dr.santos", "accept", {})))
    timer = next(each for each in board.timers(alert) if each.kind == "lapse")
    policy = POLICIES.of(alert)
    assert board.fire(alert, timer, policy, (), timer.due_at - timedelta(milliseconds=1)) is None
    change = board.fire(alert, timer, policy, (), timer.due_at)
    assert change is not None
    assert [each.event for each in change.events] == ["handover_lapsed"]
    assert (holders(change.alert), change.alert.handovers) == (["dr.santos"], ())
    assert {each.kind for each in change.timers} == {"remind"}
    taken = answered(alert, "dr.mendes", "take_over", 3601).alert
    assert board.fire(taken, timer, policy, (), timer.due_at) is None


def test_offer_of_another_does_not_lapse_with_it() -> None:
    """Of two givers' offers the earlier one runs out alone, and the later one's end is due then."""
    alert = offered(after(raised(), ("dr.santos", "accept", {}), ("dr.pires", "accept", {})))
    alert = offered(alert, giver="dr.pires", taker="nurse.almeida", after_s=3900)
    timer = next(each for each in board.timers(alert) if each.kind == "lapse")
    change = board.fire(alert, timer, POLICIES.of(alert), (), timer.due_at)
    assert change is not None
    assert [each.handover and each.handover.giver for each in change.events] == ["dr.santos"]
    (left,) = change.alert.handovers
    assert (left.giver, left.until) == ("dr.pires", next(each.due_at for each in change.timers if each.kind == "lapse"))


def test_second_offer_replaces_the_first() -> None:
    """Of one giver's offers for one alert the last one stands; two givers' stand side by side."""
    alert = offered(after(raised(), ("dr.santos", "accept", {}), ("dr.pires", "accept", {})))
    alert = offered(alert, taker="nurse.almeida")
    assert [(each.giver, each.taker) for each in alert.handovers] == [("dr.santos", "nurse.almeida")]
    alert = offered(alert, giver="dr.pires", taker="nurse.almeida")
    one = answered(alert, "nurse.almeida", "take_over", 3700, colleague="dr.pires").alert
    assert holders(one) == ["dr.santos", "nurse.almeida"]
    assert holders(answered(one, "nurse.almeida", "take_over", 3701).alert) == ["nurse.almeida"]


@pytest.mark.parametrize(
    ("user", "answer"), [("dr.santos", "done"), ("dr.santos", "decline"), ("charge.rocha", "stand_down")]
)
def test_offer_ends_with_the_loop_it_was_about(user: str, answer: str) -> None:
    """Done, given back or called off: there is nothing left to take over, and whoever answers late hears so."""
    alert = answered(offered(after(raised(), ("dr.santos", "accept", {}))), user, answer, 3700).alert
    assert alert.handovers == ()
    expected = ErrorCode.ALERT_CLOSED if alert.state in CLOSED else ErrorCode.HANDOVER_ENDED
    assert refusal(alert, "dr.mendes", "take_over") == expected


def test_offer_of_an_unanswered_alert_ends_when_somebody_takes_the_alert() -> None:
    """Who leaves is no longer called, so there is nothing to hand over; if they take it themselves, there still is."""
    alert = offered(raised(), after_s=5)
    assert answered(alert, "dr.pires", "accept", 9).alert.handovers == ()
    assert len(answered(alert, "dr.santos", "accept", 9).alert.handovers) == 1


# --- teams --------------------------------------------------------------------------------------------------


def test_place_in_a_team_goes_to_a_successor_of_its_role() -> None:
    """The place is never empty in between; who may not take it is refused, and it stays the giver's."""
    alert = after(raised("stemi"), ("nurse.almeida", "accept", {"eta_min": 3}))
    (slot,) = (each.id for each in alert.slots if each.by == "nurse.almeida")
    alert = offered(alert, giver="nurse.almeida", taker="dr.pires")
    assert refusal(alert, "dr.pires", "take_over") == ErrorCode.FORBIDDEN
    alert = offered(alert, giver="nurse.almeida", taker="nurse.costa")
    alert = answered(alert, "nurse.costa", "take_over", 3700).alert
    assert {each.id: each.by for each in alert.slots if each.by} == {slot: "nurse.costa"}
    assert alert.state == "delivering"
    assert [each.eta_at for each in alert.slots if each.by] == [None]


def test_place_of_another_is_not_taken_over_by_who_sits_already() -> None:
    """Nobody sits in two places: the one who has one is refused."""
    alert = after(raised("stemi"), ("nurse.almeida", "accept", {}), ("dr.mendes", "accept", {}))
    alert = offered(alert, giver="nurse.almeida", taker="dr.mendes")
    assert refusal(alert, "dr.mendes", "take_over") == ErrorCode.BAD_REQUEST


def test_call_to_a_team_is_handed_over_with_the_places_it_is_about() -> None:
    """A nurse who is called hands over the nurse's place: the successor gets that one, or none."""
    alert = offered(raised("stemi"), giver="nurse.almeida", taker="nurse.costa", after_s=5)
    taken = answered(alert, "nurse.costa", "take_over", 9).alert
    (slot,) = (each for each in taken.slots if each.by)
    assert "nurse" in slot.roles
    other = offered(raised("stemi"), giver="nurse.almeida", taker="dr.pires", after_s=5)
    assert refusal(other, "dr.pires", "take_over") == ErrorCode.FORBIDDEN
    filled = answered(alert, "nurse.costa", "accept", 9).alert
    assert filled.handovers == ()


# --- actions ------------------------------------------------------------------------------------------------


def test_alert_of_an_action_is_held_from_the_first_moment() -> None:
    """It is raised, had by its raiser and offered in one change, and calls nobody."""
    to = AlertTarget(user="dr.santos")
    rules = POLICIES.choose("", "normal", None)
    change = board.raise_(
        command(to=to, raised_by="dr.santos", hand_to="dr.mendes", priority="normal"),
        alert_id="alert-1",
        policy=rules,
        people=("dr.santos",),
        now=NOW,
    )
    assert [each.event for each in change.events] == ["raised", "handover_offered"]
    assert (change.alert.state, holders(change.alert)) == ("in_progress", ["dr.santos"])
    assert {each.kind for each in change.timers} == {"remind", "lapse"}
    assert holders(answered(change.alert, "dr.mendes", "take_over").alert) == ["dr.mendes"]


# --- properties ---------------------------------------------------------------------------------------------

HANDS: tuple[Answer, ...] = ("hand_over", "take_over", "refuse_handover", "revoke_handover")
OPERATIONS = st.one_of(
    st.tuples(
        st.just("answer"),
        st.sampled_from(tuple(STAFF)),
        st.sampled_from((*HANDS, "hand_over", "take_over", "accept", "accept", "decline", "done")),
        st.sampled_from((None, *STAFF)),
    ),
    st.tuples(st.just("fire"), st.sampled_from(get_args(TimerKind))),
    st.tuples(st.just("wait"), st.integers(0, 4_000_000)),
)


def charged(alert: Alert) -> frozenset[str]:
    """Whose it is, or whom it still calls: the people who could not say that it is nothing of theirs."""
    return frozenset(
        person.user_id
        for person in alert.people
        if handover.is_loop(alert, person, [slot.id for slot in alert.slots if slot.by is None])
    )


@settings(deadline=None, max_examples=300)
@given(policy=st.sampled_from(("critical", "normal", "stemi")), operations=st.lists(OPERATIONS, max_size=40))
def test_handover_in_any_order_is_never_nobodys(policy: str, operations: list[tuple[object, ...]]) -> None:
    """A hand-over moves a loop to exactly one other person; offers change nobody's, and stand only while they can."""
    alert, now = raised(policy), NOW
    rules = POLICIES.of(alert)
    for operation in operations:
        kind, *rest = operation
        if kind == "wait":
            now += timedelta(milliseconds=rest[0])  # type: ignore[arg-type]
            continue
        before, held = alert, holders(alert)
        if kind == "fire":
            change = board.fire(alert, Timer(kind=rest[0], due_at=now), rules, tuple(STAFF), now)  # type: ignore[arg-type]
            if change is None:
                continue
            if rest[0] == "lapse":
                assert all(each.until > now for each in change.alert.handovers)
                assert (holders(change.alert), change.alert.people) == (held, alert.people)
        else:
            user, answer, colleague = rest
            try:
                change = answered(alert, str(user), str(answer), (now - NOW).total_seconds(), colleague=colleague)
            except RemoteProtocolError:
                continue
            if answer == "take_over":
                (event,) = change.events
                assert event.handover is not None
                assert event.handover in before.handovers
                giver = event.handover.giver
                assert user in holders(change.alert)
                assert answers(change.alert)[giver] == "handed_over"
                if giver in held:
                    # The rank goes with it; nobody else's changes, and no place is lost.
                    moved = [user if each == giver else each for each in held if each != user]
                    assert holders(change.alert) == moved
                    seats = {each.id: user if each.by == giver else each.by for each in before.slots}
                    assert {each.id: each.by for each in change.alert.slots} == seats
                else:
                    assert held == [each for each in holders(change.alert) if each != user or each in held]
            elif answer in HANDS:
                assert (holders(change.alert), change.alert.state) == (held, before.state)
                assert charged(change.alert) >= charged(before)
        alert = change.alert
        assert change.timers == board.timers(alert)
        assert handover.standing(alert) == alert.handovers
        assert len({each.giver for each in alert.handovers}) == len(alert.handovers)
        for each in alert.handovers:
            assert each.giver in charged(alert)
        if alert.state in CLOSED:
            assert alert.handovers == ()
        if alert.state == "in_progress":
            assert board.is_held(alert)
        told = [board.frame(alert, event, number, rules) for number, event in enumerate(change.events, start=1)]
        assert all(len(sent.handovers) == len(alert.handovers) for sent in told)


@given(
    first=st.sampled_from(("take_over", "revoke_handover", "done", "lapse")),
    second=st.sampled_from(("take_over", "revoke_handover", "done", "lapse")),
)
def test_handover_that_races_ends_in_one_state(first: str, second: str) -> None:
    """Of two who act at one moment the second sees what the first has done: there is one holder, or it is done."""
    alert = offered(after(raised(), ("dr.santos", "accept", {})), after_s=0)
    at, refused = NOW + HALF_HOUR + timedelta(milliseconds=2), 0
    for what in (first, second):
        if what == "lapse":
            change = board.fire(alert, Timer(kind="lapse", due_at=at), POLICIES.of(alert), (), at)
            alert = alert if change is None else change.alert
            continue
        user = "dr.mendes" if what == "take_over" else "dr.santos"
        try:
            alert = answered(alert, user, what, (at - NOW).total_seconds()).alert
        except RemoteProtocolError:
            refused += 1
    # What is done is over for everybody; and who has handed it over cannot say that it is done.
    if "done" in (first, second) and first != "take_over":
        assert alert.state == "resolved"
        return
    taken = "take_over" in (first, second) and first not in {"revoke_handover", "lapse"}
    assert refused <= 1
    assert holders(alert) == (["dr.mendes"] if taken else ["dr.santos"])


def test_alert_of_before_the_handovers_is_read() -> None:
    """What an older chatd has stored has no offers; it is read as an alert without any."""
    alert = after(raised(), ("dr.santos", "accept", {}))
    stored = msgspec.to_builtins(alert)
    del stored["handovers"]
    assert msgspec.convert(stored, Alert) == alert
