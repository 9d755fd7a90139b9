"""Escalation policies as data: the shipped file holds together, and a hospital's own takes the place of its rows."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise
from typing import get_args

import msgspec
import pytest

from chatd.alerts.board import raise_
from chatd.alerts.model import Priority, Raise
from chatd.alerts.policies import Policies, Policy
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertTarget

SHIPPED = Policies()
TEAMS = ("stemi", "stroke", "trauma", "arrest")


def chain_s(policy: Policy) -> int:
    """From the first ring until everybody knows that nobody has answered."""
    return sum(policy.wait_after_step_s(step) for step in range(len(policy.steps) + 1))


def own(**parts: object) -> bytes:
    return json.dumps(parts).encode()


ROW: dict[str, object] = {
    "reason": "A reason that is long enough to be one.",
    "repeat_s": [30],
    "steps": [{"after_s": 90, "to": "user:dr.santos"}],
    "unanswered_after_s": 60,
    "resolve_within_s": 600,
    "remind_again_s": 60,
    "expires_after_s": 3600,
    "stand_down": ["matron"],
    "dedup_within_s": 60,
}


def test_policies_are_there_for_each_priority() -> None:
    """Every department, known or not, has a policy for each priority, and the acute ones call sooner."""
    for department in ("cardiology", "emergency", "surgery", "icu", "elsewhere"):
        for priority in get_args(Priority):
            assert not SHIPPED.choose(department, priority).slots
    acute, other = (SHIPPED.choose(department, "critical") for department in ("icu", "surgery"))
    assert chain_s(acute) < chain_s(other)


def test_policies_call_sooner_for_more() -> None:
    """A higher priority rings, escalates and asks again sooner than the one below it."""
    ranked = [SHIPPED.choose("cardiology", priority) for priority in ("critical", "high", "normal", "low")]
    for sooner, later in pairwise(ranked):
        assert sooner.repeat_s[0] < later.repeat_s[0]
        assert sooner.wait_after_step_s(0) < later.wait_after_step_s(0)
        assert sooner.resolve_within_s < later.resolve_within_s


@pytest.mark.parametrize("policy", SHIPPED.all(), ids=lambda policy: policy.id)
def test_policy_holds_together(policy: Policy) -> None:
    """Rings back off, fit into their step, end long after the chain, and two timers are not due at one moment."""
    assert list(policy.repeat_s) == sorted(policy.repeat_s)
    assert policy.repeat_s[0] < policy.wait_after_step_s(0)
    assert policy.expires_after_s > 2 * chain_s(policy)
    assert policy.resolve_within_s > policy.wait_after_step_s(0)
    assert "charge_nurse" in policy.stand_down
    for step in range(len(policy.steps) + 1):
        rings = 0
        for number in range(1, 50):
            rings += policy.ring_wait_s(number)
            assert rings != policy.wait_after_step_s(step)


@pytest.mark.parametrize("team", TEAMS)
def test_team_has_places_for_roles(team: str) -> None:
    """A team's chain calls everybody at once or first, every place is told in two languages, and each can be taken."""
    policy = SHIPPED.choose("cardiology", "critical", team)
    assert policy.steps[0].target("cardiology") == AlertTarget(department="cardiology")
    assert chain_s(policy) <= 180
    assert {"anaesthesia", "nurse"} <= {slot.id for slot in policy.slots}
    for slot in policy.slots:
        assert slot.label
        assert slot.label_pt
        assert bool(slot.role) == bool(slot.roles)
        assert set(slot.roles).isdisjoint(slot.roles_named)


def test_options_say_what_is_sent() -> None:
    """The canned answers are accept with a time, or decline with a reason, each in two languages, each once."""
    policy = SHIPPED.choose("cardiology", "critical")
    for options in (policy.ask, policy.tell):
        assert len({option.id for option in options}) == len(options) > 0
        for option in options:
            assert option.label_pt
            assert option.label_pt != option.label
            assert (option.reason is not None) == (option.answer == "decline")
            assert option.eta_min is None or option.answer == "accept"


def test_template_unknown_is_refused() -> None:
    """A policy that is asked for and not there refuses aloud."""
    with pytest.raises(RemoteProtocolError) as caught:
        SHIPPED.choose("cardiology", "critical", "meteor")
    assert caught.value.code == ErrorCode.BAD_REQUEST


def test_own_file_takes_the_place_of_rows() -> None:
    """What a hospital's file names is its own; everything else stays as shipped."""
    policies = Policies(own(policies={"ward": ROW}, departments={"surgery": {"high": "ward"}}))
    mine = policies.choose("surgery", "high")
    assert (mine.id, mine.stand_down) == ("ward", ("matron",))
    assert mine.steps[0].target("surgery") == AlertTarget(user="dr.santos")
    assert policies.choose("surgery", "low") == SHIPPED.choose("surgery", "low")
    assert policies.choose("icu", "critical") == SHIPPED.choose("icu", "critical")
    options = policies.choose("icu", "critical").ask
    assert options == SHIPPED.choose("icu", "critical").ask
    again = Policies(own(options={"tell": [{"id": "read", "label": "Read", "label_pt": "Lido", "answer": "accept"}]}))
    assert [option.id for option in again.choose("icu", "low").tell] == ["read"]
    assert again.choose("icu", "low").ask == options


def test_own_file_of_a_family() -> None:
    """A family that a hospital names anew holds for the shipped teams."""
    policies = Policies(own(families={"technician": {"roles": ["perfusionist"]}}))
    slots = {slot.id: slot for slot in policies.choose("icu", "critical", "stemi").slots}
    assert (slots["technician"].roles, slots["technician"].roles_named) == (("perfusionist",), ())


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (b"{", "truncated"),
        (own(policies={"ward": ROW | {"repeat_s": []}}), "length"),
        (own(policies={"ward": ROW | {"unanswered_after_s": 1}}), ">= 5"),
        (own(policies={"ward": ROW | {"steps": [{"after_s": 60, "to": "everybody"}]}}), "regex"),
        (own(policies={"ward": ROW | {"step": []}}), "unknown field"),
        (own(policies={"ward": {key: ROW[key] for key in ROW if key != "reason"}}), "reason"),
        (own(departments={"surgery": {"high": "ward"}}), "unknown policy"),
        (own(departments={"surgery": {"urgent": "high"}}), "urgent"),
        (own(departments={"surgery": {"high": "stemi"}}), "mere priority"),
        (own(options={"ask": [{"id": "off", "label": "Off", "answer": "stand_down"}]}), "neither"),
        (
            own(policies={"ward": ROW | {"slots": [{"id": "a", "label": "A", "label_pt": "A", "role": "porter"}]}}),
            "unknown family",
        ),
        (
            own(policies={"ward": ROW | {"slots": [{"id": "a", "label": "A", "label_pt": "A", "role": ""}] * 2}}),
            "slot twice",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_own_file_that_contradicts_itself(file: bytes, told: str) -> None:
    """A file that cannot be meant is refused when the gateway starts, and the message says what is wrong."""
    with pytest.raises(ValueError, match="alert policies") as caught:
        Policies(file)
    assert told in str(caught.value)


def test_policy_of_an_alert_whose_row_is_gone() -> None:
    """An alert that was raised by a policy which the file no longer has goes on by its priority."""
    now = datetime(2026, 1, 15, 7, 45, tzinfo=UTC)
    command = Raise(
        key="k", raised_by="service:lab", department="icu", to=AlertTarget(user="a"), priority="critical", content="?"
    )
    team = SHIPPED.choose("icu", "critical", "stemi")
    alert = raise_(command, alert_id="alert-1", policy=team, people=(), now=now).alert
    assert SHIPPED.of(alert) == team
    alert = msgspec.structs.replace(alert, policy="ward")
    assert SHIPPED.of(alert).id == "critical.acute"
