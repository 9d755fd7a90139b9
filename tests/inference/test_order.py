"""The order of claims and the forecast, as pure rules."""

from __future__ import annotations

import heapq
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from chatd.inference.lanes import LANES, STAT_RUN, LaneName
from chatd.inference.order import claim_order, eta_ms, line, slots_free_ms

NAMES: list[LaneName] = [lane.name for lane in LANES]


@given(counts=st.lists(st.integers(0, 6), max_size=8))
def test_line_serves_every_doctor_once_a_round(counts: list[int]) -> None:
    """Between two jobs of one doctor every doctor who waits is served exactly once, in the order of the turns."""
    turns = [f"d{i}" for i in range(len(counts))]
    jobs = {doctor: [f"{doctor}:{n}" for n in range(count)] for doctor, count in zip(turns, counts, strict=True)}
    expected = sorted((n, i) for i, count in enumerate(counts) for n in range(count))
    assert line(turns, jobs) == [f"d{i}:{n}" for n, i in expected]


def test_line_forgets_doctors_without_jobs() -> None:
    """A doctor whose jobs are all past their deadline takes no turn."""
    assert line(["a", "b", "c"], {"a": ["1", "2"], "c": ["3"]}) == ["1", "3", "2"]


@given(counts=st.lists(st.integers(0, 9), min_size=4, max_size=4), run=st.integers(0, STAT_RUN - 1))
def test_claim_order_keeps_lanes_apart_and_lets_one_of_a_run_pass(counts: list[int], run: int) -> None:
    """Each lane keeps its own order, lower lanes wait for higher ones, and no run of stat claims is too long."""
    waiting = {name: [f"{name}{n}" for n in range(count)] for name, count in zip(NAMES, counts, strict=True)}
    order = claim_order(waiting, run=run)
    assert sorted(job for _, job in order) == sorted(job for line in waiting.values() for job in line)
    for name in NAMES:
        assert [job for lane, job in order if lane == name] == waiting[name]
    others = [NAMES.index(lane) for lane, _ in order if lane != "stat"]
    assert others == sorted(others)
    others_left, stats_left, in_a_row = len(others), counts[0], run
    for lane, _ in order:
        if lane == "stat":
            assert in_a_row < STAT_RUN - 1 or not others_left
            stats_left, in_a_row = stats_left - 1, in_a_row + 1
        else:
            # Not sooner than it must be.
            assert in_a_row == STAT_RUN - 1 or not stats_left
            others_left, in_a_row = others_left - 1, 0


@given(
    slots=st.integers(1, 6),
    ages=st.lists(st.integers(0, 30_000), max_size=8),
    service_ms=st.integers(100, 20_000),
    positions=st.integers(1, 40),
)
def test_eta_is_what_a_run_through_would_give(slots: int, ages: list[int], service_ms: int, positions: int) -> None:
    """The closed form equals handing the next free slot to one job after the other."""
    free = slots_free_ms(slots=slots, running_since=[1_000_000 - a for a in ages], service_ms=service_ms, now_ms=10**6)
    assert len(free) == slots
    assert all(0 <= ms <= service_ms for ms in free)
    heap = list(free)
    heapq.heapify(heap)
    etas = []
    for position in range(1, positions + 1):
        begins = heapq.heappop(heap)
        heapq.heappush(heap, begins + service_ms)
        etas.append(eta_ms(position, free, service_ms))
        assert etas[-1] == begins
    assert all(a <= b for a, b in pairwise(e for e in etas if e is not None))


def test_eta_without_slots_is_unknown() -> None:
    """No worker, no promise."""
    free = slots_free_ms(slots=0, running_since=[5], service_ms=100, now_ms=10)
    assert eta_ms(1, free, 100) is None


def test_free_slots_begin_at_once_and_running_ones_when_they_end() -> None:
    """Two of three slots are busy: the next begins at once, the others when a text of 10 s is done."""
    free = slots_free_ms(slots=3, running_since=[-4_000, -9_000], service_ms=10_000, now_ms=0)
    assert [eta_ms(p, free, 10_000) for p in (1, 2, 3, 4)] == [0, 1_000, 6_000, 10_000]


def test_overdue_text_is_not_promised_for_now() -> None:
    """A text that takes longer than usual is given a quarter of the usual time."""
    free = slots_free_ms(slots=1, running_since=[-60_000], service_ms=10_000, now_ms=0)
    assert free == (2_500,)


def test_more_texts_than_slots_leave_the_last_to_end() -> None:
    """After a worker has gone the first texts to end free no slot."""
    free = slots_free_ms(slots=1, running_since=[-8_000, -2_000], service_ms=10_000, now_ms=0)
    assert free == (8_000,)
