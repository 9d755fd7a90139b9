"""The judge of the alert campaign fails on each promise that is broken, and on none that is kept."""

from __future__ import annotations

import pytest

from tests.faults.alert_promises import Came, Got, Judge, Verdict, Went

ONE, TWO = "phone.1", "phone.2"


def came(phone: str = ONE, at: int = 0, *, stood: int | None = None, why: str | None = "first", **more: object) -> Came:
    """A welcome at number ``at``; with ``stood`` and no ``why`` a resumed one."""
    shown = more.get("open", ())
    assert isinstance(shown, tuple)
    return Came(phone, 1.0, stood, why is None, why, at, shown)


def got(
    alert_seq: int, words: str, phone: str = ONE, *, alert_id: str = "", event: str = "raised", digest: int = 0
) -> Got:
    return Got(phone, 1.0, alert_seq, digest or hash((alert_seq, words)), event, alert_id or f"al-{words}", words)


@pytest.fixture
def judge() -> Judge:
    """Two phones that have just come, when nothing had ever happened."""
    made = Judge((ONE, TWO))
    made.take(came(ONE))
    made.take(came(TWO))
    return made


def raise_to_all(judge: Judge, alert_seq: int, words: str, *, above: int = 0) -> None:
    judge.accepted(words, f"al-{words}", alert_seq, above=above)
    for phone in (ONE, TWO):
        judge.take(got(alert_seq, words, phone))


def test_judge_finds_nothing_where_every_promise_is_kept(judge: Judge) -> None:
    """Delivery to all, a resume with replay, an ending and a told gap with its snapshot break nothing."""
    raise_to_all(judge, 1, "a")
    judge.take(Went(TWO, 1.0, "cut"))
    judge.accepted("b", "al-b", 2, above=1)
    judge.take(got(2, "b"))
    assert judge.missing() == {"b": [TWO]}
    judge.take(came(TWO, 2, stood=1, why=None))
    judge.take(got(2, "b", TWO))
    judge.take(came(ONE, 2, stood=2, why="epoch_changed", open=(("al-a", "a"), ("al-b", "b"))))
    assert judge.missing() == {}
    judge.settle()
    for phone in (ONE, TWO):
        judge.take(got(3, "a", phone, alert_id="al-a", event="stood_down"))
    assert judge.verdict == Verdict()
    assert (judge.accepted_count, judge.events, judge.seen["gap told: epoch_changed"]) == (2, 3, 1)


def test_accepted_alert_that_one_phone_never_shows_is_lost(judge: Judge) -> None:
    """One phone of two without an accepted alert is one loss, said with its words."""
    judge.accepted("a", "al-a", 1, above=0)
    judge.take(got(1, "a"))
    judge.settle()
    assert judge.verdict == Verdict(lost=1)
    assert "'a'" in judge.told[0]


def test_alert_that_nobody_shows_is_lost_for_everybody(judge: Judge) -> None:
    """An acceptance without any event is a loss per phone."""
    judge.accepted("a", "al-a", None, above=0)
    judge.settle()
    assert judge.verdict == Verdict(lost=2)


def test_snapshot_without_an_open_alert_takes_it_from_the_screen(judge: Judge) -> None:
    """A phone that begins anew shows what the snapshot has; an accepted alert that is not in it is lost."""
    raise_to_all(judge, 1, "a")
    judge.take(came(ONE, 1, stood=1, why="epoch_changed"))
    judge.settle()
    assert judge.verdict == Verdict(lost=1)


def test_hole_that_nobody_told_of_is_a_silent_gap(judge: Judge) -> None:
    """A number that is passed over is a silent gap, and what came after it is not shown."""
    judge.take(got(1, "a"))
    judge.take(got(3, "c"))
    assert judge.verdict == Verdict(silent_gaps=1)
    assert judge.position(ONE) == 1


def test_beginning_anew_without_a_reason_is_a_silent_gap(judge: Judge) -> None:
    """``resumed`` false needs its ``gap_reason``: without it a phone does not know that it lacks something."""
    judge.take(Came(ONE, 1.0, 0, False, None, 9, ()))
    assert judge.verdict == Verdict(silent_gaps=1)


def test_told_gap_is_no_silent_one(judge: Judge) -> None:
    """A phone that retention has passed, and that is told so, has lost nothing silently."""
    raise_to_all(judge, 1, "a")
    judge.take(Went(TWO, 1.0, "away"))
    judge.accepted("b", "al-b", 2, above=1)
    judge.take(got(2, "b"))
    judge.closed("al-b")
    judge.take(got(3, "b", event="stood_down"))
    judge.take(came(TWO, 3, stood=1, why="too_far", open=(("al-a", "a"),)))
    judge.settle()
    assert judge.verdict == Verdict()


def test_told_gap_does_not_excuse_an_open_alert(judge: Judge) -> None:
    """What is still open must be in the snapshot, also where retention has passed."""
    judge.accepted("a", "al-a", 1, above=0)
    judge.take(got(1, "a"))
    judge.take(came(TWO, 1, stood=0, why="too_far"))
    judge.settle()
    assert judge.verdict == Verdict(lost=1)


def test_event_that_comes_again_or_late_on_one_connection_breaks_the_order(judge: Judge) -> None:
    """A connection is sent each event once, in the order of the numbers."""
    for alert_seq, words in ((1, "a"), (2, "b"), (1, "a"), (2, "b")):
        judge.take(got(alert_seq, words))
    assert judge.verdict == Verdict(order=2)


def test_two_events_under_one_number_break_the_order(judge: Judge) -> None:
    """All phones are sent the same bytes under one number."""
    judge.take(got(1, "a", digest=1))
    judge.take(got(1, "a", TWO, digest=2))
    assert judge.verdict == Verdict(order=1)


def test_alert_before_one_that_was_accepted_earlier_breaks_the_order(judge: Judge) -> None:
    """What is raised after another one was accepted has a higher number."""
    raise_to_all(judge, 1, "a")
    raise_to_all(judge, 2, "b", above=judge.highest)
    assert judge.verdict == Verdict()
    judge.accepted("c", "al-c", 2, above=judge.highest)
    assert judge.verdict.order == 1


def test_acceptance_that_names_another_number_breaks_the_order(judge: Judge) -> None:
    """The number that the raiser was told is the number under which phones were shown it."""
    judge.accepted("a", "al-a", 2, above=0)
    judge.accepted("b", "al-b", 1, above=0)
    for phone in (ONE, TWO):
        judge.take(got(1, "a", phone))
        judge.take(got(2, "b", phone))
    judge.settle()
    assert judge.verdict == Verdict(order=2)


def test_phone_that_resumes_where_it_did_not_stand_breaks_the_order(judge: Judge) -> None:
    """``resumed`` is about the phone's own position, and the welcome never stands before it."""
    raise_to_all(judge, 1, "a")
    judge.take(came(ONE, 0, stood=1, why=None))
    judge.take(came(TWO, 5, stood=3, why=None))
    assert judge.verdict == Verdict(order=2)


def test_one_call_shown_as_two_alerts_is_a_duplicate(judge: Judge) -> None:
    """A raise that was sent again must not ring a second time under another id, live or out of a snapshot."""
    judge.take(got(1, "a", alert_id="al-1"))
    judge.take(got(2, "a", alert_id="al-2"))
    assert judge.verdict.duplicates >= 1
    before = judge.verdict.duplicates
    judge.take(came(TWO, 2, stood=0, why="expired", open=(("al-1", "a"), ("al-2", "a"))))
    assert judge.verdict.duplicates == before + 1


def test_one_alert_raised_under_two_numbers_is_a_duplicate(judge: Judge) -> None:
    """The same alert recorded twice rings twice, whatever its id."""
    judge.take(got(1, "a"))
    judge.take(got(2, "a"))
    assert judge.verdict == Verdict(duplicates=1)


def test_alert_in_the_snapshot_and_as_an_event_is_shown_once(judge: Judge) -> None:
    """What was raised while the snapshot was made comes twice by the same id, which is one alert."""
    judge.take(came(ONE, 0, stood=0, why="expired", open=(("al-a", "a"),)))
    judge.take(got(1, "a"))
    assert judge.verdict == Verdict()


def test_joined_alert_is_shown_by_its_line(judge: Judge) -> None:
    """Words that were added to an open alert count as the raise that brought them."""
    raise_to_all(judge, 1, "a")
    judge.accepted("b", "al-a", 2, above=1)
    for phone in (ONE, TWO):
        judge.take(got(2, "a\nb", phone, alert_id="al-a", event="joined"))
    judge.settle()
    assert judge.verdict == Verdict()


def test_only_phones_that_are_here_have_a_position(judge: Judge) -> None:
    """A phone without a connection is not one that has been reached."""
    raise_to_all(judge, 1, "a")
    judge.take(Went(TWO, 1.0, "cut"))
    assert (judge.position(ONE), judge.position(TWO)) == (1, None)
