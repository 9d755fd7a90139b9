"""How many connections one person may hold, as pure rules."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatd.gateway.seats import Seats


def test_the_oldest_goes_for_the_third() -> None:
    """Two have room; the third takes the first one's seat, the fourth the second one's."""
    seats = Seats[str]()
    assert [seats.take(one, "p", one, 2) for one in "abcd"] == [None, None, "a", "b"]


def test_the_same_device_goes_first() -> None:
    """A phone that comes back while its dead line is still open replaces that line and not the other device."""
    seats = Seats[str]()
    seats.take("tablet", "p", "d-1", 2)
    seats.take("dead line", "p", "d-2", 2)
    assert seats.take("phone", "p", "d-2", 2) == "dead line"
    assert seats.take("unnamed", "p", None, 2) == "tablet"


def test_a_seat_that_was_left_is_free() -> None:
    """Who leaves makes room; who leaves twice, or never sat, changes nothing."""
    seats = Seats[str]()
    seats.take("a", "p", None, 1)
    seats.leave("a")
    seats.leave("a")
    seats.leave("nobody")
    assert seats.take("b", "p", None, 1) is None
    assert seats.take("b", "p", None, 1) is None
    assert seats.take("c", "p", None, 1) == "b"


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.sampled_from("pq"), st.sampled_from([None, "d", "e"]))),
)
def test_no_place_holds_more(most: int, steps: list[tuple[bool, int, str, str | None]]) -> None:
    """Whoever comes and goes, no place has more than its seats, and only one of the same place goes for another."""
    seats, seated = Seats[int](), dict[int, str]()
    for comes, holder, place, device in steps:
        if not comes:
            seats.leave(holder)
            seated.pop(holder, None)
            continue
        going = seats.take(holder, place, device, most)
        if going is not None:
            assert going != holder
            assert seated.pop(going) == place
        seated.setdefault(holder, place)
        assert max(sum(at == one for at in seated.values()) for one in "pq") <= most
