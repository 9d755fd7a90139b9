"""The life of an alert: every answer and timer in every order, as pure rules."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.alerts import board
from chatd.alerts.model import (
    BYSTANDER,
    CLOSED,
    NOTIFYING,
    RINGING,
    Alert,
    Change,
    Event,
    Happened,
    Raise,
    Response,
    Seen,
    State,
    Timer,
    TimerKind,
)
from chatd.alerts.policies import Policies, Policy
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertTarget, AlertUpdate, SystemNotification

NOW = datetime(2026, 1, 15, 7, 45, 20, 114500, tzinfo=UTC)
POLICIES = Policies()
CARDIOLOGY = AlertTarget(department="cardiology")
STAFF = {
    "dr.santos": ("physician",),
    "dr.mendes": ("cardiologist",),
    "dr.pires": ("anaesthetist",),
    "nurse.almeida": ("nurse",),
    "tech.dias": ("radiographer",),
    "charge.rocha": ("charge_nurse",),
}


def command(**changes: object) -> Raise:
    fields: dict[str, object] = {
        "key": "k-1",
        "raised_by": "service:lab",
        "department": "cardiology",
        "to": CARDIOLOGY,
        "priority": "critical",
        "content": "Potassium 7.1 mmol/L",
        "requires_action": True,
        "patient_id": "7823",
    }
    return Raise(**(fields | changes))  # type: ignore[arg-type]


def raised(policy: str = "critical", people: tuple[str, ...] = tuple(STAFF), **changes: object) -> Change:
    return board.raise_(
        command(**changes), alert_id="alert-1", policy=POLICIES.choose("", "low", policy), people=people, now=NOW
    )


def response(user_id: str, answer: str, **changes: object) -> Response:
    fields: dict[str, object] = {
        "key": "r-1",
        "user_id": user_id,
        "roles": STAFF.get(user_id, ()),
        "department": "cardiology",
        "alert_id": "alert-1",
        "answer": answer,
    }
    return Response(**(fields | changes))  # type: ignore[arg-type]


def answered(alert: Alert, user_id: str, answer: str, after_s: float = 5, **changes: object) -> Change:
    at = NOW + timedelta(seconds=after_s)
    return board.respond(alert, response(user_id, answer, **changes), POLICIES.of(alert), at)


def due(change: Change) -> dict[TimerKind, float]:
    """Seconds after ``NOW`` of each timer, rounded to whole ones."""
    return {timer.kind: round((timer.due_at - NOW).total_seconds()) for timer in change.timers}


def events(change: Change) -> list[str]:
    return [each.event for each in change.events]


def fired(change: Change, kind: TimerKind, people: tuple[str, ...] = tuple(STAFF), late_s: float = 0) -> Change:
    timer = next(each for each in change.timers if each.kind == kind)
    at = timer.due_at + timedelta(seconds=late_s)
    after = board.fire(change.alert, timer, POLICIES.of(change.alert), people, at)
    assert after is not None
    return after


def refusal(alert: Alert, user_id: str, answer: str, **changes: object) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        answered(alert, user_id, answer, **changes)
    return caught.value.code


# --- the table ----------------------------------------------------------------------------------------------


def test_board_table_is_whole() -> None:
    """Every state has a row, closed states have an empty one, and every open one can be answered, ended and expire."""
    assert set(board.LIFE) == set(get_args(State))
    for state, row in board.LIFE.items():
        assert (not row) == (state in CLOSED)
        assert state in CLOSED or {"accept", "decline", "done", "stand_down", "join", "expire"} <= set(row)
    timed = {state: {"repeat", "step", "remind"} & set(row) for state, row in board.LIFE.items()}
    assert timed["delivering"] == {"repeat", "step"}
    assert timed["unanswered"] == {"repeat"}
    assert timed["in_progress"] == {"remind"}


def test_board_ringing_events_bring_the_alert() -> None:
    """What rings is sent with the alert's words, never as an update that a phone could not show."""
    assert RINGING < NOTIFYING <= set(get_args(Event))


def test_board_never_waits() -> None:
    """An interpreter that imports the rules has no event loop, no Redis, no database and no web server."""
    script = (
        "import sys, chatd.alerts.board, chatd.alerts.reach, chatd.alerts.policies\n"
        "unwanted = {'asyncio', 'redis', 'sqlalchemy', 'starlette', 'uvicorn', 'structlog'}\n"
        "print(','.join(sorted(unwanted & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# --- ringing and escalation ---------------------------------------------------------------------------------


def test_alert_unanswered_takes_every_step() -> None:
    """Nobody answers: it rings with back-off, calls the charge nurse, then everybody, and says that nobody has it."""
    change = raised(to=AlertTarget(role="physician"))
    told = []
    while change.alert.state == "delivering":
        timer = min(change.timers, key=lambda each: each.due_at)
        change = fired(change, timer.kind, ("charge.rocha",))
        told.append((round((timer.due_at - NOW).total_seconds()), events(change)[0]))
    assert told == [
        (15, "repeated"),
        (40, "repeated"),
        (60, "escalated"),
        (75, "repeated"),
        (100, "repeated"),
        (120, "escalated"),
        (135, "repeated"),
        (160, "repeated"),
        (180, "unanswered"),
    ]
    assert change.alert.to == CARDIOLOGY
    assert set(due(change)) == {"repeat", "expire"}
    assert fired(change, "expire").alert.state == "expired"


@pytest.mark.parametrize("late_s", [0, 10])
def test_alert_ends_when_its_end_is_looked_at_in_time(late_s: float) -> None:
    """A sweep that is late by seconds, as on a busy ledger, ends what is over."""
    assert fired(raised(), "expire", late_s=late_s).alert.state == "expired"


def test_alert_whose_end_came_in_an_outage_gives_every_step_its_time() -> None:
    """Nobody could answer: it goes on for what its chain takes from now on, tells nobody, and then ends for certain."""
    overdue = fired(raised(), "expire", late_s=7_200)
    assert (overdue.alert.state, events(overdue)) == ("delivering", [])
    left_s = due(overdue)["expire"] - (43_200 + 7_200)
    policy = POLICIES.of(overdue.alert)
    assert left_s == sum(step.after_s for step in policy.steps) + policy.unanswered_after_s
    assert fired(overdue, "expire").alert.state == "expired"


def test_acceptance_whose_end_came_in_an_outage_is_asked_for_a_last_time() -> None:
    """A team that was asked whether it is done could not say so: it has that time again."""
    change = answered(raised("arrest", requires_action=True).alert, "dr.santos", "accept", slot="leader")
    alert = msgspec.structs.replace(change.alert, state="in_progress", resolve_by=None, is_reminded=True)
    timer = next(each for each in board.timers(alert) if each.kind == "expire")
    policy = POLICIES.of(alert)
    at = timer.due_at + timedelta(hours=1)
    after = board.fire(alert, timer, policy, (), at)
    assert after is not None
    assert after.alert.state == "in_progress"
    (expire,) = [each for each in after.timers if each.kind == "expire"]
    assert abs((expire.due_at - at).total_seconds() - policy.remind_again_s) < 1


def test_alert_rings_earlier_steps_too() -> None:
    """Whom an earlier step called goes on ringing beside those whom the present one calls, until all are named."""
    change = fired(raised(to=AlertTarget(user="dr.santos"), people=("dr.santos",)), "step", ("charge.rocha",))
    sent = board.notification(change.alert, change.events[0], 2, POLICIES.of(change.alert))
    assert (sent.to, sent.also) == (AlertTarget(role="charge_nurse"), (AlertTarget(user="dr.santos"),))
    change = fired(change, "step")
    sent = board.notification(change.alert, change.events[0], 3, POLICIES.of(change.alert))
    assert (sent.to, sent.also) == (CARDIOLOGY, ())


def test_alert_calls_who_has_come_since() -> None:
    """A ring calls whom the target names by then, and lets a delegate's phone ring."""
    change = raised(to=AlertTarget(user="dr.santos"), people=("dr.santos",))
    timer = Timer(kind="repeat", due_at=NOW)
    after = board.fire(
        change.alert,
        timer,
        POLICIES.of(change.alert),
        ("dr.santos", "dr.mendes"),
        NOW + timedelta(seconds=16),
        delegates=("dr.mendes",),
    )
    assert after is not None
    assert [person.user_id for person in after.alert.people] == ["dr.santos", "dr.mendes"]
    assert after.alert.also == (AlertTarget(user="dr.mendes"),)


def test_alert_late_node_takes_one_step() -> None:
    """After two hours without a node one step is taken, and its people have their whole time."""
    change = fired(raised(), "step", late_s=7200)
    assert change.alert.step == 1
    assert due(change)["step"] == 60 + 7200 + 60
    assert due(change)["repeat"] == 60 + 7200 + 15


def test_alert_timer_is_never_early() -> None:
    """A timer fires at its moment and not a millisecond before, whatever row said so, and a stale one does nothing."""
    change = raised()
    policy = POLICIES.of(change.alert)
    timer = next(each for each in change.timers if each.kind == "step")
    before = timer.due_at - timedelta(milliseconds=1)
    assert board.fire(change.alert, msgspec.structs.replace(timer, due_at=before), policy, (), before) is None
    after = fired(change, "step")
    assert board.fire(after.alert, timer, policy, (), timer.due_at) is None
    assert board.fire(change.alert, Timer(kind="remind", due_at=NOW), policy, (), timer.due_at) is None


def test_alert_step_without_people_is_passed() -> None:
    """A step to a role that nobody holds is told and waits for nobody; one to the department waits for its time."""
    change = fired(raised(), "step", ())
    assert due(change)["step"] == 60
    assert due(fired(change, "step", ()))["step"] == 120


def test_alert_to_its_raiser_alone() -> None:
    """Whoever raises an alert is not called to it, unless it is to them by name."""
    people = ("dr.santos", "dr.mendes")
    assert [p.user_id for p in raised(people=people, raised_by="dr.santos").alert.people] == ["dr.mendes"]
    own = raised(people=people, raised_by="dr.santos", to=AlertTarget(user="dr.santos"))
    assert [p.user_id for p in own.alert.people] == ["dr.santos", "dr.mendes"]


def test_alert_without_action_rings_once_a_step() -> None:
    """Where nothing must be done it rings once a step, is brought to no others once seen, and ends by its time."""
    change = raised(requires_action=False)
    assert set(due(change)) == {"step", "expire"}
    stepped = fired(change, "step")
    assert set(due(stepped)) == {"step", "expire"}
    seen = answered(stepped.alert, "dr.santos", "accept")
    assert (seen.alert.state, set(due(seen))) == ("delivering", {"expire"})
    options = board.notification(seen.alert, change.events[0], 1, POLICIES.of(seen.alert)).options
    assert [option.id for option in options] == ["seen"]
    assert refusal(seen.alert, "dr.santos", "done") == ErrorCode.FORBIDDEN
    assert answered(seen.alert, "service:lab", "done").alert.state == "resolved"


# --- answers ------------------------------------------------------------------------------------------------


def test_acceptance_stops_every_path() -> None:
    """One acceptance leaves no ring and no step, only the question whether it is done."""
    change = answered(raised().alert, "dr.santos", "accept", eta_min=5)
    assert (change.alert.state, due(change)) == ("in_progress", {"remind": 5 + 1800})
    assert change.alert.people[0].eta_at == NOW + timedelta(seconds=5, minutes=5)


def test_acceptance_of_two_is_known_to_both() -> None:
    """The first has it, the second is noted behind them, and has it when the first gives it back."""
    both = answered(answered(raised().alert, "dr.santos", "accept").alert, "dr.mendes", "accept", 6)
    assert [person.user_id for person in board.holders(both.alert)] == ["dr.santos", "dr.mendes"]
    assert due(both) == {"remind": 5 + 1800}
    sent = board.frame(both.alert, both.events[0], 3, POLICIES.of(both.alert))
    assert isinstance(sent, AlertUpdate)
    assert [(each.user_id, each.answer) for each in sent.who] == [("dr.santos", "accept"), ("dr.mendes", "accept")]
    left = answered(both.alert, "dr.santos", "decline", 60)
    assert (left.alert.state, events(left)) == ("in_progress", ["declined"])
    rings = answered(left.alert, "dr.mendes", "decline", 70)
    assert (rings.alert.state, events(rings)) == ("delivering", ["declined", "repeated"])
    assert due(rings) == {"repeat": 70 + 15, "step": 70 + 60, "expire": 70 + 43200}


def test_acceptance_order_is_the_ledgers() -> None:
    """Who accepts second stands second, also where their node's clock is behind."""
    first = answered(raised().alert, "dr.santos", "accept", 5)
    second = answered(first.alert, "dr.mendes", "accept", 4)
    assert [person.user_id for person in board.holders(second.alert)] == ["dr.santos", "dr.mendes"]
    again = answered(second.alert, "dr.santos", "accept", 50, eta_min=10)
    assert [person.user_id for person in board.holders(again.alert)] == ["dr.santos", "dr.mendes"]


def test_acceptance_that_is_not_done_rings_again() -> None:
    """Accepted and silent: the holders are asked, asked again, and then it is nobody's."""
    held = answered(raised().alert, "dr.santos", "accept")
    asked = fired(held, "remind")
    assert (asked.alert.state, events(asked), due(asked)) == ("in_progress", ["reminded"], {"remind": 5 + 1800 + 300})
    confirmed = answered(asked.alert, "dr.santos", "accept", 1900)
    assert due(confirmed) == {"remind": 1900 + 1800}
    lapsed = fired(asked, "remind", ("nurse.almeida",))
    assert (lapsed.alert.state, events(lapsed)) == ("delivering", ["repeated"])
    assert board.holders(lapsed.alert) == ()
    assert set(due(lapsed)) == {"repeat", "step", "expire"}


def test_acceptance_by_somebody_not_called_is_refused() -> None:
    """Who is not called cannot stop the ringing; who is in charge, or was reached through their role later, can."""
    alert = raised(to=AlertTarget(role="physician"), people=("dr.mendes",)).alert
    assert refusal(alert, "nurse.almeida", "accept") == ErrorCode.FORBIDDEN
    assert refusal(alert, "nurse.almeida", "decline") == ErrorCode.FORBIDDEN
    assert refusal(alert, "nurse.almeida", "done") == ErrorCode.FORBIDDEN
    assert answered(alert, "charge.rocha", "accept").alert.state == "in_progress"
    late = answered(alert, "dr.santos", "accept").alert
    assert (late.state, late.people[-1].user_id, late.people[-1].step) == ("in_progress", "dr.santos", 0)


def test_answer_of_another_department_is_refused() -> None:
    """An answer must come from the department that the alert is in."""
    assert refusal(raised().alert, "dr.santos", "accept", department="surgery") == ErrorCode.FORBIDDEN
    assert refusal(raised().alert, "dr.santos", "accept", slot="operator") == ErrorCode.BAD_REQUEST


def test_decline_of_one_of_many_stops_nothing() -> None:
    """In a department a decline is noted and changes nobody's time; the last one's makes the next step due at once."""
    change = raised(people=("dr.santos", "dr.mendes"))
    first = answered(change.alert, "dr.santos", "decline", reason="in_procedure")
    assert due(first) == due(change)
    assert first.alert.people[0].reason == "in_procedure"
    last = answered(first.alert, "dr.mendes", "decline", 7)
    assert due(last)["step"] == 7
    assert events(fired(last, "step", ("charge.rocha",))) == ["escalated"]


def test_decline_of_the_only_one_moves_on() -> None:
    """Who alone was called and declines is not waited for; a step to people who have all declined is passed too."""
    change = answered(raised(to=AlertTarget(user="dr.santos"), people=("dr.santos",)).alert, "dr.santos", "decline")
    assert due(change)["step"] == 5
    assert due(fired(change, "step", ("dr.santos",)))["step"] == 5


def test_done_by_somebody_who_was_called() -> None:
    """While nobody has it, who was called may say at once that it is done; while somebody has it, nobody else may."""
    alert = raised().alert
    done = answered(alert, "nurse.almeida", "done")
    assert (done.alert.state, events(done), done.timers) == ("resolved", ["resolved"], ())
    assert {p.user_id: p.answer for p in done.alert.people}["nurse.almeida"] == "done"
    held = answered(alert, "dr.santos", "accept").alert
    assert refusal(held, "nurse.almeida", "done") == ErrorCode.FORBIDDEN
    ended = answered(held, "charge.rocha", "done").alert
    assert {p.user_id: p.answer for p in ended.people if p.answer != "addressed"} == {"dr.santos": "accept"}


def test_stand_down_names_who_got_it() -> None:
    """Only its raiser or who is in charge calls it off, and it names exactly those whose phones have it."""
    got = board.receipts(
        raised(raised_by="dr.mendes").alert, {"dr.santos": "displayed", "ward.student": "delivered"}, NOW
    )
    assert got is not None
    alert = answered(got.alert, "tech.dias", "decline").alert
    assert refusal(alert, "dr.santos", "stand_down") == ErrorCode.FORBIDDEN
    for user_id in ("dr.mendes", "charge.rocha"):
        off = answered(alert, user_id, "stand_down")
        sent = board.frame(off.alert, off.events[0], 4, POLICIES.of(off.alert))
        assert isinstance(sent, SystemNotification)
        assert (sent.event, sent.state, sent.by) == ("stood_down", "stood_down", user_id)
        assert sent.reached == ("dr.santos", "tech.dias", "ward.student")
        assert (off.timers, sent.options) == ((), ())


def test_receipts_go_only_forward() -> None:
    """A receipt is news once, never takes an answer back, and makes nobody addressed who is not."""
    alert = raised(to=AlertTarget(role="physician"), people=("dr.santos",)).alert
    change = board.receipts(alert, {"dr.santos": "displayed", "nurse.almeida": "delivered"}, NOW)
    assert change is not None
    assert [(p.user_id, p.answer, p.step) for p in change.alert.people] == [
        ("dr.santos", "displayed", 0),
        ("nurse.almeida", "delivered", BYSTANDER),
    ]
    assert board.receipts(change.alert, {"dr.santos": "delivered", "nurse.almeida": "delivered"}, NOW) is None
    accepted = answered(change.alert, "dr.santos", "accept").alert
    assert board.receipts(accepted, {"dr.santos": "displayed"}, NOW) is None


def test_receipts_keep_their_moments() -> None:
    """What is displayed has been delivered; a moment that comes after the answer is noted and is no event."""
    alert = raised(to=AlertTarget(role="physician"), people=("dr.santos",)).alert
    later = NOW + timedelta(seconds=9)
    accepted = answered(alert, "dr.santos", "accept").alert
    assert [(p.delivered_at, p.displayed_at, p.accepted_at) for p in accepted.people] == [
        (None, None, accepted.updated_at)
    ]
    shown = board.receipts(accepted, {"dr.santos": "displayed"}, later)
    assert shown is not None
    assert (shown.events, shown.timers, shown.alert.updated_at) == ((), board.timers(accepted), accepted.updated_at)
    seen = {"dr.santos": Seen(delivered_at=NOW, displayed_at=later)}
    first = board.receipts(shown.alert, {"dr.santos": "displayed"}, later, seen=seen)
    assert first is not None
    (person,) = first.alert.people
    assert (person.answer, person.delivered_at, person.displayed_at) == ("accept", NOW, later)
    assert board.receipts(first.alert, {"dr.santos": "displayed"}, later) is None


def test_closed_alert_takes_receipts_silently() -> None:
    """A late receipt of a closed alert is no error and no news; every other answer is told that it is closed."""
    alert = answered(raised().alert, "charge.rocha", "stand_down").alert
    assert board.receipts(alert, {"dr.santos": "displayed"}, NOW) is None
    quiet = answered(alert, "dr.santos", "delivered")
    assert (quiet.alert, quiet.events, quiet.timers) == (alert, (), ())
    for answer in ("accept", "decline", "done", "stand_down"):
        assert refusal(alert, "charge.rocha", answer) == ErrorCode.ALERT_CLOSED


# --- teams --------------------------------------------------------------------------------------------------


def seats(alert: Alert) -> dict[str, str | None]:
    return {slot.id: slot.by for slot in alert.slots}


def test_team_fills_one_slot_each() -> None:
    """Each acceptance takes the first place that its role may have, and the last one quiets the alert."""
    change = raised("stemi")
    for after, user_id in enumerate(("dr.mendes", "nurse.almeida", "dr.pires"), start=1):
        change = answered(change.alert, user_id, "accept", after, eta_min=10 * after)
        assert (change.alert.state, sum(slot.by is not None for slot in change.alert.slots)) == ("delivering", after)
    rung = fired(change, "repeat")
    sent = board.notification(rung.alert, rung.events[0], 5, POLICIES.of(rung.alert))
    assert {slot.id: slot.by for slot in sent.slots} == {
        "operator": "dr.mendes",
        "anaesthesia": "dr.pires",
        "nurse": "nurse.almeida",
        "technician": None,
    }
    assert sum(slot.eta_at is not None for slot in sent.slots) == 3
    whole = answered(rung.alert, "tech.dias", "accept", 30)
    assert (whole.alert.state, due(whole)) == ("in_progress", {"remind": 30 + 5400})


def test_team_place_is_named_or_fits() -> None:
    """A taken place and one for other roles are refused aloud; nobody is guessed into a place by naming none."""
    alert = answered(raised("stemi").alert, "dr.santos", "accept", slot="anaesthesia").alert
    assert seats(alert)["anaesthesia"] == "dr.santos"
    assert refusal(alert, "dr.pires", "accept", slot="anaesthesia") == ErrorCode.SLOT_TAKEN
    assert refusal(alert, "nurse.almeida", "accept", slot="operator") == ErrorCode.FORBIDDEN
    assert refusal(alert, "nurse.almeida", "accept", slot="porter") == ErrorCode.BAD_REQUEST
    extra = answered(alert, "dr.pires", "accept").alert
    assert "dr.pires" not in seats(extra).values()
    assert extra.state == "delivering"


def test_team_taker_may_move_and_leave() -> None:
    """Who takes another place leaves the first; who declines later empties theirs, and it rings again at once."""
    alert = answered(raised("stemi").alert, "dr.santos", "accept").alert
    moved = answered(alert, "dr.santos", "accept", slot="anaesthesia").alert
    assert (seats(moved)["operator"], seats(moved)["anaesthesia"]) == (None, "dr.santos")
    for user_id in ("dr.mendes", "nurse.almeida", "tech.dias"):
        moved = answered(moved, user_id, "accept").alert
    assert moved.state == "in_progress"
    left = answered(moved, "dr.mendes", "decline", 60)
    assert (left.alert.state, events(left), seats(left.alert)["operator"]) == (
        "delivering",
        ["declined", "repeated"],
        None,
    )
    assert seats(left.alert)["nurse"] == "nurse.almeida"
    assert {"repeat": 75, "step": 120}.items() <= due(left).items()


def test_team_comer_and_goer_delays_no_step() -> None:
    """Somebody who accepts and leaves again does not push back the step that the empty places wait for."""
    change = raised("stemi")
    left = answered(answered(change.alert, "dr.mendes", "accept", 30).alert, "dr.mendes", "decline", 40)
    assert due(left)["step"] == due(change)["step"] == 60


def test_team_is_done_when_whole() -> None:
    """A holder may end it once every place has somebody; before, only its raiser or who is in charge."""
    alert = answered(raised("stemi").alert, "dr.santos", "accept").alert
    assert refusal(alert, "dr.santos", "done") == ErrorCode.FORBIDDEN
    assert answered(alert, "charge.rocha", "done").alert.state == "resolved"
    for user_id in ("dr.pires", "nurse.almeida", "tech.dias"):
        alert = answered(alert, user_id, "accept").alert
    assert refusal(alert, "dr.late", "done", roles=("physician",)) == ErrorCode.FORBIDDEN
    assert answered(alert, "nurse.almeida", "done").alert.state == "resolved"


def test_team_is_reminded_and_not_called_again() -> None:
    """A whole team that nobody ends is asked once and then ends by its time; it is not rung together again."""
    change = raised("stemi")
    for user_id in ("dr.mendes", "dr.pires", "nurse.almeida", "tech.dias"):
        change = answered(change.alert, user_id, "accept")
    asked = fired(change, "remind")
    assert (events(asked), set(due(asked))) == (["reminded"], {"expire"})
    assert events(fired(asked, "expire")) == ["expired"]


# --- joining ------------------------------------------------------------------------------------------------


def joined(alert: Alert, after_s: float = 10, **changes: object) -> Change | None:
    new = command(**changes)
    policy = POLICIES.choose("cardiology", new.priority, new.policy)
    at = NOW + timedelta(seconds=after_s)
    return board.join(alert, new, policy, at) if board.is_repetition(alert, new, policy, at) else None


def test_join_counts_and_rings_not() -> None:
    """The same key again is counted; no ring comes of it, and no timer moves."""
    change = raised(dedup_key="lab-1")
    again = joined(change.alert, dedup_key="lab-1")
    assert again is not None
    assert (again.alert.bundled, events(again), due(again)) == (1, ["joined"], due(change))
    assert again.alert.content == "Potassium 7.1 mmol/L"


def test_join_keeps_new_words() -> None:
    """Other words under the same key are added, are not lost, and are rung for soon."""
    change = fired(fired(raised("high", dedup_key="lab-1"), "repeat"), "repeat")
    again = joined(change.alert, 181, dedup_key="lab-1", content="Potassium 7.4 mmol/L", priority="high")
    assert again is not None
    assert again.alert.content == "Potassium 7.1 mmol/L\nPotassium 7.4 mmol/L"
    assert due(again)["repeat"] == 181 + 60
    once_more = joined(again.alert, 190, dedup_key="lab-1", content="Potassium 7.4 mmol/L", priority="high")
    assert once_more is not None
    assert (once_more.alert.content, once_more.alert.bundled) == (again.alert.content, 2)


def test_join_of_higher_priority_rings() -> None:
    """The same at a higher priority rings at once by the higher one's policy, and no step comes later for it."""
    change = raised("high", priority="high", dedup_key="lab-1")
    again = joined(change.alert, dedup_key="lab-1")
    assert again is not None
    assert (events(again), again.alert.priority, again.alert.policy) == (
        ["joined", "repeated"],
        "critical",
        "critical",
    )
    assert due(again)["step"] == 10 + 60


def test_join_of_higher_priority_escalates_what_was_unanswered() -> None:
    """Whom no step of a lower policy was left to call, the steps of the higher one call."""
    low = raised("low", (), priority="low", dedup_key="d", to=AlertTarget(user="dr.santos"))
    unanswered = fired(low, "step", ())
    assert unanswered.alert.state == "unanswered"
    new = command(dedup_key="d", to=AlertTarget(user="dr.santos"))
    at = NOW + timedelta(seconds=POLICIES.choose("", "low").unanswered_after_s + 1)
    policy = POLICIES.choose("", "critical")
    assert board.may_join(unanswered.alert, new, at)
    higher = board.join(unanswered.alert, new, policy, at)
    assert (higher.alert.state, events(higher)) == ("delivering", ["joined", "repeated"])
    assert higher.alert.next_step_at is not None
    charge = fired(higher, "step", ())
    assert charge.alert.to == AlertTarget(role="charge_nurse")


@pytest.mark.parametrize(
    "changes",
    [
        {"dedup_key": None},
        {"dedup_key": "lab-2"},
        {"patient_id": "7824"},
        {"patient_id": None},
        {"department": "surgery"},
        {"to": AlertTarget(role="physician")},
        {"is_drill": True},
        {"policy": "stemi"},
        {"content": "x" * 3990},
        {"after_s": 3600},
    ],
    ids=str,
)
def test_join_refuses_what_differs(changes: dict[str, object]) -> None:
    """Another patient, target, kind or time is another alert, and so is one whose words do not fit."""
    assert joined(raised(dedup_key="lab-1").alert, **({"dedup_key": "lab-1"} | changes)) is None  # type: ignore[arg-type]


def test_join_adds_nothing_to_what_is_quiet() -> None:
    """Into an alert that somebody has, only the same words at no higher priority go; into a closed one, nothing."""
    held = answered(raised("high", priority="high", dedup_key="lab-1").alert, "dr.santos", "accept").alert
    assert joined(held, dedup_key="lab-1", priority="high") is not None
    assert joined(held, dedup_key="lab-1") is None
    assert joined(held, dedup_key="lab-1", priority="high", content="Potassium 7.4 mmol/L") is None
    assert joined(answered(held, "dr.santos", "done").alert, dedup_key="lab-1", priority="high") is None
    told = raised("high", priority="high", dedup_key="lab-1", requires_action=False).alert
    assert joined(told, dedup_key="lab-1", priority="high") is None


def test_join_knows_the_first_target() -> None:
    """An alert that has gone on to others is still the one to whom it was raised."""
    to = AlertTarget(role="physician")
    change = fired(fired(raised(to=to, dedup_key="lab-1"), "step", ("charge.rocha",)), "step")
    assert joined(change.alert, 200, dedup_key="lab-1", to=to) is not None
    assert joined(change.alert, 200, dedup_key="lab-1", to=AlertTarget(role="charge_nurse")) is None


def test_storm_joins_from_the_sixth() -> None:
    """The sixth alert of one raiser within a minute goes into the oldest that fits, and where none fits, into none."""
    rung = [
        msgspec.structs.replace(
            raised().alert, alert_id=f"alert-{i}", raised_at=NOW + timedelta(seconds=i), content=f"Result {i}"
        )
        for i in range(5)
    ]
    policy, at = POLICIES.choose("cardiology", "critical"), NOW + timedelta(seconds=20)
    new = command(content="Result 6")
    assert board.storm_target(rung[:4], new, policy, at) is None
    assert board.storm_target(rung[::-1], new, policy, at) == rung[0]
    assert board.storm_target(rung, new, policy, NOW + timedelta(seconds=61)) is None
    assert board.storm_target(rung, command(patient_id="1"), policy, at) is None
    assert board.storm_target(rung, command(raised_by="dr.santos"), policy, at) is None
    assert board.storm_target(rung, new, POLICIES.choose("", "critical", "stemi"), at) is None
    merged = board.join(rung[0], new, policy, at).alert
    assert merged.content == "Result 0\nResult 6"


# --- frames -------------------------------------------------------------------------------------------------


def test_frame_tells_the_alert() -> None:
    """A notification has the words, the times, the choices and whom it rings; an update has who and how many."""
    change = raised("stemi", raised_by="dr.santos", dedup_key="stemi-7823", is_drill=True)
    sent = board.frame(change.alert, change.events[0], 7, POLICIES.of(change.alert))
    assert isinstance(sent, SystemNotification)
    assert (sent.alert_seq, sent.event, sent.from_, sent.by, sent.drill) == (
        7,
        "raised",
        "dr.santos",
        "dr.santos",
        True,
    )
    assert (sent.raised_at, sent.next_escalation_at) == ("2026-01-15T07:45:20.114Z", "2026-01-15T07:46:20.115Z")
    assert sent.slots[0].label_pt == "Operador"
    assert "cardiologist" in sent.slots[0].roles
    update = board.frame(change.alert, Happened(event="receipts", at=NOW), 8, POLICIES.of(change.alert))
    assert isinstance(update, AlertUpdate)
    assert (update.alert_seq, update.event, update.counts.unreachable) == (8, "receipts", 5)


# --- properties ---------------------------------------------------------------------------------------------

USERS = (*STAFF, "service:lab", "porter")
ANSWERS = ("accept", "decline", "done", "stand_down")
OPERATIONS = st.one_of(
    st.tuples(
        st.just("answer"),
        st.sampled_from(USERS),
        st.sampled_from((*ANSWERS, "accept", "decline", "delivered", "displayed")),
        st.sampled_from((None, None, "operator", "anaesthesia", "nurse", "compressions")),
    ),
    st.tuples(
        st.just("receipts"), st.dictionaries(st.sampled_from(USERS), st.sampled_from(("delivered", "displayed")))
    ),
    st.tuples(st.just("fire"), st.sampled_from(get_args(TimerKind)), st.sets(st.sampled_from(tuple(STAFF)))),
    st.tuples(st.just("wait"), st.integers(0, 4_000_000)),
    st.tuples(st.just("join"), st.sampled_from(("low", "high", "critical")), st.sampled_from(("same", "other"))),
)


def check(before: Alert, change: Change, now: datetime) -> None:
    """What holds of every change."""
    alert = change.alert
    kinds = [timer.kind for timer in change.timers]
    assert len(kinds) == len(set(kinds))
    assert set(kinds) <= set(board.LIFE[alert.state])
    assert all(timer.due_at.microsecond % 1000 == 0 for timer in change.timers)
    assert change.timers == board.timers(alert)
    assert alert.state in CLOSED or change.timers, "an open alert always has something that moves it on"
    rung = RINGING & {event.event for event in change.events}
    assert not (rung and alert.state in {"in_progress", *CLOSED})
    users = [person.user_id for person in alert.people]
    assert len(users) == len(set(users))
    assert before.alert_id == "" or set(users) >= {person.user_id for person in before.people}
    seated = {slot.id: slot.by for slot in alert.slots if slot.by is not None}
    assert len(set(seated.values())) == len(seated)
    people = {person.user_id: person for person in alert.people}
    for slot_id, user_id in seated.items():
        assert people[user_id].slot == slot_id
        assert people[user_id].answer in {"accept", "done"}
    assert {p.slot for p in people.values() if p.answer == "accept" and p.slot} == {
        slot_id for slot_id, user_id in seated.items() if people[user_id].answer == "accept"
    }
    if alert.state == "in_progress":
        assert board.is_held(alert)
    if alert.state in {"delivering", "unanswered"} and alert.requires_action:
        assert not board.is_held(alert)
    told = board.counts(alert)
    tally = Counter(person.answer for person in alert.people)
    assert told.accepted == tally["accept"] + tally["done"]
    assert told.declined == tally["decline"]
    assert told.displayed == tally["displayed"] + told.accepted + told.declined
    assert told.delivered == tally["delivered"] + told.displayed == len(board.reached(alert))
    for number, event in enumerate(change.events, start=1):
        sent = board.frame(alert, event, number, POLICIES.of(alert))
        assert isinstance(sent, SystemNotification) == (event.event in NOTIFYING)


def apply(alert: Alert, operation: tuple[object, ...], now: datetime) -> Change | None:
    """One operation, as the service would do it; None: refused or without effect, and the refusal must be due."""
    policy = POLICIES.of(alert)
    kind, *rest = operation
    if kind == "answer":
        user_id, answer, slot = rest
        sent = response(str(user_id), str(answer), slot=slot if alert.slots else None)
        try:
            change = board.respond(alert, sent, policy, now)
        except RemoteProtocolError as error:
            refused = error.code
        else:
            refused = None
        assert (refused == ErrorCode.ALERT_CLOSED) == (alert.state in CLOSED and answer in ANSWERS)
        if refused is not None:
            return None
        kept = {each.id: each.by for each in alert.slots if each.by not in {None, user_id}}
        assert kept.items() <= seats(change.alert).items()
        return change
    if kind == "receipts":
        return board.receipts(alert, rest[0], now)  # type: ignore[arg-type]
    if kind == "fire":
        timer = Timer(kind=rest[0], due_at=now)  # type: ignore[arg-type]
        own = next((each for each in board.timers(alert) if each.kind == timer.kind), None)
        change_or_none = board.fire(alert, timer, policy, sorted(rest[1]), now)  # type: ignore[call-overload]
        assert (change_or_none is not None) == (own is not None and own.due_at <= now)
        return change_or_none  # type: ignore[no-any-return]
    new = command(priority=rest[0], content=f"Potassium, the {rest[1]} one", dedup_key="k")
    return board.join(alert, new, POLICIES.choose("", rest[0]), now) if board.may_join(alert, new, now) else None  # type: ignore[arg-type]


@settings(deadline=None, max_examples=300)
@given(
    policy=st.sampled_from(("critical", "low", "stemi", "arrest")),
    requires_action=st.booleans(),
    to=st.sampled_from((CARDIOLOGY, AlertTarget(role="physician"), AlertTarget(user="dr.santos"))),
    operations=st.lists(OPERATIONS, max_size=40),
)
def test_alert_any_order_of_everything(
    policy: str, requires_action: bool, to: AlertTarget, operations: list[tuple[object, ...]]
) -> None:
    """Whatever comes in whatever order: closed stays closed, people and places add up, timers are one of a kind."""
    now = NOW
    change = raised(policy, ("dr.santos", "dr.mendes"), to=to, requires_action=requires_action, priority="low")
    check(msgspec.structs.replace(change.alert, alert_id=""), change, now)
    alert, steps = change.alert, 0
    for operation in operations:
        if operation[0] == "wait":
            now += timedelta(milliseconds=operation[1])  # type: ignore[arg-type]
            continue
        after = apply(alert, operation, now)
        if after is None:
            continue
        assert alert.state not in CLOSED or after.alert == alert
        check(alert, after, now)
        escalated = events(after).count("escalated")
        if escalated:
            assert alert.next_step_at is not None
            assert alert.next_step_at <= now
        steps += escalated
        alert = after.alert
        assert alert.step == steps


@given(
    delays=st.lists(st.floats(0, 7200), min_size=30, max_size=30),
    policy=st.sampled_from([policy.id for policy in POLICIES.all()]),
)
def test_chain_takes_each_step_once(delays: list[float], policy: str) -> None:
    """However late its nodes are, a chain takes every step once, in order, none before its time, and says its end."""
    change, rules = raised(policy), POLICIES.choose("", "low", policy)
    now, last, rings = NOW, NOW, 0
    taken: list[str] = []
    for delay in delays:
        if change.alert.state == "unanswered":
            break
        pending = [each for each in change.timers if each.kind != "expire"]
        step = next(each for each in pending if each.kind == "step")
        chosen = step if rings > 2 else min(pending, key=lambda each: each.due_at)
        now = max(now, chosen.due_at) + timedelta(seconds=delay)
        after = board.fire(change.alert, chosen, rules, tuple(STAFF), now)
        assert after is not None
        rings = rings + 1 if chosen.kind == "repeat" else 0
        if chosen.kind == "step":
            assert now - last >= timedelta(seconds=rules.wait_after_step_s(len(taken)))
            last = now
            taken.append(events(after)[0])
        change = after
    assert taken == ["escalated"] * len(rules.steps) + ["unanswered"]


@given(
    first=st.sampled_from(("accept", "step", "repeat")),
    second=st.sampled_from(("accept", "step", "repeat")),
    late_s=st.integers(60, 600),
)
def test_acceptance_races_a_timer(first: str, second: str, late_s: int) -> None:
    """An acceptance on one node and a timer on another end in one state, whichever the ledger puts first."""
    at, alert = NOW + timedelta(seconds=late_s), raised().alert
    policy: Policy = POLICIES.of(alert)
    has_rung_after = False
    for what in (first, second):
        if what == "accept":
            alert = board.respond(alert, response("dr.santos", "accept"), policy, at).alert
        else:
            kind: TimerKind = "step" if what == "step" else "repeat"
            was_held = board.is_held(alert)
            change = board.fire(alert, Timer(kind=kind, due_at=at), policy, tuple(STAFF), at)
            has_rung_after |= was_held and change is not None
            alert = alert if change is None else change.alert
    assert not has_rung_after
    if "accept" in {first, second}:
        assert (alert.state, [timer.kind for timer in board.timers(alert)]) == ("in_progress", ["remind"])
