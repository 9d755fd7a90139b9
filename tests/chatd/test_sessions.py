"""The session log on a real Redis: once is once, whoever repeats it."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from chatd.replies.sessions import Fenced, SessionLost, Sessions, response_id_of, session_key
from context.seal import KeyRing, Sealer
from protocols.frames import Resume

KEY = session_key("dr.santos.cardio", "cardiology", "sess_1")
LEASE_MS = 3000


@pytest.fixture
def sessions(redis: Redis) -> Sessions:
    """Session logs of at most five events."""
    return Sessions(redis, Sealer(KeyRing.generate()), b"k" * 32, node_id="n1", ttl_ms=1_800_000, max_events=5)


async def accept(
    sessions: Sessions, epoch: str, msg_id: str = "m1", body: bytes = b"body", owner: str = "n1", now_ms: int = 1000
) -> tuple[str, str]:
    """Accept one question; returns outcome and response id."""
    taken = await sessions.accept(
        KEY,
        epoch,
        user_id="dr.santos.cardio",
        client_msg_id=msg_id,
        body=body,
        response_id=response_id_of(KEY, epoch, msg_id),
        request=b"request " + msg_id.encode(),
        owner=owner,
        now_ms=now_ms,
        lease_ms=LEASE_MS,
        messages_per_minute=3,
    )
    return taken.outcome, taken.response_id


async def test_open_twice_is_one_session(sessions: Sessions) -> None:
    """The second open finds the epoch of the first."""
    first, second = await sessions.open(KEY, now_ms=0), await sessions.open(KEY, now_ms=0)
    assert (first.existed, second.existed) == (False, True)
    assert first.epoch == second.epoch
    assert not second.was_lost(first.epoch)


async def test_open_after_redis_lost_memory_tells_so(sessions: Sessions, redis: Redis) -> None:
    """After Redis lost its memory the epoch is another one, and the old one is known as lost."""
    before = await sessions.open(KEY, now_ms=0)
    await redis.flushall()
    after = await sessions.open(KEY, now_ms=0)
    assert not after.existed
    assert after.epoch != before.epoch
    assert after.was_lost(before.epoch)


async def test_open_counts_rest_by_one_clock(sessions: Sessions, redis: Redis) -> None:
    """A gateway whose clock is two hours ahead finds no session idle; what rested rests, until a person acts."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    assert (await sessions.open(KEY, now_ms=7_200_000)).idle_ms < 3_600_000
    hour_ago_ms = int((await redis.time())[0]) * 1000 - 3_600_000
    [found] = [key async for key in redis.scan_iter() if await redis.type(key) == b"hash"]
    for acts in (
        lambda: sessions.append(KEY, epoch, "ctx", b"{}", is_act=True),
        lambda: accept(sessions, epoch, now_ms=-7_200_000),
    ):
        await redis.hset(found, "acted", hour_ago_ms)
        await sessions.append(KEY, epoch, f"by itself {acts}", b"{}")
        assert (await sessions.open(KEY, now_ms=0)).idle_ms >= 3_600_000
        await acts()
        assert (await sessions.open(KEY, now_ms=0)).idle_ms < 3_600_000


async def test_accept_same_id_is_duplicate(sessions: Sessions) -> None:
    """A resend gets the first response id and costs nothing of the rate."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    first = await accept(sessions, epoch)
    again = [await accept(sessions, epoch) for _ in range(5)]
    assert first[0] == "accepted"
    assert again == [("duplicate", first[1])] * 5
    assert (await accept(sessions, epoch, "m2"))[0] == "accepted"


async def test_accept_same_id_other_body_conflicts(sessions: Sessions) -> None:
    """The same id with another body is refused."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    await accept(sessions, epoch)
    assert (await accept(sessions, epoch, body=b"other"))[0] == "conflict"


async def test_accept_rate_is_a_sliding_minute(sessions: Sessions) -> None:
    """The fourth question within a minute waits until the first one is a minute old."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    for n in range(3):
        assert (await accept(sessions, epoch, f"m{n}", now_ms=n * 1000))[0] == "accepted"
    assert (await accept(sessions, epoch, "m3", now_ms=59_999))[0] == "limited"
    assert (await accept(sessions, epoch, "m3", now_ms=60_000))[0] == "accepted"
    assert (await accept(sessions, epoch, "m4", now_ms=60_500))[0] == "limited"


async def test_accept_concurrent_resends_open_one_run(sessions: Sessions) -> None:
    """Of many resends at once one is accepted."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    outcomes = await asyncio.gather(*(accept(sessions, epoch) for _ in range(20)))
    assert [outcome for outcome, _ in outcomes].count("accepted") == 1
    assert len(await sessions.open_requests(KEY)) == 1


async def test_accept_lost_epoch_raises(sessions: Sessions, redis: Redis) -> None:
    """Nothing is accepted into a session that Redis has lost."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    await redis.flushall()
    with pytest.raises(SessionLost):
        await accept(sessions, epoch)


async def test_append_same_event_once(sessions: Sessions) -> None:
    """Appending an event again gives its first seq and adds nothing."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    assert await sessions.append(KEY, epoch, "context:1", b"a") == (1, True, epoch)
    assert await sessions.append(KEY, epoch, "context:1", b"b") == (1, False, epoch)
    assert await sessions.append(KEY, epoch, "context:2", b"c") == (2, True, epoch)
    assert [(e.seq, e.frame) for e in await sessions.read(KEY, epoch, 0)] == [(1, b"a"), (2, b"c")]


async def test_append_by_a_node_that_lost_the_run_is_fenced(sessions: Sessions) -> None:
    """After another node took over a lapsed run, the first node's writes are refused."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    _, response_id = await accept(sessions, epoch, owner="n1", now_ms=0)
    kept = await sessions.keep([(KEY, epoch)], owner="n2", now_ms=LEASE_MS + 1, lease_ms=LEASE_MS)
    assert kept[KEY, epoch] is not None
    assert kept[KEY, epoch].adopted == ((response_id, b"request m1"),)
    with pytest.raises(Fenced):
        await sessions.append(KEY, epoch, f"facts:{response_id}", b"f", response_id=response_id, owner="n1")
    placed = await sessions.append(
        KEY, epoch, f"final:{response_id}", b"f", response_id=response_id, owner="n2", ends_run=True
    )
    assert placed == (1, True, epoch)
    assert await sessions.open_requests(KEY) == []


async def test_keep_renewed_run_is_not_taken(sessions: Sessions) -> None:
    """A run whose node keeps renewing is never taken over."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    _, response_id = await accept(sessions, epoch, owner="n1", now_ms=0)
    working = {(KEY, epoch): [response_id]}
    for now_ms in range(0, 20_000, 1000):
        await sessions.keep([(KEY, epoch)], owner="n1", now_ms=now_ms, lease_ms=LEASE_MS, working=working)
        other = await sessions.keep([(KEY, epoch)], owner="n2", now_ms=now_ms + 500, lease_ms=LEASE_MS)
        assert other[KEY, epoch] is not None
        assert other[KEY, epoch].adopted == ()


async def test_keep_run_whose_opening_was_not_heard_is_taken_up(sessions: Sessions) -> None:
    """A run that was opened by a command whose reply got lost lapses, and its own node takes it up."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    _, response_id = await accept(sessions, epoch, owner="n1", now_ms=0)
    for now_ms in range(0, LEASE_MS + 1, 1000):
        early = await sessions.keep([(KEY, epoch)], owner="n1", now_ms=now_ms, lease_ms=LEASE_MS)
        assert early[KEY, epoch] is not None
        assert early[KEY, epoch].adopted == ()
    late = await sessions.keep([(KEY, epoch)], owner="n1", now_ms=LEASE_MS + 1, lease_ms=LEASE_MS)
    assert late[KEY, epoch] is not None
    assert late[KEY, epoch].adopted == ((response_id, b"request m1"),)


async def test_keep_on_a_node_that_goes_takes_nothing_over(sessions: Sessions) -> None:
    """A draining node leaves lapsed runs to others."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    _, response_id = await accept(sessions, epoch, owner="n1", now_ms=0)
    late_ms = LEASE_MS + 1
    leaving = await sessions.keep([(KEY, epoch)], owner="n2", now_ms=late_ms, lease_ms=LEASE_MS, take_over=False)
    assert leaving[KEY, epoch] is not None
    assert leaving[KEY, epoch].adopted == ()
    other = await sessions.keep([(KEY, epoch)], owner="n3", now_ms=late_ms, lease_ms=LEASE_MS)
    assert other[KEY, epoch] is not None
    assert [run for run, _ in other[KEY, epoch].adopted] == [response_id]


async def test_keep_and_read_tell_epochs_of_one_session_apart(sessions: Sessions, redis: Redis) -> None:
    """A phone that still stands in a lost epoch is told so, and never gets the new one's events."""
    lost = (await sessions.open(KEY, now_ms=0)).epoch
    await redis.flushall()
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    await sessions.append(KEY, epoch, "context:1", b"a")
    kept = await sessions.keep([(KEY, lost), (KEY, epoch)], owner="n1", now_ms=0, lease_ms=LEASE_MS)
    assert kept[KEY, lost] is None
    assert kept[KEY, epoch] is not None
    with pytest.raises(SessionLost):
        await sessions.read(KEY, lost, 0)


async def _held(redis: Redis) -> dict[bytes | str, bytes]:
    """All that a replica has by now."""
    return {key: await redis.dump(key) or b"" for key in await redis.keys("*")}


async def _promote(redis: Redis, held: dict[bytes | str, bytes]) -> None:
    """Go on as a replica that held this, and was promoted: with its memory, and as another history."""
    await redis.flushall()
    for key, value in held.items():
        await redis.restore(key, 1_800_000, value)
    # A replica of nobody that answers keeps what it has.
    await redis.replicaof("127.0.0.1", "1")
    await redis.replicaof("NO", "ONE")


async def test_number_that_a_failover_lost_counts_in_another_epoch(sessions: Sessions, redis: Redis) -> None:
    """A promoted replica lacks the last event: its number comes again in another epoch, and never in the old one."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    await sessions.append(KEY, epoch, "context:1", b"a")
    held = await _held(redis)
    await sessions.append(KEY, epoch, "context:2", b"lost")
    await _promote(redis, held)
    seq, is_new, now = await sessions.append(KEY, epoch, "context:3", b"other")
    assert (seq, is_new) == (2, True)
    assert now != epoch
    with pytest.raises(SessionLost):
        await sessions.read(KEY, epoch, 0)
    assert [(each.seq, each.frame) for each in await sessions.read(KEY, now, 0)] == [(1, b"a"), (2, b"other")]
    kept = (await sessions.keep([(KEY, epoch)], owner="n1", now_ms=0, lease_ms=LEASE_MS))[KEY, epoch]
    assert kept is not None
    assert (kept.seq, kept.epoch, kept.holds_to) == (2, now, 1)
    opened = await sessions.open(KEY, now_ms=0)
    assert (opened.existed, opened.epoch, opened.seq) == (True, now, 2)
    assert not opened.was_lost(epoch)
    # One that holds the lost event begins anew; one that does not goes on in the epoch that it knows.
    assert [opened.told_as(Resume(epoch=epoch, seq=seq)) for seq in (1, 2)] == [epoch, now]


async def test_each_failover_is_another_epoch(sessions: Sessions, redis: Redis) -> None:
    """Two failovers, with and without a write between them: three epochs, and only the last former one may go on."""
    epochs = [(await sessions.open(KEY, now_ms=0)).epoch]
    for _ in range(2):
        await _promote(redis, await _held(redis))
        epochs.append((await sessions.open(KEY, now_ms=0)).epoch)
    assert len(set(epochs)) == 3
    opened = await sessions.open(KEY, now_ms=0)
    assert opened.told_as(Resume(epoch=epochs[1], seq=0)) == epochs[1]
    assert opened.told_as(Resume(epoch=epochs[0], seq=0)) == epochs[2]
    kept = (await sessions.keep([(KEY, epochs[0])], owner="n1", now_ms=0, lease_ms=LEASE_MS))[KEY, epochs[0]]
    assert kept is not None
    assert kept.holds_to == -1


async def test_run_goes_on_after_a_failover(sessions: Sessions, redis: Redis) -> None:
    """A run keeps its epoch and its lease, though phones have gone on to another, and ends with its one answer."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    _, response_id = await accept(sessions, epoch, owner="n1", now_ms=0)
    await _promote(redis, await _held(redis))
    now = (await sessions.open(KEY, now_ms=0)).epoch
    for now_ms in range(1000, 4 * LEASE_MS, 1000):
        kept = await sessions.keep(
            [(KEY, now), (KEY, epoch)],
            owner="n1",
            now_ms=now_ms,
            lease_ms=LEASE_MS,
            working={(KEY, epoch): [response_id]},
        )
        assert [each is not None and each.adopted for each in kept.values()] == [(), ()]
    placed = await sessions.append(
        KEY, epoch, f"final:{response_id}", b"f", response_id=response_id, owner="n1", ends_run=True
    )
    assert placed == (1, True, now)
    assert (await accept(sessions, epoch))[0] == "duplicate"


async def test_epoch_of_another_session_stays_lost_after_a_failover(sessions: Sessions, redis: Redis) -> None:
    """Only epochs of the same session are taken for one another."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    await sessions.shred(KEY)
    await sessions.open(KEY, now_ms=0)
    await _promote(redis, await _held(redis))
    with pytest.raises(SessionLost):
        await accept(sessions, epoch)
    with pytest.raises(SessionLost):
        await sessions.append(KEY, epoch, "context:1", b"a")
    assert (await sessions.keep([(KEY, epoch)], owner="n1", now_ms=0, lease_ms=LEASE_MS))[KEY, epoch] is None


async def test_final_by_two_nodes_is_one_answer(sessions: Sessions) -> None:
    """Two nodes that end a run at once make one answer."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    _, response_id = await accept(sessions, epoch)
    done = await asyncio.gather(
        *(
            sessions.append(KEY, epoch, f"final:{response_id}", bytes([n]), response_id=response_id, ends_run=True)
            for n in range(10)
        )
    )
    assert {placed.seq for placed in done} == {1}
    assert [placed.is_new for placed in done].count(True) == 1


async def test_log_is_bounded_and_says_where_it_begins(sessions: Sessions) -> None:
    """The log keeps the newest events and tells the oldest it has."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    assert (await sessions.open(KEY, now_ms=0)).first_seq == 1
    for n in range(8):
        await sessions.append(KEY, epoch, f"context:{n}", b"x")
    assert (await sessions.open(KEY, now_ms=0)).first_seq == 4
    assert [e.seq for e in await sessions.read(KEY, epoch, 6)] == [7, 8]
    assert await sessions.event(KEY, epoch, "context:0") is None


async def test_redis_holds_no_word_in_the_clear(sessions: Sessions, redis: Redis) -> None:
    """Neither question, frame, proposal nor patient id can be read in Redis."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    _, response_id = await accept(sessions, epoch, body=b"CANARY-body")
    await sessions.append(
        KEY, epoch, "final:x", b"CANARY-frame", patient_id="CANARY-7823", proposals=[("act_1", b"CANARY-proposal")]
    )
    dumped = b""
    for key in await redis.keys("*"):
        dumped += key + (await redis.dump(key) or b"")
        if await redis.type(key) == b"hash":
            fields = await redis.hgetall(key)
            dumped += b"".join(fields) + b"".join(fields.values())
    assert response_id.encode() in dumped
    assert b"CANARY" not in dumped
    assert (await sessions.open(KEY, now_ms=0)).patient_id == "CANARY-7823"
    assert await sessions.proposal(KEY, "act_1") == b"CANARY-proposal"


async def test_shred_leaves_nothing_of_the_session(sessions: Sessions, redis: Redis) -> None:
    """After the end of a session no key of it is left."""
    epoch = (await sessions.open(KEY, now_ms=0)).epoch
    await accept(sessions, epoch)
    await sessions.append(KEY, epoch, "context:1", b"x", proposals=[("act_1", b"p")])
    await sessions.shred(KEY)
    assert await redis.keys("*sess_1*") == []


def test_session_key_of_another_user_differs() -> None:
    """No choice of a session id reaches the session of another user or department."""
    assert session_key("a", "b", "c") != session_key("a", "b:c", "c")
    assert session_key("a:b", "c", "d") != session_key("a", "b:c", "d")
