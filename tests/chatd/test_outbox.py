"""The outbox: lanes in order, bytes bounded, text merged, nobody made to wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.gateway.outbox import Lane, Outbox, SlowConsumer, Words


async def drain(outbox: Outbox) -> list[bytes | Words]:
    """All that waits, in the order of leaving."""
    frames: list[bytes | Words] = []
    while outbox.waiting_bytes:
        frames.append(await outbox.take())
    return frames


async def test_take_lanes_alerts_first() -> None:
    """An alert overtakes answers, and answers overtake text deltas."""
    outbox = Outbox(1000)
    outbox.offer_delta("r1", "findings", "text")
    outbox.offer(b"answer")
    outbox.offer(b"alert", Lane.ALERT)
    frames = await drain(outbox)
    assert frames[:2] == [b"alert", b"answer"]
    assert frames[2] == Words("r1", "findings", "text", 1)


async def test_offer_full_refuses_and_keeps() -> None:
    """offer raises SlowConsumer when a frame does not fit and leaves the outbox as it was."""
    outbox = Outbox(10)
    outbox.offer(b"12345678")
    with pytest.raises(SlowConsumer) as slow:
        outbox.offer(b"123")
    assert (slow.value.waiting_bytes, slow.value.max_bytes) == (8, 10)
    outbox.offer(b"12")
    assert await drain(outbox) == [b"12345678", b"12"]


async def test_deltas_waiting_together_leave_as_one() -> None:
    """Pieces of one section and attempt that wait together leave as one, in the order in which they began to wait."""
    outbox = Outbox(1000)
    for text in ("ST ", "elevation ", "V2-V6"):
        outbox.offer_delta("r1", "findings", text)
    outbox.offer_delta("r1", "headline", "STEMI")
    outbox.offer_delta("r1", "headline", "again", 2)
    assert await drain(outbox) == [
        Words("r1", "findings", "ST elevation V2-V6", 1),
        Words("r1", "headline", "STEMI", 1),
        Words("r1", "headline", "again", 2),
    ]


async def test_drop_deltas_forgets_one_response() -> None:
    """When the final frame comes, waiting text of that response goes and that of others stays."""
    outbox = Outbox(1000)
    outbox.offer_delta("r1", "findings", "old")
    outbox.offer_delta("r2", "findings", "stays")
    outbox.drop_deltas("r1")
    assert await drain(outbox) == [Words("r2", "findings", "stays", 1)]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.binary(min_size=1, max_size=20), st.sampled_from([Lane.ALERT, Lane.REPLY])),
        st.tuples(st.just("delta"), st.sampled_from(["r1", "r2"]), st.text(min_size=1, max_size=8)),
        st.tuples(st.just("drop"), st.sampled_from(["r1", "r2"])),
        st.tuples(st.just("take")),
    )
)


@given(steps)
async def test_outbox_any_use_stays_bounded(sequence: list[tuple[object, ...]]) -> None:
    """In any use the waiting bytes stay within the bound and come back to zero when all is taken."""
    outbox = Outbox(64)
    refusals = []
    for step in sequence:
        try:
            match step:
                case ("offer", bytes(frame), Lane() as lane):
                    outbox.offer(frame, lane)
                case ("delta", str(response_id), str(text)):
                    outbox.offer_delta(response_id, "findings", text)
                case ("drop", str(response_id)):
                    outbox.drop_deltas(response_id)
                case _ if outbox.waiting_bytes:
                    await outbox.take()
        except SlowConsumer as slow:
            refusals.append(slow)
        assert 0 <= outbox.waiting_bytes <= 64
    assert all(slow.waiting_bytes <= slow.max_bytes for slow in refusals)
    await drain(outbox)
    assert outbox.waiting_bytes == 0
