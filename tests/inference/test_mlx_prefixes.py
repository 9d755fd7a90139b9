"""The store of shared beginnings: where prompts are cut, what is found again, and what leaves first."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from chatd.inference.prefixes import MIN_ADDED_TOKENS, Boundary, PrefixStore, boundaries

_LONG = MIN_ADDED_TOKENS


def _segment(first: int, tokens: int = _LONG) -> tuple[int, ...]:
    return tuple(range(first, first + tokens))


def _boundary(name: str, depth: int) -> Boundary:
    return Boundary(name.encode(), 100 * (depth + 1), depth)


def test_boundaries_equal_beginnings_share_keys_and_others_do_not() -> None:
    """Two prompts of one department agree on the first two keys; another salt agrees on none."""
    one = boundaries((_segment(1), _segment(2), _segment(3), (9,)), "north")
    two = boundaries((_segment(1), _segment(2), _segment(4), (9,)), "north")
    other = boundaries((_segment(1), _segment(2), _segment(3), (9,)), "south")
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, True, False]
    assert not {boundary.key for boundary in one} & {boundary.key for boundary in other}
    assert [boundary.tokens for boundary in one] == [_LONG, 2 * _LONG, 3 * _LONG]


def test_boundaries_whole_prompt_is_one_only_when_asked_for() -> None:
    """A model needs a token to go on from; a beginning that is made ready ends where it ends."""
    segments = (_segment(1), _segment(2))
    assert len(boundaries(segments, "")) == 1
    assert boundaries(segments, "", is_whole=True) == boundaries((*segments, (1,)), "")


@given(st.lists(st.lists(st.integers(0, 2**31), max_size=150), max_size=6), st.lists(st.integers(0, 9), max_size=80))
def test_boundaries_depend_on_what_stands_before_them_alone(segments: list[list[int]], tail: list[int]) -> None:
    """Whatever follows, the same beginning is cut in the same places with the same keys, far enough apart."""
    whole = boundaries(segments, "s", is_whole=True)
    assert boundaries([*segments, tail], "s") == whole
    assert boundaries([*segments, tail, [1]], "s")[: len(whole)] == whole
    ends = [0, *(boundary.tokens for boundary in whole)]
    assert all(end - start >= MIN_ADDED_TOKENS for start, end in pairwise(ends))


def test_store_finds_the_deepest_kept_beginning() -> None:
    """Of three boundaries with the middle one kept, that one; with none, nothing."""
    store: PrefixStore[str] = PrefixStore(10)
    prompt = [_boundary("hospital", 0), _boundary("department", 1), _boundary("patient", 2)]
    assert store.use(prompt) is None
    store.put(prompt[1], "kv", 5)
    assert store.use(prompt) == (prompt[1], "kv")
    assert store.longest(prompt) == prompt[1]


def test_store_lets_the_narrowest_go_first_and_the_longest_unused_of_them() -> None:
    """Two patients and a hospital are kept; a department needs room: the patient that was not used leaves."""
    store: PrefixStore[str] = PrefixStore(30)
    hospital, department = _boundary("hospital", 0), _boundary("department", 1)
    ann, bea = _boundary("ann", 3), _boundary("bea", 3)
    for boundary in (hospital, ann, bea):
        assert store.put(boundary, "kv", 10)
    store.use([hospital, ann])
    assert store.put(department, "kv", 10)
    assert bea not in store
    assert all(boundary in store for boundary in (hospital, department, ann))


def test_store_refuses_what_only_wider_ones_would_have_to_leave_for() -> None:
    """A patient does not push a hospital out, and nothing is lost by trying."""
    store: PrefixStore[str] = PrefixStore(25)
    hospital, ann = _boundary("hospital", 0), _boundary("ann", 3)
    store.put(hospital, "kv", 20)
    assert store.put(_boundary("eva", 4), "kv", 5)
    assert not store.put(ann, "kv", 10)
    assert len(store) == 2
    assert hospital in store


def test_store_of_no_bytes_keeps_nothing() -> None:
    """0 bytes turn it off."""
    store: PrefixStore[str] = PrefixStore(0)
    assert not store.put(_boundary("hospital", 0), "kv", 1)
    assert len(store) == 0


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4), st.integers(1, 40)), max_size=60))
def test_store_never_holds_more_than_its_bytes(puts: list[tuple[int, int, int]]) -> None:
    """Any order of puts and uses: the sum is right, within the budget, and each kept value is found."""
    store: PrefixStore[int] = PrefixStore(100)
    sizes: dict[bytes, int] = {}
    for number, depth, size in puts:
        boundary = Boundary(f"{number}.{depth}".encode(), number, depth)
        if boundary not in store and store.put(boundary, size, size):
            sizes[boundary.key] = size
            assert store.use([boundary]) == (boundary, size)
        sizes = {key: value for key, value in sizes.items() if Boundary(key, 0, 0) in store}
        assert store.size_bytes == sum(sizes.values()) <= 100
        assert len(store) == len(sizes)
