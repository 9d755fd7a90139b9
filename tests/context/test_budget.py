"""The budget's one rule: fill in the order of the table, never above the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context.budget import (
    NEEDS,
    PATIENT_SHELVES,
    QUESTION_SHELVES,
    LeftOut,
    Shelf,
    estimate_tokens,
    fit,
    left_out,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from context.budget import Taken


def shelf(what: str, *sizes: int, needs: tuple[str, ...] = ()) -> Shelf:
    return Shelf(what, sizes, lambda size: "x" * size, needs)


def test_take_fills_in_the_order_of_the_shelves() -> None:
    """What matters more is taken first; what is left goes to the next shelf."""
    shelves = [shelf("a", 3, 3), shelf("b", 2, 2)]
    assert take(shelves, 10, len) == (2, 2)
    assert take(shelves, 8, len) == (2, 1)
    assert take(shelves, 5, len) == (1, 1)
    assert take(shelves, 0, len) == (0, 0)


def test_take_cuts_a_shelf_at_its_first_item_that_does_not_fit() -> None:
    """A long newest item is not passed over for an older, shorter one of its shelf."""
    assert take([shelf("a", 9, 1), shelf("b", 1)], 5, len) == (0, 1)


def test_take_waits_for_the_shelves_that_one_needs() -> None:
    """Older results stay out while a latest one is missing."""
    shelves = [shelf("new", 2, 9), shelf("old", 1, needs=("new",))]
    assert take(shelves, 5, len) == (1, 0)
    assert take(shelves, 12, len) == (2, 1)


def test_take_counts_only_what_it_looks_at() -> None:
    """No item behind the cut is written out: a record may have thousands."""
    written: list[int] = []

    def item(number: int) -> str:
        written.append(number)
        return "xx"

    shelves = [Shelf("a", range(1000), item)]
    assert take(shelves, 7, len) == (3,)
    assert take(shelves, 5, len) == (2,)
    assert written == [0, 1, 2, 3]


sizes = st.lists(st.integers(0, 40), max_size=8)


def odd_counts(seed: int) -> Callable[[str], int]:
    """A counter whose count of a whole is not the sum of its parts."""
    return lambda text: len(text) + (len(text) * seed) % 7


@given(st.lists(sizes, min_size=1, max_size=5), st.integers(-10, 300), st.integers(0, 6), st.integers(0, 30))
def test_fit_is_within_its_limit_or_empty(all_sizes: list[list[int]], limit: int, seed: int, head: int) -> None:
    """Whatever the tokenizer, what is measured fits; only an empty choice may be above the limit."""
    shelves = [shelf(str(number), *each) for number, each in enumerate(all_sizes)]
    count = odd_counts(seed)

    def measure(taken: Taken) -> int:
        return count(
            "h" * head + "".join("x" * sum(each[:number]) for each, number in zip(all_sizes, taken, strict=True))
        )

    taken = fit(shelves, limit, count, measure)
    assert measure(taken) <= limit or not any(taken)
    assert all(number <= len(each) for number, each in zip(taken, all_sizes, strict=True))


@given(st.lists(sizes, min_size=1, max_size=5))
def test_fit_takes_everything_where_there_is_room(all_sizes: list[list[int]]) -> None:
    """With room for all, nothing is left out."""
    shelves = [shelf(str(number), *each) for number, each in enumerate(all_sizes)]

    def measure(taken: Taken) -> int:
        return sum(sum(each[:number]) for each, number in zip(all_sizes, taken, strict=True))

    taken = fit(shelves, 10_000, len, measure)
    assert taken == tuple(len(each) for each in all_sizes)
    assert left_out(shelves, taken) == ()


def test_left_out_counts_by_shelf() -> None:
    """What is not taken is named with its number."""
    assert left_out([shelf("a", 1, 1, 1), shelf("b", 1)], (1, 1)) == (LeftOut("a", 2),)


def test_tables_name_each_other() -> None:
    """Each shelf stands once, and what a shelf needs stands before it."""
    assert len(set(PATIENT_SHELVES)) == len(PATIENT_SHELVES)
    assert len(set(QUESTION_SHELVES)) == len(QUESTION_SHELVES)
    for what, needed in NEEDS.items():
        for each in needed:
            assert PATIENT_SHELVES.index(each) < PATIENT_SHELVES.index(what)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("abc", 1), ("abcd", 2), ("2026-01-15 06:10", 15), ("6.9 mmol/L", 6), ("\n\n", 2), ("ção", 2)],
)
def test_estimate_tokens_counts_digits_one_by_one(text: str, tokens: int) -> None:
    """Digits and signs count one each, letters by threes of their bytes, line ends one each."""
    assert estimate_tokens(text) == tokens


@given(st.text(max_size=200))
def test_estimate_tokens_of_any_text(text: str) -> None:
    """Any text has a count, and a longer one never a smaller."""
    assert 0 <= estimate_tokens(text) <= estimate_tokens(text + "7")
